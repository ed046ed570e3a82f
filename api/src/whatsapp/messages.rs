//! The messages of WhatsApp sessions: listing and counting both directions.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use deliveries::{
    Deliveries,
    wa_outbound::{Counted, Outbound, OutboundFilter},
};
use domain::{State, TenantId};
use records::{
    Records,
    wa_inbound::{Inbound, InboundFilter},
    wa_sessions::Session,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::Store;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web,
    auth::Reader,
    params::{self, Id, Params, Text},
    problem::Problem,
};

/// The word of these routes for a state.
pub const fn shown(state: State) -> &'static str {
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

/// The meaning of a status filter: a word of these routes, or a state of Posthaste.
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

/// The status of messages from people.
const RECEIVED: &str = "RECEIVED";

/// Selects messages. An absent parameter does not restrict.
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
    /// `QUEUED SENT DELIVERED FAILED RETRY RECEIVED`, or a word of `/api/messages`; case does not matter.
    #[param(value_type = Option<String>, example = "sent")]
    status: Option<Text>,
    /// Part of the text or the number; case does not matter. Searched in the newest 5,000 messages that match the rest.
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
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
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
    /// `QUEUED SENT DELIVERED FAILED RETRY`, or `RECEIVED` for messages from people.
    #[schema(example = "DELIVERED")]
    status: &'static str,
    /// Whether the person saw it.
    read: bool,
    /// The sender; for a sent message, the session.
    from: Option<String>,
    /// To whom.
    to: Option<String>,
    /// The text or caption; `null` if a list leaves it out with a large file.
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
    /// When it was accepted, or received by Posthaste.
    created_at: DateTime<Utc>,
    /// When it last changed, or when the person wrote it.
    updated_at: DateTime<Utc>,
    /// When it is sent, if later than its acceptance.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_at: Option<DateTime<Utc>>,
}

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionMessageList {
    /// Newest first.
    messages: Vec<SessionMessageView>,
    /// The cursor of the next page; `null` on the last one.
    next_cursor: Option<String>,
}

/// The parameters of a list of both directions.
struct MessageSearch {
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
/// Contents are encrypted in the database, so a `search` decrypts the newest 5,000 messages that match the rest and
/// looks into them. It does not find older ones.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/messages", tag = "whatsapp", params(SessionMessages),
    responses((status = 200, description = "A page of messages", body = SessionMessageList)))]
pub async fn list(reader: Reader, query: Params<SessionMessages>, web: Data<Web>) -> Result<HttpResponse, Problem> {
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
    let turn = if search.is_some() { web.search_turn(tenant).await? } else { None };
    let wants = |word: &str| direction.as_deref().is_none_or(|direction| direction == word);
    let states = match &status {
        Some(Status::States(states)) => Some(states.clone()),
        _ => None,
    };
    let wants_sent = wants("outbound") && !matches!(status, Some(Status::Received));
    let wants_received = wants("inbound") && !matches!(status, Some(Status::States(_)));
    let message_search = MessageSearch {
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
        let found = page(&store, message_search, session).await;
        drop(turn);
        found
    };
    let list = web.queries.run(searching).await?;
    Ok(HttpResponse::Ok().json(list))
}

async fn page(
    store: &Store,
    mut message_search: MessageSearch,
    session: Option<String>,
) -> store::DbResult<SessionMessageList> {
    if let Some(named) = session {
        // An unknown session has no messages.
        let Some(found) = store.whatsapp_sessions().session_of(message_search.tenant, &named).await? else {
            return Ok(SessionMessageList { messages: Vec::new(), next_cursor: None });
        };
        message_search.session = Some(found.id);
    }
    // Reads both directions in full, one more than wanted: only the merged list shows which messages are on the page.
    let wanted = message_search.skip + message_search.limit + 1;
    let mut rows: Vec<(Uuid, Row)> = Vec::new();
    if let Some(filter) = message_search.sent {
        let filter = OutboundFilter { session: message_search.session, ..filter };
        let sent =
            store.whatsapp_outbound().list(message_search.tenant, &filter, message_search.before, 0, wanted).await?;
        rows.extend(sent.into_iter().map(|message| (message.delivery, Row::Sent(Box::new(message)))));
    }
    if let Some(filter) = message_search.received {
        let filter = InboundFilter { session: message_search.session, ..filter };
        let received =
            store.whatsapp_inbound().list(message_search.tenant, &filter, message_search.before, 0, wanted).await?;
        rows.extend(received.into_iter().map(|message| (message.id, Row::Received(Box::new(message)))));
    }
    rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    let rows: Vec<_> = rows.into_iter().skip(usize::try_from(message_search.skip).unwrap_or(0)).collect();
    let (rows, next_cursor) = params::page_of(rows, message_search.limit, |(id, _)| *id);
    let mut ids: Vec<Uuid> = rows.iter().map(|(_, row)| row.session()).collect();
    ids.sort_unstable();
    ids.dedup();
    let sessions = store.whatsapp_sessions().by_ids(ids).await?;
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
pub async fn show(reader: Reader, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (reader.0.tenant, id.0);
    let found = web.queries.run(async move |store| {
        let row = match store.whatsapp_outbound().find(tenant, id).await? {
            Some(message) => Some(Row::Sent(Box::new(message))),
            None => store.whatsapp_inbound().find(tenant, id).await?.map(|message| Row::Received(Box::new(message))),
        };
        let Some(row) = row else { return Ok(None) };
        let sessions = store.whatsapp_sessions().by_ids(vec![row.session()]).await?;
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

/// The number of messages by their properties. A day is a UTC day.
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
    /// By the country prefix of the number; `unknown` if it has none.
    by_country_prefix: BTreeMap<String, i64>,
}

/// Counts of the tenant's WhatsApp messages, both directions.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/messages/stats", tag = "whatsapp", params(StatsQuery),
    responses((status = 200, description = "The counts", body = Stats)))]
pub async fn stats(reader: Reader, query: Params<StatsQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let tenant = reader.0.tenant;
    let from = params::time("fromDate", query.0.from_date)?;
    let to = params::time("toDate", query.0.to_date)?;
    let counted = web.queries.run(async move |store| store.whatsapp_outbound().count(tenant, from, to).await).await?;
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
}
