//! Hands deliveries to the broker when their line has a slot: WhatsApp sessions at their pace, and tenants' bulk in turns.
//!
//! The broker only ever holds a short window of bulk work: a tenant with 100,000 waiting deliveries keeps them in the
//! database, and another tenant's first one is at most a window behind.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::counter;
use shared::{
    amqp::Depths,
    db::{Store, poll::WorkKind, release::Released},
    dispatch::Dispatcher,
    domain::{Lane, Route},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::task::{Report, Task, TaskError, count_of};

/// Sessions looked at in one pass.
const SESSIONS_MAX: i64 = 500;
/// Deliveries of one route up to which shares fill its queue: a quarter of a second's work for one worker.
const WINDOW: i32 = 1000;
/// Releasing in crumbs costs a commit each.
const ROOM_MIN: i32 = WINDOW / 4;
/// Where other deliveries keep a queue longer than [`WINDOW`], shares get as many as this in each [`PATIENCE`] all the same,
/// up to a queue of [`LONG`]. The bulk lane is filled by shares alone.
const TRICKLE: i32 = 25;
const PATIENCE: Duration = Duration::from_secs(1);
const LONG: u32 = 8000;
/// Publishes under way at once.
const FLIGHTS_MAX: usize = 4;

/// What both tasks do with what they took.
#[derive(Clone)]
struct Desk {
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    relay_after_ms: i32,
    flights: Arc<Semaphore>,
}

impl Desk {
    async fn flight(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.flights).acquire_owned().await.ok()
    }

    /// Publishes beside the next pass; whatever fails is left to the relay.
    fn post(&self, released: Released, flight: Option<OwnedSemaphorePermit>) {
        counter!("posthaste_released_total").increment(count_of(released.handed_over()));
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish_all(released.dispatches).await;
            drop(flight);
        });
    }
}

/// The task for sessions.
pub struct ReleaseSessions(Desk);

/// The task for shares.
pub struct ReleaseShares {
    desk: Desk,
    depths: Depths,
    released_at: HashMap<Route, Instant>,
}

/// Both tasks; `depths` says how much the broker holds.
pub fn tasks(
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    depths: Depths,
    relay_after_ms: i32,
) -> (ReleaseSessions, ReleaseShares) {
    let flights = Arc::new(Semaphore::new(FLIGHTS_MAX));
    let desk = Desk { store, dispatcher, tracker, relay_after_ms, flights };
    (ReleaseSessions(desk.clone()), ReleaseShares { desk, depths, released_at: HashMap::new() })
}

impl Task for ReleaseSessions {
    const NAME: &'static str = "release_sessions";
    const PERIOD: Duration = Duration::from_millis(100);
    const WORK: Option<WorkKind> = Some(WorkKind::Sessions);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let flight = self.0.flight().await;
        let released = self.0.store.release_sessions(SESSIONS_MAX, self.0.relay_after_ms).await?;
        if released.picked == 0 {
            return Ok(Report::Done);
        }
        self.0.post(released, flight);
        Ok(Report::More)
    }
}

impl Task for ReleaseShares {
    const NAME: &'static str = "release_shares";
    const PERIOD: Duration = Duration::from_millis(50);
    const WORK: Option<WorkKind> = Some(WorkKind::Shares);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let routes = self.desk.store.routes_with_shares().await?;
        if routes.is_empty() {
            return Ok(Report::Done);
        }
        for (route, room) in self.rooms(&routes).await {
            let flight = self.desk.flight().await;
            let released = self.desk.store.release_shares(route, room, self.desk.relay_after_ms).await?;
            self.released_at.insert(route, Instant::now());
            self.desk.post(released, flight);
        }
        // What is left has room as soon as workers have taken some of it.
        Ok(Report::Expect(Self::PERIOD))
    }
}

impl ReleaseShares {
    /// How much more of each route the broker may hold. While it does not answer, nothing is released: it could not take it.
    async fn rooms(&self, routes: &[Route]) -> Vec<(Route, i32)> {
        // Only the routes in which something waits, and as they stand now: an old answer would release a window twice.
        let ready = self.depths.ready(routes, Duration::ZERO).await.unwrap_or_default();
        let room = |(route, ready)| {
            let rested = self.released_at.get(&route).is_none_or(|at| at.elapsed() >= PATIENCE);
            Some((route, room(route, ready, rested)?))
        };
        ready.into_iter().filter_map(room).collect()
    }
}

/// How many deliveries of shares a queue with so many messages takes now; `rested`: it took none for a while.
fn room(route: Route, ready: u32, rested: bool) -> Option<i32> {
    let room = WINDOW.saturating_sub(i32::try_from(ready).unwrap_or(i32::MAX));
    let is_starved = rested && route.lane != Lane::Bulk && ready < LONG;
    if room >= ROOM_MIN { Some(room) } else { is_starved.then_some(TRICKLE) }
}

#[cfg(test)]
mod tests {
    use shared::domain::Channel;

    use super::*;

    #[test]
    fn shares_fill_a_queue_up_to_a_window_and_are_not_starved_by_what_goes_past_them() {
        let of = |lane| Route { channel: Channel::Email, lane };
        assert_eq!(room(of(Lane::Bulk), 0, false), Some(WINDOW));
        assert_eq!(room(of(Lane::Normal), 700, true), Some(300));
        assert_eq!(room(of(Lane::Normal), 800, false), None, "releases in crumbs");
        assert_eq!(room(of(Lane::Normal), 5000, true), Some(TRICKLE), "a queue that others keep long");
        assert_eq!(room(of(Lane::Normal), LONG, true), None, "long enough for everybody");
        assert_eq!(room(of(Lane::Bulk), 1000, true), None, "nobody goes past the shares");
    }
}
