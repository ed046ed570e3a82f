//! The broker as a part of a process.

use runtime::probe::{Checking, Health, Part};

use crate::Broker;

/// The broker as a part: consumers need it, acceptance works without it.
pub struct BrokerPart {
    /// The connection.
    pub broker: Broker,
    /// Whether the process cannot work without it.
    pub needed: bool,
}

impl Part for BrokerPart {
    fn name(&self) -> &'static str {
        "broker"
    }

    fn check(&self) -> Checking<'_> {
        let health = match self.broker.is_usable() {
            true => Health::Up,
            false if self.needed => Health::Down(self.broker.state().to_string()),
            false => Health::Degraded(self.broker.state().to_string()),
        };
        Box::pin(std::future::ready(health))
    }
}
