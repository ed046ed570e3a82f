//! When work is due, as the last poll found it. A task without work sleeps until a poll finds some; if the work is due later,
//! the task wakes at that time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use deliveries::poll::{Floors, Poll, WorkKind};
use tokio::{
    sync::watch,
    time::{timeout, timeout_at},
};

/// A task takes a turn after this time even if no poll finds work for it: it may set gauges or delete old rows.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The result of the last poll.
#[derive(Clone, Debug, Default)]
pub struct LastPoll {
    /// When the poll began. `None`: no poll has run yet.
    at: Option<Instant>,
    due: HashMap<WorkKind, Instant>,
    floors: Floors,
}

/// When each kind of work is due, as the last poll found it.
#[derive(Clone)]
pub struct DueTimes(watch::Receiver<LastPoll>);

/// Due times without a poller: a task with a kind of work then runs every period.
#[cfg(test)]
impl Default for DueTimes {
    fn default() -> Self {
        Self(watch::channel(LastPoll::default()).1)
    }
}

impl LastPoll {
    /// The result of a poll that began at `at` and was answered at `now`. Waits count from the answer: a task that
    /// wakes slightly too early would find nothing and rest again.
    pub fn of(poll: &Poll, at: Instant, now: Instant) -> Self {
        let wait = |wait: TimeDelta| wait.to_std().unwrap_or_default();
        let due = poll.due.iter().map(|(work, due)| (*work, now + wait(*due - poll.now))).collect();
        Self { at: Some(at), due, floors: poll.floors() }
    }

    /// The lower bounds from which the next poll may start.
    pub fn floors(&self) -> Floors {
        self.floors.clone()
    }
}

impl DueTimes {
    /// Sees what the poller sends.
    pub const fn new(polls: watch::Receiver<LastPoll>) -> Self {
        Self(polls)
    }

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

    #[tokio::test]
    async fn a_task_waits_until_its_work_is_due_by_a_poll_after_its_turn() {
        let (poller, receiver) = watch::channel(LastPoll::default());
        let (mut due_times, start) = (DueTimes(receiver), Instant::now());
        let turned = start + Duration::from_millis(5);
        let mut wait = pin!(due_times.wait(WorkKind::Due, turned));
        for (at, due) in [(start, Some(Duration::ZERO)), (turned, None), (turned, Some(Duration::from_secs(3600)))] {
            poller.send_replace(seen(at, due));
            assert!(wait.as_mut().now_or_never().is_none(), "an old poll, one that found nothing, one for later");
        }
        poller.send_replace(seen(turned, Some(Duration::ZERO)));
        wait.await;
        assert!(start.elapsed() < IDLE_MAX);
    }
}
