//! Removes what tenants keep no longer, and finishes erasures that met a worker holding something.

use std::time::Duration;

use metrics::counter;
use shared::db::{
    Store,
    erasure::{Erased, Step},
};

use crate::task::{Report, Task, TaskError};

/// How long a turn of retention may take before the next one goes on.
const TURN: Duration = Duration::from_secs(5);
/// Erasures taken on in a turn.
const ERASURES: i64 = 20;

/// The task that removes old things.
pub struct Retention {
    /// The database.
    pub store: Store,
    /// Days that a tenant without a number of its own keeps things.
    pub days: Option<i32>,
}

impl Task for Retention {
    const NAME: &'static str = "retention";
    /// What goes is at least a day old: an hour more does not matter.
    const PERIOD: Duration = Duration::from_secs(3600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let pass = self.store.retain(self.days, false, Some(TURN)).await?;
        let rows: i64 = pass.removed.iter().map(|removed| removed.rows).sum();
        if rows > 0 {
            tracing::info!(rows, "removed what is kept no longer");
            counter!("posthaste_retention_rows_total").increment(rows.unsigned_abs());
        }
        Ok(if pass.more { Report::More } else { Report::Done })
    }
}

/// The task that finishes erasures.
pub struct Erasures(pub Store);

impl Task for Erasures {
    const NAME: &'static str = "erasures";
    /// A worker's call is over within seconds.
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let mut report = Report::Done;
        for person in self.0.erasures(ERASURES).await? {
            let mut erased = Erased::default();
            if self.0.erase_step(&person, &mut erased).await? == Step::More {
                report = Report::More;
            }
        }
        Ok(report)
    }
}
