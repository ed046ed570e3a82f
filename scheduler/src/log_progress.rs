//! How far this process's log writer is: what it has in hand, since when, and how old that is.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use shared::{clock, contract::Event};

/// The progress of a log writer. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogProgress(Arc<Mutex<Option<Batch>>>);

/// A batch that is being written.
#[derive(Clone, Copy, Debug)]
struct Batch {
    since: Instant,
    /// When its oldest outcome came about.
    oldest: DateTime<Utc>,
}

impl LogProgress {
    /// Notes that `events` are being written. What providers report afterwards says nothing about the age of the queue.
    pub fn begin(&self, events: &[Event]) {
        let outcomes = events.iter().filter(|event| !event.report).map(|event| event.at);
        let oldest = outcomes.min().unwrap_or_else(clock::now);
        *self.lock() = Some(Batch { since: Instant::now(), oldest });
    }

    /// Notes that they are written.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// Since when the batch in hand is being written; zero without one.
    pub fn stuck_for(&self) -> Duration {
        self.lock().map(|batch| batch.since.elapsed()).unwrap_or_default()
    }

    /// How old the oldest outcome in hand is; zero without one. A queue hands out its oldest messages first, so nothing that is older
    /// than this waits in it.
    pub fn lag(&self) -> Duration {
        let age = self.lock().and_then(|batch| (clock::now() - batch.oldest).to_std().ok());
        age.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Batch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
