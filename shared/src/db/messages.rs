//! Messages as their producers ask for them: one, its log, a filtered list, a bulk's counts, and taking one back.
//!
//! A scope of `None` means every tenant. Deliveries are made right after their message, and messages right after their
//! bulk, by one process: their ids lie within a minute of each other. With that range given, only the partitions in
//! question are opened, and even a poor plan reads no more than a minute's rows.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Statement, Store, statement};
use crate::domain::{Address, BulkId, Channel, DeliveryId, EventKind, MessageId, OutcomeClass, State, TenantId};

/// Messages looked at by the first statement of a search; enough for any page without a filter.
const WINDOW_MIN: i64 = 1000;
/// Messages looked at by one statement: about a quarter of a second.
const WINDOW_MAX: i64 = 16_000;
/// How long a search goes on before it answers with what it has.
const SEARCH_TIME: Duration = Duration::from_secs(2);

/// A message with its deliveries.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
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
    /// Who carried it last.
    pub provider: Option<String>,
    /// Calls to providers so far.
    pub attempts: i64,
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
    (Nullable<Binary>, Nullable<Timestamptz>, Nullable<Timestamptz>, Timestamptz),
);
type MessageRow = (
    (Uuid, Option<Uuid>, Option<String>, Option<String>, String, String, Option<String>),
    (Option<Vec<u8>>, Option<DateTime<Utc>>, Option<DateTime<Utc>>, DateTime<Utc>),
);
type SqlDelivery = (SqlUuid, SqlUuid, Text, Text, Text, Nullable<Text>, Int8, Timestamptz);
type DeliveryRow = (Uuid, Uuid, String, String, String, Option<String>, i64, DateTime<Utc>);
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
        let rows: Vec<MessageRow> = query.rows(self).await?;
        Ok(self.with_deliveries(rows).await?.pop())
    }

    /// A page of messages of the tenant, newest first. A filter that hardly anything passes could read through every
    /// message there is; the search ends when its time is up, and says where to go on.
    pub async fn messages(&self, scope: Option<TenantId>, filter: MessageFilter, page: Page) -> DbResult<MessagePage> {
        let (mut ids, next) = self.search(&Search::new(scope, filter, page.before), page.skip + page.limit).await?;
        let ids = ids.split_off(page.skip.min(ids.len()));
        let query = statement::<SqlMessage>(SELECT_MANY).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<MessageRow> = query.rows(self).await?;
        Ok(MessagePage { messages: self.with_deliveries(rows).await?, next: next.map(MessageId) })
    }

    /// The ids of the first `wanted` messages that match, and where to go on if there may be more.
    async fn search(&self, search: &Search, wanted: usize) -> DbResult<(Vec<Uuid>, Option<Uuid>)> {
        let (started, mut high, mut window) = (Instant::now(), search.high, WINDOW_MIN);
        let mut ids: Vec<Uuid> = Vec::new();
        loop {
            // One more than wanted tells whether there are more.
            ids.extend(search.matches(high, window, count(wanted + 1 - ids.len())).rows::<Uuid>(self).await?);
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
            (high, window) = (end, (window * 2).min(WINDOW_MAX));
        }
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
        let rows: Vec<EventRow> = query.rows(self).await?;
        Ok(Some((message, rows.into_iter().filter_map(event).collect())))
    }

    /// Takes back whatever of a message waits to be sent, with its log row and counter; says how many deliveries.
    /// What a worker has claimed meanwhile is left alone.
    pub async fn cancel(&self, scope: Option<TenantId>, id: MessageId) -> DbResult<i64> {
        let query = statement::<Int8>(CANCEL).bind::<SqlUuid, _>(id.0).bind::<Nullable<Int4>, _>(number(scope));
        query.row(self).await
    }

    /// Where the deliveries of a bulk stand.
    pub async fn bulk_counts(&self, scope: Option<TenantId>, id: BulkId) -> DbResult<Option<BulkCounts>> {
        let query = statement::<(Int4, Timestamptz, Nullable<Text>, Int8)>(SELECT_BULK)
            .bind::<SqlUuid, _>(id.0)
            .bind::<Nullable<Int4>, _>(number(scope));
        let rows: Vec<(i32, DateTime<Utc>, Option<String>, i64)> = query.rows(self).await?;
        let Some(&(refused, created_at, ..)) = rows.first() else { return Ok(None) };
        let states =
            rows.iter().filter_map(|(_, _, state, count)| Some((state.as_deref()?.parse().ok()?, *count))).collect();
        Ok(Some(BulkCounts { refused, created_at, states }))
    }

    async fn with_deliveries(&self, rows: Vec<MessageRow>) -> DbResult<Vec<StoredMessage>> {
        let mut messages: Vec<StoredMessage> = rows.into_iter().map(StoredMessage::from).collect();
        let ids: Vec<Uuid> = messages.iter().map(|message| message.id.0).collect();
        let query = statement::<SqlDelivery>(SELECT_DELIVERIES).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<DeliveryRow> = if messages.is_empty() { Vec::new() } else { query.rows(self).await? };
        for row in rows {
            let owner = messages.iter_mut().find(|message| message.id.0 == row.0);
            if let Some((owner, delivery)) = owner.zip(delivery(row)) {
                owner.deliveries.push(delivery);
            }
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
            .bind::<Nullable<Text>, _>(filter.status.map(State::as_str))
            .bind::<Nullable<Text>, _>(filter.channel.map(Channel::as_str))
            .bind::<Nullable<Text>, _>(filter.user_id.clone())
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
fn floor(at: DateTime<Utc>) -> Uuid {
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
        let (content, scheduled_at, expires_at, created_at) = tail;
        Self {
            id: MessageId(id),
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
fn delivery((_, id, channel, recipient, state, provider, attempts, updated_at): DeliveryRow) -> Option<StoredDelivery> {
    let (channel, state) = (channel.parse().ok()?, state.parse().ok()?);
    Some(StoredDelivery {
        id: DeliveryId(id),
        channel,
        recipient: Address::new(recipient),
        state,
        provider,
        attempts,
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
       coalesce(m.content, b.content), m.scheduled_at, m.expires_at, m.created_at
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

/// Walks the ids downwards, at most a window of them, and stops at the limit: a list costs what it shows. `f` is one row
/// of constants that the planner folds in. A tenant's list compares and orders by (tenant, id): were the tenant a mere
/// equation, the planner could walk everybody's ids instead, and a quiet tenant's list would read through a busy one's.
macro_rules! search {
    ($range:literal, $order:literal) => {
        concat!(
            "
SELECT m.id
FROM (SELECT ?::text AS status, ?::text AS channel, ?::text AS user_id, lower(?::text) AS part, lower(?::text) AS json_part) f
CROSS JOIN (
    SELECT m.* FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS low, ?::uuid AS high) r CROSS JOIN messages m
    WHERE m.id >= r.low AND m.id < r.high AND ",
            $range,
            " ORDER BY ",
            $order,
            " LIMIT ?) m
LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE (f.user_id IS NULL OR m.user_id = f.user_id)
  AND ((f.status IS NULL AND f.channel IS NULL) OR EXISTS (
        SELECT 1 FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
            minute_after!("m.id"),
            " AND (f.status IS NULL OR d.state = f.status) AND (f.channel IS NULL OR d.channel = f.channel)))
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

const SELECT_MANY: &str = "
SELECT m.id, m.bulk_id, m.user_id, m.category, m.priority, m.source, m.request_id,
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536 THEN coalesce(m.content, b.content) END,
       m.scheduled_at, m.expires_at, m.created_at
FROM unnest(?::uuid[]) AS asked(id) CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = asked.id OFFSET 0) m
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY m.id DESC";

/// Fenced in, so that each message looks up its own deliveries instead of all together reading a range of them.
const SELECT_DELIVERIES: &str = concat!(
    "
SELECT d.message_id, d.id, d.channel, d.recipient, d.state, d.provider,
       (SELECT count(*) FROM delivery_events e WHERE e.delivery_id = d.id AND e.provider IS NOT NULL), d.updated_at
FROM unnest(?::uuid[]) AS asked(id) CROSS JOIN LATERAL (
    SELECT * FROM deliveries d WHERE d.message_id = asked.id AND d.id >= asked.id AND d.id < ",
    minute_after!("asked.id"),
    " OFFSET 0) d
ORDER BY d.id"
);

const SELECT_EVENTS: &str = "
SELECT e.delivery_id, e.run, e.kind, e.at, e.provider, e.outcome, e.code, e.detail, e.duration_ms, e.provider_ref
FROM unnest(?::uuid[]) AS asked(id) JOIN delivery_events@ e ON e.delivery_id = asked.id
ORDER BY e.at, e.run, e.kind";

/// Due rows that the release is taking at this moment are left to it: it drops what is no longer waiting, and waiting for
/// its lock while holding the delivery's could deadlock.
const CANCEL: &str = concat!(
    "
WITH moved AS (
    UPDATE deliveries d SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp()
    FROM (SELECT ?::uuid AS id, ?::int4 AS tenant_id) asked
    WHERE d.message_id = asked.id AND d.id >= asked.id AND d.id < ",
    minute_after!("asked.id"),
    " AND (asked.tenant_id IS NULL OR d.tenant_id = asked.tenant_id) AND d.state IN ('scheduled', 'queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp() FROM moved
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), counted AS (
    INSERT INTO event_counts (minute, tenant_id, channel, kind, n)
    SELECT date_trunc('minute', at) AS minute, tenant_id, channel, kind, count(*) FROM logged
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (minute, tenant_id, channel, kind) DO UPDATE SET n = event_counts.n + excluded.n
)
SELECT count(*) AS cancelled FROM moved"
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
