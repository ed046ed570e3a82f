//! Shared state of the handlers: [`App`], and [`Db`] for queries.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use broker::{Broker, BrokerPart, Publisher};
use connectors::waha::{Host, NamedBy, Waha};
use content::catalogue::Catalogue;
use domain::{
    Channel, ProviderName, TenantId, clock,
    contract::{
        guard::Guard,
        submission::{Content, Rules},
    },
    seal::Sealer,
};
use ipnet::IpNet;
use runtime::{config::Config, probe::Parts, telemetry::MetricsHandle};
use secrecy::SecretString;
use store::{DatabasePart, DbResult, Store, catalogue::Catalogues};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    audit::Recorder,
    auth::Credentials,
    body::BodyBudget,
    health::{SchemaPart, WahaPart},
    inbound::{
        provider_events::{Keeper, Trust},
        tracking::Tracker,
        waha::Hooks,
    },
    limits::Limits,
    live::{feed::Feed, hub::Hub},
    managing::tokens::Issuer,
    people::{reads::Reads, unsubscribe::Links},
    permits::PerTenant,
    problem::{Code, Problem},
    submitting::{accept::Acceptor, rendering::Renderers},
};

/// Bound on a query. The statement timeout ends longer list queries.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Imports of people that run at once. Each holds one of the few connections of the query pool.
const IMPORTS_MAX: usize = 4;
/// Less than the 900 ms that each part of the health report has.
const WAHA_PING_TIMEOUT: Duration = Duration::from_millis(700);
/// Upper bound on one call to WAHA: an admin waits for its answer. WAHA creates and starts a session within a second.
const WAHA_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// Runs queries for the HTTP threads.
#[derive(Clone)]
pub struct Db {
    store: Store,
    runtime: Handle,
}

impl Db {
    /// Runs queries on the caller's runtime.
    pub fn new(store: Store) -> Self {
        Self { store, runtime: Handle::current() }
    }

    /// Spawns background work on the main runtime.
    pub fn begin<F, Fut>(&self, work: F)
    where
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(work(self.store.clone()));
    }

    /// Runs `ask` in a task of the main runtime. When a client hangs up, its handler is dropped at any await point, and the
    /// HTTP threads end before the rest of the process. Neither may interrupt a query and leave a pool connection half
    /// used.
    pub async fn run<T, F, Fut>(&self, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        self.run_within(QUESTION_TIMEOUT, ask).await
    }

    /// As [`Db::run`], with `bound` instead of the default timeout.
    pub async fn run_within<T, F, Fut>(&self, bound: Duration, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        let task = self.runtime.spawn(ask(self.store.clone()));
        match timeout(bound, task).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Problem::internal()),
            Err(_) => Err(Problem::unavailable()),
        }
    }
}

/// State that all handlers share; one per process.
pub struct App {
    /// The database.
    pub db: Db,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// Types, categories, templates and rules of each tenant.
    pub catalogues: Catalogues,
    /// Renders templates.
    pub renderers: Renderers,
    /// Stores webhooks of WAHA.
    pub hooks: Hooks,
    /// Keys and certificates that verify events of other providers.
    pub trust: Trust,
    /// Stores those events.
    pub keeper: Keeper,
    /// Verifies the links of tracked mails and records opens and clicks.
    pub tracker: Tracker,
    /// The open WebSockets of this process.
    pub hub: Arc<Hub>,
    /// Reads inboxes for the sockets.
    pub feed: Feed,
    /// Encrypts stored values, and derives the names of people in inbox hints.
    pub sealer: Sealer,
    /// Records in the delivery log which inbox items people read.
    pub reads: Reads,
    /// Calls WAHA.
    pub waha: Waha,
    /// The WAHA host from the settings.
    pub waha_host: Option<Host>,
    /// Timeout of one call to WAHA.
    pub waha_timeout: Duration,
    /// The public URL of this API; ends in a slash.
    pub public_url: Url,
    /// Authenticates callers.
    pub credentials: Credentials,
    /// Issues tokens.
    pub issuer: Issuer,
    /// The rate limits.
    pub limits: Limits,
    /// Writes the audit log.
    pub recorder: Recorder,
    /// The broker connection that publishes; also used to read queue depths.
    pub broker: Broker,
    /// The metrics recorder.
    pub metrics: MetricsHandle,
    /// The parts of ingest that the health report checks.
    pub parts: Parts,
    /// The parts of other services in the same process.
    pub others: Parts,
    /// The OpenAPI document as JSON.
    pub openapi: String,
    /// Verifies unsubscribe links.
    pub links: Links,
    /// The providers of each channel.
    pub channels: Vec<(Channel, Vec<ProviderName>)>,
    /// Whether WhatsApp messages go out through WAHA sessions; otherwise they are only simulated.
    pub sends_by_waha: bool,
    /// Imports that may run at once, over all tenants. Each keeps a thread busy.
    pub imports: Arc<Semaphore>,
    /// One import per tenant at a time.
    pub imports_of: PerTenant,
    /// One search per tenant at a time that has to decrypt what it searches.
    pub searches_of: PerTenant,
    /// Budget for the bytes of request bodies in memory.
    pub bodies: BodyBudget,
    /// Networks whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    schema_is_current: Arc<AtomicBool>,
    guard: Guard,
    media_guard: Guard,
    runtime: Handle,
}

