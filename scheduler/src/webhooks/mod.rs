//! Inbound webhooks of providers and WAHA, and events for webhook configurations.

pub mod holds;
pub mod inbound_webhooks;
pub mod provider_events;
pub mod waha_events;
pub mod waha_sessions;
pub mod webhook_events;
