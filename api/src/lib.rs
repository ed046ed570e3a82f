//! What reads and manages: messages, templates, rules, broadcasts, webhooks, analytics, sessions, keys.

pub mod managing;
pub mod messages;
pub mod room;
pub mod schemas;
pub mod whatsapp;
