//! Writes outcomes down: from the log queue into the delivery log, the deliveries' states and what follows from them.
//!
//! Batches come about by themselves: what arrives while one is being written is the next one. A batch is acknowledged
//! once it is committed; what is delivered again changes nothing.

use std::time::Duration;

use metrics::{counter, histogram};
use shared::{
    amqp::{Acker, Consumer, Delivery, EVENTS_LOG, Properties, PublishError, Publisher, Tag, dead_letter},
    contract::{Event, EventBatch},
    db::{DbError, Store, events::Recorded, suppressions::Finding, unread_events::UnreadEvent},
    domain::{
        DeadReason, OutcomeClass,
        suppression::{SuppressionReason, SuppressionScope},
    },
    faultpoint,
};
use tokio_util::sync::CancellationToken;

use crate::{
    incoming::{self, Incoming},
    log_progress::LogProgress,
    task::count_of,
    trouble::{Trouble, chain},
};

/// Broker messages in hand; each holds up to 64 events, so that the next batch is there when one is written.
pub const PREFETCH: u16 = 256;
/// Events of one commit: large enough to share it, small enough to stay in the tens of milliseconds.
const EVENTS_AIM: usize = 1000;
/// A lone event waits this long for company.
const LINGER: Duration = Duration::from_millis(2);

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
    unread: Vec<UnreadEvent>,
}

/// The process is stopping: what is in hand goes back to the broker.
pub struct Stopped;

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
            match incoming::read(&delivery.body) {
                Ok(incoming) => batch.add(delivery.tag, incoming),
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
        self.keep(&batch.unread).await?;
        faultpoint::pass(faultpoint::AFTER_RECORD);
        self.acker.done_all(batch.tags);
        self.progress.end();
        self.trouble.over();
        Ok(())
    }

    /// Writes what can be written and returns the events whose own values the database refuses. It waits for as long as the
    /// database cannot work: the broker keeps what is not acknowledged.
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
        loop {
            match sift(&self.store, events).await {
                Ok(refused) => return Ok(refused),
                Err(error) => self.pause(&error).await?,
            }
        }
    }

    /// Keeps what this version cannot read.
    async fn keep(&mut self, unread: &[UnreadEvent]) -> Result<(), Stopped> {
        while let Err(error) = self.store.keep_unread_events(unread).await {
            self.pause(&error).await?;
        }
        counter!("posthaste_events_unread_total").increment(count_of(unread.len()));
        Ok(())
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
    fn add(&mut self, tag: Tag, incoming: Incoming) {
        self.tags.push(tag);
        self.events.extend(incoming.events);
        self.unread.extend(incoming.unread);
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

/// Writes events in one commit, or, if the database refuses a value, in halves, until what it refuses stands alone. Fails if
/// the database cannot work.
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
