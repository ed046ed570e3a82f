//! Runs our programs.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::network::Node;

/// One of our programs, with these settings and nothing else of the environment.
pub fn program(name: &str, node: Option<&Node>, settings: &BTreeMap<String, String>) -> Result<Command> {
    let dir = crate::setting("POSTHASTE_TEST_BIN_DIR")
        .context("POSTHASTE_TEST_BIN_DIR is not set: run the tests with `cargo xtask test`")?;
    let program = PathBuf::from(dir).join(name);
    let mut command = node.map_or_else(|| Command::new(&program), |node| node.command(&program));
    command.env_clear().env("PATH", crate::setting("PATH").unwrap_or_default()).envs(settings);
    Ok(command)
}

/// Runs a command to its end; fails with what it printed unless it exits with 0.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{}: {}\n{out}{err}", shown(command), output.status);
    Ok(out.into_owned())
}

/// Runs a command with `--json`.
pub fn run_json(command: &mut Command) -> Result<serde_json::Value> {
    let out = run(command.arg("--json"))?;
    serde_json::from_str(&out).with_context(|| format!("{} printed no JSON: {out}", shown(command)))
}

/// A command without its settings, some of which are secret.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A field that must be text.
pub fn text(value: &serde_json::Value, field: &str) -> Result<String> {
    value[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {value}"))
}
