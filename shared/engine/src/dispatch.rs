//! Publishes outbox rows to the broker. Every delivery in a work queue comes through here.
//!
//! The code that committed an outbox row posts the row here and continues. If the broker is away, the process dies, or the
//! queue is full, the row stays unpublished and the relay publishes it later.

use std::time::Duration;

use broker::{Outgoing, PublishError, Publisher, topology};
use deliveries::{
    Deliveries,
    outbox::{Dispatch, DispatchItem},
};
use domain::contract::WorkItem;
use futures_util::future::join_all;
use runtime::{
    batch::{Batcher, Limits},
    faultpoint, metric,
};
use store::Store;

/// One flush publishes the rows of up to 64 commits and waits once for all their confirms. Two flushes overlap their round trips;
/// more would only make each flush smaller.
/// 1024 waiting commits is more than a second of full load: beyond that the broker is not keeping up.
const LIMITS: Limits = Limits { batch_max: 64, parallel_max: 2, queue_max: 1024, spacing: Duration::from_millis(3) };
/// Marks share a commit. Separate commits would compete for the disk with the claims of the same deliveries.
const MARKS: Limits = Limits { batch_max: 4096, parallel_max: 1, queue_max: 16_384, spacing: Duration::ZERO };
/// How long marks are collected: far below the time after which the relay takes over an unmarked row.
const MARK_LINGER: Duration = Duration::from_millis(50);

/// Publishes outbox rows and marks them as published. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    rows: Batcher<Dispatch, bool>,
}

impl Dispatcher {
    /// Starts publishing. The audit checks a row `audit_after_ms` after it was published.
    pub fn start(publisher: Publisher, store: Store, audit_after_ms: i32) -> Self {
        metrics::counter!(metric::DISPATCH_LEFT_TO_RELAY).increment(0);
        let marks = Batcher::start(MARKS, move |published| mark(store.clone(), audit_after_ms, published));
        let rows = Batcher::start(LIMITS, move |rows| publish(publisher.clone(), marks.clone(), rows));
        Self { rows }
    }

    /// Publishes a row in the background. If the queue is full or publishing fails, the row is left to the relay.
    pub fn post(&self, row: Dispatch) {
        if self.rows.post(row).is_err() {
            metrics::counter!(metric::DISPATCH_LEFT_TO_RELAY).increment(1);
        }
    }

    /// Publishes a row. Returns whether the broker confirmed every delivery of it.
    pub async fn publish(&self, row: Dispatch) -> bool {
        self.rows.submit(row).await.unwrap_or(false)
    }

    /// Like [`Dispatcher::publish`], for many rows concurrently. The results are in the order of the rows.
    pub async fn publish_all(&self, rows: Vec<Dispatch>) -> Vec<bool> {
        join_all(rows.into_iter().map(|row| self.publish(row))).await
    }
}

async fn publish(publisher: Publisher, marks: Batcher<i64, ()>, rows: Vec<Dispatch>) -> Vec<bool> {
    faultpoint::pass(faultpoint::BEFORE_PUBLISH);
    let Ok(outgoing) = rows.iter().flat_map(|row| &row.items).map(outgoing).collect() else {
        return vec![false; rows.len()];
    };
    let mut results = publisher.publish_all(outgoing).await.into_iter();
    // A row is published only when all of its deliveries are confirmed. Otherwise the relay publishes the whole row again, and
    // the claim filters duplicates out.
    let done: Vec<bool> =
        rows.iter().map(|row| results.by_ref().take(row.items.len()).filter(Result::is_err).count() == 0).collect();
    faultpoint::pass(faultpoint::AFTER_PUBLISH);
    for (row, _) in rows.iter().zip(&done).filter(|(_, done)| **done) {
        // If the queue of marks is full, the relay publishes the row once more, as after a failed mark.
        let _ = marks.post(row.outbox_id);
    }
    done
}

/// Marks rows as published. If this fails, the relay publishes them once more, which only costs time.
async fn mark(store: Store, audit_after_ms: i32, published: Vec<i64>) -> Vec<()> {
    tokio::time::sleep(MARK_LINGER).await;
    let answers = vec![(); published.len()];
    if let Err(error) = store.outbox().mark_published(published, audit_after_ms).await {
        tracing::warn!(%error, "published outbox rows could not be marked");
    }
    answers
}

fn outgoing(item: &DispatchItem) -> Result<Outgoing, PublishError> {
    let work = WorkItem::new(item.delivery, item.run);
    Outgoing::json(topology::WORK, item.route.to_string(), item.delivery.to_string(), &work)
}
