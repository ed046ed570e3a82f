//! `posthaste provider`: the configured providers, and whether they can be reached.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, Subcommand};
use domain::{Channel, Fault, contract::Provider};
use providers::{in_app::hints::Hints, registry::Registry};
use runtime::config::Config;
use serde::Serialize;
use store::Store;
use tokio::{task::JoinSet, time::timeout};

use crate::output::{Output, table_or};

/// The longest check of one provider.
const PATIENCE: Duration = Duration::from_secs(20);

/// See whether the providers of the settings can be used
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(Check),
}

/// Prove credentials and reachability of every provider without sending a message
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  posthaste provider check
  posthaste provider check --channel email

Exit code 1: at least one provider cannot be used.")]
pub struct Check {
    /// Only the providers of this channel
    #[arg(long)]
    channel: Option<Channel>,
}

/// The result of one check.
#[derive(Serialize)]
struct ProviderCheck {
    channel: Channel,
    provider: &'static str,
    ok: bool,
    code: Option<String>,
    detail: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(args) => args.run(out).await,
        }
    }
}

impl Check {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let mut config = Config::from_env()?;
        // A worker may serve only some channels; this command checks all of them.
        config.worker.channels = Channel::ALL.to_vec();
        let store = Store::open_for_command(&config.database, config.database.pool_size)?;
        let registry = Registry::build(&config, &store, &Hints::default())
            .context("a worker would not start with these settings")?;
        let mut checks = JoinSet::new();
        for channel in Channel::ALL.iter().filter(|channel| self.channel.is_none_or(|asked| asked == **channel)) {
            for (place, provider) in registry.providers(*channel).iter().cloned().enumerate() {
                checks.spawn(async move { ((*channel, place), check(*channel, provider).await) });
            }
        }
        let mut found = checks.join_all().await;
        found.sort_by_key(|((channel, place), _)| (channel.as_str(), *place));
        let found: Vec<ProviderCheck> = found.into_iter().map(|(_, found)| found).collect();
        let all_ok = found.iter().all(|found| found.ok);
        out.print(&found, |found| {
            let empty = "Nothing carries that channel: set its backend, see `posthaste config example`.";
            table_or(&["CHANNEL", "PROVIDER", "", "DETAIL"], found.iter().map(row).collect(), empty)
        })?;
        Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn check(channel: Channel, provider: Arc<dyn Provider>) -> ProviderCheck {
    let late = || Err(Fault::new("timeout", format!("no answer within {} s", PATIENCE.as_secs())));
    let ended = timeout(PATIENCE, provider.check()).await.unwrap_or_else(|_| late());
    let (ok, code, detail) = match ended {
        Ok(detail) => (true, None, detail),
        Err(fault) => (false, fault.code, fault.detail),
    };
    ProviderCheck { channel, provider: provider.name().as_str(), ok, code, detail }
}

fn row(found: &ProviderCheck) -> Vec<String> {
    let verdict = if found.ok { "ok" } else { "FAILED" };
    let code = found.code.as_ref().map(|code| format!("[{code}] ")).unwrap_or_default();
    let detail = format!("{code}{}", found.detail);
    vec![found.channel.to_string(), found.provider.to_owned(), verdict.to_owned(), detail]
}
