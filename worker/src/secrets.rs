//! What signs webhooks, kept in memory: a query for each delivery would cost more than the signature.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use shared::{
    clock,
    db::{DbResult, Store, configurations::Configuration},
    domain::TenantId,
    reconnect::Reconnect,
};
use uuid::Uuid;

/// What was read is read again after this long, whatever happens.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// How often is asked whose configurations have changed: one small question for all tenants.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Changes of this many seconds are asked for: all since the oldest reading that still counts.
const CHANGES_OF: i32 = 90;
/// A configuration that was named and is not known is as new as can be, or gone: it is looked for again after this long.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// Configurations of one tenant that are kept in mind, the newest ones.
const CONFIGURATIONS_MAX: i64 = 1000;

/// What a webhook is signed with.
#[derive(Clone)]
pub struct Signing {
    /// The secrets, with spaces between them.
    pub secrets: Arc<str>,
    /// Further headers.
    pub headers: Arc<[(String, String)]>,
    /// The configuration they belong to.
    pub configuration: Option<Uuid>,
}

impl Default for Signing {
    fn default() -> Self {
        Self { secrets: Arc::from(""), headers: Arc::from([]), configuration: None }
    }
}

/// What signs the webhooks of every tenant that was asked for.
pub struct Secrets {
    store: Store,
    known: RwLock<HashMap<TenantId, Arc<Known>>>,
    looked_at: Mutex<Option<Instant>>,
}

struct Known {
    own: Signing,
    configurations: Vec<(Uuid, Signing)>,
    /// The last change of any of them.
    changed_at: Option<DateTime<Utc>>,
    /// Until when all of their secrets hold.
    until: Option<DateTime<Utc>>,
    read_at: Instant,
}

impl Known {
    /// The secret of the configuration that is named, else the tenant's own. An URL picks none: a producer may send to any URL, and its
    /// message must not look like an event of Posthaste.
    fn signing(&self, named: Option<Uuid>) -> &Signing {
        let found = named.and_then(|named| self.configurations.iter().find(|(id, _)| *id == named));
        found.map_or(&self.own, |(_, signing)| signing)
    }

    fn is_fresh(&self, named: Option<Uuid>) -> bool {
        let is_known = named.is_none_or(|named| self.configurations.iter().any(|(id, ..)| *id == named));
        let holds = self.until.is_none_or(|until| clock::now() < until);
        holds && self.read_at.elapsed() < if is_known { FRESH_FOR } else { UNKNOWN_FOR }
    }
}

impl Secrets {
    /// No secrets yet; they are read from `store` when they are first needed.
    pub fn new(store: Store) -> Self {
        Self { store, known: RwLock::default(), looked_at: Mutex::default() }
    }

    /// What signs a webhook of the tenant, which names its configuration if it carries an event; an empty secret if there is no
    /// such tenant. Waits for the database if the tenant was never read, as long as it takes; what is merely old is used until
    /// something newer can be had.
    pub async fn get(&self, tenant: TenantId, named: Option<Uuid>) -> Signing {
        if self.looks() {
            Box::pin(self.load_policies()).await;
        }
        let remembered = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).map(Arc::clone);
        let known = match remembered {
            Some(known) if known.is_fresh(named) => known,
            // Boxed, because a query's future is large and this one is part of every attempt's.
            Some(known) => Box::pin(self.read(tenant)).await.unwrap_or(known),
            None => Box::pin(self.insist(tenant)).await,
        };
        known.signing(named).clone()
    }

    /// Whether it is time to ask for changes; true for one caller only.
    fn looks(&self) -> bool {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if is_due {
            *looked_at = Some(Instant::now());
        }
        is_due
    }

    /// Forgets the tenants whose configurations have changed since they were read.
    async fn load_policies(&self) {
        let changed = match self.store.changed_configurations(CHANGES_OF).await {
            Ok(changed) => changed,
            Err(error) => return tracing::debug!(%error, "nobody can say whether webhook secrets have changed"),
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (tenant, at) in changed {
            if known.get(&tenant).is_some_and(|known| known.changed_at < Some(at)) {
                known.remove(&tenant);
            }
        }
    }

    async fn insist(&self, tenant: TenantId) -> Arc<Known> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.read(tenant).await {
                Ok(known) => return known,
                Err(error) => tracing::warn!(%error, tenant.id = %tenant, "a webhook secret cannot be read yet"),
            }
            reconnect.pause().await;
        }
    }

    async fn read(&self, tenant: TenantId) -> DbResult<Arc<Known>> {
        let found = self.store.tenant_by_id(tenant).await?;
        let secrets = found.map_or_else(|| Arc::from(""), |tenant| Arc::from(tenant.webhook_secret.expose_secret()));
        let configurations = self.store.list_configurations(tenant, None, CONFIGURATIONS_MAX).await?;
        let known = Arc::new(Known {
            own: Signing { secrets, ..Signing::default() },
            changed_at: configurations.iter().map(|to| to.updated_at).max(),
            until: configurations.iter().filter_map(|to| to.previous_until).filter(|until| clock::now() < *until).min(),
            configurations: configurations.iter().map(|to| (to.id, signing(to))).collect(),
            read_at: Instant::now(),
        });
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(tenant, Arc::clone(&known));
        Ok(known)
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
