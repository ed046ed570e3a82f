//! One server and what can be done to it, for people and for tests that break things on purpose.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::host::Host;
use super::ports;
use crate::stop::Stop;

/// How long a server may take until it answers. An idle machine needs 5 s; a busy one with two cores
/// was seen to need 30, and may need ten times as long when it stands still meanwhile.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long a server may take to stop in good order; RabbitMQ with its management API needs 6 s.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// How long it may take to go after an immediate stop.
const IMMEDIATE_GRACE: Duration = Duration::from_secs(20);

/// A server that was started here. All of this works on what we started and on nothing else.
#[derive(Debug)]
pub struct Server {
    pub(super) name: &'static str,
    pub(super) version: String,
    /// The directory that its ports are remembered in.
    pub(super) dir: PathBuf,
    pub(super) ports: Vec<u16>,
    pub(super) host: Box<dyn Host>,
    pub(super) probe: Box<dyn Probe>,
    /// The signal that means "stop in good order".
    pub(super) gentle: Signal,
    pub(super) stop: Stop,
    pub(super) detached: bool,
}

/// Asks a server whether it is ready for work.
pub(super) trait Probe: fmt::Debug + Send + Sync {
    /// Whether it answers as it should.
    fn is_ready(&self) -> bool;
    /// The steps once it answers for the first time.
    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

impl Server {
    /// Starts it and waits until it answers; nothing happens if it already does. Whatever is left of
    /// an earlier run is ended first, so this also repairs a server that was killed.
    pub fn start(&self) -> Result<()> {
        if self.is_running() && self.probe.is_ready() {
            return Ok(());
        }
        self.host.end_leftovers()?;
        ports::check_free(&self.ports, self.name, &self.dir)?;
        self.host.launch()?;
        self.wait_ready()?;
        self.probe.finish()
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // Checked first: a start that is to be stopped does not succeed because the server was quick.
            self.stop.check()?;
            // Looked at before the probe, which the last time comes after the limit.
            let is_late = Instant::now() > deadline;
            if self.probe.is_ready() {
                return Ok(());
            }
            if !self.is_running() {
                bail!("{} ended instead of starting; {}", self.name, self.host.last_words());
            }
            if is_late {
                bail!("{} does not answer; {}", self.name, self.host.last_words());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it and deletes all its data; the next start begins anew.
    pub fn erase(&self) -> Result<()> {
        self.host.end_leftovers()?;
        self.host.erase()
    }

    /// Stops it in good order, waits for its end, and kills it if that takes too long.
    pub fn stop(&self) -> Result<()> {
        self.end_with(self.gentle, STOP_GRACE)
    }

    /// Stops it without tidying up: PostgreSQL's "immediate" shutdown, after which it recovers from its
    /// log; RabbitMQ halts.
    pub fn stop_immediate(&self) -> Result<()> {
        self.end_with(Signal::SIGQUIT, IMMEDIATE_GRACE)
    }

    /// Kills the whole server, helpers included, with SIGKILL: what a power cut leaves.
    pub fn kill9(&self) -> Result<()> {
        self.host.kill_all()
    }

    /// Freezes the whole server: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Ends a freeze.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal to the server and its helpers.
    pub fn signal(&self, signal: Signal) {
        self.host.signal_all(signal);
    }

    /// Whether its main process exists. It may still be starting, or frozen.
    pub fn is_running(&self) -> bool {
        self.host.is_running()
    }

    /// The process id of the server's main process.
    pub fn pid(&self) -> Option<u32> {
        self.host.pid()
    }

    /// The server's short name: `postgres` or `rabbitmq`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn end_with(&self, signal: Signal, grace: Duration) -> Result<()> {
        // A frozen process would take no other signal.
        self.host.signal_all(Signal::SIGCONT);
        self.host.signal(signal);
        self.stop.wait_until(grace, || !self.is_running());
        self.host.kill_all()
    }

    pub(super) fn stop_unless_detached(&self) -> Result<()> {
        if self.detached { Ok(()) } else { self.stop() }
    }

    pub(super) fn detach(&mut self) {
        self.detached = true;
        self.host.detach();
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop_unless_detached();
    }
}
