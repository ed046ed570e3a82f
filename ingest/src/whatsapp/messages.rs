//! The messages of WhatsApp sessions: sending them, listing both directions, counting.
//!
//! Accepted the same way as every other message; what differs is the form of requests and answers.

use std::collections::{BTreeMap, HashMap};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    Channel, State, TenantId, clock,
    contract::submission::{FieldError, Media, Submission, parse_json},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::{
    Store,
    wa_inbound::{Inbound, InboundFilter},
    wa_outbound::{Counted, Outbound, OutboundFilter},
    wa_sessions::Session,
};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Producer, Reader},
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    openapi::MediaBody,
    params::{self, Id, Params, Text},
    problem::Problem,
    submitting::{
        bulk::{self, Batch, BulkAnswer, People},
        envelope::{DeliveryAnswer, SendAnswer, seal_with, to_json},
        idempotency::{self, Kind},
        notifications::{hashes, origin, respond},
    },
    whatsapp::carrier::{self, Wanted},
};

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
    /// What will be sent.
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
    app: Data<App>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut asked: SessionMessage = parse_json(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), asked.idempotency_key.take())?;
    let to = asked.to.clone().unwrap_or_default();
    let named = asked.session_id.is_some();
    let draft = with_session(asked.into_submission().check(&app.rules()), named)?;
    let (tenant, hashes) = (producer.0.tenant, hashes(key, Kind::SessionSend, &bytes));
    let carrier = match carrier::choose(&app, tenant, Channel::Whatsapp, &draft.session, Wanted::one(&draft)).await {
        Ok(carrier) => carrier.ok_or_else(|| Problem::not_found("session"))?,
        Err(problem) => return carrier::repeat(&app, tenant, hashes, problem).await,
    };
    let answer = |made: SendAnswer| {
        to_json(&SessionAccepted {
            id: made.id,
            session_id: carrier.session.id,
            session: carrier.session.settings.name.clone(),
            to,
            status: shown(made.status),
            created_at: clock::now(),
            deliveries: made.deliveries,
        })
    };
    let recipients = draft.recipient.iter().cloned().collect();
    let origin = origin(&producer.0, trace);
    let (mut acceptance, answer) = seal_with(draft, recipients, origin, hashes, Some(carrier.line()), answer);
    acceptance.room_in = carrier.room_in();
    respond(app.acceptor.accept(acceptance).await, answer)
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
    app: Data<App>,
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
    let rules = app.rules();
    let head = with_session(bulk::check_parts(&people, asked.into_submission(), &rules), named)?;
    let (tenant, hashes) = (producer.0.tenant, hashes(key, Kind::SessionBulk, &bytes));
    let wanted = bulk::wanted(&people, &head);
    let carrier = match carrier::choose(&app, tenant, Channel::Whatsapp, &head.session, wanted).await {
        Ok(carrier) => carrier.ok_or_else(|| Problem::not_found("session"))?,
        Err(problem) => return carrier::repeat(&app, tenant, hashes, problem).await,
    };
    let answer = |mut made: BulkAnswer| {
        for result in &mut made.results {
            result.status = if result.id.is_some() { "QUEUED" } else { "FAILED" };
        }
        to_json(&made)
    };
    let origin = origin(&producer.0, trace);
    let batch = Batch { people, head, known: HashMap::new(), line: Some(carrier.line()) };
    let (mut acceptance, answer) = bulk::seal_with(batch, &rules, origin, hashes, answer);
    acceptance.room_in = carrier.room_in();
    respond(app.acceptor.accept_bulk(acceptance).await, answer)
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

/// A status in the words of these routes.
const fn shown(state: State) -> &'static str {
    match state {
        State::Scheduled | State::Queued | State::Sending => "QUEUED",
        State::Retrying => "RETRY",
        State::Sent => "SENT",
        State::Delivered => "DELIVERED",
        State::Failed | State::Bounced | State::Dead | State::Suppressed | State::Cancelled | State::Expired => {
            "FAILED"
        }
    }
}

/// The meaning of a status filter: a word of these routes, or a status of Posthaste.
enum Status {
    States(Vec<State>),
    Received,
}

fn status(text: Option<Text>) -> Result<Option<Status>, Problem> {
    let Some(text) = params::given(text) else { return Ok(None) };
    let upper = text.to_uppercase();
    if upper == RECEIVED {
        return Ok(Some(Status::Received));
    }
    let group: Vec<State> = State::ALL.iter().copied().filter(|state| shown(*state) == upper).collect();
    if !group.is_empty() {
        return Ok(Some(Status::States(group)));
    }
    let word: State = text.to_lowercase().parse().map_err(|unknown: domain::UnknownWord| {
        Problem::parameter(
            "status",
            format!("must be one of: QUEUED, SENT, DELIVERED, FAILED, RETRY, {RECEIVED}; or {}", unknown.expected),
        )
    })?;
    Ok(Some(Status::States(vec![word])))
}

