//! Records outcomes: it reads them from the log queue and writes the delivery log, the states of the deliveries, and
//! the resulting retries and dead letters.
//!
//! Batches form by themselves: events that arrive while one batch is written form the next one. A batch is acknowledged
//! once it is committed, and a redelivered event changes nothing.
//!
//! A scheduler that does not reach the database returns its messages to the broker. Its heartbeats still reach the
//! broker, so the broker would never take the messages away, and other schedulers would count those outcomes as lost
//! and send the messages again.

use std::{borrow::Cow, collections::HashSet, time::Duration};

use broker::{
    Acker, Consumer, DETAIL, Delivery, EVENTS_LOG, Outgoing, PublishError, Publisher, QUEUE, REASON, Tag, dead_letter,
    topology,
};
use deliveries::{Deliveries, events::Recorded, letters::NewLetter, unread_events::UnreadEvent};
use domain::{
    DeadReason, OutcomeClass,
    contract::{Event, EventBatch},
    suppression::{SuppressionReason, SuppressionScope},
};
use metrics::{counter, histogram};
use records::{Records, suppressions::Finding};
use runtime::{faultpoint, metric};
use store::{DbError, Store};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    failure_streak::{FailureStreak, chain},
    log::{
        dead_letter_message::LETTER_ID,
        incoming::{self, Incoming},
        log_progress::LogProgress,
    },
    task::count_of,
    webhooks::inbound_webhooks::publish,
};

/// Unacknowledged broker messages, each with up to 64 events. The limit lets the next batch arrive while one is
/// written.
pub const PREFETCH: u16 = 256;
/// Events of one commit: large enough to share its cost, small enough to take only tens of milliseconds.
const EVENTS_TARGET: usize = 1000;
/// How long a single event waits for others.
const LINGER: Duration = Duration::from_millis(2);
/// The longest ping of a database that counts as reachable.
const PING_WAIT_MAX: Duration = Duration::from_secs(2);
/// Time for other schedulers to take the returned messages.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// The longest detail of a dead letter. It travels in a header, which must stay small.
const DETAIL_BYTES_MAX: usize = 2 * 1024;

/// The loop that writes the log.
pub struct LogWriter {
    store: Store,
    publisher: Publisher,
    consumer: Consumer,
    acker: Acker,
    progress: LogProgress,
    lost_after: Duration,
    failures: FailureStreak,
    stop: CancellationToken,
}

/// The events of one commit, and the tags of their broker messages.
#[derive(Default)]
struct Batch {
    tags: Vec<Tag>,
    /// All events except crash reports.
    events: Vec<Event>,
    crashes: Vec<Event>,
    unread: Vec<UnreadEvent>,
}

/// Why a batch is not written. Its messages go back to the broker.
enum Interrupted {
    /// The process stops.
    Stopped,
    /// The database does not answer.
    Stuck,
}

impl LogWriter {
    /// Reads from `consumer`, publishes dead letters through `publisher`, and reports its progress in `progress`. If
    /// the database does not answer, unacknowledged messages go back to the broker within `lost_after`.
    pub fn new(
        store: Store,
        publisher: Publisher,
        consumer: Consumer,
        progress: LogProgress,
        lost_after: Duration,
        failures: FailureStreak,
        stop: CancellationToken,
    ) -> Self {
        let acker = consumer.acker();
        Self { store, publisher, consumer, acker, progress, lost_after, failures, stop }
    }

    /// Writes until stopped.
    pub async fn run(mut self) {
        while let Some(deliveries) = self.consumer.next_batch(PREFETCH.into(), LINGER).await {
            let continues = match self.write_all(deliveries).await {
                Ok(()) => true,
                Err(Interrupted::Stuck) => self.pause_consuming().await,
                Err(Interrupted::Stopped) => false,
            };
            if !continues {
                break;
            }
        }
        self.consumer.cancel().await;
    }

    /// Returns all unacknowledged messages and takes none until the database answers. So an outage costs each message
    /// one return: the broker counts returns and gives a message up at its delivery limit. Returns false if the process
    /// stops.
    async fn pause_consuming(&mut self) -> bool {
        tracing::warn!(
            in_hand = self.acker.in_hand(),
            "the database does not answer, and outcomes go back to the broker"
        );
        self.consumer.give_back().await;
        self.progress.finish_batch();
        let mut is_stopping = self.stop.run_until_cancelled(sleep(RETURN_PAUSE)).await.is_none();
        while !is_stopping && let Err(error) = ping(&self.store).await {
            is_stopping = !self.failures.wait_out(error.as_ref(), &self.stop).await;
        }
        !is_stopping
    }

