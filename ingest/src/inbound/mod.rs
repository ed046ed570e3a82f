//! Inbound webhooks of WAHA and of providers, and the links of tracked mails.

pub mod provider_events;
pub mod tracking;
pub mod waha;
