//! The outbox: every batch for the broker, from its commit until the audit has seen that all its deliveries moved on.

use diesel::sql_types::{Array, Bool, Double, Int4, Int8, Text, Uuid as SqlUuid};
use domain::{DeliveryId, channel::Route};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::OutboxStore;

/// A batch for the broker, as stored in the outbox.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    /// The outbox row.
    pub outbox_id: i64,
    /// The deliveries to publish.
    pub items: Vec<DispatchItem>,
}

/// One delivery that may be sent now.
#[derive(Clone, Copy, Debug)]
pub struct DispatchItem {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The current run of its row.
    pub run: i32,
    /// Its route, which names its queue.
    pub route: Route,
}

row! {
    struct TakenRow {
        id: i64 as Int8,
        deliveries: Vec<Uuid> as Array<SqlUuid>,
        runs: Vec<i32> as Array<Int4>,
        routes: Vec<String> as Array<Text>,
    }
}

row! {
    /// The number of rows: due ones, checked ones, those given back; then the number of deliveries that got a watch.
    struct AuditRow {
        due: i64 as Int8,
        seen: i64 as Int8,
        lost: i64 as Int8,
        watched: i64 as Int8,
    }
}

row! {
    struct PendingRow {
        pending: i64 as Int8,
        age: f64 as Double,
    }
}

impl OutboxStore<'_> {
    /// Takes up to `limit` rows that were not published in time; no other caller gets them for `lease_ms`.
    pub async fn take(self, limit: i64, lease_ms: i32) -> DbResult<Vec<Dispatch>> {
        let rows = Take { lease_ms, limit }.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|row| dispatch((row.id, row.deliveries, row.runs, row.routes))).collect())
    }

    /// Gives back taken rows that could not be published, so that they do not wait for the end of their lease.
    pub async fn give_back(self, rows: Vec<i64>) -> DbResult<()> {
        GiveBack { rows }.query().run(self.store).await.map(drop)
    }

    /// Records that every delivery of these rows is with the broker; the audit checks them `audit_after_ms` from now.
    pub async fn mark_published(self, mut rows: Vec<i64>, audit_after_ms: i32) -> DbResult<()> {
        rows.sort_unstable();
        MarkPublished { audit_after_ms, rows }.query().run(self.store).await.map(drop)
    }

    /// Checks published rows that are due: at most `rows` of them, and no further row once they hold `deliveries`
    /// deliveries. A row whose deliveries all moved on is deleted. A delivery that a worker still holds gets a watch.
    /// If the broker lost a delivery, which means that it is still queued on a route in `empty`, the row goes back to
    /// the relay. Any other row is checked again later, at growing intervals.
    pub async fn audit(self, rows: i64, deliveries: i64, empty: &[Route]) -> DbResult<Audited> {
        let empty = empty.iter().map(Route::to_string).collect();
        let AuditRow { due, seen, lost, watched } = Audit { rows, deliveries, empty }.query().row(self.store).await?;
        Ok(Audited { seen, lost, watched, is_more: due > seen || due >= rows })
    }

    /// The number of unpublished rows, counted up to [`PENDING_MAX`], and the age in seconds of the oldest of them.
    pub async fn count_pending(self) -> DbResult<(i64, f64)> {
        let PendingRow { pending, age } = Pending { at_most: PENDING_MAX }.query().row(self.store).await?;
        Ok((pending, age))
    }

    /// Whether any published row waits for the audit; without one we need not ask the broker for its depths.
    pub async fn audit_waits(self) -> DbResult<bool> {
        AuditWaits {}.query().row(self.store).await
    }
}

/// The result of one audit pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Outbox rows checked.
    pub seen: i64,
    /// Rows given back to the relay because the broker lost some of their deliveries.
    pub lost: i64,
    /// Deliveries that got a watch because a worker has held them this long.
    pub watched: i64,
    /// Whether more rows are due for a check.
    pub is_more: bool,
}

/// The limit of the count of unpublished rows: after hours without a broker there are millions, and an exact number
/// is not worth the time.
pub const PENDING_MAX: i64 = 10_001;

/// The batch of an outbox row from its columns: id, deliveries, runs, routes.
pub(crate) fn dispatch((outbox_id, ids, runs, routes): (i64, Vec<Uuid>, Vec<i32>, Vec<String>)) -> Dispatch {
    let items = ids.into_iter().zip(runs).zip(routes).filter_map(|((id, run), route)| item(id, run, &route)).collect();
    Dispatch { outbox_id, items }
}

/// An item from its columns; the audit handles a route that this version does not know.
fn item(id: Uuid, run: i32, route: &str) -> Option<DispatchItem> {
    let (channel, lane) = route.split_once('.')?;
    let route = Route { channel: channel.parse().ok()?, lane: lane.parse().ok()? };
    Some(DispatchItem { delivery: DeliveryId(id), run, route })
}

sql!(Take in "outbox/take.sql" { lease_ms: i32 as Int4, limit: i64 as Int8 } -> TakenRow);
sql!(GiveBack in "outbox/give_back.sql" { rows: Vec<i64> as Array<Int8> });
sql!(MarkPublished in "outbox/mark_published.sql" { audit_after_ms: i32 as Int4, rows: Vec<i64> as Array<Int8> });
sql!(Audit in "outbox/audit.sql" {
    rows: i64 as Int8, deliveries: i64 as Int8, empty: Vec<String> as Array<Text>
} -> AuditRow);
sql!(Pending in "outbox/pending.sql" { at_most: i64 as Int8 } -> PendingRow);
sql!(AuditWaits in "outbox/audit_waits.sql" {} -> bool as Bool);
statements!(Take, GiveBack, MarkPublished, Audit, Pending, AuditWaits);
