//! Deliveries that wait for a time, and crashed claims.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Double, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Channel, DeliveryId, ProviderName, Route, TenantId, Tries};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{
    DueStore,
    claim::tries,
    poll::{Floors, WorkKind, floor_of},
    release::{Released, ReleasedRow},
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

row! {
    struct CrashRow {
        id: Uuid as SqlUuid,
        run: i32 as Int4,
        tenant_id: i32 as Int4,
        channel: String as Text,
        attempts: i16 as Int2,
        deferrals: i16 as Int2,
        crashes: i16 as Int2,
        provider: Option<String> as Nullable<Text>,
        expires_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        is_late: bool as Bool,
    }
}

impl DueStore<'_> {
    /// Sets up to `limit` due deliveries to `queued`. Each goes into its session's line, into its tenant's share, or
    /// into one of the returned outbox rows. On the routes of `full` all of them go into shares: the queues of these
    /// routes are long enough.
    pub async fn release(self, limit: i64, floors: &Floors, full: &[Route], relay_after_ms: i32) -> DbResult<Released> {
        let (floor, full) = (floor_of(floors, WorkKind::Due), full.iter().map(Route::to_string).collect());
        Ok(Release { floor, limit, full, relay_after_ms }.query().rows(self.store).await?.into())
    }

    /// Takes up to `limit` due watches. Drops those whose delivery has moved on. Returns the others and sets them
    /// again: for the end of the grace period (`grace_ms` after the lease), or, if that is over, for `again_ms`
    /// later. So a watch is dropped only after the crash is recorded.
    pub async fn crashed(self, limit: i64, grace_ms: i32, again_ms: i32) -> DbResult<Vec<Crash>> {
        let rows = Crashed { grace_ms, limit, again_ms }.query().rows(self.store).await?;
        Ok(rows.into_iter().filter_map(crash).collect())
    }

    /// The number of watches due within `soon_ms`, counted up to `at_most`.
    pub async fn watches_due(self, soon_ms: i32, at_most: i64) -> DbResult<i64> {
        WatchesDue { soon_ms, at_most }.query().row(self.store).await
    }

    /// Seconds until the next delivery is due, negative when it is late; `None` when no delivery waits. Watches do
    /// not count.
    pub async fn due_in_seconds(self) -> DbResult<Option<f64>> {
        DueIn {}.query().row(self.store).await
    }
}

fn crash(row: CrashRow) -> Option<Crash> {
    Some(Crash {
        delivery: DeliveryId(row.id),
        run: row.run,
        tenant: TenantId(row.tenant_id),
        channel: row.channel.parse().ok()?,
        tries: tries(row.attempts, row.deferrals, row.crashes.saturating_add(1)),
        provider: row.provider.and_then(|name| name.parse().ok()),
        expires_at: row.expires_at,
        is_late: row.is_late,
    })
}

sql!(Release in "due/release.sql" {
    floor: DateTime<Utc> as Timestamptz, limit: i64 as Int8, full: Vec<String> as Array<Text>,
    relay_after_ms: i32 as Int4
} -> ReleasedRow);
sql!(Crashed in "due/crashed.sql" { grace_ms: i32 as Int4, limit: i64 as Int8, again_ms: i32 as Int4 } -> CrashRow);
sql!(WatchesDue in "due/watches_due.sql" { soon_ms: i32 as Int4, at_most: i64 as Int8 } -> i64 as Int8);
sql!(DueIn in "due/due_in.sql" {} -> Option<f64> as Nullable<Double>);
statements!(Release, Crashed, WatchesDue, DueIn);
