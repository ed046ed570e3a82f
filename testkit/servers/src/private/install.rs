//! Installing what is missing, or falling back to containers. Whatever is going to happen is said first.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::find::{self, PostgresPrograms, RabbitmqPrograms};
use super::{ServersConfig, container};
use crate::process::{self, on_path};
use crate::progress::Progress;
use crate::stop::Stop;

/// Whether missing servers may be installed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Install {
    /// With Debian's packages, as root or with a `sudo` that asks for no password.
    Allowed,
    /// Not at all: a missing server is an error.
    Refused,
}

/// The programs of this machine; a server without programs runs in a container.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) postgres: Option<PostgresPrograms>,
    pub(super) rabbitmq: Option<RabbitmqPrograms>,
}

impl Located {
    fn look(config: &ServersConfig) -> Result<Self> {
        // Without /proc our processes cannot be distinguished from others; a container is used there.
        if !cfg!(target_os = "linux") {
            return Ok(Self { postgres: None, rabbitmq: None });
        }
        Ok(Self { postgres: find::postgres(data_major(config))?, rabbitmq: find::rabbitmq()? })
    }

    /// The Debian packages of what is not there.
    fn missing_packages(&self) -> Vec<&'static str> {
        let postgres = self.postgres.is_none().then_some("postgresql");
        let rabbitmq = self.rabbitmq.is_none().then_some("rabbitmq-server");
        postgres.into_iter().chain(rabbitmq).collect()
    }
}

/// The major version of PostgreSQL that made the data, if there is any.
fn data_major(config: &ServersConfig) -> Option<u32> {
    fs::read_to_string(super::postgres::data_dir(&config.dir).join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Finds both servers; installs the missing ones; else leaves them to a Docker engine.
pub(super) fn find_or_install(config: &ServersConfig, progress: &Progress) -> Result<Located> {
    let found = Located::look(config)?;
    let packages = found.missing_packages();
    if packages.is_empty() {
        return Ok(found);
    }
    let names = packages.join(" and ");
    if config.install == Install::Refused {
        bail!(
            "{names} not found, and installing is not allowed here; install it (apt-get install {}), or name servers \
             of your own in DATABASE_URL and AMQP_URL",
            packages.join(" ")
        );
    }
    if let Some(apt) = AptGet::usable() {
        progress.line("(Debian may also start its own instances on the standard ports; Posthaste does not use them)");
        apt.install(&packages, progress, &config.stop)?;
        return complete(Located::look(config)?);
    }
    if container::engine_is_reachable() {
        progress.line(format_args!("{names} not found: running containers on the Docker engine instead"));
        return Ok(found);
    }
    bail!(
        "{names} not found, and neither apt-get (as root or with sudo) nor a Docker engine is usable; install \
         PostgreSQL 15 and RabbitMQ 3.10 or newer, or name servers of your own in DATABASE_URL and AMQP_URL"
    )
}

fn complete(found: Located) -> Result<Located> {
    match found.missing_packages().as_slice() {
        [] => Ok(found),
        missing => bail!("{} still not found after installing; see what apt-get said above", missing.join(" and ")),
    }
}

/// Debian's package manager, with the rights to use it.
pub struct AptGet {
    /// The words before the command: none for root.
    prefix: &'static [&'static str],
}

impl AptGet {
    /// Usable by root, or with a `sudo` that asks for no password.
    pub fn usable() -> Option<Self> {
        on_path("apt-get")?;
        if nix::unistd::geteuid().is_root() {
            return Some(Self { prefix: &[] });
        }
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sudo.status().is_ok_and(|status| status.success()).then_some(Self { prefix: &["sudo", "-n"] })
    }

    /// Installs packages. A failed update is no reason to give up, since the lists that are there may do.
    pub fn install(&self, packages: &[&str], progress: &Progress, stop: &Stop) -> Result<()> {
        progress.line(format_args!("installing Debian packages with apt-get: {}", packages.join(" ")));
        let _ = self.run(&["update", "-qq"], stop)?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(packages);
        if !self.run(&arguments, stop)? {
            bail!("apt-get could not install {}; its messages are above", packages.join(" "));
        }
        Ok(())
    }

    fn run(&self, arguments: &[&str], stop: &Stop) -> Result<bool> {
        let command = [self.prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], arguments].concat();
        let Some((program, rest)) = command.split_first() else {
            bail!("no command to run");
        };
        let status = process::run(Command::new(program).args(rest), stop)?;
        stop.check()?;
        Ok(status.success())
    }
}
