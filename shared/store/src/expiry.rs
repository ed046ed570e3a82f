//! Deliveries that wait in a line and are no longer worth sending: a claim would say so, but behind a session that does not work no
//! claim comes.
//!
//! Deliveries of the version before, and those that its processes park during an upgrade, come without a time. [`Store::fill_expiry`]
//! takes it from their messages.

use diesel::sql_types::{Array, Int4, Int8, Uuid as SqlUuid};
use domain::DeliveryId;
use uuid::Uuid;

use super::{
    DbResult, Store,
    sql::{row, sql, statements},
};

row! {
    struct Expired {
        id: Uuid as SqlUuid,
        run: i32 as Int4,
    }
}

impl Store {
    /// Takes up to `limit` waiting deliveries whose time has run out, with the run that their rows are at. They are the caller's
    /// for `lease_ms`; then the next one gets them.
    pub async fn take_expired(&self, limit: i64, lease_ms: i32) -> DbResult<Vec<(DeliveryId, i32)>> {
        let rows = Take { lease_ms, limit }.query().rows(self).await?;
        Ok(rows.into_iter().map(|row| (DeliveryId(row.id), row.run)).collect())
    }

    /// Looks at up to `limit` waiting deliveries behind `after`, in the order of their ids, and gives those that lack their message's
    /// time that time. Returns the last one that was looked at; `None`: there are no more.
    pub async fn fill_expiry(&self, after: DeliveryId, limit: i64) -> DbResult<Option<DeliveryId>> {
        let last = Fill { after: after.0, limit }.query().row(self).await?;
        Ok(last.first().copied().map(DeliveryId))
    }

    /// Takes deliveries out of their lines, where they wait at these runs.
    pub async fn unpark(&self, deliveries: &[(DeliveryId, i32)]) -> DbResult<()> {
        let (ids, runs) = deliveries.iter().map(|(id, run)| (id.0, *run)).unzip();
        Unpark { ids, runs }.query().run(self).await.map(drop)
    }
}

sql!(Take in "expiry/take.sql" { lease_ms: i32 as Int4, limit: i64 as Int8 } -> Expired);
sql!(Fill in "expiry/fill.sql" { after: Uuid as SqlUuid, limit: i64 as Int8 } -> Vec<Uuid> as Array<SqlUuid>);
sql!(Unpark in "expiry/unpark.sql" { ids: Vec<Uuid> as Array<SqlUuid>, runs: Vec<i32> as Array<Int4> });
statements!(Take, Fill, Unpark);
