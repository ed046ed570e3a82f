//! Submits a notification of a type to a person: on the channels of the type, with the content of its template.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use content::{
    catalogue::Catalogue,
    compose::Notice,
    template::{self, Template, TemplateError},
};
use domain::{
    Channel, Person, Priority, TenantId,
    contract::submission::{Content, FieldError, Part, Rules, Shared, Submission, TemplateRef, check_said, parse_json},
};
use records::Records;
use serde_json::{Value, json, value::RawValue};
use submission::{
    Submissions,
    envelope::{Built, Origin, SendAnswer, acceptance_of, to_json},
    http::{origin, submit},
    idempotency::{self, Kind},
    openapi::{ChannelWord, PriorityWord, SendWindowBody},
    rendering::faults,
    session::{self, ChosenSession, SessionDemand},
};
use utoipa::ToSchema;
use web::{
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    problem::Problem,
};

/// Fields that are not allowed here: the person's own addresses decide them, or they belong to one channel only.
const REFUSED_FIELDS: [&str; 7] = ["channel", "recipient", "to", "url", "html", "attachments", "media"];

/// A notification of a type.
#[derive(ToSchema)]
#[schema(as = TypedNotification)]
#[expect(dead_code, reason = "it describes the body; the submission itself reads it")]
pub struct NotifyBody {
    /// The person.
    #[schema(max_length = 200, example = "user_123")]
    user_id: String,
    /// The type; it need not be a known one.
    #[schema(max_length = 200, example = "task_reminder")]
    notification_type: String,
    /// The title.
    #[schema(max_length = 998)]
    title: String,
    /// The text.
    message: String,
    /// The channels; unless given, those of the type, else `in_app`.
    channels: Option<Vec<ChannelWord>>,
    /// Notes, given back as they are. A template can use its members; `priority` in it is the priority where none is
    /// given.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// When to send it; `scheduled_at` is accepted too.
    scheduled_for: Option<DateTime<Utc>>,
    /// When it is no longer worth sending.
    expires_at: Option<DateTime<Utc>>,
    /// Picks the lane; `normal` unless given.
    priority: Option<PriorityWord>,
    /// The category; default: that of the type.
    #[schema(max_length = 200)]
    category: Option<String>,
    /// Data for the recipient's program.
    #[schema(value_type = Option<serde_json::Value>)]
    data: Option<Value>,
    /// Where a click on an in-app notification leads.
    #[schema(max_length = 2048)]
    action_url: Option<String>,
    /// As the header `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 200)]
    idempotency_key: Option<String>,
    /// WhatsApp: the session that carries it.
    session_id: Option<String>,
    /// WhatsApp: over the session's pace `queue` or `reject`.
    on_limit: Option<String>,
    /// WhatsApp: accept it although the session is not WORKING.
    queue_when_offline: Option<bool>,
    /// When it may disturb the person; unless given, as the type has it.
    send_window: Option<SendWindowBody>,
}

