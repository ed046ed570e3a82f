//! Circuit breakers as a worker sees them: their state is the database's, and all that are in trouble are read anew every
//! second. What was never in trouble costs a look into a map.
//!
//! What meets an open breaker is held back; when its time is over one call goes out to see, and its end decides. Breakers that
//! cannot be asked let through.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use shared::{
    clock,
    config::BreakerConfig,
    contract::provider::HeldBack,
    db::{Store, breakers::Breaker},
    domain::{BreakerState, TenantId, retry::RETRY_AFTER_MAX},
};
use tokio::sync::Mutex;

/// How long what was seen holds.
const SEEN_TTL: Duration = Duration::from_secs(1);
/// A probe under way is waited for in steps of this.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// The breakers of all providers.
pub struct Breakers {
    store: Store,
    failures: i32,
    open: Duration,
    seen: RwLock<Seen>,
    /// Held by the task that reads them anew; the others use the last result.
    reading: Mutex<()>,
}

/// The breakers in trouble, as they were at a moment.
#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    troubled: HashMap<String, Breaker>,
}

/// How a call ended, as far as it concerns the breaker before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The other side works.
    Passed,
    /// It failed for a reason that lies with the other side.
    Failed,
    /// The other side wants to be left alone for this long.
    Paused(Duration),
}

impl Breakers {
    /// Breakers that keep their state in `store`.
    pub fn new(store: Store, config: BreakerConfig) -> Self {
        Self {
            store,
            failures: config.failures,
            open: config.open,
            seen: RwLock::default(),
            reading: Mutex::const_new(()),
        }
    }

    /// Whether a call behind all of `keys` may be made; one that takes up to `call` counts as the probe where one is due.
    pub async fn gate(&self, keys: &[impl AsRef<str>], call: Duration) -> Result<(), HeldBack> {
        self.load_policies().await;
        let breakers: Vec<Breaker> = keys.iter().filter_map(|key| self.troubled(key.as_ref())).collect();
        let now = clock::now();
        if let Some(wait) = breakers.iter().filter_map(|breaker| breaker.holds_back(now, self.open)).max() {
            return Err(held(wait));
        }
        for breaker in breakers.iter().filter(|breaker| breaker.state != BreakerState::Closed) {
            let probes = self.store.breaker_probe(&breaker.key, millis(call)).await;
            self.forget();
            if !probes.unwrap_or(true) {
                return Err(held(PROBE_PAUSE));
            }
        }
        Ok(())
    }

    /// Whether the provider behind `key` asked this tenant alone to wait. Goes by what [`Breakers::gate`] has just read.
    pub fn tenant_gate(&self, key: &str, tenant: TenantId) -> Result<(), HeldBack> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        if seen.troubled.is_empty() {
            return Ok(());
        }
        let paused = seen.troubled.get(&*tenant_key(key, tenant));
        paused.and_then(|breaker| breaker.holds_back(clock::now(), self.open)).map_or(Ok(()), |wait| Err(held(wait)))
    }

    /// Notes how a call behind `key` ended, beside the caller's own work. Costs nothing where there was and is no trouble.
    pub fn tell(self: &Arc<Self>, key: &Arc<str>, news: News) {
        if news == News::Passed && self.troubled(key).is_none() {
            return;
        }
        let (this, key) = (Arc::clone(self), Arc::clone(key));
        tokio::spawn(async move {
            match news {
                News::Passed => this.passed(&key).await,
                News::Failed => this.failed(&key).await,
                News::Paused(wait) => this.paused(&key, wait).await,
            }
        });
    }

    /// Notes that a call behind `key` failed for a reason that lies with the other side.
    pub async fn failed(&self, key: &str) {
        match self.store.breaker_failed(key, self.failures, millis(self.open)).await {
            Ok(Some(breaker)) => {
                if breaker.state == BreakerState::Open {
                    tracing::warn!(
                        breaker = key,
                        failures = breaker.failures,
                        "a breaker is open: what is behind it waits"
                    );
                }
                self.remember(breaker);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, breaker = key, "a failure could not be counted"),
        }
    }

    /// Notes that a call behind `key` got through. Writes nothing where there was no trouble.
    pub async fn passed(&self, key: &str) {
        if self.troubled(key).is_none() {
            return;
        }
        if let Err(error) = self.store.breaker_passed(key).await {
            tracing::warn!(%error, breaker = key, "a breaker could not be closed");
        }
        self.forget();
    }

    async fn paused(&self, key: &str, wait: Duration) {
        match self.store.breaker_paused(key, millis(wait.min(RETRY_AFTER_MAX))).await {
            Ok(Some(breaker)) => self.remember(breaker),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, breaker = key, "a pause could not be noted"),
        }
    }

    /// Reads the breakers anew where the last result is old, unless another task is doing it.
    async fn load_policies(&self) {
        if self.is_fresh() {
            return;
        }
        let Ok(_reading) = self.reading.try_lock() else { return };
        match self.store.troubled_breakers().await {
            Ok(found) => {
                let troubled = found.into_iter().map(|breaker| (breaker.key.clone(), breaker)).collect();
                *self.seen.write().unwrap_or_else(PoisonError::into_inner) =
                    Seen { at: Some(Instant::now()), troubled };
            }
            Err(error) => tracing::debug!(%error, "the breakers cannot be asked"),
        }
    }

    fn is_fresh(&self) -> bool {
        let ttl = SEEN_TTL.min(self.open / 2);
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.at.is_some_and(|at| at.elapsed() < ttl)
    }

    fn troubled(&self, key: &str) -> Option<Breaker> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).troubled.get(key).cloned()
    }

    fn remember(&self, breaker: Breaker) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        seen.troubled.insert(breaker.key.clone(), breaker);
    }

    /// Has them read anew before the next call.
    fn forget(&self) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).at = None;
    }
}

/// The key under which the provider behind `key` is paused for one tenant.
pub fn tenant_key(key: &str, tenant: TenantId) -> Arc<str> {
    format!("{key}/tenant/{tenant}").into()
}

const fn held(wait: Duration) -> HeldBack {
    HeldBack { reason: "its provider keeps failing and is left alone for a while", wait }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
