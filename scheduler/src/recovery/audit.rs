//! Checks that every delivery handed to the broker was processed, so that Posthaste does not rely on the broker never
//! losing a message.

use std::time::Duration;

use broker::{Broker, declare::depths, work_queue};
use deliveries::{Deliveries, outbox::Audited};
use domain::Route;
use metrics::counter;
use runtime::metric;
use store::Store;
use tokio::time::timeout;

use crate::task::{Report, Task, TaskError};

/// The most outbox rows of one pass.
const ROWS_MAX: i64 = 200;
/// The most deliveries of one pass: a second or two of look-ups on a slow disk, a fraction of the ten seconds that a
/// statement may take.
const DELIVERIES_MAX: i64 = 20_000;
/// Failed passes shrink down to this many deliveries.
const DELIVERIES_MIN: i64 = 500;
/// Passes before the queue depths are asked for again.
const PASSES_MAX: usize = 25;
/// The longest wait for the queue depths. A healthy broker reports all of them in a few milliseconds.
const DEPTHS_TIMEOUT: Duration = Duration::from_secs(5);

/// The task that audits.
pub struct Audit {
    store: Store,
    broker: Broker,
    /// The deliveries of the next pass.
    deliveries: i64,
}

impl Audit {
    /// Asks `broker` which queues are empty.
    pub const fn new(store: Store, broker: Broker) -> Self {
        Self { store, broker, deliveries: DELIVERIES_MAX }
    }

    /// Runs one pass. A failed pass, most likely one that took too long, halves the size of the next one.
    async fn pass(&mut self, empty: &[Route]) -> Result<Audited, TaskError> {
        let audited = self.store.outbox().audit(ROWS_MAX, self.deliveries, empty).await;
        self.deliveries = match audited {
            Ok(_) => (self.deliveries * 2).min(DELIVERIES_MAX),
            Err(_) => (self.deliveries / 2).max(DELIVERIES_MIN),
        };
        Ok(audited?)
    }

    /// The routes with empty queues. Without an answer there are none, and nothing counts as lost.
    async fn empty_routes(&self) -> Vec<Route> {
        let Some(connection) = self.broker.connection() else { return Vec::new() };
        let Ok(Ok(depths)) = timeout(DEPTHS_TIMEOUT, depths(&connection)).await else { return Vec::new() };
        let is_empty = |route: &Route| {
            let queue = work_queue(*route);
            depths.iter().any(|depth| depth.name == queue && depth.messages_ready == 0)
        };
        Route::all().filter(is_empty).collect()
    }
}

impl Task for Audit {
    const NAME: &'static str = "audit";
    const PERIOD: Duration = Duration::from_secs(5);

    async fn run(&mut self) -> Result<Report, TaskError> {
        if !self.store.outbox().audit_waits().await? {
            return Ok(Report::Done);
        }
        let empty = self.empty_routes().await;
        for _ in 0..PASSES_MAX {
            let audited = self.pass(&empty).await?;
            count_audited(audited);
            if !audited.is_more {
                return Ok(Report::Done);
            }
        }
        Ok(Report::More)
    }
}

fn count_audited(audited: Audited) {
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    counter!(metric::AUDIT_LOST).increment(count(audited.lost));
    counter!(metric::AUDIT_WATCHED).increment(count(audited.watched));
    if audited.lost > 0 {
        tracing::warn!(rows = audited.lost, "the broker lost deliveries; they are handed to it again");
    }
}
