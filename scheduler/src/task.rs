//! A loop for one kind of work. It runs periodically, and again at once while more work is left. A task with a
//! [`Task::WORK`] runs only when [`poller`](crate::poller) finds that work of its kind is due.
//!
//! A task takes no input, may run at any time and is safe with any number of schedulers: it reads its work from the
//! database, under a lock that ends with its connection. So tasks need no leader election and no hand-over.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use broker::PublishError;
use deliveries::poll::WorkKind;
use metrics::histogram;
use runtime::metric;
use store::DbError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{due_times::DueTimes, failure_streak::FailureStreak, probe::Heartbeat};

/// A pause differs from the period by at most this share, so that schedulers do not run in lockstep.
const JITTER_SHARE: f64 = 0.1;

/// When a task wants its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// No work is left. The next turn comes after a period, and for a task with a kind of work only when some is due.
    Done,
    /// The turn reached its limit and more work may be left. The next turn comes at once.
    More,
    /// Some work cannot be done yet. The next turn comes after this time, or after a period if that is shorter.
    Expect(Duration),
}

/// Why a turn failed. Every failed turn is repeated.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The broker failed.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The broker took only a part of a batch.
    #[error("{0} outbox rows are not with the broker")]
    Unpublished(usize),
    /// This many replays failed. Each failure was logged.
    #[error("{0} replays could not go on")]
    Replays(usize),
    /// This many broadcasts failed. Each failure was logged.
    #[error("{0} broadcasts could not go on")]
    Broadcasts(usize),
}

impl TaskError {
    /// True if a server caused the error, false if the data did.
    pub const fn is_servers_fault(&self) -> bool {
        match self {
            Self::Database(error) => error.is_unavailable(),
            Self::Publish(error) => !matches!(error, PublishError::Invalid(_) | PublishError::Encode(_)),
            Self::Unpublished(_) | Self::Replays(_) | Self::Broadcasts(_) => true,
        }
    }
}

/// One kind of work.
pub trait Task: Send + 'static {
    /// The name in logs and metrics.
    const NAME: &'static str;
    /// The time between two turns.
    const PERIOD: Duration;
    /// The kind of work that the poller looks for. `None`: the task runs every period and looks for itself.
    const WORK: Option<WorkKind> = None;

    /// Runs one turn, which handles a bounded batch of work.
    fn run(&mut self) -> impl Future<Output = Result<Report, TaskError>> + Send;

    /// Waits between two turns.
    fn sleep(&mut self, pause: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(pause)
    }
}

/// Runs a task until `stop`. It finishes the turn that is running.
pub async fn run_until_stopped<T: Task>(
    mut task: T,
    heartbeat: Arc<Heartbeat>,
    mut due_times: DueTimes,
    stop: CancellationToken,
) {
    let mut failures = FailureStreak::new(heartbeat);
    while !stop.is_cancelled() {
        let started = Instant::now();
        let turn = task.run().await;
        let ended_at = Instant::now();
        histogram!(metric::TASK_SECONDS, "task" => T::NAME).record(ended_at - started);
        let pause = match &turn {
            Ok(report) => {
                failures.record_success();
                pause_after(*report, T::PERIOD, jitter())
            }
            Err(error) => failures.record_failure(error),
        };
        let work = T::WORK.filter(|_| matches!(turn, Ok(Report::Done)));
        let sleeping = async {
            // Even a pause of zero yields to other tasks.
            task.sleep(pause).await;
            if let Some(work) = work {
                due_times.wait(work, ended_at).await;
            }
        };
        if stop.run_until_cancelled(sleeping).await.is_none() {
            return;
        }
    }
}

fn pause_after(report: Report, period: Duration, jitter: f64) -> Duration {
    match report {
        Report::Done => period.mul_f64(1.0 + JITTER_SHARE * (2.0 * jitter - 1.0)),
        Report::More => Duration::ZERO,
        Report::Expect(wait) => wait.min(period),
    }
}

/// A random number in 0..1, from the last bytes of a UUIDv7, which are random.
pub fn jitter() -> f64 {
    let [.., a, b, c, d] = Uuid::now_v7().into_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
}

/// Converts a number for a gauge.
pub fn gauge_of(n: i64) -> f64 {
    f64::from(i32::try_from(n).unwrap_or(i32::MAX))
}

/// Converts a count for a counter.
pub fn count_of(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Converts a duration into the milliseconds that the database takes.
pub fn millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::probe::Health;

    const PERIOD: Duration = Duration::from_millis(100);

    #[test]
    fn a_rest_is_about_a_period_or_until_what_is_expected_or_none() {
        assert_eq!(pause_after(Report::Done, PERIOD, 0.0), Duration::from_millis(90));
        assert!(pause_after(Report::Done, PERIOD, 0.999) < Duration::from_millis(110));
        assert_eq!(pause_after(Report::More, PERIOD, 0.5), Duration::ZERO);
        assert_eq!(pause_after(Report::Expect(Duration::from_millis(7)), PERIOD, 0.5), Duration::from_millis(7));
        assert_eq!(pause_after(Report::Expect(PERIOD * 9), PERIOD, 0.5), PERIOD);
    }

    #[test]
    fn jitter_is_between_zero_and_one_and_varies() {
        let drawn: Vec<_> = (0..100).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(drawn.iter().any(|n| *n < 0.5) && drawn.iter().any(|n| *n >= 0.5), "{drawn:?}");
    }

    struct Failing(u32, CancellationToken);

    impl Task for Failing {
        const NAME: &'static str = "failing";
        const PERIOD: Duration = Duration::from_millis(1);

        async fn run(&mut self) -> Result<Report, TaskError> {
            self.0 += 1;
            match self.0 {
                1 => Err(TaskError::Unpublished(2)),
                2 => Ok(Report::More),
                _ => {
                    self.1.cancel();
                    Ok(Report::Done)
                }
            }
        }
    }

    #[tokio::test]
    async fn a_task_that_failed_is_tried_again_until_it_is_stopped() {
        let (stop, heartbeat) = (CancellationToken::new(), Arc::new(Heartbeat::new("failing", PERIOD)));
        run_until_stopped(Failing(0, stop.clone()), Arc::clone(&heartbeat), DueTimes::default(), stop).await;
        assert_eq!(heartbeat.health(), Health::Up);
    }
}
