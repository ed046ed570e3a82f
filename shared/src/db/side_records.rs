//! What an acceptance writes beside its messages, in the same commit: events from elsewhere, digest items, broadcasts.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement};
use crate::domain::TenantId;

/// What happened in another system.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its id.
    pub id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Whom it is about.
    pub user_id: Option<String>,
    /// Its data as JSON.
    pub data: Vec<u8>,
    /// The rules that matched.
    pub matched: Vec<Uuid>,
}

/// An event that gathers with others of its rule, person and key.
#[derive(Clone, Debug)]
pub struct NewDigestItem {
    /// The digest's id, should this open a window.
    pub digest: Uuid,
    /// The rule.
    pub rule: Uuid,
    /// The person.
    pub user_id: String,
    /// What keeps windows apart: a hash of it, or nothing.
    pub key: String,
    /// The event.
    pub event: Uuid,
    /// Its data as JSON.
    pub data: Vec<u8>,
    /// The event's type.
    pub event_type: String,
    /// When the window opens, should this open it.
    pub opened_at: DateTime<Utc>,
    /// When it closes then; an open one is prolonged to it.
    pub closes_at: DateTime<Utc>,
    /// When it closes at the latest.
    pub latest_at: DateTime<Utc>,
    /// So many items close it at once.
    pub max_items: i32,
}

/// A broadcast.
#[derive(Clone, Debug)]
pub struct NewBroadcast {
    /// Its id.
    pub id: Uuid,
    /// The notification and its target, as JSON.
    pub definition: Vec<u8>,
    /// When it begins, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
}

/// What an acceptance may write beside messages.
#[derive(Clone, Debug)]
pub enum SideRecord {
    /// What happened elsewhere.
    Event(NewEvent),
    /// An event that gathers with others.
    DigestItem(NewDigestItem),
    /// A broadcast.
    Broadcast(NewBroadcast),
}

impl SideRecord {
    /// Stands for the request as a whole where it comes first.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Event(event) => event.id,
            Self::DigestItem(item) => item.event,
            Self::Broadcast(broadcast) => broadcast.id,
        }
    }
}

impl Store {
    /// Writes what stands beside acceptances that are new, within their transaction.
    pub(super) async fn write_side_records(
        &self,
        conn: &mut AsyncPgConnection,
        beside: &[(TenantId, &SideRecord)],
    ) -> DbResult<()> {
        let (mut events, mut broadcasts) = (EventColumns::default(), BroadcastColumns::default());
        let mut gathering: Vec<(TenantId, &NewDigestItem)> = Vec::new();
        for (tenant, one) in beside {
            match one {
                SideRecord::Event(event) => events.push(*tenant, event, self)?,
                SideRecord::DigestItem(item) => gathering.push((*tenant, item)),
                SideRecord::Broadcast(broadcast) => broadcasts.push(*tenant, broadcast, self)?,
            }
        }
        if !events.id.is_empty() {
            RunQueryDsl::execute(events.bind(), conn).await?;
        }
        self.gather(conn, &gathering).await?;
        if !broadcasts.id.is_empty() {
            RunQueryDsl::execute(broadcasts.bind(), conn).await?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct EventColumns {
    id: Vec<Uuid>,
    tenant: Vec<i32>,
    event_type: Vec<String>,
    user_id: Vec<Option<String>>,
    data: Vec<Vec<u8>>,
    /// All rules of an event, with commas between: arrays of arrays must be rectangular.
    matched: Vec<String>,
}

impl EventColumns {
    fn push(&mut self, tenant: TenantId, event: &NewEvent, store: &Store) -> DbResult<()> {
        self.id.push(event.id);
        self.tenant.push(tenant.0);
        self.event_type.push(event.event_type.clone());
        self.user_id.push(event.user_id.clone());
        self.data.push(store.sealer().seal(sealed::EVENT_DATA.of(tenant), &event.data)?);
        self.matched.push(event.matched.iter().map(Uuid::to_string).collect::<Vec<_>>().join(","));
        Ok(())
    }

    fn bind(self) -> super::Statement<()> {
        statement(INSERT_EVENTS)
            .bind::<Array<SqlUuid>, _>(self.id)
            .bind::<Array<Int4>, _>(self.tenant)
            .bind::<Array<Text>, _>(self.event_type)
            .bind::<Array<Nullable<Text>>, _>(self.user_id)
            .bind::<Array<Binary>, _>(self.data)
            .bind::<Array<Text>, _>(self.matched)
    }
}

#[derive(Default)]
struct BroadcastColumns {
    id: Vec<Uuid>,
    tenant: Vec<i32>,
    definition: Vec<Vec<u8>>,
    scheduled_at: Vec<Option<DateTime<Utc>>>,
}

impl BroadcastColumns {
    fn push(&mut self, tenant: TenantId, broadcast: &NewBroadcast, store: &Store) -> DbResult<()> {
        self.id.push(broadcast.id);
        self.tenant.push(tenant.0);
        self.definition.push(store.sealer().seal(sealed::BROADCAST.of(tenant), &broadcast.definition)?);
        self.scheduled_at.push(broadcast.scheduled_at);
        Ok(())
    }

    fn bind(self) -> super::Statement<()> {
        statement(INSERT_BROADCASTS)
            .bind::<Array<SqlUuid>, _>(self.id)
            .bind::<Array<Int4>, _>(self.tenant)
            .bind::<Array<Binary>, _>(self.definition)
            .bind::<Array<Nullable<Timestamptz>>, _>(self.scheduled_at)
    }
}

const INSERT_EVENTS: &str = "
INSERT INTO event_log (id, tenant_id, event_type, user_id, data, matched)
SELECT id, tenant_id, event_type, user_id, data, string_to_array(matched, ',')::uuid[]
FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::text[], ?::bytea[], ?::text[]) AS e(id, tenant_id, event_type, user_id, data, matched)";

const INSERT_BROADCASTS: &str = "
INSERT INTO broadcasts (id, tenant_id, definition, status, scheduled_at)
SELECT id, tenant_id, definition, CASE WHEN scheduled_at IS NULL THEN 'running' ELSE 'scheduled' END, scheduled_at
FROM unnest(?::uuid[], ?::int4[], ?::bytea[], ?::timestamptz[]) AS b(id, tenant_id, definition, scheduled_at)";
