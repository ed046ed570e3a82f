//! WhatsApp through WAHA: sessions and their messages.

pub mod messages;
pub mod sessions;
pub mod state;
