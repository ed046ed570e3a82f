//! Messages as their producers ask for them: one, its log, a filtered list, a bulk's counts, and taking one back.
//!
//! A scope of `None` means every tenant. Deliveries are made right after their message, and messages right after their
//! bulk, by one process: their ids lie within a minute of each other. With that range given, only the partitions in
//! question are opened, and even a poor plan reads no more than a minute's rows.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Address, BulkId, Channel, DeliveryId, EventKind, MessageId, OutcomeClass, State, TenantId};
use uuid::Uuid;

use super::{
    DbResult, Statement, Store,
    analytics::{daily, reach},
    sealed, statement,
    webhook_events::enqueue_webhook_events,
};

/// Messages looked at by the first statement of a search; enough for any page without a filter.
const WINDOW_MIN: i64 = 1000;
/// Messages looked at by one statement: about a quarter of a second.
const WINDOW_MAX: i64 = 16_000;
/// How long a search goes on before it answers with what it has.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// Sealed messages opened at once in a search: their contents are in memory together.
const OPENED_TOGETHER: usize = 200;

/// A message with its deliveries.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The bulk it belongs to.
    pub bulk: Option<BulkId>,
    /// The person.
    pub user_id: Option<String>,
    /// What it is about.
    pub category: Option<String>,
    /// As asked.
    pub priority: String,
    /// `http` or `amqp`.
    pub source: String,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The content as JSON; a list leaves out what is larger than a few pages.
    pub content: Option<Vec<u8>>,
    /// When it is to be sent.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it is no longer worth sending.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// To whom and how.
    pub deliveries: Vec<StoredDelivery>,
}

/// A delivery as it stands.
#[derive(Clone, Debug)]
pub struct StoredDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its channel.
    pub channel: Channel,
    /// To whom.
    pub recipient: Address,
    /// Where it stands.
    pub state: State,
    /// What the recipient did with it.
    pub engagement: Vec<EventKind>,
    /// Who carried it last.
    pub provider: Option<String>,
    /// Calls to providers so far.
    pub attempts: i64,
    /// Why it waits or ended without a provider call, as a word.
    pub reason: Option<String>,
    /// When it is sent, if it waits for a moment.
    pub due_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A row of the delivery log.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Whose.
    pub delivery: DeliveryId,
    /// The run that made it.
    pub run: i32,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: DateTime<Utc>,
    /// The provider call behind it.
    pub attempt: Option<StoredAttempt>,
    /// One clause on why, also for what no provider call stands behind.
    pub detail: Option<String>,
}

/// A call to a provider.
#[derive(Clone, Debug)]
pub struct StoredAttempt {
    /// Who was called.
    pub provider: String,
    /// How it ended.
    pub outcome: Option<OutcomeClass>,
    /// The provider's code.
    pub code: Option<String>,
    /// How long it took.
    pub duration_ms: Option<i32>,
    /// The provider's own id.
    pub provider_ref: Option<String>,
}

/// Which messages a list shows; what is `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// A delivery of it stands there.
    pub status: Option<State>,
    /// A delivery of it takes this channel.
    pub channel: Option<Channel>,
    /// The person.
    pub user_id: Option<String>,
    /// Accepted at or after.
    pub from: Option<DateTime<Utc>>,
    /// Accepted at or before.
    pub to: Option<DateTime<Utc>>,
    /// Exactly to there.
    pub recipient: Option<String>,
    /// A part of the recipient or the content, in any case.
    pub text: Option<String>,
}

/// Which part of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Only what is older than this.
    pub before: Option<MessageId>,
    /// Skipped before the first.
    pub skip: usize,
    /// At most so many.
    pub limit: usize,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct MessagePage {
    /// Newest first. Fewer than asked for, although there are more, when the search took too long.
    pub messages: Vec<StoredMessage>,
    /// What the next part begins before; `None`: there is no more.
    pub next: Option<MessageId>,
}

