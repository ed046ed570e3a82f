//! Turns a validated request into an accepted message: finds its session and addresses, builds its rows, commits them. HTTP and
//! AMQP share it.

pub mod accept;
pub mod envelope;
pub mod fair_share;
pub mod http;
pub mod idempotency;
pub mod openapi;
pub mod pipeline;
pub mod rendering;
pub mod session;
pub mod state;

pub use state::Submissions;

/// `source` of messages that came over HTTP.
pub const HTTP: &str = "http";
/// `source` of messages that came over AMQP.
pub const AMQP: &str = "amqp";
