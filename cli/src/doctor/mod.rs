//! `posthaste doctor`: checks everything Posthaste depends on, and advises what to do.

mod broker;
mod database;
mod finding;

use std::process::ExitCode;

use runtime::config::Config;
use serde_json::json;

use crate::{output::Output, progress};
use finding::{CheckResult, Finding};

/// Check settings, database and broker; exit with 1 when something fails
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  posthaste doctor\n  posthaste doctor --json

Each line is ok, warn or fail; what to do about it stands below it. Warnings do not change the exit code.")]
pub struct Args;

impl Args {
    /// Runs every check, even if one fails.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let spinner = progress::spinner("examining");
        let mut findings = vec![settings()];
        findings.extend(database::examine().await);
        findings.extend(broker::examine().await);
        spinner.finish_and_clear();
        let ok = findings.iter().all(|finding| finding.verdict != CheckResult::Fail);
        out.print(&json!({ "ok": ok, "checks": findings }), |_| finding::lines(&findings))?;
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn settings() -> Finding {
    let checked = Config::from_env().and_then(|config| config.require_jwt_secret().map(drop));
    match checked {
        Ok(()) => Finding::ok("settings", "complete"),
        Err(error) => {
            let names: Vec<_> = error.faults.iter().map(|fault| fault.name.as_str()).collect();
            Finding::fail("settings", format!("wrong or missing: {}", names.join(", ")), "posthaste config check")
        }
    }
}
