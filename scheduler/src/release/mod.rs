//! Work that becomes due: it goes to the broker, or becomes messages.

pub mod broadcasts;
pub mod digests;
pub mod due;
pub mod expiry;
pub mod lines;
pub mod outbox;
