//! `posthaste topology`: the exchanges, queues and bindings that must exist on the broker.

use std::process::ExitCode;

use broker::{
    TopologyError, connect, declare,
    topology::{self, Argument, Arguments, Topology},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    output::{Output, count, table},
    progress, settings,
};

/// Show, check or create the exchanges, queues and bindings on the broker
#[derive(Debug, Subcommand)]
pub enum Command {
    Print(Print),
    Check(Check),
    Declare(Declare),
}

/// Print what must exist; asks no broker
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  posthaste topology print\n  posthaste topology print --json")]
pub struct Print;

/// Compare the broker with what must exist; changes nothing, exits with 1 when something differs
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste topology check")]
pub struct Check;

/// Create missing objects; changes nothing that exists
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste topology declare")]
pub struct Declare;

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Print(_) => print(out),
            Self::Check(_) => check(out).await,
            Self::Declare(_) => create(out).await,
        }
    }
}

fn print(out: Output) -> anyhow::Result<ExitCode> {
    out.print(&topology::topology(), people)?;
    Ok(ExitCode::SUCCESS)
}

async fn check(out: Output) -> anyhow::Result<ExitCode> {
    let connection = connect(&settings::broker_url()?, "posthaste topology check").await?;
    match declare::check(&connection).await {
        Ok(()) => conclude(out, &[], "the broker has everything that must exist"),
        Err(TopologyError::Problems(problems)) => {
            conclude(out, &problems.iter().map(ToString::to_string).collect::<Vec<_>>(), "")
        }
        Err(error) => Err(error.into()),
    }
}

fn conclude(out: Output, problems: &[String], fine: &str) -> anyhow::Result<ExitCode> {
    let ok = problems.is_empty();
    out.print(&json!({ "ok": ok, "problems": problems }), |_| if ok { fine.to_owned() } else { problems.join("\n") })?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn create(out: Output) -> anyhow::Result<ExitCode> {
    let spinner = progress::spinner("declaring");
    let connection = connect(&settings::broker_url()?, "posthaste topology declare").await?;
    let declared = declare::declare(&connection).await;
    spinner.finish_and_clear();
    match declared {
        Ok(()) => conclude(out, &[], &format!("{} exist", summary(&topology::topology()))),
        Err(TopologyError::Problems(problems)) => {
            conclude(out, &problems.iter().map(ToString::to_string).collect::<Vec<_>>(), "")
        }
        Err(error) => Err(error.into()),
    }
}

fn summary(topology: &Topology) -> String {
    let number = |length| i64::try_from(length).unwrap_or(i64::MAX);
    let (exchanges, queues, bindings) = (topology.exchanges.len(), topology.queues.len(), topology.bindings.len());
    let parts = [(exchanges, "exchange"), (queues, "queue"), (bindings, "binding")];
    parts.map(|(length, noun)| count(number(length), noun)).join(", ")
}

fn people(topology: &Topology) -> String {
    let exchanges =
        topology.exchanges.iter().map(|it| vec![it.name.to_owned(), word(&json!(it.kind)), arguments(&it.arguments)]);
    let queues = topology.queues.iter().map(|it| vec![it.name.clone(), arguments(&it.arguments)]);
    let bindings = topology.bindings.iter().map(|it| vec![it.exchange.to_owned(), it.key.clone(), it.queue.clone()]);
    [
        table(&["EXCHANGE", "TYPE", "ARGUMENTS"], exchanges),
        table(&["QUEUE", "ARGUMENTS"], queues),
        table(&["FROM EXCHANGE", "KEY", "TO QUEUE"], bindings),
    ]
    .join("\n\n")
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn arguments(arguments: &Arguments) -> String {
    let value = |argument: &Argument| match argument {
        Argument::Number(number) => number.to_string(),
        Argument::Text(text) => (*text).to_owned(),
    };
    arguments.iter().map(|(name, argument)| format!("{name}={}", value(argument))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_every_object() {
        let topology = topology::topology();
        let text = people(&topology);
        let lines = topology.exchanges.len() + topology.queues.len() + topology.bindings.len() + 3 + 2;
        assert_eq!(text.lines().count(), lines, "{text}");
        assert!(text.contains("x-delivery-limit=20 "), "{text}");
    }
}
