//! WhatsApp.

mod media;
pub mod waha;
