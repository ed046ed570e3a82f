//! Local dispatch, for a process that both accepts and sends. If a pool has a free attempt permit, the delivery is claimed in the
//! commit that accepts it, and the attempt begins at once, without the broker.
//!
//! Such a delivery is never in a queue, so its database rows replace the queue's redelivery. Its state is `sending` until its
//! lease ends. If this process dies, the outbox row makes the audit check the delivery at that time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use broker::{BrokerState, ConsumerHealth};
use deliveries::claim::Claim;
use domain::Route;
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{Receiver, Sender, channel},
    watch,
};

/// The pools of this process that take deliveries directly at acceptance. Clones share them.
#[derive(Clone, Default)]
pub struct LocalDispatch(Arc<Mutex<HashMap<Route, Pool>>>);

/// The limits and signals of a pool that opens for local dispatch.
pub struct PoolLimits {
    /// The pool's consumer. While it does not consume, nothing is dispatched locally: the process is about to end, or the broker
    /// is away.
    pub health: Arc<ConsumerHealth>,
    /// The connection that outcomes are published on. While the broker does not read from it, nothing is claimed.
    pub reporting: watch::Receiver<BrokerState>,
    /// The pool's attempt permits. Tasks that already wait for a permit come first.
    pub room: Arc<Semaphore>,
    /// Maximum locally dispatched deliveries whose outcomes are not yet stored.
    pub in_flight: usize,
    /// The lease of a claim, in ms.
    pub lease_ms: i32,
}

struct Pool {
    limits: PoolLimits,
    in_flight: Arc<Semaphore>,
    sender: Sender<LocalClaim>,
}

impl Pool {
    fn is_open(&self) -> bool {
        self.limits.health.is_consuming() && self.limits.reporting.borrow().is_usable() && !self.sender.is_closed()
    }
}

/// A delivery that was claimed at acceptance.
pub struct LocalClaim {
    /// The claim.
    pub claim: Claim,
    /// The time right before the commit was sent. The lease is measured from it.
    pub claimed_at: Instant,
    /// The attempt permit.
    pub room: OwnedSemaphorePermit,
    /// The permit of a delivery in flight, held until its outcome is stored.
    pub in_flight_permit: OwnedSemaphorePermit,
}

/// The permits for one delivery that is about to be accepted. Dropping it releases them.
pub struct Reservation {
    attempt_permit: OwnedSemaphorePermit,
    in_flight_permit: OwnedSemaphorePermit,
    lease_ms: i32,
    sender: Sender<LocalClaim>,
}

impl Reservation {
    /// The lease of the claim, in ms.
    pub const fn lease_ms(&self) -> i32 {
        self.lease_ms
    }

    /// Sends the accepted delivery to its pool. The channel always has room, because this reservation holds an in-flight permit.
    /// If the pool has ended, the delivery is sent again after its lease ends.
    pub fn send(self, claim: Claim, claimed_at: Instant) {
        let delivery = claim.delivery;
        if self
            .sender
            .try_send(LocalClaim {
                claim,
                claimed_at,
                room: self.attempt_permit,
                in_flight_permit: self.in_flight_permit,
            })
            .is_err()
        {
            tracing::warn!(delivery.id = %delivery, "the pool has gone that was to send a delivery: it goes out again when its lease ends");
        }
    }
}

impl LocalDispatch {
    /// Opens local dispatch to the pool of `route`. The receiver closes after [`LocalDispatch::close`], when no reservation
    /// is left.
    pub fn open(&self, route: Route, limits: PoolLimits) -> Receiver<LocalClaim> {
        let (sender, local_claims) = channel(limits.in_flight);
        let in_flight = Arc::new(Semaphore::new(limits.in_flight));
        self.pools().insert(route, Pool { limits, in_flight, sender });
        local_claims
    }

    /// Closes local dispatch to the pool of `route`: it gives no more reservations.
    pub fn close(&self, route: Route) {
        self.pools().remove(&route);
    }

