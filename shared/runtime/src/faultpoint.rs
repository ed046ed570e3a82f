//! Named points at which a fault test aborts the process, as `kill -9` would.
//!
//! `POSTHASTE_ABORT_AT=after_claim:17` aborts at the 17th pass of `after_claim`. If it is not set, a point costs one atomic load.
//! The points lie right before and right after each important write, where a crash is most likely to show a bug.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// Right before the accept batch is committed.
pub const BEFORE_COMMIT: &str = "before_commit";
/// After the commit, before any client gets a 202.
pub const AFTER_COMMIT: &str = "after_commit";
/// After the 202 may have been sent, before the work is published.
pub const BEFORE_PUBLISH: &str = "before_publish";
/// After the broker confirmed the work, before the outbox row is marked.
pub const AFTER_PUBLISH: &str = "after_publish";
/// After the claim, before the provider is called.
pub const AFTER_CLAIM: &str = "after_claim";
/// After the provider answered, before anything is recorded.
pub const AFTER_PROVIDER: &str = "after_provider";
/// After the outcome is confirmed, before the work is acknowledged.
pub const AFTER_EVENT: &str = "after_event";
/// After due rows were released, before they are published.
pub const AFTER_RELEASE: &str = "after_release";
/// After the log writer committed a batch of events, before it acknowledges them.
pub const AFTER_RECORD: &str = "after_record";
/// After a page of a broadcast was accepted, before the page and the broadcast's cursor are committed.
pub const WITHIN_PAGE: &str = "within_page";
/// After a page of a broadcast was committed.
pub const AFTER_PAGE: &str = "after_page";

/// After the delivery made from a digest window was written, before it is committed.
pub const BEFORE_CLOSE: &str = "before_close";
/// After a digest window was closed, before the delivery made from it is published.
pub const AFTER_CLOSE: &str = "after_close";

/// Every point, for the settings check and the fault tests.
pub const ALL: &[&str] = &[
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_PUBLISH,
    AFTER_PUBLISH,
    AFTER_CLAIM,
    AFTER_PROVIDER,
    AFTER_EVENT,
    AFTER_RELEASE,
    AFTER_RECORD,
    BEFORE_CLOSE,
    AFTER_CLOSE,
    WITHIN_PAGE,
    AFTER_PAGE,
];

struct Armed {
    point: &'static str,
    passes_left: AtomicU32,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Arms the point that `spec` names (`point` or `point:n`). If `spec` is invalid, the error says what it should be.
/// Only the first call of a process has an effect.
pub fn arm(spec: &str) -> Result<(), String> {
    let (name, passes) = spec.split_once(':').unwrap_or((spec, "1"));
    let point = ALL.iter().find(|point| **point == name).ok_or_else(|| format!("one of {}", ALL.join(", ")))?;
    let passes = passes.parse().map_err(|_| "a point, or a point and a count such as after_claim:17".to_owned())?;
    // A second call comes from the same setting, so it can be ignored.
    let _ = ARMED.set(Armed { point, passes_left: AtomicU32::new(passes) });
    Ok(())
}

/// Passes a point. Aborts the process if this point is armed and its count has run out.
pub fn pass(point: &'static str) {
    if let Some(armed) = ARMED.get()
        && armed.point == point
        && armed.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_unknown_point_is_refused_with_the_known_ones() {
        assert!(super::arm("nowhere").unwrap_err().contains("after_claim"));
        assert!(super::arm("after_claim:x").is_err());
    }
}
