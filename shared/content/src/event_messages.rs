//! Turns a rule and an event into a notice; the same for single events and for the digests that collect them.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use domain::{
    Lane, Person,
    contract::submission::{Content, RECIPIENT_BYTES_MAX},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    catalogue::{Catalogue, Rule},
    compose::Notice,
    template::TemplateError,
};

/// Why a rule cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    /// The field with the fault.
    pub field: String,
    /// The reason, as a clause.
    pub message: String,
}

/// An event to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct EventInput<'a> {
    /// The event.
    pub id: Uuid,
    /// Its type.
    pub event_type: &'a str,
    /// Its data.
    pub data: &'a Map<String, Value>,
}

/// The variables of a person for conditions and templates.
fn person_variables(person: &Person) -> Value {
    json!({
        "id": person.id,
        "name": person.name,
        "username": person.username(),
        "email": person.email,
        "phone": person.phone,
        "locale": person.locale,
        "time_zone": person.time_zone.map(|zone| zone.name()),
        "attributes": person.attributes,
    })
}

/// The variables of an event for conditions.
pub fn facts(event_input: EventInput<'_>, person: &Person) -> Value {
    json!({"type": event_input.event_type, "user_id": person.id, "data": event_input.data, "user": person_variables(person)})
}

/// The variables of an event for templates: its data at the top level, `user` and `event`, and what a digest of this
/// event alone would have.
pub fn variables(event_input: EventInput<'_>, person: &Person) -> Value {
    let mut all = event_input.data.clone();
    all.entry("count").or_insert_with(|| json!(1));
    all.entry("items").or_insert_with(|| json!([event_input.data]));
    all.insert("user".to_owned(), person_variables(person));
    let event = json!({"id": event_input.id, "type": event_input.event_type, "user_id": person.id});
    all.insert("event".to_owned(), event);
    Value::Object(all)
}

/// The variables of a digest for templates: `count`, `items` (the data of each event), `user`, and `event`, the last
/// one.
pub fn variables_of_digest(count: i32, items: Vec<Value>, event_type: &str, person: &Person) -> Value {
    json!({
        "count": count,
        "items": items,
        "user": person_variables(person),
        "event": {"type": event_type, "user_id": person.id},
    })
}

/// Renders the notice of `rule` with these variables, or returns why it cannot. Rendering stops at `until`: call it
/// where a thread may be busy for that long, and never within a transaction.
pub fn notice(
    catalogue: &Catalogue,
    rule: &Rule,
    event_type: &str,
    (variables, until): (&Value, Instant),
    now: DateTime<Utc>,
) -> Result<Notice, RenderError> {
    let definition = &rule.definition;
    let name = &definition.template_name;
    let template_error = |message: String| RenderError { field: "template_name".to_owned(), message };
    let template =
        catalogue.templates.get(name).ok_or_else(|| template_error(format!("there is no active template `{name}`")))?;
    let kind = definition.notification_type.clone().unwrap_or_else(|| event_type.to_owned());
    let action_url = variables.get("action_url").and_then(Value::as_str);
    let metadata = Map::from_iter([("rule_id".to_owned(), json!(rule.id))]);
    let mut content = Content {
        kind: Some(kind),
        category: definition.category.clone(),
        action_url: action_url.filter(|url| url.len() <= RECIPIENT_BYTES_MAX).map(str::to_owned),
        metadata: Some(metadata),
        ..Content::default()
    };
    catalogue.complete(&mut content);
    catalogue.render(template, &definition.channels, (variables, until), &mut content).map_err(
        |error| match error {
            TemplateError::Missing(name) => RenderError { field: name, message: "is missing".to_owned() },
            error => template_error(format!("`{name}` cannot be rendered: {error}")),
        },
    )?;
    // The class depends on the category, which may come from the template.
    catalogue.complete(&mut content);
    let delay = definition.delay_seconds.filter(|seconds| *seconds > 0);
    Ok(Notice {
        channels: definition.channels.clone(),
        content,
        priority: definition.priority,
        lane: definition.priority.lane(),
        scheduled_at: delay.map(|seconds| now + TimeDelta::seconds(i64::from(seconds))),
        expires_at: None,
        session: None,
    })
}

/// The lane of a digest's message: many windows close at the same moment, and must not delay messages that are sent
/// at once.
pub const fn lane_of_digest(lane: Lane) -> Lane {
    match lane {
        Lane::High => Lane::High,
        Lane::Normal | Lane::Bulk => Lane::Bulk,
    }
}
