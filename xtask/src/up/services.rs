//! The platform's own processes: one for everything, or one for each service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use servers::{
    http,
    private::Ports,
    process::{self, Mark, Process},
    stop::Stop,
};

use crate::cargo::{self, Profile};

use super::settings::Settings;

/// How long a service may take until it is ready; it connects and checks the schema.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a service may take to finish what it has begun. It promises twenty seconds.
const STOP_GRACE: Duration = Duration::from_secs(22);

/// The possible names in `.local/pids`, each with its program.
const PROGRAMS: [(&str, &str); 4] = [
    ("posthaste", "posthaste"),
    ("ingest", "posthaste-ingest"),
    ("worker", "posthaste-worker"),
    ("scheduler", "posthaste-scheduler"),
];

/// One service process.
pub(super) struct Service {
    pub(super) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    environment: Vec<(&'static str, String)>,
    /// Answers 200 once the service is ready for work.
    ready_url: String,
    log: PathBuf,
    pid_file: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Service {
    /// Starts the process; whether it is ready is not waited for.
    pub(super) fn start(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        // The old one goes first, since going removes the file of the process id.
        drop(self.process().take());
        *self.process() = Some(Process::spawn(command, &self.log, &self.pid_file)?);
        Ok(())
    }

    pub(super) fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(Process::is_running)
    }

    fn wait_ready(&self, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while !http::get(&self.ready_url, None).is_ok_and(|answer| answer.status == 200) {
            stop.check()?;
            if !self.is_running() {
                bail!("{} ended instead of starting; {}", self.name, process::log_tail(&self.log, 20));
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {READY_LIMIT:?}; {}", self.name, process::log_tail(&self.log, 20));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn end(&self, stop: &Stop) {
        if let Some(mut process) = self.process().take() {
            process.end(Signal::SIGTERM, STOP_GRACE, stop);
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All services of a run. Dropping them ends them in good order.
pub(super) struct Services {
    all: Vec<Service>,
    stop: Stop,
}

impl Services {
    /// Describes the processes; nothing is started yet.
    pub(super) fn plan(
        local: &Path,
        programs: &Path,
        settings: &Settings,
        separate: bool,
        stop: &Stop,
    ) -> Result<Self> {
        let planner = Planner { local, programs, settings };
        if !separate {
            let all = vec![planner.service("posthaste", "posthaste", &["run"], None)];
            return Ok(Self { all, stop: stop.clone() });
        }
        // Beside the API, the others answer only questions about their health; any port will do.
        let mut ports = Ports::open(local);
        let (worker, scheduler) = (ports.free("worker")?, ports.free("scheduler")?);
        let all = vec![
            planner.service("ingest", "posthaste-ingest", &[], None),
            planner.service("worker", "posthaste-worker", &[], Some(worker)),
            planner.service("scheduler", "posthaste-scheduler", &[], Some(scheduler)),
        ];
        Ok(Self { all, stop: stop.clone() })
    }

    /// Starts all of them at once and waits until each is ready.
    pub(super) fn start_all(&self) -> Result<()> {
        self.iter().try_for_each(Service::start)?;
        self.iter().try_for_each(|service| service.wait_ready(&self.stop))
    }

    /// Ends all of them at once, in good order while time allows.
    pub(super) fn end_all(&self) {
        std::thread::scope(|scope| {
            for service in self.iter() {
                scope.spawn(|| service.end(&self.stop));
            }
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.all.iter()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// The parts that all services share.
struct Planner<'a> {
    local: &'a Path,
    programs: &'a Path,
    settings: &'a Settings,
}

impl Planner<'_> {
    /// A service on the API's address, or on a loopback port of its own.
    fn service(
        &self,
        name: &'static str,
        program: &str,
        arguments: &'static [&'static str],
        port: Option<u16>,
    ) -> Service {
        let mut environment: Vec<_> = self.settings.values.clone().into_iter().collect();
        let mut base = self.settings.api_url.clone();
        if let Some(port) = port {
            environment.extend([("HOST", "127.0.0.1".to_owned()), ("PORT", port.to_string())]);
            base = format!("http://127.0.0.1:{port}");
        }
        Service {
            name,
            program: self.programs.join(program),
            arguments,
            environment,
            ready_url: format!("{base}/health/ready"),
            log: self.local.join("logs").join(name).with_extension("log"),
            pid_file: pid_file(self.local, name),
            process: Mutex::new(None),
        }
    }
}

fn pid_file(local: &Path, name: &str) -> PathBuf {
    local.join("pids").join(name)
}

/// Ends services that a killed run left behind: processes that it wrote down and that run the program which
/// belongs to that name.
pub(super) fn end_leftovers(local: &Path, stop: &Stop) {
    for (name, program) in PROGRAMS {
        let file = pid_file(local, name);
        let profiles = [Profile::Dev, Profile::Release];
        let mark = Mark::Program(profiles.map(|profile| cargo::program_dir(profile).join(program)).into());
        if let Some(pid) = process::read_pid(&file).filter(|pid| mark.is_on(*pid)) {
            end_leftover(pid, &mark, stop);
        }
        let _ = fs::remove_file(file);
    }
}

fn end_leftover(pid: u32, mark: &Mark, stop: &Stop) {
    for signal in [Signal::SIGCONT, Signal::SIGTERM] {
        process::send(pid, signal);
    }
    if !stop.wait_until(STOP_GRACE, || !mark.is_on(pid)) {
        process::send(pid, Signal::SIGKILL);
        stop.wait_until(STOP_GRACE, || !mark.is_on(pid));
    }
}
