//! Limits concurrent work per tenant or per address.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::TenantId;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::client::Network;

/// Smallest number of keys at which unused keys are removed.
const SWEEP_MIN: usize = 1024;

/// The permits of each tenant.
pub type PerTenant = PerKey<TenantId>;

/// Permits per key; about 100 bytes for each key in use.
pub struct PerKey<K> {
    permits: usize,
    semaphores: Mutex<Semaphores<K>>,
}

struct Semaphores<K> {
    by_key: HashMap<K, Arc<Semaphore>>,
    /// The size at which unused keys are removed from `by_key`.
    sweep_at: usize,
}

impl<K: Copy + Eq + Hash> Default for PerKey<K> {
    /// One permit per key.
    fn default() -> Self {
        Self::new(1)
    }
}

impl<K: Copy + Eq + Hash> PerKey<K> {
    /// `permits` permits per key.
    pub fn new(permits: usize) -> Self {
        Self { permits, semaphores: Mutex::new(Semaphores { by_key: HashMap::new(), sweep_at: SWEEP_MIN }) }
    }

    /// A permit for a key, if one is free.
    pub fn try_enter(&self, key: K) -> Option<OwnedSemaphorePermit> {
        self.of(key).try_acquire_owned().ok()
    }

    /// Waits for a permit for a key; `None` if that takes longer than `patience`.
    pub async fn enter(&self, key: K, patience: Duration) -> Option<OwnedSemaphorePermit> {
        timeout(patience, self.of(key).acquire_owned()).await.ok()?.ok()
    }

    fn of(&self, key: K) -> Arc<Semaphore> {
        let mut semaphores = self.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
        let Semaphores { by_key, sweep_at } = &mut *semaphores;
        if by_key.len() >= *sweep_at {
            // Each permit, and each wait for one, holds a reference besides the map's.
            by_key.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            *sweep_at = SWEEP_MIN.max(by_key.len() * 2);
        }
        Arc::clone(by_key.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.permits))))
    }
}

/// Permits for look-ups that unauthenticated callers cause: few at once, and one per address.
pub struct FirstLookUps {
    all: Arc<Semaphore>,
    by_address: PerKey<Option<Network>>,
}

impl FirstLookUps {
    /// At most `max` at once.
    pub fn new(max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(max)), by_address: PerKey::default() }
    }

    /// The permits for one look-up, if they are free.
    pub fn try_enter(&self, address: Option<IpAddr>) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.by_address.try_enter(address.map(Network::of))?;
        Some([own, Arc::clone(&self.all).try_acquire_owned().ok()?])
    }

    /// Waits for the permits for one look-up; `None` if that takes longer than `patience`.
    pub async fn enter(&self, address: Option<IpAddr>, patience: Duration) -> Option<[OwnedSemaphorePermit; 2]> {
        let both = async {
            let own = self.by_address.of(address.map(Network::of)).acquire_owned().await?;
            Ok::<_, AcquireError>([own, Arc::clone(&self.all).acquire_owned().await?])
        };
        timeout(patience, both).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_tenant_has_one_permit_and_none_of_another() {
        let one = PerTenant::default();
        let permit = one.try_enter(TenantId(1)).unwrap();
        assert!(one.try_enter(TenantId(1)).is_none());
        assert!(one.enter(TenantId(1), SOON).await.is_none());
        assert!(one.try_enter(TenantId(2)).is_some());
        drop(permit);
        assert!(one.enter(TenantId(1), Duration::from_secs(60)).await.is_some());
    }

    #[test]
    fn keys_that_are_not_in_use_are_forgotten_and_others_are_not() {
        let permits = PerKey::default();
        let permit = permits.try_enter(0);
        for key in 1..5 * SWEEP_MIN {
            assert!(permits.try_enter(key).is_some());
            assert!(permits.semaphores.lock().unwrap().by_key.len() <= 2 * SWEEP_MIN);
        }
        assert!(permit.is_some() && permits.try_enter(0).is_none());
    }

    #[tokio::test]
    async fn an_address_has_one_of_the_first_look_ups_and_leaves_the_others() {
        let look_ups = FirstLookUps::new(2);
        let address = |text: &str| Some(text.parse().unwrap());
        let one = look_ups.enter(address("192.0.2.1"), SOON).await;
        assert!(one.is_some() && look_ups.enter(address("192.0.2.1"), SOON).await.is_none());
        let other = look_ups.enter(address("192.0.2.2"), SOON).await;
        assert!(other.is_some() && look_ups.enter(None, SOON).await.is_none(), "there are two in all");
        assert!(look_ups.try_enter(address("192.0.2.1")).is_none() && look_ups.try_enter(None).is_none());
        drop(one);
        assert!(look_ups.try_enter(address("192.0.2.2")).is_none(), "it has its one");
        assert!(look_ups.try_enter(address("192.0.2.1")).is_some());
        assert!(look_ups.enter(address("192.0.2.1"), SOON).await.is_some());
    }
}