    async fn write_all(&mut self, deliveries: Vec<Delivery>) -> Result<(), Interrupted> {
        let mut batch = Batch::default();
        for delivery in deliveries {
            match incoming::read(&delivery.body) {
                Ok(incoming) => batch.add(delivery.tag, incoming),
                Err(detail) => self.dead_letter_message(&delivery, &detail).await?,
            }
            if batch.len() >= EVENTS_TARGET {
                self.write(std::mem::take(&mut batch)).await?;
            }
        }
        self.write(batch).await
    }

    /// Writes a batch and acknowledges it. It takes as long as it needs while the database answers pings.
    async fn write(&mut self, batch: Batch) -> Result<(), Interrupted> {
        if batch.tags.is_empty() {
            return Ok(());
        }
        histogram!(metric::LOG_WRITER_BATCH_SIZE).record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        self.progress.start_batch(batch.events.iter().chain(&batch.crashes));
        // A call on a connection that was cut silently never returns, so the batch is cancelled from outside.
        let cut_off = cut_off(self.store.clone(), self.lost_after);
        tokio::select! {
            written = self.write_batch(&batch) => written?,
            () = cut_off => return Err(Interrupted::Stuck),
        }
        faultpoint::pass(faultpoint::AFTER_RECORD);
        self.acker.done_all(batch.tags);
        self.progress.finish_batch();
        self.failures.record_success();
        Ok(())
    }

    /// Crash reports are written last, because an outcome that was kept or dead-lettered contradicts them. If the
    /// outcome went back to the queue, its crash report follows it there.
    async fn write_batch(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        self.store_unread(&batch.unread).await?;
        let returned = self.write_events(&batch.events).await?;
        let (later, now) = split_crashes(&batch.crashes, &returned);
        self.requeue_events(&later).await?;
        self.write_events(&now).await.map(drop)
    }

