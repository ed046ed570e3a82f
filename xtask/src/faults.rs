//! `cargo xtask faults`.

use std::process::ExitCode;

use anyhow::bail;

/// Options of `cargo xtask faults`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    bail!("`cargo xtask faults` is not there yet")
}
