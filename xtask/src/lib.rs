//! The commands for developers: `cargo xtask up`, `test`, `bench` and `faults`.
//!
//! The servers and sinks that they start come from `testkit/servers`, which the end-to-end tests use as well.
//! Nothing here is part of the product: no service depends on this crate.

pub mod bench;
pub mod cargo;
pub mod faults;
pub mod oracles;
pub mod test;
pub mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line of `cargo xtask`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
#[command(about = "Runs, tests and measures Posthaste on this machine")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build and run the whole platform with private servers, until Ctrl-C
    #[command(long_about = up::LONG_ABOUT)]
    Up(up::Args),
    /// Run every test against private servers
    #[command(long_about = test::LONG_ABOUT)]
    Test(test::Args),
    /// Measure throughput and latency
    Bench(bench::Args),
    /// Kill and cut things under load, and check that nothing is lost
    Faults(faults::Args),
}

impl Cli {
    /// Runs the chosen command and says what the process should exit with.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Up(args) => up::run(&args),
            Command::Test(args) => test::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Faults(args) => faults::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
