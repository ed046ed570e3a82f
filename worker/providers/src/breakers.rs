//! Circuit breakers of a worker. Their state is in the database, and all workers share it. A worker caches the breakers in
//! trouble (not closed, paused, or with failures) and reloads them every second. For all others, a check is one map lookup.
//!
//! An open breaker holds deliveries back. When its time is over it lets one call through as a probe, and the probe's result
//! opens or closes it. If the breakers cannot be loaded, calls go through.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use deliveries::{Deliveries, breakers::Breaker};
use domain::{BreakerState, TenantId, clock, contract::provider::HeldBack, retry::RETRY_AFTER_MAX};
use runtime::config::BreakerConfig;
use store::Store;
use tokio::sync::Mutex;

/// How long a snapshot is used.
const SNAPSHOT_TTL: Duration = Duration::from_secs(1);
/// While another worker's probe is in flight, deliveries are held back for this long at a time.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// The breakers of all providers.
pub struct Breakers {
    store: Store,
    /// Failures in a row that open a breaker.
    failures: i32,
    /// How long a breaker stays open before a probe.
    open: Duration,
    snapshot: RwLock<Snapshot>,
    /// Held by the task that reloads the snapshot. The other tasks use the last one.
    reload_lock: Mutex<()>,
}

/// The breakers in trouble at one time.
#[derive(Default)]
struct Snapshot {
    /// When it was loaded. `None`: never, or it must be reloaded.
    at: Option<Instant>,
    unhealthy: HashMap<String, Breaker>,
}

/// The result of a call, as far as it concerns the call's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The provider works.
    Success,
    /// The call failed because of the provider.
    Failure,
    /// The provider asked for a pause of this length.
    Paused(Duration),
}

impl Breakers {
    /// Creates breakers that keep their state in `store`.
    pub fn new(store: Store, config: BreakerConfig) -> Self {
        Self {
            store,
            failures: config.failures,
            open: config.open,
            snapshot: RwLock::default(),
            reload_lock: Mutex::const_new(()),
        }
    }

    /// Checks whether a call may be made that all breakers in `keys` guard. If a probe is due, this call is it; `call` is its
    /// maximum duration.
    pub async fn gate(&self, keys: &[impl AsRef<str>], call: Duration) -> Result<(), HeldBack> {
        self.reload_if_stale().await;
        let breakers: Vec<Breaker> = keys.iter().filter_map(|key| self.unhealthy(key.as_ref())).collect();
        let now = clock::now();
        if let Some(wait) = breakers.iter().filter_map(|breaker| breaker.holds_back(now, self.open)).max() {
            return Err(held_back(wait));
        }
        for breaker in breakers.iter().filter(|breaker| breaker.state != BreakerState::Closed) {
            let probes = self.store.breakers().probe(&breaker.key, millis(call)).await;
            self.invalidate();
            if !probes.unwrap_or(true) {
                return Err(held_back(PROBE_PAUSE));
            }
        }
        Ok(())
    }

    /// Checks whether the provider behind `key` asked only this tenant to wait. It uses the snapshot of [`Breakers::gate`].
    pub fn tenant_gate(&self, key: &str, tenant: TenantId) -> Result<(), HeldBack> {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        if snapshot.unhealthy.is_empty() {
            return Ok(());
        }
        let paused = snapshot.unhealthy.get(&*tenant_key(key, tenant));
        paused
            .and_then(|breaker| breaker.holds_back(clock::now(), self.open))
            .map_or(Ok(()), |wait| Err(held_back(wait)))
    }

    /// Records the result of a call behind `key` in the background. A success costs nothing if the breaker is not in trouble.
    pub fn record(self: &Arc<Self>, key: &Arc<str>, result: CallResult) {
        if result == CallResult::Success && self.unhealthy(key).is_none() {
            return;
        }
        let (this, key) = (Arc::clone(self), Arc::clone(key));
        tokio::spawn(async move {
            match result {
                CallResult::Success => this.record_success(&key).await,
                CallResult::Failure => this.record_failure(&key).await,
                CallResult::Paused(wait) => this.record_pause(&key, wait).await,
            }
        });
    }

    /// Records that a call behind `key` failed because of the provider.
    pub async fn record_failure(&self, key: &str) {
        match self.store.breakers().record_failure(key, self.failures, millis(self.open)).await {
            Ok(Some(breaker)) => {
                if breaker.state == BreakerState::Open {
                    tracing::warn!(
                        breaker = key,
                        failures = breaker.failures,
                        "a breaker is open: deliveries behind it wait"
                    );
                }
                self.cache(breaker);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, breaker = key, "a failure could not be counted"),
        }
    }

    /// Records that a call behind `key` succeeded. It writes nothing if the breaker is not in trouble.
    pub async fn record_success(&self, key: &str) {
        if self.unhealthy(key).is_none() {
            return;
        }
        if let Err(error) = self.store.breakers().record_success(key).await {
            tracing::warn!(%error, breaker = key, "a breaker could not be closed");
        }
        self.invalidate();
    }

    async fn record_pause(&self, key: &str, wait: Duration) {
        match self.store.breakers().record_pause(key, millis(wait.min(RETRY_AFTER_MAX))).await {
            Ok(Some(breaker)) => self.cache(breaker),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, breaker = key, "a pause could not be recorded"),
        }
    }

    /// Reloads the snapshot if it is too old, unless another task is already doing so.
    async fn reload_if_stale(&self) {
        if self.is_fresh() {
            return;
        }
        let Ok(_guard) = self.reload_lock.try_lock() else { return };
        match self.store.breakers().troubled().await {
            Ok(found) => {
                let unhealthy = found.into_iter().map(|breaker| (breaker.key.clone(), breaker)).collect();
                *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) =
                    Snapshot { at: Some(Instant::now()), unhealthy };
            }
            Err(error) => tracing::debug!(%error, "the breakers cannot be loaded"),
        }
    }

    fn is_fresh(&self) -> bool {
        let ttl = SNAPSHOT_TTL.min(self.open / 2);
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        snapshot.at.is_some_and(|at| at.elapsed() < ttl)
    }

    fn unhealthy(&self, key: &str) -> Option<Breaker> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).unhealthy.get(key).cloned()
    }

    fn cache(&self, breaker: Breaker) {
        let mut snapshot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        snapshot.unhealthy.insert(breaker.key.clone(), breaker);
    }

    /// Makes the next call reload the snapshot.
    fn invalidate(&self) {
        self.snapshot.write().unwrap_or_else(PoisonError::into_inner).at = None;
    }
}

/// The key of the breaker that pauses the provider behind `key` for one tenant.
pub fn tenant_key(key: &str, tenant: TenantId) -> Arc<str> {
    format!("{key}/tenant/{tenant}").into()
}

const fn held_back(wait: Duration) -> HeldBack {
    HeldBack { reason: "its provider keeps failing and is not called for a while", wait }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
