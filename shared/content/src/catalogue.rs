//! A tenant's configuration for messages to people: types, categories, templates, rules.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use domain::{
    Channel, Class, RuleDefinition, RuleIndex, SendWindow,
    contract::submission::{Content, TemplateRef},
};
use serde_json::Value;
use uuid::Uuid;

use crate::template::{Template, TemplateError};

/// A notification type.
#[derive(Clone, Debug)]
pub struct NotificationType {
    /// Its name.
    pub name: String,
    /// The category it belongs to.
    pub category: Option<String>,
    /// The label shown to people.
    pub label: Option<String>,
    /// The description shown to people.
    pub description: Option<String>,
    /// The class of the type; `None`: the class of its category.
    pub class: Option<Class>,
    /// The channels it uses unless a request names others.
    pub channels: Vec<Channel>,
    /// Whether it is on for people without a preference.
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
    /// An event type, or a prefix that ends with `.*`.
    pub event_type: String,
    /// The definition of the rule.
    pub definition: RuleDefinition,
}

/// The catalogue of one tenant at one version.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Increased by each change.
    pub version: i64,
    /// The notification types by name.
    pub types: HashMap<String, NotificationType>,
    /// The classes of categories, where one is set.
    pub classes: HashMap<String, Class>,
    /// The active templates by name.
    pub templates: HashMap<String, Arc<Template>>,
    /// The active rules, oldest first.
    pub rules: Vec<Arc<Rule>>,
    /// Finds the rules for an event type.
    pub index: RuleIndex,
    /// Active rules that a newer version wrote and that this version cannot read.
    pub unread_rules: HashSet<Uuid>,
    /// Active templates that this version cannot read, by name.
    pub unread_templates: HashSet<String>,
}

impl Catalogue {
    /// The rules for events of this type, oldest first.
    pub fn rules_for(&self, event_type: &str) -> impl Iterator<Item = &Arc<Rule>> {
        self.index.matching(event_type).into_iter().filter_map(|place| self.rules.get(place))
    }

    /// An active rule by id.
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

    /// Fills in the content from its type: category, class, send window, and whether it needs an opt-in.
    pub fn complete(&self, content: &mut Content) {
        if let Some(of_type) = content.kind.as_ref().and_then(|kind| self.types.get(kind)) {
            content.category = content.category.take().or_else(|| of_type.category.clone());
            content.opt_in = !of_type.default_enabled;
            content.send_window = content.send_window.take().or_else(|| of_type.send_window.clone());
        }
        let class = self.class(content.kind.as_deref(), content.category.as_deref());
        content.class = Some(class).filter(|class| *class != Class::of(content.category.as_deref()));
    }

    /// Renders a template for these channels into `content`; stops at `until`.
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
