//! What working through kept webhooks has in common, whoever sent them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    amqp::{Outgoing, Publisher, topology},
    contract::{Event, EventBatch, wire::EVENTS_MAX},
};
use uuid::Uuid;

use crate::task::TaskError;

/// Events taken in one turn.
pub const LIMIT: i64 = 500;
/// Nobody else gets a taken event for this long.
pub const LEASE_MS: i32 = 30_000;
/// From one look to the next.
pub const PERIOD: Duration = Duration::from_millis(200);
/// What is told of a message may overtake the outcome of its sending; after this it is about somebody else's message.
const PATIENCE: TimeDelta = TimeDelta::minutes(10);
/// The first pause before an event is looked at again; each later pause is twice as long.
const PAUSE_MS: i32 = 250;
const PAUSE_MS_MAX: i32 = 60_000;
/// An event that brought its schedulers down so often is left alone.
pub const TRIES_MAX: i16 = 50;
/// Where reports of providers stand among the events.
const ROUTING_KEY: &str = "events.report";

/// Whether an event that came at `created_at` is waited with no longer.
pub fn is_over(created_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now - created_at > PATIENCE
}

/// The pause after so many tries.
pub fn pause_ms(tries: i16) -> i32 {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(0).min(16);
    PAUSE_MS.saturating_mul(1 << doublings).min(PAUSE_MS_MAX)
}

/// Hands reports to the log writer.
pub async fn publish(publisher: &Publisher, events: &[Event]) -> Result<(), TaskError> {
    let batches = events.chunks(EVENTS_MAX).map(|part| EventBatch::new(part.to_vec()));
    let outgoing = batches.map(|batch| Outgoing::json(topology::EVENTS, ROUTING_KEY, Uuid::now_v7(), &batch));
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
