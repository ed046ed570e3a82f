//! State that handlers of every area share.

use std::{future::Future, sync::Arc};

use actix_web::web::{Data, ServiceConfig};
use content::catalogue::Catalogue;
use domain::{
    TenantId, clock,
    contract::{
        guard::Guard,
        submission::{Content, Rules},
    },
    seal::Sealer,
};
use records::{Records, catalogue::Catalogues};
use runtime::config::Config;
use secrecy::SecretString;
use store::Store;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit};
use url::Url;

use crate::{
    audit::Recorder,
    auth::Credentials,
    body::BodyBudget,
    gate::Gate,
    limits::Limits,
    migration_state::MigrationState,
    permits::PerTenant,
    problem::{Code, Problem},
    query_runner::{QUERY_TIMEOUT, QueryRunner},
};

/// State that all handlers share; one per process.
pub struct Web {
    /// The database.
    pub queries: QueryRunner,
    /// Whether the database has the schema of this version.
    pub migrations: MigrationState,
    /// Authenticates callers.
    pub credentials: Data<Credentials>,
    /// The rate limits.
    pub limits: Data<Limits>,
    /// Types, categories, templates and rules of each tenant.
    pub catalogues: Catalogues,
    /// Encrypts stored values, and derives the names of people in inbox hints.
    pub sealer: Sealer,
    /// The public URL of this API; ends in a slash.
    pub public_url: Url,
    recorder: Data<Recorder>,
    bodies: BodyBudget,
    guards: Guards,
    /// Permits for searches that decrypt: one at a time per tenant.
    searches: PerTenant,
    runtime: Handle,
}

/// The networks that addresses of tenants may be in.
struct Guards {
    webhooks: Guard,
    media: Guard,
}

impl Web {
    /// Builds the state, on the caller's runtime. `store` is the pool for queries, `jwt_secret` signs tokens.
    pub fn new(config: &Config, jwt_secret: SecretString, store: Store) -> Self {
        let queries = QueryRunner::new(store.clone());
        Self {
            credentials: Data::new(Credentials::new(queries.clone(), jwt_secret)),
            limits: Data::new(Limits::new(config.http.rate)),
            recorder: Data::new(Recorder::new(store.clone())),
            bodies: BodyBudget::new(config.http.body_bytes),
            migrations: MigrationState::default(),
            sealer: store.sealer().clone(),
            catalogues: Catalogues::new(store),
            queries,
            public_url: config.http.public_url.clone(),
            guards: Guards {
                webhooks: Guard::new(config.webhook.allow_nets.clone()),
                media: Guard::new(config.waha.media_nets.clone()),
            },
            searches: PerTenant::default(),
            runtime: Handle::current(),
        }
    }

    /// The middleware around every route.
    pub fn gate(&self, config: &Config) -> Gate {
        Gate {
            credentials: self.credentials.clone(),
            limits: self.limits.clone(),
            recorder: self.recorder.clone(),
            trusted_proxies: config.http.trusted_proxies.clone(),
        }
    }

    /// Registers what extractors need.
    pub fn register(&self, site: &mut ServiceConfig) {
        site.app_data(self.credentials.clone())
            .app_data(Data::new(self.migrations.clone()))
            .app_data(Data::new(self.bodies.clone()));
    }

    /// Runs a call to another service in a task of the main runtime, so that it completes even if the client hangs up.
    pub async fn run_detached<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.runtime.spawn(call).await.map_err(|_| Problem::internal())
    }

    /// The catalogue of a tenant, read from the database at most once a second.
    pub async fn catalogue(&self, tenant: TenantId) -> Result<Arc<Catalogue>, Problem> {
        if let Some(fresh) = self.catalogues.fresh(tenant) {
            return Ok(fresh);
        }
        let catalogues = self.catalogues.clone();
        self.queries.run(async move |_| catalogues.get(tenant).await).await
    }

    /// Fills in the defaults of the content's type or category. Content with neither needs no query.
    pub async fn complete(&self, tenant: TenantId, content: &mut Content) -> Result<(), Problem> {
        if content.kind.is_some() || content.category.is_some() {
            self.catalogue(tenant).await?.complete(content);
        }
        Ok(())
    }

    /// A permit for a search that decrypts: one at a time per tenant. `None` if encryption is off.
    pub async fn search_turn(&self, tenant: TenantId) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if !self.sealer.is_on() {
            return Ok(None);
        }
        let turn = self.searches.enter(tenant, QUERY_TIMEOUT).await;
        turn.map(Some)
            .ok_or_else(|| Problem::new(Code::Overloaded, "Wait until another search of this tenant is over."))
    }

    /// The inputs of the validator: the time and the network guards.
    pub fn rules(&self) -> Rules {
        Rules { now: clock::now(), guard: self.guards.webhooks.clone(), media_guard: self.guards.media.clone() }
    }

    /// Reloads the tenants' own limits at once. If the database does not answer, the periodic reload catches up.
    pub async fn refresh_limits(&self) {
        if let Ok(own) = self.queries.run(async move |store| store.limits().http().await).await {
            self.limits.set(own);
        }
    }
}
