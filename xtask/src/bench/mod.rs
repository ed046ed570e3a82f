//! `cargo xtask bench`: the release build against a peer, on the same fresh servers, in turn.
//!
//! The load generator, the sink and the peers' stacks are separate tools: one folder that holds `loadsink/`, `peers/run.sh` and
//! `servers.sh`. Machines and days differ, so what counts is the ratio of both sides within one run.

mod scenarios;
mod vendors;
mod webhooks;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use servers::{
    environment,
    private::ports,
    process::{self, Process},
    stop::Stop,
};

use crate::cargo::{self, Profile};

/// Connections of the closed loop; the same for every side.
const CONNECTIONS: &str = "32";
/// How long our processes may take to get ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// The reported figures, in this order.
const FIGURES: &[&str] = &["e2e_per_s", "accept_rps", "accept_p99_ms", "cpu_us_msg_stack"];
const OPEN_FIGURES: &[&str] = &["e2e_p50_ms", "e2e_p99_ms", "accept_p99_ms"];

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the load generator and the peers' stacks.
    #[arg(long, default_value = "../shared/bench")]
    tools: PathBuf,
    /// Peers to measure in the same run: node, python, svix, hook0 (`peers/run.sh` says what each needs).
    #[arg(long, default_value = "node", value_delimiter = ',')]
    peers: Vec<String>,
    /// Measure Posthaste alone.
    #[arg(long, conflicts_with = "peers")]
    no_peer: bool,
    /// Messages of each closed-loop run.
    #[arg(long, short = 'n', default_value_t = 20_000)]
    messages: u32,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Worker processes beside one ingest and one scheduler; 0 runs everything in one process.
    #[arg(long, default_value_t = 0)]
    workers: u32,
    /// The scenario.
    #[arg(long, value_enum, default_value_t = Scenario::Delivery)]
    scenario: Scenario,
    /// Store this many delivered messages first, to see whether a full database is slower than an empty one.
    #[arg(long, default_value_t = 0)]
    stored: u64,
}

/// The scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// One webhook after the other, end to end, beside the peers.
    Delivery,
    /// Acceptance alone, singly and in bulk calls of 1,000.
    Accept,
    /// One tenant's singles beside another one's 100,000 bulk deliveries.
    Beside,
    /// Webhooks of WAHA beside single sends, acceptance only.
    Webhooks,
    /// Mail over SMTP and push over HTTP/2 beside webhooks.
    Vendors,
    /// Webhooks beside 10,000 text messages that wait for a dead vendor.
    Outage,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let tools = args.tools.canonicalize().with_context(|| {
        format!("{} is not there: pass the folder of the load generator with --tools", args.tools.display())
    })?;
    let stop = Stop::default();
    let programs = cargo::build_programs(Profile::Release, &stop)?;
    let bench = Bench::prepare(tools, programs, &stop)?;
    match args.scenario {
        Scenario::Delivery => {}
        Scenario::Accept => return bench.accept(args.messages).map(|()| ExitCode::SUCCESS),
        Scenario::Webhooks => return bench.webhooks(args.messages).map(|()| ExitCode::SUCCESS),
        Scenario::Vendors => return bench.vendors(args.messages).map(|()| ExitCode::SUCCESS),
        Scenario::Outage => return bench.outage(args.messages).map(|()| ExitCode::SUCCESS),
        Scenario::Beside => return bench.beside(args.workers).map(|()| ExitCode::SUCCESS),
    }
    let mut runs: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let peers: &[String] = if args.no_peer { &[] } else { &args.peers };
    for round in 1..=args.rounds {
        for side in peers.iter().map(String::as_str).chain(["ours"]) {
            eprintln!("round {round} of {}: {side}", args.rounds);
            runs.entry(side.to_owned()).or_default().extend(bench.measure(side, args, &stop)?);
        }
    }
    report(&runs);
    Ok(ExitCode::SUCCESS)
}

/// Where everything is.
struct Bench {
    tools: PathBuf,
    programs: PathBuf,
    dir: PathBuf,
    loadsink: PathBuf,
}

