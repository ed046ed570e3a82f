//! Writes the side records of acceptances: business events, digest items, broadcasts.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{
    TenantId,
    acceptance::{NewBroadcast, NewDigestItem, NewEvent, SideRecord},
};
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement};

impl Store {
    /// Writes the side records of new acceptances, within their transaction.
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
    /// All rule ids of an event, separated by commas: PostgreSQL's arrays of arrays must be rectangular.
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
