//! Everything that carries a channel: one vendor, one file.

pub mod aws;
#[cfg(test)]
mod conformance;
pub mod email;
pub mod in_app;
pub mod push;
pub mod sandbox;
pub mod sms;
pub mod vendor;
pub mod webhook;
pub mod whatsapp;
