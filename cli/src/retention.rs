//! `posthaste retention`: how long tenants keep their messages.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use maintenance::{Maintenance, retention::Pass};
use runtime::config::Config;
use serde_json::json;

use crate::{
    output::{Output, table, table_or},
    progress, settings,
};

/// Set how long tenants keep their messages, and remove older ones
#[derive(Debug, Subcommand)]
pub enum Command {
    List(List),
    Set(Set),
    Run(Run),
}

/// List how many days each tenant keeps its messages
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste retention list")]
pub struct List;

/// Set a tenant's number of days; without one, RETENTION_DAYS holds again
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste retention set --tenant acme --days 30
  posthaste retention set --tenant acme  # back to RETENTION_DAYS")]
pub struct Set {
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Days, from 1
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=36500))]
    days: Option<i32>,
}

/// Remove expired rows; the scheduler does the same every hour
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste retention run --dry-run
  posthaste retention run

Nothing goes that is alive: scheduled, queued, being sent or to be retried. A dead letter goes with its message.")]
pub struct Run {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::List(_) => list(out).await?,
            Self::Set(args) => args.run(out).await?,
            Self::Run(args) => args.run(out).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn default_days() -> anyhow::Result<Option<i32>> {
    Ok(Config::from_env()?.retention_days)
}

async fn list(out: Output) -> anyhow::Result<()> {
    let (store, default_days) = (settings::store()?, default_days()?);
    let tenants = store.retention().list().await.context("failed to read the retention")?;
    let days = |days: Option<i32>| days.map_or_else(|| "for ever".to_owned(), |days| days.to_string());
    out.print(&json!({ "default_days": default_days, "tenants": tenants }), |_| {
        let row = |keeping: &maintenance::retention::Keeping| {
            let from = if keeping.days.is_some() { "its own" } else { "RETENTION_DAYS" };
            vec![keeping.tenant.clone(), days(keeping.days.or(default_days)), from.to_owned()]
        };
        table(&["TENANT", "DAYS", "FROM"], tenants.iter().map(row))
    })
}

impl Set {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        store.retention().set(tenant.id, self.days).await.context("failed to store the days")?;
        let days = self.days.map_or_else(|| "as RETENTION_DAYS says".to_owned(), |days| format!("{days} days"));
        settings::record(&store, "retention set", days, Some(tenant.id)).await?;
        out.print(&json!({ "tenant": tenant.slug, "days": self.days }), |_| match self.days {
            Some(days) => format!("{} keeps its messages for {days} days", tenant.slug),
            None => format!("{} keeps its messages as RETENTION_DAYS says", tenant.slug),
        })
    }
}

impl Run {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let (store, default_days) = (settings::store()?, default_days()?);
        let keeping = store.retention().list().await.context("failed to read the retention")?;
        if default_days.is_none() && keeping.iter().all(|tenant| tenant.days.is_none()) {
            bail!(
                "everything is kept for ever: set RETENTION_DAYS, or `posthaste retention set --tenant NAME --days N`"
            );
        }
        let spinner = progress::spinner(if self.dry_run { "counting" } else { "removing" });
        let pass = store.retention().retain(default_days, self.dry_run).await.context("failed to remove old things")?;
        spinner.finish_and_clear();
        if !self.dry_run {
            settings::record(&store, "retention run", "", None).await?;
        }
        let Pass { removed, kept, .. } = &pass;
        out.print(&json!({ "dry_run": self.dry_run, "removed": removed, "kept": kept }), |_| {
            let row = |one: &maintenance::retention::Removed| {
                vec![one.tenant.clone().unwrap_or_else(|| "(all)".to_owned()), one.table.clone(), one.rows.to_string()]
            };
            let head = if self.dry_run { "WOULD GO" } else { "GONE" };
            let mut text =
                table_or(&["TENANT", "TABLE", head], removed.iter().map(row).collect(), "nothing is old enough");
            for day in kept {
                text.push_str(&format!("\n{day} stays as a whole: something in it is alive"));
            }
            text
        })
    }
}
