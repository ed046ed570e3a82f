//! The background tasks, and the log writer. Each one is a small, idempotent loop without a leader, so any number of
//! schedulers can run side by side.
//!
//! A periodic loop is a [`task::Task`]. The log writer and the dead letter drainer consume a queue instead. Each loop
//! has a file of its own and does not call the others: they share only the database.

mod counters;
mod due_times;
mod failure_streak;
mod log;
mod poller;
mod probe;
mod recovery;
mod release;
mod storage;
mod supervisor;
pub mod task;
mod webhooks;

use std::{sync::Arc, time::Duration};

use broker::{Broker, BrokerPart, Consumer, DLQ, Depths, EVENTS_LOG, Publisher};
use connectors::waha::Waha;
use domain::contract::guard::Guard;
use engine::dispatch::Dispatcher;
use runtime::{
    config::Config,
    probe::{Parts, Starting},
};
use store::{DatabasePart, Store, migrate::SchemaError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use due_times::DueTimes;
use log::log_progress::LogProgress;
use poller::Poller;
use supervisor::Supervisor;
use task::millis;
use webhooks::provider_events::Subscriber;

/// The longest call to WAHA. WAHA answers from memory.
const WAHA_TIMEOUT_MAX: Duration = Duration::from_secs(6);

/// Why the scheduler does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The pool of database connections could not be created.
    #[error("failed to set up the database connections")]
    Pool(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An HTTP client could not be created.
    #[error("failed to set up the HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database schema is not the one that this version expects.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A loop returned although it was not stopped. This is a bug.
    #[error("`{0}` ended by itself")]
    Ended(&'static str),
}

/// Runs the scheduler until `stop`. Adds its dependencies and its loops to `parts`, for health checks.
pub async fn run(config: Arc<Config>, parts: Parts, stop: CancellationToken) -> Result<(), RunError> {
    counters::start();
    let store =
        Store::open(&config.database, config.database.pool_size).map_err(|error| RunError::Pool(Box::new(error)))?;
    parts.add(Starting(probe::CONSUMERS));
    parts.add(DatabasePart(store.clone()));
    // Waits for the schema that this version expects, before it consumes or releases anything.
    let Some(checked) = stop.run_until_cancelled(store.await_schema()).await else { return Ok(()) };
    checked?;
    let guard = Guard::new(config.webhook.allow_nets.clone());
    let waha = Waha::new(guard, config.waha.base_url.as_ref()).map_err(|error| RunError::Client(Box::new(error)))?;
    let subscriber = Subscriber::new().map_err(|error| RunError::Client(Box::new(error)))?;
    let services = Services::start(&config, store, waha, subscriber);
    parts.add(BrokerPart { broker: services.publishing.clone(), needed: true });
    let (poller, due_times) = Poller::new(services.store.clone());
    let mut supervisor = Supervisor::new(due_times.clone(), &stop);
    supervisor.spawn(poller);
    services.spawn_loops(&mut supervisor, &config, &due_times);
    supervisor.register_health(&parts);
    let ended = supervisor.join(&services.tracker, config.timing.drain).await;
    services.end().await;
    ended
}

/// The connections and clients that the loops share.
struct Services {
    store: Store,
    waha: Waha,
    subscriber: Subscriber,
    publishing: Broker,
    consuming: Broker,
    publisher: Publisher,
    dispatcher: Dispatcher,
    /// Tracks publishes that continue after the turn that started them.
    tracker: TaskTracker,
    /// Closes the connections. Cancelled last, because draining needs them.
    close: CancellationToken,
}

impl Services {
    fn start(config: &Config, store: Store, waha: Waha, subscriber: Subscriber) -> Self {
        let close = CancellationToken::new();
        let connect = |name| Broker::start(&config.broker.url, name, close.clone());
        let (publishing, consuming) = (connect("scheduler publishing"), connect("scheduler consuming"));
        let publisher = Publisher::start(&publishing).waiting(config.timing.publish_timeout);
        // The deliveries of the scheduler have waited already, so they may also wait for a slow broker.
        let dispatcher = Dispatcher::start(publisher.clone(), store.clone(), millis(config.timing.audit_after));
        Self {
            store,
            waha,
            subscriber,
            publishing,
            consuming,
            publisher,
            dispatcher,
            tracker: TaskTracker::new(),
            close,
        }
    }

    /// Spawns every loop.
    fn spawn_loops(&self, supervisor: &mut Supervisor, config: &Arc<Config>, due_times: &DueTimes) {
        let Self { store, publisher, dispatcher, .. } = self;
        let relay_after = millis(config.timing.relay_after);
        let (tracker, depths) = (&self.tracker, Depths::new(self.consuming.clone()));
        supervisor.spawn(release::due::ReleaseDue::new(
            store.clone(),
            dispatcher.clone(),
            tracker.clone(),
            depths.clone(),
            due_times.clone(),
            relay_after,
        ));
        let (sessions, shares) =
            release::lines::tasks(store.clone(), dispatcher.clone(), tracker.clone(), depths, relay_after);
        supervisor.spawn(sessions);
        supervisor.spawn(shares);
        supervisor.spawn(webhooks::waha_events::WahaEvents::new(store.clone(), publisher.clone()));
        supervisor.spawn(webhooks::provider_events::ProviderEvents::new(
            store.clone(),
            publisher.clone(),
            self.subscriber.clone(),
        ));
        let call_timeout = config.provider_timeout.min(WAHA_TIMEOUT_MAX);
        supervisor.spawn(webhooks::waha_sessions::WahaSessions::new(store.clone(), self.waha.clone(), call_timeout));
        supervisor.spawn(webhooks::webhook_events::WebhookEvents::new(store.clone(), dispatcher.clone(), relay_after));
        supervisor.spawn(webhooks::webhook_events::WebhookHolds::new(store.clone()));
        supervisor.spawn(release::broadcasts::Broadcasts::new(store.clone(), dispatcher.clone(), relay_after));
        supervisor.spawn(release::broadcasts::BroadcastAudiences(store.clone()));
        supervisor.spawn(release::broadcasts::BroadcastCounts(store.clone()));
        supervisor
            .spawn(webhooks::webhook_events::WebhookPruning { store: store.clone(), days: config.webhook.keep_days });
        supervisor.spawn(release::digests::Digests::new(
            store.clone(),
            dispatcher.clone(),
            due_times.clone(),
            relay_after,
        ));
        supervisor.spawn(release::digests::DigestPruning(store.clone()));
        let events = Consumer::open(&self.consuming, EVENTS_LOG, log::log_writer::PREFETCH, supervisor.stop());
        let log = LogProgress::default();
        let path = log::crash_gate::OutcomePath {
            publishing: self.publishing.clone(),
            consuming: self.consuming.clone(),
            consumer: events.health(),
            log: log.clone(),
        };
        let gate = log::crash_gate::CrashGate::new(path, publisher.clone(), config.timing);
        supervisor.spawn(recovery::crashes::Crashes::new(store.clone(), publisher.clone(), gate, Arc::clone(config)));
        supervisor.spawn(webhooks::holds::Holds::new(store.clone(), publisher.clone()));
        supervisor.spawn(release::outbox::OutboxRelay::new(store.clone(), dispatcher.clone(), self.publishing.clone()));
        supervisor.spawn(release::outbox::OutboxGauge(store.clone()));
        supervisor.spawn(recovery::audit::Audit::new(store.clone(), self.consuming.clone()));
        supervisor.spawn(log::replays::Replays::new(store.clone(), publisher.clone(), dispatcher.clone(), relay_after));
        supervisor.spawn(log::unread_events::UnreadEvents::new(store.clone(), publisher.clone()));
        supervisor.spawn(log::unread_events::LetteredOutcomes::new(store.clone()));
        supervisor.spawn(storage::partitions::Partitions(store.clone()));
        supervisor.spawn(storage::pruning::Pruning(store.clone()));
        supervisor.spawn(storage::pruning::Freeze::new(store.clone()));
        supervisor.spawn(storage::pruning::LineGauges(store.clone()));
        supervisor.spawn(release::expiry::Expiry(store.clone()));
        supervisor.spawn(release::expiry::ExpiryFill::new(store.clone()));
        supervisor.spawn(storage::retention::RetentionDays::new(store.clone(), config.retention_days));
        supervisor.spawn(storage::retention::Retention { store: store.clone(), days: config.retention_days });
        supervisor.spawn(storage::retention::Erasures(store.clone()));
        supervisor.spawn_consumer("log_writer", events, |consumer, failures, stop| {
            let (store, publisher, lost_after) = (store.clone(), publisher.clone(), config.timing.lost_after());
            log::log_writer::LogWriter::new(store, publisher, consumer, log, lost_after, failures, stop).run()
        });
        let letters = Consumer::open(&self.consuming, DLQ, log::dead_letter_drainer::PREFETCH, supervisor.stop());
        supervisor.spawn_consumer("dead_letter_drainer", letters, |consumer, failures, stop| {
            let (store, publisher) = (store.clone(), publisher.clone());
            let deps =
                log::dead_letter_drainer::Deps { store, publisher, require_mapping: config.broker.require_mapping };
            log::dead_letter_drainer::DeadLetterDrainer::new(deps, consumer, failures, stop).run()
        });
    }

    async fn end(self) {
        self.close.cancel();
        self.publishing.closed().await;
        self.consuming.closed().await;
    }
}
