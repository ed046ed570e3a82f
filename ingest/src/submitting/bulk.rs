//! Bulk submission: one content for up to 10,000 recipients, one message for each.

use std::collections::{BTreeMap, HashMap, HashSet};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use deliveries::{Deliveries, messages::BulkCounts};
use domain::{
    Address, BulkId, Channel, DeliveryId, Lane, MessageId, Person, Route, State,
    acceptance::{Acceptance, NewBulk, NewDelivery, NewMessage},
    contract::submission::{FieldError, Recipient, Rules, Shared, Submission, check_recipient, parse_json},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use submission::{
    Submissions,
    envelope::{Built, Origin, status, to_json},
    http::{origin, submit},
    idempotency::{self, Kind},
    openapi::BulkBody,
    pipeline::{self, is_looked_up},
    session::{self, ChosenSession, SessionDemand},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    auth::{Producer, Reader},
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    params::Id,
    problem::Problem,
};

/// Most recipients of one call.
const RECIPIENTS_MAX: usize = 10_000;
/// From this many recipients on, a request uses the bulk lane, whatever its priority, so that it does not delay single
/// messages.
const BULK_LANE_FROM: usize = 101;

/// The answer to a bulk.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BulkAccepted)]
pub struct BulkAnswer {
    /// The bulk, for `GET /api/bulk/{id}`.
    pub bulk_id: Uuid,
    /// Recipients accepted.
    pub sent: usize,
    /// Recipients refused.
    pub failed: usize,
    /// One for each recipient, in the order of the request.
    pub results: Vec<BulkResult>,
}

/// The result for one recipient.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkResult {
    /// As in `recipients`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// As in `user_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The message, if accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// `queued`, `scheduled` or `refused`.
    pub status: &'static str,
    /// Why it was refused: `invalid`, `duplicate` or `no_address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The faults of the recipient.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<web::openapi::FieldErrorBody>)]
    pub errors: Vec<FieldError>,
}

/// Sends one content to many recipients.
///
/// Every recipient is checked separately: an invalid one is refused with a reason, a duplicate gets one message, and
/// the rest is accepted, all in one commit. `user_ids` address inboxes, or the known addresses of the people: e-mail
/// address, phone, devices (one message with a delivery for each); a person without one is refused with `no_address`.
/// Calls with more than 100 recipients take the bulk lane.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/notifications/send-bulk", tag = "submitting",
    request_body(content = BulkBody, examples(
        ("recipients" = (summary = "By address", value = json!({"recipients": ["ada@example.com", "bob@example.com"], "channel": "email",
            "title": "Important Announcement", "message": "We have an important update to share...", "category": "announcement"}))),
        ("user_ids" = (summary = "By person", value = json!({"user_ids": ["user1", "user2", "user3"], "channel": "in_app",
            "title": "Important Announcement", "message": "We have an important update to share..."}))))),
    responses((status = 202, description = "Accepted, each recipient as its result says; also when every one was refused", body = BulkAnswer,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn send(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let (people, mut submission) = split(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), submission.idempotency_key.take())?;
    let rules = submissions.web.rules();
    let mut head = check(&people, submission, &rules)?;
    let origin = origin(&producer.0, trace, key, Kind::Bulk, &bytes);
    submit(&submissions, origin.key, async {
        let tenant = origin.tenant;
        submissions.web.complete(tenant, &mut head.content).await?;
        let demand = demand(&people, &head);
        let session = session::choose(&submissions, tenant, head.channel, &head.session, demand).await?;
        let known = match &people {
            People::Users(ids) if is_looked_up(head.channel) => {
                pipeline::people(&submissions, tenant, ids.clone()).await?
            }
            People::Users(_) | People::Recipients(_) => HashMap::new(),
        };
        let batch = Batch { people, head, known, session };
        Ok(build_bulk(batch, &rules, origin, |answer| to_json(&answer)))
    })
    .await
}

/// How many slots of the WhatsApp session the bulk needs.
pub fn demand(people: &People, head: &Shared) -> SessionDemand {
    SessionDemand { messages: people.list().len(), is_scheduled: head.scheduled_at.is_some(), must_wait: false }
}

/// The recipients, as submitted.
#[derive(Debug)]
pub enum People {
    /// People, by their ids.
    Users(Vec<String>),
    /// Addresses.
    Recipients(Vec<String>),
}

impl People {
    fn list(&self) -> &[String] {
        match self {
            Self::Users(list) | Self::Recipients(list) => list,
        }
    }

    const fn field(&self) -> &'static str {
        match self {
            Self::Users(_) => "user_ids",
            Self::Recipients(_) => "recipients",
        }
    }
}

