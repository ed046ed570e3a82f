//! The demonstration: one message for each channel that needs no account anywhere.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use servers::{env_file::EnvFile, http, progress::Progress, stop::Stop};
use tokio::runtime::Handle;

use super::{Sinks, live::Toasts};

/// How long a message may take from acceptance to its end; normally it is a fraction of a second.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);

/// Whose inbox is shown.
const PERSON: &str = "ada";

/// Sends one message per channel, waits until each has arrived, and shows its timeline; of the inbox also what an open
/// socket was shown.
pub(super) fn run(memory: &EnvFile, sinks: &Sinks, runtime: &Handle, progress: &Progress, stop: &Stop) -> Result<()> {
    let api = Api {
        url: memory.get("POSTHASTE_URL").context("there is no URL")?,
        key: memory.get("POSTHASTE_PRODUCER_KEY").context("there is no key")?,
    };
    let mut toasts = Toasts::follow(runtime, api.url, PERSON, api.key);
    for message in messages(sinks) {
        let channel = field(&message, "channel");
        progress.line(format_args!("demonstration: {channel} to {}", field(&message, "recipient")));
        let id = api.send(&message).with_context(|| format!("the {channel} message was not accepted"))?;
        api.wait_for_arrival(&id, stop).with_context(|| format!("the {channel} message {id} did not arrive"))?;
        progress.plain(timeline(&api.get(&format!("/api/messages/{id}/timeline"))?).trim_end());
        if channel == "in_app" {
            progress.plain(live(&mut toasts));
        }
    }
    Ok(())
}

/// A socket that does not work is reported, and everything else is still shown.
fn live(toasts: &mut Result<Toasts<'_>>) -> String {
    let shown = match toasts {
        Ok(toasts) => toasts.next(),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    match shown {
        Ok(toast) => format!("    live on /ws/notifications/{PERSON}  \u{201c}{toast}\u{201d}"),
        Err(error) => format!("    /ws/notifications/{PERSON} showed nothing: {error:#}"),
    }
}

fn messages(sinks: &Sinks) -> [Value; 3] {
    let title = "Hello from Posthaste";
    [
        json!({"channel": "webhook", "recipient": sinks.http.url("/demo"), "data": {"hello": "world"}}),
        json!({"channel": "email", "recipient": "ada@posthaste.localhost", "title": title, "message": "It works."}),
        json!({"channel": "in_app", "recipient": PERSON, "user_id": PERSON, "title": title, "message": "It works."}),
    ]
}

/// The platform's API with a producer's key.
struct Api<'a> {
    url: &'a str,
    key: &'a str,
}

impl Api<'_> {
    fn get(&self, path: &str) -> Result<Value> {
        http::get(&format!("{}{path}", self.url), Some(self.key))?.success()
    }

    fn send(&self, message: &Value) -> Result<String> {
        let answer = http::post(&format!("{}/api/notifications/send", self.url), Some(self.key), message)?.success()?;
        Ok(answer.get("id").and_then(Value::as_str).context("the answer has no id")?.to_owned())
    }

    /// Mail counts as arrived when the mail server has accepted it; there is no further report.
    fn wait_for_arrival(&self, id: &str, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + DELIVERY_LIMIT;
        loop {
            let message = self.get(&format!("/api/messages/{id}"))?;
            match field(&message, "status") {
                "delivered" | "sent" => return Ok(()),
                ended @ ("failed" | "dead" | "bounced" | "suppressed" | "cancelled" | "expired") => {
                    bail!("it ended as {ended}")
                }
                status if Instant::now() > deadline => bail!("it is still {status} after {DELIVERY_LIMIT:?}"),
                _ => {}
            }
            stop.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A timeline as a small table: attempts and events in the order they happened.
fn timeline(timeline: &Value) -> String {
    let list = |name: &str| timeline.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut rows: Vec<[String; 3]> = list("attempts").iter().map(attempt_row).collect();
    rows.extend(list("events").iter().map(event_row));
    // RFC 3339 times of one zone sort as text.
    rows.sort();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max().unwrap_or(0);
    let (at, what) = (width(0), width(1));
    rows.iter().map(|[time, kind, more]| format!("    {time:at$}  {kind:what$}  {more}\n")).collect()
}

fn attempt_row(attempt: &Value) -> [String; 3] {
    let number = |name: &str| attempt.get(name).and_then(Value::as_i64).unwrap_or_default();
    let what = format!("attempt {}", number("attempt"));
    let more = format!("{} {} in {} ms", field(attempt, "provider"), field(attempt, "outcome"), number("duration_ms"));
    [field(attempt, "at").to_owned(), what, more]
}

fn event_row(event: &Value) -> [String; 3] {
    [field(event, "at").to_owned(), field(event, "kind").to_owned(), String::new()]
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_a_table_in_the_order_of_time() {
        let shown = timeline(&json!({
            "attempts": [{"at": "2026-01-01T00:00:01Z", "attempt": 1, "provider": "http", "outcome": "sent", "duration_ms": 3}],
            "events": [{"at": "2026-01-01T00:00:02Z", "kind": "delivered"}, {"at": "2026-01-01T00:00:00Z", "kind": "queued"}],
        }));
        let rows: Vec<&str> = shown.lines().map(str::trim).collect();
        assert_eq!(
            rows,
            [
                "2026-01-01T00:00:00Z  queued",
                "2026-01-01T00:00:01Z  attempt 1  http sent in 3 ms",
                "2026-01-01T00:00:02Z  delivered"
            ]
        );
    }
}
