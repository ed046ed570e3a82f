//! Sends messages of WhatsApp sessions.
//!
//! They are accepted the same way as every other message; what differs is the form of requests and answers.

use std::collections::HashMap;

use actix_web::{HttpRequest, HttpResponse, web::Data};
use api::whatsapp::messages::shown;
use chrono::{DateTime, Utc};
use domain::{
    Channel, TenantId, clock,
    contract::submission::{FieldError, Media, SessionAsk, Submission, parse_json},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use submission::{
    Submissions,
    envelope::{DeliveryAnswer, SendAnswer, build_acceptance, to_json},
    http::{origin, submit},
    idempotency::{self, Kind},
    openapi::MediaBody,
    session::{self, ChosenSession, SessionDemand},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    problem::Problem,
};

use crate::submitting::bulk::{self, Batch, BulkAnswer, People};

/// Most recipients that `batchSize` may name: as many as a call takes.
const BATCH_MAX: u32 = 10_000;

/// One message of a WhatsApp session.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionMessage {
    /// The session, by our id or by its name at WAHA.
    #[serde(rename = "sessionId", alias = "session_id", alias = "session")]
    #[schema(max_length = 200, required = true)]
    session_id: Option<String>,
    /// The phone number in E.164 form: `+` and 7 to 15 digits.
    #[serde(alias = "recipient")]
    #[schema(example = "+1234567890", required = true)]
    to: Option<String>,
    /// The text, or the caption of `media`.
    #[serde(alias = "message", alias = "text")]
    #[schema(max_length = 4096)]
    body: Option<String>,
    /// `low`, `normal`, `high` or `urgent`: the higher ones go first, within the session too.
    #[schema(example = "normal")]
    priority: Option<String>,
    /// Notes of the producer, given back as they are; at most 8 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// A file.
    #[schema(value_type = Option<MediaBody>)]
    media: Option<Media>,
    /// Over the session's pace: `queue` (it waits) or `reject` (429). Unless given, as the session has it.
    #[serde(alias = "onLimit")]
    #[schema(example = "queue")]
    on_limit: Option<String>,
    /// Accept it although the session is not WORKING; it waits until it is.
    #[serde(alias = "queueWhenOffline")]
    queue_when_offline: Option<bool>,
    /// As the header `Idempotency-Key`.
    #[serde(alias = "idempotencyKey")]
    idempotency_key: Option<String>,
    /// When to send it, within a year; a past time means now.
    #[serde(alias = "scheduledAt")]
    #[schema(format = DateTime)]
    scheduled_at: Option<String>,
    /// When it is no longer worth sending.
    #[serde(alias = "expiresAt")]
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// One text for many numbers.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionBulk {
    /// The session, by our id or by its name at WAHA.
    #[serde(rename = "sessionId", alias = "session_id", alias = "session")]
    #[schema(max_length = 200, required = true)]
    session_id: Option<String>,
    /// The phone numbers.
    #[schema(min_items = 1, max_items = 10_000)]
    recipients: Vec<String>,
    /// The text, or the caption of `media`.
    #[serde(alias = "message", alias = "text")]
    #[schema(max_length = 4096)]
    body: Option<String>,
    /// Accepted for compatibility: the session's pace alone decides how many go out at a time.
    #[serde(rename = "batchSize", alias = "batch_size")]
    #[schema(minimum = 1, maximum = 10_000)]
    batch_size: Option<u32>,
    /// `low`, `normal`, `high` or `urgent`.
    priority: Option<String>,
    /// Notes of the producer, given back as they are.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// A file.
    #[schema(value_type = Option<MediaBody>)]
    media: Option<Media>,
    /// Over the session's pace: `queue` or `reject` (429 unless all of them fit).
    #[serde(alias = "onLimit")]
    on_limit: Option<String>,
    /// Accept them although the session is not WORKING.
    #[serde(alias = "queueWhenOffline")]
    queue_when_offline: Option<bool>,
    /// As the header `Idempotency-Key`.
    #[serde(alias = "idempotencyKey")]
    idempotency_key: Option<String>,
    /// When to send them.
    #[serde(alias = "scheduledAt")]
    #[schema(format = DateTime)]
    scheduled_at: Option<String>,
}

/// The answer to an accepted message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionAccepted {
    /// The message.
    id: Uuid,
    /// Our id of the session.
    session_id: Uuid,
    /// The session's name at WAHA.
    session: String,
    /// To whom.
    to: String,
    /// `QUEUED`.
    #[schema(example = "QUEUED")]
    status: &'static str,
    /// When it was accepted.
    created_at: DateTime<Utc>,
    /// The deliveries.
    deliveries: Vec<DeliveryAnswer>,
}

