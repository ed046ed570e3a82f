//! Counts consecutive failures, logs the first one, and waits longer after each.
//!
//! When a server is down, every loop fails on every turn. The first failure and the recovery are logged; the failures
//! in between appear only in the metrics.

use std::{error::Error, sync::Arc, time::Duration};

pub use runtime::telemetry::chain;
use runtime::{metric, reconnect::Reconnect, telemetry::at_zero};
use tokio_util::sync::CancellationToken;

use crate::probe::Heartbeat;

/// The consecutive failures of one loop.
pub struct FailureStreak {
    heartbeat: Arc<Heartbeat>,
    reconnect: Reconnect,
    failures: u64,
}

impl FailureStreak {
    /// A streak without failures.
    pub fn new(heartbeat: Arc<Heartbeat>) -> Self {
        at_zero(metric::TASK_FAILURES, "task", [heartbeat.name()]);
        Self { heartbeat, reconnect: Reconnect::new(), failures: 0 }
    }

    /// Records a failure and returns how long to wait before the next try.
    pub fn record_failure(&mut self, error: &dyn Error) -> Duration {
        let (task, error) = (self.heartbeat.name(), chain(error));
        metrics::counter!(metric::TASK_FAILURES, "task" => task).increment(1);
        if self.failures == 0 {
            tracing::warn!(task, error, "a task failed and is tried again");
        }
        self.failures += 1;
        self.heartbeat.failed();
        self.reconnect.next()
    }

    /// Like [`FailureStreak::record_failure`], and then waits. Returns false if `stop` came first.
    pub fn wait_out<'a>(
        &mut self,
        error: &dyn Error,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = bool> + Send + use<'a> {
        let pause = self.record_failure(error);
        async move { stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() }
    }

    /// Records a success and ends the streak.
    pub fn record_success(&mut self) {
        if self.failures > 0 {
            tracing::info!(task = self.heartbeat.name(), failures = self.failures, "a task works again");
        }
        self.failures = 0;
        self.reconnect.reset();
        self.heartbeat.beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::probe::Health;

    #[test]
    fn failures_in_a_row_are_waited_out_longer_and_shown_until_they_are_over() {
        let heartbeat = Arc::new(Heartbeat::new("a_task", Duration::from_secs(1)));
        let mut failures = FailureStreak::new(Arc::clone(&heartbeat));
        let error = std::io::Error::other("away");
        let waits: Vec<_> = (0..20).map(|_| failures.record_failure(&error)).collect();
        assert!(waits.iter().rev().take(10).min() > waits.first(), "{waits:?}");
        assert_eq!(heartbeat.health(), Health::Degraded("a_task fails and is tried again".to_owned()));
        failures.record_success();
        assert_eq!(heartbeat.health(), Health::Up);
        assert!(failures.record_failure(&error) < Duration::from_secs(1));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = store::DbError::Unavailable("connection refused".into());
        assert_eq!(chain(&error), "the database is not available: connection refused");
    }
}
