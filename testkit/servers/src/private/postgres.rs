//! A private PostgreSQL: one data directory, one TCP port on the loopback interface, no Unix socket.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::account::{self, Account};
use super::container::Container;
use super::find::PostgresPrograms;
use super::host::Host;
use super::native::Native;
use super::ports::ServerPorts;
use super::server::{Probe, Server};
use super::{DATABASE, ServersConfig};
use crate::process::{Mark, output_of, without_variables};

const NAME: &str = "postgres";
const IMAGE: &str = "postgres:15";

/// "Fast shutdown": ends sessions, writes a checkpoint. SIGTERM would wait for clients to leave.
const GENTLE: Signal = Signal::SIGINT;

/// Describes the server; nothing is started yet.
pub(super) fn server(
    config: &ServersConfig,
    ports: &ServerPorts,
    programs: Option<PostgresPrograms>,
) -> Result<Server> {
    let version = programs.as_ref().map_or_else(|| IMAGE.to_owned(), |programs| programs.version.clone());
    let identity = identity(&config.dir);
    let (psql, host): (Vec<String>, Box<dyn Host>) = match programs {
        Some(programs) => {
            let psql = vec![programs.program("psql").display().to_string(), format!("--port={}", ports.postgres)];
            (psql, Box::new(native(config, ports, &programs, identity)?))
        }
        None => {
            let container = container(config, ports, identity);
            let psql = ["docker", "exec", &container.name, "psql"].map(str::to_owned).to_vec();
            (psql, Box::new(container))
        }
    };
    Ok(Server {
        name: NAME,
        version,
        dir: config.dir.clone(),
        ports: vec![ports.postgres],
        host,
        probe: Box::new(Psql { command: psql }),
        gentle: GENTLE,
        stop: config.stop.clone(),
        detached: false,
    })
}

/// A name that only this directory's server has. PostgreSQL shows it in the command line of all its
/// processes (as `cluster_name`), and it fits its limit of 63 characters.
pub(super) fn identity(dir: &Path) -> String {
    format!("posthaste-{:016x}", fingerprint(dir))
}

/// FNV-1a: must stay the same from one build to the next, which the standard hasher does not promise.
fn fingerprint(dir: &Path) -> u64 {
    let bytes = dir.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where the data is; the home may be a link to elsewhere.
pub(super) fn data_dir(dir: &Path) -> PathBuf {
    dir.join(NAME).join("data")
}

fn native(
    config: &ServersConfig,
    ports: &ServerPorts,
    programs: &PostgresPrograms,
    identity: String,
) -> Result<Native> {
    let account = Account::needed()?;
    let home = account::home(&config.dir.join(NAME), &identity, account.as_ref())?;
    let data = home.join("data");
    let settings = settings(config, ports, &identity);
    let runner = Runner { home, account };
    let (creator, initdb, new_data) = (runner.clone(), programs.program("initdb"), data.clone());
    let (starter, server, old_data) = (runner, programs.program("postgres"), data.clone());
    Ok(Native {
        data,
        prepare: Box::new(move || creator.create_data(&initdb, &new_data)),
        command: Box::new(move || {
            let mut start = starter.command(&server);
            start.arg("-D").arg(&old_data).args(&settings);
            start
        }),
        mark: Mark::CommandLine { program: NAME, word: identity },
        gentle: GENTLE,
        log: config.log_of(NAME),
        pid_file: config.pid_file_of(NAME),
        running: None.into(),
    })
}

/// Settings go on the command line, so that a change here reaches data that already exists.
fn settings(config: &ServersConfig, ports: &ServerPorts, identity: &str) -> Vec<String> {
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={}", ports.postgres),
        "unix_socket_directories=".to_owned(),
        format!("max_connections={}", config.max_connections),
        "shared_buffers=256MB".to_owned(),
        format!("fsync={}", if config.fsync { "on" } else { "off" }),
        format!("cluster_name={identity}"),
    ];
    settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect()
}

/// Runs PostgreSQL's programs under the right account, blind to the person's own `PG…` settings.
#[derive(Clone)]
struct Runner {
    home: PathBuf,
    account: Option<Account>,
}

impl Runner {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        without_variables(&mut command, &["PG"]);
        command.current_dir(&self.home).env("HOME", &self.home);
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Creates the data if there is none: beside its final place, then renamed, so that an interrupted
    /// start leaves nothing half made.
    fn create_data(&self, initdb: &Path, data: &Path) -> Result<()> {
        if data.join("PG_VERSION").is_file() {
            return Ok(());
        }
        let unfinished = data.with_extension("unfinished");
        output_of(self.command(Path::new("rm")).arg("-rf").arg(&unfinished))?;
        let mut initdb = self.command(initdb);
        initdb.arg("-D").arg(&unfinished);
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        output_of(&mut initdb).context("failed to create the database files")?;
        fs::rename(&unfinished, data).with_context(|| format!("failed to create {}", data.display()))
    }
}

fn container(config: &ServersConfig, ports: &ServerPorts, identity: String) -> Container {
    let name = format!("{identity}-{NAME}");
    let options = [
        format!("--publish=127.0.0.1:{}:5432", ports.postgres),
        format!("--volume={name}:/var/lib/postgresql/data"),
        "--env=POSTGRES_HOST_AUTH_METHOD=trust".to_owned(),
        "--env=POSTGRES_INITDB_ARGS=--encoding=UTF8 --locale=C.UTF-8".to_owned(),
        "--shm-size=256m".to_owned(),
    ];
    let settings = [format!("max_connections={}", config.max_connections), "shared_buffers=256MB".to_owned()];
    Container {
        name,
        image: IMAGE,
        options: options.into(),
        arguments: settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect(),
        pid_file: config.pid_file_of(NAME),
    }
}

/// Asks the server with its own client program.
#[derive(Debug)]
struct Psql {
    command: Vec<String>,
}

impl Psql {
    fn query(&self, sql: &str) -> Result<String> {
        let Some((program, rest)) = self.command.split_first() else {
            bail!("no psql to run");
        };
        let mut psql = Command::new(program);
        without_variables(&mut psql, &["PG"]);
        psql.env("PGCONNECT_TIMEOUT", "60").args(rest);
        psql.args(["--host=127.0.0.1", "--username=postgres", "--dbname=postgres"]);
        psql.args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", sql]);
        output_of(&mut psql)
    }
}

impl Probe for Psql {
    fn is_ready(&self) -> bool {
        self.query("SELECT 1").is_ok()
    }

    /// Creates our database on the first start.
    fn finish(&self) -> Result<()> {
        let existing = self.query(&format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"))?;
        if existing.trim().is_empty() {
            self.query(&format!("CREATE DATABASE {DATABASE}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_directory_never_changes() {
        assert_eq!(identity(Path::new("/a/b")), "posthaste-363e289cb38ee0cc");
        assert_ne!(identity(Path::new("/a/c")), identity(Path::new("/a/b")));
    }
}
