//! Polls the database for all tasks with one statement, and wakes those that have something to do.
//!
//! A task that did all there was rests until a poll finds work of its kind, to the moment if it is due later. So an idle
//! scheduler makes some ten statements a second, however many tasks it has.

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

/// Polls are at least this far apart, however often the scheduler is woken.
const SPACING: Duration = Duration::from_millis(25);
/// How often a poll begins at no floor: what became due in the past is found then.
const WHOLE_EVERY: Duration = Duration::from_secs(15);
/// A task takes a turn after this long even if no poll finds work for it: it may set gauges or forget old rows.
const ANYWAY_AFTER: Duration = Duration::from_secs(5);

/// The task.
pub struct Poller {
    store: Store,
    seen: watch::Sender<Seen>,
    whole_at: Option<Instant>,
}

/// What the last poll saw.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// When it began; `None`: there was none yet.
    at: Option<Instant>,
    due: HashMap<WorkKind, Instant>,
    floors: Floors,
}

/// What a task knows of the polls.
#[derive(Clone)]
pub struct Outlook(watch::Receiver<Seen>);

/// Of no poller: a task with a kind of work goes on every period.
#[cfg(test)]
impl Default for Outlook {
    fn default() -> Self {
        Self(watch::channel(Seen::default()).1)
    }
}

impl Poller {
    /// The task, and what it tells the others.
    pub fn new(store: Store) -> (Self, Outlook) {
        let (seen, outlook) = watch::channel(Seen::default());
        (Self { store, seen, whole_at: None }, Outlook(outlook))
    }
}

impl Task for Poller {
    const NAME: &'static str = "poll";
    /// How late work may be that another process stored, due at once.
    const PERIOD: Duration = Duration::from_millis(100);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let at = Instant::now();
        let is_whole = self.whole_at.is_none_or(|whole| whole.elapsed() >= WHOLE_EVERY);
        let floors = if is_whole { Floors::new() } else { self.seen.borrow().floors.clone() };
        let poll = self.store.poll(&floors).await.inspect_err(|_| show_lag(None))?;
        if is_whole {
            self.whole_at = Some(at);
        }
        show_lag(Some(&poll));
        self.seen.send_replace(Seen::of(&poll, at, Instant::now()));
        Ok(Report::Done)
    }

    async fn rest(&mut self, pause: Duration) {
        sleep(SPACING).await;
        // Woken or not, it polls.
        let _ = timeout(pause.saturating_sub(SPACING), wake::called()).await;
    }
}

/// Shows how late the first delivery and the first digest are. After a failed poll that is unknown, and an old number would pass for the
/// present one.
fn show_lag(poll: Option<&Poll>) {
    let lag = |work| poll.map_or(f64::NAN, |poll| poll.lag_seconds(work));
    gauge!("posthaste_scheduler_lag_seconds").set(lag(WorkKind::Due));
    gauge!("posthaste_digest_lag_seconds").set(lag(WorkKind::Digests));
}

impl Seen {
    /// Of a poll that began `at` and was answered at `now`. Waits count from the answer: a task that is a moment early finds
    /// nothing, and rests.
    fn of(poll: &Poll, at: Instant, now: Instant) -> Self {
        let wait = |wait: TimeDelta| wait.to_std().unwrap_or_default();
        let due = poll.due.iter().map(|(work, due)| (*work, now + wait(*due - poll.now))).collect();
        Self { at: Some(at), due, floors: poll.floors() }
    }
}

impl Outlook {
    /// Where the statements of a kind of work may begin.
    pub fn floors(&self) -> Floors {
        self.0.borrow().floors.clone()
    }

    /// Waits until work of this kind is due, as a poll says that began after `turned`. An older one may tell of work that the
    /// task's last turn did.
    pub async fn wait(&mut self, work: WorkKind, turned: Instant) {
        // Late or in time, the task takes its turn.
        let _ = timeout(ANYWAY_AFTER, self.until_due(work, turned)).await;
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
                // Without a poller there is no news any more.
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

    fn seen(at: Instant, wait: Option<Duration>) -> Seen {
        Seen {
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
        let (poller, receiver) = watch::channel(Seen::default());
        let (mut outlook, start) = (Outlook(receiver), Instant::now());
        let turned = start + Duration::from_millis(5);
        let mut wait = pin!(outlook.wait(WorkKind::Due, turned));
        for (at, due) in [(start, Some(Duration::ZERO)), (turned, None), (turned, Some(Duration::from_secs(3600)))] {
            poller.send_replace(seen(at, due));
            assert!(wait.as_mut().now_or_never().is_none(), "an old poll, one that found nothing, one for later");
        }
        poller.send_replace(seen(turned, Some(Duration::ZERO)));
        wait.await;
        assert!(start.elapsed() < ANYWAY_AFTER);
    }
}
