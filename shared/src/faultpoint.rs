//! Named points at which a fault test has the process die, as if by `kill -9`.
//!
//! `POSTHASTE_ABORT_AT=after_claim:17` aborts at the 17th pass of `after_claim`. Unset, a point costs one atomic load.
//! The points are where a crash is most interesting: right before and right after each write that matters.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// Right before the accept batch is committed.
pub const BEFORE_COMMIT: &str = "before_commit";
/// After the commit, before any client gets a 202.
pub const AFTER_COMMIT: &str = "after_commit";
/// After the 202 may have gone out, before the work is published.
pub const BEFORE_PUBLISH: &str = "before_publish";
/// After the broker confirmed the work, before the outbox row says so.
pub const AFTER_PUBLISH: &str = "after_publish";
/// After the claim, before the provider is called.
pub const AFTER_CLAIM: &str = "after_claim";
/// After the provider answered, before anything is recorded.
pub const AFTER_PROVIDER: &str = "after_provider";
/// After the outcome is confirmed, before the work is acknowledged.
pub const AFTER_EVENT: &str = "after_event";
/// After due rows were released, before they are published.
pub const AFTER_RELEASE: &str = "after_release";
/// After a log batch was committed, before it is acknowledged.
pub const AFTER_RECORD: &str = "after_record";
/// After a page of a broadcast was accepted, before that and its cursor are committed.
pub const WITHIN_PAGE: &str = "within_page";
/// After the commit of a page of a broadcast.
pub const AFTER_PAGE: &str = "after_page";

/// After what a window became was written down, before it is committed.
pub const BEFORE_CLOSE: &str = "before_close";
/// After a window was closed, before what it became is published.
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

/// Arms the point that `spec` names, `point` or `point:n`; says what is wrong with it otherwise. Once per process.
pub fn arm(spec: &str) -> Result<(), String> {
    let (name, passes) = spec.split_once(':').unwrap_or((spec, "1"));
    let point = ALL.iter().find(|point| **point == name).ok_or_else(|| format!("one of {}", ALL.join(", ")))?;
    let passes = passes.parse().map_err(|_| "a point, or a point and a count such as after_claim:17".to_owned())?;
    // A second call would be the same setting again.
    let _ = ARMED.set(Armed { point, passes_left: AtomicU32::new(passes) });
    Ok(())
}

/// Passes a point: dies here if it is the armed one and its count is up.
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
