//! Events of other systems: ingest stores each, and rules turn it into messages.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web::Data};
use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use content::{
    catalogue::{Catalogue, Rule},
    compose::Notice,
    event_messages::{self, EventInput, RenderError},
    template,
};
use deliveries::{
    Deliveries,
    accept::Accepted,
    throttles::{Ask, Granted},
};
use domain::{
    Channel, DigestRule, Person, Reason, State, TenantId, Throttle,
    acceptance::{Acceptance, NewDigestItem, NewEvent, NewMessage, SideRecord},
    clock,
    contract::submission::{FieldError, NAME_BYTES_MAX, parse_json},
    rule::look_up,
};
use records::Records;
use runtime::metric;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::Store;
use submission::{
    Submissions,
    envelope::{Built, DeliveryAnswer, Origin, status, to_json},
    http::{origin, repeat, respond},
    idempotency::{self, Kind},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    problem::Problem,
};

/// Largest `data`, in bytes of JSON: the same limit as for AMQP bodies.
const DATA_BYTES_MAX: usize = 256 * 1024;
/// Most rules that one event may trigger: all of them are rendered within one deadline.
pub const MATCHED_MAX: usize = 50;
/// The key of a digest window is stored as this many bytes of its hash.
const KEY_HASH_BYTES: usize = 16;

/// Something that happened.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Event)]
pub struct EventBody {
    /// The type of the event. `eventType` and `type` are accepted too.
    #[serde(alias = "eventType", alias = "type")]
    #[schema(max_length = 200, example = "subscription.payment_failed")]
    event_type: Option<String>,
    /// The person of the event. `userId` is accepted too.
    #[serde(alias = "userId")]
    #[schema(max_length = 200, example = "user-123")]
    user_id: Option<String>,
    /// Other data of the event, at most 256 KiB; its members are variables of templates.
    #[schema(value_type = Option<Object>, example = json!({"subscriptionId": "sub-123", "failureReason": "insufficient_funds"}))]
    data: Option<Value>,
    /// As the header `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 200)]
    idempotency_key: Option<String>,
}

/// A validated event.
pub struct Event {
    /// Its id.
    pub id: Uuid,
    /// Its event type.
    pub event_type: String,
    /// The person it is about.
    pub user_id: String,
    /// Its data.
    pub data: Map<String, Value>,
}

impl Event {
    /// The event in the form that rules evaluate.
    pub fn event_input(&self) -> EventInput<'_> {
        EventInput { id: self.id, event_type: &self.event_type, data: &self.data }
    }
}

impl EventBody {
    /// Validates everything and reports every fault.
    pub fn check(self) -> Result<Event, Problem> {
        self.checked().map_err(Problem::validation)
    }

    fn checked(self) -> Result<Event, Vec<FieldError>> {
        let mut faults = Vec::new();
        let mut name = |field: &str, text: Option<String>| {
            let text = text.unwrap_or_default();
            if text.is_empty() {
                faults.push(FieldError::new(field, "is required"));
            } else if text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
                faults.push(FieldError::new(field, "must have at most 200 bytes and no control characters"));
            }
            text
        };
        let (event_type, user_id) = (name("event_type", self.event_type), name("user_id", self.user_id));
        let data = match self.data {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(data)) => data,
            Some(_) => {
                faults.push(FieldError::new("data", "must be an object"));
                Map::new()
            }
        };
        if to_json(&data).len() > DATA_BYTES_MAX {
            faults.push(FieldError::new("data", "must have at most 256 KiB as JSON"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Event { id: Uuid::now_v7(), event_type, user_id, data })
    }
}

/// The answer to an event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventAccepted)]
pub struct EventAnswer {
    /// The event.
    pub id: Uuid,
    /// The rules that matched, the oldest first.
    pub matched_rules: Vec<Uuid>,
    /// Messages that are sent at once, or after the rule's delay: one for each rule.
    pub messages: Vec<EventMessage>,
    /// Rules for which the event is collected into a digest.
    pub gathered: Vec<Uuid>,
    /// Rules that matched but could not be rendered; they do not delay the others.
    pub errors: Vec<RuleError>,
}

