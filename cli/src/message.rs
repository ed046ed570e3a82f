//! `posthaste message`: looks up one message.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use domain::MessageId;
use serde_json::{Value, json};

use crate::{
    api::Access,
    output::{Output, rows, table_or, text},
};

/// Look a message up
#[derive(Debug, Subcommand)]
pub enum Command {
    Show(Show),
}

/// Show a message: its state, its deliveries, every attempt and event
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste message show 0191d8a0-0000-7000-8000-000000000001")]
pub struct Show {
    /// The id that `send` printed
    id: MessageId,
    #[command(flatten)]
    access: Access,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Show(args) => args.run(out).await,
        }
    }
}

impl Show {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let api = self.access.open()?;
        let message = api.get(&format!("api/messages/{}", self.id)).await?;
        let timeline = api.get(&format!("api/messages/{}/timeline", self.id)).await?;
        out.print(&json!({ "message": message, "timeline": timeline }), |_| people(&message, &timeline))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn people(message: &Value, timeline: &Value) -> String {
    let list = |object: &Value, name: &str| object.get(name).cloned().unwrap_or_default();
    let deliveries = rows(
        &list(message, "deliveries"),
        &["id", "channel", "recipient", "status", "engagement", "provider", "attempts", "updated_at"],
    );
    let attempts = rows(
        &list(timeline, "attempts"),
        &[
            "at",
            "delivery_id",
            "attempt",
            "provider",
            "outcome",
            "code",
            "duration_ms",
            "provider_message_id",
            "detail",
        ],
    );
    let events = rows(&list(timeline, "events"), &["at", "delivery_id", "kind"]);
    [
        head(message),
        table_or(
            &["DELIVERY", "CHANNEL", "RECIPIENT", "STATUS", "ENGAGEMENT", "PROVIDER", "ATTEMPTS", "UPDATED"],
            deliveries,
            "no deliveries",
        ),
        table_or(
            &["ATTEMPT AT", "DELIVERY", "N", "PROVIDER", "OUTCOME", "CODE", "MS", "PROVIDER'S ID", "DETAIL"],
            attempts,
            "no attempts yet",
        ),
        table_or(&["EVENT AT", "DELIVERY", "WHAT"], events, "no events yet"),
    ]
    .join("\n\n")
}

/// The fields of the message itself, without missing ones.
fn head(message: &Value) -> String {
    let facts =
        ["category", "priority", "created_at", "scheduled_at", "expires_at"].map(|name| (name, text(message, name)));
    let facts = facts.iter().filter(|(_, value)| value != "-").map(|(name, value)| format!("\n{name}: {value}"));
    format!("{} is {}{}", text(message, "id"), text(message, "status"), facts.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_state_deliveries_attempts_and_events() {
        let message = json!({ "id": "m", "status": "sent", "priority": "normal", "scheduled_at": null, "deliveries": [
            { "id": "d", "channel": "email", "recipient": "a@b.example", "status": "sent", "engagement": ["opened"], "provider": "smtp", "attempts": 1 }] });
        let timeline = json!({ "message_id": "m", "attempts": [
            { "delivery_id": "d", "attempt": 1, "provider": "smtp", "outcome": "sent", "code": "250", "duration_ms": 12, "at": "t" }], "events": [] });
        let text = people(&message, &timeline);
        for wanted in ["m is sent\npriority: normal\n\n", "a@b.example", "opened", "250", "12", "no events yet"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(!text.contains("scheduled_at"), "{text}");
    }
}
