//! Polls the database for the work of all tasks with one statement, and wakes the tasks that have work.
//!
//! A task without work rests until a poll finds some, and wakes at the exact time if the work is due later. An idle
//! scheduler therefore makes about ten statements a second, however many tasks it has.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use metrics::gauge;
use shared::{
    db::{
        Store,
        poll::{Floors, Poll, WorkKind},
    },
    wake,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout, timeout_at},
};

use crate::task::{Report, Task, TaskError};

/// The shortest time between two polls, however often the scheduler is woken.
const SPACING: Duration = Duration::from_millis(25);
/// How often a poll ignores the floors. Such a poll also finds work with a due time in the past.
const FULL_EVERY: Duration = Duration::from_secs(15);
/// A task takes a turn after this time even if no poll finds work for it: it may set gauges or delete old rows.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The task that polls.
pub struct Poller {
    store: Store,
    seen: watch::Sender<LastPoll>,
    full_at: Option<Instant>,
}

/// The result of the last poll.
#[derive(Clone, Debug, Default)]
struct LastPoll {
    /// When the poll began. `None`: no poll has run yet.
    at: Option<Instant>,
    due: HashMap<WorkKind, Instant>,
    floors: Floors,
}

/// A task's view of the polls.
#[derive(Clone)]
pub struct Outlook(watch::Receiver<LastPoll>);

/// An outlook without a poller: a task with a kind of work then runs every period.
#[cfg(test)]
impl Default for Outlook {
    fn default() -> Self {
        Self(watch::channel(LastPoll::default()).1)
    }
}

impl Poller {
    /// The task, and the outlook for the other tasks.
    pub fn new(store: Store) -> (Self, Outlook) {
        let (seen, outlook) = watch::channel(LastPoll::default());
        (Self { store, seen, full_at: None }, Outlook(outlook))
    }
}

impl Task for Poller {
    const NAME: &'static str = "poll";
    /// The longest delay of work that another process stored and that is due at once.
    const PERIOD: Duration = Duration::from_millis(100);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let at = Instant::now();
        let is_full = self.full_at.is_none_or(|whole| whole.elapsed() >= FULL_EVERY);
        let floors = if is_full { Floors::new() } else { self.seen.borrow().floors.clone() };
        let poll = self.store.poll(&floors).await.inspect_err(|_| show_lag(None))?;
        if is_full {
            self.full_at = Some(at);
        }
        show_lag(Some(&poll));
        self.seen.send_replace(LastPoll::of(&poll, at, Instant::now()));
        Ok(Report::Done)
    }

    async fn rest(&mut self, pause: Duration) {
        sleep(SPACING).await;
        // It polls whether it was woken or not.
        let _ = timeout(pause.saturating_sub(SPACING), wake::called()).await;
    }
}

/// Sets the lag of the oldest due delivery and the oldest due digest. After a failed poll the lag is unknown: NaN
/// replaces the old number, which would look current.
fn show_lag(poll: Option<&Poll>) {
    let lag = |work| poll.map_or(f64::NAN, |poll| poll.lag_seconds(work));
    gauge!("posthaste_scheduler_lag_seconds").set(lag(WorkKind::Due));
    gauge!("posthaste_digest_lag_seconds").set(lag(WorkKind::Digests));
}

impl LastPoll {
    /// The result of a poll that began at `at` and was answered at `now`. Waits count from the answer: a task that
    /// wakes slightly too early would find nothing and rest again.
    fn of(poll: &Poll, at: Instant, now: Instant) -> Self {
        let wait = |wait: TimeDelta| wait.to_std().unwrap_or_default();
        let due = poll.due.iter().map(|(work, due)| (*work, now + wait(*due - poll.now))).collect();
        Self { at: Some(at), due, floors: poll.floors() }
    }
}

impl Outlook {
    /// The lower bounds from which the statements of each kind of work may start.
    pub fn floors(&self) -> Floors {
        self.0.borrow().floors.clone()
    }

    /// Waits until a poll that began after `turned` says that work of this kind is due. An older poll may still report
    /// work that the task's last turn did.
    pub async fn wait(&mut self, work: WorkKind, turned: Instant) {
        // The task takes its turn whether work is due or the time is over.
        let _ = timeout(IDLE_MAX, self.until_due(work, turned)).await;
    }

    async fn until_due(&mut self, work: WorkKind, turned: Instant) {
        loop {
            let due = {
                let seen = self.0.borrow_and_update();
                seen.due.get(&work).copied().filter(|_| seen.at.is_some_and(|at| at >= turned))
            };
            let news = self.0.changed();
            let is_over = match due {
                Some(due) => timeout_at(due.into(), news).await.is_err(),
                // The sender is gone, so no poll will follow.
                None => news.await.is_err(),
            };
            if is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    fn seen(at: Instant, wait: Option<Duration>) -> LastPoll {
        LastPoll {
            at: Some(at),
            due: wait.map(|wait| (WorkKind::Due, at + wait)).into_iter().collect(),
            floors: Floors::new(),
        }
    }

    #[test]
    fn a_poll_that_failed_leaves_no_lag_of_an_earlier_one() {
        let metrics = shared::telemetry::install_metrics();
        show_lag(Some(&Poll { now: chrono::DateTime::UNIX_EPOCH, due: HashMap::new() }));
        assert!(metrics.render().contains("posthaste_scheduler_lag_seconds 0"));
        show_lag(None);
        assert!(metrics.render().contains("posthaste_scheduler_lag_seconds NaN"), "{}", metrics.render());
    }

    #[tokio::test]
    async fn a_task_waits_until_its_work_is_due_by_a_poll_after_its_turn() {
        let (poller, receiver) = watch::channel(LastPoll::default());
        let (mut outlook, start) = (Outlook(receiver), Instant::now());
        let turned = start + Duration::from_millis(5);
        let mut wait = pin!(outlook.wait(WorkKind::Due, turned));
        for (at, due) in [(start, Some(Duration::ZERO)), (turned, None), (turned, Some(Duration::from_secs(3600)))] {
            poller.send_replace(seen(at, due));
            assert!(wait.as_mut().now_or_never().is_none(), "an old poll, one that found nothing, one for later");
        }
        poller.send_replace(seen(turned, Some(Duration::ZERO)));
        wait.await;
        assert!(start.elapsed() < IDLE_MAX);
    }
}
