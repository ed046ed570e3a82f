//! The worker takes queued deliveries, sends them, and reports how each attempt ended.
//!
//! It keeps no state of its own. The claim (a row in the database) decides what it may send. The log writer stores the results
//! from the events that the worker publishes. A worker that is killed at any moment therefore loses nothing.
//!
//! `pool` moves deliveries, `attempt` makes one attempt, the crate `providers` holds the vendors' clients, `outcomes` publishes events.

mod attempt;
mod health;
mod outcomes;
mod pool;

use std::{sync::Arc, time::Duration};

use broker::{Broker, BrokerPart, ConsumerHealth, Publisher};
use domain::{Channel, Route};
use engine::local_dispatch::LocalDispatch;
use runtime::{
    config::{Config, REPORT_TIME},
    probe::{Parts, Starting},
};
use store::{DatabasePart, Store, migrate::SchemaError};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

pub use health::ConsumersPart;

use attempt::ChannelContext;
use outcomes::Outcomes;
use pool::{Pool, PoolDeps};
use providers::registry::{Registry, RegistryError};
use providers::secrets::Secrets;
use providers::{
    email::{tracking::Tracking, unsubscribe_links::UnsubscribeLinks},
    in_app::hints::Hints,
};

/// Closing a broker connection takes a round trip. A broker that is away must not delay the shutdown by more than this.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a worker did not start, or stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The database connection pool could not be created.
    #[error("failed to set up the database pool")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database schema is not the one that this version expects.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A provider could not be set up.
    #[error("failed to set up the providers")]
    Providers(#[from] RegistryError),
    /// A pool ended although the worker was not stopping: a bug in this program.
    #[error("a pool of the worker ended by itself")]
    PoolEnded,
}

/// A running worker. Cancel its token to stop it; dropping it does not.
pub struct Worker {
    publishing: Broker,
    consuming: Broker,
    pools: JoinSet<()>,
    consumers: Vec<Arc<ConsumerHealth>>,
    stop: CancellationToken,
    /// Abandons all work that is still in flight.
    give_up: CancellationToken,
    /// Closes both broker connections.
    disconnect: CancellationToken,
}

/// Runs a worker until `stop`, then finishes the work in flight within the configured drain time.
///
/// The worker adds its dependencies to `parts`, which the health endpoints report. An ingest in the same process passes the
/// deliveries that it accepted through `local_dispatch`.
pub async fn run(
    config: Arc<Config>,
    parts: Parts,
    local_dispatch: LocalDispatch,
    stop: CancellationToken,
) -> Result<(), WorkerError> {
    let store = Store::open(&config.database, config.database.pool_size)
        .map_err(|error| WorkerError::Database(error.into()))?;
    parts.add(Starting(health::NAME));
    parts.add(DatabasePart(store.clone()));
    // Claim nothing until the schema is the one that this version expects.
    let Some(checked) = stop.run_until_cancelled(store.await_schema()).await else { return Ok(()) };
    checked?;
    let worker = Worker::start(&config, store, &local_dispatch, stop)?;
    worker.register_health(&parts);
    worker.finished().await
}

