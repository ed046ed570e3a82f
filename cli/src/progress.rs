//! Progress of long work: one line on stderr, only if that is a terminal.

use std::{
    io::{self, IsTerminal, Read, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The line is written at most this often.
const STEP: Duration = Duration::from_millis(120);
/// Moves to the start of the line and empties it.
const CLEAR: &str = "\r\x1b[K";

/// A line that shows what is done and how far. It is cleared when this is dropped.
pub struct Progress {
    what: String,
    done: AtomicU64,
    total: AtomicU64,
    started: Instant,
    written: Mutex<Option<Instant>>,
    is_shown: bool,
}

/// A line while the command waits for something of unknown length.
pub fn spinner(what: &str) -> Arc<Progress> {
    bar(0, what)
}

/// A line for `total` bytes or items.
pub fn bar(total: u64, what: &str) -> Arc<Progress> {
    let progress = Arc::new(Progress {
        what: what.to_owned(),
        done: AtomicU64::new(0),
        total: AtomicU64::new(total),
        started: Instant::now(),
        written: Mutex::new(None),
        is_shown: io::stderr().is_terminal(),
    });
    progress.show();
    progress
}

impl Progress {
    /// Adds `count` to what is done.
    pub fn inc(&self, count: u64) {
        self.done.fetch_add(count, Relaxed);
        self.show();
    }

    /// Sets what is done.
    pub fn set_position(&self, done: u64) {
        self.done.store(done, Relaxed);
        self.show();
    }

    /// Sets what there is to do.
    pub fn set_length(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// Counts the bytes that are read from `source`.
    pub fn wrap_read<R: Read>(self: &Arc<Self>, source: R) -> Counted<R> {
        Counted { source, progress: Arc::clone(self) }
    }

    /// Removes the line.
    pub fn finish_and_clear(&self) {
        if self.is_shown {
            // A terminal that is gone needs no progress.
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }

    fn show(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_shown || written.is_some_and(|at| at.elapsed() < STEP) {
            return;
        }
        *written = Some(Instant::now());
        let line = line(&self.what, self.done.load(Relaxed), self.total.load(Relaxed), self.started.elapsed());
        let mut terminal = io::stderr();
        let _ = write!(terminal, "{CLEAR}{line}").and_then(|()| terminal.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish_and_clear();
    }
}

/// A source whose bytes are counted.
pub struct Counted<R> {
    source: R,
    progress: Arc<Progress>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.progress.inc(u64::try_from(length).unwrap_or_default());
        Ok(length)
    }
}

/// `total` 0: unknown. The time left assumes that the rest goes as fast as what is done.
fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    if total == 0 {
        return format!("{what} …");
    }
    let percent = done.saturating_mul(100) / total;
    let left = elapsed.as_secs().saturating_mul(total.saturating_sub(done)).checked_div(done);
    let left = left.map(|left| format!(", {left} s left")).unwrap_or_default();
    format!("{what} {done} of {total} ({percent} %){left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        assert_eq!(line("counting", 0, 0, Duration::from_secs(5)), "counting …");
        assert_eq!(line("moving letters", 0, 8, Duration::ZERO), "moving letters 0 of 8 (0 %)");
        assert_eq!(line("encrypting", 50, 200, Duration::from_secs(10)), "encrypting 50 of 200 (25 %), 30 s left");
    }

    #[test]
    fn bytes_that_are_read_are_counted() {
        let progress = bar(3, "importing");
        let mut text = String::new();
        progress.wrap_read("abc".as_bytes()).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), progress.done.load(Relaxed)), ("abc", 3));
    }
}
