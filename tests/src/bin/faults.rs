//! The long fault run: load goes on while every process, ours and the servers', is killed, stopped and restarted at random.
//! Prints the ledger and fails unless every invariant holds. `cargo xtask faults` starts it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use harness::{Api, HttpSink, Role, Stack, TestServers, check};
use nix::sys::signal::Signal;
use serde_json::json;

/// Kills everything at random under load and compares what was accepted with what arrived and with the log.
#[derive(Parser)]
struct Args {
    /// Faults to cause.
    #[arg(long, default_value_t = 50)]
    kills: u32,
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
    /// The processes of ours, by name.
    const fn ours(&self) -> &'static [(&'static str, Role)] {
        if self.all_in_one { ALL_IN_ONE } else { APART }
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
    let load = Load::start(&stack, &sink, &args)?;
    let caused = cause(&mut stack, &args, Dice(seed), &load).await?;
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

/// Clients that post under keys, and repeat a key until it is accepted.
struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<Mutex<Vec<String>>>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(stack: &Stack, sink: &HttpSink, args: &Args) -> Result<Self> {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let next = Arc::new(AtomicUsize::new(0));
        let accepting = args.ours().iter().filter(|(_, role)| matches!(role, Role::All | Role::Ingest));
        let ports = accepting.map(|(name, _)| stack.port(name)).collect::<Result<Vec<u16>>>()?;
        let key = stack.producer_key.clone();
        let url = sink.url("/hook");
        let clients: Vec<_> = ports
            .into_iter()
            .cycle()
            .take(args.connections)
            .map(|port| {
                let (stop, accepted, next, url) =
                    (Arc::clone(&stop), Arc::clone(&accepted), Arc::clone(&next), url.clone());
                let api = Api::new(&format!("http://127.0.0.1:{port}"), &key);
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let id = insist(
                            &api,
                            &format!("key-{n}"),
                            &json!({"channel": "webhook", "recipient": url, "data": {"n": n}}),
                        )
                        .await;
                        accepted.lock().unwrap().push(id);
                    }
                })
            })
            .collect();
        Ok(Self { stop, accepted, clients })
    }

    fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    async fn finish(self, at_least: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(900);
        while self.count() < at_least && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            // A client only ends by itself.
            let _ = client.await;
        }
        std::mem::take(&mut self.accepted.lock().unwrap())
    }
}

async fn insist(api: &Api, key: &str, body: &serde_json::Value) -> String {
    loop {
        if let Ok(answer) = api.send_keyed(key, body).await
            && answer.status.as_u16() == 202
            && let Some(id) = answer.body["id"].as_str()
        {
            return id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
