//! One receiver that hangs must delay no other: how many of a lane's places calls to one origin may take.
//!
//! Three quarters of them; the others wait for one of those, which is a moment while it answers. Once calls to it that are under
//! way for more than a second hold an eighth, further ones are held back, each a little longer than the one before.

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

/// A call that takes longer is slow; no call waits longer for a place.
const SLOW: Duration = Duration::from_secs(1);
/// The longest time something is held back: short enough to find a receiver well again, long enough that whatever waits for a
/// slow one is not put off so often that it is given up.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// In a worker with few places the shares are no smaller than this.
const SHARE_MIN: usize = 4;
/// By how much a place outlives the time of its call, should the call never have been made.
const MARGIN: Duration = Duration::from_secs(5);

/// The calls under way, by origin.
pub struct Crowd {
    places: usize,
    origins: Mutex<HashMap<Key, Origin>>,
}

/// An origin, as one lane sees it.
pub type Key = (Lane, Arc<str>);

struct Origin {
    places: Arc<Semaphore>,
    slow_max: usize,
    calls: HashMap<DeliveryId, Call>,
    waiting: usize,
    /// When what is held back next may come again.
    next: Instant,
}

struct Call {
    since: Instant,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Crowd {
    /// For a worker that makes `places` calls at once in its widest lane.
    pub fn new(places: usize) -> Self {
        Self { places, origins: Mutex::default() }
    }

    /// Takes a place for a call, which may last for `time`.
    pub async fn enter(&self, key: &Key, delivery: DeliveryId, time: Duration) -> Result<(), HeldBack> {
        let places = {
            let mut origins = self.lock();
            let one = self.origin(&mut origins, key);
            let now = Instant::now();
            one.calls.retain(|_, call| now < call.until);
            if one.slow(now) >= one.slow_max {
                return Err(one.hold(now));
            }
            if let Ok(place) = Arc::clone(&one.places).try_acquire_owned() {
                one.calls.insert(delivery, Call::new(place, time));
                return Ok(());
            }
            one.waiting += 1;
            Arc::clone(&one.places)
        };
        let waiting = Waiting { crowd: self, key };
        let place = timeout(SLOW, places.acquire_owned()).await;
        drop(waiting);
        let mut origins = self.lock();
        let one = self.origin(&mut origins, key);
        match place {
            Ok(Ok(place)) => {
                one.calls.insert(delivery, Call::new(place, time));
                Ok(())
            }
            _ => Err(one.hold(Instant::now())),
        }
    }

    fn origin<'a>(&self, origins: &'a mut HashMap<Key, Origin>, key: &Key) -> &'a mut Origin {
        origins.entry(key.clone()).or_insert_with(|| Origin::new(crate::concurrency(self.places, key.0)))
    }

    /// Gives the place back.
    pub fn leave(&self, key: &Key, delivery: DeliveryId) {
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

/// Counts one who waits, however the wait ends.
struct Waiting<'a> {
    crowd: &'a Crowd,
    key: &'a Key,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(one) = self.crowd.lock().get_mut(self.key) {
            one.waiting = one.waiting.saturating_sub(1);
        }
    }
}

impl Origin {
    /// In a lane of so many places.
    fn new(places: usize) -> Self {
        let share = (places - places / 4).max(SHARE_MIN);
        Self {
            places: Arc::new(Semaphore::new(share)),
            slow_max: (places / 8).max(1),
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
    fn new(place: OwnedSemaphorePermit, time: Duration) -> Self {
        let since = Instant::now();
        Self { since, until: since + time + MARGIN, _place: place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The clock of these tests is paused and advances when all tasks wait, so the speed of the machine does not matter.

    fn origin(name: &str) -> Key {
        (Lane::Normal, Arc::from(name))
    }

    async fn enter(crowd: &Crowd, name: &str) -> Result<DeliveryId, HeldBack> {
        let delivery = DeliveryId::generate();
        crowd.enter(&origin(name), delivery, Duration::from_secs(10)).await.map(|()| delivery)
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_hangs_gets_most_places_and_then_none_and_others_are_not_held() {
        let crowd = Arc::new(Crowd::new(64));
        let all = (0..64).map(|_| {
            let crowd = Arc::clone(&crowd);
            async move { enter(&crowd, "hangs").await }
        });
        let begun = Instant::now();
        let ended = futures_util::future::join_all(all).await;
        assert_eq!(ended.iter().filter(|entered| entered.is_ok()).count(), 48);
        assert!(begun.elapsed() < 3 * SLOW, "nobody waits long");
        assert!(enter(&crowd, "answers").await.is_ok());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let held = enter(&crowd, "hangs").await.unwrap_err();
        assert!(held.wait >= SLOW && held.wait <= WAIT_MAX, "{held:?}");
        assert!(enter(&crowd, "hangs").await.unwrap_err().wait > held.wait, "each a little longer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_answers_at_once_is_never_held() {
        let crowd = Arc::new(Crowd::new(64));
        let calls = (0..300).map(|_| {
            let crowd = Arc::clone(&crowd);
            async move {
                let delivery = enter(&crowd, "quick").await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                crowd.leave(&origin("quick"), delivery);
                Ok::<_, HeldBack>(())
            }
        });
        assert!(futures_util::future::join_all(calls).await.into_iter().all(|ended| ended.is_ok()));
        assert!(crowd.lock().is_empty(), "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_never_used_comes_back() {
        let crowd = Crowd::new(8);
        for _ in 0..6 {
            crowd.enter(&origin("o"), DeliveryId::generate(), Duration::ZERO).await.unwrap();
        }
        for call in crowd.lock().values_mut().flat_map(|one| one.calls.values_mut()) {
            call.until = Instant::now();
        }
        assert!(enter(&crowd, "o").await.is_ok());
    }
}
