//! WhatsApp by WAHA: sessions, sending, receiving.

mod waha_client;
mod whatsapp_inbound;
mod whatsapp_sending;
