//! Deliveries that wait for a moment, and crashed claims.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Double, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Channel, DeliveryId, ProviderName, Route, TenantId, Tries};
use uuid::Uuid;

use super::{
    DbResult, Store,
    claim::tries,
    poll::{Floors, WorkKind, floor_of},
    release::{self, Released, boxed, released_columns, share_out},
    statement,
};

/// A claim whose lease ended without an outcome.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The run that claimed it.
    pub run: i32,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its channel.
    pub channel: Channel,
    /// The counters of its tries, the lost attempt included; `crashes` counts this crash too.
    pub tries: Tries,
    /// The provider of an earlier attempt, if any.
    pub provider: Option<ProviderName>,
    /// When the message expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether the grace period for its outcome is over too.
    pub is_late: bool,
}

impl Store {
    /// Sets up to `limit` due deliveries to `queued`. Each goes into its session's line, into its tenant's share, or
    /// into one of the returned outbox rows. On the routes of `full` all of them go into shares: the queues of these
    /// routes are long enough.
    pub async fn release_due(
        &self,
        limit: i64,
        floors: &Floors,
        full: &[Route],
        relay_after_ms: i32,
    ) -> DbResult<Released> {
        let query = statement::<release::SqlRow>(RELEASE)
            .bind::<Timestamptz, _>(floor_of(floors, WorkKind::Due))
            .bind::<Int8, _>(limit)
            .bind::<Array<Text>, _>(full.iter().map(Route::to_string).collect::<Vec<_>>())
            .bind::<Int4, _>(relay_after_ms);
        Ok(Released::of(query.rows(self).await?))
    }

    /// Takes up to `limit` due watches. Drops those whose delivery has moved on. Returns the others and sets them
    /// again: for the end of the grace period (`grace_ms` after the lease), or, if that is over, for `again_ms`
    /// later. So a watch is dropped only after the crash is recorded.
    pub async fn crashed(&self, limit: i64, grace_ms: i32, again_ms: i32) -> DbResult<Vec<Crash>> {
        type SqlRow = (SqlUuid, Int4, Int4, Text, (Int2, Int2, Int2), Nullable<Text>, Nullable<Timestamptz>, Bool);
        let query =
            statement::<SqlRow>(CRASHED).bind::<Int4, _>(grace_ms).bind::<Int8, _>(limit).bind::<Int4, _>(again_ms);
        let rows: Vec<CrashRow> = query.rows(self).await?;
        Ok(rows.into_iter().filter_map(crash).collect())
    }

    /// The number of watches due within `soon_ms`, counted up to `at_most`.
    pub async fn watches_due(&self, soon_ms: i32, at_most: i64) -> DbResult<i64> {
        statement::<Int8>(WATCHES_DUE).bind::<Int4, _>(soon_ms).bind::<Int8, _>(at_most).row(self).await
    }

    /// Seconds until the next delivery is due, negative when it is late; `None` when no delivery waits. Watches do
    /// not count.
    pub async fn due_in_seconds(&self) -> DbResult<Option<f64>> {
        let query = statement::<Nullable<Double>>(DUE_IN);
        query.row(self).await
    }
}

type CrashRow = (Uuid, i32, i32, String, (i16, i16, i16), Option<String>, Option<DateTime<Utc>>, bool);

fn crash(row: CrashRow) -> Option<Crash> {
    let (id, run, tenant, channel, (attempts, deferrals, crashes), provider, expires_at, is_late) = row;
    Some(Crash {
        delivery: DeliveryId(id),
        run,
        tenant: TenantId(tenant),
        channel: channel.parse().ok()?,
        tries: tries(attempts, deferrals, crashes.saturating_add(1)),
        provider: provider.and_then(|name| name.parse().ok()),
        expires_at,
        is_late,
    })
}

/// The rows are picked in a CTE that is an optimisation fence, so that the planner cannot take more of them than the
/// limit.
const RELEASE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT delivery_id, run FROM due WHERE due_at >= ? AND due_at <= now() AND why <> 'watch' ORDER BY due_at LIMIT ?
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), released AS (
    UPDATE deliveries d SET state = 'queued', reason = NULL, updated_at = clock_timestamp()
    FROM picked p WHERE d.id = p.delivery_id AND d.run = p.run AND d.state IN ('scheduled', 'retrying')
    RETURNING ",
    released_columns!(),
    "
), ",
    share_out!(),
    ", ",
    boxed!("placed WHERE share IS NULL", "picked")
);

/// A claim whose outcome is known (see [`crate::unread_events`]) has not crashed. Its watch is set again until
/// its outcome is recorded or given up.
const CRASHED: &str = "
WITH picked AS MATERIALIZED (
    SELECT w.delivery_id, d.state = 'sending' AND d.run = w.run AS held, d.lease_until + ? * interval '1 millisecond' AS doubted_at,
           EXISTS (SELECT FROM unread_events u WHERE u.delivery_id = w.delivery_id AND u.run = w.run) AS is_known
    FROM (SELECT * FROM due WHERE due_at <= now() AND why = 'watch' ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED) w
    LEFT JOIN deliveries d ON d.id = w.delivery_id
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked WHERE held IS NOT TRUE))
), again AS (
    UPDATE due u SET due_at = CASE WHEN p.is_known THEN now() + interval '1 minute' WHEN p.doubted_at > now() THEN p.doubted_at
                                   ELSE now() + p.again END
    FROM (SELECT *, ? * interval '1 millisecond' AS again FROM picked WHERE held) p WHERE u.delivery_id = p.delivery_id
)
SELECT d.id, d.run, d.tenant_id, d.channel, d.attempts, d.deferrals, d.crashes, d.provider, m.expires_at, p.doubted_at <= now()
FROM picked p JOIN deliveries d ON d.id = p.delivery_id JOIN messages m ON m.id = d.message_id
WHERE p.held AND NOT p.is_known";

const WATCHES_DUE: &str = "
SELECT count(*) FROM (SELECT FROM due WHERE why = 'watch' AND due_at <= now() + ? * interval '1 millisecond' LIMIT ?) w";

const DUE_IN: &str = "
SELECT extract(epoch FROM (SELECT due_at FROM due WHERE why <> 'watch' ORDER BY due_at LIMIT 1) - now())::float8 AS seconds";
