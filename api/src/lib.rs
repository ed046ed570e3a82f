//! HTTP handlers that read and manage: messages, dead letters, templates, rules, broadcasts, webhooks, analytics, WhatsApp
//! sessions, keys, tenants.

pub mod managing;
pub mod messages;
pub mod openapi;
pub mod quota;
pub mod whatsapp;
