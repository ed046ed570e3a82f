//! Refusal and slowness instead of death: each fault lasts long enough that every lease of the shipped settings runs out.
//!
//! The processes run in network namespaces, so that the receiver sees which of them sent, and one of them can be cut off.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use testkit::{HttpSink, Network, Stack, TestServers, check, disk::Disk, eventually};

use crate::{
    Args,
    load::Load,
    senders::{SenderFault, repeats_without_a_fault},
};

/// A fault of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Outage {
    /// One of two processes stands still for 45 s.
    Frozen,
    /// The broker refuses to take anything for 60 s: its memory alarm.
    MemoryAlarm,
    /// PostgreSQL finds no space left for 60 s.
    DiskFull,
    /// PostgreSQL takes no writes for 60 s, as after a failover.
    ReadOnly,
    /// Every packet of one of two processes is dropped for 60 s. No connection is closed.
    Cut,
}

/// The database's disk: what the load needs, and not more than memory has.
const DISK_MEGABYTES: u32 = 1500;
/// Messages a second: enough that every outage meets thousands, and little enough that the rest catches up with them.
const RATE: u32 = 150;
/// Load before, between and after the faults.
const CALM: Duration = Duration::from_secs(15);

/// Settings of the test stack that would shorten leases; without them the shipped ones hold.
const SHORTENED: &[&str] = &[
    "WEBHOOK_TIMEOUT",
    "WEBHOOK_RETRY_DELAY",
    "WEBHOOK_MAX_RETRIES",
    "PROVIDER_TIMEOUT_MS",
    "LEASE_MARGIN_MS",
    "AUDIT_AFTER_MS",
    "RELAY_AFTER_MS",
];

/// Causes every outage once, under load, and fails unless nothing is lost, unended or sent twice by the healthy.
pub async fn run(args: &Args, outages: &[Outage]) -> Result<()> {
    let servers = TestServers::private("outages")?;
    let mut stack = Stack::prepare(servers, &[("RUST_LOG", "warn")]).await?;
    for name in SHORTENED {
        stack.set(name, None);
    }
    let disk = Disk::below(&stack, DISK_MEGABYTES).await?;
    let network = Network::new()?;
    let sink = HttpSink::start((network.server(), 0).into()).await?;
    stack.use_network(network).await?;
    for (name, role) in args.ours() {
        stack.launch(name, *role, &[]).await?;
    }
    let load = Load::start(&stack, &sink, &args.accepting(), args.connections, RATE)?;
    tokio::time::sleep(CALM).await;
    let mut faults = Vec::new();
    for outage in outages {
        let (before, begun) = (load.count(), Instant::now());
        faults.extend(cause(&mut stack, args, *outage, &disk).await.with_context(|| format!("{outage:?}"))?);
        println!("{outage:?}: {} accepted during {:.0?}", load.count() - before, begun.elapsed());
        tokio::time::sleep(CALM).await;
    }
    let accepted = load.finish(0).await;
    println!("load ended: {} accepted; waiting for the last delivery", accepted.len());
    let start = Instant::now();
    let ledger = check::ledger(&stack, &sink, &accepted, Duration::from_secs(600)).await?;
    println!("everything ended {:?} after the load did", start.elapsed());
    let dead = stack.count("SELECT count(*) FROM dead_letters").await?;
    let innocent = repeats_without_a_fault(&sink, &faults);
    println!("{ledger:#?}\ndead letters: {dead}\nrepeats without a fault of their sender: {innocent}");
    ledger.hold()?;
    ensure!(dead == 0, "{dead} dead letters");
    ensure!(innocent == 0, "{innocent} messages that a healthy process had sent went out again");
    Ok(())
}

/// Causes one fault and ends it; says which sender was not itself meanwhile.
async fn cause(stack: &mut Stack, args: &Args, outage: Outage, disk: &Disk) -> Result<Option<SenderFault>> {
    match outage {
        Outage::Frozen => frozen(stack, args.frozen(), Duration::from_secs(45)).await.map(Some),
        Outage::Cut => cut(stack, args.cut(), MINUTE).await.map(Some),
        Outage::MemoryAlarm => memory_alarm(stack, MINUTE).await.map(|()| None),
        Outage::DiskFull => {
            disk.fill()?;
            tokio::time::sleep(MINUTE).await;
            disk.clear().map(|()| None)
        }
        Outage::ReadOnly => read_only(stack, MINUTE).await.map(|()| None),
    }
}

const MINUTE: Duration = Duration::from_secs(60);

async fn frozen(stack: &mut Stack, name: &str, lasts: Duration) -> Result<SenderFault> {
    let node = stack.node(name)?.context("there is no network")?;
    let from = Instant::now();
    stack.signal(name, Signal::SIGSTOP)?;
    tokio::time::sleep(lasts).await;
    stack.signal(name, Signal::SIGCONT)?;
    Ok(SenderFault { node: node.address.into(), from, until: Instant::now() })
}

async fn cut(stack: &mut Stack, name: &str, lasts: Duration) -> Result<SenderFault> {
    let node = stack.node(name)?.context("there is no network")?;
    let from = Instant::now();
    node.cut()?;
    tokio::time::sleep(lasts).await;
    node.heal()?;
    Ok(SenderFault { node: node.address.into(), from, until: Instant::now() })
}

async fn memory_alarm(stack: &Stack, lasts: Duration) -> Result<()> {
    let servers = stack.servers.clone();
    let set = |share: &str| {
        tokio::task::block_in_place(|| servers.own().rabbitmqctl(&["set_vm_memory_high_watermark", share]))
    };
    set("0.000001")?;
    tokio::time::sleep(lasts).await;
    set("0.7")?;
    Ok(())
}

async fn read_only(stack: &Stack, lasts: Duration) -> Result<()> {
    let sql = stack.sql().await?;
    sql.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
    sql.execute("SELECT pg_reload_conf()", &[]).await?;
    tokio::time::sleep(lasts).await;
    // A session of its own: the one above may be gone, and a new one begins read-only.
    eventually("the database takes writes again", MINUTE, || async {
        let sql = stack.sql().await.ok()?;
        sql.batch_execute("SET default_transaction_read_only = off").await.ok()?;
        sql.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await.ok()?;
        sql.execute("SELECT pg_reload_conf()", &[]).await.ok()
    })
    .await?;
    Ok(())
}
