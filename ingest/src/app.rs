//! What every handler shares.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use secrecy::SecretString;
use shared::{
    amqp::{Broker, Publisher},
    catalogue::{Catalogue, Catalogues},
    clock,
    config::Config,
    contract::{
        guard::Guard,
        submission::{Content, Rules},
    },
    db::{DbResult, Store},
    domain::{Channel, ProviderName, TenantId},
    probe::{BrokerPart, DatabasePart, Parts},
    seal::Sealer,
    telemetry::MetricsHandle,
    waha::{Host, NamedBy, Waha},
};
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

/// How long a question to the database may take; longer lists run into the statement timeout behind it.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Imports of people at once; the connection of each is one of the few for questions.
const IMPORTS_MAX: usize = 4;
/// Below the 900 ms a part of the health report has.
const WAHA_PING_TIMEOUT: Duration = Duration::from_millis(700);
/// An admin waits for each call to WAHA; a session is made and started within a second.
const WAHA_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// The database, asked from an HTTP thread.
#[derive(Clone)]
pub struct Db {
    store: Store,
    runtime: Handle,
}

impl Db {
    /// Asks on the runtime of the caller.
    pub fn new(store: Store) -> Self {
        Self { store, runtime: Handle::current() }
    }

    /// Begins something that nobody waits for, on the main runtime.
    pub fn begin<F, Fut>(&self, work: F)
    where
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(work(self.store.clone()));
    }

    /// Runs `ask` in a task of the main runtime. A client that hangs up drops its handler wherever it stands, and the
    /// HTTP threads end before the rest of the process: neither may cut a connection of the pool off in mid-sentence.
    pub async fn run<T, F, Fut>(&self, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        self.run_within(QUESTION_TIMEOUT, ask).await
    }

    /// As [`Db::run`], with another bound on the wait.
    pub async fn run_within<T, F, Fut>(&self, bound: Duration, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        let asking = self.runtime.spawn(ask(self.store.clone()));
        match timeout(bound, asking).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Problem::internal()),
            Err(_) => Err(Problem::unavailable()),
        }
    }
}

/// What every handler shares; one per process.
pub struct App {
    /// The database.
    pub db: Db,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// What each tenant manages: types, categories, templates, rules.
    pub catalogues: Catalogues,
    /// Renders what they manage.
    pub renderers: Renderers,
    /// Keeps what WAHA tells.
    pub hooks: Hooks,
    /// What vouches for the events of other providers.
    pub trust: Trust,
    /// Keeps what they tell.
    pub keeper: Keeper,
    /// Knows the links of tracked mails.
    pub tracker: Tracker,
    /// The open sockets of this process.
    pub hub: Arc<Hub>,
    /// Reads inboxes for them.
    pub feed: Feed,
    /// What people are called in hints.
    pub sealer: Sealer,
    /// Tells the log what people read.
    pub reads: Reads,
    /// Calls WAHA.
    pub waha: Waha,
    /// The WAHA of the settings.
    pub waha_host: Option<Host>,
    /// How long one call to WAHA may take.
    pub waha_timeout: Duration,
    /// Where others reach this API; ends in a slash.
    pub public_url: Url,
    /// Knows who is asking.
    pub credentials: Credentials,
    /// Makes tokens.
    pub issuer: Issuer,
    /// Knows how often a caller may ask.
    pub limits: Limits,
    /// Writes the audit log.
    pub recorder: Recorder,
    /// The connection that publishes; asked for the depths of the queues.
    pub broker: Broker,
    /// What is counted.
    pub metrics: MetricsHandle,
    /// What ingest needs for its work.
    pub parts: Parts,
    /// The parts of other services in the same process.
    pub others: Parts,
    /// The OpenAPI document as JSON.
    pub openapi: String,
    /// Knows the links that unsubscribe.
    pub links: Links,
    /// What carries each channel.
    pub channels: Vec<(Channel, Vec<ProviderName>)>,
    /// Whether WhatsApp messages go out through sessions, or only as a pretence.
    pub sends_by_waha: bool,
    /// Imports that may run at once: each keeps a thread busy.
    pub imports: Arc<Semaphore>,
    /// The import of each tenant.
    pub imports_of: PerTenant,
    /// The search of each tenant that decrypts what it looks through.
    pub searches_of: PerTenant,
    /// The bytes of bodies that requests hold.
    pub bodies: BodyBudget,
    /// Whose word for the address of a caller is believed.
    pub trusted_proxies: Vec<IpNet>,
    schema_is_current: Arc<AtomicBool>,
    guard: Guard,
    media_guard: Guard,
    runtime: Handle,
}

