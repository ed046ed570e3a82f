//! Publishes the events of attempts for the log writer. One AMQP message carries many events, and each caller waits until the
//! broker confirms its event.

use std::time::Duration;

use broker::{Outgoing, Publisher, topology};
use domain::contract::{Event, EventBatch, wire::EVENTS_MAX};
use runtime::{
    batch::{Batcher, Limits},
    reconnect::Reconnect,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The routing key of events that workers publish.
const ROUTING_KEY: &str = "outcome";
/// Two confirms in flight overlap the disk writes of a replicated queue. Beyond `queue_max` waiting events, attempts wait to
/// add theirs.
const LIMITS: Limits =
    Limits { batch_max: EVENTS_MAX, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(8) };

/// Maximum wait between two tries. It delays events once the broker accepts messages again, so it is far below the time after
/// which the scheduler treats the outcomes of these deliveries as unknown.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Publishes events. Cheap to clone.
#[derive(Clone)]
pub struct Outcomes {
    events: Batcher<Event, bool>,
}

impl Outcomes {
    /// Starts publishing through `publisher`. While the broker is away, publishing is retried until `give_up`.
    pub fn start(publisher: Publisher, give_up: CancellationToken) -> Self {
        let events = Batcher::start(LIMITS, move |events| publish(publisher.clone(), give_up.clone(), events));
        Self { events }
    }

    /// Publishes an event. Returns true once the broker has confirmed it. False means that this is unknown: the caller must not
    /// acknowledge the delivery's message.
    pub async fn record(&self, event: Event) -> bool {
        self.events.submit(event).await.unwrap_or(false)
    }
}

async fn publish(publisher: Publisher, give_up: CancellationToken, events: Vec<Event>) -> Vec<bool> {
    let count = events.len();
    let confirmed = give_up.run_until_cancelled(publish_until_confirmed(&publisher, events)).await.unwrap_or(false);
    vec![confirmed; count]
}

/// Publishes the same message until the broker confirms it. Duplicates are harmless: the log writer stores an event once.
async fn publish_until_confirmed(publisher: &Publisher, events: Vec<Event>) -> bool {
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
