//! Ingest turns a request into an accepted message or a problem. HTTP and AMQP share the bodies, the validator and the
//! promise: when ingest answers 202, or acknowledges, the message is committed to disk.
//!
//! A request passes [`web::gate`] → [`routes`] → [`web::auth`] → [`web::body`] → a handler, of `submitting` or of [`api`] →
//! [`submission::http`] → [`submission::pipeline`] → [`submission::accept`]. An AMQP message passes `intake` → `pipeline` →
//! `accept`. Queries go through [`web::QueryRunner`]. `state` composes what the handlers share.

mod counters;
mod docs;
mod health;
mod inbound;
pub mod openapi;
pub mod routes;
mod server;
mod state;
mod submitting;

use std::{io, sync::Arc, time::Duration};

use actix_web::web::Data;
use api::whatsapp;
use broker::{Broker, Publisher};
use connectors::waha::{Waha, hook};
use domain::contract::guard::Guard;
use engine::{dispatch::Dispatcher, local_dispatch::LocalDispatch};
use people::live;
use records::Records;
use runtime::{
    config::{Config, ConfigError},
    probe::Parts,
    telemetry::install_metrics,
};
use store::{Store, migrate::SchemaError};
use submission::{
    accept::{self, Acceptor},
    fair_share::FairShare,
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use web::{Web, limits};

use inbound::provider_events::{EventVerifier, VerifierError};
use state::{AppState, StateDeps};
use submitting::intake::{Consumers, Intake};

/// Smallest size of the pool for queries, however small the pool is set.
const QUESTION_CONNECTIONS_MIN: usize = 2;
/// How long the start waits for the broker. Connecting and declaring the topology take under a second.
const BROKER_PATIENCE: Duration = Duration::from_secs(3);
/// Shortest time that the intake has to finish its batch, however short the drain is set. A commit takes a tenth of that.
const INTAKE_PATIENCE_MIN: Duration = Duration::from_secs(1);
/// How long the broker connections may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why ingest failed to start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A setting is missing.
    #[error("failed to read the settings of ingest")]
    Config(#[from] ConfigError),
    /// The schema is not the one of this version.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The connection pool could not be built.
    #[error("failed to prepare the database connections")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The HTTP client for WAHA could not be built.
    #[error("failed to prepare the HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The keys and certificates for provider events could not be loaded.
    #[error("failed to prepare for the events of providers")]
    EventVerifier(#[from] VerifierError),
    /// The address could not be bound, or the server failed.
    #[error("failed to serve HTTP on {host}:{port}")]
    Serve {
        /// The address.
        host: String,
        /// The port.
        port: u16,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// Serves HTTP and consumes the intake queues until `stop`. Waits for servers that are away. `/health` also shows `others`,
/// the parts of other services in the same process. If one of them is a worker, `local_dispatch` hands it what it can send
/// at once.
pub async fn run(
    config: Arc<Config>,
    others: Parts,
    local_dispatch: LocalDispatch,
    stop: CancellationToken,
) -> Result<(), IngestError> {
    let jwt_secret = config.require_jwt_secret()?.clone();
    let stores = Stores::open(&config)?;
    let verifier = EventVerifier::of(&config)?;
    counters::start();
    // If the server ends early, the intake must end as well.
    let (stop, hang_up) = (stop.child_token(), CancellationToken::new());
    let publishing = Broker::start(&config.broker.url, "posthaste ingest publishing", hang_up.clone());
    let consuming = Broker::start(&config.broker.url, "posthaste ingest consuming", hang_up.clone());
    let publisher = Publisher::start(&publishing).waiting(config.timing.publish_timeout);
    let fair_share = FairShare::watch(consuming.clone(), stop.clone());
    let acceptor = acceptor(&config, &stores, publisher.clone(), local_dispatch, fair_share);
    let state = AppState::new(StateDeps {
        config: &config,
        jwt_secret,
        store: stores.questions.clone(),
        acceptor,
        hooks: stores.hooks.clone(),
        events: stores.events.clone(),
        verifier,
        waha: waha_client(&config)?,
        broker: publishing.clone(),
        publisher: publisher.clone(),
        stop: stop.clone(),
        metrics: install_metrics(),
        others,
    });
    let intake =
        Intake::new(state.submissions.clone(), publisher, Publisher::start(&publishing), config.broker.require_mapping);
    let intake_task = spawn_intake(intake, &state, &config, stores.questions.clone(), &consuming, stop.clone());
    let hub = Arc::clone(&state.live.hub);
    let (listening, until) = (consuming.clone(), stop.clone());
    tokio::spawn(async move { live::listen(&hub, &listening, &until).await });
    tokio::spawn(keep_limits(state.web.clone(), stores.questions, stop.clone()));
    // A caller that sees "ready" should find the topology declared. But a broker that is away must not keep HTTP from
    // starting.
    if timeout(BROKER_PATIENCE, publishing.usable()).await.is_err() {
        tracing::warn!("the broker is not there yet: what is accepted meanwhile is sent later");
    }
    let served = server::serve(&config.http, state, stop.clone()).await;
    stop.cancel();
    let patience = config.timing.drain.saturating_sub(server::LEAVE_TIMEOUT).max(INTAKE_PATIENCE_MIN);
    let drained = timeout(patience, intake_task).await;
    hang_up.cancel();
    let closing = async { futures_util::join!(publishing.closed(), consuming.closed()) };
    let said = timeout(CLOSE_TIMEOUT, closing).await.is_ok();
    tracing::info!(drained = drained.is_ok(), said, "ingest has stopped");
    if let Ok(Ok(took)) = drained {
        took?;
    }
    served.map_err(|source| IngestError::Serve { host: config.http.host.clone(), port: config.http.port, source })
}

/// The WAHA client, guarded like every address that tenants choose.
fn waha_client(config: &Config) -> Result<Waha, IngestError> {
    let guard = Guard::new(config.webhook.allow_nets.clone());
    Waha::new(guard, config.waha.base_url.as_ref()).map_err(|error| IngestError::Client(error.into()))
}

/// One pool per purpose, so that queries never delay a commit.
struct Stores {
    shared_commits: Store,
    acceptance: Store,
    hooks: Store,
    events: Store,
    questions: Store,
}

impl Stores {
    fn open(config: &Config) -> Result<Self, IngestError> {
        let open = |size| Store::open(&config.database, size).map_err(|error| IngestError::Database(error.into()));
        let accepting = accept::SHARED_CONNECTIONS + accept::OTHER_CONNECTIONS;
        let own = accepting + inbound::waha::CONNECTIONS + inbound::provider_events::CONNECTIONS;
        let rest = config.database.pool_size.saturating_sub(own);
        let shared_commits = Store::open_prompt(&config.database, accept::SHARED_CONNECTIONS);
        Ok(Self {
            shared_commits: shared_commits.map_err(|error| IngestError::Database(error.into()))?,
            acceptance: open(accept::OTHER_CONNECTIONS)?,
            hooks: open(inbound::waha::CONNECTIONS)?,
            events: open(inbound::provider_events::CONNECTIONS)?,
            questions: open(rest.max(QUESTION_CONNECTIONS_MIN))?,
        })
    }
}

fn acceptor(
    config: &Config,
    stores: &Stores,
    publisher: Publisher,
    local_dispatch: LocalDispatch,
    fair_share: FairShare,
) -> Acceptor {
    let audit_after_ms = i32::try_from(config.timing.audit_after.as_millis()).unwrap_or(i32::MAX);
    let dispatcher = Dispatcher::start(publisher, stores.questions.clone(), audit_after_ms);
    let (shared, others) = (stores.shared_commits.clone(), stores.acceptance.clone());
    Acceptor::start(shared, others, dispatcher, local_dispatch, fair_share, config.timing.relay_after)
}

/// Waits for the schema, then consumes the intake queues until `stop`. A schema of another version stops the process.
fn spawn_intake(
    intake: Intake,
    state: &AppState,
    config: &Arc<Config>,
    store: Store,
    consuming: &Broker,
    stop: CancellationToken,
) -> JoinHandle<Result<(), SchemaError>> {
    let consumers = Consumers::open(consuming, &stop);
    state.health.parts.add(health::IntakePart(consumers.health()));
    let (state, config) = (state.clone(), Arc::clone(config));
    tokio::spawn(async move {
        match stop.run_until_cancelled(store.await_schema()).await {
            None => return Ok(()),
            Some(Ok(())) => {
                state.web.limits.read(&store).await;
                run_once_migrated(&state, &config, store, &stop).await;
            }
            Some(Err(error)) => {
                stop.cancel();
                return Err(error);
            }
        }
        submitting::intake::run(Arc::new(intake), consumers, stop).await;
        Ok(())
    })
}

/// Reloads the tenants' own limits until `stop`.
async fn keep_limits(web: Data<Web>, store: Store, stop: CancellationToken) {
    limits::keep_up(&web.limits, store, stop).await;
}

/// Runs once the tables exist. WAHA may have given up on webhooks while ingest was down: their events are fetched.
async fn run_once_migrated(state: &AppState, config: &Arc<Config>, store: Store, stop: &CancellationToken) {
    if let Err(error) = store.whatsapp_sessions().mark_operators_sessions().await {
        tracing::warn!(%error, "the operator's WhatsApp sessions are not marked");
    }
    match store.whatsapp_sessions().begin_hooks(&hook::base(&state.web.public_url)).await {
        Ok(0) if !state.sessions.has_host() => {}
        Ok(_) => state.sessions.show_health(),
        Err(error) => tracing::warn!(%error, "the WhatsApp sessions are not known yet"),
    }
    match connectors::provider_events::tracking::Key::load(&store).await {
        Ok(key) => state.tracker.set_key(key),
        Err(error) => tracing::warn!(%error, "the key of tracked mails is not known yet"),
    }
    state.web.migrations.mark_current();
    let (sessions, config, stop) = (state.sessions.clone(), Arc::clone(config), stop.clone());
    tokio::spawn(async move {
        stop.run_until_cancelled(whatsapp::sessions::keep_default(&sessions, &config.waha, &store)).await
    });
}
