//! Shared code for processing stored inbound webhooks, for every sender.

use std::time::Duration;

use broker::{Outgoing, Publisher, topology};
use chrono::{DateTime, TimeDelta, Utc};
use domain::contract::{Event, EventBatch, wire::EVENTS_MAX};
use records::{Records, inbound_webhooks::InboundWebhook};
use store::Store;
use uuid::Uuid;

use crate::{failure_streak::chain, task::TaskError};

/// Events taken in one turn.
pub const LIMIT: i64 = 500;
/// How long a taken event is reserved for the scheduler that took it.
pub const LEASE_MS: i32 = 30_000;
/// The time between two turns.
pub const PERIOD: Duration = Duration::from_millis(200);
/// A report about a message may arrive before the outcome of its sending. A report that matches nothing after this time
/// is about a message that Posthaste did not send.
const MATCH_WINDOW: TimeDelta = TimeDelta::minutes(10);
/// The first pause before an event is retried. Each later pause is twice as long.
const PAUSE_MS: i32 = 250;
const PAUSE_MS_MAX: i32 = 60_000;
/// An event that failed, or crashed its scheduler, this often is ignored.
pub const TRIES_MAX: i16 = 50;
/// The routing key of provider reports.
const ROUTING_KEY: &str = "events.report";

/// True if an event that arrived at `created_at` need not wait any longer.
pub fn is_expired(created_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now - created_at > MATCH_WINDOW
}

/// The pause after this many tries.
pub fn pause_ms(tries: i16) -> i32 {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(0).min(16);
    PAUSE_MS.saturating_mul(1 << doublings).min(PAUSE_MS_MAX)
}

/// One table of stored webhooks and how to process its events.
pub trait WebhookTable: Sync {
    /// The event type.
    type Event: Clone + Send + Sync;
    /// The table.
    const TABLE: InboundWebhook;

    /// The id of an event, and how often it was taken.
    fn row(event: &Self::Event) -> (Uuid, i16);

    /// Applies the events and marks them as done. May be repeated.
    fn process(&self, events: Vec<Self::Event>) -> impl Future<Output = Result<(), TaskError>> + Send;
}

/// Processes taken events. If a server is down, which no event caused, all of them are given back. If an event caused
/// the error, each event is tried alone: the failing one is delayed longer each time and ends after [`TRIES_MAX`].
pub async fn process<I: WebhookTable>(table: &I, store: &Store, events: Vec<I::Event>) -> Result<(), TaskError> {
    let Err(error) = table.process(events.clone()).await else { return Ok(()) };
    if error.is_servers_fault() {
        return give_back::<I>(store, &events, error).await;
    }
    for (n, event) in events.iter().enumerate() {
        let Err(error) = table.process(vec![event.clone()]).await else { continue };
        if error.is_servers_fault() {
            return give_back::<I>(store, events.get(n..).unwrap_or_default(), error).await;
        }
        let (id, tries) = I::row(event);
        tracing::error!(event.id = %id, tries, error = chain(&error), "what a provider told cannot be worked through");
        store.inbound_webhooks().put_off(I::TABLE, vec![id], vec![pause_ms(tries)]).await?;
    }
    Ok(())
}

async fn give_back<I: WebhookTable>(store: &Store, events: &[I::Event], error: TaskError) -> Result<(), TaskError> {
    let rows = events.iter().map(|event| I::row(event).0).collect();
    store.inbound_webhooks().give_back(I::TABLE, rows).await?;
    Err(error)
}

/// Publishes reports for the log writer.
pub async fn publish(publisher: &Publisher, events: &[Event]) -> Result<(), TaskError> {
    publish_as(publisher, ROUTING_KEY, events).await
}

/// Like [`publish`], with another routing key.
pub async fn publish_as(publisher: &Publisher, routing_key: &'static str, events: &[Event]) -> Result<(), TaskError> {
    let batches = events.chunks(EVENTS_MAX).map(|part| EventBatch::new(part.to_vec()));
    let outgoing = batches.map(|batch| Outgoing::json(topology::EVENTS, routing_key, Uuid::now_v7(), &batch));
    let results = publisher.publish_all(outgoing.collect::<Result<_, _>>()?).await;
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_a_bound() {
        assert_eq!((pause_ms(1), pause_ms(2), pause_ms(5)), (250, 500, 4000));
        assert_eq!((pause_ms(30), pause_ms(i16::MAX)), (PAUSE_MS_MAX, PAUSE_MS_MAX));
    }
}
