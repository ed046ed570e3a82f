//! `posthaste dead`: dead letters, for operators. Works on the database directly, across tenants.

mod filter;
mod moving;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use deliveries::{
    Deliveries,
    letters::{DeadLetter, LetterAction, Replay},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    output::{Output, or_dash, table, table_or, time},
    settings,
};
use filter::Filter;

/// The default number of letters in a list: two screens.
const LIST_USUAL: &str = "50";

/// List, replay and drop dead letters: deliveries and submissions that Posthaste gave up
#[derive(Debug, Subcommand)]
pub enum Command {
    List(List),
    Show(Show),
    /// Replay dead letters on their old channel; their history is kept
    #[command(after_help = "Examples:
  posthaste dead replay --channel webhook --since 2h --dry-run
  posthaste dead replay --reason misconfigured --rate 50 --note 'new SMTP password, OPS-17'
  posthaste dead replay 0191d8a0-0000-7000-8000-000000000001 --note 'fixed the receiver'")]
    Replay(moving::Args),
    /// Drop dead letters for good; they stay listed as dropped
    #[command(after_help = "Examples:
  posthaste dead drop --reason schema --tenant acme --dry-run
  posthaste dead drop --until 30d --note 'older than a month, agreed with the tenants'")]
    Drop(moving::Args),
    Status(Status),
    Cancel(Cancel),
}

/// List dead letters, newest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste dead list
  posthaste dead list --status open --reason attempts_exhausted --since 1d
  posthaste dead list --tenant acme --json")]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    /// open, replayed or dropped
    #[arg(long)]
    status: Option<deliveries::letters::LetterStatus>,
    /// The most letters to list
    #[arg(long, default_value = LIST_USUAL, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

/// Show one dead letter
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste dead show 0191d8a0-0000-7000-8000-000000000001")]
pub struct Show {
    /// The id that `dead list` shows
    id: Uuid,
}

/// Show the progress of a replay or drop
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste dead status 0191d8a0-0000-7000-8000-000000000001")]
pub struct Status {
    /// The id that `dead replay` or `dead drop` printed
    id: Uuid,
}

/// Stop a replay or drop where it is; what it has moved stays moved
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste dead cancel 0191d8a0-0000-7000-8000-000000000001")]
pub struct Cancel {
    /// The id that `dead replay` or `dead drop` printed
    id: Uuid,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::List(args) => args.run(out).await,
            Self::Show(args) => args.run(out).await,
            Self::Replay(args) => args.run(LetterAction::Replay, out).await,
            Self::Drop(args) => args.run(LetterAction::Drop, out).await,
            Self::Status(args) => args.run(out).await,
            Self::Cancel(args) => args.run(out).await,
        }
    }
}

impl List {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        let mut filter = self.filter.letters(&store).await?;
        filter.status = self.status;
        let letters = store
            .dead_letters()
            .list(None, &filter, None, self.limit)
            .await
            .context("failed to list the dead letters")?;
        out.print(&letters, |letters| lines(letters))?;
        if i64::try_from(letters.len()).is_ok_and(|length| length == self.limit) {
            out.note(&format!("only the newest {} are shown; narrow the list down, or raise --limit", self.limit));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn lines(letters: &[DeadLetter]) -> String {
    let row = |it: &DeadLetter| {
        let (tenant, channel) = (or_dash(it.tenant.as_ref()), or_dash(it.channel.as_ref()));
        let message = it.message_id.map(|id| id.to_string()).or_else(|| it.amqp_id.clone());
        vec![
            it.id.to_string(),
            time(it.created_at),
            tenant,
            channel,
            it.reason.clone(),
            it.status.clone(),
            or_dash(message),
            it.detail.clone(),
        ]
    };
    let header = ["ID", "SINCE", "TENANT", "CHANNEL", "REASON", "STATUS", "MESSAGE", "DETAIL"];
    table_or(&header, letters.iter().map(row).collect(), "no dead letters")
}

impl Show {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let found =
            settings::store()?.dead_letters().find(None, self.id).await.context("failed to look the dead letter up")?;
        let letter =
            found.with_context(|| format!("there is no dead letter {}: see `posthaste dead list`", self.id))?;
        out.print(&letter, facts)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn facts(letter: &DeadLetter) -> String {
    let body = if letter.has_body { "kept, so that it can be replayed" } else { "-" };
    let rows = [
        ("id", letter.id.to_string()),
        ("status", letter.status.clone()),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("origin", letter.origin.clone()),
        ("since", time(letter.created_at)),
        ("tenant", or_dash(letter.tenant.as_ref())),
        ("channel", or_dash(letter.channel.as_ref())),
        ("message", or_dash(letter.message_id)),
        ("delivery", or_dash(letter.delivery_id)),
        ("AMQP message_id", or_dash(letter.amqp_id.as_ref())),
        ("AMQP routing key", or_dash(letter.routing_key.as_ref())),
        ("body", body.to_owned()),
        ("moved by", or_dash(letter.replay_id)),
    ];
    table(&["FACT", "VALUE"], rows.map(|(name, value)| vec![name.to_owned(), value]))
}

impl Status {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let found = settings::store()?.replays().replay(None, self.id).await.context("failed to look the replay up")?;
        let replay = found.with_context(|| format!("there is no replay {}", self.id))?;
        out.print(&replay, progress_line)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The progress in one line.
fn progress_line(replay: &Replay) -> String {
    let Replay { id, action, status, replayed, matched, skipped, actor, note, .. } = replay;
    format!("{action} {id} is {status}: {replayed} of {matched} moved, {skipped} skipped (by {actor}: {note})")
}

impl Cancel {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let id = self.id;
        let store = settings::store()?;
        let cancelled = store.replays().cancel(None, id).await.context("failed to cancel the replay")?;
        anyhow::ensure!(cancelled, "no replay {id} is running: see `posthaste dead status {id}`");
        settings::record(&store, "dead cancel", id, None).await?;
        out.print(&json!({ "replay_id": id, "status": "cancelled" }), |_| {
            format!("cancelled {id}; what it has moved stays moved")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: Uuid::nil(),
            tenant: None,
            message_id: None,
            delivery_id: None,
            channel: Some("sms".to_owned()),
            origin: "intake".to_owned(),
            reason: "schema".to_owned(),
            detail: "unknown field\n`x`".to_owned(),
            amqp_id: Some("order-7".to_owned()),
            routing_key: Some("acme.sms.normal".to_owned()),
            has_body: true,
            status: "open".to_owned(),
            replay_id: None,
            created_at: "2026-01-31T08:00:00.123Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_letter_is_one_line_and_names_the_amqp_message() {
        let text = lines(&[letter()]);
        let line = "00000000-0000-0000-0000-000000000000  2026-01-31T08:00:00Z  -       sms      schema  open    order-7  unknown field `x`";
        assert_eq!(text.lines().last().unwrap(), line);
        assert_eq!(lines(&[]), "no dead letters");
    }

    #[test]
    fn all_facts_of_a_letter_are_shown_but_not_its_body() {
        let text = facts(&letter());
        assert!(text.contains("acme.sms.normal") && text.contains("kept, so that it can be replayed"), "{text}");
    }
}
