//! `posthaste migrate`: brings the schema up to date.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;
use store::{Store, migrate::migrate};
use tokio::time::sleep;

use crate::{output::Output, progress, settings};

/// The same number as in the first migration. The scheduler keeps it up while it runs.
const PARTITION_DAYS_AHEAD: i32 = 7;
/// Creating partitions does not wait for locks. It is retried for this long, with this pause.
const PARTITIONS_WAIT_MAX: Duration = Duration::from_secs(30);
const PARTITIONS_PAUSE: Duration = Duration::from_millis(500);

/// Bring the database schema up to date; safe to run at every deployment, from any number of machines
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  posthaste migrate\n  posthaste migrate --check  # exits with 1 when something is pending"
)]
pub struct Args {
    /// Change nothing; exit with 1 when a migration is pending
    #[arg(long)]
    check: bool,
}

impl Args {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        if self.check { check(out).await } else { bring_up(out).await }
    }
}

async fn check(out: Output) -> anyhow::Result<ExitCode> {
    let pending = settings::store()?.pending_migrations().await.context("failed to compare the schema")?;
    out.print(&json!({ "pending": pending }), |_| match pending.as_slice() {
        [] => "the schema is up to date".to_owned(),
        pending => format!("pending: {}\nrun `posthaste migrate`", pending.join(", ")),
    })?;
    Ok(if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bring_up(out: Output) -> anyhow::Result<ExitCode> {
    let database = settings::database()?;
    let spinner = progress::spinner("migrating");
    let ran = migrate(&database.url).await?;
    let made = make_partitions(&Store::open_for_command(&database, 1)?).await?;
    spinner.finish_and_clear();
    out.print(&json!({ "ran": ran, "partitions_made": made }), |_| match ran.as_slice() {
        [] => "the schema is up to date".to_owned(),
        ran => format!("ran {}", ran.join(", ")),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A database without a running scheduler for days has run out of partitions. Nothing can be accepted without them, so
/// the command fails if some are still missing at its end.
async fn make_partitions(store: &Store) -> anyhow::Result<i32> {
    let (began, mut made) = (Instant::now(), 0);
    loop {
        made += store.ensure_partitions(PARTITION_DAYS_AHEAD).await.context("failed to make partitions")?;
        let ahead = store.partition_days_ahead().await.context("failed to look for partitions")?;
        if ahead >= i64::from(PARTITION_DAYS_AHEAD) {
            return Ok(made);
        }
        if began.elapsed() >= PARTITIONS_WAIT_MAX {
            bail!(
                "the partitions of the next {PARTITION_DAYS_AHEAD} days could not be made, because their tables are locked; \
                 there are some for {} days: run the command again",
                ahead.max(0)
            );
        }
        sleep(PARTITIONS_PAUSE).await;
    }
}
