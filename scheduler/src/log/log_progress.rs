//! The progress of this process's log writer: its current batch, since when it writes it, and how old that batch is.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use domain::{clock, contract::Event};

/// The progress of a log writer. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogProgress(Arc<Mutex<Option<Batch>>>);

/// A batch that is being written.
#[derive(Clone, Copy, Debug)]
struct Batch {
    since: Instant,
    /// The time of its oldest outcome.
    oldest: DateTime<Utc>,
}

impl LogProgress {
    /// Records that `events` are being written. Provider reports are left out, because their time says nothing about
    /// the age of the queue.
    pub fn start_batch<'a>(&self, events: impl IntoIterator<Item = &'a Event>) {
        let outcomes = events.into_iter().filter(|event| !event.report).map(|event| event.at);
        let oldest = outcomes.min().unwrap_or_else(clock::now);
        *self.lock() = Some(Batch { since: Instant::now(), oldest });
    }

    /// Records that the batch is written.
    pub fn finish_batch(&self) {
        *self.lock() = None;
    }

    /// How long the current batch has been written; zero without one.
    pub fn stuck_for(&self) -> Duration {
        self.lock().map(|batch| batch.since.elapsed()).unwrap_or_default()
    }

    /// The age of the oldest outcome in the current batch; zero without one. A queue delivers its oldest messages
    /// first, so no message in it is older.
    pub fn lag(&self) -> Duration {
        let age = self.lock().and_then(|batch| (clock::now() - batch.oldest).to_std().ok());
        age.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Batch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use domain::{Channel, DeliveryId, EventKind, TenantId};

    use super::*;

    #[test]
    fn the_lag_is_the_age_of_the_oldest_outcome_in_hand() {
        let about = (TenantId(1), DeliveryId::generate(), 1, Channel::Sms);
        let report = Event::report(about, EventKind::Delivered, clock::now() - TimeDelta::hours(9));
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let crash = Event { report: false, crash: true, at: clock::now() - TimeDelta::minutes(1), ..report.clone() };
        let log = LogProgress::default();
        log.start_batch([&crash, &report]);
        assert!(log.lag() >= minute && log.lag() < hour, "{:?}", log.lag());
        log.start_batch([&report]);
        assert!(log.lag() < minute, "what a provider reports has no age");
        log.finish_batch();
        assert_eq!(log.lag(), Duration::ZERO);
    }
}
