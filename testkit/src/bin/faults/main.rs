//! The long fault run. First load goes on while every process, ours and the servers', is killed, stopped and restarted at
//! random. Then, with the shipped time-outs, one thing after the other refuses or stands still for a minute.
//! Prints the ledgers and fails unless every invariant holds. `cargo xtask faults` starts it.

mod load;
mod outages;
mod senders;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::sys::signal::Signal;
use testkit::{HttpSink, Role, Stack, TestServers, check};

use load::Load;
use outages::Outage;

/// Kills everything at random under load and compares what was accepted with what arrived and with the log.
#[derive(Parser)]
struct Args {
    /// Kills, stops and restarts to cause; 0 leaves them out.
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Outages to cause afterwards, each for about a minute; all of them when absent. Needs root and iproute2.
    #[arg(long, value_delimiter = ',', conflicts_with = "no_outages")]
    outages: Vec<Outage>,
    /// Leave the outages out.
    #[arg(long)]
    no_outages: bool,
    /// Messages to post at least; the load goes on until all faults have been caused.
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Connections that post.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Repeats a run; taken from the clock when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Two processes that run everything, instead of one ingest, two workers and two schedulers.
    #[arg(long)]
    all_in_one: bool,
}

impl Args {
    /// The processes of Posthaste, by name.
    const fn ours(&self) -> &'static [(&'static str, Role)] {
        if self.all_in_one { ALL_IN_ONE } else { APART }
    }

    /// Those that take requests.
    fn accepting(&self) -> Vec<&'static str> {
        let accepts = |role: &Role| matches!(role, Role::All | Role::Ingest);
        self.ours().iter().filter(|(_, role)| accepts(role)).map(|(name, _)| *name).collect()
    }

    /// The one that stands still: where processes are separate, one whose share of the outcomes waits for it.
    const fn frozen(&self) -> &'static str {
        if self.all_in_one { "all1" } else { "scheduler1" }
    }

    /// The one that is cut off: it sends.
    const fn cut(&self) -> &'static str {
        if self.all_in_one { "all1" } else { "worker1" }
    }
}

/// Leases that end soon, so that doubt shows.
const SETTINGS: &[(&str, &str)] = &[
    ("AUDIT_AFTER_MS", "10000"),
    ("WEBHOOK_TIMEOUT", "2000"),
    ("PROVIDER_TIMEOUT_MS", "2000"),
    ("LEASE_MARGIN_MS", "500"),
    ("RUST_LOG", "warn"),
];

/// Small, seedable and good enough to choose victims (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

const ALL_IN_ONE: &[(&str, Role)] = &[("all0", Role::All), ("all1", Role::All)];
const APART: &[(&str, Role)] = &[
    ("ingest", Role::Ingest),
    ("worker0", Role::Worker),
    ("worker1", Role::Worker),
    ("scheduler0", Role::Scheduler),
    ("scheduler1", Role::Scheduler),
];

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if args.kills > 0 {
        kills(&args).await?;
    }
    let outages = if args.outages.is_empty() { Outage::value_variants() } else { &args.outages };
    if !args.no_outages {
        outages::run(&args, outages).await?;
    }
    Ok(())
}

/// Kills everything at random.
async fn kills(args: &Args) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(clock.as_secs());
    println!("seed {seed}: the same faults again with --seed {seed}");
    let servers = TestServers::private("faults")?;
    let sink = HttpSink::start_local().await?;
    // Doubt must show: leases end soon, and the receiver is quick.
    let mut stack = Stack::prepare(servers, SETTINGS).await?;
    for (name, role) in args.ours() {
        stack.launch(name, *role, &[]).await?;
    }
    let load = Load::start(&stack, &sink, &args.accepting(), args.connections, 0)?;
    let caused = cause(&mut stack, args, Dice(seed), &load).await?;
    let accepted = load.finish(args.messages).await;
    println!("load ended: {} accepted; waiting for the last delivery", accepted.len());
    let start = Instant::now();
    let ledger = check::ledger(&stack, &sink, &accepted, Duration::from_secs(900)).await?;
    println!("faults caused: {caused:?}");
    println!("everything ended {:?} after the load did", start.elapsed());
    println!("{ledger:#?}");
    ledger.hold()?;
    println!("{} messages, {} faults: 0 lost, every repeat explained", accepted.len(), caused.values().sum::<u32>());
    Ok(())
}

/// Causes the faults one after the other, spread over the load.
async fn cause(stack: &mut Stack, args: &Args, mut dice: Dice, load: &Load) -> Result<BTreeMap<String, u32>> {
    let mut caused = BTreeMap::new();
    for n in 1..=args.kills {
        let share = args.messages * usize::try_from(n)? / usize::try_from(args.kills + 1)?;
        let patience = Instant::now() + Duration::from_secs(15);
        while load.count() < share && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(500))).await;
        let fault = one(stack, args.ours(), &mut dice).await.with_context(|| format!("fault {n}"))?;
        println!("{n:>3} {fault} ({} accepted so far)", load.count());
        *caused.entry(fault).or_default() += 1;
    }
    Ok(caused)
}

async fn one(stack: &mut Stack, ours: &[(&str, Role)], dice: &mut Dice) -> Result<String> {
    let pause = Duration::from_millis(200 + dice.roll(2500));
    let (name, role) = ours[usize::try_from(dice.roll(u64::try_from(ours.len())?))?];
    let settings = [("PORT", stack.port(name)?.to_string())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let servers = stack.servers.clone();
    let own = servers.own();
    match dice.roll(10) {
        0..=4 => {
            stack.kill9(name)?;
            stack.launch(name, role, &settings).await?;
            Ok(format!("kill -9 {name}"))
        }
        5 => {
            stack.signal(name, Signal::SIGTERM)?;
            let status = stack.ended(name, Duration::from_secs(120)).await?;
            anyhow::ensure!(status.success(), "{name} ended with {status} on SIGTERM");
            stack.launch(name, role, &settings).await?;
            Ok(format!("SIGTERM {name}"))
        }
        6 => {
            stack.signal(name, Signal::SIGSTOP)?;
            tokio::time::sleep(pause * 2).await;
            stack.signal(name, Signal::SIGCONT)?;
            Ok(format!("SIGSTOP {name}"))
        }
        7 => {
            own.rabbitmq.kill9()?;
            tokio::time::sleep(pause).await;
            tokio::task::block_in_place(|| own.rabbitmq.start())?;
            Ok("kill -9 rabbitmq".to_owned())
        }
        8 => {
            own.postgres.kill9()?;
            tokio::time::sleep(pause).await;
            tokio::task::block_in_place(|| own.postgres.start())?;
            Ok("kill -9 postgres".to_owned())
        }
        _ => {
            let server = if dice.roll(2) == 0 { &own.rabbitmq } else { &own.postgres };
            server.pause();
            tokio::time::sleep(pause).await;
            server.resume();
            Ok(format!("SIGSTOP {}", server.name()))
        }
    }
}
