//! Polls: an idle Posthaste costs next to nothing, and rows that are gone cost a poll nothing.

use std::time::Duration;

use anyhow::Result;
use deliveries::{
    Deliveries,
    poll::{Floors, WorkKind},
};
use runtime::config::DatabaseConfig;
use store::Store;
use testkit::{Stack, TestServers, eventually};

/// Statements that commit by themselves are transactions; a process that does everything makes no more than this a second.
const STATEMENTS_MAX: f64 = 30.0;

#[tokio::test]
async fn an_idle_process_that_does_everything_makes_few_statements_whatever_is_stored() -> Result<()> {
    let stack = Stack::start().await?;
    let sql = stack.sql().await?;
    sql.batch_execute(
        "INSERT INTO tenants (slug, webhook_secret) SELECT 'tenant-' || n, '' FROM generate_series(1, 300) n;
         SELECT ensure_partitions(60)",
    )
    .await?;
    let committed = async || -> Result<(f64, i64)> {
        let now = "SELECT extract(epoch FROM clock_timestamp())::float8, xact_commit FROM pg_stat_database WHERE datname = current_database()";
        let row = sql.query_one(now, &[]).await?;
        Ok((row.get(0), row.get(1)))
    };
    let rate = async || -> Result<f64> {
        let (from, before) = committed().await?;
        // Backends report to the statistics about once a second.
        sql.batch_execute("SELECT pg_sleep(6)").await?;
        let (to, after) = committed().await?;
        let commits = u32::try_from(after - before)?;
        Ok(f64::from(commits) / (to - from))
    };
    // The work that the start leaves is done after a while. Two windows in a row, because one may fall into a pause of the machine.
    let quiet = eventually("an idle process makes few statements", Duration::from_secs(120), || async {
        let rate = rate().await.ok()?.max(rate().await.ok()?);
        (rate <= STATEMENTS_MAX).then_some(rate)
    })
    .await?;
    println!("{quiet:.1} statements a second");
    Ok(())
}

#[tokio::test]
async fn a_poll_does_not_walk_over_rows_that_are_gone_while_a_transaction_may_still_see_them() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 1)?;
    let sql = stack.sql().await?;
    let mut reader = stack.sql().await?;
    // Vacuum reads the table as well, and its reads would be counted.
    sql.batch_execute("ALTER TABLE due SET (autovacuum_enabled = off)").await?;
    let pinned =
        reader.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).start().await?;
    pinned.batch_execute("SELECT 1 FROM due").await?;
    sql.batch_execute(
        "INSERT INTO due (delivery_id, due_at, run, why)
             SELECT gen_random_uuid(), now() - n * interval '10 milliseconds' - interval '1 minute', 0, 'retry' FROM generate_series(1, 20000) n;
         DELETE FROM due",
    )
    .await?;
    let blocks = async || -> Result<(i64, i64)> {
        let read = "SELECT s.idx_scan, io.heap_blks_hit + io.heap_blks_read + io.idx_blks_hit + io.idx_blks_read
            FROM pg_stat_user_tables s JOIN pg_statio_user_tables io USING (relid) WHERE relid = 'due'::regclass";
        let row = sql.query_one(read, &[]).await?;
        Ok((row.get(0), row.get(1)))
    };
    // Polls until they show in the statistics; blocks for each look into the table, of which a poll takes two.
    let cost = async |floors: &Floors| -> Result<i64> {
        let (scans, read) = blocks().await?;
        let (scans, read) = eventually("polls are counted", Duration::from_secs(60), || async {
            store.polls().poll(floors).await.ok()?;
            let (scans_now, read_now) = blocks().await.ok()?;
            (scans_now > scans + 1).then_some((scans_now - scans, read_now - read))
        })
        .await?;
        Ok(read / scans)
    };
    let poll = store.polls().poll(&Floors::new()).await?;
    assert_eq!(poll.due.get(&WorkKind::Due), None);
    let whole = cost(&Floors::new()).await?;
    let floored = cost(&poll.floors()).await?;
    println!("{whole} blocks without a floor, {floored} with one");
    assert!(whole > 50 && floored < 10, "{whole} blocks without a floor, {floored} with one");
    pinned.rollback().await?;
    Ok(())
}