/// A bulk and where its deliveries stand.
#[derive(Clone, Debug)]
pub struct BulkCounts {
    /// Recipients that were refused.
    pub refused: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Deliveries by state; states without any are left out.
    pub states: Vec<(State, i64)>,
}

type SqlMessage = (
    (SqlUuid, Nullable<SqlUuid>, Nullable<Text>, Nullable<Text>, Text, Text, Nullable<Text>),
    (Int4, Nullable<Binary>, Nullable<Timestamptz>, Nullable<Timestamptz>, Timestamptz),
);
type MessageRow = (
    (Uuid, Option<Uuid>, Option<String>, Option<String>, String, String, Option<String>),
    (i32, Option<Vec<u8>>, Option<DateTime<Utc>>, Option<DateTime<Utc>>, DateTime<Utc>),
);
type SqlDelivery = (
    (SqlUuid, SqlUuid, Text, Text, Text),
    (Nullable<Text>, Int8, Timestamptz, Array<Text>, Nullable<Text>, Nullable<Timestamptz>),
);
type DeliveryRow = (
    (Uuid, Uuid, String, String, String),
    (Option<String>, i64, DateTime<Utc>, Vec<String>, Option<String>, Option<DateTime<Utc>>),
);
/// The message, whose it is, its content and its recipients.
type SealedTexts = (Uuid, i32, Option<Vec<u8>>, Vec<String>);
type SqlEvent = (
    (SqlUuid, Int4, Text, Timestamptz),
    (Nullable<Text>, Nullable<Text>, Nullable<Text>, Nullable<Text>, Nullable<Int4>, Nullable<Text>),
);
type EventRow = (
    (Uuid, i32, String, DateTime<Utc>),
    (Option<String>, Option<String>, Option<String>, Option<String>, Option<i32>, Option<String>),
);

impl Store {
    /// A message of the tenant.
    pub async fn message(&self, scope: Option<TenantId>, id: MessageId) -> DbResult<Option<StoredMessage>> {
        let query =
            statement::<SqlMessage>(SELECT_ONE).bind::<SqlUuid, _>(id.0).bind::<Nullable<Int4>, _>(number(scope));
        let rows: Vec<MessageRow> = query.within(scope).rows(self).await?;
        Ok(self.with_deliveries(scope, rows).await?.pop())
    }

    /// A page of messages of the tenant, newest first. A filter that hardly anything passes could read through every
    /// message there is; the search ends when its time is up, and says where to go on.
    pub async fn messages(&self, scope: Option<TenantId>, filter: MessageFilter, page: Page) -> DbResult<MessagePage> {
        let wanted = page.skip + page.limit;
        let search = Search::new(scope, filter, page.before);
        let exact = if self.sealer().is_on() { self.exactly(&search).await? } else { None };
        let (mut ids, next) = match exact {
            Some(hashes) => self.search_recipient(&search, hashes, wanted).await?,
            None => self.search(&search, wanted).await?,
        };
        let ids = ids.split_off(page.skip.min(ids.len()));
        let query = statement::<SqlMessage>(SELECT_MANY).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<MessageRow> = query.within(scope).rows(self).await?;
        Ok(MessagePage { messages: self.with_deliveries(scope, rows).await?, next: next.map(MessageId) })
    }

    /// The ids of the first `wanted` messages that match, and where to go on if there may be more.
    async fn search(&self, search: &Search, wanted: usize) -> DbResult<(Vec<Uuid>, Option<Uuid>)> {
        let (started, mut high, mut window) = (Instant::now(), search.high, WINDOW_MIN);
        let mut ids: Vec<Uuid> = Vec::new();
        loop {
            // One more than wanted tells whether there are more.
            let missing = wanted + 1 - ids.len();
            ids.extend(match &search.filter.text {
                Some(text) if self.sealer().is_on() => self.opened_matches(search, text, high, window).await?,
                _ => search.matches(high, window, count(missing)).rows::<Uuid>(self).await?,
            });
            if ids.len() > wanted {
                ids.truncate(wanted);
                let last = ids.last().copied();
                return Ok((ids, last));
            }
            let end: Vec<Uuid> = search.end_of(high, window).rows(self).await?;
            let Some(&end) = end.first() else { return Ok((ids, None)) };
            if started.elapsed() > SEARCH_TIME {
                return Ok((ids, Some(end)));
            }
            let largest = if search.filter.text.is_some() && self.sealer().is_on() { WINDOW_MIN } else { WINDOW_MAX };
            (high, window) = (end, (window * 2).min(largest));
        }
    }

