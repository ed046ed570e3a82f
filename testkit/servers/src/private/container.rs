//! A server in a container, for machines without Debian's packages but with a Docker engine.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::host::Host;
use crate::process::{self, output_of};

/// One container. Its data is in a volume of the same name, so the container itself is thrown away
/// whenever the server ends.
#[derive(Debug)]
pub(super) struct Container {
    /// Unique to our directory, so no other container ever has it.
    pub(super) name: String,
    pub(super) image: &'static str,
    /// The arguments between `docker run` and the image: ports, volume, environment.
    pub(super) options: Vec<String>,
    /// The arguments after the image.
    pub(super) arguments: Vec<String>,
    pub(super) pid_file: PathBuf,
}

/// Whether a Docker engine answers.
pub(super) fn engine_is_reachable() -> bool {
    let mut ask = Command::new("docker");
    ask.args(["version", "--format", "{{.Server.Version}}"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

impl Container {
    fn docker(&self, arguments: &[&str]) -> Result<String> {
        output_of(Command::new("docker").args(arguments))
    }

    fn state(&self, field: &str) -> Option<String> {
        let format = format!("{{{{.State.{field}}}}}");
        let answer = self.docker(&["container", "inspect", "--format", &format, &self.name]).ok()?;
        Some(answer.trim().to_owned())
    }
}

impl Host for Container {
    fn end_leftovers(&self) -> Result<()> {
        let _ = self.docker(&["stop", "-t", "10", &self.name]);
        self.kill_all()
    }

    fn erase(&self) -> Result<()> {
        // It fails when there is no such volume, which is what we want.
        let _ = self.docker(&["volume", "rm", "--force", &self.name]);
        Ok(())
    }

    fn launch(&self) -> Result<()> {
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--name", &self.name]).args(&self.options).arg(self.image).args(&self.arguments);
        output_of(&mut run)?;
        let pid = self.pid().unwrap_or_default();
        process::create_parent(&self.pid_file)?;
        std::fs::write(&self.pid_file, format!("{pid}\n"))
            .with_context(|| format!("failed to write {}", self.pid_file.display()))
    }

    fn is_running(&self) -> bool {
        self.state("Running").is_some_and(|running| running == "true")
    }

    fn pid(&self) -> Option<u32> {
        self.state("Pid")?.parse().ok().filter(|pid| *pid > 0)
    }

    /// The first process of the container is the server.
    fn signal(&self, signal: Signal) {
        let _ = self.docker(&["kill", "--signal", signal.as_str(), &self.name]);
    }

    /// Docker signals only the first process; freezing everything is a command of its own.
    fn signal_all(&self, signal: Signal) {
        match signal {
            Signal::SIGSTOP => drop(self.docker(&["pause", &self.name])),
            Signal::SIGCONT => drop(self.docker(&["unpause", &self.name])),
            other => self.signal(other),
        }
    }

    fn kill_all(&self) -> Result<()> {
        // It fails when there is no such container, which is what we want.
        let _ = self.docker(&["rm", "--force", &self.name]);
        let _ = std::fs::remove_file(&self.pid_file);
        Ok(())
    }

    fn detach(&self) {}

    fn last_words(&self) -> String {
        let log = Command::new("docker").args(["logs", "--tail", "10", &self.name]).output();
        let (out, err) = log.map(|log| (log.stdout, log.stderr)).unwrap_or_default();
        format!("the end of its log:\n{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err))
    }
}
