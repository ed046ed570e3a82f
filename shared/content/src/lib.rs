//! Messages to people: templates, a tenant's catalogue, and messages composed from them. Nothing here does I/O.

pub mod broadcast;
pub mod catalogue;
pub mod compose;
pub mod event_messages;
pub mod template;
