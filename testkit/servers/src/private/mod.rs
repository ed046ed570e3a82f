//! Private PostgreSQL and RabbitMQ servers: found or installed, started, watched and stopped.
//!
//! "Private" means: below one directory, on ports of their own, on the loopback interface only, and
//! blind to whatever runs on the standard ports. No init system is involved, and it works as root and
//! as an ordinary user. Data and ports survive in the directory; a second start finds them again and
//! ends what a killed run left behind.
//!
//! ```no_run
//! use servers::progress::Progress;
//! use servers::private::{Servers, ServersConfig};
//!
//! # fn main() -> anyhow::Result<()> {
//! let servers = Servers::start(&ServersConfig::below("target/my-servers"), &Progress::console())?;
//! println!("{} {}", servers.database_url(), servers.amqp_url());
//! servers.rabbitmq.kill9()?;
//! servers.rabbitmq.start()?;
//! # Ok(())
//! # } // dropping `servers` stops both
//! ```

mod account;
mod container;
mod find;
mod host;
pub mod install;
mod native;
pub mod ports;
mod postgres;
mod rabbitmq;
mod server;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

pub use install::Install;
pub use ports::Ports;
pub use server::Server;

use crate::progress::Progress;
use crate::stop::Stop;
use ports::ServerPorts;

/// The servers to start, and their directory.
#[derive(Clone, Debug)]
pub struct ServersConfig {
    /// The directory of the data, logs (`logs/`), process ids (`pids/`) and remembered ports.
    pub dir: PathBuf,
    /// Whether RabbitMQ answers its management HTTP API. It stops in one second without, in six with it.
    pub management: bool,
    /// PostgreSQL's `max_connections`.
    pub max_connections: u16,
    /// Whether PostgreSQL waits for the disk. Without, what it wrote survives its `kill -9`, not the machine's end.
    pub fsync: bool,
    /// Whether missing servers may be installed.
    pub install: Install,
    /// Whether to begin with empty servers instead of the data of the last run.
    pub fresh: bool,
    /// Ends a start that is under way, and hurries a stop.
    pub stop: Stop,
}

impl ServersConfig {
    /// Servers below a directory: no management API, 200 connections, every write on disk, nothing gets installed.
    pub fn below(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            management: false,
            max_connections: 200,
            fsync: true,
            install: Install::Refused,
            fresh: false,
            stop: Stop::default(),
        }
    }

    /// Where the servers will listen, known before they start.
    pub fn addresses(&self) -> Result<Addresses> {
        let mut ports = Ports::open(&self.dir);
        Ok(Addresses { ports: ServerPorts::choose(&mut ports)?, management: self.management })
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(name).with_extension("log")
    }

    fn pid_file_of(&self, name: &str) -> PathBuf {
        self.dir.join("pids").join(name)
    }

    /// The same configuration with an absolute directory that exists: children start elsewhere.
    fn settled(&self) -> Result<Self> {
        let context = || format!("failed to create {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(context)?;
        Ok(Self { dir: self.dir.canonicalize().with_context(context)?, ..self.clone() })
    }
}

/// Where the servers listen.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    ports: ServerPorts,
    management: bool,
}

impl Addresses {
    /// The database of the platform, as the owner (a superuser; loopback connections need no password).
    pub fn database_url(&self) -> String {
        self.url_of_database(DATABASE)
    }

    /// The maintenance database, from which others are created.
    pub fn maintenance_url(&self) -> String {
        self.url_of_database("postgres")
    }

    fn url_of_database(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.ports.postgres)
    }

    /// The broker's default virtual host.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// RabbitMQ's management HTTP API with its credentials, when it was asked for.
    pub fn management_url(&self) -> Option<String> {
        self.management.then(|| format!("http://guest:guest@127.0.0.1:{}", self.ports.management))
    }
}

/// The database that the servers come with.
const DATABASE: &str = "posthaste";

/// Both servers, running. Dropping this stops them, unless [`Servers::detach`] was called.
#[derive(Debug)]
pub struct Servers {
    /// PostgreSQL.
    pub postgres: Server,
    /// RabbitMQ.
    pub rabbitmq: Server,
    /// `rabbitmqctl`; none where RabbitMQ runs in a container.
    control: Option<rabbitmq::Control>,
    /// Where they listen.
    pub addresses: Addresses,
    /// Held for as long as this process answers for the directory.
    _lock: File,
}