    /// Writes events, or turns them into dead letters. Returns the events that went back to the queue.
    async fn write_events(&mut self, events: &[Event]) -> Result<Vec<Event>, Interrupted> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let WriteResult { refused, left, .. } = self.record(events).await?;
        for bad in refused {
            self.dead_letter_event(&bad).await?;
        }
        Ok(left)
    }

    /// Writes the events that can be written. While the database cannot work it waits: the broker keeps unacknowledged
    /// messages. The events in `left` went back to the queue.
    async fn record(&mut self, events: &[Event]) -> Result<WriteResult, Interrupted> {
        // Suppressed before the outcome is written: after a crash in between, both are repeated.
        let dead = dead_addresses(events);
        while let Err(error) = self.store.suppressions().suppress(&dead).await {
            if !error.is_unavailable() {
                // The outcomes of all tenants wait behind this one. The address is reported dead again by its next
                // delivery.
                tracing::error!(error = chain(&error), "dead addresses could not be suppressed");
                break;
            }
            self.pause(&error).await?;
        }
        let mut result = write_in_parts(&self.store, events).await;
        let mut was_partial = false;
        while let Some(error) = result.error.take() {
            let is_partial = error.may_concern_part();
            if is_partial && was_partial {
                self.requeue_events(&result.left).await?;
                break;
            }
            was_partial = is_partial;
            self.pause(&error).await?;
            let rest = write_in_parts(&self.store, &result.left).await;
            result.refused.extend(rest.refused);
            (result.left, result.error) = (rest.left, rest.error);
        }
        Ok(result)
    }

    /// Publishes events to the end of the queue, so that others do not wait for their locked rows. A new message also
    /// starts with no returns.
    async fn requeue_events(&mut self, events: &[Event]) -> Result<(), Interrupted> {
        while let Err(error) = publish(&self.publisher, events).await {
            self.pause(&error).await?;
        }
        Ok(())
    }

    /// Stores the events that this version cannot read.
    async fn store_unread(&mut self, unread: &[UnreadEvent]) -> Result<(), Interrupted> {
        while let Err(error) = self.store.unread_events().insert(unread).await {
            self.pause(&error).await?;
        }
        counter!(metric::EVENTS_UNREAD_KEPT).increment(count_of(unread.len()));
        Ok(())
    }

    /// Turns an event into a dead letter. An outcome is noted first: its delivery was attempted, and must not be
    /// reported as crashed while the letter is open.
    async fn dead_letter_event(&mut self, refused: &Refused) -> Result<(), Interrupted> {
        let Refused { event, error } = refused;
        let detail = chain(error);
        tracing::error!(delivery.id = %event.delivery, detail, "an event cannot be written down and becomes a dead letter");
        let batch = EventBatch::new(vec![event.clone()]);
        let id = letter_id(event, &batch);
        if !event.crash && !event.report {
            self.note_outcome(id, event).await?;
        }
        while let Err(error) = self.publish_letter(id, &batch, &detail).await {
            self.pause(&error).await?;
        }
        Ok(())
    }

    async fn note_outcome(&mut self, letter: Uuid, event: &Event) -> Result<(), Interrupted> {
        while let Err(error) = self.store.unread_events().keep_lettered_event(letter, event.delivery, event.run).await {
            if !error.is_unavailable() {
                tracing::error!(delivery.id = %event.delivery, error = chain(&error), "a delivery with an outcome may be doubted");
                break;
            }
            self.pause(&error).await?;
        }
        Ok(())
    }

    async fn publish_letter(&self, id: Uuid, batch: &EventBatch, detail: &str) -> Result<(), PublishError> {
        let detail = detail.get(..detail.floor_char_boundary(DETAIL_BYTES_MAX)).unwrap_or_default();
        let headers = [
            (REASON, DeadReason::Poison.as_str().to_owned()),
            (DETAIL, detail.to_owned()),
            (QUEUE, EVENTS_LOG.to_owned()),
            (LETTER_ID, id.to_string()),
        ];
        let headers = headers.map(|(name, value)| (Cow::Borrowed(name), value)).into();
        let message = Outgoing { headers, ..Outgoing::json(topology::DLX, "", id, batch)? };
        self.publisher.publish_one(message).await
    }

    /// Turns a message that is not a batch of events into a dead letter. If the broker cannot take the letter either,
    /// the message goes back to the queue until the broker gives it up.
    async fn dead_letter_message(&mut self, delivery: &Delivery, detail: &str) -> Result<(), Interrupted> {
        tracing::error!(detail, "a message of the log queue cannot be read and becomes a dead letter");
        while let Err(error) = dead_letter(&self.publisher, EVENTS_LOG, delivery, DeadReason::Poison, detail).await {
            if matches!(error, PublishError::Invalid(_)) {
                tracing::error!(%error, "it cannot be put aside either and stays in the queue until the broker gives it up");
                self.acker.requeue(delivery.tag);
                return Ok(());
            }
            self.pause(&error).await?;
        }
        self.acker.done(delivery.tag);
        Ok(())
    }

    async fn pause(&mut self, error: &(dyn std::error::Error + Sync)) -> Result<(), Interrupted> {
        if self.failures.wait_out(error, &self.stop).await { Ok(()) } else { Err(Interrupted::Stopped) }
    }
}

impl Batch {
    fn len(&self) -> usize {
        self.events.len() + self.crashes.len()
    }

    fn add(&mut self, tag: Tag, incoming: Incoming) {
        self.tags.push(tag);
        for event in incoming.events {
            if event.crash { self.crashes.push(event) } else { self.events.push(event) }
        }
        self.unread.extend(incoming.unread);
    }
}

/// Splits crash reports: those whose delivery and run have an event in `waiting`, and the others.
fn split_crashes(crashes: &[Event], waiting: &[Event]) -> (Vec<Event>, Vec<Event>) {
    let waiting: HashSet<_> = waiting.iter().map(|event| (event.delivery, event.run)).collect();
    crashes.iter().cloned().partition(|crash| waiting.contains(&(crash.delivery, crash.run)))
}