/// The arguments of [`App::new`].
pub struct Pieces<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The secret that signs tokens.
    pub jwt_secret: SecretString,
    /// The pool for queries.
    pub store: Store,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// The pool for webhooks of WAHA.
    pub hooks: Store,
    /// The pool for events of other providers.
    pub events: Store,
    /// Keys and certificates that verify those events.
    pub trust: Trust,
    /// Calls WAHA.
    pub waha: Waha,
    /// The broker connection that publishes.
    pub broker: Broker,
    /// Publishes on `broker`.
    pub publisher: Publisher,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
    /// The metrics recorder.
    pub metrics: MetricsHandle,
    /// The parts of other services in the same process.
    pub others: Parts,
}

impl App {
    /// Builds the state and starts its background tasks.
    pub fn new(pieces: Pieces<'_>) -> Self {
        let Pieces { config, jwt_secret, store, acceptor, hooks, events, trust, waha, broker, .. } = pieces;
        let Pieces { publisher, stop, metrics, others, .. } = pieces;
        let keeper = Keeper::start(events);
        let (parts, schema_is_current) = (Parts::new(), Arc::new(AtomicBool::new(false)));
        parts.add(DatabasePart(store.clone()));
        parts.add(BrokerPart { broker: broker.clone(), needed: false });
        parts.add(SchemaPart(Arc::clone(&schema_is_current)));
        let (feed, reads) = (Feed::start(store.clone()), Reads::new(store.clone(), publisher));
        let sealer = store.sealer().clone();
        let (recorder, catalogues, db) = (Recorder::new(store.clone()), Catalogues::new(store.clone()), Db::new(store));
        Self {
            issuer: Issuer::new(jwt_secret.clone(), &config.auth),
            limits: Limits::new(config.http.rate),
            recorder,
            hub: Arc::new(Hub::new(stop)),
            feed,
            sealer,
            reads,
            hooks: Hooks::start(hooks, db.clone()),
            trust,
            tracker: Tracker::new(keeper.clone(), config.retention_days),
            keeper,
            waha_host: config.waha.base_url.as_ref().and_then(|url| {
                let key = config.waha.api_key.as_ref();
                waha.host(url.as_str(), key, WAHA_PING_TIMEOUT, NamedBy::Operator).ok()
            }),
            waha,
            waha_timeout: config.provider_timeout.min(WAHA_TIMEOUT_MAX),
            public_url: config.http.public_url.clone(),
            credentials: Credentials::new(db.clone(), jwt_secret),
            db,
            acceptor,
            catalogues,
            renderers: Renderers::default(),
            broker,
            metrics,
            parts,
            others,
            links: Links::default(),
            openapi: crate::openapi::document(),
            channels: Channel::ALL.iter().map(|channel| (*channel, config.backends(*channel).to_vec())).collect(),
            imports: Arc::new(Semaphore::new(IMPORTS_MAX)),
            imports_of: PerTenant::default(),
            searches_of: PerTenant::default(),
            bodies: BodyBudget::new(config.http.body_bytes),
            trusted_proxies: config.http.trusted_proxies.clone(),
            sends_by_waha: config.whatsapp.contains(&ProviderName::Waha),
            schema_is_current,
            guard: Guard::new(config.webhook.allow_nets.clone()),
            media_guard: Guard::new(config.waha.media_nets.clone()),
            runtime: Handle::current(),
        }
    }

    /// Runs a call to another service in a task of the main runtime, so that it completes even if the client hangs up.
    pub async fn elsewhere<T: Send + 'static>(
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
        self.db.run(async move |_| catalogues.get(tenant).await).await
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
        let turn = self.searches_of.enter(tenant, QUESTION_TIMEOUT).await;
        turn.map(Some)
            .ok_or_else(|| Problem::new(Code::Overloaded, "Wait until another search of this tenant is over."))
    }

    /// Adds the WAHA of the sessions to the health report.
    pub fn watch_waha(&self) {
        self.parts.add(WahaPart { db: self.db.clone(), host: self.waha_host.clone() });
    }

    /// The inputs of the validator: the time and the network guards.
    pub fn rules(&self) -> Rules {
        Rules { now: clock::now(), guard: self.guard.clone(), media_guard: self.media_guard.clone() }
    }

    /// Reloads the tenants' own limits at once. If the database does not answer, the periodic reload catches up.
    pub async fn refresh_limits(&self) {
        if let Ok(own) = self.db.run(async move |store| store.http_limits().await).await {
            self.limits.set(own);
        }
    }

    /// Fails with `unavailable` until the migrations have run.
    pub fn require_schema(&self) -> Result<(), Problem> {
        if self.schema_is_current.load(Ordering::Relaxed) { Ok(()) } else { Err(Problem::unavailable()) }
    }

    /// Every migration of this version has run: requests may use the database.
    pub fn mark_schema_current(&self) {
        self.schema_is_current.store(true, Ordering::Relaxed);
    }
}
