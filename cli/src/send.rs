//! `posthaste send`: sends one message through the API.

use std::process::ExitCode;

use chrono::SecondsFormat;
use domain::{Channel, Priority, clock};
use serde_json::{Map, Value, json};

use crate::{
    api::{Access, Answer},
    moment::Moment,
    output::{Output, rows, table, text},
};

/// Send a message; prints its id, and what became of each delivery so far
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  posthaste send --channel in_app --to ada --title Hello --message 'Your order has shipped.'
  posthaste send --channel email --to ada@example.com --title Hello --message Text --html '<b>Text</b>'
  posthaste send --channel webhook --to https://example.com/hook --data '{\"order\": 42}' --idempotency-key order-42
  posthaste send --channel sms --to +4915112345678 --message 'See you at eight' --scheduled-at 2h")]
pub struct Args {
    /// email, sms, push, webhook, in_app or whatsapp
    #[arg(long)]
    channel: Channel,
    /// The address, phone number, device token, URL or user id
    #[arg(long, value_name = "RECIPIENT")]
    to: String,
    /// The title, or a mail's subject
    #[arg(long)]
    title: Option<String>,
    /// The text
    #[arg(long)]
    message: Option<String>,
    /// A mail's HTML part
    #[arg(long)]
    html: Option<String>,
    /// Data for the recipient's program; a webhook's body
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    data: Option<Value>,
    /// The person it is for
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// low, normal, high or urgent
    #[arg(long)]
    priority: Option<Priority>,
    /// When to send it: from now, such as 2h, or a time such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "WHEN")]
    scheduled_at: Option<Moment>,
    /// Makes it safe to repeat the command: one message per key
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    access: Access,
}

fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

impl Args {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let body = self.body();
        let api = self.access.open()?;
        let answer = api.post("api/notifications/send", &body, self.idempotency_key.as_deref()).await?;
        out.print(&answer.body, |_| people(&answer))?;
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let time = |at: Moment| at.ahead(clock::now()).to_rfc3339_opts(SecondsFormat::Millis, true);
        let members = [
            ("channel", Some(json!(self.channel))),
            ("recipient", Some(json!(self.to))),
            ("title", self.title.as_ref().map(|text| json!(text))),
            ("message", self.message.as_ref().map(|text| json!(text))),
            ("html", self.html.as_ref().map(|text| json!(text))),
            ("data", self.data.clone()),
            ("user_id", self.user_id.as_ref().map(|text| json!(text))),
            ("priority", self.priority.map(|priority| json!(priority))),
            ("scheduled_at", self.scheduled_at.map(|at| json!(time(at)))),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

fn people(answer: &Answer) -> String {
    let (id, body) = (text(&answer.body, "id"), &answer.body);
    let again = if answer.replayed { " (accepted earlier under this idempotency key)" } else { "" };
    let deliveries = body.get("deliveries").unwrap_or(&Value::Null);
    let deliveries = table(&["DELIVERY", "CHANNEL", "STATUS"], rows(deliveries, &["id", "channel", "status"]));
    format!("{id} is {}{again}\n\n{deliveries}\n\nnext: posthaste message show {id}", text(body, "status"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn body(options: &[&str]) -> Value {
        let line = ["send", "--channel", "in-app", "--to", "ada"].iter().chain(options);
        Line::try_parse_from(line).map(|line| line.args.body()).unwrap()
    }

    #[test]
    fn only_what_was_given_is_sent() {
        assert_eq!(body(&[]), json!({ "channel": "in_app", "recipient": "ada" }));
        assert_eq!(
            body(&["--data", "[1]", "--priority", "high", "--user-id", "u"]),
            json!({ "channel": "in_app", "recipient": "ada", "data": [1], "priority": "high", "user_id": "u" })
        );
    }

    #[test]
    fn a_distance_becomes_a_time_ahead() {
        let at = body(&["--scheduled-at", "2h"])["scheduled_at"]
            .as_str()
            .unwrap()
            .parse::<chrono::DateTime<chrono::Utc>>()
            .unwrap();
        let minutes = (at - clock::now()).num_minutes();
        assert!((118..=120).contains(&minutes), "{minutes}");
    }

    #[test]
    fn what_was_accepted_reads_as_a_sentence() {
        let body = json!({ "id": "m", "status": "queued", "deliveries": [{ "id": "d", "channel": "in_app", "status": "queued" }] });
        let text = people(&Answer { body, replayed: true });
        assert!(text.starts_with("m is queued (accepted earlier"), "{text}");
        assert!(text.ends_with("posthaste message show m"), "{text}");
    }
}
