//! Broadcasts: one notification for every person of a target, with pause, resume and cancel.

use std::{collections::BTreeSet, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use content::{broadcast::Definition, catalogue::Catalogue};
use deliveries::{
    Deliveries,
    broadcasts::{Steering, StoredBroadcast},
};
use domain::{
    BroadcastStatus, Channel, Priority, Target, TenantId,
    acceptance::{Acceptance, NewBroadcast, SideRecord},
    broadcast::is_targetable,
    contract::submission::{FieldError, NAME_BYTES_MAX, SessionAsk, Shared, Submission, parse_json},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use submission::{
    Submissions,
    envelope::{Built, Origin, to_json},
    http::{is_repeated, origin, submit},
    idempotency::{self, Kind},
    openapi::{ChannelWord, PriorityWord},
    session::{self, ChosenSession, SessionDemand},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    audit,
    auth::Admin,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    params::{self, Id, Page, Params},
    problem::Problem,
};

/// The largest number of named people in a target.
const NAMED_MAX: usize = 10_000;
/// The largest number of conditions in a target.
const CONDITIONS_MAX: usize = 20;
/// Largest value of an attribute or condition, in bytes of JSON.
const VALUE_BYTES_MAX: usize = 4096;

/// A broadcast to begin.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BroadcastSubmission)]
pub struct BroadcastBody {
    /// The type of the notification. It decides preferences, category and template. It need not exist.
    #[schema(max_length = 200, example = "announcement")]
    notification_type: Option<String>,
    /// Title or subject.
    #[schema(max_length = 998)]
    title: Option<String>,
    /// The text.
    message: Option<String>,
    /// The target: `{"type": "all"}`, `{"type": "subscription", "tier"}` (the attribute `tier`), `{"type": "attribute",
    /// "name", "value"}`, `{"type": "users", "ids"}` or `{"type": "query", "conditions"}`. Conditions have the form of
    /// those in rules, on `locale`, `time_zone` and `attributes.…`.
    #[schema(value_type = Option<Object>, example = json!({"type": "subscription", "tier": "premium"}))]
    target: Option<Target>,
    /// The channels; default: those of the type, else the inbox.
    #[schema(value_type = Option<Vec<ChannelWord>>)]
    channels: Option<Vec<String>>,
    /// The time at which it starts, within a year; a past time means now.
    #[serde(alias = "scheduled_for", alias = "scheduledAt")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    scheduled_at: Option<String>,
    /// Its priority among the other messages on the bulk lane.
    #[schema(value_type = Option<PriorityWord>)]
    priority: Option<String>,
    /// The producer's own notes, returned unchanged; at most 8 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// Like the header `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 200)]
    idempotency_key: Option<String>,
}

/// The answer to a broadcast.
#[derive(Serialize, ToSchema)]
pub struct BroadcastAccepted {
    /// The broadcast.
    pub id: Uuid,
    /// `running`, or `scheduled` for a later `scheduled_at`.
    #[schema(value_type = String, example = "running")]
    pub status: BroadcastStatus,
}

/// A checked broadcast.
struct Checked {
    definition: Definition,
    scheduled_at: Option<DateTime<Utc>>,
}

impl BroadcastBody {
    /// Checks everything and reports every fault. Each channel is checked as for a single message.
    fn check(self, submissions: &Submissions, usual: Option<Vec<Channel>>) -> Result<Checked, Problem> {
        let mut faults = Vec::new();
        let channels = channels(self.channels.as_deref(), usual, &mut faults);
        if self.notification_type.is_none() {
            faults.push(FieldError::new("notification_type", "is required"));
        }
        match &self.target {
            Some(target) => check_target(target, &mut faults),
            None => faults.push(FieldError::new("target", "is required: whom does it mean?")),
        }
        let rules = submissions.web.rules();
        let mut shared: Option<Shared> = None;
        for channel in &channels {
            let submission = Submission {
                channel: Some(channel.as_str().to_owned()),
                title: self.title.clone(),
                message: self.message.clone(),
                kind: self.notification_type.clone(),
                metadata: self.metadata.clone(),
                priority: self.priority.clone(),
                scheduled_at: self.scheduled_at.clone(),
                ..Submission::default()
            };
            match submission.check_shared(&rules) {
                Ok(checked) => shared = Some(checked),
                Err(found) => faults
                    .extend(found.into_iter().map(renamed).filter(|fault| !faults.contains(fault)).collect::<Vec<_>>()),
            }
        }
        let (Some(shared), Some(target), true) = (shared, self.target, faults.is_empty()) else {
            return Err(Problem::validation(faults));
        };
        let Shared { content, priority, scheduled_at, .. } = shared;
        let definition = Definition {
            content,
            channels,
            priority,
            target: in_order(target),
            named: None,
            session: None,
            is_personal: false,
            catalogue_version: 0,
            request_id: None,
            traceparent: None,
        };
        Ok(Checked { definition, scheduled_at })
    }
}

/// A submission has the field `type` for the type.
fn renamed(fault: FieldError) -> FieldError {
    let field = if fault.field == "type" { "notification_type".to_owned() } else { fault.field };
    FieldError { field, ..fault }
}

/// Each channel once, in the order of the request.
fn channels(asked: Option<&[String]>, usual: Option<Vec<Channel>>, faults: &mut Vec<FieldError>) -> Vec<Channel> {
    let mut channels = Vec::new();
    let mut take = |channel: Channel| {
        if channel == Channel::Webhook {
            faults.push(FieldError::new("channels", "people have no webhooks: name other channels"));
        } else if !channels.contains(&channel) {
            channels.push(channel);
        }
    };
    let Some(asked) = asked else {
        let usual = usual.filter(|usual| !usual.is_empty()).unwrap_or_else(|| vec![Channel::InApp]);
        usual.into_iter().filter(|channel| *channel != Channel::Webhook).for_each(take);
        return channels;
    };
    let mut unknown = None;
    for word in asked {
        match word.to_lowercase().parse() {
            Ok(channel) => take(channel),
            Err(error) => unknown = Some(error),
        }
    }
    faults.extend(unknown.map(|unknown: domain::UnknownWord| FieldError::new("channels", unknown.to_string())));
    if asked.is_empty() {
        faults.push(FieldError::new("channels", "must name at least one"));
    }
    channels
}

fn check_target(target: &Target, faults: &mut Vec<FieldError>) {
    let mut fault = |field: &str, message: &str| faults.push(FieldError::new(format!("target.{field}"), message));
    let is_name = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    let is_value = |value: &Value| {
        to_json(value).len() <= VALUE_BYTES_MAX && !to_json(value).windows(6).any(|at| at == b"\\u0000")
    };
    match target {
        Target::All {} => {}
        Target::Subscription { tier } if !is_name(tier) => fault("tier", "must have 1 to 200 bytes"),
        Target::Attribute { name, .. } if !is_name(name) => fault("name", "must have 1 to 200 bytes"),
        Target::Attribute { value, .. } if !is_value(value) => fault("value", "must have at most 4 KiB as JSON"),
        Target::Subscription { .. } | Target::Attribute { .. } => {}
        Target::Users { ids } => {
            if !(1..=NAMED_MAX).contains(&ids.len()) {
                fault("ids", "must be 1 to 10000");
            } else if !ids.iter().all(|id| is_name(id)) {
                fault("ids", "must have 1 to 200 bytes each and no control characters");
            }
        }
        Target::Query { conditions } => {
            if !(1..=CONDITIONS_MAX).contains(&conditions.len()) {
                fault("conditions", "must be 1 to 20");
            }
            for (index, condition) in conditions.iter().enumerate() {
                let field = |name: &str| format!("conditions[{index}].{name}");
                if !is_targetable(&condition.field) {
                    fault(&field("field"), "must be `locale`, `time_zone` or an attribute such as `attributes.tier`");
                }
                if let Some(why) = condition.fault() {
                    fault(&field("value"), why);
                } else if !is_value(&condition.value) {
                    fault(&field("value"), "must have at most 4 KiB as JSON");
                }
            }
        }
    }
}

/// Named people in the order of their messages, each once.
fn in_order(target: Target) -> Target {
    match target {
        Target::Users { ids } => Target::Users { ids: ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect() },
        other => other,
    }
}

/// Sends a notification to every person of a target.
///
/// With the `202` the broadcast is committed to disk. Its messages are accepted in the order of the people's ids, on
/// the bulk lane, each exactly once, even after crashes. `all`, `subscription`, `attribute` and `query` select people
/// that were stored with `PUT /api/users/{id}`. `users` may name any id, and an unknown person gets it in the inbox.
/// The type's template, category and preferences apply as for single notifications; a template has the variables
/// `title`, `message`, `metadata`, the members of `metadata`, and `username`. Give an `Idempotency-Key` to be able to
/// repeat the request safely.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/admin/notifications/broadcast", tag = "managing",
    request_body(content = BroadcastBody, examples(
        ("all" = (summary = "To all people", value = json!({"notification_type": "announcement", "title": "New Feature Available!",
            "message": "Check out our latest update.", "target": {"type": "all"}, "channels": ["in_app"]}))),
        ("tier" = (summary = "To a tier", value = json!({"notification_type": "premium_feature", "title": "Premium Feature Unlocked",
            "message": "As a premium user, you now have access to...", "target": {"type": "subscription", "tier": "premium"},
            "channels": ["in_app", "email"]}))),
        ("query" = (summary = "By conditions, later", value = json!({"notification_type": "reminder", "title": "Soon", "message": "It begins soon.",
            "target": {"type": "query", "conditions": [{"field": "locale", "op": "in", "value": ["de-AT", "de-DE"]}]},
            "channels": ["push"], "scheduled_at": "2030-01-31T09:00:00Z"}))))),
    responses((status = 202, description = "Accepted: committed to disk", body = BroadcastAccepted,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn create(
    admin: Admin,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut asked: BroadcastBody = parse_json(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), asked.idempotency_key.take())?;
    let origin = origin(&admin.0, trace, key, Kind::Broadcast, &bytes);
    let catalogue = submissions.web.catalogue(origin.tenant).await?;
    let of_type = asked.notification_type.as_ref().and_then(|name| catalogue.types.get(name));
    let checked = asked.check(&submissions, of_type.map(|of_type| of_type.channels.clone()))?;
    let id = Uuid::now_v7();
    let response = submit(&submissions, origin.key, build(&submissions, catalogue, checked, id, origin)).await?;
    Ok(if is_repeated(&response) { audit::unchanged(response) } else { audit::made(response, id) })
}

async fn build(
    submissions: &Submissions,
    catalogue: Arc<Catalogue>,
    checked: Checked,
    id: Uuid,
    origin: Origin,
) -> Result<Built, Problem> {
    let Checked { mut definition, scheduled_at } = checked;
    if definition.channels.contains(&Channel::Whatsapp) {
        definition.session = session(submissions, origin.tenant).await?;
    }
    let unusable = |error: content::template::TemplateError| {
        let message = format!("has a template that cannot be used: {error}");
        Problem::validation(vec![FieldError::new("notification_type", message)])
    };
    let completing = move || definition.complete(&catalogue).map(|()| definition);
    let mut definition = submissions.renderers.run(origin.tenant, completing).await?.map_err(unusable)?;
    definition.request_id = Some(origin.trace.request_id.clone());
    definition.traceparent = Some(origin.trace.traceparent.clone());
    let status = if scheduled_at.is_some() { BroadcastStatus::Scheduled } else { BroadcastStatus::Running };
    let answer = to_json(&BroadcastAccepted { id, status });
    let broadcast = NewBroadcast { id, definition: to_json(&definition), scheduled_at };
    let beside = vec![SideRecord::Broadcast(broadcast)];
    Ok((Acceptance { beside, ..origin.acceptance(&answer) }, answer))
}

/// The session that sends WhatsApp messages which name none.
async fn session(submissions: &Submissions, tenant: TenantId) -> Result<Option<Uuid>, Problem> {
    // It may not work at the moment: its waiting messages go out once it does.
    let demand = SessionDemand { messages: 1, is_scheduled: false, must_wait: true };
    let chosen = session::choose(submissions, tenant, Channel::Whatsapp, &SessionAsk::default(), demand).await;
    let refused = |problem: Problem| match problem.code() {
        web::problem::Code::ValidationFailed => Problem::validation(vec![FieldError::new(
            "channels",
            "whatsapp needs a session: make one, or call one of several `default`, see POST /sessions",
        )]),
        _ => problem,
    };
    Ok(chosen.map_err(refused)?.as_ref().map(ChosenSession::line))
}

/// A broadcast and its progress.
#[derive(Serialize, ToSchema)]
#[schema(as = Broadcast)]
pub struct BroadcastView {
    /// Its id.
    pub id: Uuid,
    /// `scheduled`, `running`, `paused`, `completed` (all messages are accepted) or `cancelled`.
    #[schema(value_type = String, example = "running")]
    pub status: BroadcastStatus,
    /// Its type.
    pub notification_type: Option<String>,
    /// The title.
    pub title: Option<String>,
    /// The message.
    pub message: Option<String>,
    /// The producer's notes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// The target; of named people only their number.
    #[schema(value_type = Object)]
    pub target: Value,
    /// By which ways.
    #[schema(value_type = Vec<ChannelWord>)]
    pub channels: Vec<Channel>,
    /// Its priority among the messages that wait.
    #[schema(value_type = PriorityWord)]
    pub priority: Priority,
    /// When it was to begin.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// The number of people in the target; `null` until they are counted.
    pub total: Option<i64>,
    /// People told so far.
    pub told: i64,
    /// Deliveries so far; the numbers below add up to it.
    pub accepted: i64,
    /// Deliveries without an end yet.
    pub waiting: i64,
    /// Deliveries that the provider took.
    pub sent: i64,
    /// Deliveries that arrived.
    pub delivered: i64,
    /// Deliveries that failed, bounced, died or expired.
    pub failed: i64,
    /// Deliveries that were switched off.
    pub suppressed: i64,
    /// Deliveries that were taken back.
    pub cancelled: i64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it last got on.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl From<StoredBroadcast> for BroadcastView {
    fn from(stored: StoredBroadcast) -> Self {
        let StoredBroadcast { id, definition, status, scheduled_at, total, told, accepted, counts, .. } = stored;
        let target = match &definition.target {
            Target::Users { ids } => json!({"type": "users", "count": definition.named.unwrap_or(ids.len())}),
            target => json!(target),
        };
        Self {
            id,
            status,
            notification_type: definition.content.kind,
            title: definition.content.title,
            message: definition.content.message,
            metadata: definition.content.metadata,
            target,
            channels: definition.channels,
            priority: definition.priority,
            scheduled_at,
            total,
            told,
            accepted,
            waiting: counts.waiting,
            sent: counts.sent,
            delivered: counts.delivered,
            failed: counts.failed,
            suppressed: counts.suppressed,
            cancelled: counts.cancelled,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            finished_at: stored.finished_at,
        }
    }
}

/// Broadcasts, newest first.
#[derive(Serialize, ToSchema)]
pub struct BroadcastList {
    /// The broadcasts, with the last counts of their deliveries.
    pub broadcasts: Vec<BroadcastView>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// The tenant's broadcasts.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/admin/notifications/broadcasts", tag = "managing", params(Page),
    responses((status = 200, description = "A page of broadcasts", body = BroadcastList)))]
pub async fn list(admin: Admin, page: Params<Page>, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = admin.0.tenant;
    let found = submissions
        .web
        .queries
        .run(async move |store| store.broadcasts().list(tenant, before, limit + 1).await)
        .await?;
    let (found, next_cursor) = params::page_of(found, limit, |broadcast| broadcast.id);
    let broadcasts = found.into_iter().map(BroadcastView::from).collect();
    Ok(HttpResponse::Ok().json(BroadcastList { broadcasts, next_cursor }))
}

fn unknown() -> Problem {
    Problem::not_found("broadcast")
}

async fn find(submissions: &Submissions, tenant: TenantId, id: Uuid) -> Result<StoredBroadcast, Problem> {
    submissions.web.queries.run(async move |store| store.broadcasts().find(tenant, id).await).await?.ok_or_else(unknown)
}

/// A broadcast and its progress.
///
/// `total` counts people, the other numbers count deliveries. For up to 20,000 people the numbers are current.
/// Deliveries of a larger broadcast are counted in parts, and all numbers are exact soon after the last delivery has
/// ended.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/admin/notifications/broadcasts/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The broadcast")),
    responses((status = 200, description = "The broadcast", body = BroadcastView)))]
pub async fn show(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let found = find(&submissions, admin.0.tenant, id.0).await?;
    Ok(HttpResponse::Ok().json(BroadcastView::from(found)))
}

async fn steer(
    admin: &Admin,
    submissions: &Submissions,
    id: Uuid,
    steering: Steering,
) -> Result<HttpResponse, Problem> {
    let tenant = admin.0.tenant;
    let steered =
        submissions.web.queries.run(async move |store| store.broadcasts().steer(tenant, id, steering).await).await?;
    let found = find(submissions, tenant, id).await?;
    if !steered {
        let needed = match steering {
            Steering::Pause => "Only what is scheduled or running can be paused",
            Steering::Resume => "Only what is paused can go on",
            Steering::Cancel => "Only what has not ended can be cancelled",
        };
        return Err(Problem::conflict(format!("{needed}: this broadcast is {}.", found.status)));
    }
    Ok(HttpResponse::Ok().json(BroadcastView::from(found)))
}

/// Pauses a broadcast. Messages that are already accepted are still sent.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/admin/notifications/broadcasts/{id}/pause", tag = "managing", params(("id" = Uuid, Path, description = "The broadcast")),
    responses((status = 200, description = "It stops", body = BroadcastView)))]