    /// Where recipients are sealed: the fingerprints of the one recipient that is asked for; none if it is a part of
    /// something that is asked for.
    async fn exactly(&self, search: &Search) -> DbResult<Option<Vec<Vec<u8>>>> {
        // A fingerprint is made for one tenant.
        let Some(tenant) = search.scope else { return Ok(None) };
        let hashes = |text: &str| -> Vec<Vec<u8>> {
            self.sealer().fingerprints(&tenant.to_string(), text).iter().map(|hash| hash.to_vec()).collect()
        };
        if let Some(recipient) = &search.filter.recipient {
            return Ok(Some(hashes(recipient)));
        }
        let Some(text) = &search.filter.text else { return Ok(None) };
        let query = statement::<Bool>(IS_RECIPIENT).bind::<Array<Binary>, _>(hashes(text)).within(search.scope);
        let is_recipient: bool = query.row(self).await?;
        Ok(is_recipient.then(|| hashes(text)))
    }

    /// As [`Store::search`], for messages to one recipient: an index knows them all.
    async fn search_recipient(
        &self,
        search: &Search,
        hashes: Vec<Vec<u8>>,
        wanted: usize,
    ) -> DbResult<(Vec<Uuid>, Option<Uuid>)> {
        let Search { scope, filter, low, high } = search;
        let query = statement::<SqlUuid>(TO_RECIPIENT)
            .bind::<Array<Binary>, _>(hashes)
            .bind::<SqlUuid, _>(*low)
            .bind::<SqlUuid, _>(*high)
            .bind::<Nullable<Text>, _>(filter.status.map(State::as_str))
            .bind::<Nullable<Text>, _>(filter.channel.map(Channel::as_str))
            .bind::<Nullable<Text>, _>(filter.user_id.clone())
            .bind::<Int8, _>(count(wanted + 1));
        let mut ids: Vec<Uuid> = query.within(*scope).rows(self).await?;
        let more = ids.len() > wanted;
        ids.truncate(wanted);
        let last = ids.last().copied().filter(|_| more);
        Ok((ids, last))
    }

    /// Those of the `window` messages below `high` whose recipients or content hold `text`, once they are opened.
    async fn opened_matches(&self, search: &Search, text: &str, high: Uuid, window: i64) -> DbResult<Vec<Uuid>> {
        let candidates: Vec<Uuid> = Search { filter: MessageFilter { text: None, ..search.filter.clone() }, ..*search }
            .matches(high, window, window)
            .rows(self)
            .await?;
        let (part, json_part) = (text.to_lowercase(), as_stored(text).to_lowercase());
        let mut found = Vec::new();
        for ids in candidates.chunks(OPENED_TOGETHER) {
            let query = statement::<(SqlUuid, Int4, Nullable<Binary>, Array<Text>)>(SEALED_TEXTS);
            let query = query.bind::<Array<SqlUuid>, _>(ids.to_vec()).within(search.scope);
            let rows: Vec<SealedTexts> = query.rows(self).await?;
            for (id, tenant, content, recipients) in rows {
                let tenant = TenantId(tenant);
                let content = content.and_then(|content| self.opened(sealed::CONTENT.of(tenant), content));
                let content = content.unwrap_or_default();
                let place = sealed::RECIPIENT.of(tenant);
                let mut recipients = recipients.into_iter().filter_map(|recipient| self.opened_text(place, recipient));
                let holds = |text: &str, part: &str| text.to_lowercase().contains(part);
                let matches = holds(&String::from_utf8_lossy(&content), &json_part)
                    || recipients.any(|recipient| holds(&recipient, &part));
                found.extend(matches.then_some(id));
            }
        }
        Ok(found)
    }

