//! Writes the side records of acceptances: business events, digest items, broadcasts.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{
    TenantId,
    acceptance::{NewBroadcast, NewDigestItem, NewEvent, SideRecord},
};
use store::{
    DbResult, Store, sealed,
    sql::{sql, statements},
};
use uuid::Uuid;

use crate::{Deliveries, SideRecordStore};

impl SideRecordStore<'_> {
    /// Writes the side records of new acceptances, within their transaction.
    pub(crate) async fn write_side_records(
        self,
        conn: &mut AsyncPgConnection,
        beside: &[(TenantId, &SideRecord)],
    ) -> DbResult<()> {
        let (mut events, mut broadcasts) = (InsertEvents::default(), InsertBroadcasts::default());
        let mut gathering: Vec<(TenantId, &NewDigestItem)> = Vec::new();
        for (tenant, one) in beside {
            match one {
                SideRecord::Event(event) => events.push(*tenant, event, self.store)?,
                SideRecord::DigestItem(item) => gathering.push((*tenant, item)),
                SideRecord::Broadcast(broadcast) => broadcasts.push(*tenant, broadcast, self.store)?,
            }
        }
        if !events.id.is_empty() {
            events.query().run_on(conn).await?;
        }
        self.store.digests().gather(conn, &gathering).await?;
        if !broadcasts.id.is_empty() {
            broadcasts.query().run_on(conn).await?;
        }
        Ok(())
    }
}

impl InsertEvents {
    fn push(&mut self, tenant: TenantId, event: &NewEvent, store: &Store) -> DbResult<()> {
        self.id.push(event.id);
        self.tenant.push(tenant.0);
        self.event_type.push(event.event_type.clone());
        self.user_id.push(event.user_id.clone());
        self.data.push(store.sealer().seal(sealed::EVENT_DATA.of(tenant), &event.data)?);
        self.matched.push(event.matched.iter().map(Uuid::to_string).collect::<Vec<_>>().join(","));
        Ok(())
    }
}

impl InsertBroadcasts {
    fn push(&mut self, tenant: TenantId, broadcast: &NewBroadcast, store: &Store) -> DbResult<()> {
        self.id.push(broadcast.id);
        self.tenant.push(tenant.0);
        self.definition.push(store.sealer().seal(sealed::BROADCAST.of(tenant), &broadcast.definition)?);
        self.scheduled_at.push(broadcast.scheduled_at);
        Ok(())
    }
}

sql!(
    #[derive(Default)]
    InsertEvents in "side_records/insert_events.sql" {
        id: Vec<Uuid> as Array<SqlUuid>,
        tenant: Vec<i32> as Array<Int4>,
        event_type: Vec<String> as Array<Text>,
        user_id: Vec<Option<String>> as Array<Nullable<Text>>,
        data: Vec<Vec<u8>> as Array<Binary>,
        matched: Vec<String> as Array<Text>,
    }
);
sql!(
    #[derive(Default)]
    InsertBroadcasts in "side_records/insert_broadcasts.sql" {
        id: Vec<Uuid> as Array<SqlUuid>,
        tenant: Vec<i32> as Array<Int4>,
        definition: Vec<Vec<u8>> as Array<Binary>,
        scheduled_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    }
);
statements!(InsertEvents, InsertBroadcasts);