/// Separates the recipients from the body; the rest is an ordinary submission.
fn split(body: &[u8]) -> Result<(People, Submission), FieldError> {
    let mut members: BTreeMap<String, Box<RawValue>> = parse_json(body)?;
    let users = members.remove("user_ids").or_else(|| members.remove("userIds"));
    let recipients = members.remove("recipients");
    if ["recipient", "to", "url"].iter().any(|name| members.contains_key(*name)) {
        return Err(FieldError::new("recipient", "name `recipients` or `user_ids` instead"));
    }
    let people = match (users, recipients) {
        (Some(users), None) => People::Users(list("user_ids", &users)?),
        (None, Some(recipients)) => {
            let recipients: Vec<Recipient> = list("recipients", &recipients)?;
            People::Recipients(recipients.into_iter().map(|recipient| recipient.0).collect())
        }
        _ => return Err(FieldError::new("recipients", "give either `recipients` or `user_ids`, a list of texts")),
    };
    Ok((people, Submission::parse(&to_json(&members))?))
}

fn list<T: DeserializeOwned>(field: &str, value: &RawValue) -> Result<T, FieldError> {
    parse_json(value.get().as_bytes()).map_err(|fault| match fault.field.starts_with('[') {
        true => FieldError::new(format!("{field}{}", fault.field), fault.message),
        false => FieldError::new(field, "must be a list of texts"),
    })
}

/// Validates the shared part; a fault in it refuses the whole call.
fn check(people: &People, submission: Submission, rules: &Rules) -> Result<Shared, Problem> {
    check_parts(people, submission, rules).map_err(Problem::validation)
}

/// Validates the shared part and the number of recipients.
pub fn check_parts(people: &People, submission: Submission, rules: &Rules) -> Result<Shared, Vec<FieldError>> {
    let count = people.list().len();
    let head = submission.check_shared(rules);
    if (1..=RECIPIENTS_MAX).contains(&count) {
        return head;
    }
    let mut faults = head.err().unwrap_or_default();
    faults.push(FieldError::new(people.field(), format!("must be 1 to {RECIPIENTS_MAX}, not {count}")));
    Err(faults)
}

/// A checked bulk.
pub struct Batch {
    /// The recipients.
    pub people: People,
    /// The shared part of all messages.
    pub head: Shared,
    /// The known people among the recipients, if their addresses are looked up.
    pub known: HashMap<String, Person>,
    /// The WhatsApp session that sends it.
    pub session: Option<ChosenSession>,
}

/// Builds what to store for the bulk. `answer` gives the answer its form.
pub fn build_bulk(
    mut batch: Batch,
    rules: &Rules,
    origin: Origin,
    answer: impl FnOnce(BulkAnswer) -> Vec<u8>,
) -> Built {
    let bulk = BulkId::generate();
    let (messages, results) = batch.messages(rules);
    let (sent, failed) = (messages.len(), results.len() - messages.len());
    let answer = answer(BulkAnswer { bulk_id: bulk.0, sent, failed, results });
    let refused = i32::try_from(failed).unwrap_or(i32::MAX);
    let bulk = NewBulk { id: bulk, content: to_json(&batch.head.content), refused };
    let room_in = batch.session.as_ref().and_then(ChosenSession::room_in);
    (Acceptance { bulk: Some(bulk), messages, room_in, ..origin.acceptance(&answer) }, answer)
}

