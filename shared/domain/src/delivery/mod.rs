//! The life of a delivery: its states, its log, and the decision what follows an attempt.

pub mod breaker;
pub mod event;
pub mod event_source;
pub mod outcome;
pub mod replay;
pub mod retry;
pub mod state;
