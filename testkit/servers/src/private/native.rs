//! A server as a process of this machine.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::host::Host;
use crate::process::{self, Mark, Process};
use crate::stop::Stop;

/// How long a leftover may take to stop in good order before it is killed.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// Starts the server's program and knows its processes by their mark.
pub(super) struct Native {
    /// Where the data is.
    pub(super) data: PathBuf,
    /// Prepares the start; does nothing if all is prepared.
    pub(super) prepare: Box<dyn Fn() -> Result<()> + Send + Sync>,
    pub(super) command: Box<dyn Fn() -> Command + Send + Sync>,
    pub(super) mark: Mark,
    pub(super) gentle: Signal,
    pub(super) log: PathBuf,
    pub(super) pid_file: PathBuf,
    pub(super) running: Mutex<Option<Process>>,
}

impl Native {
    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Native {
    fn end_leftovers(&self) -> Result<()> {
        if let Some(main) = process::read_pid(&self.pid_file).filter(|pid| self.mark.is_on(*pid)) {
            self.mark.signal(Signal::SIGCONT);
            process::send(main, self.gentle);
            Stop::default().wait_until(LEFTOVER_GRACE, || !self.is_running() && !self.mark.is_on(main));
        }
        self.kill_all()
    }

    fn erase(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to delete {}", self.data.display()))
            }
            _ => Ok(()),
        }
    }

    fn launch(&self) -> Result<()> {
        (self.prepare)()?;
        *self.running() = Some(Process::spawn((self.command)(), &self.log, &self.pid_file)?);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.running().as_mut().is_some_and(Process::is_running)
    }

    fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Process::pid)
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.running().as_mut() {
            process.signal(signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        self.mark.signal(signal);
    }

    /// The main process goes first, so that it starts no new helpers; dropping it also reaps it.
    fn kill_all(&self) -> Result<()> {
        drop(self.running().take());
        self.mark.kill_all()
    }

    fn detach(&self) {
        std::mem::forget(self.running().take());
    }

    fn last_words(&self) -> String {
        process::log_tail(&self.log, 10)
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("mark", &self.mark).field("pid", &self.pid()).finish_non_exhaustive()
    }
}
