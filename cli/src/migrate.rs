//! `posthaste migrate`: brings the schema up to date.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use shared::db::{Store, migrate::migrate};

use crate::{output::Output, progress, settings};

/// As many as the first migration makes; the scheduler keeps this up while it runs.
const PARTITION_DAYS_AHEAD: i32 = 7;

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
    // A database that nobody served for days has run out of partitions.
    let made = Store::open_for_command(&database, 1)?
        .ensure_partitions(PARTITION_DAYS_AHEAD)
        .await
        .context("failed to make partitions")?;
    spinner.finish_and_clear();
    out.print(&json!({ "ran": ran, "partitions_made": made }), |_| match ran.as_slice() {
        [] => "the schema is up to date".to_owned(),
        ran => format!("ran {}", ran.join(", ")),
    })?;
    Ok(ExitCode::SUCCESS)
}
