//! Deliveries that wait in a line and are no longer worth sending: a claim would say so, but behind a session that does not work no
//! claim comes.
//!
//! Deliveries of the version before, and those that its processes park during an upgrade, come without a time. [`Store::fill_expiry`]
//! takes it from their messages.

use diesel::sql_types::{Array, Int4, Int8, Uuid as SqlUuid};
use domain::DeliveryId;
use uuid::Uuid;

use super::{DbResult, Store, statement};

impl Store {
    /// Takes up to `limit` waiting deliveries whose time has run out, with the run that their rows are at. They are the caller's
    /// for `lease_ms`; then the next one gets them.
    pub async fn take_expired(&self, limit: i64, lease_ms: i32) -> DbResult<Vec<(DeliveryId, i32)>> {
        let query = statement::<(SqlUuid, Int4)>(TAKE).bind::<Int4, _>(lease_ms).bind::<Int8, _>(limit);
        let rows: Vec<(Uuid, i32)> = query.rows(self).await?;
        Ok(rows.into_iter().map(|(id, run)| (DeliveryId(id), run)).collect())
    }

    /// Looks at up to `limit` waiting deliveries behind `after`, in the order of their ids, and gives those that lack their message's
    /// time that time. Returns the last one that was looked at; `None`: there are no more.
    pub async fn fill_expiry(&self, after: DeliveryId, limit: i64) -> DbResult<Option<DeliveryId>> {
        let query = statement::<Array<SqlUuid>>(FILL).bind::<SqlUuid, _>(after.0).bind::<Int8, _>(limit);
        let last: Vec<Uuid> = query.row(self).await?;
        Ok(last.first().copied().map(DeliveryId))
    }

    /// Takes deliveries out of their lines, where they wait at these runs.
    pub async fn unpark(&self, deliveries: &[(DeliveryId, i32)]) -> DbResult<()> {
        let (ids, runs): (Vec<Uuid>, Vec<i32>) = deliveries.iter().map(|(id, run)| (id.0, *run)).unzip();
        let query = statement::<()>(UNPARK).bind::<Array<SqlUuid>, _>(ids).bind::<Array<Int4>, _>(runs);
        query.run(self).await.map(drop)
    }
}

const TAKE: &str = "
UPDATE parked SET expires_at = now() + ? * interval '1 millisecond'
WHERE delivery_id = ANY (ARRAY(
    SELECT delivery_id FROM parked WHERE expires_at <= now() ORDER BY expires_at LIMIT ? FOR UPDATE SKIP LOCKED))
RETURNING delivery_id, run";

/// Rows that another transaction holds are left out: their deliveries are just being released.
const FILL: &str = "
WITH page AS MATERIALIZED (
    SELECT delivery_id, line, expires_at FROM parked WHERE delivery_id > ? ORDER BY delivery_id LIMIT ?
), missing AS MATERIALIZED (
    SELECT p.delivery_id FROM parked p
    WHERE p.delivery_id = ANY (ARRAY(
        SELECT g.delivery_id FROM page g JOIN lines l ON l.id = g.line JOIN deliveries d ON d.id = g.delivery_id
        JOIN messages m ON m.id = d.message_id
        WHERE g.expires_at IS NULL AND l.kind = 'session' AND m.expires_at IS NOT NULL))
    ORDER BY p.delivery_id FOR UPDATE SKIP LOCKED
), filled AS (
    UPDATE parked p SET expires_at = m.expires_at
    FROM missing x JOIN deliveries d ON d.id = x.delivery_id JOIN messages m ON m.id = d.message_id
    WHERE p.delivery_id = x.delivery_id
)
SELECT ARRAY(SELECT delivery_id FROM page ORDER BY delivery_id DESC LIMIT 1)";

/// Lines are locked before what is parked in them, as a release does.
const UNPARK: &str = "
WITH gone AS (SELECT id, run FROM unnest(?::uuid[], ?::int4[]) AS u(id, run)
), held AS MATERIALIZED (
    SELECT l.id FROM lines l
    WHERE l.id IN (SELECT p.line FROM gone JOIN parked p ON p.delivery_id = gone.id AND p.run = gone.run)
    ORDER BY l.id FOR UPDATE
)
DELETE FROM parked p USING gone
WHERE p.delivery_id = gone.id AND p.run = gone.run AND (SELECT count(*) FROM held) >= 0";
