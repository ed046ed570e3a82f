//! An in-memory cache of webhook signing secrets: a query per delivery would cost more than the signature.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use domain::{TenantId, clock};
use records::{Records, configurations::Configuration};
use runtime::reconnect::Reconnect;
use secrecy::ExposeSecret;
use store::{DbResult, Store};
use uuid::Uuid;

/// A cached entry is reloaded after this long, even without a known change.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// How often the cache asks which configurations have changed: one small query for all tenants.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The query returns the changes of this many seconds: more than the maximum age of a cached entry.
const CHANGES_WINDOW_SECONDS: i32 = 90;
/// A named configuration that is not in the cache is either brand-new or deleted. The entry is reloaded after this long.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// Maximum configurations per tenant in the cache; the newest ones are kept.
const CONFIGURATIONS_MAX: i64 = 1000;

/// The secret that signs one webhook.
#[derive(Clone)]
pub struct Signing {
    /// The secrets, separated by spaces.
    pub secrets: Arc<str>,
    /// Additional headers of the webhook.
    pub headers: Arc<[(String, String)]>,
    /// The configuration that the secrets and headers belong to.
    pub configuration: Option<Uuid>,
}

impl Default for Signing {
    fn default() -> Self {
        Self { secrets: Arc::from(""), headers: Arc::from([]), configuration: None }
    }
}

/// The cached signing secrets of every tenant that was looked up.
pub struct Secrets {
    store: Store,
    cache: RwLock<HashMap<TenantId, Arc<Entry>>>,
    checked_at: Mutex<Option<Instant>>,
}

/// The cached secrets of one tenant.
struct Entry {
    /// The tenant's own secret.
    own: Signing,
    configurations: Vec<(Uuid, Signing)>,
    /// The latest change of any configuration.
    changed_at: Option<DateTime<Utc>>,
    /// When the first of the previous secrets expires. `None`: there are none.
    until: Option<DateTime<Utc>>,
    read_at: Instant,
}

impl Entry {
    /// The secret of the named configuration, else the tenant's own. The URL never selects a configuration: a producer may send
    /// to any URL, and its message must not look like an event of Posthaste.
    fn signing(&self, named: Option<Uuid>) -> &Signing {
        let found = named.and_then(|named| self.configurations.iter().find(|(id, _)| *id == named));
        found.map_or(&self.own, |(_, signing)| signing)
    }

    fn is_fresh(&self, named: Option<Uuid>) -> bool {
        let is_known = named.is_none_or(|named| self.configurations.iter().any(|(id, ..)| *id == named));
        let is_valid = self.until.is_none_or(|until| clock::now() < until);
        is_valid && self.read_at.elapsed() < if is_known { FRESH_FOR } else { UNKNOWN_FOR }
    }
}

impl Secrets {
    /// Creates an empty cache. It loads secrets from `store` when they are first needed.
    pub fn new(store: Store) -> Self {
        Self { store, cache: RwLock::default(), checked_at: Mutex::default() }
    }

    /// Returns what signs a webhook of `tenant`. A webhook that carries an event names its configuration. The secret is empty if
    /// the tenant does not exist. If the tenant is not cached, this waits for the database, as long as it takes. A stale entry
    /// is used while it cannot be reloaded.
    pub async fn get(&self, tenant: TenantId, named: Option<Uuid>) -> Signing {
        if self.start_check() {
            Box::pin(self.evict_changed()).await;
        }
        let cached = self.cache.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).map(Arc::clone);
        let entry = match cached {
            Some(entry) if entry.is_fresh(named) => entry,
            // Boxed, because a query's future is large, and every attempt's future contains this one.
            Some(entry) => Box::pin(self.read(tenant)).await.unwrap_or(entry),
            None => Box::pin(self.read_with_retries(tenant)).await,
        };
        entry.signing(named).clone()
    }

    /// Whether a check for changes is due. Returns true to one caller per interval, which must make the check.
    fn start_check(&self) -> bool {
        let mut checked_at = self.checked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = checked_at.is_none_or(|at| at.elapsed() >= CHECK_INTERVAL);
        if is_due {
            *checked_at = Some(Instant::now());
        }
        is_due
    }

    /// Removes the tenants whose configurations have changed since they were loaded.
    async fn evict_changed(&self) {
        let changed = match self.store.webhook_configurations().changed(CHANGES_WINDOW_SECONDS).await {
            Ok(changed) => changed,
            Err(error) => return tracing::debug!(%error, "changed webhook secrets cannot be queried"),
        };
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        for (tenant, at) in changed {
            if cache.get(&tenant).is_some_and(|entry| entry.changed_at < Some(at)) {
                cache.remove(&tenant);
            }
        }
    }

    async fn read_with_retries(&self, tenant: TenantId) -> Arc<Entry> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.read(tenant).await {
                Ok(entry) => return entry,
                Err(error) => tracing::warn!(%error, tenant.id = %tenant, "a webhook secret cannot be read yet"),
            }
            reconnect.pause().await;
        }
    }

    /// Loads a tenant's secrets from the database into the cache.
    async fn read(&self, tenant: TenantId) -> DbResult<Arc<Entry>> {
        let found = self.store.tenants().by_id(tenant).await?;
        let secrets = found.map_or_else(|| Arc::from(""), |tenant| Arc::from(tenant.webhook_secret.expose_secret()));
        let configurations = self.store.webhook_configurations().list(tenant, None, CONFIGURATIONS_MAX).await?;
        let entry = Arc::new(Entry {
            own: Signing { secrets, ..Signing::default() },
            changed_at: configurations.iter().map(|to| to.updated_at).max(),
            until: configurations.iter().filter_map(|to| to.previous_until).filter(|until| clock::now() < *until).min(),
            configurations: configurations.iter().map(|to| (to.id, signing(to))).collect(),
            read_at: Instant::now(),
        });
        self.cache.write().unwrap_or_else(PoisonError::into_inner).insert(tenant, Arc::clone(&entry));
        Ok(entry)
    }
}

fn signing(to: &Configuration) -> Signing {
    let is_valid = to.previous_until.is_some_and(|until| clock::now() < until);
    let previous = to.previous_secret.as_ref().filter(|_| is_valid);
    let secrets: Vec<&str> = std::iter::once(&to.secret).chain(previous).map(|secret| secret.expose_secret()).collect();
    let headers =
        to.settings.headers.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Signing { secrets: Arc::from(secrets.join(" ")), headers: headers.collect(), configuration: Some(to.id) }
}
