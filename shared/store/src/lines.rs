//! Lines: pacing queues. A delivery waits in one for a slot of a WhatsApp session, or for its tenant's turn.
//!
//! A statement that counts the slots of a line locks its row, so a limit holds with any number of workers. A release
//! is only a hint: the claim takes the slot ([`Store::claim`]).

use diesel::sql_types::{Double, Int4, Int8, Text, Uuid as SqlUuid};
use domain::{DeliveryId, TenantId, channel::Route};
use uuid::Uuid;

use super::{
    DbResult, Statement, Store,
    release::{Released, SqlRow, boxed},
    statement,
};

impl Store {
    /// Takes deliveries with a free slot out of up to `limit` sessions' lines, highest rank first, and puts them into
    /// outbox rows to publish now. Two schedulers never take the same delivery.
    pub async fn release_sessions(&self, limit: i64, relay_after_ms: i32) -> DbResult<Released> {
        let query = statement::<SqlRow>(RELEASE_SESSIONS).bind::<Int8, _>(limit).bind::<Int4, _>(relay_after_ms);
        Ok(Released::of(query.rows(self).await?))
    }

    /// Takes up to `room` deliveries of a route out of the tenants' shares, in equal parts, and puts them into outbox
    /// rows. Tenants take turns: the one served longest ago comes first.
    pub async fn release_shares(&self, route: Route, room: i32, relay_after_ms: i32) -> DbResult<Released> {
        let query = statement::<SqlRow>(RELEASE_SHARES)
            .bind::<Text, _>(route.to_string())
            .bind::<Int4, _>(room.min(SHARES_MAX))
            .bind::<Int4, _>(room)
            .bind::<Int4, _>(relay_after_ms);
        Ok(Released::of(query.rows(self).await?))
    }

    /// The routes in which a tenant's share has waiting deliveries.
    pub async fn routes_with_shares(&self) -> DbResult<Vec<Route>> {
        let rows: Vec<String> = statement::<Text>(SHARE_ROUTES).rows(self).await?;
        let route = |text: &String| {
            let (channel, lane) = text.split_once('.')?;
            Some(Route { channel: channel.parse().ok()?, lane: lane.parse().ok()? })
        };
        Ok(rows.iter().filter_map(route).collect())
    }

    /// The number of deliveries that a line could let through now beyond those waiting in it; and, if there are none,
    /// the seconds until its next slot.
    pub async fn line_room(&self, line: Uuid) -> DbResult<(i32, f64)> {
        let rows: Vec<(i32, f64)> = room(line).rows(self).await?;
        Ok(rows.first().copied().unwrap_or((0, 1.0)))
    }

    /// Makes the slot of a delivery's claim count from now on.
    pub async fn charge_late_slot(&self, line: Uuid, delivery: DeliveryId) -> DbResult<()> {
        let query = statement::<()>(CHARGE_LATE_SLOT)
            .near([&delivery.0])
            .bind::<SqlUuid, _>(line)
            .bind::<SqlUuid, _>(delivery.0);
        query.run(self).await.map(drop)
    }

    /// Limits all sessions of a tenant together to `per_minute` slots; `None` removes the limit.
    pub async fn limit_sessions(&self, tenant: TenantId, per_minute: Option<i32>) -> DbResult<()> {
        let query = statement::<()>(if per_minute.is_some() { LIMIT_TENANT } else { FREE_TENANT });
        let query = query.bind::<Int4, _>(tenant.0);
        match per_minute {
            Some(rate) => query.bind::<Int4, _>(rate).run(self).await?,
            None => query.run(self).await?,
        };
        Ok(())
    }

    /// The number of deliveries waiting in lines, and of lines with waiting deliveries.
    pub async fn waiting_in_lines(&self) -> DbResult<(i64, i64)> {
        statement::<(Int8, Int8)>(WAITING).row(self).await
    }

    /// Deletes up to `limit` shares of tenants in which nothing waited for `idle_s`; returns their number. A share is
    /// created again when it is needed.
    pub async fn forget_shares(&self, idle_s: i32, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET_SHARES).bind::<Int4, _>(idle_s).bind::<Int8, _>(limit).run(self).await
    }
}

/// The index of waiting deliveries leads from one non-empty line to the next, so empty lines are not read.
const WAITING: &str = "
WITH RECURSIVE w(line) AS (
    (SELECT line FROM parked ORDER BY line LIMIT 1)
    UNION ALL
    SELECT (SELECT p.line FROM parked p WHERE p.line > w.line ORDER BY p.line LIMIT 1) FROM w WHERE w.line IS NOT NULL)
