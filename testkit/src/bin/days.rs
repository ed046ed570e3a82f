//! Measures claims against the number of days kept, and beside a session that reads everything as `pg_dump` does while a scheduler's
//! partition loops try their work: p50 and p99 of one claim of eight deliveries, and the ratio to few days without a reader.
//! `cargo run --release -p posthaste-testkit --bin days`, with PostgreSQL and RabbitMQ installed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deliveries::Deliveries;
use domain::{Channel, DeliveryId, contract::WorkItem};
use maintenance::{Maintenance, retention::Surveyed};
use runtime::config::DatabaseConfig;
use store::Store;
use testkit::{Stack, TestServers};

/// Claims of one measurement.
const CLAIMS: usize = 2000;
/// Deliveries of one claim.
const BATCH: usize = 8;
/// Rounds in turn; of each figure the median counts.
const ROUNDS: usize = 3;
/// Days of a year.
const YEAR: i32 = 365;

/// Queued deliveries of today.
const QUEUED: &str = "
WITH made AS (
    SELECT uuid7_floor(date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + (seq.first + n) * interval '1 ms') AS id
    FROM (SELECT coalesce((SELECT count(*) FROM deliveries), 0) AS first) seq, generate_series(1, $1::int8) AS s(n)
), messages_made AS (
    INSERT INTO messages (id, tenant_id, priority, content, source) SELECT id, 1, 'normal', '{}', 'http' FROM made
)
INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state) SELECT id, id, 1, 'sms', 'normal', 'x', 'queued' FROM made
RETURNING id::text";

/// The median and the 99th percentile of claims, in microseconds.
async fn measure(stack: &Stack, store: &Store) -> Result<[u128; 2]> {
    let rows = stack.sql().await?.query(QUEUED, &[&i64::try_from(CLAIMS * BATCH)?]).await?;
    let hints: Vec<WorkItem> = rows
        .iter()
        .map(|row| anyhow::Ok(WorkItem::new(DeliveryId(row.get::<_, String>(0).parse()?), 0)))
        .collect::<Result<_, _>>()?;
    let mut took = Vec::with_capacity(CLAIMS);
    for batch in hints.chunks(BATCH) {
        let started = Instant::now();
        let claimed = store.claims().claim(Channel::Sms, batch, 600_000).await?.len();
        took.push(started.elapsed().as_micros());
        ensure!(claimed == batch.len(), "claimed {claimed} of {}", batch.len());
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).copied().context("nothing was measured");
    Ok([at(50)?, at(99)?])
}

/// As [`measure`], beside a reader of all tables and loops that make and drop partitions as fast as they can.
async fn measure_beside_a_dump(stack: &Stack, store: &Store) -> Result<[u128; 2]> {
    let dump = stack.sql().await?;
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE messages, deliveries, delivery_events IN ACCESS SHARE MODE; SELECT 1").await?;
    let loops = store.clone();
    let busy = tokio::spawn(async move {
        let mut surveyed = Surveyed::new();
        while loops.ensure_partitions(7).await.is_ok() {
            let until = Instant::now() + Duration::from_secs(1);
            if loops.retention().drop_days(Some(1), until, &mut surveyed).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let figures = measure(stack, store).await;
    busy.abort();
    dump.batch_execute("COMMIT").await?;
    figures
}

fn median(mut figures: Vec<[u128; 2]>, which: usize) -> u128 {
    figures.sort_by_key(|figures| figures[which]);
    figures[figures.len() / 2][which]
}

async fn prepared(days: i32) -> Result<(Stack, Store)> {
    let stack = Stack::prepare(TestServers::shared().or_else(|_| TestServers::private("days"))?, &[]).await?;
    let make = format!(
        "SELECT attach_partitions(parent, {days}) FROM unnest(ARRAY['messages', 'deliveries', 'delivery_events']) AS p(parent)"
    );
    stack.sql().await?.batch_execute(&make).await?;
    let store = Store::open_for_command(&DatabaseConfig::plain(&stack.database_url.parse()?), 4)?;
    Ok((stack, store))
}

#[tokio::main]
async fn main() -> Result<()> {
    let (few, year) = (prepared(7).await?, prepared(YEAR).await?);
    let mut figures: [Vec<[u128; 2]>; 3] = Default::default();
    for _ in 0..ROUNDS {
        figures[0].push(measure(&few.0, &few.1).await?);
        figures[1].push(measure(&year.0, &year.1).await?);
        figures[2].push(measure_beside_a_dump(&year.0, &year.1).await?);
    }
    let base = [median(figures[0].clone(), 0), median(figures[0].clone(), 1)];
    for (what, figures) in ["9 days", "a year of days", "a year of days, beside a dump"].into_iter().zip(figures) {
        let [p50, p99] = [median(figures.clone(), 0), median(figures, 1)];
        let ratio = |figure: u128, base: u128| {
            f64::from(u32::try_from(figure).unwrap_or(u32::MAX))
                / f64::from(u32::try_from(base.max(1)).unwrap_or(u32::MAX))
        };
        println!("{what}: p50 {p50} us ({:.2} x), p99 {p99} us ({:.2} x)", ratio(p50, base[0]), ratio(p99, base[1]));
    }
    Ok(())
}
