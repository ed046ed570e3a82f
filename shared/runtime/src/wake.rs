//! Wakes the scheduler of this process after a write that it can act on at once. Schedulers of other processes find the same
//! rows with their next poll.

use tokio::sync::Notify;

static STORED: Notify = Notify::const_new();

/// Wakes the scheduler. If it is busy at the moment, its next wait returns at once.
pub fn scheduler() {
    STORED.notify_one();
}

/// Waits for the next call of [`scheduler`].
pub async fn called() {
    STORED.notified().await;
}
