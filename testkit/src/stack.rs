//! One Posthaste under test.

use std::{
    collections::BTreeMap,
    fs::File,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::{
    Api, Network, TestServers, eventually,
    network::Node,
    programs,
    proxy::{Proxy, address_of, through},
    template::FirstTenant,
};

/// The tasks of a process of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Everything in one process.
    All,
    /// HTTP API and intake.
    Ingest,
    /// Sends.
    Worker,
    /// Waits and writes down.
    Scheduler,
}

impl Role {
    fn command(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::All => ("posthaste", &["run"]),
            Self::Ingest => ("posthaste-ingest", &[]),
            Self::Worker => ("posthaste-worker", &[]),
            Self::Scheduler => ("posthaste-scheduler", &[]),
        }
    }
}

struct Process {
    role: Role,
    host: Ipv4Addr,
    port: u16,
    child: Child,
    log: PathBuf,
}

/// One Posthaste: a database, a virtual host, processes, and keys of its first tenant.
pub struct Stack {
    /// The servers it stands on.
    pub servers: TestServers,
    /// Its database.
    pub database_url: String,
    /// Its virtual host.
    pub amqp_url: String,
    /// The first tenant's admin key.
    pub admin_key: String,
    /// The first tenant's producer key.
    pub producer_key: String,
    /// The first tenant's webhook secret.
    pub webhook_secret: String,
    settings: BTreeMap<String, String>,
    /// The name of its database and of its virtual host.
    id: String,
    dir: PathBuf,
    processes: BTreeMap<String, Process>,
    network: Option<Network>,
    /// A proxy carries for as long as it is kept.
    proxies: Vec<Proxy>,
}

/// How long a process may take until it is ready; one with much to declare on a busy broker needs a while.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// Retries in milliseconds, receivers on loopback, leases that end while a test watches, and no limit that one key meets.
/// Calls have ten seconds and claims five more: a machine that stands still for a moment must not make an outcome unknown.
const SETTINGS: &[(&str, &str)] = &[
    ("WEBHOOK_ALLOW_NETS", "127.0.0.0/8"),
    ("MEDIA_ALLOW_NETS", "127.0.0.0/8"),
    ("WEBHOOK_RETRY_DELAY", "200"),
    ("WEBHOOK_MAX_RETRIES", "8"),
    ("WEBHOOK_TIMEOUT", "10000"),
    ("RETRY_BASE_MS", "200"),
    ("RETRY_MAX_MS", "1000"),
    ("PROVIDER_TIMEOUT_MS", "10000"),
    ("LEASE_MARGIN_MS", "5000"),
    ("AUDIT_AFTER_MS", "3000"),
    ("RELAY_AFTER_MS", "3000"),
    ("SMS_BACKEND", "sandbox"),
    ("PUSH_BACKEND", "sandbox"),
    ("WHATSAPP_BACKEND", "sandbox"),
    ("JWT_SECRET", "0123456789abcdef0123456789abcdef0123456789abcdef"),
    ("RATE_LIMIT_MAX_REQUESTS", "100000000"),
    ("RUST_LOG", "info"),
];

impl Stack {
    /// A database and a virtual host with the schema and the first tenant in place; no process runs yet.
    pub async fn prepare(servers: TestServers, settings: &[(&str, &str)]) -> Result<Self> {
        let id = format!("t{}", uuid::Uuid::now_v7().simple());
        let dir = std::env::temp_dir().join(&id);
        std::fs::create_dir_all(&dir)?;
        let amqp_url = servers.create_vhost(&id).await?;
        let all: BTreeMap<String, String> =
            SETTINGS.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (database_url, first) = if all.contains_key("POSTHASTE_ENCRYPTION_KEY") {
            // The tenant of the template has its secret in the clear.
            let url = servers.copy_schema(&id).await?;
            let first = FirstTenant::create(&url, &all)?;
            (url, first)
        } else {
            servers.copy_tenant(&id).await?
        };
        Ok(Self {
            servers,
            database_url,
            amqp_url,
            admin_key: first.admin_key,
            producer_key: first.producer_key,
            webhook_secret: first.webhook_secret,
            settings: all,
            id,
            dir,
            processes: BTreeMap::new(),
            network: None,
            proxies: Vec::new(),
        })
    }

