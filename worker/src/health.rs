//! The health check of the worker's consumers. Without it, a process that is alive but consumes nothing looks healthy.

use std::sync::Arc;

use broker::ConsumerHealth;
use runtime::probe::{Checking, Health, Part};

/// The name of this part in health reports.
pub const NAME: &str = "consumers";

/// The consumers of a worker, as a required part of its health.
pub struct ConsumersPart {
    consumers: Vec<Arc<ConsumerHealth>>,
}

impl ConsumersPart {
    pub(crate) fn new(consumers: Vec<Arc<ConsumerHealth>>) -> Self {
        Self { consumers }
    }

    /// The consumers. Each knows its queue, whether it is registered, and when its last delivery came.
    pub fn consumers(&self) -> &[Arc<ConsumerHealth>] {
        &self.consumers
    }

    /// The queues that are not being consumed at the moment.
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
