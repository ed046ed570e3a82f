//! Circuit breakers as a worker sees them: their state is the database's, looked at anew every second.
//!
//! An open breaker keeps its lines still, so hardly a delivery meets it. What meets it all the same is held back here; when
//! its time is over one call goes out to see, and its end decides. A breaker that cannot be asked lets through.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::{
    clock,
    config::BreakerConfig,
    contract::provider::HeldBack,
    db::{DbError, Store, breakers::Breaker},
    domain::BreakerState,
};

/// How long what was seen holds.
const SEEN_TTL: Duration = Duration::from_secs(1);
/// Breakers remembered; beyond it all are forgotten and looked at again.
const SEEN_MAX: usize = 20_000;
/// A probe under way is waited for in steps of this.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// The breakers of a provider.
pub struct Breakers {
    store: Store,
    failures: i32,
    open: Duration,
    seen: Mutex<HashMap<String, (Instant, Option<Breaker>)>>,
}

impl Breakers {
    /// Breakers that keep their state in `store`.
    pub fn new(store: Store, config: BreakerConfig) -> Self {
        Self { store, failures: config.failures, open: config.open, seen: Mutex::default() }
    }

    /// Whether a call behind all of `keys` may be made; one that takes up to `call` counts as the probe where one is due.
    pub async fn gate(&self, keys: &[String], call: Duration) -> Result<(), HeldBack> {
        let breakers = match self.look(keys).await {
            Ok(breakers) => breakers,
            Err(error) => {
                tracing::debug!(%error, "the breakers cannot be asked");
                return Ok(());
            }
        };
        let now = clock::now();
        if let Some(wait) = breakers.iter().filter_map(|breaker| breaker.holds_back(now)).max() {
            return Err(held(wait));
        }
        for breaker in breakers.iter().filter(|breaker| breaker.state != BreakerState::Closed) {
            let probes = self.store.breaker_probe(&breaker.key, millis(call)).await;
            self.forget(&breaker.key);
            if !probes.unwrap_or(true) {
                return Err(held(PROBE_PAUSE));
            }
        }
        Ok(())
    }

    /// Notes that a call behind `key` failed for a reason that lies with the other side.
    pub async fn failed(&self, key: &str) {
        match self.store.breaker_failed(key, self.failures, millis(self.open)).await {
            Ok(Some(breaker)) => {
                if breaker.state == BreakerState::Open {
                    tracing::warn!(
                        breaker = key,
                        failures = breaker.failures,
                        "a breaker is open: its lines stand still"
                    );
                }
                self.remember(key, Some(breaker));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, breaker = key, "a failure could not be counted"),
        }
    }

    /// Notes that a call behind `key` got through. Writes nothing where there was no trouble.
    pub async fn passed(&self, key: &str) {
        let keys = [key.to_owned()];
        let seen = self.look(&keys).await.unwrap_or_default();
        let troubled = seen.iter().any(|breaker| breaker.state != BreakerState::Closed || breaker.failures > 0);
        if !troubled {
            return;
        }
        if let Err(error) = self.store.breaker_passed(key).await {
            tracing::warn!(%error, breaker = key, "a breaker could not be closed");
        }
        self.forget(key);
    }

    async fn look(&self, keys: &[String]) -> Result<Vec<Breaker>, DbError> {
        let ttl = SEEN_TTL.min(self.open / 2);
        let known: Vec<Option<Option<Breaker>>> = {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh =
                |key: &String| seen.get(key).filter(|(at, _)| at.elapsed() < ttl).map(|(_, found)| found.clone());
            keys.iter().map(fresh).collect()
        };
        if known.iter().all(Option::is_some) {
            return Ok(known.into_iter().flatten().flatten().collect());
        }
        let found = self.store.breakers(keys.to_vec()).await?;
        for key in keys {
            let breaker = found.iter().find(|breaker| breaker.key == *key).cloned();
            self.remember(key, breaker);
        }
        Ok(found)
    }

    fn remember(&self, key: &str, breaker: Option<Breaker>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        seen.insert(key.to_owned(), (Instant::now(), breaker));
    }

    fn forget(&self, key: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

const fn held(wait: Duration) -> HeldBack {
    HeldBack { reason: "its provider keeps failing and is left alone for a while", wait }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
