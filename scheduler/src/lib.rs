//! Everything that waits, and the log writer: small, idempotent, leaderless loops, safe with any number of schedulers.
//!
//! A loop on a period is a [`task::Task`]; the log writer and the dead letter drainer follow a queue. Each has a file of
//! its own, and none knows of another: they meet in the database.

mod audit;
mod broadcasts;
mod counters;
mod crashes;
mod crew;
mod dead_letter_drainer;
mod digests;
mod expiry;
mod found;
mod holds;
mod incoming;
mod kept;
mod log_progress;
mod log_writer;
mod outbox_relay;
mod partitions;
mod poller;
mod probe;
mod provider_events;
mod pruning;
mod quiet;
mod release_due;
mod release_lines;
mod replays;
mod retention;
pub mod task;
mod trouble;
mod unread_events;
mod waha_events;
mod waha_sessions;
mod webhook_events;

use std::{sync::Arc, time::Duration};

use shared::{
    amqp::{Broker, Consumer, DLQ, Depths, EVENTS_LOG, Publisher},
    config::Config,
    contract::guard::Guard,
    db::{Store, migrate::SchemaError},
    dispatch::Dispatcher,
    probe::{BrokerPart, DatabasePart, Parts, Starting},
    waha::Waha,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crew::Crew;
use log_progress::LogProgress;
use poller::{Outlook, Poller};
use provider_events::Subscriber;
use task::millis;

/// How long one question to WAHA may take; it answers from memory.
const WAHA_TIMEOUT_MAX: Duration = Duration::from_secs(6);

/// Why the scheduler does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The pool of database connections could not be made.
    #[error("failed to set up the database connections")]
    Pool(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An HTTP client could not be made.
    #[error("failed to set up the HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The schema is not the one this version knows.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A loop ended that never should: a bug.
    #[error("`{0}` ended by itself")]
    Ended(&'static str),
}

/// Runs the scheduler until stopped. What it needs and does is added to `parts`, for whoever watches the process.
pub async fn run(config: Arc<Config>, parts: Parts, stop: CancellationToken) -> Result<(), RunError> {
    counters::start();
    let store =
        Store::open(&config.database, config.database.pool_size).map_err(|error| RunError::Pool(Box::new(error)))?;
    parts.add(Starting(probe::CONSUMERS));
    parts.add(DatabasePart(store.clone()));
    // Nothing is consumed or released before the schema is the one this version knows.
    let Some(checked) = stop.run_until_cancelled(store.await_schema()).await else { return Ok(()) };
    checked?;
    let guard = Guard::new(config.webhook.allow_nets.clone());
    let waha = Waha::new(guard, config.waha.base_url.as_ref()).map_err(|error| RunError::Client(Box::new(error)))?;
    let subscriber = Subscriber::new().map_err(|error| RunError::Client(Box::new(error)))?;
    let line = Line::start(&config, store, waha, subscriber);
    parts.add(BrokerPart { broker: line.publishing.clone(), needed: true });
    let (poller, outlook) = Poller::new(line.store.clone());
    let mut crew = Crew::new(outlook.clone(), &stop);
    crew.keep(poller);
    line.staff(&mut crew, &config, &outlook);
    crew.show(&parts);
    let ended = crew.attend(&line.tracker, config.timing.drain).await;
    line.end().await;
    ended
}

/// What the loops stand on.
struct Line {
    store: Store,
    waha: Waha,
    subscriber: Subscriber,
    publishing: Broker,
    consuming: Broker,
    publisher: Publisher,
    dispatcher: Dispatcher,
    /// Publishes that outlive the turn that began them.
    tracker: TaskTracker,
    /// Closes the connections; cancelled last, since draining needs them.
    hang_up: CancellationToken,
}

impl Line {
    fn start(config: &Config, store: Store, waha: Waha, subscriber: Subscriber) -> Self {
        let hang_up = CancellationToken::new();
        let connect = |name| Broker::start(&config.broker.url, name, hang_up.clone());
        let (publishing, consuming) = (connect("scheduler publishing"), connect("scheduler consuming"));
        let publisher = Publisher::start(&publishing).waiting(config.timing.publish_timeout);
        // What waited can wait for the broker as well.
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
            hang_up,
        }
    }

    /// One loop each.
    fn staff(&self, crew: &mut Crew, config: &Arc<Config>, outlook: &Outlook) {
        let Self { store, publisher, dispatcher, .. } = self;
        let relay_after = millis(config.timing.relay_after);
        let (tracker, depths) = (&self.tracker, Depths::new(self.consuming.clone()));
        crew.keep(release_due::ReleaseDue::new(
            store.clone(),
            dispatcher.clone(),
            tracker.clone(),
            depths.clone(),
            outlook.clone(),
            relay_after,
        ));
        let (sessions, shares) =
            release_lines::tasks(store.clone(), dispatcher.clone(), tracker.clone(), depths, relay_after);
        crew.keep(sessions);
        crew.keep(shares);
        crew.keep(waha_events::WahaEvents::new(store.clone(), publisher.clone()));
        crew.keep(provider_events::ProviderEvents::new(store.clone(), publisher.clone(), self.subscriber.clone()));
        let call_timeout = config.provider_timeout.min(WAHA_TIMEOUT_MAX);
        crew.keep(waha_sessions::WahaSessions::new(store.clone(), self.waha.clone(), call_timeout));
        crew.keep(webhook_events::WebhookEvents::new(store.clone(), dispatcher.clone(), relay_after));
        crew.keep(webhook_events::WebhookHolds::new(store.clone()));
        crew.keep(broadcasts::Broadcasts::new(store.clone(), dispatcher.clone(), relay_after));
        crew.keep(broadcasts::BroadcastAudiences(store.clone()));
        crew.keep(broadcasts::BroadcastCounts(store.clone()));
        crew.keep(webhook_events::WebhookForgets { store: store.clone(), days: config.webhook.keep_days });
        crew.keep(digests::Digests::new(store.clone(), dispatcher.clone(), outlook.clone(), relay_after));
        crew.keep(digests::DigestForgets(store.clone()));
        let events = Consumer::open(&self.consuming, EVENTS_LOG, log_writer::PREFETCH, crew.stop());
        let log = LogProgress::default();
        let watched = quiet::Watched {
            publishing: self.publishing.clone(),
            consuming: self.consuming.clone(),
            consumer: events.health(),
            log: log.clone(),
        };
        let quiet = quiet::Quiet::new(watched, publisher.clone(), config.timing);
        crew.keep(crashes::Crashes::new(store.clone(), publisher.clone(), quiet, Arc::clone(config)));
        crew.keep(holds::Holds::new(store.clone(), publisher.clone()));
        crew.keep(outbox_relay::OutboxRelay::new(store.clone(), dispatcher.clone(), self.publishing.clone()));
        crew.keep(outbox_relay::OutboxGauge(store.clone()));
        crew.keep(audit::Audit::new(store.clone(), self.consuming.clone()));
        crew.keep(replays::Replays::new(store.clone(), publisher.clone(), dispatcher.clone(), relay_after));
        crew.keep(unread_events::UnreadEvents::new(store.clone(), publisher.clone()));
        crew.keep(unread_events::LetteredOutcomes::new(store.clone()));
        crew.keep(partitions::Partitions(store.clone()));
        crew.keep(pruning::Pruning(store.clone()));
        crew.keep(pruning::Freeze::new(store.clone()));
        crew.keep(pruning::LineGauges(store.clone()));
        crew.keep(expiry::Expiry(store.clone()));
        crew.keep(expiry::ExpiryFill::new(store.clone()));
        crew.keep(retention::RetentionDays::new(store.clone(), config.retention_days));
        crew.keep(retention::Retention { store: store.clone(), days: config.retention_days });
        crew.keep(retention::Erasures(store.clone()));
        crew.follow("log_writer", events, |consumer, trouble, stop| {
            let (store, publisher, lost_after) = (store.clone(), publisher.clone(), config.timing.lost_after());
            log_writer::LogWriter::new(store, publisher, consumer, log, lost_after, trouble, stop).run()
        });
        let letters = Consumer::open(&self.consuming, DLQ, dead_letter_drainer::PREFETCH, crew.stop());
        crew.follow("dead_letter_drainer", letters, |consumer, trouble, stop| {
            let (store, publisher) = (store.clone(), publisher.clone());
            let deps = dead_letter_drainer::Deps { store, publisher, require_mapping: config.broker.require_mapping };
            dead_letter_drainer::DeadLetterDrainer::new(deps, consumer, trouble, stop).run()
        });
    }

    async fn end(self) {
        self.hang_up.cancel();
        self.publishing.closed().await;
        self.consuming.closed().await;
    }
}