impl Batch {
    fn messages(&mut self, rules: &Rules) -> (Vec<NewMessage>, Vec<BulkResult>) {
        let by_user = matches!(self.people, People::Users(_));
        let list = match &mut self.people {
            People::Users(list) | People::Recipients(list) => std::mem::take(list),
        };
        let lane = if list.len() >= BULK_LANE_FROM { Lane::Bulk } else { self.head.priority.lane() };
        let mut seen = HashSet::with_capacity(list.len());
        let mut messages = Vec::with_capacity(list.len());
        let mut results = Vec::with_capacity(list.len());
        for text in list {
            let verdict = self.addresses(by_user, &text, rules).and_then(|addresses| {
                // Duplicates are found by person, whatever the number of addresses, or by normalised address.
                let one = if by_user { vec![Address::new(&text)] } else { addresses.clone() };
                let twice = FieldError::new(if by_user { "user_id" } else { "recipient" }, "is listed twice");
                seen.insert(one).then_some(addresses).ok_or_else(|| Refusal::new("duplicate", twice))
            });
            let user_id = || if by_user { Some(text.clone()) } else { self.head.user_id.clone() };
            let verdict = verdict.map(|addresses| self.message(lane, addresses, user_id()));
            results.push(result(by_user, text, self.head.scheduled_at.is_some(), &verdict));
            messages.extend(verdict);
        }
        (messages, results)
    }

    fn addresses(&self, by_user: bool, text: &str, rules: &Rules) -> Result<Vec<Address>, Refusal> {
        let channel = self.head.channel;
        let name = |mut error: FieldError| {
            error.field = if by_user { "user_id" } else { "recipient" }.to_owned();
            Refusal::new("invalid", error)
        };
        if by_user && channel != Channel::InApp {
            let known = self.known.get(text).map(|person| person.addresses(channel)).unwrap_or_default();
            let missing = || {
                let message = format!("no {channel} address of this person is known; name `recipients`");
                Refusal::new("no_address", FieldError::new("user_id", message))
            };
            return Some(known).filter(|known| !known.is_empty()).ok_or_else(missing);
        }
        check_recipient(channel, text, rules).map(|address| vec![address]).map_err(name)
    }

    fn message(&self, lane: Lane, recipients: Vec<Address>, user_id: Option<String>) -> NewMessage {
        let Self { head, session, .. } = self;
        let line = session.as_ref().map(ChosenSession::line);
        let delivery = |recipient: Address| NewDelivery {
            id: DeliveryId::generate(),
            route: Route { channel: head.channel, lane },
            recipient,
            line,
            rank: head.priority.rank(),
            kind: head.content.kind_of_message(),
        };
        NewMessage {
            id: MessageId::generate(),
            user_id,
            category: head.content.category.clone(),
            priority: head.priority.as_str(),
            content: None,
            scheduled_at: head.scheduled_at,
            expires_at: head.expires_at,
            deliveries: recipients.into_iter().map(delivery).collect(),
            template: None,
        }
    }
}

/// Why a recipient is refused.
struct Refusal {
    reason: &'static str,
    error: FieldError,
}

impl Refusal {
    const fn new(reason: &'static str, error: FieldError) -> Self {
        Self { reason, error }
    }
}

fn result(by_user: bool, text: String, scheduled: bool, verdict: &Result<NewMessage, Refusal>) -> BulkResult {
    let (user_id, recipient) = if by_user { (Some(text), None) } else { (None, Some(text)) };
    match verdict {
        Ok(message) => {
            let status = status(scheduled).as_str();
            BulkResult { recipient, user_id, id: Some(message.id.0), status, reason: None, errors: Vec::new() }
        }
        Err(refusal) => {
            let (reason, errors) = (Some(refusal.reason), vec![refusal.error.clone()]);
            BulkResult { recipient, user_id, id: None, status: "refused", reason, errors }
        }
    }
}