impl Bench {
    fn prepare(tools: PathBuf, programs: PathBuf, stop: &Stop) -> Result<Self> {
        let target = cargo::target_dir().join("bench-tools");
        let mut build = cargo::cargo();
        build.args(["build", "--release", "--quiet", "--package", "loadsink", "--locked"]);
        build.current_dir(&tools).env("CARGO_TARGET_DIR", &target);
        ensure!(process::run(&mut build, stop)?.success(), "the load generator did not build");
        let dir = std::env::temp_dir().join(format!("posthaste-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self { tools, programs, dir, loadsink: target.join("release/loadsink") })
    }

    /// One side, once: fresh servers, warm-up, closed loop, open loop at 100 a second.
    fn measure(&self, side: &str, args: &Args, stop: &Stop) -> Result<Vec<Value>> {
        let servers = BenchServers::start(self, side)?;
        let out = self.dir.join("out");
        fs::create_dir_all(&out)?;
        let mut script = Command::new(self.tools.join("peers/run.sh"));
        script.arg(side).envs(servers.environment()?).env("LS", &self.loadsink).env("OUT", &out);
        script.env("N", args.messages.to_string()).env("REPS", "1").env("C", CONNECTIONS).env("RATE", "100");
        script.env("SINK", format!("127.0.0.1:{}", ports::find_free()?)).env("PORT", ports::find_free()?.to_string());
        let ours = if side == "ours" { Some(Ours::start(self, &servers, args, &mut script)?) } else { None };
        if side == "node" {
            script.env("NODE_MODULES", self.node_modules(stop)?);
        }
        let printed = process::output_of(&mut script)?;
        if let Some(ours) = &ours {
            ours.print_counts(&servers)?;
        }
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        ensure!(!lines.is_empty(), "{side} gave no figures: {printed}");
        for line in &lines {
            println!("{line}");
        }
        Ok(lines)
    }

    fn node_modules(&self, stop: &Stop) -> Result<PathBuf> {
        let dir = cargo::target_dir().join("bench-node");
        if !dir.join("node_modules").is_dir() {
            fs::create_dir_all(&dir)?;
            fs::copy(self.tools.join("peers/node/package.json"), dir.join("package.json"))?;
            let mut install = Command::new("npm");
            install.arg("install").arg("--prefix").arg(&dir);
            ensure!(process::run(&mut install, stop)?.success(), "npm could not install the peer");
        }
        Ok(dir.join("node_modules"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Left-over figures are only litter.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The servers of one measurement, the same for every side.
struct BenchServers {
    script: PathBuf,
    dir: PathBuf,
    ports: Vec<(&'static str, String)>,
}

impl BenchServers {
    fn start(bench: &Bench, side: &str) -> Result<Self> {
        let names = ["PG_PORT", "RMQ_PORT", "RMQ_DIST_PORT", "RMQ_MGMT_PORT", "EPMD_PORT", "REDIS_PORT"];
        let ports =
            names.iter().map(|name| Ok((*name, ports::find_free()?.to_string()))).collect::<Result<Vec<_>>>()?;
        let servers = Self { script: bench.tools.join("servers.sh"), dir: bench.dir.join("servers"), ports };
        let wanted: &[&str] = match side {
            "ours" => &["pg", "rmq"],
            "node" | "svix" => &["pg", "redis"],
            "hook0" => &["pg"],
            _ => &["pg", "rmq", "redis"],
        };
        process::output_of(servers.command("up").args(wanted))?;
        Ok(servers)
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(action).arg(&self.dir).envs(self.ports.iter().map(|(name, port)| (*name, port.as_str())));
        command.stdin(Stdio::null());
        command
    }

    /// The file that `servers.sh` wrote for the others.
    fn environment(&self) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(self.dir.join("env"))?;
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let mut all: Vec<(String, String)> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        all.push(("SRV".to_owned(), self.dir.to_string_lossy().into_owned()));
        Ok(all)
    }

    fn setting(&self, name: &str) -> Result<String> {
        let found = self.environment()?.into_iter().find(|(known, _)| known == name);
        Ok(found.with_context(|| format!("servers.sh gave no {name}"))?.1)
    }

    fn psql(&self, sql: &str) -> Result<String> {
        process::output_of(Command::new("psql").args(["-qAtX", &self.setting("DATABASE_URL")?, "-c", sql]))
    }
}

impl Drop for BenchServers {
    fn drop(&mut self) {
        if let Err(error) = process::output_of(&mut self.command("down")) {
            eprintln!("{error:#}");
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Our processes during one measurement. They end when this is dropped.
struct Ours {
    running: Vec<(String, Process)>,
}

impl Ours {
    fn start(bench: &Bench, servers: &BenchServers, args: &Args, script: &mut Command) -> Result<Self> {
        let settings = Settings::new(bench, servers)?;
        let key = settings.tenant("bench")?;
        if args.stored > 0 {
            servers.psql(&stored(args.stored))?;
        }
        let (ours, port) = Self::launch(&settings, args.workers)?;
        let named: Vec<String> =
            ours.running.iter().map(|(name, process)| format!("{name}={}", process.pid())).collect();
        script.env("OURS_URL", format!("http://127.0.0.1:{port}/api/notifications/send"));
        script.env("OURS_HEADERS", format!("authorization: Bearer {key}"));
        script.env("OURS_PROCS", named.join(" "));
        let sink = script.get_envs().find(|(name, _)| *name == "SINK").and_then(|(_, value)| value?.to_str());
        script.env("OURS_BODY", body(sink.unwrap_or_default()));
        Ok(ours)
    }

    /// Starts the processes, and says where the API is.
    fn launch(settings: &Settings<'_>, workers: u32) -> Result<(Self, u16)> {
        let port = ports::find_free()?;
        let mut ours = Self { running: Vec::new() };
        for (name, program, arguments) in plan(workers) {
            let port = if matches!(program, "posthaste" | "posthaste-ingest") { port } else { ports::find_free()? };
            let process = settings.spawn(&name, program, arguments, port)?;
            wait_ready(port, &settings.log(&name))?;
            ours.running.push((name, process));
        }
        Ok((ours, port))
    }

    /// Statements and broker messages per delivery, from the servers' own counters.
    fn print_counts(&self, servers: &BenchServers) -> Result<()> {
        let counts = "SELECT json_build_object('deliveries', (SELECT count(*) FROM deliveries), \
            'not_delivered', (SELECT count(*) FROM deliveries WHERE state <> 'delivered'), \
            'commits', (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()))";
        println!("{}", servers.psql(counts)?.trim());
        Ok(())
    }
}

/// Name, program and arguments of each process.
fn plan(workers: u32) -> Vec<(String, &'static str, &'static [&'static str])> {
    if workers == 0 {
        return vec![("posthaste".to_owned(), "posthaste", &["run"])];
    }
    let mut all: Vec<(String, &'static str, &'static [&'static str])> =
        vec![("ingest".to_owned(), "posthaste-ingest", &[]), ("scheduler".to_owned(), "posthaste-scheduler", &[])];
    all.extend((1..=workers).map(|n| (format!("worker{n}"), "posthaste-worker", [].as_slice())));
    all
}

struct Settings<'a> {
    bench: &'a Bench,
    all: Vec<(&'static str, String)>,
}

impl<'a> Settings<'a> {
    fn new(bench: &'a Bench, servers: &BenchServers) -> Result<Self> {
        let all = vec![
            ("DATABASE_URL", servers.setting("DATABASE_URL")?),
            ("AMQP_URL", servers.setting("AMQP_URL")?),
            ("JWT_SECRET", "a-secret-for-the-benchmark-that-is-long-enough".to_owned()),
            ("WEBHOOK_ALLOW_NETS", "127.0.0.0/8".to_owned()),
            // One key sends everything.
            ("RATE_LIMIT_MAX_REQUESTS", "100000000".to_owned()),
            ("PATH", environment::get("PATH").unwrap_or_default()),
        ];
        Ok(Self { bench, all })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bench.programs.join(program));
        command.env_clear().envs(self.all.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    fn cli(&self, args: &[&str]) -> Result<String> {
        process::output_of(self.command("posthaste").args(args))
    }

    /// A schema, a tenant and a key of its producer.
    fn tenant(&self, name: &str) -> Result<String> {
        self.cli(&["migrate"])?;
        self.cli(&["tenant", "create", name])?;
        let made: Value =
            serde_json::from_str(&self.cli(&["key", "create", "--tenant", name, "--role", "producer", "--json"])?)?;
        made.get("key").and_then(Value::as_str).map(str::to_owned).context("no key was made")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.bench.dir.join(format!("{name}.log"))
    }

    fn spawn(&self, name: &str, program: &str, arguments: &[&str], port: u16) -> Result<Process> {
        let mut command = self.command(program);
        command.args(arguments).env("PORT", port.to_string());
        Process::spawn(command, &self.log(name), &self.bench.dir.join(format!("{name}.pid")))
    }
}

fn wait_ready(port: u16, log: &Path) -> Result<()> {
    let start = Instant::now();
    let url = format!("http://127.0.0.1:{port}/health/ready");
    while !servers::http::get(&url, None).is_ok_and(|answer| answer.status == 200) {
        if start.elapsed() > READY_LIMIT {
            bail!("not ready after {READY_LIMIT:?}; {}", process::log_tail(log, 20));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The load generator fills `{{id}}`, `{{ts}}` and `{{pad}}` in.
fn body(sink: &str) -> String {
    format!(
        r#"{{"channel":"webhook","recipient":"http://{sink}/hook","data":{{"id":"{{{{id}}}}","ts":"{{{{ts}}}}","type":"invoice.paid","data":{{{{pad}}}}}}}}"#
    )
}

/// `n` delivered messages of yesterday and today, with their log, as if they had been sent.
fn stored(n: u64) -> String {
    format!(
        "WITH ids AS MATERIALIZED (
            SELECT (lpad(to_hex(((extract(epoch FROM now()) - i % 80000) * 1000)::bigint), 12, '0') || '7' || substr(md5(i::text), 1, 3)
                || '8' || substr(md5(i::text), 4, 15))::uuid AS id FROM generate_series(1, {n}) i
            WHERE uuid7_floor(date_trunc('day', now()) - interval '1 day') IS NOT NULL),
        m AS (INSERT INTO messages (id, tenant_id, priority, content, source)
            SELECT id, 1, 'normal', convert_to(repeat('x', 450), 'UTF8'), 'http' FROM ids ON CONFLICT DO NOTHING),
        e AS (INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, duration_ms)
            SELECT id, 1, 'delivered', 1, 'webhook', now(), 'http', 'sent', '200', 3 FROM ids ON CONFLICT DO NOTHING)
        INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state, run, attempts, provider)
            SELECT id, id, 1, 'webhook', 'normal', 'http://127.0.0.1/hook', 'delivered', 1, 1, 'http' FROM ids ON CONFLICT DO NOTHING;
        ANALYZE; CHECKPOINT;"
    )
}

fn report(runs: &BTreeMap<String, Vec<Value>>) {
    for (mode, figures) in [("closed", FIGURES), ("open", OPEN_FIGURES)] {
        println!("\n{mode} loop, medians: {}", figures.join(", "));
        for (side, lines) in runs {
            let of_mode = || lines.iter().filter(|line| line.get("mode").and_then(Value::as_str) == Some(mode));
            let shown: Vec<String> = figures
                .iter()
                .map(|figure| median(of_mode().filter_map(|line| line.get(*figure)?.as_f64()).collect()))
                .map(|value| format!("{value:>10.2}"))
                .collect();
            println!("{side:>8} {}", shown.join(" "));
        }
    }
    let rate = |side: &str| {
        let lines = runs.get(side)?.iter().filter(|line| line.get("mode").and_then(Value::as_str) == Some("closed"));
        Some(median(lines.filter_map(|line| line.get("e2e_per_s")?.as_f64()).collect()))
    };
    let Some(ours) = rate("ours") else { return };
    for side in runs.keys().filter(|side| *side != "ours") {
        println!("\nPosthaste delivers {:.2} times what {side} does", ours / rate(side).unwrap_or(f64::NAN));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
