//! Reports reads of inbox items to the delivery log, as engagement of their deliveries.
//!
//! No request waits for this. While the broker or the database is away it is retried for a few minutes, and then
//! counted as lost; the inbox still shows that the item was read.

use std::{sync::Arc, time::Duration};

use broker::{Outgoing, Publisher, topology};
use deliveries::{Deliveries, provider_events::Subject};
use domain::{
    DeliveryId, EventKind, State, clock,
    contract::{Event, EventBatch, wire::EVENTS_MAX},
};
use runtime::metric;
use store::{DbResult, Store};
use tokio::{runtime::Handle, sync::Semaphore, time::sleep};
use uuid::Uuid;

/// The routing key of people's actions.
const ROUTING_KEY: &str = "engagement";
/// Items of one look-up.
const PART: usize = 512;
/// The most look-ups that wait at the same time.
const WAITING_MAX: usize = 2_000;
/// The pauses between tries. The first ones are for a reader who is faster than the log.
const PAUSES_MS: [u64; 8] = [0, 500, 1_000, 5_000, 15_000, 30_000, 60_000, 120_000];

/// Reports reads. One per process.
pub struct ReadReporter {
    store: Store,
    publisher: Publisher,
    waiting: Arc<Semaphore>,
    runtime: Handle,
}

impl ReadReporter {
    /// Publishes through `publisher`, on the runtime of the caller.
    pub fn new(store: Store, publisher: Publisher) -> Self {
        Self { store, publisher, waiting: Arc::new(Semaphore::new(WAITING_MAX)), runtime: Handle::current() }
    }

    /// Reports that these items were read just now.
    pub fn tell(&self, read: &[DeliveryId]) {
        let at = clock::now();
        for part in read.chunks(PART) {
            let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else {
                lost(part.len());
                continue;
            };
            let (store, publisher, mut part) = (self.store.clone(), self.publisher.clone(), part.to_vec());
            self.runtime.spawn(async move {
                let _permit = permit;
                for pause in PAUSES_MS {
                    sleep(Duration::from_millis(pause)).await;
                    match attempt(&store, &publisher, &part, at).await {
                        Ok(left) if left.is_empty() => return,
                        Ok(left) => part = left,
                        Err(error) => tracing::debug!(%error, "read items are reported later"),
                    }
                }
                lost(part.len());
            });
        }
    }
}

fn lost(count: usize) {
    metrics::counter!(metric::READS_LOST).increment(u64::try_from(count).unwrap_or(u64::MAX));
}

/// Returns those still to be reported: their outcome is not written yet, or the broker did not take them.
async fn attempt(
    store: &Store,
    publisher: &Publisher,
    read: &[DeliveryId],
    at: chrono::DateTime<chrono::Utc>,
) -> DbResult<Vec<DeliveryId>> {
    let subjects = store.provider_events().subjects(read.to_vec()).await?;
    let early = |subject: &Subject| matches!(subject.state, State::Scheduled | State::Queued | State::Sending);
    let (early, ready): (Vec<Subject>, Vec<Subject>) = subjects.into_iter().partition(early);
    let mut left: Vec<DeliveryId> = early.iter().map(|subject| subject.about.1).collect();
    for part in ready.chunks(EVENTS_MAX) {
        let events = part.iter().map(|subject| Event::report(subject.about, EventKind::Read, at)).collect();
        let id = Uuid::now_v7().to_string();
        let told = match Outgoing::json(topology::EVENTS, ROUTING_KEY, id, &EventBatch::new(events)) {
            Ok(message) => publisher.publish_one(message).await.is_ok(),
            Err(_) => true,
        };
        if !told {
            left.extend(part.iter().map(|subject| subject.about.1));
        }
    }
    Ok(left)
}
