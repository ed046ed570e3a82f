//! Writes outcomes down: from the log queue into the delivery log, the deliveries' states and what follows from them.
//!
//! Batches come about by themselves: what arrives while one is being written is the next one. A batch is acknowledged
//! once it is committed; what is delivered again changes nothing.

use std::time::Duration;

use metrics::{counter, histogram};
use shared::{
    amqp::{Acker, Consumer, Delivery, EVENTS_LOG, Properties, PublishError, Publisher, Tag, dead_letter},
    contract::{
        Event, EventBatch,
        wire::{VERSION, Wire},
    },
    db::{DbError, Store, events::Recorded, suppressions::Finding},
    domain::{
        DeadReason, OutcomeClass,
        suppression::{SuppressionReason, SuppressionScope},
    },
    faultpoint,
};
use tokio_util::sync::CancellationToken;

use crate::{
    log_progress::LogProgress,
    trouble::{Trouble, chain},
};

/// Broker messages in hand; each holds up to 64 events, so that the next batch is there when one is written.
pub const PREFETCH: u16 = 256;
/// Events of one commit: large enough to share it, small enough to stay in the tens of milliseconds.
const EVENTS_AIM: usize = 1000;
/// A lone event waits this long for company.
const LINGER: Duration = Duration::from_millis(2);
/// Times a batch is tried of which the database takes nothing at all, before its events are taken for unwritable: some
/// ten seconds, in which whatever ails the database rather than the events may pass.
const REFUSALS_MAX: u32 = 6;

/// The loop.
pub struct LogWriter {
    store: Store,
    publisher: Publisher,
    consumer: Consumer,
    acker: Acker,
    progress: LogProgress,
    trouble: Trouble,
    stop: CancellationToken,
}

/// Events that go into one commit, and the broker messages they came in.
#[derive(Default)]
struct Batch {
    tags: Vec<Tag>,
    events: Vec<Event>,
}

/// The process is stopping: what is in hand goes back to the broker.
struct Stopped;

impl LogWriter {
    /// Reads with `consumer`; what cannot be written is put aside through `publisher`, and `progress` shows how far it is.
    pub fn new(
        store: Store,
        publisher: Publisher,
        consumer: Consumer,
        progress: LogProgress,
        trouble: Trouble,
        stop: CancellationToken,
    ) -> Self {
        let acker = consumer.acker();
        Self { store, publisher, consumer, acker, progress, trouble, stop }
    }

    /// Writes until stopped.
    pub async fn run(mut self) {
        while let Some(deliveries) = self.consumer.next_batch(PREFETCH.into(), LINGER).await {
            if self.write_all(deliveries).await.is_err() {
                break;
            }
        }
        self.consumer.cancel().await;
    }

    async fn write_all(&mut self, deliveries: Vec<Delivery>) -> Result<(), Stopped> {
        let mut batch = Batch::default();
        for delivery in deliveries {
            match decode(&delivery.body) {
                Ok(events) => batch.add(delivery.tag, events),
                Err(detail) => self.put_aside(&delivery, &detail).await?,
            }
            if batch.events.len() >= EVENTS_AIM {
                self.write(std::mem::take(&mut batch)).await?;
            }
        }
        self.write(batch).await
    }

    /// Writes a batch down, however long that takes, and acknowledges it.
    async fn write(&mut self, batch: Batch) -> Result<(), Stopped> {
        if batch.tags.is_empty() {
            return Ok(());
        }
        histogram!("posthaste_log_writer_batch_size")
            .record(f64::from(u32::try_from(batch.events.len()).unwrap_or(u32::MAX)));
        self.progress.begin(&batch.events);
        for bad in self.record(&batch.events).await? {
            self.put_event_aside(&bad, batch.tags.first().copied()).await?;
        }
        faultpoint::pass(faultpoint::AFTER_RECORD);
        self.acker.done_all(batch.tags);
        self.progress.end();
        self.trouble.over();
        Ok(())
    }

    /// Writes what can be written and returns what the database will not take.
    async fn record(&mut self, events: &[Event]) -> Result<Vec<Refused>, Stopped> {
        // Before the outcome itself: whoever dies in between finds both again.
        let dead = dead_addresses(events);
        while let Err(error) = self.store.suppress(&dead).await {
            if !error.is_unavailable() {
                // Outcomes of every tenant wait behind this; the address is found dead again.
                tracing::error!(error = chain(&error), "dead addresses could not be suppressed");
                break;
            }
            self.pause(&error).await?;
        }
        let mut refusals = 0;
        loop {
            let error = match sift(&self.store, events).await {
                Ok(refused) if refused.len() < events.len() || refusals >= REFUSALS_MAX => return Ok(refused),
                // Nothing of it was taken: more likely the fault of the database than of every single event.
                Ok(refused) => match refused.into_iter().next() {
                    Some(first) => first.error,
                    None => return Ok(Vec::new()),
                },
                Err(error) => {
                    refusals = 0;
                    self.pause(&error).await?;
                    continue;
                }
            };
            refusals += 1;
            self.pause(&error).await?;
        }
    }

