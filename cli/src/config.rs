//! `posthaste config`: checks the settings and lists all of them.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use providers::{in_app::hints::Hints, registry::Registry};
use runtime::config::{Config, ConfigError, ConfigFault, Shown, env_example};
use serde_json::{Value, json};
use store::Store;

use crate::output::{Output, table};

/// Check the settings, or list every one there is
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(Check),
    Example(Example),
}

/// Read the settings as a start would; show what holds, secrets masked, or everything that is wrong
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste config check")]
pub struct Check;

/// Print .env.example: every setting, what it takes and its default
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste config example  # redirect it into a file of your own")]
pub struct Example;

impl Command {
    /// Runs the command.
    pub fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(_) => check(out),
            Self::Example(_) => {
                out.print(&env_example(), Clone::clone)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn check(out: Output) -> anyhow::Result<ExitCode> {
    match settings() {
        Ok(config) => {
            providers(&config)?;
            let shown = config.describe();
            out.print(&shown.iter().map(json_of).collect::<Vec<_>>(), |_| {
                table(&["SETTING", "VALUE", "FROM"], shown.iter().map(row_of))
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            out.print(&json!({ "faults": error.faults.iter().map(fault).collect::<Vec<_>>() }), |_| error.to_string())?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The checks of every service at its start, and those of ingest.
fn settings() -> Result<Config, ConfigError> {
    let config = Config::from_env()?;
    config.require_jwt_secret()?;
    Ok(config)
}

/// The additional checks of a worker. None of them opens a connection.
fn providers(config: &Config) -> anyhow::Result<()> {
    let store = Store::open_for_command(&config.database, config.database.pool_size)?;
    Registry::build(config, &store, &Hints::default()).context("a worker would not start with these settings")?;
    Ok(())
}

fn json_of((name, value, from): &Shown) -> Value {
    json!({ "name": name, "value": value, "from": from })
}

fn row_of((name, value, from): &Shown) -> Vec<String> {
    vec![(*name).to_owned(), value.clone(), (*from).to_owned()]
}

fn fault(fault: &ConfigFault) -> Value {
    json!({ "name": fault.name, "value": fault.value, "problem": fault.problem, "example": fault.example })
}
