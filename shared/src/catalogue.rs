//! What a tenant manages and every message to a person needs: types, categories, templates, rules. Each process keeps a copy
//! and looks once a second whether it is still the newest.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use serde_json::Value;
use uuid::Uuid;

use crate::{
    contract::submission::{Content, TemplateRef},
    db::{DbResult, Store},
    domain::{Channel, Class, RuleDefinition, RuleIndex, SendWindow, TenantId},
    template::{Template, TemplateError},
};

/// How old a copy may be before its version is looked at.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Tenants whose copies are kept; beyond it those not used lately go.
const TENANTS_MAX: usize = 1000;

/// A kind of notification.
#[derive(Clone, Debug)]
pub struct NotificationType {
    /// Its name.
    pub name: String,
    /// The category it belongs to.
    pub category: Option<String>,
    /// For people.
    pub label: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Its own class; `None`: its category's.
    pub class: Option<Class>,
    /// The ways it takes unless a request says otherwise.
    pub channels: Vec<Channel>,
    /// Whether it is on for those who said nothing.
    pub default_enabled: bool,
    /// When it may disturb people; `None`: at any time.
    pub send_window: Option<SendWindow>,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// A type of events, or a beginning with `.*`.
    pub event_type: String,
    /// What it says.
    pub definition: RuleDefinition,
}

/// Everything of one tenant at one version.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Raised by each change.
    pub version: i64,
    /// By name.
    pub types: HashMap<String, NotificationType>,
    /// The classes of categories that were given one.
    pub classes: HashMap<String, Class>,
    /// By name; only active ones.
    pub templates: HashMap<String, Arc<Template>>,
    /// Active ones, the oldest first.
    pub rules: Vec<Arc<Rule>>,
    /// Which of them hear of which events.
    pub index: RuleIndex,
    /// Active rules that a newer version wrote and this one cannot read.
    pub unread_rules: HashSet<Uuid>,
    /// The same of templates, by name.
    pub unread_templates: HashSet<String>,
}

impl Catalogue {
    /// The rules that hear of events of this type, the oldest first.
    pub fn rules_for(&self, event_type: &str) -> impl Iterator<Item = &Arc<Rule>> {
        self.index.matching(event_type).into_iter().filter_map(|place| self.rules.get(place))
    }

    /// An active rule.
    pub fn rule(&self, id: Uuid) -> Option<&Arc<Rule>> {
        let place = self.rules.binary_search_by_key(&id, |rule| rule.id).ok()?;
        self.rules.get(place)
    }

    /// The class of a notification of this type or category.
    pub fn class(&self, kind: Option<&str>, category: Option<&str>) -> Class {
        let of_type = kind.and_then(|kind| self.types.get(kind));
        let category = category.or_else(|| of_type.and_then(|of_type| of_type.category.as_deref()));
        let of_category = || category.and_then(|category| self.classes.get(category)).copied();
        of_type.and_then(|of_type| of_type.class).or_else(of_category).unwrap_or_else(|| Class::of(category))
    }

    /// Completes content by what its type says: category, class, send window, and whether only those want it who said so.
    pub fn complete(&self, content: &mut Content) {
        if let Some(of_type) = content.kind.as_ref().and_then(|kind| self.types.get(kind)) {
            content.category = content.category.take().or_else(|| of_type.category.clone());
            content.opt_in = !of_type.default_enabled;
            content.send_window = content.send_window.take().or_else(|| of_type.send_window.clone());
        }
        let class = self.class(content.kind.as_deref(), content.category.as_deref());
        content.class = Some(class).filter(|class| *class != Class::of(content.category.as_deref()));
    }

    /// Renders a template for these channels into `content`, until `until` at the latest.
    pub fn render(
        &self,
        template: &Template,
        channels: &[Channel],
        (variables, until): (&Value, Instant),
        content: &mut Content,
    ) -> Result<(), TemplateError> {
        for channel in channels {
            content.parts.insert(*channel, template.render_until(*channel, variables, until)?);
        }
        let source = &template.source;
        content.category = content.category.take().or_else(|| source.category.clone());
        content.template = Some(TemplateRef { name: source.name.clone(), version: source.version });
        Ok(())
    }
}

struct CacheEntry {
    catalogue: Arc<Catalogue>,
    looked_at: Instant,
}

/// The catalogues of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Catalogues {
    store: Store,
    kept: Arc<RwLock<HashMap<TenantId, CacheEntry>>>,
}

impl Catalogues {
    /// Reads from `store`.
    pub fn new(store: Store) -> Self {
        Self { store, kept: Arc::default() }
    }

    /// The copy of this process, unless it is too old.
    pub fn fresh(&self, tenant: TenantId) -> Option<Arc<Catalogue>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(&tenant).filter(|kept| kept.looked_at.elapsed() < FRESH_FOR).map(|kept| Arc::clone(&kept.catalogue))
    }

    /// The catalogue of a tenant, at most a second old; while one caller looks for a newer one, others take the one there is.
    pub async fn get(&self, tenant: TenantId) -> DbResult<Arc<Catalogue>> {
        match self.fresh(tenant) {
            Some(catalogue) => Ok(catalogue),
            None => self.newest(tenant).await,
        }
    }

    /// The catalogue of a tenant as it is now, however young the copy is.
    pub async fn newest(&self, tenant: TenantId) -> DbResult<Arc<Catalogue>> {
        let looked_at = Instant::now();
        let known = {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            kept.get_mut(&tenant).map(|kept| {
                kept.looked_at = looked_at;
                Arc::clone(&kept.catalogue)
            })
        };
        let found = self.look(tenant, known).await;
        match &found {
            Ok(catalogue) => self.keep(tenant, CacheEntry { catalogue: Arc::clone(catalogue), looked_at }),
            // It is unknown whether the copy is still right, so the next caller asks again.
            Err(_) => self.forget(tenant),
        }
        found
    }

    async fn look(&self, tenant: TenantId, known: Option<Arc<Catalogue>>) -> DbResult<Arc<Catalogue>> {
        let version = self.store.catalogue_version(tenant).await?;
        let Some(known) = known else { return self.store.catalogue(tenant, version).await.map(Arc::new) };
        if known.version == version {
            return Ok(known);
        }
        let mut catalogue = self.store.catalogue(tenant, version).await?;
        // Where another thing was changed, the templates stay compiled.
        let is_same =
            |one: &Arc<Template>| known.templates.get(&one.source.name).is_some_and(|of| of.source == one.source);
        if catalogue.templates.len() == known.templates.len() && catalogue.templates.values().all(is_same) {
            catalogue.templates.clone_from(&known.templates);
        }
        Ok(Arc::new(catalogue))
    }

    /// Looks anew next time: something was changed here.
    pub fn forget(&self, tenant: TenantId) {
        self.kept.write().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    fn keep(&self, tenant: TenantId, one: CacheEntry) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= TENANTS_MAX {
            kept.retain(|_, one| one.looked_at.elapsed() < FRESH_FOR * 60);
        }
        if kept.len() >= TENANTS_MAX {
            kept.clear();
        }
        kept.insert(tenant, one);
    }
}
