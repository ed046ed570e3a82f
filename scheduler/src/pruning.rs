//! Keeps tables small that only remember: breakers, and the lines of tenants' shares. Freezes the partitions of days that are over.

use std::time::Duration;

use metrics::gauge;
use shared::db::Store;

use crate::task::{Report, Task, TaskError, gauge_of};

/// Rows forgotten in one statement: some tens of milliseconds.
const LIMIT: i64 = 5000;
/// How long nothing waited in a share that is forgotten, in seconds: a day.
const SHARE_IDLE_S: i32 = 24 * 60 * 60;

/// The task that deletes idle breakers and shares.
pub struct Pruning(pub Store);

impl Task for Pruning {
    const NAME: &'static str = "pruning";
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let forgotten =
            [self.0.forget_breakers(LIMIT).await?, self.0.forget_shares(SHARE_IDLE_S, LIMIT).await?].into_iter().max();
        let is_full = forgotten.and_then(|rows| i64::try_from(rows).ok()).is_some_and(|rows| rows >= LIMIT);
        Ok(if is_full { Report::More } else { Report::Done })
    }
}

/// The task that freezes partitions, one in a turn: a large one takes minutes.
pub struct Freeze(pub Store);

impl Task for Freeze {
    const NAME: &'static str = "freeze";
    /// Longer than the largest partition takes, since a loop that does not turn for longer counts as stalled.
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let Some(partition) = self.0.freeze_partition().await? else { return Ok(Report::Done) };
        tracing::info!(partition, "froze a partition");
        Ok(Report::More)
    }
}

/// The task that shows how much waits in lines.
pub struct LineGauges(pub Store);

impl Task for LineGauges {
    const NAME: &'static str = "line_gauges";
    const PERIOD: Duration = Duration::from_secs(5);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let (waiting, lines) = self.0.waiting_in_lines().await?;
        gauge!("posthaste_lines_waiting").set(gauge_of(waiting));
        gauge!("posthaste_lines").set(gauge_of(lines));
        Ok(Report::Done)
    }
}
