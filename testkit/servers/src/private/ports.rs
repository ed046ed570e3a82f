//! Ports of our own: chosen once, remembered in the directory, checked before use.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::env_file::EnvFile;
use crate::random;

/// Below the range from which systems take the local ports of outgoing connections (32768 and up on
/// Linux), so that no passing client can sit on a remembered port.
const CHOICE: (u16, u16) = (15_000, 32_000);

/// How many random ports are tried before giving up; even on a busy machine nearly all are free.
const TRIES: usize = 100;

/// How long the ports of processes that were just ended may stay taken.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// The ports that this process was given: files whose locks end with it.
static GIVEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The remembered ports of one directory (the file `ports` in it).
#[derive(Debug)]
pub struct Ports(EnvFile);

impl Ports {
    /// The ports of a directory.
    pub fn open(dir: &Path) -> Self {
        Self(EnvFile::open(&dir.join("ports")))
    }

    /// The port of that name: the one of the last run, even if another process uses it now, or a new one.
    pub fn remembered(&mut self, name: &str) -> Result<u16> {
        match self.known(name) {
            Some(port) => {
                // Kept from others while its server is down; it may be ours already.
                claim(port);
                Ok(port)
            }
            None => self.choose(name),
        }
    }

    /// The port of that name, or another one if another process uses it now.
    pub fn free(&mut self, name: &str) -> Result<u16> {
        match self.known(name).filter(|port| is_free(*port)) {
            Some(port) => Ok(port),
            None => self.choose(name),
        }
    }

    fn known(&self, name: &str) -> Option<u16> {
        self.0.get(name)?.parse().ok()
    }

    fn choose(&mut self, name: &str) -> Result<u16> {
        let port = find_free()?;
        self.0.set([(name, port.to_string())])?;
        Ok(port)
    }
}

/// The five ports that the two servers need.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerPorts {
    pub(super) postgres: u16,
    pub(super) amqp: u16,
    pub(super) management: u16,
    /// Erlang nodes talk to each other here; two nodes on one machine must not share it.
    pub(super) distribution: u16,
    /// Erlang's name server; a private one keeps nodes of other people out of sight.
    pub(super) epmd: u16,
}

impl ServerPorts {
    pub(super) fn choose(ports: &mut Ports) -> Result<Self> {
        Ok(Self {
            postgres: ports.remembered("postgres")?,
            amqp: ports.remembered("amqp")?,
            management: ports.remembered("management")?,
            distribution: ports.remembered("distribution")?,
            epmd: ports.remembered("epmd")?,
        })
    }
}

/// A port without a listener, which this function gives to no other process as long as this one lives: the port stays ours
/// between the choice and the listening, and while its server is down.
pub fn find_free() -> Result<u16> {
    for _ in 0..TRIES {
        let port = random::port_between(CHOICE.0, CHOICE.1)?;
        if claim(port) && is_free(port) {
            return Ok(port);
        }
    }
    bail!("found no free port between {} and {}", CHOICE.0, CHOICE.1)
}

/// Takes a port for this process; false if another one has it. Where nothing can be locked, chance has to do.
fn claim(port: u16) -> bool {
    let dir = std::env::temp_dir().join("posthaste-ports");
    let file = fs::create_dir_all(&dir)
        .and_then(|()| File::options().create(true).append(true).open(dir.join(port.to_string())));
    let Ok(file) = file else { return true };
    if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
        return false;
    }
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    true
}

/// Whether a server could listen on this port of the loopback interface.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Fails in plain words when one of the ports is taken, and stays so: the sockets of a killed process close a moment
/// after it is gone, and a child that is just being started holds for a moment what its parent looks at.
pub(super) fn check_free(ports: &[u16], server: &str, dir: &Path) -> Result<()> {
    let since = Instant::now();
    while let Some(port) = ports.iter().find(|port| !is_free(**port)) {
        if since.elapsed() >= CLOSE_GRACE {
            bail!(
                "port {port} of our {server} is taken by another program; stop that program, or delete {} to have new \
                 ports chosen",
                dir.join("ports").display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Fails in plain words when an address that a person chose is taken or unusable.
pub fn check_address(host: &str, port: u16) -> Result<()> {
    match TcpListener::bind((host, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("port {port} is taken by another program; stop it, or choose another port with --port")
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {host} port {port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_remembered_and_left_when_somebody_takes_it() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("servers-ports-{}", std::process::id()));
        let given = find_free()?;
        assert!(!claim(given), "it is given once");
        let first = Ports::open(&dir).free("a")?;
        assert_eq!(Ports::open(&dir).free("a")?, first);
        let _squatter = TcpListener::bind((Ipv4Addr::LOCALHOST, first))?;
        assert!(check_free(&[first], "a", &dir).is_err());
        assert_eq!(Ports::open(&dir).remembered("a")?, first);
        assert_ne!(Ports::open(&dir).free("a")?, first);
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }
}
