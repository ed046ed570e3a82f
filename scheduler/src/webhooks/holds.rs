//! Resolves calls whose response was lost, once the message's echo came back. Also shows the circuit breakers.
//!
//! Most echoes find a held delivery and resolve it when they arrive. This task handles echoes that came too early:
//! while the call was still running, or before its worker died.

use std::time::Duration;

use broker::Publisher;
use deliveries::{Deliveries, holds::About};
use domain::{BreakerState, EventKind, clock, contract::Event};
use metrics::gauge;
use runtime::metric;
use store::Store;

use crate::{
    task::{Report, Task, TaskError},
    webhooks::inbound_webhooks::publish_as,
};

/// Calls checked in one turn.
const LIMIT: i64 = 500;
/// The routing key of these events.
const ROUTING_KEY: &str = "events.echo";

/// The task that resolves held calls.
pub struct Holds {
    store: Store,
    publisher: Publisher,
}

impl Holds {
    /// Publishes reports through `publisher`.
    pub const fn new(store: Store, publisher: Publisher) -> Self {
        Self { store, publisher }
    }

    async fn settle(&self, sent: Vec<About>) -> Result<(), TaskError> {
        let events: Vec<Event> =
            sent.into_iter().map(|about| Event::report(about, EventKind::Sent, clock::now())).collect();
        publish_as(&self.publisher, ROUTING_KEY, &events).await
    }

    async fn set_breaker_gauges(&self) -> Result<(), TaskError> {
        let counts = self.store.breakers().count().await?;
        for scope in ["session", "host"] {
            for state in BreakerState::ALL {
                let found = counts.iter().find(|(of, is, _)| of == scope && is == state).map_or(0, |(.., n)| *n);
                gauge!(metric::BREAKER_STATE, "provider" => "waha", "scope" => scope, "state" => state.as_str())
                    .set(f64::from(i32::try_from(found).unwrap_or(i32::MAX)));
            }
        }
        Ok(())
    }
}

impl Task for Holds {
    const NAME: &'static str = "holds";
    const PERIOD: Duration = Duration::from_secs(1);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let sent = self.store.holds().sweep(LIMIT).await?;
        self.settle(sent).await?;
        self.set_breaker_gauges().await?;
        Ok(Report::Done)
    }
}