SELECT coalesce(sum(l.waiting), 0)::int8, count(*) FROM w JOIN lines l ON l.id = w.line";

const FORGET_SHARES: &str = "
DELETE FROM lines WHERE id = ANY (ARRAY(
    SELECT id FROM lines WHERE kind = 'share' AND waiting = 0 AND released_at < now() - ? * interval '1 second'
    LIMIT ? FOR UPDATE SKIP LOCKED)) AND waiting = 0";

/// Reads the free slots of a line, see [`Store::line_room`].
pub(super) fn room(line: Uuid) -> Statement<(Int4, Double)> {
    statement(ROOM).bind::<SqlUuid, _>(line)
}

/// The largest number of shares served in one pass.
const SHARES_MAX: i32 = 256;

/// A released delivery whose hint is lost with its worker stops counting as in flight after half a minute.
const RELEASE_SESSIONS: &str = concat!(
    "
WITH ready AS MATERIALIZED (
    SELECT l.id, CASE WHEN l.released_at > now() - interval '30 seconds' THEN l.released ELSE 0 END AS out,
           slots_free(l, now()) AS free
    FROM lines l WHERE l.is_waiting AND l.is_open AND l.kind = 'session' AND l.free_at <= now()
    ORDER BY l.free_at LIMIT ? FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT p.delivery_id, p.run, p.line FROM ready r CROSS JOIN LATERAL (
        SELECT delivery_id, run, line FROM parked WHERE line = r.id ORDER BY rank DESC, delivery_id
        LIMIT greatest(0, least(r.free - r.out, 200))) p
), gone AS (
    DELETE FROM parked WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), released AS MATERIALIZED (
    SELECT d.id, d.run, d.channel || '.' || d.lane AS route, p.line
    FROM picked p JOIN deliveries d ON d.id = p.delivery_id WHERE d.run = p.run AND d.state = 'queued'
), pushed AS (
    UPDATE lines l SET released = k.out + k.n, released_at = now(), free_at = now() + interval '1 second'
    FROM (SELECT r.id, r.out, (SELECT count(*) FROM released x WHERE x.line = r.id) AS n FROM ready r) k
    WHERE l.id = k.id
), ",
    boxed!("released", "picked")
);

/// The claim set the row's time right after it took the slot.
const CHARGE_LATE_SLOT: &str = "SELECT move_slot(?, d.updated_at) FROM deliveries@ d WHERE d.id = ?";

const RELEASE_SHARES: &str = concat!(
    "
WITH turn AS MATERIALIZED (
    SELECT id FROM lines WHERE route = ? AND is_waiting AND kind = 'share' ORDER BY released_at, id LIMIT ? FOR UPDATE SKIP LOCKED
), part AS (SELECT greatest(1, ?::int4 / greatest(1, count(*))) AS n FROM turn
), picked AS MATERIALIZED (
    SELECT p.delivery_id, p.run FROM turn t CROSS JOIN part CROSS JOIN LATERAL (
        SELECT delivery_id, run FROM parked WHERE line = t.id ORDER BY rank DESC, delivery_id LIMIT part.n) p
), gone AS (
    DELETE FROM parked WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), served AS (
    UPDATE lines SET released_at = now() WHERE id = ANY (ARRAY(SELECT id FROM turn))
), released AS MATERIALIZED (
    SELECT d.id, d.run, d.channel || '.' || d.lane AS route
    FROM picked p JOIN deliveries d ON d.id = p.delivery_id WHERE d.run = p.run AND d.state = 'queued'
), ",
    boxed!("released", "picked")
);

const LIMIT_TENANT: &str = "
INSERT INTO lines (id, tenant_id, kind, route, rate) VALUES (gen_random_uuid(), ?, 'tenant', 'whatsapp', ?)
ON CONFLICT (tenant_id) WHERE kind = 'tenant' DO UPDATE SET rate = excluded.rate";

const FREE_TENANT: &str = "DELETE FROM lines WHERE tenant_id = ? AND kind = 'tenant'";

const ROOM: &str = "
SELECT slots_free(l, now()) - l.waiting - CASE WHEN l.released_at > now() - interval '30 seconds' THEN l.released ELSE 0 END AS room,
       greatest(1, extract(epoch FROM greatest(now(), l.blocked_until, CASE WHEN l.rate <= cardinality(l.slots)
           THEN l.slots[cardinality(l.slots) - l.rate + 1] + slot_window() END, least(l.free_at, now() + interval '1 day')) - now()))::float8
FROM lines l WHERE l.id = ?";

const SHARE_ROUTES: &str = "SELECT DISTINCT route FROM lines WHERE is_waiting AND kind = 'share'";
