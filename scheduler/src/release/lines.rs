//! Releases deliveries from the pacing queues to the broker: WhatsApp sessions at their pace, and tenants' bulk
//! deliveries by fair share.
//!
//! The broker only holds a short window of bulk work. A tenant with 100,000 waiting deliveries keeps them in the
//! database, and the first delivery of another tenant is at most one window behind.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use broker::Depths;
use deliveries::{Deliveries, poll::WorkKind, release::Released};
use domain::{Lane, Route};
use engine::dispatch::Dispatcher;
use metrics::counter;
use runtime::metric;
use store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::task::{Report, Task, TaskError, count_of};

/// Sessions checked in one pass.
const SESSIONS_MAX: i64 = 500;
/// Shares fill the queue of a route up to this many deliveries: a quarter of a second's work for one worker.
const WINDOW: i32 = 1000;
/// The smallest release, because each release costs a commit.
const RELEASE_MIN: i32 = WINDOW / 4;
/// If other deliveries keep a queue longer than [`WINDOW`], shares still get this many in each [`PATIENCE`], up to a
/// queue of [`QUEUE_LONG`] messages. The bulk lane needs no such rule, because only shares fill it.
const TRICKLE: i32 = 25;
const PATIENCE: Duration = Duration::from_secs(1);
const QUEUE_LONG: u32 = 8000;
/// Publishes that may run at the same time.
const PUBLISHES_MAX: usize = 4;

/// The dependencies of both tasks.
#[derive(Clone)]
struct ReleaseDeps {
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    relay_after_ms: i32,
    permits: Arc<Semaphore>,
}

impl ReleaseDeps {
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    /// Publishes in the background, parallel to the next pass. The relay publishes what fails.
    fn publish(&self, released: Released, permit: Option<OwnedSemaphorePermit>) {
        counter!(metric::RELEASED).increment(count_of(released.handed_over()));
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish_all(released.dispatches).await;
            drop(permit);
        });
    }
}

/// The task for WhatsApp sessions.
pub struct ReleaseSessions(ReleaseDeps);

/// The task for fair shares.
pub struct ReleaseShares {
    deps: ReleaseDeps,
    depths: Depths,
    released_at: HashMap<Route, Instant>,
}

/// Creates both tasks. `depths` reports how many messages the broker holds.
pub fn tasks(
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    depths: Depths,
    relay_after_ms: i32,
) -> (ReleaseSessions, ReleaseShares) {
    let permits = Arc::new(Semaphore::new(PUBLISHES_MAX));
    let deps = ReleaseDeps { store, dispatcher, tracker, relay_after_ms, permits };
    (ReleaseSessions(deps.clone()), ReleaseShares { deps, depths, released_at: HashMap::new() })
}

impl Task for ReleaseSessions {
    const NAME: &'static str = "release_sessions";
    const PERIOD: Duration = Duration::from_millis(100);
    const WORK: Option<WorkKind> = Some(WorkKind::Sessions);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let permit = self.0.permit().await;
        let released = self.0.store.lines().release_sessions(SESSIONS_MAX, self.0.relay_after_ms).await?;
        if released.picked == 0 {
            return Ok(Report::Done);
        }
        self.0.publish(released, permit);
        Ok(Report::More)
    }
}

impl Task for ReleaseShares {
    const NAME: &'static str = "release_shares";
    const PERIOD: Duration = Duration::from_millis(50);
    const WORK: Option<WorkKind> = Some(WorkKind::Shares);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let routes = self.deps.store.lines().routes_with_shares().await?;
        if routes.is_empty() {
            return Ok(Report::Done);
        }
        for (route, capacity) in self.capacities(&routes).await {
            let permit = self.deps.permit().await;
            let released = self.deps.store.lines().release_shares(route, capacity, self.deps.relay_after_ms).await?;
            self.released_at.insert(route, Instant::now());
            self.deps.publish(released, permit);
        }
        // The queues take more as soon as workers have taken some messages.
        Ok(Report::Expect(Self::PERIOD))
    }
}

impl ReleaseShares {
    /// How many more deliveries the broker may hold, by route. Without an answer from the broker nothing is released,
    /// since it could not take anything.
    async fn capacities(&self, routes: &[Route]) -> Vec<(Route, i32)> {
        // Asks only about routes with waiting deliveries, and without a cached answer: an old one would release a
        // window twice.
        let ready = self.depths.ready(routes, Duration::ZERO).await.unwrap_or_default();
        let capacity = |(route, ready)| {
            let rested = self.released_at.get(&route).is_none_or(|at| at.elapsed() >= PATIENCE);
            Some((route, capacity(route, ready, rested)?))
        };
        ready.into_iter().filter_map(capacity).collect()
    }
}

/// How many deliveries of shares to add to a queue with `ready` messages. `rested`: shares released nothing to it for
/// [`PATIENCE`].
fn capacity(route: Route, ready: u32, rested: bool) -> Option<i32> {
    let capacity = WINDOW.saturating_sub(i32::try_from(ready).unwrap_or(i32::MAX));
    let is_starved = rested && route.lane != Lane::Bulk && ready < QUEUE_LONG;
    if capacity >= RELEASE_MIN { Some(capacity) } else { is_starved.then_some(TRICKLE) }
}

#[cfg(test)]
mod tests {
    use domain::Channel;

    use super::*;

    #[test]
    fn shares_fill_a_queue_up_to_a_window_and_are_not_starved_by_what_goes_past_them() {
        let of = |lane| Route { channel: Channel::Email, lane };
        assert_eq!(capacity(of(Lane::Bulk), 0, false), Some(WINDOW));
        assert_eq!(capacity(of(Lane::Normal), 700, true), Some(300));
        assert_eq!(capacity(of(Lane::Normal), 800, false), None, "releases in crumbs");
        assert_eq!(capacity(of(Lane::Normal), 5000, true), Some(TRICKLE), "a queue that others keep long");
        assert_eq!(capacity(of(Lane::Normal), QUEUE_LONG, true), None, "long enough for everybody");
        assert_eq!(capacity(of(Lane::Bulk), 1000, true), None, "nobody goes past the shares");
    }
}
