//! Everything that carries a channel: one vendor, one file.

#[cfg(test)]
mod conformance;
pub mod email;
pub mod in_app;
pub mod sandbox;
pub mod vendor;
pub mod webhook;
pub mod whatsapp;
