//! In-app notifications.

pub mod hints;
pub mod inbox;
