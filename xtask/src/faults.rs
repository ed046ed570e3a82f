//! `cargo xtask faults`: the long fault run. The run itself is a program of `testkit`, because it uses the harness.

use std::process::ExitCode;

use anyhow::Result;
use servers::{process, stop::Stop};

use crate::cargo::{self, Profile};

/// Options of `cargo xtask faults`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed on: --kills N, --messages N, --connections N, --seed N, --all-in-one, --outages LIST, --no-outages
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds the platform and has everything killed at random under load; the exit code says whether the ledger holds.
pub fn run(args: &Args) -> Result<ExitCode> {
    let stop = Stop::default();
    let programs = cargo::build_programs(Profile::Release, &stop)?;
    let mut faults = cargo::cargo();
    faults.args(["run", "--quiet", "--package", "posthaste-testkit", "--bin", "faults", "--"]).args(&args.options);
    faults.env("POSTHASTE_TEST_BIN_DIR", programs);
    Ok(cargo::exit_code(process::run(&mut faults, &stop)?))
}
