//! `cargo xtask test`: every test of the workspace, against private servers.
//!
//! The tests find the servers and the built programs through four variables, so one set of servers
//! serves them all; each test takes a database and a virtual host of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::Result;
use servers::{
    private::{Install, Servers, ServersConfig},
    process,
    progress::Progress,
    stop::Stop,
};
use tokio::runtime::Runtime;

use crate::{
    cargo::{self, cargo},
    oracles::Oracles,
};

/// Every test may hold a pool of its own.
const CONNECTIONS_MAX: u16 = 400;

/// The tests that ask the oracles; the feature keeps them out of every other run.
const ORACLE_TESTS: [&str; 4] = ["--features", "posthaste-tests/oracles", "--test", "oracles"];

/// The text of `cargo xtask test --help`.
pub const LONG_ABOUT: &str = "Runs every test of the workspace against private servers.\n\n\
    PostgreSQL and RabbitMQ are found or installed as `cargo xtask up` does, run with their data below \
    `.local/test`, empty at the beginning, and are stopped at the end. The tests run with cargo-nextest when it is \
    installed, else with `cargo test`.\n\n\
    With `--oracles` the tests run that ask checkers written by other people; those are installed from PyPI and npm \
    below `target/oracles` and need python3 and npm; a browser, Debian's Chromium, is installed where there is none.";

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fail instead of installing a missing PostgreSQL or RabbitMQ
    #[arg(long)]
    no_install: bool,
    /// Run the tests that ask checkers of other people, instead of the others
    #[arg(long)]
    oracles: bool,
    /// Passed on to the test runner, such as `-p posthaste-store` or a part of a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "RUNNER ARGUMENT")]
    rest: Vec<String>,
}

/// Runs the command; the exit code is the test runner's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = Runtime::new()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let progress = Progress::console();
    let programs = progress.step("building", || cargo::build_for_tests(&stop))?;
    let config = config(args, &stop);
    let oracles = args.oracles.then(|| Oracles::install(config.install, &progress, &stop)).transpose()?;
    let servers = Servers::start(&config, &progress)?;
    let status =
        Runner { servers: &servers, programs: &programs, oracles: oracles.as_ref(), args, stop: &stop }.run()?;
    servers.kill9()?;
    Ok(cargo::exit_code(status))
}

fn config(args: &Args, stop: &Stop) -> ServersConfig {
    ServersConfig {
        // The tests create and delete virtual hosts through it.
        management: true,
        max_connections: CONNECTIONS_MAX,
        // These servers are thrown away. Tests that kill a server start one of their own, as it is shipped.
        fsync: false,
        install: if args.no_install { Install::Refused } else { Install::Allowed },
        fresh: true,
        stop: stop.clone(),
        ..ServersConfig::below(cargo::workspace_root().join(".local/test"))
    }
}

struct Runner<'a> {
    servers: &'a Servers,
    programs: &'a Path,
    oracles: Option<&'a Oracles>,
    args: &'a Args,
    stop: &'a Stop,
}

impl Runner<'_> {
    /// nextest runs no documentation tests, so a whole run adds those.
    fn run(&self) -> Result<ExitStatus> {
        if !nextest_is_installed() {
            return self.cargo(&["test"]);
        }
        let status = self.cargo(&["nextest", "run"])?;
        if status.success() && self.args.rest.is_empty() && self.oracles.is_none() {
            self.cargo(&["test", "--doc"])
        } else {
            Ok(status)
        }
    }

    fn cargo(&self, command: &[&str]) -> Result<ExitStatus> {
        let mut cargo = cargo();
        cargo.args(command);
        if !self.chooses_packages() {
            cargo.arg("--workspace");
        }
        if self.oracles.is_some() {
            cargo.args(ORACLE_TESTS);
        }
        cargo.args(&self.args.rest).envs(self.variables());
        cargo.envs(self.oracles.into_iter().flat_map(Oracles::variables));
        process::run(&mut cargo, self.stop)
    }

    fn chooses_packages(&self) -> bool {
        let chooses = |argument: &String| argument.starts_with("-p") || argument.starts_with("--package");
        self.args.rest.iter().any(chooses)
    }

    fn variables(&self) -> [(&'static str, PathBuf); 4] {
        let management = self.servers.management_url().unwrap_or_default();
        [
            ("POSTHASTE_TEST_DATABASE_URL", self.servers.addresses.maintenance_url().into()),
            ("POSTHASTE_TEST_AMQP_URL", self.servers.amqp_url().into()),
            ("POSTHASTE_TEST_MANAGEMENT_URL", management.into()),
            ("POSTHASTE_TEST_BIN_DIR", self.programs.into()),
        ]
    }
}

fn nextest_is_installed() -> bool {
    let mut ask = Command::new("cargo");
    ask.args(["nextest", "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}
