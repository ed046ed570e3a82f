//! Wakes the scheduler of this process when something was stored that it can release at once. A scheduler of another
//! process finds the same by its next poll.

use tokio::sync::Notify;

static STORED: Notify = Notify::const_new();

/// Wakes the scheduler; if it does not wait at the moment, it does not wait the next time.
pub fn scheduler() {
    STORED.notify_one();
}

/// Waits until the scheduler is woken.
pub async fn called() {
    STORED.notified().await;
}
