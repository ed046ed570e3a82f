//! Calling the `posthaste` command that was just built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use servers::process::output_of;

use super::settings::Settings;

/// The command with the settings of this run.
pub(super) struct PlatformCli<'a> {
    program: PathBuf,
    settings: &'a Settings,
}

impl<'a> PlatformCli<'a> {
    /// The command among the built programs.
    pub(super) fn new(programs: &Path, settings: &'a Settings) -> Self {
        Self { program: programs.join("posthaste"), settings }
    }

    /// Runs it and returns what it printed; what it complained about is in the error.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(&self.settings.values);
        output_of(&mut command).with_context(|| format!("`posthaste {}` failed", arguments.join(" ")))
    }

    /// Runs it with `--json` and returns what it printed.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`posthaste {}` printed no JSON: {text}", arguments.join(" ")))
    }
}
