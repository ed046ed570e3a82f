//! From a rule, and what happened, to something to tell: for events at once and for the digests they gather into alike.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    catalogue::{Catalogue, Rule},
    compose::Notice,
    contract::submission::{Content, RECIPIENT_BYTES_MAX},
    domain::{Lane, Person},
    template::TemplateError,
};

/// Why a rule cannot say anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    /// The field that is to blame.
    pub field: String,
    /// Why, as a clause.
    pub message: String,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct EventInput<'a> {
    /// The event.
    pub id: Uuid,
    /// Its type.
    pub event_type: &'a str,
    /// Its data.
    pub data: &'a Map<String, Value>,
}

/// A person as conditions and templates see one.
fn seen(person: &Person) -> Value {
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

/// An event as conditions see it.
pub fn facts(event_input: EventInput<'_>, person: &Person) -> Value {
    json!({"type": event_input.event_type, "user_id": person.id, "data": event_input.data, "user": seen(person)})
}

/// An event as a template sees it: its data at the top, beside them `user` and `event`, and what a digest of it alone would
/// have.
pub fn variables(event_input: EventInput<'_>, person: &Person) -> Value {
    let mut all = event_input.data.clone();
    all.entry("count").or_insert_with(|| json!(1));
    all.entry("items").or_insert_with(|| json!([event_input.data]));
    all.insert("user".to_owned(), seen(person));
    let event = json!({"id": event_input.id, "type": event_input.event_type, "user_id": person.id});
    all.insert("event".to_owned(), event);
    Value::Object(all)
}

/// A digest as a template sees it: `count`, `items` (the data of each event), `user`, and `event`, the last one.
pub fn variables_of_digest(count: i32, items: Vec<Value>, event_type: &str, person: &Person) -> Value {
    json!({
        "count": count,
        "items": items,
        "user": seen(person),
        "event": {"type": event_type, "user_id": person.id},
    })
}

/// What `rule` tells with these variables, and why it cannot. Renders until `until` at the latest: call it where a thread may be busy
/// for that long, and never within a transaction.
pub fn notice(
    catalogue: &Catalogue,
    rule: &Rule,
    event_type: &str,
    (variables, until): (&Value, Instant),
    now: DateTime<Utc>,
) -> Result<Notice, RenderError> {
    let definition = &rule.definition;
    let name = &definition.template_name;
    let untold = |message: String| RenderError { field: "template_name".to_owned(), message };
    let template =
        catalogue.templates.get(name).ok_or_else(|| untold(format!("there is no active template `{name}`")))?;
    let kind = definition.notification_type.clone().unwrap_or_else(|| event_type.to_owned());
    let action_url = variables.get("action_url").and_then(Value::as_str);
    let of_rule = Map::from_iter([("rule_id".to_owned(), json!(rule.id))]);
    let mut content = Content {
        kind: Some(kind),
        category: definition.category.clone(),
        action_url: action_url.filter(|url| url.len() <= RECIPIENT_BYTES_MAX).map(str::to_owned),
        metadata: Some(of_rule),
        ..Content::default()
    };
    catalogue.complete(&mut content);
    catalogue.render(template, &definition.channels, (variables, until), &mut content).map_err(
        |error| match error {
            TemplateError::Missing(name) => RenderError { field: name, message: "is missing".to_owned() },
            error => untold(format!("`{name}` cannot be rendered: {error}")),
        },
    )?;
    // The class follows the category, which may be the template's.
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

/// The lane of a digest's message: many windows close at one moment, and must not delay messages that are sent at once.
pub const fn lane_of_digest(lane: Lane) -> Lane {
    match lane {
        Lane::High => Lane::High,
        Lane::Normal | Lane::Bulk => Lane::Bulk,
    }
}
