//! The worker: takes deliveries that may be sent now, sends them, and says how it went.
//!
//! It owns no truth. What it may send is decided by the claim (a row of the database), what came of it is written down
//! by the log writer (from the events published here). Killed at any moment, it loses nothing.
//!
//! `pool` moves deliveries, `attempt` makes one attempt, `providers` know the vendors, `outcomes` reports.

mod attempt;
mod breakers;
mod health;
mod measures;
mod outcomes;
mod pool;
pub mod providers;
pub mod registry;
mod secrets;
#[cfg(test)]
mod testing;

use std::{sync::Arc, time::Duration};

use shared::{
    amqp::{Broker, ConsumerHealth, Publisher},
    config::{Config, REPORT_TIME},
    db::{Store, migrate::SchemaError},
    domain::{Channel, Lane, Route},
    local_dispatch::LocalDispatch,
    probe::{BrokerPart, DatabasePart, Parts, Starting},
};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

pub use health::ConsumersPart;

use attempt::ChannelContext;
use outcomes::Outcomes;
use pool::{Pool, PoolDeps};
use providers::{
    email::{tracking::Tracking, unsubscribing::Unsubscribing},
    in_app::hints::Hints,
};
use registry::{Registry, RegistryError};
use secrets::Secrets;

/// Saying goodbye to the broker takes a round trip; one that is away should not hold up the end.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a worker did not start or went on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The pool of connections could not be made.
    #[error("failed to set up the database pool")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The schema is not the one this version knows.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A provider could not be set up.
    #[error("failed to set up the providers")]
    Providers(#[from] RegistryError),
    /// A pool ended although nobody stopped it: a fault of this program.
    #[error("a pool of the worker ended by itself")]
    PoolEnded,
}

/// A worker at work. Dropping it stops nothing; its token does.
pub struct Worker {
    publishing: Broker,
    consuming: Broker,
    pools: JoinSet<()>,
    consumers: Vec<Arc<ConsumerHealth>>,
    stop: CancellationToken,
    give_up: CancellationToken,
    hang_up: CancellationToken,
}

/// Works until `stop`, then finishes what was begun within the drain time of the settings. What the worker needs is added
/// to `parts`, for whoever watches the process. An ingest in the same process hands it by `local_dispatch` what it accepted.
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
    // Nothing is claimed before the schema is the one this version knows.
    let Some(checked) = stop.run_until_cancelled(store.await_schema()).await else { return Ok(()) };
    checked?;
    let worker = Worker::start(&config, store, &local_dispatch, stop)?;
    worker.show(&parts);
    worker.finished().await
}

impl Worker {
    /// Starts the pools. Servers that are away are waited for; only settings that do not fit are an error.
    pub fn start(
        config: &Config,
        store: Store,
        local_dispatch: &LocalDispatch,
        stop: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let hints = Hints::default();
        let registry = Registry::build(config, &store, &hints)?;
        measures::describe();
        measures::start_at_zero(config.worker.channels.iter().map(|channel| (*channel, config.backends(*channel))));
        let hang_up = CancellationToken::new();
        let publishing = Broker::start(&config.broker.url, "posthaste worker publishing", hang_up.clone());
        let consuming = Broker::start(&config.broker.url, "posthaste worker consuming", hang_up.clone());
        let (cut_short, give_up) = countdown(config.timing.drain, &stop);
        let publisher = Publisher::start(&publishing).waiting(config.timing.publish_timeout);
        tokio::spawn(hints.tell(publisher.clone(), give_up.clone()));
        let outcomes = Outcomes::start(publisher.clone(), give_up.clone());
        let reporting = publishing.clone();
        let deps = PoolDeps { store: store.clone(), publisher, outcomes, reporting, stop: stop.clone() };
        let secrets = Arc::new(Secrets::new(store.clone()));
        let tracking = Tracking::of(config, &store).map(Arc::new);
        let unsubscribing = Arc::new(Unsubscribing::new(config, &store));
        let mut pools = JoinSet::new();
        let mut consumers = Vec::new();
        for route in Route::all().filter(|route| config.worker.channels.contains(&route.channel)) {
            let tracking = tracking.clone().filter(|_| route.channel == Channel::Email);
            let unsubscribing = (route.channel == Channel::Email).then(|| Arc::clone(&unsubscribing));
            let context = ChannelContext {
                tracking,
                unsubscribing,
                ..context(config, &registry, route, &secrets, cut_short.clone())
            };
            let concurrency = concurrency(config.worker.concurrency, route.lane);
            let pool = Pool::open(&consuming, deps.clone(), context, concurrency, local_dispatch);
            consumers.push(pool.health());
            let give_up = give_up.clone();
            pools.spawn(async move { give_up.run_until_cancelled(pool.run()).await.unwrap_or_default() });
        }
        Ok(Self { publishing, consuming, pools, consumers, stop, give_up, hang_up })
    }

    /// Adds what this worker needs to `parts`: its broker and its consumers.
    pub fn show(&self, parts: &Parts) {
        parts.add(BrokerPart { broker: self.consuming.clone(), needed: true });
        parts.add(self.health());
    }

    /// How its consumers are doing.
    pub fn health(&self) -> ConsumersPart {
        ConsumersPart::new(self.consumers.clone())
    }

    /// Waits for the end: nothing more is taken in after `stop`, what was begun is finished, acknowledgements are out.
    pub async fn finished(mut self) -> Result<(), WorkerError> {
        let mut result = Ok(());
        while let Some(ended) = self.pools.join_next().await {
            if ended.is_err() || !self.stop.is_cancelled() {
                result = Err(WorkerError::PoolEnded);
                self.stop.cancel();
            }
        }
        self.give_up.cancel();
        self.hang_up.cancel();
        let closed = async { tokio::join!(self.consuming.closed(), self.publishing.closed()) };
        if timeout(GOODBYE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the broker connections were not closed in time");
        }
        result
    }
}

/// After `stop`: the moment to cut providers short, and the moment to leave everything to the next worker.
fn countdown(drain: Duration, stop: &CancellationToken) -> (CancellationToken, CancellationToken) {
    let (cut_short, give_up) = (CancellationToken::new(), CancellationToken::new());
    let (hurrying, giving_up, stop) = (cut_short.clone(), give_up.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = giving_up.cancelled() => return,
        }
        tokio::time::sleep(drain.saturating_sub(REPORT_TIME)).await;
        hurrying.cancel();
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
        unsubscribing: None,
        cut_short,
    }
}

/// How many of `widest` attempts at once a lane makes. Bulk gets half: it is in no hurry, and its attempts compete with the
/// others for the same providers.
fn concurrency(widest: usize, lane: Lane) -> usize {
    match lane {
        Lane::High | Lane::Normal => widest,
        Lane::Bulk => (widest / 2).max(1),
    }
}
