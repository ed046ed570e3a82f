//! The webhooks of WAHA: each is stored once, sealed, and processed by the scheduler.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, acceptance::Hash};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::WahaEventStore;

/// A webhook to keep.
#[derive(Clone)]
pub struct NewEvent {
    /// The tenant of the session.
    pub tenant: TenantId,
    /// The session.
    pub session: Uuid,
    /// The hash that identifies the event.
    pub dedup: Hash,
    /// Its name.
    pub event: String,
    /// The body as it came.
    pub body: Vec<u8>,
}

/// A webhook to work through.
#[derive(Clone)]
pub struct PendingEvent {
    /// Its row.
    pub id: Uuid,
    /// The tenant of the session.
    pub tenant: TenantId,
    /// The session.
    pub session: Uuid,
    /// Its name.
    pub event: String,
    /// The body as received; `None`: it cannot be decrypted.
    pub body: Option<Vec<u8>>,
    /// How often it was taken, including now.
    pub tries: i16,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

row! {
    struct Taken {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        session_id: Uuid as SqlUuid,
        event: String as Text,
        body: Vec<u8> as Binary,
        tries: i16 as Int2,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

impl WahaEventStore<'_> {
    /// Stores `events` in one commit. Returns for each, in order, whether it is new.
    pub async fn insert(self, events: Vec<NewEvent>) -> DbResult<Vec<bool>> {
        let ids: Vec<Uuid> = events.iter().map(|_| Uuid::now_v7()).collect();
        let mut rows = Vec::with_capacity(events.len());
        for (id, event) in ids.iter().zip(events) {
            let body = self.store.sealer().seal(sealed::WAHA_EVENT.of(event.tenant), &event.body)?;
            rows.push((*id, NewEvent { body, ..event }));
        }
        // All callers that store the same events use one lock order.
        rows.sort_by_key(|(_, event)| (event.session, event.dedup));
        let keep = Keep {
            ids: rows.iter().map(|(id, _)| *id).collect(),
            tenants: rows.iter().map(|(_, event)| event.tenant.0).collect(),
            sessions: rows.iter().map(|(_, event)| event.session).collect(),
            dedups: rows.iter().map(|(_, event)| event.dedup.to_vec()).collect(),
            events: rows.iter().map(|(_, event)| event.event.clone()).collect(),
            bodies: rows.into_iter().map(|(_, event)| event.body).collect(),
        };
        let kept = keep.query().rows(self.store).await?;
        Ok(ids.iter().map(|id| kept.contains(id)).collect())
    }

    /// Takes up to `limit` pending events that are due; no other caller gets them for `lease_ms`.
    pub async fn take(self, limit: i64, lease_ms: i32) -> DbResult<Vec<PendingEvent>> {
        let mut rows = Take { limit, lease_ms }.query().rows(self.store).await?;
        rows.sort_by_key(|row| row.id);
        let event = |Taken { id, tenant_id, session_id, event, body, tries, created_at }| {
            let tenant = TenantId(tenant_id);
            let body = self.store.sealer().open(sealed::WAHA_EVENT.of(tenant), body).ok();
            PendingEvent { id, tenant, session: session_id, event, body, tries, created_at }
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// Records that webhooks of these sessions arrived.
    pub async fn note_heard(self, sessions: Vec<Uuid>) -> DbResult<()> {
        if sessions.is_empty() {
            return Ok(());
        }
        Heard { sessions }.query().run(self.store).await.map(drop)
    }
}

sql!(Keep in "waha_events/keep.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, tenants: Vec<i32> as Array<Int4>, sessions: Vec<Uuid> as Array<SqlUuid>,
    dedups: Vec<Vec<u8>> as Array<Binary>, events: Vec<String> as Array<Text>, bodies: Vec<Vec<u8>> as Array<Binary>
} -> Uuid as SqlUuid);
sql!(Take in "waha_events/take.sql" { limit: i64 as Int8, lease_ms: i32 as Int4 } -> Taken);
sql!(Heard in "waha_events/heard.sql" { sessions: Vec<Uuid> as Array<SqlUuid> });
statements!(Keep, Take, Heard);
