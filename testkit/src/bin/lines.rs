//! Measures what WhatsApp lines cost: a claim of 64 deliveries with their slots, and 10,000 sessions that only wait.
//! `cargo run --release -p posthaste-testkit --bin lines`, with PostgreSQL and RabbitMQ installed; programs are taken from
//! `target/release` if they are there.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use deliveries::Deliveries;
use domain::{Channel, DeliveryId, contract::WorkItem};
use runtime::config::DatabaseConfig;
use store::Store;
use testkit::{Role, Stack, TestServers};
use uuid::Uuid;

/// Deliveries of one claim, each of another session.
const BATCH: usize = 64;
/// Claims that are timed.
const CLAIMS: usize = 300;
/// Sessions of the claims: each has 20 slots, and none is asked for more.
const SESSIONS: usize = BATCH * CLAIMS / 20;
/// Sessions that wait.
const WAITING: usize = 10_000;
/// How long the scheduler is watched.
const WATCH: Duration = Duration::from_secs(20);
/// Ticks of `/proc/<pid>/stat` in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

#[tokio::main]
async fn main() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::private("lines")?, &[]).await?;
    claims(&stack).await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    let pid = stack.pid("scheduler")?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = busy_share(pid).await?;
    let sql = stack.sql().await?;
    sql.batch_execute(&format!(
        "INSERT INTO lines (id, tenant_id, kind, route, rate, free_at)
         SELECT gen_random_uuid(), 1, 'session', 'whatsapp', 20, now() + interval '1 hour' FROM generate_series(1, {WAITING});
         INSERT INTO parked (delivery_id, line, run, rank) SELECT gen_random_uuid(), id, 0, 1 FROM lines WHERE free_at > now() + interval '50 minutes';
         ANALYZE lines"
    ))
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let waiting = busy_share(pid).await?;
    println!(
        "scheduler: {:.2} % of a core idle, {:.2} % with {WAITING} sessions waiting",
        idle * 100.0,
        waiting * 100.0
    );
    Ok(())
}

async fn claims(stack: &Stack) -> Result<()> {
    let sessions: Vec<Uuid> = (0..SESSIONS).map(|_| Uuid::now_v7()).collect();
    let ids: Vec<Uuid> = (0..BATCH * CLAIMS).map(|_| DeliveryId::generate().0).collect();
    let lines = texts((0..ids.len()).map(|n| sessions[n % SESSIONS]));
    let (sessions, rows) = (texts(sessions), texts(ids.iter().copied()));
    let sql = stack.sql().await?;
    sql.execute(
        "INSERT INTO lines (id, tenant_id, kind, route, rate) SELECT id, 1, 'session', 'whatsapp', 20 FROM unnest($1::text[]::uuid[]) id",
        &[&sessions],
    )
    .await?;
    sql.execute(
        "INSERT INTO messages (id, tenant_id, priority, content, source) SELECT id, 1, 'normal', '{}', 'http' FROM unnest($1::text[]::uuid[]) id",
        &[&rows],
    )
    .await?;
    sql.execute(
        "INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state, line, rank)
         SELECT id, id, 1, 'whatsapp', 'normal', '+4915112345678', 'queued', line, 1 FROM unnest($1::text[]::uuid[], $2::text[]::uuid[]) AS d(id, line)",
        &[&rows, &lines],
    )
    .await?;
    let url = stack.database_url.parse()?;
    let store = Store::open(&DatabaseConfig::plain(&url), 1)?;
    let mut took = Vec::with_capacity(CLAIMS);
    for batch in ids.chunks(BATCH) {
        let hints: Vec<WorkItem> = batch.iter().map(|id| WorkItem::new(DeliveryId(*id), 0)).collect();
        let started = Instant::now();
        let won = store.claims().claim(Channel::Whatsapp, &hints, 30_000).await?;
        took.push(started.elapsed());
        anyhow::ensure!(won.len() == BATCH, "only {} of {BATCH} were claimed", won.len());
    }
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!("claim of {BATCH} with their slots: p50 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.99));
    Ok(())
}

fn texts(ids: impl IntoIterator<Item = Uuid>) -> Vec<String> {
    ids.into_iter().map(|id| id.to_string()).collect()
}

/// The share of one core that a process uses over a while.
async fn busy_share(pid: u32) -> Result<f64> {
    let before = ticks(pid)?;
    tokio::time::sleep(WATCH).await;
    Ok((ticks(pid)? - before) / TICKS / WATCH.as_secs_f64())
}

/// User and system time so far.
fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat line names its program")?;
    let fields: Vec<f64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // The state, which is a letter, is not among them.
    Ok(fields.get(10).copied().unwrap_or_default() + fields.get(11).copied().unwrap_or_default())
}
