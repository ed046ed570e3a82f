//! WhatsApp through WAHA: sessions, and messages that one of them carries.

pub mod carrier;
pub mod messages;
pub mod sessions;
