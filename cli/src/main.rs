//! The `posthaste` command: runs the services, and offers the tools that an operator needs at 3 a.m.
//!
//! Prints tables, or JSON with `--json`. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod api;
mod audit;
mod config;
mod dead;
mod doctor;
mod failure;
mod key;
mod listen;
mod message;
mod migrate;
mod moment;
mod output;
mod progress;
mod provider;
mod retention;
mod rotate_keys;
mod run;
mod send;
mod settings;
mod tenant;
mod token;
mod topology;
mod users;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::Output;

/// A command calls a server or two and waits, so it needs few threads. The services get the default of one thread for
/// each core.
const COMMAND_THREADS: usize = 2;

const AFTER_HELP: &str = "\
Settings come from the environment: `posthaste config example` lists them all, `posthaste config check` shows what holds.
Something is wrong and you do not know what? `posthaste doctor`.

Exit codes: 0 done, 1 failed, 2 used wrongly.";

/// Posthaste: durable notifications over e-mail, SMS, push, webhook, in-app inbox and WhatsApp.
#[derive(Debug, Parser)]
#[command(name = "posthaste", version, propagate_version = true, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    /// Print JSON for programs instead of tables for people
    #[arg(long, global = true, display_order = 900)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Migrate(migrate::Args),
    #[command(subcommand)]
    Tenant(tenant::Command),
    #[command(subcommand)]
    Key(key::Command),
    Token(token::Args),
    Send(send::Args),
    #[command(subcommand)]
    Message(message::Command),
    #[command(subcommand)]
    Dead(dead::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    #[command(subcommand)]
    Topology(topology::Command),
    #[command(subcommand)]
    Config(config::Command),
    #[command(subcommand)]
    Provider(provider::Command),
    Listen(listen::Args),
    Doctor(doctor::Args),
    RotateKeys(rotate_keys::Args),
    #[command(subcommand)]
    Retention(retention::Command),
    #[command(subcommand)]
    Users(users::Command),
}

impl Command {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(args) => args.run().await,
            Self::Migrate(args) => args.run(out).await,
            Self::Tenant(command) => command.run(out).await,
            Self::Key(command) => command.run(out).await,
            Self::Token(args) => args.run(out),
            Self::Send(args) => args.run(out).await,
            Self::Message(command) => command.run(out).await,
            Self::Dead(command) => command.run(out).await,
            Self::Audit(command) => command.run(out).await,
            Self::Topology(command) => command.run(out).await,
            Self::Config(command) => command.run(out),
            Self::Provider(command) => command.run(out).await,
            Self::Listen(args) => args.run(out).await,
            Self::Doctor(args) => args.run(out).await,
            Self::RotateKeys(args) => args.run(out).await,
            Self::Retention(command) => command.run(out).await,
            Self::Users(command) => command.run(out).await,
        }
    }

    const fn is_service(&self) -> bool {
        matches!(self, Self::Run(_))
    }
}

fn main() -> ExitCode {
    // Fails only if a provider is installed already, which is then the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let out = Output::new(cli.json);
    match execute(cli.command, out) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn execute(command: Command, out: Output) -> anyhow::Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if !command.is_service() {
        builder.worker_threads(COMMAND_THREADS);
    }
    let runtime = builder.enable_all().build()?;
    let ended = runtime.block_on(command.run(out));
    // The process ends here. Shutting the runtime down would abort lapin's tasks under its own thread, which panics.
    std::mem::forget(runtime);
    ended
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_is_for_and_leaves_show_an_example() {
        fn visit(path: &str, command: &clap::Command) {
            assert!(command.get_about().is_some(), "{path} has no description");
            for option in
                command.get_arguments().filter(|option| option.get_id() != "help" && option.get_id() != "version")
            {
                assert!(option.get_help().is_some(), "{path} {} has no help", option.get_id());
            }
            let below: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
            assert!(!below.is_empty() || command.get_after_help().is_some(), "{path} has no example");
            below.iter().for_each(|command| visit(&format!("{path} {}", command.get_name()), command));
        }
        visit("posthaste", &Cli::command());
    }

    #[test]
    fn examples_in_the_help_are_valid_commands() {
        fn visit(command: &clap::Command, check: &mut impl FnMut(&str)) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            text.lines().map(str::trim).filter(|line| line.starts_with("posthaste ")).for_each(&mut *check);
            command.get_subcommands().for_each(|command| visit(command, check));
        }
        let mut seen = 0;
        visit(&Cli::command(), &mut |line| {
            seen += 1;
            let words = words(line);
            assert!(Cli::try_parse_from(&words).is_ok(), "{line}: {:?}", Cli::try_parse_from(&words).err());
        });
        assert!(seen > 20, "only {seen} examples found");
    }

    /// Splits a line like a shell, as far as the examples need it: handles quotes, and treats text after two blanks or
    /// a `#` as a comment.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" #").next().unwrap_or(line);
        let mut words = vec![String::new()];
        let mut quote = None;
        for letter in line.trim_end().chars() {
            match (quote, letter) {
                (Some(open), _) if open == letter => quote = None,
                (None, '\'' | '"') => quote = Some(letter),
                (None, ' ') => words.push(String::new()),
                _ => words.last_mut().unwrap().push(letter),
            }
        }
        words
    }

    #[test]
    fn dangerous_commands_want_a_reason_and_a_target() {
        let parse = |line: &str| Cli::try_parse_from(words(line));
        for refused in [
            "posthaste dead replay",
            "posthaste dead replay --note why",
            "posthaste dead drop --all",
            "posthaste dead replay --all --channel sms --note why",
            "posthaste dead replay --reason poison --rate 0 --note why",
        ] {
            assert!(parse(refused).is_err(), "{refused}");
        }
        for accepted in [
            "posthaste dead replay --all --note why",
            "posthaste dead replay --all --dry-run",
            "posthaste dead drop --since 2h --until 1h --note why",
        ] {
            assert!(parse(accepted).is_ok(), "{accepted}: {:?}", parse(accepted).err());
        }
    }
}
