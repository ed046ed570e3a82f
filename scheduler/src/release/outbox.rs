//! Publishes outbox rows that their own process could not publish: the broker was down, or the process died in between.

use std::time::Duration;

use broker::Broker;
use deliveries::{Deliveries, outbox::Dispatch, poll::WorkKind};
use engine::dispatch::Dispatcher;
use metrics::{counter, gauge};
use runtime::metric;
use store::Store;

use crate::task::{Report, Task, TaskError, count_of, gauge_of};

/// Rows taken at first, when their size is unknown.
const ROWS_MIN: usize = 16;
/// Rows taken when they are small.
const ROWS_MAX: usize = 1024;
/// Deliveries to publish in one turn: a second or two of a broker's work, far below the publish timeout.
const DELIVERIES_AIM: usize = 20_000;
/// How long taken rows are reserved. It must be longer than a publish may take, or rows would be published twice.
const LEASE_MS: i32 = 30_000;

/// The task that publishes outbox rows.
pub struct OutboxRelay {
    store: Store,
    dispatcher: Dispatcher,
    broker: Broker,
    rows: usize,
}

impl OutboxRelay {
    /// Publishes through `dispatcher`, which uses `broker`.
    pub const fn new(store: Store, dispatcher: Dispatcher, broker: Broker) -> Self {
        Self { store, dispatcher, broker, rows: ROWS_MIN }
    }

    /// Publishes rows in parallel, and gives failed ones back at once.
    async fn relay(&self, rows: Vec<Dispatch>) -> Result<(), TaskError> {
        let ids: Vec<i64> = rows.iter().map(|row| row.outbox_id).collect();
        let published = self.dispatcher.publish_all(rows).await;
        let failed: Vec<i64> = ids.into_iter().zip(published).filter(|(_, done)| !done).map(|(id, _)| id).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let count = failed.len();
        self.store.outbox().give_back(failed).await?;
        Err(TaskError::Unpublished(count))
    }
}

impl Task for OutboxRelay {
    const NAME: &'static str = "outbox_relay";
    const PERIOD: Duration = Duration::from_millis(500);
    const WORK: Option<WorkKind> = Some(WorkKind::Outbox);

    async fn run(&mut self) -> Result<Report, TaskError> {
        // Without a broker no row is taken: it keeps its place, and the loop does not spin.
        if !self.broker.is_usable() {
            return Ok(Report::Done);
        }
        let rows = self.store.outbox().take(i64::try_from(self.rows).unwrap_or(i64::MAX), LEASE_MS).await?;
        let (taken, deliveries) = (rows.len(), rows.iter().map(|row| row.items.len()).sum());
        counter!(metric::OUTBOX_RELAYED).increment(count_of(deliveries));
        self.relay(rows).await?;
        let full = taken >= self.rows;
        self.rows = next_rows(taken, deliveries).unwrap_or(self.rows);
        Ok(if full { Report::More } else { Report::Done })
    }
}

/// The task that shows how many rows wait for the relay. It is separate, because a slow or failing count must not delay
/// the relay.
pub struct OutboxGauge(pub Store);

impl Task for OutboxGauge {
    const NAME: &'static str = "outbox_gauge";
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let (pending, age) = self.0.outbox().count_pending().await.inspect_err(|_| set_gauges(f64::NAN, f64::NAN))?;
        set_gauges(gauge_of(pending), age);
        Ok(Report::Done)
    }
}

/// Both are NaN if the database does not answer.
fn set_gauges(pending: f64, oldest_seconds: f64) {
    gauge!(metric::OUTBOX_PENDING).set(pending);
    gauge!(metric::OUTBOX_OLDEST_SECONDS).set(oldest_seconds);
}

/// How many rows hold the deliveries of one turn, estimated from the last rows. `None` if there were none.
fn next_rows(taken: usize, deliveries: usize) -> Option<usize> {
    let each = deliveries.div_ceil(taken.max(1)).max(1);
    (taken > 0).then(|| (DELIVERIES_AIM / each).clamp(ROWS_MIN, ROWS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_take_many_small_rows_or_few_large_ones() {
        assert_eq!(next_rows(0, 0), None);
        assert_eq!(next_rows(16, 16), Some(ROWS_MAX));
        assert_eq!(next_rows(16, 16 * 256), Some(78));
        assert_eq!(next_rows(16, 16 * 10_000), Some(ROWS_MIN));
        assert_eq!(next_rows(3, 0), Some(ROWS_MAX));
    }
}
