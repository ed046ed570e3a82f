//! The webhooks of WAHA: each kept once, sealed, and worked through by the scheduler.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, acceptance::Hash};
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement};

/// A webhook to keep.
#[derive(Clone)]
pub struct NewEvent {
    /// Whose it is.
    pub tenant: TenantId,
    /// The session.
    pub session: Uuid,
    /// What makes it the same event.
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
    /// Whose it is.
    pub tenant: TenantId,
    /// The session.
    pub session: Uuid,
    /// Its name.
    pub event: String,
    /// The body as it came; `None`: it cannot be decrypted any more.
    pub body: Option<Vec<u8>>,
    /// How often it was taken up, this time included.
    pub tries: i16,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// Keeps `events` in one commit. Says of each, in order, whether it is new.
    pub async fn keep_events(&self, events: Vec<NewEvent>) -> DbResult<Vec<bool>> {
        let ids: Vec<Uuid> = events.iter().map(|_| Uuid::now_v7()).collect();
        let mut rows = Vec::with_capacity(events.len());
        for (id, event) in ids.iter().zip(events) {
            let body = self.sealer().seal(sealed::WAHA_EVENT.of(event.tenant), &event.body)?;
            rows.push((*id, NewEvent { body, ..event }));
        }
        // One lock order for all who keep the same events at once.
        rows.sort_by_key(|(_, event)| (event.session, event.dedup));
        let query = statement::<SqlUuid>(KEEP)
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(rows.iter().map(|(_, event)| event.tenant.0).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|(_, event)| event.session).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(rows.iter().map(|(_, event)| event.dedup.to_vec()).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rows.iter().map(|(_, event)| event.event.clone()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(rows.into_iter().map(|(_, event)| event.body).collect::<Vec<_>>());
        let kept: Vec<Uuid> = query.rows(self).await?;
        Ok(ids.iter().map(|id| kept.contains(id)).collect())
    }

    /// Takes up to `limit` pending events that are due; no other caller gets them for `lease_ms`.
    pub async fn take_events(&self, limit: i64, lease_ms: i32) -> DbResult<Vec<PendingEvent>> {
        type Row = (Uuid, i32, Uuid, String, Vec<u8>, i16, DateTime<Utc>);
        let query = statement::<(SqlUuid, Int4, SqlUuid, Text, Binary, Int2, Timestamptz)>(TAKE)
            .bind::<Int8, _>(limit)
            .bind::<Int4, _>(lease_ms);
        let mut rows: Vec<Row> = query.rows(self).await?;
        rows.sort_by_key(|row| row.0);
        let event = |(id, tenant, session, event, body, tries, created_at): Row| {
            let tenant = TenantId(tenant);
            let body = self.sealer().open(sealed::WAHA_EVENT.of(tenant), body).ok();
            PendingEvent { id, tenant, session, event, body, tries, created_at }
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// Notes that webhooks of these sessions came.
    pub async fn note_heard(&self, sessions: Vec<Uuid>) -> DbResult<()> {
        if sessions.is_empty() {
            return Ok(());
        }
        statement::<()>(HEARD).bind::<Array<SqlUuid>, _>(sessions).run(self).await.map(drop)
    }
}

const KEEP: &str = "
INSERT INTO waha_events (id, tenant_id, session_id, dedup, event, body)
SELECT * FROM unnest(?::uuid[], ?::int4[], ?::uuid[], ?::bytea[], ?::text[], ?::bytea[])
ON CONFLICT (session_id, dedup) DO NOTHING
RETURNING id";

const TAKE: &str = "
WITH picked AS MATERIALIZED (
    SELECT id FROM waha_events WHERE status = 'pending' AND due_at <= now() ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED
)
UPDATE waha_events e SET due_at = now() + ? * interval '1 millisecond', tries = least(e.tries, 32000) + 1
FROM picked WHERE e.id = picked.id
RETURNING e.id, e.tenant_id, e.session_id, e.event, e.body, e.tries, e.created_at";

/// Not more often than is useful.
const HEARD: &str = "
UPDATE wa_sessions SET last_event_at = now()
WHERE id = ANY (?::uuid[]) AND (last_event_at < now() - interval '5 seconds') IS NOT FALSE";
