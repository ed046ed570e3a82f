//! Creates the partitions of the coming days and deletes short-lived rows: idempotency keys, token families and import
//! reports.

use std::time::Duration;

use deliveries::Deliveries;
use metrics::{counter, gauge};
use records::Records;
use runtime::metric;
use store::Store;

use crate::task::{Report, Task, TaskError, count_of, gauge_of};

/// Partitions are created this many days ahead, so an operator has a week to notice when that fails.
const DAYS_AHEAD: i32 = 7;
/// With fewer days than this left, a try that met a lock is repeated after [`RETRY_PAUSE`] instead of a period.
const DAYS_LOW: i64 = 2;
/// The pause between tries when few days are left.
const RETRY_PAUSE: Duration = Duration::from_secs(15);
/// How long an idempotency key is known, as promised to producers: three days.
const KEY_HOURS: i32 = 72;
/// Keys deleted by one statement, which takes some tens of milliseconds.
const KEYS_LIMIT: i64 = 5000;

/// How long an import report can be read.
const IMPORT_DAYS: i32 = 30;

/// The task that creates partitions.
pub struct Partitions(pub Store);

impl Task for Partitions {
    const NAME: &'static str = "partitions";
    /// Idempotency keys add up faster than partitions are needed. A short period keeps the deletes small.
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let made = self.0.ensure_partitions(DAYS_AHEAD).await?;
        if made > 0 {
            tracing::info!(made, "made partitions");
        }
        let ahead = self.0.partition_days_ahead().await?;
        gauge!(metric::PARTITION_DAYS_AHEAD).set(gauge_of(ahead));
        let forgotten = count_of(self.0.acceptance().forget_keys(KEY_HOURS, KEYS_LIMIT).await?);
        counter!(metric::IDEMPOTENCY_KEYS_FORGOTTEN).increment(forgotten);
        self.0.refresh_tokens().prune(KEYS_LIMIT).await?;
        self.0.imports().prune(IMPORT_DAYS, KEYS_LIMIT).await?;
        Ok(match (forgotten >= KEYS_LIMIT.unsigned_abs(), ahead < DAYS_LOW) {
            (true, _) => Report::More,
            (false, true) => Report::Expect(RETRY_PAUSE),
            (false, false) => Report::Done,
        })
    }
}
