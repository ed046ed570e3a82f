//! Due work: deliveries are published to the broker; digests and broadcasts become messages; deliveries expire.

pub mod broadcasts;
pub mod digests;
pub mod due;
pub mod expiry;
pub mod lines;
pub mod outbox;
