//! Limits the calls of a lane to one origin, so that one slow receiver delays no other.
//!
//! Calls to one origin take at most three quarters of the permits of a lane; further calls wait for one. Once slow calls, those
//! that last for more than a second, hold an eighth, further calls are held back, each a little longer than the one before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{DeliveryId, Lane, contract::provider::HeldBack};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// A call that takes longer is slow. No call waits longer for a permit.
const SLOW: Duration = Duration::from_secs(1);
/// The longest time a call is held back: short enough to notice a receiver that works again, long enough that a delivery to a
/// slow one is not held back so often that it is given up.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The least share of an origin, for workers with few permits.
const SHARE_MIN: usize = 4;
/// A permit of a call that is never made ends this long after the time of the call.
const MARGIN: Duration = Duration::from_secs(5);

/// The calls under way, by origin.
pub struct OriginLimiter {
    permits: usize,
    origins: Mutex<HashMap<Key, Origin>>,
}

/// An origin, as one lane sees it.
pub type Key = (Lane, Arc<str>);

struct Origin {
    permits: Arc<Semaphore>,
    slow_max: usize,
    calls: HashMap<DeliveryId, Call>,
    waiting: usize,
    /// When the next call that is held back may come again.
    next: Instant,
}

struct Call {
    since: Instant,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl OriginLimiter {
    /// For a worker that makes `permits` calls at once in its widest lane.
    pub fn new(permits: usize) -> Self {
        Self { permits, origins: Mutex::default() }
    }

    /// Takes a permit for a call, which may last for `time`.
    pub async fn acquire(&self, key: &Key, delivery: DeliveryId, time: Duration) -> Result<(), HeldBack> {
        let permits = {
            let mut origins = self.lock();
            let one = self.origin(&mut origins, key);
            let now = Instant::now();
            one.calls.retain(|_, call| now < call.until);
            if one.slow(now) >= one.slow_max {
                return Err(one.hold(now));
            }
            if let Ok(permit) = Arc::clone(&one.permits).try_acquire_owned() {
                one.calls.insert(delivery, Call::new(permit, time));
                return Ok(());
            }
            one.waiting += 1;
            Arc::clone(&one.permits)
        };
        let waiting = Waiting { limiter: self, key };
        let permit = timeout(SLOW, permits.acquire_owned()).await;
        drop(waiting);
        let mut origins = self.lock();
        let one = self.origin(&mut origins, key);
        match permit {
            Ok(Ok(permit)) => {
                one.calls.insert(delivery, Call::new(permit, time));
                Ok(())
            }
            _ => Err(one.hold(Instant::now())),
        }
    }

    fn origin<'a>(&self, origins: &'a mut HashMap<Key, Origin>, key: &Key) -> &'a mut Origin {
        origins.entry(key.clone()).or_insert_with(|| Origin::new(crate::concurrency(self.permits, key.0)))
    }

    /// Returns the permit.
    pub fn release(&self, key: &Key, delivery: DeliveryId) {
        let mut origins = self.lock();
        let Some(one) = origins.get_mut(key) else { return };
        let now = Instant::now();
        if one.calls.remove(&delivery).is_some_and(|call| now.duration_since(call.since) < SLOW) {
            one.next = now;
        }
        if one.calls.is_empty() && one.waiting == 0 && one.next <= now {
            origins.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Origin>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a waiting call, however its wait ends.
struct Waiting<'a> {
    limiter: &'a OriginLimiter,
    key: &'a Key,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(one) = self.limiter.lock().get_mut(self.key) {
            one.waiting = one.waiting.saturating_sub(1);
        }
    }
}

impl Origin {
    /// In a lane of so many permits.
    fn new(permits: usize) -> Self {
        let share = (permits - permits / 4).max(SHARE_MIN);
        Self {
            permits: Arc::new(Semaphore::new(share)),
            slow_max: (permits / 8).max(1),
            calls: HashMap::new(),
            waiting: 0,
            next: Instant::now(),
        }
    }

    fn slow(&self, now: Instant) -> usize {
        self.calls.values().filter(|call| now.duration_since(call.since) > SLOW).count()
    }

    /// As many come again in a second as may be slow at once.
    fn hold(&mut self, now: Instant) -> HeldBack {
        let step = SLOW / u32::try_from(self.slow_max).unwrap_or(u32::MAX);
        self.next = (self.next.max(now) + step).min(now + WAIT_MAX);
        let wait = self.next.duration_since(now).max(SLOW);
        HeldBack { reason: "its receiver is slow and has its share of calls already", wait }
    }
}

impl Call {
    fn new(permit: OwnedSemaphorePermit, time: Duration) -> Self {
        let since = Instant::now();
        Self { since, until: since + time + MARGIN, _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The clock of these tests is paused and advances when all tasks wait, so the speed of the machine does not matter.

    fn origin(name: &str) -> Key {
        (Lane::Normal, Arc::from(name))
    }

    async fn acquire(limiter: &OriginLimiter, name: &str) -> Result<DeliveryId, HeldBack> {
        let delivery = DeliveryId::generate();
        limiter.acquire(&origin(name), delivery, Duration::from_secs(10)).await.map(|()| delivery)
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_hangs_gets_most_places_and_then_none_and_others_are_not_held() {
        let limiter = Arc::new(OriginLimiter::new(64));
        let all = (0..64).map(|_| {
            let limiter = Arc::clone(&limiter);
            async move { acquire(&limiter, "hangs").await }
        });
        let begun = Instant::now();
        let ended = futures_util::future::join_all(all).await;
        assert_eq!(ended.iter().filter(|entered| entered.is_ok()).count(), 48);
        assert!(begun.elapsed() < 3 * SLOW, "nobody waits long");
        assert!(acquire(&limiter, "answers").await.is_ok());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let held = acquire(&limiter, "hangs").await.unwrap_err();
        assert!(held.wait >= SLOW && held.wait <= WAIT_MAX, "{held:?}");
        assert!(acquire(&limiter, "hangs").await.unwrap_err().wait > held.wait, "each a little longer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_answers_at_once_is_never_held() {
        let limiter = Arc::new(OriginLimiter::new(64));
        let calls = (0..300).map(|_| {
            let limiter = Arc::clone(&limiter);
            async move {
                let delivery = acquire(&limiter, "quick").await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                limiter.release(&origin("quick"), delivery);
                Ok::<_, HeldBack>(())
            }
        });
        assert!(futures_util::future::join_all(calls).await.into_iter().all(|ended| ended.is_ok()));
        assert!(limiter.lock().is_empty(), "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_never_used_comes_back() {
        let limiter = OriginLimiter::new(8);
        for _ in 0..6 {
            limiter.acquire(&origin("o"), DeliveryId::generate(), Duration::ZERO).await.unwrap();
        }
        for call in limiter.lock().values_mut().flat_map(|one| one.calls.values_mut()) {
            call.until = Instant::now();
        }
        assert!(acquire(&limiter, "o").await.is_ok());
    }
}
