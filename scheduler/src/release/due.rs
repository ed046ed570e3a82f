//! Releases due deliveries to the broker: scheduled ones, retries, and all others that waited for a time.

use std::{sync::Arc, time::Duration};

use broker::Depths;
use deliveries::{Deliveries, poll::WorkKind, release::Released};
use domain::Route;
use engine::dispatch::Dispatcher;
use metrics::counter;
use runtime::{faultpoint, metric, wake};
use store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::{
    due_times::DueTimes,
    task::{Report, Task, TaskError, count_of},
};

/// Deliveries of one release when few are due: a statement of a few milliseconds.
const LIMIT_MIN: i64 = 500;
/// Deliveries of one release when many are due. Larger releases are no faster and hold their locks longer.
const LIMIT_MAX: i64 = 5000;
/// Releases that may be published at the same time: enough to keep the broker busy while the next one is read from the
/// database, and few enough to be confirmed long before a publish times out. All other deliveries stay in the table.
const PUBLISHES_MAX: usize = 4;
/// From this many ready messages in a queue on, all its deliveries wait in their tenants' fair shares: about a second's
/// work, as for acceptance.
const WINDOW: u32 = 4000;
/// How old the queue depths may be, when few and when many deliveries are due.
const DEPTHS_AGE: Duration = Duration::from_secs(1);
const DEPTHS_AGE_IN_WAVE: Duration = Duration::from_millis(100);

/// The task that releases due deliveries.
pub struct ReleaseDue {
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    depths: Depths,
    due_times: DueTimes,
    relay_after_ms: i32,
    limit: i64,
    permits: Arc<Semaphore>,
}

impl ReleaseDue {
    /// Publishes in background tasks of `tracker`. The relay publishes what is not published after `relay_after_ms`.
    pub fn new(
        store: Store,
        dispatcher: Dispatcher,
        tracker: TaskTracker,
        depths: Depths,
        due_times: DueTimes,
        relay_after_ms: i32,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(PUBLISHES_MAX));
        Self { store, dispatcher, tracker, depths, due_times, relay_after_ms, limit: LIMIT_MIN, permits }
    }

    async fn release(&mut self, permit: OwnedSemaphorePermit) -> Result<Report, TaskError> {
        let full = self.full_routes().await;
        let floors = self.due_times.floors();
        let released = self.store.due().release(self.limit, &floors, &full, self.relay_after_ms).await;
        let released = released.inspect_err(|_| self.limit = (self.limit / 2).max(LIMIT_MIN))?;
        if released.picked == 0 {
            return Ok(Report::Done);
        }
        faultpoint::pass(faultpoint::AFTER_RELEASE);
        let picked = i64::try_from(released.picked).unwrap_or(i64::MAX);
        counter!(metric::RELEASED).increment(count_of(released.handed_over()));
        if released.handed_over() < released.picked {
            wake::scheduler();
        }
        self.publish(released, permit);
        let (limit, report) = next(self.limit, picked);
        self.limit = limit;
        Ok(report)
    }

    /// Routes with long queues: the broker must not hold more than a window of a wave, whichever tenants it belongs to.
    /// Without an answer there are none, because unpublished deliveries wait in the outbox anyway.
    async fn full_routes(&self) -> Vec<Route> {
        let age = if self.limit > LIMIT_MIN { DEPTHS_AGE_IN_WAVE } else { DEPTHS_AGE };
        let routes: Vec<Route> = Route::all().collect();
        let ready = self.depths.ready(&routes, age).await.unwrap_or_default();
        ready.into_iter().filter(|(_, ready)| *ready >= WINDOW).map(|(route, _)| route).collect()
    }

    fn publish(&self, released: Released, permit: OwnedSemaphorePermit) {
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish_all(released.dispatches).await;
            drop(permit);
        });
    }
}

impl Task for ReleaseDue {
    const NAME: &'static str = "release_due";
    const PERIOD: Duration = Duration::from_millis(100);
    const WORK: Option<WorkKind> = Some(WorkKind::Due);

    async fn run(&mut self) -> Result<Report, TaskError> {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return Ok(Report::Done) };
        self.release(permit).await
    }
}

/// The size of the next release: twice as large after a full one (some due rows may belong to deliveries that moved
/// on), half as large after any other.
fn next(limit: i64, released: i64) -> (i64, Report) {
    if released >= limit / 10 * 9 {
        ((limit * 2).min(LIMIT_MAX), Report::More)
    } else {
        ((limit / 2).max(LIMIT_MIN), Report::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_grow_while_they_are_full_and_shrink_again() {
        let grown = (0..5).fold(LIMIT_MIN, |limit, _| next(limit, limit).0);
        assert_eq!(grown, LIMIT_MAX);
        assert_eq!(next(LIMIT_MAX, 4600), (LIMIT_MAX, Report::More));
        assert_eq!(next(LIMIT_MAX, 3), (LIMIT_MAX / 2, Report::Done));
        assert_eq!(next(LIMIT_MIN, 0), (LIMIT_MIN, Report::Done));
    }
}
