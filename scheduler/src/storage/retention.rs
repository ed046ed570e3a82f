//! Deletes data after its retention period, and finishes erasures that had to wait for a worker.

use std::time::{Duration, Instant};

use maintenance::{
    Maintenance,
    erasure::{Erased, Erasure, Step},
    retention::{Pass, Surveyed},
};
use metrics::counter;
use runtime::metric;
use store::{DbResult, Store};

use crate::task::{Report, Task, TaskError};

/// The longest turn. The next one continues.
const TURN_MAX: Duration = Duration::from_secs(5);
/// The pause before a day that could not be dropped is retried. Its tables were in use, for example by a backup.
const BUSY_PAUSE: Duration = Duration::from_secs(600);
/// Erasures taken in one turn.
const ERASURES: i64 = 20;
/// The pause for an erasure that waits for a worker. The worker's call ends within seconds.
const HELD_PAUSE: Duration = Duration::from_secs(2);

/// The task that drops the days that no tenant keeps.
pub struct RetentionDays {
    store: Store,
    /// The retention in days for tenants without one of their own.
    days: Option<i32>,
    surveyed: Surveyed,
}

impl RetentionDays {
    /// `days`: the retention for tenants without one of their own.
    pub fn new(store: Store, days: Option<i32>) -> Self {
        Self { store, days, surveyed: Surveyed::new() }
    }
}

impl Task for RetentionDays {
    const NAME: &'static str = "retention_days";
    /// The data is at least a day old, so an hour more does not matter.
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let drop_days = self.store.retention().drop_days(self.days, Instant::now() + TURN_MAX, &mut self.surveyed);
        run_exclusively(&self.store, "posthaste.retention_days", drop_days).await
    }
}

/// The task that deletes the rows whose tenants no longer keep them.
pub struct Retention {
    /// The database.
    pub store: Store,
    /// The retention in days for tenants without one of their own.
    pub days: Option<i32>,
}

impl Task for Retention {
    const NAME: &'static str = "retention";
    /// The same as for [`RetentionDays`].
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let remove_rows = self.store.retention().remove_rows(self.days, Instant::now() + TURN_MAX);
        run_exclusively(&self.store, "posthaste.retention", remove_rows).await
    }
}

/// Runs a pass under a lock, so that only one scheduler runs it at a time.
async fn run_exclusively(
    store: &Store,
    lock: &'static str,
    pass: impl Future<Output = DbResult<Pass>> + Send,
) -> Result<Report, TaskError> {
    let Some(lock) = store.retention().alone(lock).await? else { return Ok(Report::Done) };
    let pass = pass.await;
    // The lock also ends with its connection.
    if let Err(error) = lock.undo().await {
        tracing::debug!(%error, "the connection that held a task's lock is gone");
    }
    let pass = pass?;
    count(&pass);
    Ok(match (pass.more, pass.busy) {
        (true, _) => Report::More,
        (false, true) => Report::Expect(BUSY_PAUSE),
        (false, false) => Report::Done,
    })
}

fn count(pass: &Pass) {
    let rows: i64 = pass.removed.iter().map(|removed| removed.rows).sum();
    if rows > 0 {
        tracing::info!(rows, "removed what is kept no longer");
        counter!(metric::RETENTION_ROWS).increment(rows.unsigned_abs());
    }
}

/// The task that finishes erasures.
pub struct Erasures(pub Store);

impl Erasures {
    /// Runs one step and returns true if more can be done at once. A failing erasure is delayed, so that it does not
    /// block the others.
    async fn step(&self, person: &Erasure) -> Result<bool, TaskError> {
        let mut erased = Erased::default();
        match self.0.erasure().step(person, &mut erased).await {
            Ok(Step::More) => self.0.erasure().resume(person, Duration::ZERO).await?,
            Ok(Step::Held) => {
                self.0.erasure().resume(person, HELD_PAUSE).await?;
                return Ok(false);
            }
            Ok(Step::Done) => return Ok(false),
            Err(error) => {
                tracing::warn!(%error, tenant.id = %person.tenant, "an erasure failed and is put off");
                self.0.erasure().put_off(person).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Task for Erasures {
    const NAME: &'static str = "erasures";
    /// A worker's call ends within seconds.
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let mut report = Report::Done;
        for person in self.0.erasure().take(ERASURES).await? {
            if self.step(&person).await? {
                report = Report::More;
            }
        }
        Ok(report)
    }
}
