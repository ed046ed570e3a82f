//! In-app notifications.

pub mod inbox;