/// A message that a rule made.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventMessage {
    /// The message.
    pub id: Uuid,
    /// The rule.
    pub rule_id: Uuid,
    /// `queued`, or `scheduled` where the rule waits.
    #[schema(value_type = String, example = "queued")]
    pub status: State,
    /// `throttled`: the person already got as many messages of the rule as its throttle allows, and the deliveries end
    /// as `suppressed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub reason: Option<Reason>,
    /// The deliveries: one for each channel, for push one for each device.
    pub deliveries: Vec<DeliveryAnswer>,
}

/// Why a rule could not be rendered.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleError {
    /// The rule.
    pub rule_id: Uuid,
    /// The cause: the missing variable, or `template_name`.
    pub field: String,
    /// Why.
    pub message: String,
}

/// Reports that something happened.
///
/// The event is stored, and every active rule that listens to its type and whose conditions hold makes a message for
/// the person, or adds the event to a digest: all of it in one commit, once per `Idempotency-Key`. A rule whose
/// template cannot be rendered from this event is named in `errors`; the event is accepted and the other rules are carried out.
/// To see what would happen, and why, without anything happening: `POST /api/events/dry-run`.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/events", tag = "submitting",
    request_body(content = EventBody, example = json!({"eventType": "subscription.payment_failed", "userId": "user-123",
        "data": {"subscriptionId": "sub-123", "failureReason": "insufficient_funds"}})),
    responses((status = 202, description = "Accepted: committed to disk", body = EventAnswer,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn receive(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut body: EventBody = parse_json(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), body.idempotency_key.take())?;
    let event = body.check()?;
    let origin = origin(&producer.0, trace, key, Kind::Event, &bytes);
    let tenant = origin.tenant;
    let matched_rules = match_rules(&submissions, tenant, &event).await?;
    // A repeated request must not charge a throttle again, nor open a window.
    if matched_rules.takes_beforehand()
        && let Some(response) = repeat(&submissions, origin.key).await?
    {
        return Ok(response);
    }
    let plan = matched_rules.plan(&submissions, tenant, &event).await?;
    let (granted, matched, errors) = (plan.granted.clone(), plan.matched.len(), plan.errors.len());
    let user = event.user_id.clone();
    let (acceptance, answer) = plan.into_acceptance(event, origin);
    let result = submissions.acceptor.accept(acceptance).await;
    let is_unstored = match &result {
        Ok(Accepted::New) => {
            count(matched, errors);
            false
        }
        // Another request used the key in the meantime, so this one stored nothing.
        Ok(Accepted::Replayed(_) | Accepted::KeyTaken) => true,
        Ok(_) => false,
        Err(error) => error.is_not_stored(),
    };
    if is_unstored && !granted.is_empty() {
        submissions
            .web
            .queries
            .run(async move |store| store.throttles().give_back(tenant, &user, granted).await)
            .await?;
    }
    respond(result, answer)
}

fn count(matched: usize, errors: usize) {
    metrics::counter!(metric::EVENTS).increment(1);
    metrics::counter!(metric::RULES_MATCHED).increment(u64::try_from(matched).unwrap_or_default());
    metrics::counter!(metric::RULE_ERRORS).increment(u64::try_from(errors).unwrap_or_default());
}

/// The rules that match an event, and the event's person.
pub struct MatchedRules {
    /// The tenant's catalogue.
    pub catalogue: Arc<Catalogue>,
    /// The person.
    pub person: Person,
    /// The rules that match, the oldest first.
    pub matched: Vec<Arc<Rule>>,
}

/// Finds the rules that match an event. Looks the person up only if some rule listens to the event's type.
pub async fn match_rules(submissions: &Submissions, tenant: TenantId, event: &Event) -> Result<MatchedRules, Problem> {
    let catalogue = submissions.web.catalogue(tenant).await?;
    let listening: Vec<Arc<Rule>> = catalogue.rules_for(&event.event_type).cloned().collect();
    let unknown = || Person::unknown(&event.user_id);
    if listening.is_empty() {
        return Ok(MatchedRules { catalogue, person: unknown(), matched: Vec::new() });
    }
    let ids = vec![event.user_id.clone()];
    let mut known = submissions.web.queries.run(async move |store| store.people().load(tenant, ids).await).await?;
    let person = known.remove(&event.user_id).unwrap_or_else(unknown);
    let facts = event_messages::facts(event.event_input(), &person);
    let matched = listening.into_iter().filter(|rule| rule.definition.unmet(&facts).is_none()).collect();
    Ok(MatchedRules { catalogue, person, matched })
}

/// The messages and digest items that an event leads to.
struct Plan {
    person: Person,
    matched: Vec<Uuid>,
    to_send: Vec<(Uuid, Notice)>,
    gathered: Vec<NewDigestItem>,
    errors: Vec<RuleError>,
    granted: Granted,
}

impl MatchedRules {
    /// Whether a throttle or a window is taken before the event is accepted.
    fn takes_beforehand(&self) -> bool {
        let is_first = |digest: &DigestRule| digest.first_immediately;
        let takes = |rule: &Arc<Rule>| {
            rule.definition.throttle.is_some() || rule.definition.digest.as_ref().is_some_and(is_first)
        };
        self.matched.iter().any(takes)
    }

    /// Decides for each rule what the event leads to, and renders its message.
    async fn plan(self, submissions: &Submissions, tenant: TenantId, event: &Event) -> Result<Plan, Problem> {
        let now = clock::now();
        let matched = self.matched.iter().map(|rule| rule.id).collect();
        let (mut to_send, mut gathered, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let beyond = self.matched.get(MATCHED_MAX..).unwrap_or_default();
        errors.extend(beyond.iter().map(|rule| refused(rule, too_many())));
        let mut at_once = Vec::new();
        for rule in self.matched.iter().take(MATCHED_MAX) {
            match rule.definition.digest.as_ref().filter(|digest| !digest.first_immediately) {
                Some(digest) => gathered.push(item(event, &self.person, rule.id, digest, now)),
                None => at_once.push(Arc::clone(rule)),
            }
        }
        for (rule, notice) in notices(submissions, tenant, &self.catalogue, at_once, (event, &self.person)).await? {
            let notice = match notice {
                Ok(notice) => notice,
                Err(error) => {
                    errors.push(refused(&rule, error));
                    continue;
                }
            };
            let digest = rule.definition.digest.as_ref();
            match digest.map(|digest| item(event, &self.person, rule.id, digest, now)) {
                Some(item) if !opens(submissions, tenant, &item).await? => gathered.push(item),
                Some(_) | None => to_send.push((rule, notice)),
            }
        }
        let granted = take(submissions, tenant, event, &to_send).await?;
        let session = session(submissions, tenant, &to_send).await?;
        let to_send = to_send.into_iter().map(|(rule, mut notice)| {
            notice.session = session;
            if rule.definition.throttle.is_some() && !granted.contains_key(&rule.id) {
                notice.content.withheld = Some(Reason::Throttled);
            }
            (rule.id, notice)
        });
        Ok(Plan { person: self.person, matched, to_send: to_send.collect(), gathered, errors, granted })
    }
}

/// The error for matching rules beyond the first [`MATCHED_MAX`].
pub fn too_many() -> RenderError {
    let message = format!("more than {MATCHED_MAX} rules match; this one is left out");
    RenderError { field: "event_type".to_owned(), message }
}

/// Renders the messages of these rules, all within one deadline, on a thread where they block no other request.
pub async fn notices(
    submissions: &Submissions,
    tenant: TenantId,
    catalogue: &Arc<Catalogue>,
    rules: Vec<Arc<Rule>>,
    (event, person): (&Event, &Person),
) -> Result<Vec<(Arc<Rule>, Result<Notice, RenderError>)>, Problem> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let (catalogue, event_type) = (Arc::clone(catalogue), event.event_type.clone());
    let (variables, now) = (event_messages::variables(event.event_input(), person), clock::now());
    let rendering = move || {
        let until = template::deadline();
        let notice = |rule: Arc<Rule>| {
            let notice = event_messages::notice(&catalogue, &rule, &event_type, (&variables, until), now);
            (rule, notice)
        };
        rules.into_iter().map(notice).collect()
    };
    submissions.renderers.run(tenant, rendering).await
}

fn refused(rule: &Rule, error: RenderError) -> RuleError {
    let RenderError { field, message } = error;
    tracing::warn!(rule = %rule.id, field, message, "a rule matched and cannot say anything");
    RuleError { rule_id: rule.id, field, message }
}

/// Opens a digest window with the event. Returns whether the event is the first of the window.
async fn opens(submissions: &Submissions, tenant: TenantId, item: &NewDigestItem) -> Result<bool, Problem> {
    let item = item.clone();
    submissions.web.queries.run(async move |store: Store| store.digests().open_window(tenant, &item).await).await
}

/// Charges the throttle of each rule that has one.
async fn take(
    submissions: &Submissions,
    tenant: TenantId,
    event: &Event,
    to_send: &[(Arc<Rule>, Notice)],
) -> Result<Granted, Problem> {
    let throttle = |(rule, _): &(Arc<Rule>, Notice)| rule.definition.throttle.map(|throttle| (rule.id, throttle));
    let rules: Vec<(Uuid, Throttle)> = to_send.iter().filter_map(throttle).collect();
    if rules.is_empty() {
        return Ok(Granted::new());
    }
    let ask = Ask { tenant, user_id: event.user_id.clone(), rules, taker: event.id };
    submissions.web.queries.run(async move |store| store.throttles().take(ask).await).await
}

/// The session for WhatsApp messages, if there are any and they are not only simulated.
async fn session(
    submissions: &Submissions,
    tenant: TenantId,
    to_send: &[(Arc<Rule>, Notice)],
) -> Result<Option<Uuid>, Problem> {
    if !to_send.iter().any(|(_, notice)| notice.channels.contains(&Channel::Whatsapp)) {
        return Ok(None);
    }
    submissions.web.queries.run(async move |store| store.rules().usual_session(tenant).await).await
}

/// The event as an item of a digest.
pub fn item(event: &Event, person: &Person, rule: Uuid, digest: &DigestRule, now: DateTime<Utc>) -> NewDigestItem {
    let closing = digest.closing(now, person.zone());
    NewDigestItem {
        digest: Uuid::now_v7(),
        rule,
        user_id: event.user_id.clone(),
        key: digest.key.as_deref().map(|path| key(event, person, path)).unwrap_or_default(),
        event: event.id,
        data: to_json(&event.data),
        event_type: event.event_type.clone(),
        opened_at: now,
        closes_at: closing.closes_at,
        latest_at: closing.latest_at,
        max_items: i32::try_from(digest.fill()).unwrap_or(i32::MAX),
    }
}

/// The key of a digest window, hashed because it may contain personal data. Events without a value share one window.
fn key(event: &Event, person: &Person, path: &str) -> String {
    let facts = event_messages::facts(event.event_input(), person);
    let Some(found) = look_up(&facts, path).filter(|found| !found.is_null()) else {
        metrics::counter!(metric::DIGEST_KEYS_MISSING).increment(1);
        tracing::debug!(path, "an event lacks what keeps its windows apart");
        return String::new();
    };
    let hash = digest(&SHA256, &to_json(found));
    hash.as_ref().iter().take(KEY_HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

impl Plan {
    /// Builds what to store for the event, and the answer to give once it is stored.
    fn into_acceptance(self, event: Event, origin: Origin) -> Built {
        let Self { person, matched, to_send, gathered, errors, .. } = self;
        let (mut messages, mut views) = (Vec::new(), Vec::new());
        for (rule, notice) in to_send {
            let message = notice.to(&person, Some(to_json(&notice.content)));
            views.push(view(rule, &message, notice.content.withheld));
            messages.push(message);
        }
        let answer = to_json(&EventAnswer {
            id: event.id,
            matched_rules: matched.clone(),
            messages: views,
            gathered: gathered.iter().map(|item| item.rule).collect(),
            errors,
        });
        let logged = NewEvent {
            id: event.id,
            event_type: event.event_type,
            user_id: Some(event.user_id),
            data: to_json(&event.data),
            matched,
        };
        let beside = std::iter::once(SideRecord::Event(logged)).chain(gathered.into_iter().map(SideRecord::DigestItem));
        (Acceptance { messages, beside: beside.collect(), ..origin.acceptance(&answer) }, answer)
    }
}

fn view(rule_id: Uuid, message: &NewMessage, reason: Option<Reason>) -> EventMessage {
    let status = status(message.scheduled_at.is_some());
    let delivery = |delivery: &domain::acceptance::NewDelivery| DeliveryAnswer {
        id: delivery.id.0,
        channel: delivery.route.channel,
        status,
    };
    EventMessage {
        id: message.id.0,
        rule_id,
        status,
        reason,
        deliveries: message.deliveries.iter().map(delivery).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(body: Value) -> Result<Event, Vec<String>> {
        let body: EventBody = serde_json::from_value(body).map_err(|error| vec![error.to_string()])?;
        body.checked().map_err(|faults| faults.into_iter().map(|fault| fault.field).collect())
    }

    #[test]
    fn the_printed_shape_of_the_seed_and_ours_are_the_same_event() {
        for body in [
            json!({"eventType": "a.b", "userId": "ada", "data": {"x": 1}}),
            json!({"event_type": "a.b", "user_id": "ada", "data": {"x": 1}}),
            json!({"type": "a.b", "userId": "ada", "data": {"x": 1}}),
        ] {
            let event = event(body).unwrap();
            assert_eq!(
                (event.event_type.as_str(), event.user_id.as_str(), &event.data["x"]),
                ("a.b", "ada", &json!(1))
            );
        }
        assert!(event(json!({"type": "a", "userId": "ada"})).unwrap().data.is_empty());
    }

    #[test]
    fn every_fault_of_an_event_is_named() {
        for (body, fields) in [
            (json!({}), &["event_type", "user_id"][..]),
            (json!({"type": "a\n", "user_id": "ada"}), &["event_type"]),
            (json!({"type": "a", "user_id": "x".repeat(201)}), &["user_id"]),
            (json!({"type": "a", "user_id": "ada", "data": [1]}), &["data"]),
            (json!({"type": "a", "user_id": "ada", "data": {"x": "y".repeat(DATA_BYTES_MAX)}}), &["data"]),
        ] {
            assert_eq!(event(body.clone()).err().unwrap_or_default(), fields, "{body}");
        }
        assert!(event(json!({"type": "a", "user_id": "ada", "colour": 1})).is_err());
    }

    #[test]
    fn windows_are_kept_apart_by_value_and_type_and_without_showing_it() {
        let (person, of) = (Person::unknown("ada"), |data: Value| {
            key(
                &event(json!({"type": "a", "user_id": "ada", "data": data})).unwrap(),
                &Person::unknown("ada"),
                "data.project",
            )
        });
        assert_eq!(of(json!({"project": "canary"})), of(json!({"project": "canary", "n": 2})));
        let keys = [json!("1"), json!(1), json!(true), json!({"a": 1})].map(|value| of(json!({"project": value})));
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{keys:?}");
        assert_eq!((of(json!({})), of(json!({"project": null}))), (String::new(), String::new()));
        assert!(!of(json!({"project": "canary"})).contains("canary") && person.email.is_none());
    }
}
