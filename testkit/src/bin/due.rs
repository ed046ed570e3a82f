//! Measures what becomes due all at once: 100,000 deliveries of one second, released by two schedulers.
//! `cargo run --release -p posthaste-testkit --bin due`, with PostgreSQL and RabbitMQ installed; programs are taken from
//! `target/release` if they are there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{SecondsFormat, TimeDelta};
use domain::clock;
use serde_json::json;
use testkit::{Role, Stack, TestServers, eventually};

/// Recipients of one call: the most there may be.
const CALL: usize = 10_000;
/// Calls.
const CALLS: usize = 10;
/// How long accepting may take before everything is due.
const HEAD_START: TimeDelta = TimeDelta::seconds(30);
/// By then everything must have arrived.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<()> {
    // Released deliveries stay listed until they are counted here.
    let mut stack = Stack::prepare(TestServers::private("due")?, &[("AUDIT_AFTER_MS", "600000")]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    stack.launch("worker", Role::Worker, &[]).await?;
    for name in ["scheduler one", "scheduler two"] {
        stack.launch(name, Role::Scheduler, &[]).await?;
    }
    let due = clock::now() + HEAD_START;
    let started = Instant::now();
    for call in 0..CALLS {
        let people: Vec<String> = (0..CALL).map(|n| format!("person-{call}-{n}")).collect();
        let body = json!({"channel": "in_app", "user_ids": people, "message": "m",
            "scheduled_at": due.to_rfc3339_opts(SecondsFormat::Millis, true)});
        let answer = stack.producer().post("/api/notifications/send-bulk", &body).await?.ok()?;
        ensure!(answer["sent"] == CALL, "refused: {}", answer["failed"]);
    }
    println!("accepted {} scheduled deliveries in {:.1} s", CALL * CALLS, started.elapsed().as_secs_f64());
    ensure!(clock::now() < due, "accepting took longer than the head start");
    let wanted = i64::try_from(CALL * CALLS)?;
    eventually("everything arrived", HEAD_START.to_std()? + LIMIT, || async {
        (stack.count("SELECT count(*) FROM inbox").await.ok()? == wanted).then_some(())
    })
    .await?;
    let arrived = (clock::now() - due).as_seconds_f64();
    let sql = stack.sql().await?;
    let lag = "SELECT count(*), count(DISTINCT d), percentile_cont(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP (ORDER BY lag)
        FROM (SELECT unnest(deliveries) AS d, extract(epoch FROM created_at - $1::text::timestamptz)::float8 AS lag FROM outbox) o";
    let row = sql.query_one(lag, &[&due.to_rfc3339()]).await?;
    let (released, distinct, lags): (i64, i64, Vec<f64>) = (row.get(0), row.get(1), row.get(2));
    let [p50, p99, max] = lags[..] else { anyhow::bail!("three percentiles were asked for") };
    println!(
        "released {released}, of them different ones {distinct}; lag p50 {p50:.2} s, p99 {p99:.2} s, most {max:.2} s"
    );
    println!("all arrived in their inboxes {arrived:.1} s after they were due");
    ensure!(released == wanted && distinct == wanted, "something was released twice, or never");
    let calls = "SELECT count(*) FROM delivery_events WHERE provider IS NOT NULL";
    eventually("every call is in the log", LIMIT, || async { (stack.count(calls).await.ok()? == wanted).then_some(()) })
        .await
        .context("one provider call for each")
}
