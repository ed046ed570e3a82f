//! t
use std::process::ExitCode;
/// a
#[derive(Debug, clap::Args)]
pub struct Args {}
/// r
pub fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("x")
}