impl Servers {
    /// Starts both servers and waits until they answer. Leftovers of a killed run on the same directory
    /// are ended first; its data and ports are kept.
    pub fn start(config: &ServersConfig, progress: &Progress) -> Result<Self> {
        let config = config.settled()?;
        let lock = lock(&config.dir.join("servers.lock"))?;
        let addresses = config.addresses()?;
        let found = install::find_or_install(&config, progress)?;
        let postgres = postgres::server(&config, &addresses.ports, found.postgres)?;
        let control = found.rabbitmq.as_ref().map(|found| rabbitmq::Control::of(&config, &addresses.ports, found));
        let rabbitmq = rabbitmq::server(&config, &addresses.ports, found.rabbitmq)?;
        let servers = Self { postgres, rabbitmq, control, addresses, _lock: lock };
        if config.fresh {
            in_parallel(|| servers.postgres.erase(), || servers.rabbitmq.erase())?;
        }
        servers.start_both(progress)?;
        Ok(servers)
    }

    fn start_both(&self, progress: &Progress) -> Result<()> {
        let start = |server: &Server| progress.step(&format!("starting {server}"), || server.start());
        in_parallel(|| start(&self.postgres), || start(&self.rabbitmq))
    }

    /// See [`Addresses::database_url`].
    pub fn database_url(&self) -> String {
        self.addresses.database_url()
    }

    /// See [`Addresses::amqp_url`].
    pub fn amqp_url(&self) -> String {
        self.addresses.amqp_url()
    }

    /// See [`Addresses::management_url`].
    pub fn management_url(&self) -> Option<String> {
        self.addresses.management_url()
    }

    /// Runs a command of `rabbitmqctl` against the node and returns what it prints.
    pub fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        self.control.as_ref().context("rabbitmqctl runs only where RabbitMQ runs natively")?.run(arguments)
    }

    /// Stops both in good order; whatever does not end in time is killed.
    pub fn stop(&self) -> Result<()> {
        in_parallel(|| self.postgres.stop(), || self.rabbitmq.stop())
    }

    /// Kills both at once; the quick end of servers whose data is no longer needed.
    pub fn kill9(&self) -> Result<()> {
        in_parallel(|| self.postgres.kill9(), || self.rabbitmq.kill9())
    }

    /// Leaves both running when this process ends. The next start on the directory takes them over.
    pub fn detach(mut self) {
        self.postgres.detach();
        self.rabbitmq.detach();
    }
}

/// PostgreSQL alone, running. Dropping this stops it.
#[derive(Debug)]
pub struct Postgres {
    /// The server.
    pub server: Server,
    /// Where it listens.
    pub addresses: Addresses,
    _lock: File,
}

impl Postgres {
    /// Starts it and waits until it answers.
    pub fn start(config: &ServersConfig, progress: &Progress) -> Result<Self> {
        let config = config.settled()?;
        let lock = lock(&config.dir.join("servers.lock"))?;
        let addresses = config.addresses()?;
        let found = install::find_or_install(&config, progress)?;
        let server = postgres::server(&config, &addresses.ports, found.postgres)?;
        server.start()?;
        Ok(Self { server, addresses, _lock: lock })
    }
}

impl Drop for Servers {
    /// Both at once; a server alone would also stop when it is dropped, but only after the other.
    fn drop(&mut self) {
        let _ = in_parallel(|| self.postgres.stop_unless_detached(), || self.rabbitmq.stop_unless_detached());
    }
}

/// Does two things at once; the first failure is the answer, once both have ended.
fn in_parallel(one: impl FnOnce() -> Result<()> + Send, other: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        one.and(other.join().unwrap_or_else(|_| Err(anyhow!("a helper thread panicked"))))
    })
}

/// Claims a directory for this process by locking a file in it. The lock ends with the process, however
/// that ends, and children do not inherit it.
pub fn lock(path: &Path) -> Result<File> {
    crate::process::create_parent(path)?;
    let context = || format!("failed to lock {}", path.display());
    let mut options = OpenOptions::new();
    let mut file = options.create(true).read(true).write(true).truncate(false).open(path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{}", already_used(path, &mut file)),
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(context)?;
    Ok(file)
}

fn already_used(path: &Path, lock: &mut File) -> String {
    let mut owner = String::new();
    let _ = lock.read_to_string(&mut owner);
    let dir = path.parent().unwrap_or(path);
    format!("process {} already uses {}; stop it first", owner.trim(), dir.display())
}