/// The status of what came from people.
const RECEIVED: &str = "RECEIVED";

/// Which messages to list. What is not given does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SessionMessages {
    /// The session, by id or name.
    #[param(value_type = Option<String>)]
    #[serde(alias = "session_id", alias = "session")]
    session_id: Option<Text>,
    /// `inbound` or `outbound`.
    #[param(value_type = Option<String>, example = "outbound")]
    direction: Option<Text>,
    /// `QUEUED SENT DELIVERED FAILED RETRY RECEIVED`, or a word of `/api/messages`, in any case.
    #[param(value_type = Option<String>, example = "sent")]
    status: Option<Text>,
    /// A part of the text or the number, in any case; looked for in the newest 5,000 messages that match the rest.
    #[param(value_type = Option<String>)]
    search: Option<Text>,
    /// At or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    #[serde(alias = "from_date", alias = "from")]
    from_date: Option<Text>,
    /// At or before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    #[serde(alias = "to_date", alias = "to")]
    to_date: Option<Text>,
    /// The number of the page, from 1; a cursor is faster.
    #[param(value_type = Option<u16>)]
    page: Option<Text>,
    /// Entries of a page, 1 to 200; 50 unless given.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// A message of a session, of either direction.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionMessageView {
    /// The message.
    id: Uuid,
    /// Our id of the session.
    session_id: Uuid,
    /// The session's name at WAHA.
    session: Option<String>,
    /// `inbound` or `outbound`.
    #[schema(example = "outbound")]
    direction: &'static str,
    /// `QUEUED SENT DELIVERED FAILED RETRY`, or `RECEIVED` for what came from people.
    #[schema(example = "DELIVERED")]
    status: &'static str,
    /// Whether the person saw it.
    read: bool,
    /// From whom; of what was sent, the session.
    from: Option<String>,
    /// To whom.
    to: Option<String>,
    /// The text or caption; `null` where a list leaves out a large file's.
    body: Option<String>,
    /// `text`, `image`, `video`, `audio`, `document`, …
    #[serde(rename = "type")]
    #[schema(example = "text")]
    kind: String,
    /// The file, without its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    media: Option<Value>,
    /// `low`, `normal`, `high` or `urgent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
    /// The producer's notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// When it was accepted, or received by us.
    created_at: DateTime<Utc>,
    /// When it last changed, or was written by the person.
    updated_at: DateTime<Utc>,
    /// When it is to be sent, if later than its acceptance.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_at: Option<DateTime<Utc>>,
}

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionMessageList {
    /// Newest first.
    messages: Vec<SessionMessageView>,
    /// Where the next page begins; `null` on the last one.
    next_cursor: Option<String>,
}

/// What a list asks both directions for.
struct Asked {
    tenant: TenantId,
    session: Option<Uuid>,
    sent: Option<OutboundFilter>,
    received: Option<InboundFilter>,
    before: Option<Uuid>,
    skip: i64,
    limit: i64,
}

/// Messages of the tenant's WhatsApp sessions, both directions, newest first.
///
/// Contents are encrypted in the database, so a `search` opens the newest 5,000 messages that match the rest and looks into
/// them; what is older is not found.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/messages", tag = "whatsapp", params(SessionMessages),
    responses((status = 200, description = "A page of messages", body = SessionMessageList)))]
pub async fn list(reader: Reader, query: Params<SessionMessages>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let query = query.0;
    let tenant = reader.0.tenant;
    let status = status(query.status)?;
    let direction = params::given(query.direction).map(|direction| direction.to_lowercase());
    if direction.as_deref().is_some_and(|direction| !["inbound", "outbound"].contains(&direction)) {
        return Err(Problem::parameter("direction", "must be inbound or outbound"));
    }
    let limit = params::limit(query.limit)?;
    let (from, to) = (params::time("fromDate", query.from_date)?, params::time("toDate", query.to_date)?);
    let search = params::given(query.search);
    let turn = if search.is_some() { app.search_turn(tenant).await? } else { None };
    let wants = |word: &str| direction.as_deref().is_none_or(|direction| direction == word);
    let states = match &status {
        Some(Status::States(states)) => Some(states.clone()),
        _ => None,
    };
    let wants_sent = wants("outbound") && !matches!(status, Some(Status::Received));
    let wants_received = wants("inbound") && !matches!(status, Some(Status::States(_)));
    let asked = Asked {
        tenant,
        session: None,
        sent: wants_sent.then(|| OutboundFilter { session: None, states, from, to, search: search.clone() }),
        received: wants_received.then(|| InboundFilter { from, to, search, ..InboundFilter::default() }),
        before: params::cursor(query.cursor)?,
        skip: params::skip(query.page, limit)?,
        limit,
    };
    let session = params::given(query.session_id);
    let searching = async move |store: Store| {
        let found = page(&store, asked, session).await;
        drop(turn);
        found
    };
    let list = app.db.run(searching).await?;
    Ok(HttpResponse::Ok().json(list))
}

