//! Circuit breakers.

use crate::word::words;

words!(
    /// Whether a breaker lets calls through.
    BreakerState {
        /// All of them.
        Closed = "closed",
        /// None.
        Open = "open",
        /// One, to see.
        HalfOpen = "half_open",
    }
);