pub async fn pause(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    steer(&admin, &submissions, id.0, Steering::Pause).await
}

/// Resumes a paused broadcast where it stopped.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/admin/notifications/broadcasts/{id}/resume", tag = "managing", params(("id" = Uuid, Path, description = "The broadcast")),
    responses((status = 200, description = "It goes on", body = BroadcastView)))]
pub async fn resume(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    steer(&admin, &submissions, id.0, Steering::Resume).await
}

/// Ends a broadcast. No further message is accepted; accepted messages that still wait are cancelled within seconds.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/admin/notifications/broadcasts/{id}/cancel", tag = "managing", params(("id" = Uuid, Path, description = "The broadcast")),
    responses((status = 200, description = "It has ended", body = BroadcastView)))]
pub async fn cancel(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    steer(&admin, &submissions, id.0, Steering::Cancel).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(target: Value) -> Vec<String> {
        let mut faults = Vec::new();
        check_target(&serde_json::from_value(target).unwrap(), &mut faults);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_a_target_cannot_be_is_named() {
        for (target, field) in [
            (json!({"type": "subscription", "tier": ""}), "target.tier"),
            (json!({"type": "attribute", "name": "a\nb", "value": 1}), "target.name"),
            (json!({"type": "attribute", "name": "a", "value": "x".repeat(5000)}), "target.value"),
            (json!({"type": "attribute", "name": "a", "value": "\u{0}"}), "target.value"),
            (json!({"type": "users", "ids": []}), "target.ids"),
            (json!({"type": "users", "ids": [""]}), "target.ids"),
            (json!({"type": "query", "conditions": []}), "target.conditions"),
            (
                json!({"type": "query", "conditions": [{"field": "email", "op": "exists"}]}),
                "target.conditions[0].field",
            ),
            (
                json!({"type": "query", "conditions": [{"field": "locale", "op": "in", "value": "de"}]}),
                "target.conditions[0].value",
            ),
        ] {
            assert_eq!(faults(target.clone()), [field], "{target}");
        }
        assert!(
            faults(json!({"type": "query", "conditions": [{"field": "attributes.age", "op": "gt", "value": 3}]}))
                .is_empty()
        );
    }

    #[test]
    fn named_people_are_told_once_and_in_order() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(in_order(Target::Users { ids: ids(&["b", "a", "b"]) }), Target::Users { ids: ids(&["a", "b"]) });
    }

    #[test]
    fn channels_are_those_asked_for_else_those_of_the_type_else_the_inbox() {
        let (mut faults, words) = (Vec::new(), ["email".to_owned(), "in-app".to_owned(), "email".to_owned()]);
        assert_eq!(channels(Some(&words), None, &mut faults), [Channel::Email, Channel::InApp]);
        assert_eq!(channels(None, Some(vec![Channel::Push]), &mut faults), [Channel::Push]);
        assert_eq!(channels(None, None, &mut faults), [Channel::InApp]);
        assert!(faults.is_empty());
        for bad in [&["webhook"][..], &["fax"], &[]] {
            let (mut faults, words) = (Vec::new(), bad.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
            channels(Some(&words), None, &mut faults);
            assert_eq!(faults.len(), 1, "{bad:?}");
        }
    }
}
