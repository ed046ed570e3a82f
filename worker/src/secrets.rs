//! The secrets that sign webhooks, kept in memory: a query for each delivery would cost more than the signature.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use shared::{
    db::{DbResult, Store},
    domain::TenantId,
    reconnect::Reconnect,
};

/// A changed secret is used after this long at the latest; receivers accept the old one for hours.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// The webhook secret of every tenant that was asked for.
pub struct Secrets {
    store: Store,
    known: RwLock<HashMap<TenantId, Known>>,
}

struct Known {
    secret: Arc<str>,
    read_at: Instant,
}

impl Secrets {
    /// No secrets yet; they are read from `store` when they are first needed.
    pub fn new(store: Store) -> Self {
        Self { store, known: RwLock::default() }
    }

    /// The tenant's secret; empty if there is no such tenant. Waits for the database if the secret was never read, as
    /// long as it takes; a secret that is merely old is used until a newer one can be had.
    pub async fn get(&self, tenant: TenantId) -> Arc<str> {
        match self.remembered(tenant) {
            Some((secret, true)) => secret,
            // Boxed, because a query's future is large and this one is part of every attempt's.
            Some((secret, false)) => Box::pin(self.read(tenant)).await.unwrap_or(secret),
            None => Box::pin(self.insist(tenant)).await,
        }
    }

    async fn insist(&self, tenant: TenantId) -> Arc<str> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.read(tenant).await {
                Ok(secret) => return secret,
                Err(error) => tracing::warn!(%error, tenant.id = %tenant, "a webhook secret cannot be read yet"),
            }
            reconnect.pause().await;
        }
    }

    /// The secret, and whether it is fresh.
    fn remembered(&self, tenant: TenantId) -> Option<(Arc<str>, bool)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&tenant).map(|known| (Arc::clone(&known.secret), known.read_at.elapsed() < FRESH_FOR))
    }

    async fn read(&self, tenant: TenantId) -> DbResult<Arc<str>> {
        let found = self.store.tenant_by_id(tenant).await?;
        let secret: Arc<str> =
            found.map_or_else(|| Arc::from(""), |tenant| Arc::from(tenant.webhook_secret.expose_secret()));
        let known = Known { secret: Arc::clone(&secret), read_at: Instant::now() };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(tenant, known);
        Ok(secret)
    }
}
