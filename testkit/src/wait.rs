//! Waiting on a condition, with a deadline, instead of sleeping.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Asks `probe` again and again until it gives something, or fails after `limit` naming `what`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        // Asked once more after the limit: the machine may have stood still since the last time.
        let is_last = start.elapsed() >= limit;
        if let Some(found) = probe().await {
            return Ok(found);
        }
        anyhow::ensure!(!is_last, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
