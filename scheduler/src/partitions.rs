//! Makes the partitions of the days to come and forgets what is kept for a while only.

use std::time::Duration;

use metrics::{counter, gauge};
use shared::db::Store;

use crate::task::{Report, Task, TaskError, count_of, gauge_of};

/// Partitions are made this many days ahead, so an operator has a week to notice that they are not.
const DAYS_AHEAD: i32 = 7;
/// With so few days left a try that met a lock is repeated soon; else there is time until the next turn.
const DAYS_FEW: i64 = 2;
/// From one try to the next then.
const HURRY: Duration = Duration::from_secs(15);
/// What a producer was promised: a key is known for three days.
const KEY_HOURS: i32 = 72;
/// Keys forgotten in one statement: some tens of milliseconds.
const KEYS_LIMIT: i64 = 5000;

/// How long the report of an import can be read.
const IMPORT_DAYS: i32 = 30;

/// The task.
pub struct Partitions(pub Store);

impl Task for Partitions {
    const NAME: &'static str = "partitions";
    /// Keys add up: more often than partitions need, so that no turn has hours of them to forget.
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let made = self.0.ensure_partitions(DAYS_AHEAD).await?;
        if made > 0 {
            tracing::info!(made, "made partitions");
        }
        let ahead = self.0.partition_days_ahead().await?;
        gauge!("posthaste_partition_days_ahead").set(gauge_of(ahead));
        let forgotten = count_of(self.0.forget_keys(KEY_HOURS, KEYS_LIMIT).await?);
        counter!("posthaste_idempotency_keys_forgotten_total").increment(forgotten);
        self.0.forget_families(KEYS_LIMIT).await?;
        self.0.forget_imports(IMPORT_DAYS, KEYS_LIMIT).await?;
        Ok(match (forgotten >= KEYS_LIMIT.unsigned_abs(), ahead < DAYS_FEW) {
            (true, _) => Report::More,
            (false, true) => Report::Expect(HURRY),
            (false, false) => Report::Done,
        })
    }
}
