//! The private servers for real: start, break, repair, take over, and leave nothing behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use servers::private::{Ports, Servers, ServersConfig};
use servers::process::{self, read_pid};
use servers::progress::Progress;
use servers::stop::Stop;

/// A directory of its own for each test, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir.canonicalize()?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Below a directory that the database's account cannot reach, its home is a link to elsewhere.
        if let Ok(elsewhere) = std::fs::read_link(self.0.join("postgres")) {
            let _ = std::fs::remove_dir_all(elsewhere);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(dir: &Path) -> Result<Servers> {
    Servers::start(&ServersConfig::below(dir), &Progress::silent())
}

fn psql(servers: &Servers, sql: &str) -> Result<String> {
    let psql = Command::new("psql").args([&servers.database_url(), "-XAtc", sql]).output()?;
    ensure!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    Ok(String::from_utf8_lossy(&psql.stdout).trim().to_owned())
}

/// Every process whose command line or environment names the directory.
fn processes_of(dir: &Path) -> Vec<String> {
    let output = Command::new("sh")
        .arg("-c")
        .arg(r#"for p in /proc/[0-9]*; do grep -qsF -- "$0" $p/cmdline $p/environ && [ $p != /proc/$$ ] && cat $p/comm; done; true"#)
        .arg(dir)
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|name| !["grep", "sh"].contains(name)).map(str::to_owned).collect()
}

#[test]
fn data_and_ports_survive_a_stop_and_nothing_runs_on() -> Result<()> {
    let scratch = Scratch::new("reuse")?;
    let first = start(&scratch.0)?;
    let url = first.database_url();
    psql(&first, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")?;
    assert_eq!(psql(&first, "SHOW fsync")?, "on");
    assert!(read_pid(&scratch.0.join("pids/postgres")).is_some());
    ensure!(start(&scratch.0).is_err_and(|error| error.to_string().contains("already uses")));
    drop(first);
    assert_eq!(processes_of(&scratch.0.join("")), Vec::<String>::new());
    let second = start(&scratch.0)?;
    assert_eq!(second.database_url(), url);
    assert_eq!(psql(&second, "SELECT n FROM kept")?, "7");
    Ok(())
}

#[test]
fn servers_can_be_killed_frozen_and_started_again() -> Result<()> {
    let scratch = Scratch::new("break")?;
    let servers = start(&scratch.0)?;
    for server in [&servers.postgres, &servers.rabbitmq] {
        let before = server.pid();
        server.kill9()?;
        ensure!(!server.is_running(), "{server} survived a kill");
        server.start()?;
        assert_ne!(server.pid(), before);
        server.stop_immediate()?;
        server.start()?;
        server.pause();
        server.resume();
    }
    psql(&servers, "SELECT 1")?;
    let servers_main = servers.rabbitmq.pid().context("no process id")?;
    process::send(servers_main, nix::sys::signal::Signal::SIGKILL);
    ensure!(Stop::default().wait_until(Duration::from_secs(60), || !servers.rabbitmq.is_running()));
    servers.rabbitmq.start()?;
    servers.stop()?;
    assert_eq!(processes_of(&scratch.0.join("")), Vec::<String>::new());
    Ok(())
}

#[test]
fn what_a_killed_run_left_is_taken_over() -> Result<()> {
    let scratch = Scratch::new("takeover")?;
    let first = start(&scratch.0)?;
    psql(&first, "CREATE TABLE kept ()")?;
    let old = (first.postgres.pid(), first.rabbitmq.pid());
    first.detach();
    ensure!(!processes_of(&scratch.0.join("")).is_empty(), "detached servers run on");
    let second = start(&scratch.0)?;
    assert_ne!((second.postgres.pid(), second.rabbitmq.pid()), old);
    psql(&second, "SELECT FROM kept")?;
    Ok(())
}

#[test]
fn a_taken_port_and_a_stop_end_a_start() -> Result<()> {
    let scratch = Scratch::new("refuse")?;
    let port = Ports::open(&scratch.0).remembered("amqp")?;
    let squatter = std::net::TcpListener::bind(("127.0.0.1", port))?;
    let error = start(&scratch.0).err().context("started on a taken port")?;
    ensure!(error.to_string().contains(&format!("port {port}")), "{error}");
    drop(squatter);
    let config = ServersConfig::below(&scratch.0);
    config.stop.request();
    // Ended by the stop and not by the limit of a start: it says so.
    let error = Servers::start(&config, &Progress::silent()).err().context("started in spite of a stop")?;
    ensure!(format!("{error:#}").contains("stopped before everything was running"), "{error:#}");
    assert_eq!(processes_of(&scratch.0.join("")), Vec::<String>::new());
    Ok(())
}
