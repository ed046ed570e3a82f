//! Child processes: started apart from the terminal, found again, and ended by id.
//!
//! A process id alone proves nothing, because the number may belong to another process by now. So nothing
//! here signals a process that it did not start itself, unless a [`Mark`] shows that it is ours.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::environment;
use crate::stop::Stop;

/// How long killed processes may take to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// A running child with its log and its file of the process id.
///
/// It leads a process group of its own, so that Ctrl-C in the terminal reaches only us and we decide
/// in which order things end. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid_file: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`, and writes the process id to `pid_file`.
    pub fn spawn(mut command: Command, log: &Path, pid_file: &Path) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        create_parent(log)?;
        create_parent(pid_file)?;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output).process_group(0);
        let child = command.spawn().with_context(|| format!("failed to start {program}"))?;
        let process = Self { child, pid_file: pid_file.to_owned() };
        fs::write(pid_file, format!("{}\n", process.pid()))
            .with_context(|| format!("failed to write {}", pid_file.display()))?;
        Ok(process)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or nothing while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether it runs (a stopped process counts as running).
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends a signal to this process alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            send(self.pid(), signal);
        }
    }

    /// Asks it to end with `signal`, gives it `grace`, then kills it. Returns whether it went by itself.
    pub fn end(&mut self, signal: Signal, grace: Duration, stop: &Stop) -> bool {
        self.signal(signal);
        let gone = stop.wait_until(grace, || !self.is_running());
        self.kill();
        gone
    }

    /// Kills it, waits for its end and removes the file of its process id.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.pid_file);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end in a process group of its own; a stop that is asked for meanwhile ends the
/// whole group. It has no input: a group that is not the terminal's own may not read from it.
pub fn run(command: &mut Command, stop: &Stop) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("failed to start {program}"))?;
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let wish = wanted_signal(stop);
        if wish.is_some() && wish != told {
            signal_group(child.id(), wish);
            told = wish;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wanted_signal(stop: &Stop) -> Option<Signal> {
    if stop.forced() { Some(Signal::SIGKILL) } else { stop.requested().then_some(Signal::SIGTERM) }
}

fn signal_group(leader: u32, signal: Option<Signal>) {
    if let (Ok(leader), Some(signal)) = (i32::try_from(leader), signal) {
        let _ = killpg(Pid::from_raw(leader), signal);
    }
}

/// Runs a short command and returns what it printed; a failure carries what it said.
pub fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name is on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = environment::get("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Sends a signal; false when there is no such process, or it is not ours to signal.
pub fn send(pid: u32, signal: Signal) -> bool {
    i32::try_from(pid).is_ok_and(|pid| pid > 0 && kill(Pid::from_raw(pid), signal).is_ok())
}

/// The process id in a file, if there is one.
pub fn read_pid(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The last `lines` of a log, indented, for an error message.
pub fn log_tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let tail: Vec<String> =
        all.iter().skip(all.len().saturating_sub(lines)).map(|line| format!("    {line}")).collect();
    format!("the end of {}:\n{}", log.display(), tail.join("\n"))
}

/// The mark that proves that a process belongs to one of our directories. It is read from `/proc`; where that
/// does not exist nothing is ever found, and so nothing is ever killed by mistake.
#[derive(Clone, Debug)]
pub enum Mark {
    /// The program's name, and a word of its command line. Every account may read these, also in a container
    /// whose root may not look into the processes of other accounts.
    CommandLine {
        /// The name of the program (`/proc/<pid>/comm`).
        program: &'static str,
        /// A part of the command line that no other process has.
        word: String,
    },
    /// An exact `NAME=value` of its environment, which its children inherit.
    Environment(String),
    /// One of these executables, also after a build has replaced the file.
    Program(Vec<PathBuf>),
}

impl Mark {
    /// Whether this process carries the mark. A process that has ended and waits to be reaped does not.
    pub fn is_on(&self, pid: u32) -> bool {
        let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        match self {
            Self::CommandLine { program, word } => {
                read("comm").trim_ascii_end() == program.as_bytes() && contains(&read("cmdline"), word.as_bytes())
            }
            Self::Environment(entry) => read("environ").split(|byte| *byte == 0).any(|found| found == entry.as_bytes()),
            Self::Program(files) => program_of(pid).is_some_and(|program| files.contains(&program)),
        }
    }

    /// Every process that carries the mark.
    pub fn processes(&self) -> Vec<u32> {
        all_processes().into_iter().filter(|pid| self.is_on(*pid)).collect()
    }

    /// Sends a signal to every process that carries the mark.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            send(pid, signal);
        }
    }

    /// Kills every process that carries the mark, also those that are born meanwhile, and waits until
    /// none is left.
    pub fn kill_all(&self) -> Result<()> {
        let mut killed = BTreeSet::new();
        let gone = || {
            let alive = self.processes();
            for pid in &alive {
                send(*pid, Signal::SIGKILL);
            }
            killed.extend(&alive);
            alive.is_empty() && !killed.iter().any(|pid| is_dying(*pid))
        };
        // Not the caller's `Stop`: a person in a hurry wants the dead bodies gone as well.
        if !Stop::default().wait_until(KILL_LIMIT, gone) {
            bail!("processes {:?} do not end although they were killed", self.processes());
        }
        Ok(())
    }
}

/// Whether a process has let go of its command line and not of everything yet: shared memory, for one, goes later, and
/// PostgreSQL does not start beside what still holds it.
fn is_dying(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let has_ended = state.is_none_or(|state| matches!(state, 'Z' | 'X'));
    !has_ended && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

/// The file that a process executes. Linux adds a word to the path once the file is gone.
fn program_of(pid: u32) -> Option<PathBuf> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let path = program.to_str()?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path).into())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len().max(1)).any(|window| window == needle)
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect()
}

/// Creates the directory that a file is going to live in.
pub fn create_parent(file: &Path) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))
}

/// Takes away every variable whose name starts with one of `prefixes`, so that settings of the person's
/// own servers do not leak into private ones.
pub fn without_variables(command: &mut Command, prefixes: &[&str]) {
    let foreign = |name: &OsString| prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
    for name in environment::names().into_iter().filter(foreign) {
        command.env_remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_finds_only_the_process_that_carries_it() -> Result<()> {
        let entry = format!("XTASK_MARK_TEST={}", crate::random::secret()?);
        let (name, value) = entry.split_once('=').context("no value")?;
        let mark = Mark::Environment(entry.clone());
        let mut marked = Command::new("sleep").arg("600").env(name, value).spawn()?;
        let mut stranger = Command::new("sleep").arg("600").spawn()?;
        assert!(Stop::default().wait_until(KILL_LIMIT, || mark.is_on(marked.id())));
        assert_eq!(mark.processes(), [marked.id()]);
        let reaper = std::thread::spawn(move || marked.wait());
        mark.kill_all()?;
        assert!(reaper.join().is_ok());
        assert!(stranger.try_wait()?.is_none(), "the stranger still runs");
        stranger.kill()?;
        stranger.wait()?;
        Ok(())
    }

    #[test]
    fn a_stop_ends_a_running_command() -> Result<()> {
        let stop = Stop::default();
        stop.request();
        let status = run(Command::new("sleep").arg("600"), &stop)?;
        assert!(!status.success());
        Ok(())
    }
}