    async fn put_event_aside(&mut self, refused: &Refused, tag: Option<Tag>) -> Result<(), Stopped> {
        let Some(tag) = tag else { return Ok(()) };
        let body = serde_json::to_vec(&EventBatch::new(vec![refused.event.clone()])).unwrap_or_default();
        let (exchange, routing_key) = (String::new(), String::new());
        let alone =
            Delivery { tag, redelivered: false, exchange, routing_key, properties: Properties::default(), body };
        self.dead_letter(&alone, &chain(&refused.error)).await
    }

    async fn put_aside(&mut self, delivery: &Delivery, detail: &str) -> Result<(), Stopped> {
        self.dead_letter(delivery, detail).await?;
        self.acker.done(delivery.tag);
        Ok(())
    }

    async fn dead_letter(&mut self, delivery: &Delivery, detail: &str) -> Result<(), Stopped> {
        tracing::error!(detail, "an event cannot be written down and becomes a dead letter");
        while let Err(error) = dead_letter(&self.publisher, EVENTS_LOG, delivery, DeadReason::Poison, detail).await {
            if matches!(error, PublishError::Invalid(_)) {
                tracing::error!(%error, "it cannot be put aside either and stays in the queue until the broker gives it up");
                self.acker.requeue(delivery.tag);
                return Ok(());
            }
            self.pause(&error).await?;
        }
        Ok(())
    }

    async fn pause(&mut self, error: &(dyn std::error::Error + Sync)) -> Result<(), Stopped> {
        if self.trouble.wait_out(error, &self.stop).await { Ok(()) } else { Err(Stopped) }
    }
}

impl Batch {
    fn add(&mut self, tag: Tag, events: Vec<Event>) {
        self.tags.push(tag);
        self.events.extend(events);
    }
}

/// The addresses that providers called dead.
fn dead_addresses(events: &[Event]) -> Vec<Finding> {
    let attempts = events.iter().filter_map(|event| Some((event.delivery, event.attempt.as_ref()?)));
    let dead = attempts.filter(|(_, attempt)| attempt.outcome == OutcomeClass::AddressDead);
    dead.map(|(delivery, attempt)| Finding {
        delivery,
        scope: SuppressionScope::All,
        reason: SuppressionReason::AddressDead,
        detail: attempt.code.clone(),
    })
    .collect()
}

/// An event that the database will not take.
struct Refused {
    event: Event,
    error: DbError,
}

/// Writes events in one commit, or, if the database refuses it, in halves, until the ones it refuses stand alone.
async fn sift(store: &Store, events: &[Event]) -> Result<Vec<Refused>, DbError> {
    let mut refused = Vec::new();
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        match store.record(part.to_vec()).await {
            Ok(recorded) => tell(&recorded),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => match part {
                [event] => refused.push(Refused { event: event.clone(), error }),
                _ => parts.extend([part.split_at(part.len() / 2).1, part.split_at(part.len() / 2).0]),
            },
        }
    }
    Ok(refused)
}

fn decode(body: &[u8]) -> Result<Vec<Event>, String> {
    let batch: EventBatch = serde_json::from_slice(body).map_err(|error| format!("no batch of events: {error}"))?;
    if batch.v != VERSION {
        return Err(format!("version {} of {}, and only {VERSION} is known", batch.v, EventBatch::TYPE));
    }
    Ok(batch.events)
}

/// Counts what was written.
pub fn tell(recorded: &Recorded) {
    for (kind, n) in &recorded.written {
        counter!("posthaste_events_written_total", "kind" => kind.as_str()).increment(*n);
    }
    for (channel, n) in &recorded.retries {
        counter!("posthaste_retries_scheduled_total", "channel" => channel.as_str()).increment(*n);
    }
    for (reason, n) in &recorded.dead {
        tell_dead(*reason, *n);
    }
}

/// Counts dead letters.
pub fn tell_dead(reason: DeadReason, n: u64) {
    counter!("posthaste_dead_lettered_total", "reason" => reason.as_str()).increment(n);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_batches_of_our_version_are_read() {
        assert_eq!(decode(br#"{"v":1,"events":[]}"#), Ok(Vec::new()));
        assert!(decode(br#"{"v":2,"events":[]}"#).unwrap_err().contains("version 2"));
        assert!(decode(b"{").is_err() && decode(b"\xff").is_err() && decode(br#"{"v":1,"events":[{}]}"#).is_err());
    }
}
