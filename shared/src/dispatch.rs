//! From the outbox to the broker: the one way a delivery gets into a work queue.
//!
//! Whoever committed an outbox row posts it here and goes on. If the broker is away, the process dies, or too much is
//! waiting, the row simply stays unpublished and the relay takes it over.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    amqp::{Outgoing, PublishError, Publisher, topology},
    batch::{Batcher, Limits},
    contract::WorkItem,
    db::{
        Store,
        outbox::{Dispatch, DispatchItem},
    },
    faultpoint,
};

/// One flush joins up to 64 commits and waits once for all their confirms; two hide each other's round trip, and more would
/// only make them smaller.
/// 1024 waiting commits is more than a second of full load: beyond that the broker is not keeping up.
const LIMITS: Limits = Limits { batch_max: 64, parallel_max: 2, queue_max: 1024, spacing: Duration::from_millis(3) };
/// Notes of a moment share a commit, which else would queue for the disk beside the claims of the same deliveries.
const NOTES: Limits = Limits { batch_max: 4096, parallel_max: 1, queue_max: 16_384, spacing: Duration::ZERO };
/// How long notes are gathered: far below the time after which the relay would take an unmarked row over.
const GATHER: Duration = Duration::from_millis(50);

/// Publishes outbox rows and notes that they are with the broker. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    rows: Batcher<Dispatch, bool>,
}

impl Dispatcher {
    /// Starts publishing; the audit looks at a row `audit_after_ms` after it was published.
    pub fn start(publisher: Publisher, store: Store, audit_after_ms: i32) -> Self {
        metrics::counter!("posthaste_dispatch_left_to_relay_total").increment(0);
        let notes = Batcher::start(NOTES, move |published| note(store.clone(), audit_after_ms, published));
        let rows = Batcher::start(LIMITS, move |rows| publish(publisher.clone(), notes.clone(), rows));
        Self { rows }
    }

    /// Publishes a row in the background; what does not fit or fails is left to the relay.
    pub fn post(&self, row: Dispatch) {
        if self.rows.post(row).is_err() {
            metrics::counter!("posthaste_dispatch_left_to_relay_total").increment(1);
        }
    }

    /// Publishes a row and says whether every delivery of it is with the broker.
    pub async fn publish(&self, row: Dispatch) -> bool {
        self.rows.submit(row).await.unwrap_or(false)
    }

    /// As [`Dispatcher::publish`] for many rows side by side; the answers are in the order of the rows.
    pub async fn publish_all(&self, rows: Vec<Dispatch>) -> Vec<bool> {
        join_all(rows.into_iter().map(|row| self.publish(row))).await
    }
}

async fn publish(publisher: Publisher, notes: Batcher<i64, ()>, rows: Vec<Dispatch>) -> Vec<bool> {
    faultpoint::pass(faultpoint::BEFORE_PUBLISH);
    let Ok(outgoing) = rows.iter().flat_map(|row| &row.items).map(outgoing).collect() else {
        return vec![false; rows.len()];
    };
    let mut results = publisher.publish_all(outgoing).await.into_iter();
    // A row counts only when all of it is confirmed: its relay then repeats the rest, and the claim sorts repeats out.
    let done: Vec<bool> =
        rows.iter().map(|row| results.by_ref().take(row.items.len()).filter(Result::is_err).count() == 0).collect();
    faultpoint::pass(faultpoint::AFTER_PUBLISH);
    for (row, _) in rows.iter().zip(&done).filter(|(_, done)| **done) {
        // A note that does not fit is like one that fails.
        let _ = notes.post(row.outbox_id);
    }
    done
}

/// Notes which rows are with the broker. If it fails, the relay will publish them once more: time lost, nothing else.
async fn note(store: Store, audit_after_ms: i32, published: Vec<i64>) -> Vec<()> {
    tokio::time::sleep(GATHER).await;
    let answers = vec![(); published.len()];
    if let Err(error) = store.mark_published(published, audit_after_ms).await {
        tracing::warn!(%error, "published outbox rows could not be marked");
    }
    answers
}

fn outgoing(item: &DispatchItem) -> Result<Outgoing, PublishError> {
    let work = WorkItem::new(item.delivery, item.run);
    Outgoing::json(topology::WORK, item.route.to_string(), item.delivery.to_string(), &work)
}
