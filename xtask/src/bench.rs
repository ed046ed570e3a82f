//! `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::bail;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    bail!("`cargo xtask bench` is not there yet")
}
