//! The lines that tell a person how far a command is.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

use anyhow::Result;

/// Prints lines that start with the time since the command began.
///
/// A closed terminal must not end the command before it has stopped what it started, so failing
/// writes are ignored (which is also why nothing in this crate uses `println!`).
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    silent: bool,
}

impl Progress {
    /// Prints to standard output.
    pub fn console() -> Self {
        Self { started: Instant::now(), silent: false }
    }

    /// Prints nothing: for tests.
    pub fn silent() -> Self {
        Self { started: Instant::now(), silent: true }
    }

    /// Prints one line with the elapsed time before it.
    pub fn line(&self, text: impl Display) {
        self.plain(format_args!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// Prints text as it is.
    pub fn plain(&self, text: impl Display) {
        if !self.silent {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
    }

    /// Does one step between two lines: what begins, and how long it took.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line(format_args!("{what} …"));
        let began = Instant::now();
        let done = work()?;
        self.line(format_args!("{what}: done in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(done)
    }
}
