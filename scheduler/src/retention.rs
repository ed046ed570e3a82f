//! Removes what tenants keep no longer, and finishes erasures that met a worker holding something.

use std::time::{Duration, Instant};

use metrics::counter;
use shared::db::{
    DbResult, Store,
    erasure::{Erased, Erasure, Step},
    retention::{Pass, Surveyed},
};

use crate::task::{Report, Task, TaskError};

/// How long a turn may take before the next one goes on.
const TURN: Duration = Duration::from_secs(5);
/// When a day that could not be dropped is tried again: its tables were in use, as they are while a backup runs.
const BUSY: Duration = Duration::from_secs(600);
/// Erasures taken on in a turn.
const ERASURES: i64 = 20;
/// A worker's call is over within seconds.
const HELD: Duration = Duration::from_secs(2);

/// The task that drops the days that no tenant keeps.
pub struct RetentionDays {
    store: Store,
    /// Days that a tenant without a number of its own keeps things.
    days: Option<i32>,
    surveyed: Surveyed,
}

impl RetentionDays {
    /// `days`: how many a tenant without a number of its own keeps.
    pub fn new(store: Store, days: Option<i32>) -> Self {
        Self { store, days, surveyed: Surveyed::new() }
    }
}

impl Task for RetentionDays {
    const NAME: &'static str = "retention_days";
    /// What goes is at least a day old: an hour more does not matter.
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let drop_days = self.store.drop_days(self.days, Instant::now() + TURN, &mut self.surveyed);
        alone(&self.store, "posthaste.retention_days", drop_days).await
    }
}

/// The task that deletes the rows that their tenants keep no longer.
pub struct Retention {
    /// The database.
    pub store: Store,
    /// Days that a tenant without a number of its own keeps things.
    pub days: Option<i32>,
}

impl Task for Retention {
    const NAME: &'static str = "retention";
    /// As for days.
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let remove_rows = self.store.remove_rows(self.days, Instant::now() + TURN);
        alone(&self.store, "posthaste.retention", remove_rows).await
    }
}

/// A pass of one scheduler at a time.
async fn alone(
    store: &Store,
    lock: &'static str,
    pass: impl Future<Output = DbResult<Pass>> + Send,
) -> Result<Report, TaskError> {
    let Some(alone) = store.alone(lock).await? else { return Ok(Report::Done) };
    let pass = pass.await;
    // The lock ends with its connection at the latest.
    if let Err(error) = alone.undo().await {
        tracing::debug!(%error, "the connection that held a task's lock is gone");
    }
    let pass = pass?;
    count(&pass);
    Ok(match (pass.more, pass.busy) {
        (true, _) => Report::More,
        (false, true) => Report::Expect(BUSY),
        (false, false) => Report::Done,
    })
}

fn count(pass: &Pass) {
    let rows: i64 = pass.removed.iter().map(|removed| removed.rows).sum();
    if rows > 0 {
        tracing::info!(rows, "removed what is kept no longer");
        counter!("posthaste_retention_rows_total").increment(rows.unsigned_abs());
    }
}

/// The task that finishes erasures.
pub struct Erasures(pub Store);

impl Erasures {
    /// Whether there is more to do at once. One that fails is put off and keeps no other one from its turn.
    async fn step(&self, person: &Erasure) -> Result<bool, TaskError> {
        let mut erased = Erased::default();
        match self.0.erase_step(person, &mut erased).await {
            Ok(Step::More) => self.0.resume_erasure(person, Duration::ZERO).await?,
            Ok(Step::Held) => {
                self.0.resume_erasure(person, HELD).await?;
                return Ok(false);
            }
            Ok(Step::Done) => return Ok(false),
            Err(error) => {
                tracing::warn!(%error, tenant.id = %person.tenant, "an erasure failed and is put off");
                self.0.put_off_erasure(person).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Task for Erasures {
    const NAME: &'static str = "erasures";
    /// A worker's call is over within seconds.
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let mut report = Report::Done;
        for person in self.0.take_erasures(ERASURES).await? {
            if self.step(&person).await? {
                report = Report::More;
            }
        }
        Ok(report)
    }
}
