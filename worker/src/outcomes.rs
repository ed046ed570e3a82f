//! The way of events to the log writer: many in one AMQP message, each confirmed by the broker before its caller continues.

use std::time::Duration;

use shared::{
    amqp::{Outgoing, Publisher, topology},
    batch::{Batcher, Limits},
    contract::{Event, EventBatch, wire::EVENTS_MAX},
    reconnect::Reconnect,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The routing key of events that workers publish.
const ROUTING_KEY: &str = "outcome";
/// Two confirms under way hide the disks of a replicated queue behind each other. Waiting events are bounded by the deliveries that
/// the consumers may hold; this bound lies above it.
const LIMITS: Limits =
    Limits { batch_max: EVENTS_MAX, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(8) };

/// The longest wait between two tries. It counts from the moment the broker takes messages again, and is far below the time after
/// which the scheduler doubts these deliveries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Publishes events. Cheap to clone.
#[derive(Clone)]
pub struct Outcomes {
    events: Batcher<Event, bool>,
}

impl Outcomes {
    /// Starts publishing through `publisher`. While the broker is away it is tried again and again, until `give_up`.
    pub fn start(publisher: Publisher, give_up: CancellationToken) -> Self {
        let events = Batcher::start(LIMITS, move |events| publish(publisher.clone(), give_up.clone(), events));
        Self { events }
    }

    /// Hands an event over; true once it is certain that the broker has it. False: that is unknown, and the delivery must
    /// stay unacknowledged.
    pub async fn record(&self, event: Event) -> bool {
        self.events.submit(event).await.unwrap_or(false)
    }
}

async fn publish(publisher: Publisher, give_up: CancellationToken, events: Vec<Event>) -> Vec<bool> {
    let count = events.len();
    let confirmed = give_up.run_until_cancelled(insist(&publisher, events)).await.unwrap_or(false);
    vec![confirmed; count]
}

/// Publishes the same message until it is confirmed. Repeats are harmless: an event is written down once.
async fn insist(publisher: &Publisher, events: Vec<Event>) -> bool {
    let message = Outgoing::json(topology::EVENTS, ROUTING_KEY, Uuid::now_v7().to_string(), &EventBatch::new(events));
    let message = match message {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(%error, "events have no form on the broker");
            return false;
        }
    };
    let mut reconnect = Reconnect::new();
    while let Err(error) = publisher.publish_one(message.clone()).await {
        tracing::warn!(%error, "events are not with the broker yet, trying again");
        tokio::time::sleep(reconnect.next().min(PAUSE_MAX)).await;
    }
    true
}
