//! Deletes idle breakers and idle fair shares, freezes the partitions of past days, and shows the pacing queues.

use std::time::{Duration, Instant};

use deliveries::Deliveries;
use futures_util::future::BoxFuture;
use maintenance::{Maintenance, freeze::Frozen};
use metrics::{counter, gauge};
use records::Records;
use runtime::metric;
use store::{DbResult, Store};
use tokio::time::timeout;

use crate::task::{Report, Task, TaskError, gauge_of};

/// Rows deleted by one statement, which takes some tens of milliseconds.
const LIMIT: i64 = 5000;
/// A share that was empty for this long is deleted, in seconds: a day.
const SHARE_IDLE_S: i32 = 24 * 60 * 60;
/// How long a turn waits for a partition to be frozen. A loop that does not turn for a minute longer than its period
/// counts as stalled.
const FREEZE_TURN: Duration = Duration::from_secs(2);

/// The longest time to freeze one partition. After it the call counts as hung: on a connection that was cut silently it
/// never returns.
const FREEZE_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// The task that deletes idle breakers and shares. It also marks the operator's sessions, because during an upgrade the
/// previous version creates some without the mark.
pub struct Pruning(pub Store);

impl Task for Pruning {
    const NAME: &'static str = "pruning";
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        self.0.whatsapp_sessions().mark_operators_sessions().await?;
        let forgotten =
            [self.0.breakers().prune(LIMIT).await?, self.0.lines().prune_shares(SHARE_IDLE_S, LIMIT).await?]
                .into_iter()
                .max();
        let is_full = forgotten.and_then(|rows| i64::try_from(rows).ok()).is_some_and(|rows| rows >= LIMIT);
        Ok(if is_full { Report::More } else { Report::Done })
    }
}

/// A partition being frozen.
type Freezing = BoxFuture<'static, DbResult<Option<Frozen>>>;

/// The task that freezes partitions one after the other. A large one takes longer than a turn, so later turns wait for
/// the same call.
pub struct Freeze {
    store: Store,
    /// The running call, and when to give it up.
    freezing: Option<(Freezing, Instant)>,
    /// Partitions that this process has frozen. Not every server reports when a table was vacuumed.
    frozen: Vec<String>,
    /// Partitions that the server refused to freeze. They are tried again in the next pass.
    refused: Vec<String>,
}

impl Freeze {
    /// Starts with the oldest day.
    pub const fn new(store: Store) -> Self {
        Self { store, freezing: None, frozen: Vec::new(), refused: Vec::new() }
    }

    /// The result for the next partition. `None`: it is not finished yet.
    async fn next(&mut self) -> Option<DbResult<Option<Frozen>>> {
        let (freezing, until) = self.freezing.get_or_insert_with(|| {
            let (store, passed) = (self.store.clone(), [self.frozen.clone(), self.refused.clone()].concat());
            (Box::pin(async move { store.partitions().freeze(passed).await }), Instant::now() + FREEZE_MAX)
        });
        let ended = timeout(FREEZE_TURN, freezing).await.ok();
        let hangs = ended.is_none() && Instant::now() >= *until;
        if hangs {
            counter!(metric::TASK_FAILURES, "task" => Self::NAME).increment(1);
            tracing::warn!("freezing a partition does not end; it is given up and tried again");
        }
        if hangs || ended.is_some() {
            self.freezing = None;
        }
        ended
    }
}

impl Task for Freeze {
    const NAME: &'static str = "freeze";
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let Some(ended) = self.next().await else { return Ok(Report::More) };
        let Some(Frozen { partition, refused }) = ended? else {
            self.refused.clear();
            return Ok(Report::Done);
        };
        match refused {
            None => {
                tracing::info!(partition, "froze a partition");
                self.frozen.push(partition);
            }
            Some(error) => {
                counter!(metric::TASK_FAILURES, "task" => Self::NAME).increment(1);
                tracing::warn!(partition, %error, "a partition could not be frozen; it is tried again in an hour");
                self.refused.push(partition);
            }
        }
        Ok(Report::More)
    }
}

/// The task that shows how many deliveries wait in pacing queues.
pub struct LineGauges(pub Store);

impl Task for LineGauges {
    const NAME: &'static str = "line_gauges";
    const PERIOD: Duration = Duration::from_secs(5);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let (waiting, lines) =
            self.0.lines().waiting_in_lines().await.inspect_err(|_| set_gauges(f64::NAN, f64::NAN))?;
        set_gauges(gauge_of(waiting), gauge_of(lines));
        Ok(Report::Done)
    }
}

/// Both are NaN if the database does not answer.
fn set_gauges(waiting: f64, lines: f64) {
    gauge!(metric::LINES_WAITING).set(waiting);
    gauge!(metric::LINES).set(lines);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use runtime::config::DatabaseConfig;

    use super::*;

    #[tokio::test]
    async fn a_turn_ends_before_a_large_partition_is_frozen_and_a_later_one_sees_it() {
        let database = DatabaseConfig::plain(&"postgres://127.0.0.1:1/none".parse().unwrap());
        let mut freeze = Freeze::new(Store::open(&database, 1).unwrap());
        let (done, frozen) = tokio::sync::oneshot::channel();
        freeze.freezing = Some((async { Ok(frozen.await.ok()) }.boxed(), Instant::now() + FREEZE_MAX));
        assert_eq!(freeze.run().await.unwrap(), Report::More);
        assert!(freeze.freezing.is_some() && freeze.frozen.is_empty());
        done.send(Frozen { partition: "messages_20260101".to_owned(), refused: None }).unwrap();
        assert_eq!(freeze.run().await.unwrap(), Report::More);
        assert_eq!(freeze.frozen, ["messages_20260101"]);
        // A call that never ends is given up.
        freeze.freezing = Some((std::future::pending().boxed(), Instant::now()));
        assert_eq!(freeze.run().await.unwrap(), Report::More);
        assert!(freeze.freezing.is_none());
    }
}
