//! The wall clock. It is read here only, so a rule that depends on time takes the time as an argument.

use chrono::{DateTime, Utc};

/// The present moment.
#[expect(
    clippy::disallowed_methods,
    reason = "the one legal caller: everything else takes a time as an argument or asks here"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