/// What an [`App`] is made of.
pub struct Pieces<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The secret of tokens.
    pub jwt_secret: SecretString,
    /// The database, for questions.
    pub store: Store,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// The database, for the webhooks of WAHA.
    pub hooks: Store,
    /// The database, for the events of other providers.
    pub events: Store,
    /// What vouches for those.
    pub trust: Trust,
    /// Calls WAHA.
    pub waha: Waha,
    /// The connection that publishes.
    pub broker: Broker,
    /// Publishes on it.
    pub publisher: Publisher,
    /// Cancelled when the process is to end.
    pub stop: CancellationToken,
    /// What is counted.
    pub metrics: MetricsHandle,
    /// The parts of other services in the same process.
    pub others: Parts,
}

impl App {
    /// Puts the pieces together.
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

    /// Runs a call to somebody else in a task of the main runtime, so that a client that hangs up does not cut it off.
    pub async fn elsewhere<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.runtime.spawn(call).await.map_err(|_| Problem::internal())
    }

    /// What a tenant manages; the database is asked once a second at most.
    pub async fn catalogue(&self, tenant: TenantId) -> Result<Arc<Catalogue>, Problem> {
        if let Some(fresh) = self.catalogues.fresh(tenant) {
            return Ok(fresh);
        }
        let catalogues = self.catalogues.clone();
        self.db.run(async move |_| catalogues.get(tenant).await).await
    }

    /// Completes content by what the tenant says of its type or category; what has neither costs nothing.
    pub async fn complete(&self, tenant: TenantId, content: &mut Content) -> Result<(), Problem> {
        if content.kind.is_some() || content.category.is_some() {
            self.catalogue(tenant).await?.complete(content);
        }
        Ok(())
    }

    /// The turn of a tenant to search what has to be decrypted for it: one at a time. `None` where nothing is encrypted.
    pub async fn search_turn(&self, tenant: TenantId) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if !self.sealer.is_on() {
            return Ok(None);
        }
        let turn = self.searches_of.enter(tenant, QUESTION_TIMEOUT).await;
        turn.map(Some)
            .ok_or_else(|| Problem::new(Code::Overloaded, "Wait until another search of this tenant is over."))
    }

    /// From now on `/health` shows how the sessions' WAHA is.
    pub fn watch_waha(&self) {
        self.parts.add(WahaPart { db: self.db.clone(), host: self.waha_host.clone() });
    }

    /// What the validator needs to know now.
    pub fn rules(&self) -> Rules {
        Rules { now: clock::now(), guard: self.guard.clone(), media_guard: self.media_guard.clone() }
    }

    /// Takes a change of limits over at once, as far as the database can be asked.
    pub async fn refresh_limits(&self) {
        if let Ok(own) = self.db.run(async move |store| store.http_limits().await).await {
            self.limits.set(own);
        }
    }

    /// Refuses to work on tables that are not there yet.
    pub fn require_schema(&self) -> Result<(), Problem> {
        if self.schema_is_current.load(Ordering::Relaxed) { Ok(()) } else { Err(Problem::unavailable()) }
    }

    /// Every migration of this version has run: work may begin.
    pub fn mark_schema_current(&self) {
        self.schema_is_current.store(true, Ordering::Relaxed);
    }
}
