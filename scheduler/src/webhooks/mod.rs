//! Webhooks that come in, and events that go out to webhook configurations.

pub mod holds;
pub mod inbound_webhooks;
pub mod provider_events;
pub mod waha_events;
pub mod waha_sessions;
pub mod webhook_events;