/// Sends a person a notification.
///
/// One message with a delivery for each channel: those given, else those of the type, else `in_app`. Where a template
/// has the name of the type, it renders the notification: it sees `title`, `message`, `metadata` with its members
/// beside them, and `username` (the person's name, else the id). A channel on which the person has no address gives a
/// delivery that fails with `no_address`; one that the person switched off, one that is `suppressed`.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/notifications", tag = "submitting",
    request_body(content = NotifyBody, example = json!({"user_id": "user_123", "notification_type": "urgent_alert", "title": "Urgent: Action Required",
        "message": "Please review immediately", "channels": ["in_app", "email", "push"], "metadata": {"priority": "high"}})),
    responses((status = 202, description = "Accepted: committed to disk", body = SendAnswer,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn send(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let (channels, mut submission) = split(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), submission.idempotency_key.take())?;
    let origin = origin(&producer.0, trace, key, Kind::Notification, &bytes);
    let catalogue = submissions.web.catalogue(origin.tenant).await?;
    let checked = check(channels, submission, &catalogue, &submissions.web.rules()).map_err(Problem::validation)?;
    submit(&submissions, origin.key, build(&submissions, &catalogue, checked, origin)).await
}

/// Separates the fields of this route from the body; the rest is an ordinary submission.
fn split(body: &[u8]) -> Result<(Option<Vec<String>>, Submission), FieldError> {
    let mut members: BTreeMap<String, Box<RawValue>> = parse_json(body)?;
    if let Some(name) = REFUSED_FIELDS.iter().find(|name| members.contains_key(**name)) {
        return Err(FieldError::new(*name, "is for /api/notifications/send; here `user_id` and `channels` decide"));
    }
    let channels = members.remove("channels").map(|raw| serde_json::from_str::<Option<_>>(raw.get()));
    let channels = channels.transpose().map_err(|_| FieldError::new("channels", "must be a list of channels"))?;
    if let Some(kind) = members.remove("notification_type") {
        members.insert("type".to_owned(), kind);
    }
    Ok((channels.flatten(), Submission::parse(&to_json(&members))?))
}

/// A validated request.
struct CheckedNotification {
    channels: Vec<Channel>,
    user: String,
    kind: String,
    shared: Shared,
}

fn check(
    channels: Option<Vec<String>>,
    mut submission: Submission,
    catalogue: &Catalogue,
    rules: &Rules,
) -> Result<CheckedNotification, Vec<FieldError>> {
    let mut faults = Vec::new();
    let required = [
        ("user_id", &submission.user_id),
        ("notification_type", &submission.kind),
        ("title", &submission.title),
        ("message", &submission.message),
    ];
    for (field, text) in required {
        if text.as_deref().unwrap_or_default().is_empty() {
            faults.push(FieldError::new(field, "is required"));
        }
    }
    let (user, kind) = (submission.user_id.clone().unwrap_or_default(), submission.kind.clone().unwrap_or_default());
    let channels = match channels {
        Some(given) => parse_channels(&given, &mut faults),
        None => catalogue.types.get(&kind).map_or_else(|| vec![Channel::InApp], |of_type| of_type.channels.clone()),
    };
    if submission.priority.is_none() {
        submission.priority = of_metadata(&submission).map(|priority| priority.to_string());
    }
    let of_session = channels.contains(&Channel::Whatsapp);
    let channel = if of_session { Some(Channel::Whatsapp) } else { channels.first().copied() };
    submission.channel = Some(channel.unwrap_or(Channel::InApp).to_string());
    match submission.check_shared(rules) {
        Ok(shared) if faults.is_empty() => Ok(CheckedNotification { channels, user, kind, shared }),
        Ok(_) => Err(faults),
        Err(more) => {
            let is_known = |fault: &FieldError| faults.iter().any(|known| known.field == fault.field);
            let more: Vec<FieldError> = more.into_iter().filter(|fault| !is_known(fault)).collect();
            faults.extend(more);
            Err(faults)
        }
    }
}

fn parse_channels(given: &[String], faults: &mut Vec<FieldError>) -> Vec<Channel> {
    let mut channels = Vec::new();
    for (index, text) in given.iter().enumerate() {
        match text.parse::<Channel>() {
            Ok(Channel::Webhook) => faults.push(FieldError::new(
                format!("channels[{index}]"),
                "must be a channel of people: email, sms, push, in_app or whatsapp",
            )),
            Ok(channel) if channels.contains(&channel) => {}
            Ok(channel) => channels.push(channel),
            Err(unknown) => faults.push(FieldError::new(format!("channels[{index}]"), unknown.to_string())),
        }
    }
    if given.is_empty() {
        faults.push(FieldError::new("channels", "must name one at least"));
    }
    channels
}

/// `metadata.priority`, if it is a priority.
fn of_metadata(submission: &Submission) -> Option<Priority> {
    submission.metadata.as_ref()?.get("priority")?.as_str()?.parse().ok()
}

async fn build(
    submissions: &Submissions,
    catalogue: &Catalogue,
    checked: CheckedNotification,
    origin: Origin,
) -> Result<Built, Problem> {
    let CheckedNotification { channels, user, kind, shared } = checked;
    let (tenant, id) = (origin.tenant, user.clone());
    let mut known = submissions.web.queries.run(async move |store| store.people().load(tenant, vec![id]).await).await?;
    let person = known.remove(&user).unwrap_or_else(|| Person::unknown(user));
    let Shared { priority, mut content, scheduled_at, expires_at, session, .. } = shared;
    if let Some(template) = catalogue.templates.get(&kind) {
        fill((submissions, tenant), template, &channels, &person, &mut content).await?;
    }
    catalogue.complete(&mut content);
    let faults: Vec<FieldError> =
        channels.iter().flat_map(|channel| check_said(*channel, &content.clone().on(*channel))).collect();
    if !faults.is_empty() {
        return Err(Problem::validation(faults));
    }
    let demand = SessionDemand { messages: 1, is_scheduled: scheduled_at.is_some(), must_wait: false };
    let chosen = match channels.iter().find(|channel| **channel == Channel::Whatsapp) {
        Some(channel) => session::choose(submissions, tenant, *channel, &session, demand).await?,
        None => None,
    };
    let session = chosen.as_ref().map(ChosenSession::line);
    let lane = priority.lane();
    let notice = Notice { channels, content, priority, lane, scheduled_at, expires_at, session };
    let message = notice.to(&person, Some(to_json(&notice.content)));
    Ok(acceptance_of(message, origin, chosen.as_ref(), |answer| to_json(&answer)))
}

/// Renders the template for each channel that it has content for; elsewhere title and message stay as given.
async fn fill(
    (submissions, tenant): (&Submissions, TenantId),
    template: &Arc<Template>,
    channels: &[Channel],
    person: &Person,
    content: &mut Content,
) -> Result<(), Problem> {
    let (template, channels, variables) = (Arc::clone(template), channels.to_vec(), variables(person, content));
    let source = template.source.clone();
    let rendering = move || {
        let (mut parts, until) = (BTreeMap::new(), template::deadline());
        for channel in channels {
            match template.render_until(channel, &variables, until) {
                Ok(part) => drop(parts.insert(channel, part)),
                Err(TemplateError::NoPart(_)) => {}
                Err(error) => return Err(faults(&template, &variables, error)),
            }
        }
        Ok(parts)
    };
    let parts: BTreeMap<Channel, Part> = submissions
        .renderers
        .run(tenant, rendering)
        .await?
        .map_err(|faults| Problem::validation(faults.into_iter().map(of_metadata_field).collect()))?;
    if !parts.is_empty() {
        content.parts = parts;
        content.category = content.category.take().or(source.category);
        content.template = Some(TemplateRef { name: source.name, version: source.version });
    }
    Ok(())
}

/// Renames the field of a fault, because variables come from `metadata` here.
fn of_metadata_field(fault: FieldError) -> FieldError {
    let field = match fault.field.strip_prefix("template_vars") {
        Some(rest) => format!("metadata{rest}"),
        None => "notification_type".to_owned(),
    };
    FieldError { field, ..fault }
}

fn variables(person: &Person, content: &Content) -> Value {
    let mut members = content.metadata.clone().unwrap_or_default();
    members.insert("title".to_owned(), json!(content.title));
    members.insert("message".to_owned(), json!(content.message));
    members.insert("username".to_owned(), json!(person.username()));
    members.insert("metadata".to_owned(), json!(content.metadata.clone().unwrap_or_default()));
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use domain::contract::guard::Guard;

    use super::*;

    fn checked(body: &str) -> Result<CheckedNotification, Vec<String>> {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let rules = Rules { now, guard: Guard::default(), media_guard: Guard::default() };
        let fields = |faults: Vec<FieldError>| faults.into_iter().map(|fault| fault.field).collect::<Vec<_>>();
        let (channels, submission) = split(body.as_bytes()).map_err(|fault| vec![fault.field])?;
        check(channels, submission, &Catalogue::default(), &rules).map_err(fields)
    }

    #[test]
    fn the_printed_requests_are_taken() {
        let printed = checked(
            r#"{"user_id": "user_123", "notification_type": "urgent_alert", "title": "Urgent: Action Required",
                "message": "Please review immediately", "channels": ["in_app", "email", "push"], "metadata": {"priority": "high"}}"#,
        )
        .ok()
        .unwrap();
        assert_eq!(printed.channels, [Channel::InApp, Channel::Email, Channel::Push]);
        assert_eq!(printed.shared.priority, Priority::High);
        let other = checked(
            r#"{"user_id": "u", "notification_type": "my_plugin_alert", "title": "t", "message": "m", "priority": "low",
                "metadata": {"priority": "high", "item_id": "abc123"}, "scheduled_for": "2027-02-01T10:00:00Z"}"#,
        )
        .ok()
        .unwrap();
        assert_eq!((other.channels, other.shared.priority), (vec![Channel::InApp], Priority::Low));
        assert!(other.shared.scheduled_at.is_some());
    }

    #[test]
    fn every_fault_is_named() {
        let faults = |body: &str| checked(body).err().unwrap_or_default();
        assert_eq!(faults("{}"), ["user_id", "notification_type", "title", "message"]);
        let with = |more: &str| {
            faults(&format!(r#"{{"user_id":"u","notification_type":"k","title":"t","message":"m",{more}}}"#))
        };
        assert_eq!(with(r#""channels":["fax","email","webhook"]"#), ["channels[0]", "channels[2]"]);
        assert_eq!(with(r#""channels":[]"#), ["channels"]);
        assert_eq!(with(r#""priority":"soon""#), ["priority"]);
        assert_eq!(with(r#""recipient":"a@b.c""#), ["recipient"]);
        assert_eq!(with(r#""send_window":{"from":"09:00"}"#), ["send_window.to"]);
        assert_eq!(with(r#""colour":"red""#), ["colour"]);
    }
}
