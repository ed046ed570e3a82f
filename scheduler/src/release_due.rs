//! Hands deliveries to the broker when their moment has come: scheduled ones, retries, whatever waited.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use shared::{
    amqp::Depths,
    db::{Store, poll::WorkKind, release::Released},
    dispatch::Dispatcher,
    domain::Route,
    faultpoint, wake,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::{
    poller::Outlook,
    task::{Report, Task, TaskError, count_of},
};

/// Deliveries of one release when little is due: a statement of a few milliseconds.
const LIMIT_MIN: i64 = 500;
/// Deliveries of one release when much is due. Larger ones gain nothing and hold their locks longer.
const LIMIT_MAX: i64 = 5000;
/// Releases on their way to the broker at once: enough to keep it busy while the next one is taken from the database,
/// and few enough to be confirmed long before a publish times out. What does not fit keeps waiting where it is listed.
const FLIGHTS_MAX: usize = 4;
/// Messages ready in a queue from which on all deliveries wait in their tenants' shares: about a second's work, as for
/// acceptance.
const WINDOW: u32 = 4000;
/// How old an answer about the queues may be, while little and while much is due.
const DEPTHS_AGE: Duration = Duration::from_secs(1);
const DEPTHS_AGE_IN_WAVE: Duration = Duration::from_millis(100);

/// The task.
pub struct ReleaseDue {
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    depths: Depths,
    outlook: Outlook,
    relay_after_ms: i32,
    limit: i64,
    flights: Arc<Semaphore>,
}

impl ReleaseDue {
    /// Publishing goes on in tasks of `tracker`; the relay takes over what is not published after `relay_after_ms`.
    pub fn new(
        store: Store,
        dispatcher: Dispatcher,
        tracker: TaskTracker,
        depths: Depths,
        outlook: Outlook,
        relay_after_ms: i32,
    ) -> Self {
        let flights = Arc::new(Semaphore::new(FLIGHTS_MAX));
        Self { store, dispatcher, tracker, depths, outlook, relay_after_ms, limit: LIMIT_MIN, flights }
    }

    async fn release(&mut self, flight: OwnedSemaphorePermit) -> Result<Report, TaskError> {
        let full = self.full_routes().await;
        let floors = self.outlook.floors();
        let released = self.store.release_due(self.limit, &floors, &full, self.relay_after_ms).await;
        let released = released.inspect_err(|_| self.limit = (self.limit / 2).max(LIMIT_MIN))?;
        if released.picked == 0 {
            return Ok(Report::Done);
        }
        faultpoint::pass(faultpoint::AFTER_RELEASE);
        let picked = i64::try_from(released.picked).unwrap_or(i64::MAX);
        counter!("posthaste_released_total").increment(count_of(released.handed_over()));
        if released.handed_over() < released.picked {
            wake::scheduler();
        }
        self.post(released, flight);
        let (limit, report) = next(self.limit, picked);
        self.limit = limit;
        Ok(report)
    }

    /// Routes whose queues are long: more than a window of a wave must not stand in the broker, whoever's it is. Without an
    /// answer there is none: what cannot be published waits in the outbox anyway.
    async fn full_routes(&self) -> Vec<Route> {
        let age = if self.limit > LIMIT_MIN { DEPTHS_AGE_IN_WAVE } else { DEPTHS_AGE };
        let routes: Vec<Route> = Route::all().collect();
        let ready = self.depths.ready(&routes, age).await.unwrap_or_default();
        ready.into_iter().filter(|(_, ready)| *ready >= WINDOW).map(|(route, _)| route).collect()
    }

    fn post(&self, released: Released, flight: OwnedSemaphorePermit) {
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish_all(released.dispatches).await;
            drop(flight);
        });
    }
}

impl Task for ReleaseDue {
    const NAME: &'static str = "release_due";
    const PERIOD: Duration = Duration::from_millis(100);
    const WORK: Option<WorkKind> = Some(WorkKind::Due);

    async fn run(&mut self) -> Result<Report, TaskError> {
        // The semaphore is never closed.
        let Ok(flight) = Arc::clone(&self.flights).acquire_owned().await else { return Ok(Report::Done) };
        self.release(flight).await
    }
}

/// Twice as many after a release that was full (some due rows may belong to deliveries that moved on), half as many
/// after one that was not.
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
