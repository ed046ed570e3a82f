//! `posthaste rotate-keys`: encrypts all encrypted values again with the newest key.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use maintenance::Maintenance;
use serde_json::json;

use crate::{output::Output, progress, settings};

/// Encrypt stored values with the newest key, in the newest format: values of older keys or versions, and plain ones
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  posthaste rotate-keys --dry-run
  posthaste rotate-keys

Services keep running. Before: every service must know the new key and be of this version, see docs/privacy.md. It may be stopped and started again
at any time. When it says that nothing is left, POSTHASTE_ENCRYPTION_KEY_PREVIOUS can be emptied.")]
pub struct Args {
    /// Only count
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    /// Runs the command. Exits with 1 if some values are left.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        ensure!(store.sealer().is_on(), "POSTHASTE_ENCRYPTION_KEY is not set: set it to the key to encrypt with");
        store.check_keys().await?;
        let spinner = progress::spinner("counting");
        let stale = store.key_rotation().stale_values().await.context("failed to count what is to be encrypted")?;
        spinner.finish_and_clear();
        if self.dry_run {
            out.print(&json!({ "stale": stale }), |_| format!("{stale} values are not encrypted with the newest key"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let (bar, mut written) = (progress::bar(stale, "encrypting"), 0);
        let rotated = store.key_rotation().rotate(|count| {
            written += count;
            bar.inc(count);
        });
        let left = rotated.await.context("failed to encrypt anew; what was written stands, run it again")?;
        bar.finish_and_clear();
        settings::record(&store, "rotate-keys", format!("{written} values"), None).await?;
        out.print(&json!({ "written": written, "left": left }), |_| match left {
            0 => format!("encrypted {written} values; POSTHASTE_ENCRYPTION_KEY_PREVIOUS is needed no more"),
            left => format!(
                "encrypted {written} values; {left} were written meanwhile by services without the newest key or of a former version (restart those, then run it again), or cannot be opened (see the log)"
            ),
        })?;
        Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