    /// What the log says about a message's deliveries, oldest first; `None` if the tenant has no such message.
    pub async fn timeline(
        &self,
        scope: Option<TenantId>,
        id: MessageId,
    ) -> DbResult<Option<(StoredMessage, Vec<StoredEvent>)>> {
        let Some(message) = self.message(scope, id).await? else { return Ok(None) };
        let ids: Vec<Uuid> = message.deliveries.iter().map(|delivery| delivery.id.0).collect();
        let query = statement::<SqlEvent>(SELECT_EVENTS).near(&ids).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<EventRow> = query.within(scope).rows(self).await?;
        Ok(Some((message, rows.into_iter().filter_map(event).collect())))
    }

    /// Up to `limit` messages to a person with their log, newest first; those older than `before`. Content beyond a few pages
    /// is left out, see [`Store::message`].
    pub async fn messages_to(
        &self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(StoredMessage, Vec<StoredEvent>)>> {
        let scope = Some(tenant);
        let query = statement::<SqlUuid>(IDS_TO)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<SqlUuid, _>(before)
            .bind::<Int8, _>(limit);
        let ids: Vec<Uuid> = query.within(scope).rows(self).await?;
        let query = statement::<SqlMessage>(SELECT_MANY).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<MessageRow> = query.within(scope).rows(self).await?;
        let messages = self.with_deliveries(scope, rows).await?;
        let deliveries = messages.iter().flat_map(|message| &message.deliveries);
        let ids: Vec<Uuid> = deliveries.map(|delivery| delivery.id.0).collect();
        let query = statement::<SqlEvent>(SELECT_EVENTS).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<EventRow> = query.within(scope).rows(self).await?;
        let mut events: Vec<StoredEvent> = rows.into_iter().filter_map(event).collect();
        let mut own = |message: StoredMessage| {
            let is_own = |event: &mut StoredEvent| message.deliveries.iter().any(|one| one.id == event.delivery);
            let log = events.extract_if(.., is_own).collect();
            (message, log)
        };
        Ok(messages.into_iter().map(&mut own).collect())
    }

    /// Takes back whatever of a message waits to be sent, with its log row and counter; says how many deliveries.
    /// What a worker has claimed meanwhile is left alone.
    pub async fn cancel(&self, scope: Option<TenantId>, id: MessageId) -> DbResult<i64> {
        let query = statement::<Int8>(CANCEL).bind::<SqlUuid, _>(id.0).bind::<Nullable<Int4>, _>(number(scope));
        query.within(scope).row(self).await
    }

    /// As [`Store::cancel`], for the deliveries of a broadcast between two of them.
    pub(super) async fn cancel_page(
        &self,
        tenant: TenantId,
        broadcast: Uuid,
        (first, last): (Uuid, Uuid),
    ) -> DbResult<i64> {
        let query = statement::<Int8>(CANCEL_PAGE)
            .bind::<SqlUuid, _>(broadcast)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(first)
            .bind::<SqlUuid, _>(last);
        query.within(Some(tenant)).row(self).await
    }

    /// Where the deliveries of a bulk stand.
    pub async fn bulk_counts(&self, scope: Option<TenantId>, id: BulkId) -> DbResult<Option<BulkCounts>> {
        let query = statement::<(Int4, Timestamptz, Nullable<Text>, Int8)>(SELECT_BULK)
            .bind::<SqlUuid, _>(id.0)
            .bind::<Nullable<Int4>, _>(number(scope));
        let rows: Vec<(i32, DateTime<Utc>, Option<String>, i64)> = query.within(scope).rows(self).await?;
        let Some(&(refused, created_at, ..)) = rows.first() else { return Ok(None) };
        let states =
            rows.iter().filter_map(|(_, _, state, count)| Some((state.as_deref()?.parse().ok()?, *count))).collect();
        Ok(Some(BulkCounts { refused, created_at, states }))
    }

    async fn with_deliveries(&self, scope: Option<TenantId>, rows: Vec<MessageRow>) -> DbResult<Vec<StoredMessage>> {
        let mut messages: Vec<StoredMessage> = rows.into_iter().map(StoredMessage::from).collect();
        for message in &mut messages {
            let content = message.content.take();
            message.content = content.and_then(|content| self.opened(sealed::CONTENT.of(message.tenant), content));
        }
        let ids: Vec<Uuid> = messages.iter().map(|message| message.id.0).collect();
        let query = statement::<SqlDelivery>(SELECT_DELIVERIES).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<DeliveryRow> =
            if messages.is_empty() { Vec::new() } else { query.within(scope).rows(self).await? };
        for mut row in rows {
            let Some(owner) = messages.iter_mut().find(|message| message.id.0 == row.0.0) else { continue };
            row.0.3 = self.opened_text(sealed::RECIPIENT.of(owner.tenant), row.0.3).unwrap_or_default();
            owner.deliveries.extend(delivery(row));
        }
        Ok(messages)
    }
}

/// A list that is being searched, window by window.
struct Search {
    scope: Option<TenantId>,
    filter: MessageFilter,
    low: Uuid,
    high: Uuid,
}

impl Search {
    fn new(scope: Option<TenantId>, filter: MessageFilter, before: Option<MessageId>) -> Self {
        let low = filter.from.map_or(Uuid::nil(), floor);
        let high =
            filter.to.and_then(|to| to.checked_add_signed(TimeDelta::milliseconds(1))).map_or(Uuid::max(), floor);
        Self { scope, filter, low, high: before.map_or(high, |before| before.0.min(high)) }
    }

