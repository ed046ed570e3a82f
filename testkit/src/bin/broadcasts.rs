//! Measures broadcasts: how fast messages to 200,000 people are accepted, released and delivered, and how far acceptance runs ahead.
//! `cargo run --release -p posthaste-testkit --bin broadcasts [PEOPLE]`, with PostgreSQL and RabbitMQ installed; programs are taken
//! from `target/release` if they are there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{Role, Stack, TestServers};

const PEOPLE: i64 = 200_000;
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> Result<()> {
    let people = std::env::args().nth(1).map(|text| text.parse()).transpose()?.unwrap_or(PEOPLE);
    let mut stack = Stack::prepare(TestServers::private("broadcasts")?, &[]).await?;
    let sql = stack.sql().await?;
    sql.execute(
        "INSERT INTO users (tenant_id, user_id, profile, attributes)
         SELECT 1, 'u' || lpad(n::text, 9, '0'), convert_to('{\"email\": \"u' || n || '@example.com\"}', 'UTF8'), '{\"tier\": \"free\"}'
         FROM generate_series(1, $1::int8) n",
        &[&people],
    )
    .await?;
    sql.batch_execute("VACUUM ANALYZE users").await?;
    for (name, role) in [("ingest", Role::Ingest), ("worker", Role::Worker), ("scheduler", Role::Scheduler)] {
        stack.launch(name, role, &[]).await?;
    }
    let body = json!({"notification_type": "announcement", "title": "New", "message": "Check it out.", "target": {"type": "all"},
        "channels": ["in_app"]});
    let begun = Instant::now();
    let id = stack.admin().post("/api/admin/notifications/broadcast", &body).await?.ok()?;
    let id = id["id"].as_str().context("an id")?.to_owned();
    let (mut told_after, mut ahead) = (None, 0);
    while begun.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ahead = ahead.max(stack.count("SELECT coalesce(sum(waiting), 0)::int8 FROM lines").await?);
        let status: String =
            sql.query_one(&format!("SELECT status FROM broadcasts WHERE id = '{id}'"), &[]).await?.get(0);
        if status == "completed" {
            told_after.get_or_insert(begun.elapsed());
            if stack.count("SELECT count(*) FROM delivery_events WHERE kind = 'delivered'").await? >= people {
                break;
            }
        }
    }
    let rate = |time: Duration| people as f64 / time.as_secs_f64();
    let (told, reached) = (told_after.context("it did not end in time")?, begun.elapsed());
    let inboxes = stack.count("SELECT count(DISTINCT user_id) FROM inbox").await?;
    anyhow::ensure!(inboxes == people, "only {inboxes} of {people} have it in their inbox");
    println!(
        "{people} people: told in {:.1} s ({:.0}/s), reached in {:.1} s ({:.0}/s); at most {ahead} waited for their turn",
        told.as_secs_f64(),
        rate(told),
        reached.as_secs_f64(),
        rate(reached)
    );
    Ok(())
}
