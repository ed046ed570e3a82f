//! What was sent through WhatsApp sessions, as the list of a session's messages shows it, and the counts of both directions.
//!
//! As with messages from people, content is sealed: a search opens the newest messages that match everything else, up to a
//! bound, and looks into them.

use chrono::{DateTime, NaiveDate, Utc};
use diesel::sql_types::{Array, Binary, Bool, Date, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{State, TenantId, contract::submission::Content};
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement, wa_inbound::SEARCH_MAX};

/// Messages opened at once in a search.
const SEARCH_STEP: i64 = 200;
/// Larger contents (files) are not read for a list.
const CONTENT_BYTES_MAX: i32 = 256 * 1024;

/// A sent message, or one that waits to be sent.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// The message.
    pub message: Uuid,
    /// Its delivery, by whose id the list is ordered.
    pub delivery: Uuid,
    /// The session that carries it.
    pub session: Uuid,
    /// To whom.
    pub recipient: String,
    /// Where it stands.
    pub state: State,
    /// Whether the person saw it.
    pub is_read: bool,
    /// `text`, `image`, …
    pub kind: String,
    /// `low`, `normal`, `high` or `urgent`.
    pub priority: String,
    /// What it says; `None` where it is too large for a list.
    pub content: Option<Content>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it is to be sent, if later than that.
    pub scheduled_at: Option<DateTime<Utc>>,
}

/// Which messages. What is not given does not restrict.
#[derive(Clone, Debug, Default)]
pub struct OutboundFilter {
    /// The session that carries them.
    pub session: Option<Uuid>,
    /// Where they stand: one of these.
    pub states: Option<Vec<State>>,
    /// Accepted at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Accepted at this time or earlier.
    pub to: Option<DateTime<Utc>>,
    /// Words of the content, or part of a number, in any case; looked for in the newest [`SEARCH_MAX`] messages.
    pub search: Option<String>,
}

/// How many messages have these properties in common.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Whether they came from people.
    pub is_inbound: bool,
    /// The UTC day.
    pub day: NaiveDate,
    /// The session.
    pub session: Uuid,
    /// Where they stand; `None`: they came from people.
    pub state: Option<State>,
    /// `text`, `image`, …
    pub kind: String,
    /// The country prefix of the number.
    pub country: Option<String>,
    /// How many.
    pub n: i64,
}

type Row = (
    (Uuid, Uuid, Uuid, String, String, bool),
    (Option<String>, String, Option<Vec<u8>>, DateTime<Utc>, DateTime<Utc>, Option<DateTime<Utc>>),
);
type SqlRow = (
    (SqlUuid, SqlUuid, SqlUuid, Text, Text, Bool),
    (Nullable<Text>, Text, Nullable<Binary>, Timestamptz, Timestamptz, Nullable<Timestamptz>),
);
type CountRow = (bool, NaiveDate, Uuid, Option<String>, Option<String>, Option<String>, i64);

