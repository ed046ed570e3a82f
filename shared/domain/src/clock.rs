//! The wall clock, read in one place, so that whatever depends on time can be handed a time instead.

use chrono::{DateTime, Utc};

/// The present moment.
#[expect(
    clippy::disallowed_methods,
    reason = "the one legal caller: everything else takes a time as an argument or asks here"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