async fn page(store: &Store, mut asked: Asked, session: Option<String>) -> store::DbResult<SessionMessageList> {
    if let Some(named) = session {
        // A session that is not there has no messages.
        let Some(found) = store.session_of(asked.tenant, &named).await? else {
            return Ok(SessionMessageList { messages: Vec::new(), next_cursor: None });
        };
        asked.session = Some(found.id);
    }
    // Both in full, one more than wanted: which of them the page shows is known only once they are merged.
    let wanted = asked.skip + asked.limit + 1;
    let mut rows: Vec<(Uuid, Row)> = Vec::new();
    if let Some(filter) = asked.sent {
        let filter = OutboundFilter { session: asked.session, ..filter };
        let sent = store.list_outbound(asked.tenant, &filter, asked.before, 0, wanted).await?;
        rows.extend(sent.into_iter().map(|message| (message.delivery, Row::Sent(Box::new(message)))));
    }
    if let Some(filter) = asked.received {
        let filter = InboundFilter { session: asked.session, ..filter };
        let received = store.list_inbound(asked.tenant, &filter, asked.before, 0, wanted).await?;
        rows.extend(received.into_iter().map(|message| (message.id, Row::Received(Box::new(message)))));
    }
    rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    let rows: Vec<_> = rows.into_iter().skip(usize::try_from(asked.skip).unwrap_or(0)).collect();
    let (rows, next_cursor) = params::page_of(rows, asked.limit, |(id, _)| *id);
    let mut ids: Vec<Uuid> = rows.iter().map(|(_, row)| row.session()).collect();
    ids.sort_unstable();
    ids.dedup();
    let sessions = store.sessions_by_id(ids).await?;
    let messages = rows.into_iter().map(|(_, row)| row.view(&sessions)).collect();
    Ok(SessionMessageList { messages, next_cursor })
}

enum Row {
    Sent(Box<Outbound>),
    Received(Box<Inbound>),
}

impl Row {
    fn session(&self) -> Uuid {
        match self {
            Self::Sent(message) => message.session,
            Self::Received(message) => message.session,
        }
    }

    fn view(self, sessions: &[Session]) -> SessionMessageView {
        let id = self.session();
        let session = sessions.iter().find(|session| session.id == id).map(|session| session.settings.name.clone());
        match self {
            Self::Sent(message) => sent(*message, session),
            Self::Received(message) => received(*message, session),
        }
    }
}

fn sent(message: Outbound, session: Option<String>) -> SessionMessageView {
    let content = message.content.unwrap_or_default();
    SessionMessageView {
        id: message.message,
        session_id: message.session,
        from: session.clone(),
        session,
        direction: "outbound",
        status: shown(message.state),
        read: message.is_read,
        to: Some(message.recipient),
        body: content.message,
        kind: message.kind,
        media: content
            .media
            .map(|media| serde_json::json!({"mimetype": media.mimetype, "filename": media.filename, "url": media.url})),
        priority: Some(message.priority),
        metadata: content.metadata,
        created_at: message.created_at,
        updated_at: message.updated_at,
        scheduled_at: message.scheduled_at,
    }
}

fn received(message: Inbound, session: Option<String>) -> SessionMessageView {
    SessionMessageView {
        id: message.id,
        session_id: message.session,
        session,
        direction: "inbound",
        status: RECEIVED,
        read: false,
        from: Some(message.sender),
        to: Some(message.recipient).filter(|to| !to.is_empty()),
        body: Some(message.content.body),
        kind: message.kind,
        media: message.content.media,
        priority: None,
        metadata: None,
        created_at: message.created_at,
        updated_at: message.sent_at,
        scheduled_at: None,
    }
}

/// A message of a WhatsApp session, of either direction.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/messages/{id}", tag = "whatsapp", params(("id" = Uuid, Path, description = "The message")),
    responses((status = 200, description = "The message", body = SessionMessageView)))]
