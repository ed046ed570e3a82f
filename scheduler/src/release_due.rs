//! Hands deliveries to the broker when their moment has come: scheduled ones, retries, whatever waited.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use shared::{
    db::{Store, outbox::Dispatch},
    dispatch::Dispatcher,
    faultpoint,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::task::{Report, Task, TaskError, count_of};

/// Deliveries of one release when little is due: a statement of a few milliseconds.
const LIMIT_MIN: i64 = 500;
/// Deliveries of one release when much is due. Larger ones gain nothing and hold their locks longer.
const LIMIT_MAX: i64 = 5000;
/// Releases on their way to the broker at once: enough to keep it busy while the next one is taken from the database,
/// and few enough to be confirmed long before a publish times out. What does not fit keeps waiting where it is listed.
const FLIGHTS_MAX: usize = 4;

/// The task.
pub struct ReleaseDue {
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    relay_after_ms: i32,
    limit: i64,
    flights: Arc<Semaphore>,
}

impl ReleaseDue {
    /// Publishing goes on in tasks of `tracker`; the relay takes over what is not published after `relay_after_ms`.
    pub fn new(store: Store, dispatcher: Dispatcher, tracker: TaskTracker, relay_after_ms: i32) -> Self {
        let flights = Arc::new(Semaphore::new(FLIGHTS_MAX));
        Self { store, dispatcher, tracker, relay_after_ms, limit: LIMIT_MIN, flights }
    }

    async fn release(&mut self, flight: OwnedSemaphorePermit) -> Result<Report, TaskError> {
        let Some(dispatch) = self.store.release_due(self.limit, self.relay_after_ms).await? else {
            return Ok(Report::Done);
        };
        faultpoint::pass(faultpoint::AFTER_RELEASE);
        let released = dispatch.items.len();
        counter!("posthaste_released_total").increment(count_of(released));
        self.post(dispatch, flight);
        let (limit, report) = next(self.limit, i64::try_from(released).unwrap_or(i64::MAX));
        self.limit = limit;
        Ok(report)
    }

    fn post(&self, dispatch: Dispatch, flight: OwnedSemaphorePermit) {
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish(dispatch).await;
            drop(flight);
        });
    }
}

impl Task for ReleaseDue {
    const NAME: &'static str = "release_due";
    /// How late a delivery may be that became due without our expecting it.
    const PERIOD: Duration = Duration::from_millis(100);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let due_in = self.store.due_in_seconds().await?;
        gauge!("posthaste_scheduler_lag_seconds").set(due_in.map_or(0.0, |seconds| (-seconds).max(0.0)));
        match due_in {
            None => return Ok(Report::Done),
            Some(seconds) if seconds > 0.0 => {
                return Ok(Report::Expect(Duration::try_from_secs_f64(seconds).unwrap_or(Self::PERIOD)));
            }
            Some(_) => {}
        }
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