/// The states of a bulk's deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Bulk, example = json!({"id": "0191d8a0-0000-7000-8000-000000000001", "created_at": "2026-01-31T09:00:00Z", "total": 1000,
    "accepted": 998, "refused": 2, "scheduled": 0, "queued": 10, "sending": 4, "retrying": 1, "sent": 0, "delivered": 980, "failed": 3,
    "bounced": 0, "dead": 0, "suppressed": 0, "cancelled": 0, "expired": 0}))]
pub struct BulkView {
    /// The bulk.
    pub id: Uuid,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Recipients in the request.
    pub total: i64,
    /// Those accepted.
    pub accepted: i64,
    /// Those refused.
    pub refused: i64,
    /// The number of accepted deliveries in each state; every state is present.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, i64>)]
    pub states: BTreeMap<&'static str, i64>,
}

/// Live counts of a bulk.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/bulk/{id}", tag = "submitting", params(("id" = Uuid, Path, description = "The `bulk_id`")),
    responses((status = 200, description = "The counts at this moment", body = BulkView)))]
pub async fn show(reader: Reader, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (scope, bulk) = (reader.0.scope(), BulkId(id.0));
    let counts =
        submissions.web.queries.run(async move |store| store.messages().bulk_counts(scope, bulk).await).await?;
    let counts = counts.ok_or_else(|| Problem::not_found("bulk"))?;
    Ok(HttpResponse::Ok().json(view(bulk, &counts)))
}

fn view(id: BulkId, counts: &BulkCounts) -> BulkView {
    let accepted: i64 = counts.states.iter().map(|(_, count)| count).sum();
    let refused = i64::from(counts.refused);
    let mut states: BTreeMap<&'static str, i64> = State::ALL.iter().map(|state| (state.as_str(), 0)).collect();
    states.extend(counts.states.iter().map(|(state, count)| (state.as_str(), *count)));
    BulkView { id: id.0, created_at: counts.created_at, total: accepted + refused, accepted, refused, states }
}

#[cfg(test)]
mod tests {
    use domain::{Device, Platform, TenantId, contract::guard::Guard};
    use runtime::telemetry::TraceContext;

    use super::*;
    use web::problem::Code;

    fn rules() -> Rules {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Rules { now, guard: Guard::default(), media_guard: Guard::default() }
    }

    fn accept(body: &str) -> Result<(Acceptance, serde_json::Value), Problem> {
        let (people, submission) = split(body.as_bytes()).map_err(Problem::malformed)?;
        let head = check(&people, submission, &rules())?;
        let origin = Origin {
            tenant: TenantId(1),
            source: submission::HTTP,
            trace: TraceContext::take_or_make(None, None),
            key: None,
        };
        let devices =
            ["a", "b"].map(|token| Device { token: Address::new(token), platform: Some(Platform::Ios) }).to_vec();
        let email = Some("ada@example.com".to_owned());
        let known =
            [("user1", Person { email, devices, ..Person::unknown("user1") }), ("user2", Person::unknown("user2"))];
        let known = known.into_iter().map(|(id, person)| (id.to_owned(), person)).collect();
        let (acceptance, answer) =
            build_bulk(Batch { people, head, known, session: None }, &rules(), origin, |answer| to_json(&answer));
        Ok((acceptance, serde_json::from_slice(&answer).unwrap()))
    }

