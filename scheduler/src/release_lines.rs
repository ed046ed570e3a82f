//! Hands deliveries to the broker when their line has a slot: WhatsApp sessions at their pace, and tenants' bulk in turns.
//!
//! The broker only ever holds a short window of bulk work: a tenant with 100,000 waiting deliveries keeps them in the
//! database, and another tenant's first one is at most a window behind.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use shared::{
    amqp::{Broker, declare::depths, work_queue},
    db::{Store, outbox::Dispatch},
    dispatch::Dispatcher,
    domain::Route,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::task::{Report, Task, TaskError, count_of};

/// Sessions looked at in one pass.
const SESSIONS_MAX: i64 = 500;
/// Bulk deliveries of one route that the broker holds at most: a quarter of a second's work for one worker.
const WINDOW: i32 = 1000;
/// Releasing in crumbs costs a commit each.
const ROOM_MIN: i32 = WINDOW / 4;
/// Publishes under way at once.
const FLIGHTS_MAX: usize = 4;
/// A healthy broker tells the depth of all queues in a few milliseconds.
const DEPTHS_TIMEOUT: Duration = Duration::from_secs(5);

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
    fn post(&self, dispatch: Dispatch, flight: Option<OwnedSemaphorePermit>) -> usize {
        let count = dispatch.items.len();
        counter!("posthaste_released_total").increment(count_of(count));
        let dispatcher = self.dispatcher.clone();
        self.tracker.spawn(async move {
            dispatcher.publish(dispatch).await;
            drop(flight);
        });
        count
    }
}

/// The task for sessions.
pub struct ReleaseSessions(Desk);

/// The task for shares.
pub struct ReleaseShares {
    desk: Desk,
    broker: Broker,
}

/// Both tasks; `broker` is asked how much waits in its queues.
pub fn tasks(
    store: Store,
    dispatcher: Dispatcher,
    tracker: TaskTracker,
    broker: Broker,
    relay_after_ms: i32,
) -> (ReleaseSessions, ReleaseShares) {
    let flights = Arc::new(Semaphore::new(FLIGHTS_MAX));
    let desk = Desk { store, dispatcher, tracker, relay_after_ms, flights };
    (ReleaseSessions(desk.clone()), ReleaseShares { desk, broker })
}

impl Task for ReleaseSessions {
    const NAME: &'static str = "release_sessions";
    const PERIOD: Duration = Duration::from_millis(100);

    async fn run(&mut self) -> Result<Report, TaskError> {
        match self.0.store.session_free_in_seconds().await? {
            None => return Ok(Report::Done),
            Some(seconds) if seconds > 0.0 => {
                return Ok(Report::Expect(Duration::try_from_secs_f64(seconds).unwrap_or(Self::PERIOD)));
            }
            Some(_) => {}
        }
        let flight = self.0.flight().await;
        let released = self.0.store.release_sessions(SESSIONS_MAX, self.0.relay_after_ms).await?;
        Ok(released.map_or(Report::Done, |dispatch| {
            self.0.post(dispatch, flight);
            Report::More
        }))
    }
}

impl Task for ReleaseShares {
    const NAME: &'static str = "release_shares";
    const PERIOD: Duration = Duration::from_millis(50);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let routes = self.desk.store.routes_with_shares().await?;
        if routes.is_empty() {
            return Ok(Report::Done);
        }
        for (route, room) in self.rooms(&routes).await {
            let flight = self.desk.flight().await;
            let released = self.desk.store.release_shares(route, room, self.desk.relay_after_ms).await?;
            released.map(|dispatch| self.desk.post(dispatch, flight));
        }
        Ok(Report::Done)
    }
}

impl ReleaseShares {
    /// How much more of each route the broker may hold. While it does not answer, nothing is released: it could not take it.
    async fn rooms(&self, routes: &[Route]) -> Vec<(Route, i32)> {
        let Some(connection) = self.broker.connection() else { return Vec::new() };
        let Ok(Ok(depths)) = timeout(DEPTHS_TIMEOUT, depths(&connection)).await else { return Vec::new() };
        let room = |route: &Route| {
            let queue = work_queue(*route);
            let depth = depths.iter().find(|depth| depth.name == queue)?;
            let ready = i32::try_from(depth.messages_ready).unwrap_or(i32::MAX);
            Some((*route, WINDOW.saturating_sub(ready))).filter(|(_, room)| *room >= ROOM_MIN)
        };
        routes.iter().filter_map(room).collect()
    }
}