    /// Those of the `window` messages below `high` that match.
    fn matches(&self, high: Uuid, window: i64, limit: i64) -> Statement<SqlUuid> {
        let Self { scope, filter, low, .. } = self;
        statement::<SqlUuid>(if scope.is_some() { MATCHES_OF_TENANT } else { MATCHES_OF_ALL })
            .within(*scope)
            .bind::<Nullable<Text>, _>(filter.status.map(State::as_str))
            .bind::<Nullable<Text>, _>(filter.channel.map(Channel::as_str))
            .bind::<Nullable<Text>, _>(filter.user_id.clone())
            .bind::<Nullable<Text>, _>(filter.recipient.clone())
            .bind::<Nullable<Text>, _>(filter.text.clone())
            .bind::<Nullable<Text>, _>(filter.text.as_deref().map(as_stored))
            .bind::<Nullable<Int4>, _>(number(*scope))
            .bind::<SqlUuid, _>(*low)
            .bind::<SqlUuid, _>(high)
            .bind::<Int8, _>(window)
            .bind::<Int8, _>(limit)
    }

    /// The last of the `window` messages below `high`; none if there are not so many.
    fn end_of(&self, high: Uuid, window: i64) -> Statement<SqlUuid> {
        statement::<SqlUuid>(if self.scope.is_some() { END_OF_TENANT } else { END_OF_ALL })
            .within(self.scope)
            .bind::<Nullable<Int4>, _>(number(self.scope))
            .bind::<SqlUuid, _>(self.low)
            .bind::<SqlUuid, _>(high)
            .bind::<Int8, _>(window - 1)
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn number(scope: Option<TenantId>) -> Option<i32> {
    scope.map(|tenant| tenant.0)
}

/// The smallest UUIDv7 of a moment, as `uuid7_floor` of the schema has it.
pub(super) fn floor(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(millis.min((1 << 48) - 1) << 80)
}

/// How a text reads inside stored JSON.
fn as_stored(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap_or_default();
    json.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned()
}

impl From<MessageRow> for StoredMessage {
    fn from((head, tail): MessageRow) -> Self {
        let (id, bulk, user_id, category, priority, source, request_id) = head;
        let (tenant, content, scheduled_at, expires_at, created_at) = tail;
        Self {
            id: MessageId(id),
            tenant: TenantId(tenant),
            bulk: bulk.map(BulkId),
            user_id,
            category,
            priority,
            source,
            request_id,
            content,
            scheduled_at,
            expires_at,
            created_at,
            deliveries: Vec::new(),
        }
    }
}

/// A row with a word that this version does not know is left out.
fn delivery(row: DeliveryRow) -> Option<StoredDelivery> {
    let ((_, id, channel, recipient, state), (provider, attempts, updated_at, engagement, reason, due_at)) = row;
    let (channel, state) = (channel.parse().ok()?, state.parse().ok()?);
    Some(StoredDelivery {
        engagement: engagement.iter().filter_map(|word| word.parse().ok()).collect(),
        id: DeliveryId(id),
        channel,
        recipient: Address::new(recipient),
        state,
        provider,
        attempts,
        reason,
        due_at: due_at.filter(|_| !state.is_end()),
        updated_at,
    })
}

fn event(
    ((delivery, run, kind, at), (provider, outcome, code, detail, duration_ms, provider_ref)): EventRow,
) -> Option<StoredEvent> {
    let outcome = outcome.and_then(|word| word.parse().ok());
    let attempt = provider.map(|provider| StoredAttempt { provider, outcome, code, duration_ms, provider_ref });
    Some(StoredEvent { delivery: DeliveryId(delivery), run, kind: kind.parse().ok()?, at, attempt, detail })
}

const SELECT_ONE: &str = "
SELECT m.id, m.bulk_id, m.user_id, m.category, m.priority, m.source, m.request_id,
       m.tenant_id, coalesce(m.content, b.content), m.scheduled_at, m.expires_at, m.created_at
FROM messages m LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE m.id = ? AND m.tenant_id = coalesce(?, m.tenant_id)";

/// The smallest UUIDv7 a minute after another one.
macro_rules! minute_after {
    ($id:literal) => {
        concat!(
            "(lpad(to_hex(('x' || translate(left(",
            $id,
            "::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0') || '00000000000000000000')::uuid"
        )
    };
}

pub(super) use minute_after;

/// Walks the ids downwards, at most a window of them, and stops at the limit: a list costs what it shows. `f` is one row
/// of constants that the planner folds in. A tenant's list compares and orders by (tenant, id): were the tenant a mere
/// equation, the planner could walk the ids of all tenants instead, and a quiet tenant's list would read through a busy one's.
macro_rules! search {
    ($range:literal, $order:literal) => {
        concat!(
            "
SELECT m.id
FROM (SELECT ?::text AS status, ?::text AS channel, ?::text AS user_id, ?::text AS recipient, lower(?::text) AS part, lower(?::text) AS json_part) f
CROSS JOIN (
    SELECT m.* FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS low, ?::uuid AS high) r CROSS JOIN messages m
    WHERE m.id >= r.low AND m.id < r.high AND ",
            $range,
            " ORDER BY ",
            $order,
            " LIMIT ?) m
LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE (f.user_id IS NULL OR m.user_id = f.user_id)
  AND ((f.status IS NULL AND f.channel IS NULL AND f.recipient IS NULL) OR EXISTS (
        SELECT 1 FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
            minute_after!("m.id"),
            " AND (f.status IS NULL OR d.state = f.status) AND (f.channel IS NULL OR d.channel = f.channel)
          AND (f.recipient IS NULL OR d.recipient = f.recipient)))
  AND (f.part IS NULL
       OR EXISTS (
        SELECT 1 FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
            minute_after!("m.id"),
            " AND strpos(lower(d.recipient), f.part) > 0)
       OR CASE WHEN octet_length(coalesce(m.content, b.content)) <= 1048576
               THEN strpos(lower(convert_from(coalesce(m.content, b.content), 'UTF8')), f.json_part) > 0 END)
ORDER BY ",
            $order,
            " LIMIT ?"
        )
    };
}

/// Where a window ends.
macro_rules! end {
    ($range:literal, $order:literal) => {
        concat!(
            "
SELECT m.id FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS low, ?::uuid AS high) r CROSS JOIN messages m
WHERE m.id >= r.low AND m.id < r.high AND ",
            $range,
            " ORDER BY ",
            $order,
            " OFFSET ? LIMIT 1"
        )
    };
}

const MATCHES_OF_TENANT: &str = search!(
    "(m.tenant_id, m.id) >= (r.tenant_id, r.low) AND (m.tenant_id, m.id) < (r.tenant_id, r.high)",
    "m.tenant_id DESC, m.id DESC"
);
const MATCHES_OF_ALL: &str = search!("r.tenant_id IS NULL", "m.id DESC");
const END_OF_TENANT: &str = end!(
    "(m.tenant_id, m.id) >= (r.tenant_id, r.low) AND (m.tenant_id, m.id) < (r.tenant_id, r.high)",
    "m.tenant_id DESC, m.id DESC"
);
const END_OF_ALL: &str = end!("r.tenant_id IS NULL", "m.id DESC");

const IDS_TO: &str = "
SELECT m.id FROM messages m WHERE m.tenant_id = ? AND m.user_id = ? AND m.id < ? ORDER BY m.id DESC LIMIT ?";

const SELECT_MANY: &str = "
SELECT m.id, m.bulk_id, m.user_id, m.category, m.priority, m.source, m.request_id,
       m.tenant_id, CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536 THEN coalesce(m.content, b.content) END,
       m.scheduled_at, m.expires_at, m.created_at
FROM unnest(?::uuid[]) AS asked(id) CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = asked.id OFFSET 0) m
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY m.id DESC";

/// Fenced in, so that each message looks up its own deliveries instead of all together reading a range of them.
const SELECT_DELIVERIES: &str = concat!(
    "
SELECT d.message_id, d.id, d.channel, d.recipient, d.state, d.provider,
       (SELECT count(*) FROM delivery_events e WHERE e.delivery_id = d.id AND e.provider IS NOT NULL), d.updated_at,
       ARRAY(SELECT DISTINCT e.kind FROM delivery_events e
             WHERE e.delivery_id = d.id AND e.kind IN ('read', 'opened', 'clicked', 'complained') ORDER BY 1),
       d.reason, (SELECT u.due_at FROM due u WHERE u.delivery_id = d.id AND u.why <> 'watch')
FROM unnest(?::uuid[]) AS asked(id) CROSS JOIN LATERAL (
    SELECT * FROM deliveries d WHERE d.message_id = asked.id AND d.id >= asked.id AND d.id < ",
    minute_after!("asked.id"),
    " OFFSET 0) d
ORDER BY d.id"
);

/// Whether something was ever sent exactly there.
const IS_RECIPIENT: &str =
    "SELECT EXISTS (SELECT 1 FROM deliveries d WHERE d.recipient_hash = ANY (?::bytea[])) AS found";

/// The fence keeps the planner from walking the messages in their order in search of a rare recipient.
const TO_RECIPIENT: &str = "
SELECT m.id
FROM (SELECT DISTINCT d.message_id FROM (
        SELECT ?::bytea[] AS hashes, ?::uuid AS low, ?::uuid AS high, ?::text AS status, ?::text AS channel) f
      JOIN deliveries d ON d.recipient_hash = ANY (f.hashes)
      WHERE d.message_id >= f.low AND d.message_id < f.high
        AND (f.status IS NULL OR d.state = f.status) AND (f.channel IS NULL OR d.channel = f.channel)) x
JOIN messages m ON m.id = x.message_id
CROSS JOIN (SELECT ?::text AS user_id) u
WHERE u.user_id IS NULL OR m.user_id = u.user_id
ORDER BY m.id DESC LIMIT ?";

/// What a search opens. Content beyond a few pages is not looked into.
const SEALED_TEXTS: &str = concat!(
    "
SELECT m.id, m.tenant_id, CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536 THEN coalesce(m.content, b.content) END,
       ARRAY(SELECT d.recipient FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
    minute_after!("m.id"),
    ")
FROM unnest(?::uuid[]) AS asked(id) CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = asked.id OFFSET 0) m
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY m.id DESC"
);

const SELECT_EVENTS: &str = "
SELECT e.delivery_id, e.run, e.kind, e.at, e.provider, e.outcome, e.code, e.detail, e.duration_ms, e.provider_ref
FROM unnest(?::uuid[]) AS asked(id) JOIN delivery_events@ e ON e.delivery_id = asked.id
ORDER BY e.at, e.run, e.kind";

/// Takes back the deliveries `d` that `$which` picks, with their log rows and counts. Due rows that the release is taking at this
/// moment are left to it: it drops what is no longer waiting, and waiting for its lock while holding the delivery's could
/// deadlock.
macro_rules! cancel {
    ($which:expr) => {
        concat!(
            "
WITH moved AS (
    UPDATE deliveries d SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp(), ",
            reach!("128::smallint"),
            $which,
            " AND d.state IN ('scheduled', 'queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp() FROM moved
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, run, tenant_id, channel, kind, at
), heard AS (",
            enqueue_webhook_events!(
                "
    SELECT tenant_id, channel, delivery_id, 'message.cancelled', at, delivery_id, run,
           jsonb_build_object('delivery_id', delivery_id, 'channel', channel, 'status', kind)
    FROM logged"
            ),
            "
), daily AS (",
            daily!("SELECT id, tenant_id, channel, provider, category, template, fresh FROM moved"),
            "
)
SELECT count(*) AS cancelled FROM moved"
        )
    };
}

const CANCEL: &str = cancel!(concat!(
    "
    FROM (SELECT ?::uuid AS id, ?::int4 AS tenant_id) asked
    WHERE d.message_id = asked.id AND d.id >= asked.id AND d.id < ",
    minute_after!("asked.id"),
    " AND (asked.tenant_id IS NULL OR d.tenant_id = asked.tenant_id)"
));

/// Those of a broadcast between two deliveries.
const CANCEL_PAGE: &str = cancel!(
    "
    FROM (SELECT ?::uuid AS broadcast_id, ?::int4 AS tenant_id, ?::uuid AS first, ?::uuid AS last) asked
    WHERE d.id >= asked.first AND d.id <= asked.last AND d.tenant_id = asked.tenant_id
      AND EXISTS (SELECT 1 FROM messages m WHERE m.id = d.message_id AND m.bulk_id = asked.broadcast_id)"
);

const SELECT_BULK: &str = concat!(
    "
SELECT b.refused, b.created_at, d.state, count(d.id)
FROM bulks b
LEFT JOIN messages m ON m.bulk_id = b.id AND m.id >= b.id AND m.id < ",
    minute_after!("b.id"),
    "
LEFT JOIN deliveries d ON d.message_id = m.id AND d.id >= m.id AND d.id < ",
    minute_after!("m.id"),
    "
WHERE b.id = ? AND b.tenant_id = coalesce(?, b.tenant_id)
GROUP BY b.refused, b.created_at, d.state"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_of_a_moment_is_below_every_id_of_it_and_above_those_before() {
        let at = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        assert_eq!(floor(at).to_string(), "01a3185c-507b-0000-0000-000000000000");
        assert_eq!(floor(DateTime::<Utc>::MIN_UTC), Uuid::nil());
    }

    #[test]
    fn a_text_is_searched_as_json_has_it() {
        assert_eq!(as_stored("say \"hi\"\n"), "say \\\"hi\\\"\\n");
        assert_eq!(as_stored("\""), "\\\"");
    }
}
