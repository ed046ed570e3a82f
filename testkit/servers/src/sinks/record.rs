//! The records of a sink, and waiting for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::watch;

/// The most entries that are kept; the oldest go first. Enough for every load test, and a bound for a
/// sink that runs for weeks.
const KEPT_MAX: usize = 1_000_000;

/// Entries in the order of their arrival.
#[derive(Debug)]
pub(super) struct Record<T> {
    entries: Mutex<VecDeque<Arc<T>>>,
    /// The number of entries, for those who wait.
    count: watch::Sender<usize>,
}

impl<T> Default for Record<T> {
    fn default() -> Self {
        Self { entries: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl<T> Record<T> {
    pub(super) fn add(&self, entry: T) {
        let mut entries = self.entries();
        if entries.len() == KEPT_MAX {
            entries.pop_front();
        }
        entries.push_back(Arc::new(entry));
        self.count.send_replace(entries.len());
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.entries().iter().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.entries().clear();
        self.count.send_replace(0);
    }

    /// Waits until there are `wanted` entries, and returns all that are there by then.
    pub(super) async fn wait_for(&self, wanted: usize, limit: Duration) -> Result<Vec<Arc<T>>> {
        let mut count = self.count.subscribe();
        let enough = count.wait_for(|count| *count >= wanted);
        if tokio::time::timeout(limit, enough).await.is_err() {
            bail!("expected {wanted} within {limit:?}, but only {} arrived", self.entries().len());
        }
        Ok(self.all())
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Arc<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
