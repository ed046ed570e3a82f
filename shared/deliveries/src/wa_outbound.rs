//! Messages sent through WhatsApp sessions, as the list of a session's messages shows them, and the counts of both
//! directions.
//!
//! As with messages from people, content is sealed: a search decrypts the newest messages that match everything else,
//! up to a limit, and looks into them.

use chrono::{DateTime, NaiveDate, Utc};
use diesel::sql_types::{Array, Binary, Bool, Date, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{State, TenantId, contract::submission::Content};
use records::wa_inbound::SEARCH_MAX;
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::WhatsappOutboundStore;

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
    /// The content; `None` if it is too large for a list.
    pub content: Option<Content>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it is sent, if not at once.
    pub scheduled_at: Option<DateTime<Utc>>,
}

/// Selects messages; `None` does not restrict.
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
    /// Words of the content, or part of a number; case does not matter. Searched in the newest [`SEARCH_MAX`] messages.
    pub search: Option<String>,
}

/// The number of messages with these properties.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Whether they came from people.
    pub is_inbound: bool,
    /// The UTC day.
    pub day: NaiveDate,
    /// The session.
    pub session: Uuid,
    /// Their state; `None`: they came from people.
    pub state: Option<State>,
    /// `text`, `image`, …
    pub kind: String,
    /// The country prefix of the number.
    pub country: Option<String>,
    /// How many.
    pub n: i64,
}

row! {
    struct OutboundRow {
        message: Uuid as SqlUuid,
        delivery: Uuid as SqlUuid,
        session: Uuid as SqlUuid,
        recipient: String as Text,
        state: String as Text,
        is_read: bool as Bool,
        kind: Option<String> as Nullable<Text>,
        priority: String as Text,
        content: Option<Vec<u8>> as Nullable<Binary>,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
        scheduled_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    }
}

row! {
    struct CountRow {
        is_inbound: bool as Bool,
        day: NaiveDate as Date,
        session: Uuid as SqlUuid,
        state: Option<String> as Nullable<Text>,
        kind: Option<String> as Nullable<Text>,
        country: Option<String> as Nullable<Text>,
        n: i64 as Int8,
    }
}

impl WhatsappOutboundStore<'_> {
    /// Up to `limit` messages of a tenant, newest first, whose deliveries are older than `before`, after skipping
    /// `skip` of them.
    pub async fn list(
        self,
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
        self,
        tenant: TenantId,
        filter: &OutboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Outbound>> {
        let states = filter.states.as_ref().map(|states| states.iter().map(|state| state.as_str()).collect::<Vec<_>>());
        let list = List {
            content_bytes_max: CONTENT_BYTES_MAX,
            tenant: tenant.0,
            session: filter.session,
            before: before.unwrap_or(Uuid::max()),
            from: filter.from,
            to: filter.to,
            states,
            limit,
            skip,
        };
        Ok(self.unsealed(tenant, list.query().within(Some(tenant)).rows(self.store).await?))
    }

    /// One message of a tenant that goes through a WhatsApp session.
    pub async fn find(self, tenant: TenantId, message: Uuid) -> DbResult<Option<Outbound>> {
        let one = One { content_bytes_max: CONTENT_BYTES_MAX, message, tenant: tenant.0 };
        let rows = one.query().within(Some(tenant)).rows(self.store).await?;
        Ok(self.unsealed(tenant, rows).into_iter().next())
    }

    /// The number of WhatsApp messages of a tenant, in both directions, by the properties of the statistics.
    pub async fn count(
        self,
        tenant: TenantId,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> DbResult<Vec<Counted>> {
        let rows = Count { tenant: tenant.0, from, to }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(counted).collect())
    }

    fn unsealed(self, tenant: TenantId, rows: Vec<OutboundRow>) -> Vec<Outbound> {
        let open = |row: OutboundRow| {
            let content = row.content.and_then(|content| self.store.opened(sealed::CONTENT.of(tenant), content));
            Outbound {
                message: row.message,
                delivery: row.delivery,
                session: row.session,
                recipient: self.store.opened_text(sealed::RECIPIENT.of(tenant), row.recipient).unwrap_or_default(),
                // A word of a later version is shown as `queued`, because its meaning is unknown.
                state: row.state.parse().unwrap_or(State::Queued),
                is_read: row.is_read,
                kind: row.kind.unwrap_or_else(|| "text".to_owned()),
                priority: row.priority,
                content: content.and_then(|content| serde_json::from_slice(&content).ok()),
                created_at: row.created_at,
                updated_at: row.updated_at,
                scheduled_at: row.scheduled_at,
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

fn counted(CountRow { is_inbound, day, session, state, kind, country, n }: CountRow) -> Counted {
    let kind = kind.unwrap_or_else(|| "text".to_owned());
    Counted { is_inbound, day, session, state: state.and_then(|state| state.parse().ok()), kind, country, n }
}

sql!(List in "wa_outbound/list.sql" {
    content_bytes_max: i32 as Int4, tenant: i32 as Int4, session: Option<Uuid> as Nullable<SqlUuid>,
    before: Uuid as SqlUuid, from: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    to: Option<DateTime<Utc>> as Nullable<Timestamptz>, states: Option<Vec<&'static str>> as Nullable<Array<Text>>,
    limit: i64 as Int8, skip: i64 as Int8
} -> OutboundRow);
sql!(One in "wa_outbound/one.sql" {
    content_bytes_max: i32 as Int4, message: Uuid as SqlUuid, tenant: i32 as Int4
} -> OutboundRow);
sql!(Count in "wa_outbound/count.sql" {
    tenant: i32 as Int4, from: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    to: Option<DateTime<Utc>> as Nullable<Timestamptz>
} -> CountRow);
statements!(List, One, Count);
