//! Webhook configurations, and the guard of their addresses.

mod webhook_configurations;
mod webhook_guard;
