//! WhatsApp.

pub mod waha;
