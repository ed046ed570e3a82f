//! The harness of the end-to-end tests: real servers, real processes, sinks that play the outside world.
//!
//! A [`Stack`] is one Posthaste with a database and a virtual host of its own, run from the built binaries; its processes
//! are killed when it is dropped. [`check::ledger`] compares what was accepted with what arrived and with the log.

pub mod amqp;
pub mod api;
pub mod check;
pub mod disk;
pub mod half_answers;
pub mod live;
pub mod network;
pub mod oracle;
pub mod patient;
pub mod programs;
pub mod proxy;
pub mod push;
pub mod rules;
pub mod stack;
pub mod template;
pub mod test_servers;
pub mod waha;
pub mod wait;

pub use api::Api;
pub use live::{Live, Opening};
pub use network::Network;
pub use servers::sinks::{
    http::{HttpSink, Reply},
    smtp::{self, SmtpSink},
};
pub use stack::{Role, Stack};
pub use test_servers::TestServers;
pub use waha::Waha;
pub use wait::eventually;

/// A variable of the environment, as `cargo xtask test` set it.
fn setting(name: &str) -> Option<String> {
    runtime::config::environment().remove(name)
}