    /// Reserves the permits for a delivery that is about to be accepted. `None`: it cannot be sent at once.
    pub fn reserve(&self, route: Route) -> Option<Reservation> {
        let pools = self.pools();
        let pool = pools.get(&route).filter(|pool| pool.is_open())?;
        let attempt_permit = Arc::clone(&pool.limits.room).try_acquire_owned().ok()?;
        let in_flight_permit = Arc::clone(&pool.in_flight).try_acquire_owned().ok()?;
        Some(Reservation {
            attempt_permit,
            in_flight_permit,
            lease_ms: pool.limits.lease_ms,
            sender: pool.sender.clone(),
        })
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<Route, Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{Address, Channel, DeliveryId, FailoverRound, Lane, MessageId, TenantId, Tries, clock};

    const ROUTE: Route = Route { channel: Channel::Webhook, lane: Lane::Normal };

    fn limits(is_consuming: bool, room: usize, in_flight: usize) -> PoolLimits {
        let health = ConsumerHealth::new("test", is_consuming);
        let reporting = watch::channel(BrokerState::Up { generation: 1 }).1;
        PoolLimits { health, reporting, room: Arc::new(Semaphore::new(room)), in_flight, lease_ms: 20_000 }
    }

    fn claim() -> Claim {
        Claim {
            delivery: DeliveryId::generate(),
            run: 1,
            message: MessageId::generate(),
            tenant: TenantId(1),
            recipient: Address::new("https://example.com/hook"),
            line: None,
            tries: Tries::default(),
            round: FailoverRound::NEW,
            waiting_since: None,
            suppressed: Vec::new(),
            user_id: None,
            policy: None,
            content: Vec::new(),
            accepted_at: clock::now(),
            expires_at: None,
            request_id: None,
            traceparent: None,
        }
    }

    #[tokio::test]
    async fn only_a_pool_that_is_there_and_has_room_gives_places() {
        let local_dispatch = LocalDispatch::default();
        assert!(local_dispatch.reserve(ROUTE).is_none(), "there is no pool");
        let _away = local_dispatch.open(ROUTE, limits(false, 2, 9));
        assert!(local_dispatch.reserve(ROUTE).is_none(), "its consumer is away");
        let busy = limits(true, 2, 9);
        let room = Arc::clone(&busy.room);
        let early = local_dispatch.open(ROUTE, busy);
        let first = local_dispatch.reserve(ROUTE).unwrap();
        assert_eq!(first.lease_ms(), 20_000);
        let from_broker = room.acquire().await.unwrap();
        assert!(local_dispatch.reserve(ROUTE).is_none(), "both attempts are under way");
        drop(first);
        assert!(local_dispatch.reserve(ROUTE).is_some());
        drop(from_broker);
        drop(early);
        assert!(local_dispatch.reserve(ROUTE).is_none(), "the pool has died");
        let _early = local_dispatch.open(ROUTE, limits(true, 2, 9));
        assert!(local_dispatch.reserve(ROUTE).is_some());
        local_dispatch.close(ROUTE);
        assert!(local_dispatch.reserve(ROUTE).is_none(), "it was closed");
    }

    #[tokio::test]
    async fn nothing_is_claimed_while_no_outcome_could_be_reported() {
        let local_dispatch = LocalDispatch::default();
        let (state, reporting) = watch::channel(BrokerState::Up { generation: 1 });
        let _early = local_dispatch.open(ROUTE, PoolLimits { reporting, ..limits(true, 9, 9) });
        assert!(local_dispatch.reserve(ROUTE).is_some());
        let reason = "memory alarm".to_owned();
        state.send_replace(BrokerState::Blocked { generation: 1, reason: reason.clone() });
        assert!(local_dispatch.reserve(ROUTE).is_none(), "the broker is blocked");
        state.send_replace(BrokerState::Down { reason });
        assert!(local_dispatch.reserve(ROUTE).is_none(), "the broker is away");
        state.send_replace(BrokerState::Up { generation: 2 });
        assert!(local_dispatch.reserve(ROUTE).is_some());
    }

    #[tokio::test]
    async fn outcomes_that_are_not_written_down_bound_what_is_under_way() {
        let local_dispatch = LocalDispatch::default();
        let mut early = local_dispatch.open(ROUTE, limits(true, 9, 2));
        for _ in 0..2 {
            local_dispatch.reserve(ROUTE).unwrap().send(claim(), Instant::now());
        }
        let LocalClaim { room, in_flight_permit, .. } = early.recv().await.unwrap();
        drop(room);
        assert!(local_dispatch.reserve(ROUTE).is_none(), "its attempt has ended, that is all");
        drop(in_flight_permit);
        assert!(local_dispatch.reserve(ROUTE).is_some());
    }

    #[tokio::test]
    async fn a_closed_way_ends_when_nobody_has_a_place_any_more() {
        let local_dispatch = LocalDispatch::default();
        let mut early = local_dispatch.open(ROUTE, limits(true, 9, 9));
        let [accepted, refused] = [(); 2].map(|()| local_dispatch.reserve(ROUTE).unwrap());
        local_dispatch.close(ROUTE);
        assert!(early.try_recv().is_err_and(|error| error == tokio::sync::mpsc::error::TryRecvError::Empty));
        accepted.send(claim(), Instant::now());
        assert!(early.recv().await.is_some());
        drop(refused);
        assert!(early.recv().await.is_none());
    }
}