impl Worker {
    /// Starts the pools. If a server is away, the worker waits for it; only invalid settings are an error.
    pub fn start(
        config: &Config,
        store: Store,
        local_dispatch: &LocalDispatch,
        stop: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let hints = Hints::default();
        let registry = Registry::build(config, &store, &hints)?;
        providers::counters::start_at_zero(
            config.worker.channels.iter().map(|channel| (*channel, config.backends(*channel))),
        );
        let disconnect = CancellationToken::new();
        let publishing = Broker::start(&config.broker.url, "posthaste worker publishing", disconnect.clone());
        let consuming = Broker::start(&config.broker.url, "posthaste worker consuming", disconnect.clone());
        let (cut_short, give_up) = start_drain_timers(config.timing.drain, &stop);
        let publisher = Publisher::start(&publishing).waiting(config.timing.publish_timeout);
        tokio::spawn(hints.publish_until(publisher.clone(), give_up.clone()));
        let outcomes = Outcomes::start(publisher.clone(), give_up.clone());
        let reporting = publishing.clone();
        let deps = PoolDeps { store: store.clone(), publisher, outcomes, reporting, stop: stop.clone() };
        let secrets = Arc::new(Secrets::new(store.clone()));
        let tracking = Tracking::of(config, &store).map(Arc::new);
        let unsubscribe_links = Arc::new(UnsubscribeLinks::new(config, &store));
        let mut pools = JoinSet::new();
        let mut consumers = Vec::new();
        for route in Route::all().filter(|route| config.worker.channels.contains(&route.channel)) {
            let tracking = tracking.clone().filter(|_| route.channel == Channel::Email);
            let unsubscribe_links = (route.channel == Channel::Email).then(|| Arc::clone(&unsubscribe_links));
            let context = ChannelContext {
                tracking,
                unsubscribe_links,
                ..context(config, &registry, route, &secrets, cut_short.clone())
            };
            let concurrency = providers::concurrency(config.worker.concurrency, route.lane);
            let pool = Pool::open(&consuming, deps.clone(), context, concurrency, local_dispatch);
            consumers.push(pool.health());
            let give_up = give_up.clone();
            pools.spawn(async move { give_up.run_until_cancelled(pool.run()).await.unwrap_or_default() });
        }
        Ok(Self { publishing, consuming, pools, consumers, stop, give_up, disconnect })
    }

    /// Adds this worker's dependencies to `parts`: its consuming connection and its consumers.
    pub fn register_health(&self, parts: &Parts) {
        parts.add(BrokerPart { broker: self.consuming.clone(), needed: true });
        parts.add(self.health());
    }

    /// The state of this worker's consumers.
    pub fn health(&self) -> ConsumersPart {
        ConsumersPart::new(self.consumers.clone())
    }

    /// Waits for the shutdown. After `stop` the worker takes no new work, finishes the work in flight, and sends all acks.
    pub async fn finished(mut self) -> Result<(), WorkerError> {
        let mut result = Ok(());
        while let Some(ended) = self.pools.join_next().await {
            if ended.is_err() || !self.stop.is_cancelled() {
                result = Err(WorkerError::PoolEnded);
                self.stop.cancel();
            }
        }
        self.give_up.cancel();
        self.disconnect.cancel();
        let closed = async { tokio::join!(self.consuming.closed(), self.publishing.closed()) };
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the broker connections were not closed in time");
        }
        result
    }
}

/// Starts the shutdown timers. They cancel the first token [`REPORT_TIME`] before the drain time ends, to cut provider calls
/// short, and the second at its end, to leave the remaining work to the next worker.
fn start_drain_timers(drain: Duration, stop: &CancellationToken) -> (CancellationToken, CancellationToken) {
    let (cut_short, give_up) = (CancellationToken::new(), CancellationToken::new());
    let (cutting_short, giving_up, stop) = (cut_short.clone(), give_up.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = giving_up.cancelled() => return,
        }
        tokio::time::sleep(drain.saturating_sub(REPORT_TIME)).await;
        cutting_short.cancel();
        tokio::time::sleep(drain.min(REPORT_TIME)).await;
        giving_up.cancel();
    });
    (cut_short, give_up)
}

fn context(
    config: &Config,
    registry: &Registry,
    route: Route,
    secrets: &Arc<Secrets>,
    cut_short: CancellationToken,
) -> ChannelContext {
    ChannelContext {
        route,
        providers: registry.providers(route.channel),
        breakers: Some(registry.breakers()),
        policy: config.retry_policy(route.channel),
        timeout: config.call_timeout(route.channel),
        lease_margin: config.timing.lease_margin,
        secrets: (route.channel == Channel::Webhook).then(|| Arc::clone(secrets)),
        tracking: None,
        unsubscribe_links: None,
        cut_short,
    }
}
