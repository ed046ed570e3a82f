//! Polls the database for the work of all tasks with one statement, and wakes the tasks that have work. An idle scheduler makes about ten statements a second, however many tasks it has.

use std::time::{Duration, Instant};

use deliveries::{
    Deliveries,
    poll::{Floors, Poll, WorkKind},
};
use metrics::gauge;
use runtime::{metric, wake};
use store::Store;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    due_times::{DueTimes, LastPoll},
    task::{Report, Task, TaskError},
};

/// The shortest time between two polls, however often the scheduler is woken.
const SPACING: Duration = Duration::from_millis(25);
/// How often a poll ignores the floors. Such a poll also finds work with a due time in the past.
const FULL_EVERY: Duration = Duration::from_secs(15);
/// The task that polls.
pub struct Poller {
    store: Store,
    seen: watch::Sender<LastPoll>,
    full_at: Option<Instant>,
}

impl Poller {
    /// The task, and the due_times for the other tasks.
    pub fn new(store: Store) -> (Self, DueTimes) {
        let (seen, due_times) = watch::channel(LastPoll::default());
        (Self { store, seen, full_at: None }, DueTimes::new(due_times))
    }
}

impl Task for Poller {
    const NAME: &'static str = "poll";
    /// The longest delay of work that another process stored and that is due at once.
    const PERIOD: Duration = Duration::from_millis(100);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let at = Instant::now();
        let is_full = self.full_at.is_none_or(|whole| whole.elapsed() >= FULL_EVERY);
        let floors = if is_full { Floors::new() } else { self.seen.borrow().floors() };
        let poll = self.store.polls().poll(&floors).await.inspect_err(|_| set_lag(None))?;
        if is_full {
            self.full_at = Some(at);
        }
        set_lag(Some(&poll));
        self.seen.send_replace(LastPoll::of(&poll, at, Instant::now()));
        Ok(Report::Done)
    }

    async fn sleep(&mut self, pause: Duration) {
        sleep(SPACING).await;
        // It polls whether it was woken or not.
        let _ = timeout(pause.saturating_sub(SPACING), wake::called()).await;
    }
}

/// Sets the lag of the oldest due delivery and the oldest due digest. After a failed poll the lag is unknown: NaN
/// replaces the old number, which would look current.
fn set_lag(poll: Option<&Poll>) {
    let lag = |work| poll.map_or(f64::NAN, |poll| poll.lag_seconds(work));
    gauge!(metric::SCHEDULER_LAG_SECONDS).set(lag(WorkKind::Due));
    gauge!(metric::DIGEST_LAG_SECONDS).set(lag(WorkKind::Digests));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_poll_that_failed_leaves_no_lag_of_an_earlier_one() {
        let metrics = runtime::telemetry::install_metrics();
        set_lag(Some(&Poll { now: chrono::DateTime::UNIX_EPOCH, due: HashMap::new() }));
        assert!(metrics.render().contains("posthaste_scheduler_lag_seconds 0"));
        set_lag(None);
        assert!(metrics.render().contains("posthaste_scheduler_lag_seconds NaN"), "{}", metrics.render());
    }
}
