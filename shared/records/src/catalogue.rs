//! Reads the catalogue of a tenant. Each process caches a copy and checks its version once a second.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use content::{
    catalogue::{Catalogue, NotificationType, Rule},
    template::{self, Template, TemplateSource},
};
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use domain::{Class, RuleIndex, TenantId};
use store::{
    DbResult, Store,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{CatalogueStore, Records};

/// The age from which a copy's version is checked.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// The number of tenants in the cache; beyond it, entries not used recently are dropped.
const TENANTS_MAX: usize = 1000;

row! {
    struct TemplateRow {
        name: String as Text,
        version: i32 as Int4,
        category: Option<String> as Nullable<Text>,
        variables: Vec<String> as Array<Text>,
        parts: String as Text,
    }
}

row! {
    struct TypeRow {
        name: String as Text,
        category: Option<String> as Nullable<Text>,
        label: Option<String> as Nullable<Text>,
        description: Option<String> as Nullable<Text>,
        class: Option<String> as Nullable<Text>,
        channels: Vec<String> as Array<Text>,
        default_enabled: bool as Bool,
        send_window: Option<String> as Nullable<Text>,
    }
}

row! {
    struct ClassRow {
        name: String as Text,
        class: String as Text,
    }
}

row! {
    struct RuleRow {
        id: Uuid as SqlUuid,
        name: String as Text,
        event_type: String as Text,
        definition: String as Text,
    }
}

impl CatalogueStore<'_> {
    /// The version of a tenant's catalogue; 0: it was never changed.
    pub async fn version(self, tenant: TenantId) -> DbResult<i64> {
        Version { tenant: tenant.0 }.query().within(Some(tenant)).row(self.store).await
    }

    /// A tenant's catalogue. `version` was read first, so a concurrent change makes the copy old but not wrong.
    pub async fn load(self, tenant: TenantId, version: i64) -> DbResult<Catalogue> {
        let (templates, unread_templates) = self.template_sources(tenant).await?;
        let templates = template::compile(templates);
        let types = self.types(tenant).await?;
        let (rules, unread_rules) = self.active_rules(tenant).await?;
        Ok(Catalogue {
            version,
            types: types.into_iter().map(|of_type| (of_type.name.clone(), of_type)).collect(),
            classes: self.category_classes(tenant).await?.into_iter().collect(),
            templates: templates.into_iter().map(|one| (one.source.name.clone(), Arc::new(one))).collect(),
            index: RuleIndex::new(rules.iter().map(|rule| rule.event_type.as_str())),
            rules,
            unread_rules,
            unread_templates,
        })
    }

    /// The templates that can be read, and the names of the others.
    async fn template_sources(self, tenant: TenantId) -> DbResult<(Vec<TemplateSource>, HashSet<String>)> {
        let rows = Templates { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        let (mut read, mut unread) = (Vec::with_capacity(rows.len()), HashSet::new());
        for TemplateRow { name, version, category, variables, parts } in rows {
            match serde_json::from_str(&parts) {
                Ok(parts) => read.push(TemplateSource { name, version, category, variables, parts }),
                Err(error) => {
                    tracing::warn!(name, tenant = tenant.0, %error, "a template cannot be read by this version");
                    unread.insert(name);
                }
            }
        }
        Ok((read, unread))
    }

    /// Every type of a tenant, by name.
    pub async fn types(self, tenant: TenantId) -> DbResult<Vec<NotificationType>> {
        let rows = Types { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        let of_type = |row: TypeRow| NotificationType {
            name: row.name,
            category: row.category,
            label: row.label,
            description: row.description,
            class: row.class.and_then(|class| class.parse().ok()),
            channels: row.channels.iter().filter_map(|channel| channel.parse().ok()).collect(),
            default_enabled: row.default_enabled,
            send_window: row.send_window.and_then(|window| serde_json::from_str(&window).ok()),
        };
        Ok(rows.into_iter().map(of_type).collect())
    }

    async fn category_classes(self, tenant: TenantId) -> DbResult<Vec<(String, Class)>> {
        let rows = Classes { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().filter_map(|row| Some((row.name, row.class.parse().ok()?))).collect())
    }

    /// The rules that can be read, and the ids of the others.
    async fn active_rules(self, tenant: TenantId) -> DbResult<(Vec<Arc<Rule>>, HashSet<Uuid>)> {
        let rows = Rules { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        let (mut read, mut unread) = (Vec::with_capacity(rows.len()), HashSet::new());
        for RuleRow { id, name, event_type, definition } in rows {
            match serde_json::from_str(&definition) {
                Ok(definition) => read.push(Arc::new(Rule { id, name, event_type, definition })),
                Err(error) => {
                    tracing::warn!(%id, tenant = tenant.0, %error, "a rule cannot be read by this version");
                    unread.insert(id);
                }
            }
        }
        Ok((read, unread))
    }
}

struct CacheEntry {
    catalogue: Arc<Catalogue>,
    checked_at: Instant,
}

/// A cache of the catalogues of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Catalogues {
    store: Store,
    entries: Arc<RwLock<HashMap<TenantId, CacheEntry>>>,
}

impl Catalogues {
    /// Reads from `store`.
    pub fn new(store: Store) -> Self {
        Self { store, entries: Arc::default() }
    }

    /// The cached copy, unless it is too old.
    pub fn fresh(&self, tenant: TenantId) -> Option<Arc<Catalogue>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .get(&tenant)
            .filter(|entry| entry.checked_at.elapsed() < FRESH_FOR)
            .map(|entry| Arc::clone(&entry.catalogue))
    }

    /// The catalogue of a tenant, at most a second old. While one caller checks for a newer version, the others get
    /// the current copy.
    pub async fn get(&self, tenant: TenantId) -> DbResult<Arc<Catalogue>> {
        match self.fresh(tenant) {
            Some(catalogue) => Ok(catalogue),
            None => self.newest(tenant).await,
        }
    }

    /// The current catalogue of a tenant; checks the version whatever the age of the copy.
    pub async fn newest(&self, tenant: TenantId) -> DbResult<Arc<Catalogue>> {
        let checked_at = Instant::now();
        let known = {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            entries.get_mut(&tenant).map(|entry| {
                entry.checked_at = checked_at;
                Arc::clone(&entry.catalogue)
            })
        };
        let found = self.refresh(tenant, known).await;
        match &found {
            Ok(catalogue) => self.insert(tenant, CacheEntry { catalogue: Arc::clone(catalogue), checked_at }),
            // We do not know whether the copy is still current, so the next caller checks again.
            Err(_) => self.forget(tenant),
        }
        found
    }

    async fn refresh(&self, tenant: TenantId, known: Option<Arc<Catalogue>>) -> DbResult<Arc<Catalogue>> {
        let version = self.store.catalogue().version(tenant).await?;
        let Some(known) = known else { return self.store.catalogue().load(tenant, version).await.map(Arc::new) };
        if known.version == version {
            return Ok(known);
        }
        let mut catalogue = self.store.catalogue().load(tenant, version).await?;
        // If something else changed, keep the compiled templates.
        let is_same =
            |one: &Arc<Template>| known.templates.get(&one.source.name).is_some_and(|of| of.source == one.source);
        if catalogue.templates.len() == known.templates.len() && catalogue.templates.values().all(is_same) {
            catalogue.templates.clone_from(&known.templates);
        }
        Ok(Arc::new(catalogue))
    }

    /// Drops the copy after a change in this process, so that the next call reads again.
    pub fn forget(&self, tenant: TenantId) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    fn insert(&self, tenant: TenantId, entry: CacheEntry) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= TENANTS_MAX {
            entries.retain(|_, entry| entry.checked_at.elapsed() < FRESH_FOR * 60);
        }
        if entries.len() >= TENANTS_MAX {
            entries.clear();
        }
        entries.insert(tenant, entry);
    }
}

sql!(Version in "catalogue/version.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Templates in "catalogue/templates.sql" { tenant: i32 as Int4 } -> TemplateRow);
sql!(Types in "catalogue/types.sql" { tenant: i32 as Int4 } -> TypeRow);
sql!(Classes in "catalogue/classes.sql" { tenant: i32 as Int4 } -> ClassRow);
sql!(Rules in "catalogue/rules.sql" { tenant: i32 as Int4 } -> RuleRow);
statements!(Version, Templates, Types, Classes, Rules);
