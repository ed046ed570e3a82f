//! The partitions of a day that is over are vacuumed and frozen once, while the server still has them at hand: left alone, all days
//! would ask for it at the same moment, when their transaction ids get too old.

use diesel::sql_types::{Array, Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, pooled_connection::deadpool::Object};

use super::{DbResult, Store, sqlstate, statement};

/// A partition that was worked on.
#[derive(Debug)]
pub struct Frozen {
    /// Its name.
    pub partition: String,
    /// Why the server would not freeze it.
    pub refused: Option<diesel::result::Error>,
}

impl Store {
    /// Vacuums and freezes one partition of a day that ended at least an hour ago, outside any transaction, and none of `passed`.
    /// `None`: there is none, another process is at one, or the login may not vacuum our tables. It may take hours.
    pub async fn freeze_partition(&self, passed: Vec<String>) -> DbResult<Option<Frozen>> {
        // It gets another role and other limits, so it never goes back into the pool. Closing it frees its lock as well.
        let mut conn = Object::take(self.conn().await?);
        Ok(freeze(&mut conn, passed).await?)
    }
}

async fn freeze(conn: &mut AsyncPgConnection, passed: Vec<String>) -> Result<Option<Frozen>, diesel::result::Error> {
    let alone: bool = RunQueryDsl::get_result(statement::<Bool>(LOCK), conn).await?;
    if !alone {
        return Ok(None);
    }
    let query = statement::<Text>(UNFROZEN).bind::<Array<Text>, _>(passed);
    let partitions: Vec<String> = RunQueryDsl::load(query, conn).await?;
    let Some(partition) = partitions.into_iter().next() else { return Ok(None) };
    conn.batch_execute(SETTINGS).await?;
    match conn.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {partition}")).await {
        Ok(()) => Ok(Some(Frozen { partition, refused: None })),
        Err(error) if sqlstate::code(&error).is_some() => Ok(Some(Frozen { partition, refused: Some(error) })),
        Err(error) => Err(error),
    }
}

const LOCK: &str = "SELECT pg_try_advisory_lock(hashtext('posthaste.freeze'))";

/// The services' role owns no table. Pauses keep the rest of the server responsive.
const SETTINGS: &str = "RESET ROLE; SET statement_timeout = 0; SET vacuum_cost_delay = '1ms'";

/// What ends soon after midnight is waited for, and a week is made up for. A server that does not count (`track_counts`) knows of no
/// vacuum: there only the caller knows. OFFSET 0 keeps the names of other relations from being read
/// as days.
const UNFROZEN: &str = "
SELECT x.oid::regclass::text FROM (
    SELECT c.oid, c.relowner, (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS ended
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('messages'::regclass, 'deliveries'::regclass, 'delivery_events'::regclass) OFFSET 0) x
JOIN pg_database d ON d.datname = current_database()
WHERE x.ended <= now() - interval '1 hour' AND x.ended > now() - interval '8 days'
  AND coalesce(pg_stat_get_last_vacuum_time(x.oid) < x.ended, true) AND x.oid::regclass::text <> ALL (?::text[])
  AND (pg_has_role(session_user, x.relowner, 'USAGE') OR pg_has_role(session_user, d.datdba, 'USAGE'))
ORDER BY x.ended, x.oid LIMIT 1";
