//! Vacuums and freezes the partitions of a past day once, while the server still caches them. Otherwise all days would
//! need it at the same time, when their transaction ids get too old.

use diesel::sql_types::{Array, Bool, Text};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection, pooled_connection::deadpool::Object};
use store::{
    DbResult,
    sql::{sql, statements},
    sqlstate,
};

use crate::PartitionStore;

/// The partition that was processed.
#[derive(Debug)]
pub struct Frozen {
    /// Its name.
    pub partition: String,
    /// Why the server refused to freeze it.
    pub refused: Option<diesel::result::Error>,
}

impl PartitionStore<'_> {
    /// Vacuums and freezes one partition of a day that ended at least an hour ago and that is not in `passed`, outside
    /// any transaction. `None`: there is none, another process works on one, or the login may not vacuum our tables. It
    /// may take hours.
    pub async fn freeze(self, passed: Vec<String>) -> DbResult<Option<Frozen>> {
        // This connection gets another role and other limits, so it never returns to the pool. Closing it releases its
        // lock.
        let mut conn = Object::take(self.store.conn().await?);
        Ok(freeze(&mut conn, passed).await?)
    }
}

async fn freeze(conn: &mut AsyncPgConnection, passed: Vec<String>) -> Result<Option<Frozen>, diesel::result::Error> {
    let is_alone = TryLock {}.query().row_on(conn).await?;
    if !is_alone {
        return Ok(None);
    }
    let partitions = Unfrozen { passed }.query().rows_on(conn).await?;
    let Some(partition) = partitions.into_iter().next() else { return Ok(None) };
    conn.batch_execute(SETTINGS).await?;
    match conn.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {partition}")).await {
        Ok(()) => Ok(Some(Frozen { partition, refused: None })),
        Err(error) if sqlstate::code(&error).is_some() => Ok(Some(Frozen { partition, refused: Some(error) })),
        Err(error) => Err(error),
    }
}

/// The services' role owns no table. Pauses keep the rest of the server responsive.
const SETTINGS: &str = "RESET ROLE; SET statement_timeout = 0; SET vacuum_cost_delay = '1ms'";

sql!(TryLock in "freeze/try_lock.sql" {} -> bool as Bool);
sql!(Unfrozen in "freeze/unfrozen.sql" { passed: Vec<String> as Array<Text> } -> String as Text);
statements!(TryLock, Unfrozen);