    /// An all-in-one stack on the shared servers, ready for requests.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`Stack::start`], with further settings.
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let mut stack = Self::prepare(TestServers::shared()?, settings).await?;
        stack.declare_topology().await?;
        stack.launch("all", Role::All, &[]).await?;
        Ok(stack)
    }

    /// A stack of separate processes on the shared servers: one ingest, `workers` workers, one scheduler.
    pub async fn start_apart(workers: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let mut stack = Self::prepare(TestServers::shared()?, settings).await?;
        stack.declare_topology().await?;
        stack.launch("ingest", Role::Ingest, &[]).await?;
        stack.launch("scheduler", Role::Scheduler, &[]).await?;
        for n in 0..workers {
            stack.launch(&format!("worker{n}"), Role::Worker, &[]).await?;
        }
        Ok(stack)
    }

    /// Declares the topology before a process does: a process is ready without a broker, and a busy one declares slowly. A new virtual
    /// host may refuse connections for a moment.
    async fn declare_topology(&self) -> Result<()> {
        eventually("the topology is declared", READY_LIMIT, || async {
            self.cli(&["topology", "declare"]).ok().map(drop)
        })
        .await
    }

    /// Runs every process from now on as if on a machine of its own: in a network namespace that can be cut off.
    pub async fn use_network(&mut self, network: Network) -> Result<()> {
        for url in [&mut self.database_url, &mut self.amqp_url] {
            let proxy = Proxy::start_at(network.server(), address_of(url)?).await?;
            *url = through(url, &proxy)?;
            self.proxies.push(proxy);
        }
        self.network = Some(network);
        self.set("HOST", Some("0.0.0.0"));
        self.set("WEBHOOK_ALLOW_NETS", Some("127.0.0.0/8,10.0.0.0/8"));
        self.set("MEDIA_ALLOW_NETS", Some("127.0.0.0/8,10.0.0.0/8"));
        Ok(())
    }

    /// The machine that a process of this name runs on, where there is a network.
    pub fn node(&mut self, name: &str) -> Result<Option<Node>> {
        self.network.as_mut().map(|network| network.node(name)).transpose()
    }

    /// Changes a setting for whatever is started from now on, commands too; `None`: it is not set.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.settings.insert(name.to_owned(), value.to_owned())),
            None => drop(self.settings.remove(name)),
        }
    }

    /// Starts a process and waits until it is ready.
    pub async fn launch(&mut self, name: &str, role: Role, settings: &[(&str, &str)]) -> Result<()> {
        self.spawn(name, role, settings)?;
        self.ready(name).await
    }

    /// Starts a process without waiting.
    pub fn spawn(&mut self, name: &str, role: Role, settings: &[(&str, &str)]) -> Result<()> {
        let asked = settings.iter().find(|(name, _)| *name == "PORT").map(|(_, port)| port.parse());
        let port = match asked {
            Some(Ok(port)) => port,
            _ => servers::private::ports::find_free()?,
        };
        let log = self.dir.join(format!("{name}-{port}.log"));
        let (program, args) = role.command();
        let node = self.node(name)?;
        let mut command = self.command(program, node.as_ref())?;
        let host = node.map_or(Ipv4Addr::LOCALHOST, |node| node.address);
        command.args(args).env("PORT", port.to_string()).envs(settings.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(append(&log)?).stderr(append(&log)?).spawn()?;
        self.processes.insert(name.to_owned(), Process { role, host, port, child, log });
        Ok(())
    }

    /// Waits until a process says it is ready.
    pub async fn ready(&mut self, name: &str) -> Result<()> {
        let process = self.process(name)?;
        let url = format!("http://{}:{}/health/ready", process.host, process.port);
        // A listener that takes the connection and then says nothing must not use up the whole limit.
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let start = std::time::Instant::now();
        loop {
            let is_last = start.elapsed() >= READY_LIMIT;
            if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            let ended = self.process_mut(name)?.child.try_wait()?;
            anyhow::ensure!(
                ended.is_none() && !is_last,
                "{name} did not get ready ({}); its log:\n{}",
                ended.map_or_else(|| format!("not within {READY_LIMIT:?}"), |status| status.to_string()),
                self.log_of(name)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills a process the hard way and waits for its end.
    pub fn kill9(&mut self, name: &str) -> Result<()> {
        let process = self.process_mut(name)?;
        process.child.kill()?;
        process.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process(name)?.child.id())?;
        Ok(nix::sys::signal::kill(Pid::from_raw(pid), signal)?)
    }

    /// Waits for a process to end by itself.
    pub async fn ended(&mut self, name: &str, limit: Duration) -> Result<ExitStatus> {
        let start = std::time::Instant::now();
        loop {
            // Looked at once more after the limit: this process may have stood still since the last time.
            let is_last = start.elapsed() >= limit;
            if let Some(status) = self.process_mut(name)?.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(!is_last, "{name} still runs after {limit:?}; its log:\n{}", self.log_of(name));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The process id.
    pub fn pid(&self, name: &str) -> Result<u32> {
        Ok(self.process(name)?.child.id())
    }

    /// The port of a process's HTTP listener.
    pub fn port(&self, name: &str) -> Result<u16> {
        Ok(self.process(name)?.port)
    }

    /// The API as seen by the first tenant's producer, at the first process that serves it.
    pub fn producer(&self) -> Api {
        self.api(&self.producer_key)
    }

    /// The API as seen by the first tenant's admin.
    pub fn admin(&self) -> Api {
        self.api(&self.admin_key)
    }

    /// The API with some credential.
    pub fn api(&self, credential: &str) -> Api {
        let serving = self.processes.values().find(|process| matches!(process.role, Role::All | Role::Ingest));
        let (host, port) = serving.map_or((Ipv4Addr::LOCALHOST, 0), |process| (process.host, process.port));
        Api::new(&format!("http://{host}:{port}"), credential)
    }

    /// The API of one process.
    pub fn api_of(&self, name: &str) -> Result<Api> {
        let process = self.process(name)?;
        Ok(Api::new(&format!("http://{}:{}", process.host, process.port), &self.producer_key))
    }

    /// Makes a key.
    pub fn create_key(&self, tenant: &str, role: &str) -> Result<String> {
        programs::text(&self.cli_json(&["key", "create", "--tenant", tenant, "--role", role])?, "key")
    }

    /// Runs the `posthaste` command; fails with what it printed unless it exits with 0.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        programs::run(self.command("posthaste", None)?.args(args))
    }

    /// Runs the `posthaste` command with `--json`.
    pub fn cli_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        programs::run_json(self.command("posthaste", None)?.args(args))
    }

    /// A connection to its database, past every service.
    pub async fn sql(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(&self.database_url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// One number from its database.
    pub async fn count(&self, query: &str) -> Result<i64> {
        Ok(self.sql().await?.query_one(query, &[]).await?.get(0))
    }

    /// Writes a file that goes with the stack; its path.
    pub fn temporary(&self, name: &str, text: &str) -> Result<String> {
        let folder = self.dir.join("files");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), text)?;
        Ok(folder.join(name).display().to_string())
    }

    /// Everything its processes ever logged.
    pub fn logs(&self) -> Result<String> {
        let mut all = String::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_file() {
                all.push_str(&std::fs::read_to_string(path)?);
            }
        }
        Ok(all)
    }

    fn log_of(&self, name: &str) -> String {
        let log =
            self.processes.get(name).and_then(|process| std::fs::read_to_string(&process.log).ok()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn command(&self, program: &str, node: Option<&Node>) -> Result<Command> {
        let mut command = programs::program(program, node, &self.settings)?;
        command.env("DATABASE_URL", &self.database_url).env("AMQP_URL", &self.amqp_url);
        Ok(command)
    }

    fn process(&self, name: &str) -> Result<&Process> {
        self.processes.get(name).with_context(|| format!("no process is called {name}"))
    }

    fn process_mut(&mut self, name: &str) -> Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("no process is called {name}"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for name in &names {
            // A test that fails with an error does not panic: POSTHASTE_TEST_LOGS=1 shows the logs of any test.
            if std::thread::panicking() || crate::setting("POSTHASTE_TEST_LOGS").is_some() {
                eprintln!("--- log of {name}\n{}", self.log_of(name));
            }
            // It may have ended already.
            let _ = self.kill9(name);
        }
        if self.servers.own.is_none() {
            self.servers.delete(&self.id);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn append(log: &std::path::Path) -> Result<File> {
    Ok(File::options().create(true).append(true).open(log)?)
}
