//! What signs webhooks, kept in memory: a query for each delivery would cost more than the signature.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use shared::{
    clock,
    db::{DbResult, Store, configurations::Configuration},
    domain::TenantId,
    reconnect::Reconnect,
};
use uuid::Uuid;

/// A changed secret is used after this long at the latest; receivers accept the old one for hours.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// A configuration that was named and is not known is as new as can be, or gone: it is looked for again after this long.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// Configurations of one tenant that are kept in mind, the newest ones.
const CONFIGURATIONS_MAX: i64 = 1000;

/// What a webhook is signed with, and its further headers. Two secrets have a space between them.
pub type Signing = (Arc<str>, Arc<[(String, String)]>);

/// What signs the webhooks of every tenant that was asked for.
pub struct Secrets {
    store: Store,
    known: RwLock<HashMap<TenantId, Arc<Known>>>,
}

struct Known {
    own: Signing,
    configurations: Vec<(Uuid, String, Signing)>,
    read_at: Instant,
}

impl Known {
    /// The configuration that is named, else the one whose URL it is, else the tenant's own secret.
    fn signing(&self, named: Option<Uuid>, url: &str) -> &Signing {
        let by_id = named.and_then(|named| self.configurations.iter().find(|(id, ..)| *id == named));
        let found = by_id.or_else(|| self.configurations.iter().find(|(_, target, _)| target == url));
        found.map_or(&self.own, |(.., signing)| signing)
    }

    fn is_fresh(&self, named: Option<Uuid>) -> bool {
        let is_known = named.is_none_or(|named| self.configurations.iter().any(|(id, ..)| *id == named));
        self.read_at.elapsed() < if is_known { FRESH_FOR } else { UNKNOWN_FOR }
    }
}

impl Secrets {
    /// No secrets yet; they are read from `store` when they are first needed.
    pub fn new(store: Store) -> Self {
        Self { store, known: RwLock::default() }
    }

    /// What signs a webhook of the tenant to this URL, which may name its configuration; an empty secret if there is no such
    /// tenant. Waits for the database if the tenant was never read, as long as it takes; what is merely old is used until
    /// something newer can be had.
    pub async fn get(&self, tenant: TenantId, named: Option<Uuid>, url: &str) -> Signing {
        let remembered = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).map(Arc::clone);
        let known = match remembered {
            Some(known) if known.is_fresh(named) => known,
            // Boxed, because a query's future is large and this one is part of every attempt's.
            Some(known) => Box::pin(self.read(tenant)).await.unwrap_or(known),
            None => Box::pin(self.insist(tenant)).await,
        };
        known.signing(named, url).clone()
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
        let secret = found.map_or_else(|| Arc::from(""), |tenant| Arc::from(tenant.webhook_secret.expose_secret()));
        let configurations = self.store.list_configurations(tenant, None, CONFIGURATIONS_MAX).await?;
        let configurations =
            configurations.into_iter().map(|to| (to.id, to.settings.url.clone(), signing(&to))).collect();
        let known = Arc::new(Known { own: (secret, Arc::from([])), configurations, read_at: Instant::now() });
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
    (Arc::from(secrets.join(" ")), headers.collect())
}
