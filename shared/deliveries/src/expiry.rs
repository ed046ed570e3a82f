//! Deliveries that expire while they wait in a line. A claim would end them, but the line of a session that does not
//! work has no claims.
//!
//! Deliveries of the version before, and those that its processes park during an upgrade, have no expiry in their rows.
//! [`ExpiryStore::fill_expiry`] copies it from their messages.

use diesel::sql_types::{Array, Int4, Int8, Uuid as SqlUuid};
use domain::DeliveryId;
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::ExpiryStore;

row! {
    struct Expired {
        id: Uuid as SqlUuid,
        run: i32 as Int4,
    }
}

impl ExpiryStore<'_> {
    /// Takes up to `limit` expired deliveries that wait, with the runs of their rows. No other caller gets them for
    /// `lease_ms`.
    pub async fn take_expired(self, limit: i64, lease_ms: i32) -> DbResult<Vec<(DeliveryId, i32)>> {
        let rows = Take { lease_ms, limit }.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|row| (DeliveryId(row.id), row.run)).collect())
    }

    /// Reads up to `limit` waiting deliveries after `after`, in the order of their ids, and copies a missing expiry
    /// from their messages. Returns the last one read; `None`: there are no more.
    pub async fn fill_expiry(self, after: DeliveryId, limit: i64) -> DbResult<Option<DeliveryId>> {
        let last = Fill { after: after.0, limit }.query().row(self.store).await?;
        Ok(last.first().copied().map(DeliveryId))
    }

    /// Removes deliveries from the lines in which they wait at these runs.
    pub async fn unpark(self, deliveries: &[(DeliveryId, i32)]) -> DbResult<()> {
        let (ids, runs) = deliveries.iter().map(|(id, run)| (id.0, *run)).unzip();
        Unpark { ids, runs }.query().run(self.store).await.map(drop)
    }
}

sql!(Take in "expiry/take.sql" { lease_ms: i32 as Int4, limit: i64 as Int8 } -> Expired);
sql!(Fill in "expiry/fill.sql" { after: Uuid as SqlUuid, limit: i64 as Int8 } -> Vec<Uuid> as Array<SqlUuid>);
sql!(Unpark in "expiry/unpark.sql" { ids: Vec<Uuid> as Array<SqlUuid>, runs: Vec<i32> as Array<Int4> });
statements!(Take, Fill, Unpark);