impl Store {
    /// Up to `limit` messages of a tenant, newest first, whose deliveries are older than `before`, after skipping `skip` of them.
    pub async fn list_outbound(
        &self,
        tenant: TenantId,
        filter: &OutboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Outbound>> {
        let Some(words) = filter.search.as_deref().map(str::to_lowercase).filter(|words| !words.is_empty()) else {
            return self.outbound_page(tenant, filter, before, skip, limit).await;
        };
        let (skip, limit) = (usize::try_from(skip).unwrap_or(0), usize::try_from(limit).unwrap_or(0));
        let (mut found, mut before, mut seen) = (Vec::new(), before, 0);
        while seen < SEARCH_MAX && found.len() < skip + limit {
            let page = self.outbound_page(tenant, filter, before, 0, SEARCH_STEP).await?;
            let Some(last) = page.last() else { break };
            (before, seen) = (Some(last.delivery), seen + SEARCH_STEP);
            found.extend(page.into_iter().filter(|message| message.says(&words)));
        }
        Ok(found.into_iter().skip(skip).take(limit).collect())
    }

    async fn outbound_page(
        &self,
        tenant: TenantId,
        filter: &OutboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Outbound>> {
        let states = filter.states.as_ref().map(|states| states.iter().map(|state| state.as_str()).collect::<Vec<_>>());
        let query = statement::<SqlRow>(LIST)
            .bind::<Int4, _>(CONTENT_BYTES_MAX)
            .bind::<Int4, _>(tenant.0)
            .bind::<Nullable<SqlUuid>, _>(filter.session)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Nullable<Timestamptz>, _>(filter.from)
            .bind::<Nullable<Timestamptz>, _>(filter.to)
            .bind::<Nullable<Array<Text>>, _>(states)
            .bind::<Int8, _>(limit)
            .bind::<Int8, _>(skip)
            .within(Some(tenant));
        Ok(self.unsealed(tenant, query.rows(self).await?))
    }

    /// One message of a tenant that a WhatsApp session carries.
    pub async fn outbound(&self, tenant: TenantId, message: Uuid) -> DbResult<Option<Outbound>> {
        let query = statement::<SqlRow>(ONE)
            .bind::<Int4, _>(CONTENT_BYTES_MAX)
            .bind::<SqlUuid, _>(message)
            .bind::<Int4, _>(tenant.0)
            .within(Some(tenant));
        Ok(self.unsealed(tenant, query.rows(self).await?).into_iter().next())
    }

    /// How many WhatsApp messages of a tenant there were, both ways, by what statistics tell apart.
    pub async fn count_whatsapp(
        &self,
        tenant: TenantId,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> DbResult<Vec<Counted>> {
        type SqlCount = (Bool, Date, SqlUuid, Nullable<Text>, Nullable<Text>, Nullable<Text>, Int8);
        let query = statement::<SqlCount>(COUNT)
            .bind::<Int4, _>(tenant.0)
            .bind::<Nullable<Timestamptz>, _>(from)
            .bind::<Nullable<Timestamptz>, _>(to)
            .within(Some(tenant));
        let rows: Vec<CountRow> = query.rows(self).await?;
        Ok(rows.into_iter().map(counted).collect())
    }

    fn unsealed(&self, tenant: TenantId, rows: Vec<Row>) -> Vec<Outbound> {
        let open = |((message, delivery, session, recipient, state, is_read), rest): Row| {
            let (kind, priority, content, created_at, updated_at, scheduled_at) = rest;
            let content = content.and_then(|content| self.opened(sealed::CONTENT.of(tenant), content));
            Outbound {
                message,
                delivery,
                session,
                recipient: self.opened_text(sealed::RECIPIENT.of(tenant), recipient).unwrap_or_default(),
                // A word of a later version is shown as what it is not yet: an end.
                state: state.parse().unwrap_or(State::Queued),
                is_read,
                kind: kind.unwrap_or_else(|| "text".to_owned()),
                priority,
                content: content.and_then(|content| serde_json::from_slice(&content).ok()),
                created_at,
                updated_at,
                scheduled_at,
            }
        };
        rows.into_iter().map(open).collect()
    }
}

impl Outbound {
    fn says(&self, words: &str) -> bool {
        let text = self.content.as_ref().and_then(|content| content.message.as_deref()).unwrap_or_default();
        [text, &self.recipient].iter().any(|text| text.to_lowercase().contains(words))
    }
}

fn counted((is_inbound, day, session, state, kind, country, n): CountRow) -> Counted {
    let kind = kind.unwrap_or_else(|| "text".to_owned());
    Counted { is_inbound, day, session, state: state.and_then(|state| state.parse().ok()), kind, country, n }
}

/// A delivery lies right behind its message, so one range of ids bounds both.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT m.id, d.id, d.line, d.recipient, d.state, ",
            "EXISTS (SELECT 1 FROM delivery_events e WHERE e.delivery_id = d.id AND e.kind IN ('read', 'played')), ",
            "d.kind, m.priority, CASE WHEN octet_length(coalesce(m.content, b.content)) <= ? THEN coalesce(m.content, b.content) END, ",
            "m.created_at, d.updated_at, m.scheduled_at ",
            $rest
        )
    };
}

const LIST: &str = select!(
    "FROM (
    SELECT * FROM deliveries
    WHERE line = ANY (ARRAY(SELECT id FROM lines WHERE tenant_id = ? AND kind = 'session' AND id = coalesce(?, id))) AND tenant_id = ?
      AND id < ? AND id >= coalesce(uuid7_floor(?), '00000000-0000-0000-0000-000000000000'::uuid)
      AND id < coalesce(uuid7_floor(? + interval '1 millisecond'), 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
      AND state = ANY (coalesce(?::text[], ARRAY[state]))
    ORDER BY id DESC LIMIT ? OFFSET ?
) d JOIN messages m ON m.id = d.message_id LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY d.id DESC"
);

const ONE: &str = select!(
    "FROM messages m JOIN deliveries d ON d.message_id = m.id AND d.line IS NOT NULL LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE m.id = ? AND m.tenant_id = ?"
);

const COUNT: &str = "
WITH asked AS (SELECT ?::int4 AS tenant_id, coalesce(?::timestamptz, '-infinity') AS low, coalesce(?::timestamptz, 'infinity') AS high
), bounds AS (
    SELECT tenant_id, low, high,
           CASE WHEN isfinite(low) THEN uuid7_floor(low) ELSE '00000000-0000-0000-0000-000000000000'::uuid END AS low_id,
           CASE WHEN isfinite(high) THEN uuid7_floor(high + interval '1 millisecond') ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid END AS high_id
    FROM asked
), sent AS (
    SELECT (to_timestamp(('x' || translate(left(d.id::text, 13), '-', ''))::bit(48)::bigint / 1000.0) AT TIME ZONE 'UTC')::date AS day,
           d.line, d.state, d.kind, d.country
    FROM bounds b JOIN lines l ON l.tenant_id = b.tenant_id AND l.kind = 'session'
    JOIN deliveries d ON d.line = l.id AND d.tenant_id = b.tenant_id AND d.id >= b.low_id AND d.id < b.high_id
)
SELECT false, day, line, state, kind, country, count(*) FROM sent GROUP BY day, line, state, kind, country
UNION ALL
SELECT true, (i.created_at AT TIME ZONE 'UTC')::date, i.session_id, NULL::text, i.kind, i.country, count(*)
FROM bounds b JOIN wa_inbound i ON i.tenant_id = b.tenant_id AND i.id >= b.low_id AND i.id < b.high_id
GROUP BY 2, 3, 5, 6";