    #[test]
    fn the_printed_request_goes_to_those_who_have_an_address() {
        let body = r#"{"user_ids":["user1","user2","user3","user1"],"channel":"email","title":"T","message":"M","category":"announcement"}"#;
        let (acceptance, answer) = accept(body).unwrap();
        assert_eq!((&answer["sent"], &answer["failed"]), (&1.into(), &3.into()));
        let reasons: Vec<_> = answer["results"].as_array().unwrap().iter().map(|one| one["reason"].as_str()).collect();
        assert_eq!(reasons, [None, Some("no_address"), Some("no_address"), Some("duplicate")]);
        let [message] = &acceptance.messages[..] else { panic!("{acceptance:?}") };
        assert_eq!(message.user_id.as_deref(), Some("user1"));
        assert_eq!(message.deliveries[0].recipient.reveal(), "ada@example.com");
        assert_eq!(acceptance.bulk.unwrap().refused, 3);
    }

    #[test]
    fn a_person_with_two_devices_gets_one_message_with_two_deliveries() {
        let (acceptance, answer) = accept(r#"{"user_ids":["user1"],"channel":"push","message":"M"}"#).unwrap();
        assert_eq!(answer["sent"], 1);
        let to: Vec<_> = acceptance.messages[0].deliveries.iter().map(|one| one.recipient.reveal()).collect();
        assert_eq!(to, ["ios:a", "ios:b"]);
    }

    #[test]
    fn a_bad_and_a_doubled_recipient_are_refused_alone() {
        let body = r#"{"recipients":["a@example.com","nobody","a@example.com","b@example.com"],"channel":"email","message":"M"}"#;
        let (acceptance, answer) = accept(body).unwrap();
        let reasons: Vec<_> =
            answer["results"].as_array().unwrap().iter().map(|result| result["reason"].as_str()).collect();
        assert_eq!(reasons, [None, Some("invalid"), Some("duplicate"), None]);
        assert_eq!((&answer["sent"], &answer["failed"]), (&2.into(), &2.into()));
        assert_eq!(acceptance.messages.len(), 2);
        assert!(acceptance.messages.iter().all(|message| message.content.is_none()), "the bulk holds the content");
    }

    #[test]
    fn a_large_call_takes_the_bulk_lane_and_a_small_one_its_priority() {
        let body = |n: usize| {
            let users: Vec<String> = (0..n).map(|i| format!("\"u{i}\"")).collect();
            format!(r#"{{"user_ids":[{}],"channel":"in_app","message":"M","priority":"high"}}"#, users.join(","))
        };
        let lane = |n| accept(&body(n)).unwrap().0.messages[0].deliveries[0].route.lane;
        assert_eq!((lane(100), lane(101)), (Lane::High, Lane::Bulk));
        assert_eq!(accept(&body(10_001)).unwrap_err().code(), Code::ValidationFailed);
        assert_eq!(accept(&body(0)).unwrap_err().code(), Code::ValidationFailed);
    }

    #[test]
    fn what_all_share_refuses_the_whole_call() {
        for body in [
            r#"{"recipients":["a@example.com"],"channel":"fax","message":"M"}"#,
            r#"{"recipients":["a@example.com"],"user_ids":["a"],"channel":"email","message":"M"}"#,
            r#"{"recipients":["a@example.com"],"recipient":"b@example.com","channel":"email","message":"M"}"#,
            r#"{"recipients":"a@example.com","channel":"email","message":"M"}"#,
            r#"{"recipients":[1],"channel":"email","message":"M"}"#,
            r#"{"channel":"email","message":"M"}"#,
            r#"{"recipients":["a@example.com"],"channel":"email","message":"M","colour":"red"}"#,
        ] {
            assert_eq!(accept(body).unwrap_err().code().status(), 400, "{body}");
        }
    }

    #[test]
    fn every_state_is_counted_even_where_nothing_stands() {
        let counts =
            BulkCounts { refused: 1, created_at: rules().now, states: vec![(State::Delivered, 2), (State::Failed, 1)] };
        let view = serde_json::to_value(view(BulkId(Uuid::nil()), &counts)).unwrap();
        assert_eq!((&view["total"], &view["accepted"], &view["refused"]), (&4.into(), &3.into(), &1.into()));
        assert!(State::ALL.iter().all(|state| view[state.as_str()].is_i64()), "{view}");
    }
}
