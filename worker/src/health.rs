//! Whether the worker takes deliveries: a process that is alive but consumes nothing looks healthy from outside.

use std::sync::Arc;

use shared::{
    amqp::ConsumerHealth,
    probe::{Checking, Health, Part},
};

/// The part's name.
pub const NAME: &str = "consumers";

/// The consumers of a worker as a part that it cannot do without.
pub struct ConsumersPart {
    consumers: Vec<Arc<ConsumerHealth>>,
}

impl ConsumersPart {
    pub(crate) fn new(consumers: Vec<Arc<ConsumerHealth>>) -> Self {
        Self { consumers }
    }

    /// Each consumer, with its queue, whether it is registered, and when its last delivery came.
    pub fn consumers(&self) -> &[Arc<ConsumerHealth>] {
        &self.consumers
    }

    /// The queues nothing is taken from at the moment.
    pub fn idle(&self) -> Vec<&str> {
        self.consumers.iter().filter(|consumer| !consumer.is_consuming()).map(|consumer| consumer.queue()).collect()
    }
}

impl Part for ConsumersPart {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Checking<'_> {
        let idle = self.idle();
        let health =
            if idle.is_empty() { Health::Up } else { Health::Down(format!("not consuming from {}", idle.join(", "))) };
        Box::pin(std::future::ready(health))
    }
}