/// The id of an event's dead letter, the same each time the event is refused. A lost claim is reported repeatedly, each
/// time with another time and delay, so all its crash reports share one letter.
fn letter_id(event: &Event, batch: &EventBatch) -> Uuid {
    if event.crash {
        let (delivery, run) = (event.delivery.0.into_bytes(), event.run.to_be_bytes());
        return NewLetter::id_of(&[EVENTS_LOG.as_bytes(), b"crash", &delivery, &run]);
    }
    NewLetter::id_of(&[EVENTS_LOG.as_bytes(), &serde_json::to_vec(batch).unwrap_or_default()])
}

/// The addresses that providers reported as dead.
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

/// An event that the database refuses.
struct Refused {
    event: Event,
    error: DbError,
}

/// The result of writing events.
#[derive(Default)]
struct WriteResult {
    refused: Vec<Refused>,
    /// Not written, because of `error`.
    left: Vec<Event>,
    error: Option<DbError>,
}

/// Writes events in one commit. If the database refuses a value or cannot lock some rows, it splits the events in
/// halves until only the failing event is left. It stops early if the database cannot work.
async fn write_in_parts(store: &Store, events: &[Event]) -> WriteResult {
    let mut result = WriteResult::default();
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        let error = match store.delivery_log().record(part.to_vec()).await {
            Ok(recorded) => {
                count_recorded(&recorded);
                continue;
            }
            Err(error) => error,
        };
        let is_unavailable = error.is_unavailable();
        let is_whole = is_unavailable && !error.may_concern_part();
        match part {
            [event] if !is_unavailable => result.refused.push(Refused { event: event.clone(), error }),
            [_, _, ..] if !is_whole => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            _ => {
                result.left.extend_from_slice(part);
                result.error = Some(error);
            }
        }
        if is_whole {
            result.left.extend(parts.drain(..).rev().flatten().cloned());
        }
    }
    result
}

/// Ends when the database stops answering while a batch is being written. It starts to ping early enough for the batch
/// to be back at the broker within `lost_after`.
async fn cut_off(store: Store, lost_after: Duration) {
    let early = lost_after * 2 / 3;
    sleep(early).await;
    while ping(&store).await.is_ok() {
        sleep(PING_WAIT_MAX).await;
    }
}

async fn ping(store: &Store) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Ok(timeout(PING_WAIT_MAX, store.ping()).await??)
}

/// Counts the written events, retries and dead letters.
pub fn count_recorded(recorded: &Recorded) {
    for (kind, n) in &recorded.written {
        counter!(metric::EVENTS_WRITTEN, "kind" => kind.as_str()).increment(*n);
    }
    for (channel, n) in &recorded.retries {
        counter!(metric::RETRIES_SCHEDULED, "channel" => channel.as_str()).increment(*n);
    }
    for (reason, n) in &recorded.dead {
        count_dead_letters(*reason, *n);
    }
}

/// Counts dead letters.
pub fn count_dead_letters(reason: DeadReason, n: u64) {
    counter!(metric::DEAD_LETTERED, "reason" => reason.as_str()).increment(n);
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use domain::{Channel, DeliveryId, EventKind, TenantId, clock};

    use super::*;

    fn event(crash: bool, run: i32) -> Event {
        let about = (TenantId(1), DeliveryId::generate(), run, Channel::Sms);
        Event { report: false, crash, ..Event::report(about, EventKind::Ambiguous, clock::now()) }
    }

    #[test]
    fn a_crash_report_does_not_pass_an_outcome_that_went_back() {
        let (first, second) = (event(true, 1), event(true, 1));
        let outcome = Event { crash: false, ..first.clone() };
        let earlier = Event { run: 0, ..second.clone() };
        let crashes = [first.clone(), second.clone()];
        assert_eq!(split_crashes(&crashes, &[outcome, earlier]), (vec![first], vec![second]));
    }

    #[test]
    fn each_report_of_one_crash_has_the_same_letter() {
        let id = |event: &Event| letter_id(event, &EventBatch::new(vec![event.clone()]));
        let crash = event(true, 1);
        let again = Event { at: crash.at + TimeDelta::seconds(30), delay_ms: Some(7), ..crash.clone() };
        assert_eq!(id(&crash), id(&again));
        for other in [event(true, 1), Event { run: 2, ..crash.clone() }, Event { crash: false, ..crash.clone() }] {
            assert_ne!(id(&crash), id(&other));
        }
    }
}