/// Sends a WhatsApp message through a session.
///
/// It is committed to disk with the 202 and goes out at the session's pace (20 a minute unless set otherwise), higher
/// priorities first. A session that is not WORKING is a 400 unless `queue_when_offline` is set. Everything said about
/// `POST /api/notifications/send` and its `Idempotency-Key` holds here too.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/messages/send", tag = "whatsapp",
    request_body(content = SessionMessage, example = json!({"sessionId": "a1b2c3d4-e5f6-7890-1234-567890abcdef", "to": "+1234567890",
        "body": "Hello, this is a test message", "priority": "normal", "metadata": {"campaignId": "campaign-123"}})),
    responses((status = 202, description = "Accepted: committed to disk", body = SessionAccepted,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn send(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut asked: SessionMessage = parse_json(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), asked.idempotency_key.take())?;
    let to = asked.to.clone().unwrap_or_default();
    let named = asked.session_id.is_some();
    let draft = with_session(asked.into_submission().check(&submissions.web.rules()), named)?;
    let origin = origin(&producer.0, trace, key, Kind::SessionSend, &bytes);
    submit(&submissions, origin.key, async {
        let demand = SessionDemand { messages: 1, is_scheduled: draft.scheduled_at.is_some(), must_wait: false };
        let session = choose(&submissions, origin.tenant, &draft.session, demand).await?;
        let recipients = draft.recipient.iter().cloned().collect();
        let answer = |made: SendAnswer| {
            to_json(&SessionAccepted {
                id: made.id,
                session_id: session.session.id,
                session: session.session.settings.name.clone(),
                to,
                status: shown(made.status),
                created_at: clock::now(),
                deliveries: made.deliveries,
            })
        };
        Ok(build_acceptance(draft, recipients, origin, Some(&session), answer))
    })
    .await
}

/// The session that these routes require.
async fn choose(
    submissions: &Submissions,
    tenant: TenantId,
    ask: &SessionAsk,
    demand: SessionDemand,
) -> Result<ChosenSession, Problem> {
    let found = session::choose(submissions, tenant, Channel::Whatsapp, ask, demand).await?;
    found.ok_or_else(|| Problem::not_found("session"))
}

/// Sends one text to many numbers through a session.
///
/// Every number is checked alone: a bad one is refused with a reason, a doubled one gets one message. They go out at the
/// session's pace, after single messages of the same priority that were accepted before.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/messages/bulk", tag = "whatsapp",
    request_body(content = SessionBulk, example = json!({"sessionId": "a1b2c3d4-e5f6-7890-1234-567890abcdef",
        "recipients": ["+1234567890", "+0987654321"], "body": "Hello, this is a bulk message", "batchSize": 10, "priority": "normal"})),
    responses((status = 202, description = "Accepted, each number as its result says; also when every one was refused", body = BulkAnswer,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn send_bulk(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut asked: SessionBulk = parse_json(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), asked.idempotency_key.take())?;
    if asked.batch_size.is_some_and(|size| !(1..=BATCH_MAX).contains(&size)) {
        let message = format!("must be a whole number from 1 to {BATCH_MAX}");
        return Err(Problem::validation(vec![FieldError::new("batchSize", message)]));
    }
    let (people, named) = (People::Recipients(std::mem::take(&mut asked.recipients)), asked.session_id.is_some());
    let rules = submissions.web.rules();
    let head = with_session(bulk::check_parts(&people, asked.into_submission(), &rules), named)?;
    let origin = origin(&producer.0, trace, key, Kind::SessionBulk, &bytes);
    submit(&submissions, origin.key, async {
        let session = choose(&submissions, origin.tenant, &head.session, bulk::demand(&people, &head)).await?;
        let answer = |mut made: BulkAnswer| {
            for result in &mut made.results {
                result.status = if result.id.is_some() { "QUEUED" } else { "FAILED" };
            }
            to_json(&made)
        };
        let batch = Batch { people, head, known: HashMap::new(), session: Some(session) };
        Ok(bulk::build_bulk(batch, &rules, origin, answer))
    })
    .await
}

impl SessionMessage {
    fn into_submission(self) -> Submission {
        Submission {
            channel: Some(Channel::Whatsapp.to_string()),
            recipient: self.to,
            message: self.body,
            priority: self.priority,
            metadata: self.metadata,
            media: self.media,
            session_id: self.session_id,
            on_limit: self.on_limit,
            queue_when_offline: self.queue_when_offline,
            scheduled_at: self.scheduled_at,
            expires_at: self.expires_at,
            ..Submission::default()
        }
    }
}

impl SessionBulk {
    fn into_submission(self) -> Submission {
        Submission {
            channel: Some(Channel::Whatsapp.to_string()),
            message: self.body,
            priority: self.priority,
            metadata: self.metadata,
            media: self.media,
            session_id: self.session_id,
            on_limit: self.on_limit,
            queue_when_offline: self.queue_when_offline,
            scheduled_at: self.scheduled_at,
            ..Submission::default()
        }
    }
}

/// Faults in the spelling of these routes, and the one that a session must be named here.
fn with_session<T>(checked: Result<T, Vec<FieldError>>, is_named: bool) -> Result<T, Problem> {
    let missing = (!is_named).then(|| FieldError::new("sessionId", "is required: the session's id or name"));
    match (checked, missing) {
        (Ok(checked), None) => Ok(checked),
        (checked, missing) => {
            let faults = checked.err().unwrap_or_default().into_iter().map(spelled).chain(missing);
            Err(Problem::validation(faults.collect()))
        }
    }
}

fn spelled(mut fault: FieldError) -> FieldError {
    let known = [("recipient", "to"), ("message", "body"), ("session_id", "sessionId")];
    if let Some((_, name)) = known.iter().find(|(ours, _)| *ours == fault.field) {
        fault.field = (*name).to_owned();
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_as_these_routes_spell_them() {
        let faults = vec![FieldError::new("recipient", "x"), FieldError::new("message", "y")];
        let problem = with_session::<()>(Err(faults), false).unwrap_err().to_json();
        let named: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
        assert_eq!(named, ["to", "body", "sessionId"]);
    }
}