pub async fn show(reader: Reader, id: Id, app: Data<App>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (reader.0.tenant, id.0);
    let found = app.db.run(async move |store| {
        let row = match store.outbound(tenant, id).await? {
            Some(message) => Some(Row::Sent(Box::new(message))),
            None => store.inbound(tenant, id).await?.map(|message| Row::Received(Box::new(message))),
        };
        let Some(row) = row else { return Ok(None) };
        let sessions = store.sessions_by_id(vec![row.session()]).await?;
        Ok(Some(row.view(&sessions)))
    });
    let view = found.await?.ok_or_else(|| Problem::not_found("message"))?;
    Ok(HttpResponse::Ok().json(view))
}

/// The time that statistics cover.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct StatsQuery {
    /// At or after this time.
    #[param(value_type = Option<String>, format = DateTime, example = "2024-01-01T00:00:00Z")]
    #[serde(alias = "from_date", alias = "from")]
    from_date: Option<Text>,
    /// At or before this time.
    #[param(value_type = Option<String>, format = DateTime, example = "2024-01-31T23:59:59Z")]
    #[serde(alias = "to_date", alias = "to")]
    to_date: Option<Text>,
}

/// How many messages there were, by their properties. A day is one of UTC.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(example = json!({"total": 3, "outbound": 2, "inbound": 1, "by_day": {"2026-01-31": 3}, "by_status": {"DELIVERED": 2, "RECEIVED": 1},
    "by_session": {"0191d8a0-0000-7000-8000-000000000001": 3}, "by_type": {"text": 3}, "by_country_prefix": {"+49": 3}}))]
pub struct Stats {
    /// All of them.
    total: i64,
    /// Those sent, or waiting to be.
    outbound: i64,
    /// Those from people.
    inbound: i64,
    /// By UTC day.
    by_day: BTreeMap<String, i64>,
    /// By `QUEUED SENT DELIVERED FAILED RETRY RECEIVED`.
    by_status: BTreeMap<&'static str, i64>,
    /// By our id of the session.
    by_session: BTreeMap<Uuid, i64>,
    /// By `text`, `image`, …
    by_type: BTreeMap<String, i64>,
    /// By the country prefix of the number; `unknown` where it has none.
    by_country_prefix: BTreeMap<String, i64>,
}

/// Counts of the tenant's WhatsApp messages, both directions.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/messages/stats", tag = "whatsapp", params(StatsQuery),
    responses((status = 200, description = "The counts", body = Stats)))]
pub async fn stats(reader: Reader, query: Params<StatsQuery>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let tenant = reader.0.tenant;
    let from = params::time("fromDate", query.0.from_date)?;
    let to = params::time("toDate", query.0.to_date)?;
    let counted = app.db.run(async move |store| store.count_whatsapp(tenant, from, to).await).await?;
    Ok(HttpResponse::Ok().json(summed(counted)))
}

fn summed(counted: Vec<Counted>) -> Stats {
    let mut stats = Stats::default();
    for row in counted {
        stats.total += row.n;
        *(if row.is_inbound { &mut stats.inbound } else { &mut stats.outbound }) += row.n;
        *stats.by_day.entry(row.day.to_string()).or_default() += row.n;
        *stats.by_status.entry(row.state.map_or(RECEIVED, shown)).or_default() += row.n;
        *stats.by_session.entry(row.session).or_default() += row.n;
        *stats.by_type.entry(row.kind).or_default() += row.n;
        *stats.by_country_prefix.entry(row.country.unwrap_or_else(|| "unknown".to_owned())).or_default() += row.n;
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<Text> {
        Some(Text::try_from(text.to_owned()).unwrap())
    }

    fn states(word: &str) -> Vec<State> {
        match status(text(word)).unwrap() {
            Some(Status::States(states)) => states,
            _ => Vec::new(),
        }
    }

    #[test]
    fn both_vocabularies_filter_in_any_case() {
        assert_eq!(states("SENT"), [State::Sent]);
        assert_eq!(states("sent"), [State::Sent]);
        assert_eq!(states("Retry"), [State::Retrying]);
        assert_eq!(states("queued"), [State::Scheduled, State::Queued, State::Sending]);
        assert_eq!(states("DEAD"), [State::Dead]);
        assert!(states("failed").contains(&State::Bounced));
        assert!(matches!(status(text("received")), Ok(Some(Status::Received))));
        assert!(status(text("lost")).is_err());
    }

    #[test]
    fn faults_are_named_as_these_routes_spell_them() {
        let faults = vec![FieldError::new("recipient", "x"), FieldError::new("message", "y")];
        let problem = with_session::<()>(Err(faults), false).unwrap_err().to_json();
        let named: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
        assert_eq!(named, ["to", "body", "sessionId"]);
    }
}
