//! Writes outcomes down: from the log queue into the delivery log, the deliveries' states and what follows from them.
//!
//! Batches come about by themselves: what arrives while one is being written is the next one. A batch is acknowledged
//! once it is committed; what is delivered again changes nothing.
//!
//! A scheduler that does not reach the database gives back what it holds: the broker still hears its heartbeats, so it would never
//! take the messages away, and the other schedulers would take those outcomes for lost and have their messages sent again.

use std::{borrow::Cow, collections::HashSet, time::Duration};

use metrics::{counter, histogram};
use shared::{
    amqp::{
        Acker, Consumer, DETAIL, Delivery, EVENTS_LOG, Outgoing, PublishError, Publisher, QUEUE, REASON, Tag,
        dead_letter, topology,
    },
    contract::{Event, EventBatch},
    db::{DbError, Store, events::Recorded, letters::NewLetter, suppressions::Finding, unread_events::UnreadEvent},
    domain::{
        DeadReason, OutcomeClass,
        suppression::{SuppressionReason, SuppressionScope},
    },
    faultpoint,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    dead_letter_message::LETTER_ID,
    failure_streak::{FailureStreak, chain},
    inbound_webhooks::publish,
    incoming::{self, Incoming},
    log_progress::LogProgress,
    task::count_of,
};

/// Broker messages in hand; each holds up to 64 events, so that the next batch is there when one is written.
pub const PREFETCH: u16 = 256;
/// Events of one commit: large enough to share it, small enough to stay in the tens of milliseconds.
const EVENTS_AIM: usize = 1000;
/// A lone event waits this long for company.
const LINGER: Duration = Duration::from_millis(2);
/// A database that can be reached answers a ping within this time.
const PING_WAIT_MAX: Duration = Duration::from_secs(2);
/// Time for other schedulers to take what was given back.
const ASIDE_MIN: Duration = Duration::from_secs(1);
/// The detail of a letter travels in a header, which holds little: a clause, not a document.
const DETAIL_BYTES_MAX: usize = 2 * 1024;

/// The loop.
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

/// Events that go into one commit, and the broker messages they came in.
#[derive(Default)]
struct Batch {
    tags: Vec<Tag>,
    /// All but the crash reports.
    events: Vec<Event>,
    crashes: Vec<Event>,
    unread: Vec<UnreadEvent>,
}

/// Why a batch is not written: what is in hand goes back to the broker.
enum Interrupted {
    /// The process is stopping.
    Stopped,
    /// The database does not answer.
    Stuck,
}

impl LogWriter {
    /// Reads with `consumer`; what cannot be written is put aside through `publisher`, and `progress` shows how far it is. What is in
    /// hand goes back within `lost_after` if the database does not answer.
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
            let go_on = match self.write_all(deliveries).await {
                Ok(()) => true,
                Err(Interrupted::Stuck) => self.stand_aside().await,
                Err(Interrupted::Stopped) => false,
            };
            if !go_on {
                break;
            }
        }
        self.consumer.cancel().await;
    }

    /// Gives everything in hand back and takes nothing until the database answers, so that an outage costs each message one return:
    /// the broker counts them and gives up at its delivery limit. False if the process is stopping.
    async fn stand_aside(&mut self) -> bool {
        tracing::warn!(
            in_hand = self.acker.in_hand(),
            "the database does not answer, and outcomes go back to the broker"
        );
        self.consumer.give_back().await;
        self.progress.end();
        let mut is_stopping = self.stop.run_until_cancelled(sleep(ASIDE_MIN)).await.is_none();
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
                Err(detail) => self.put_aside(&delivery, &detail).await?,
            }
            if batch.len() >= EVENTS_AIM {
                self.write(std::mem::take(&mut batch)).await?;
            }
        }
        self.write(batch).await
    }

    /// Writes a batch down, however long that takes as long as the database answers, and acknowledges it.
    async fn write(&mut self, batch: Batch) -> Result<(), Interrupted> {
        if batch.tags.is_empty() {
            return Ok(());
        }
        histogram!("posthaste_log_writer_batch_size").record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        self.progress.begin(batch.events.iter().chain(&batch.crashes));
        // A call on a line that is cut silently never ends, so the batch is given up from outside.
        let cut_off = cut_off(self.store.clone(), self.lost_after);
        tokio::select! {
            written = self.write_down(&batch) => written?,
            () = cut_off => return Err(Interrupted::Stuck),
        }
        faultpoint::pass(faultpoint::AFTER_RECORD);
        self.acker.done_all(batch.tags);
        self.progress.end();
        self.failures.record_success();
        Ok(())
    }

    /// Crash reports come last: an outcome that is kept or put aside stands against them. Those of outcomes that went back to the queue
    /// go back behind them.
    async fn write_down(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        self.keep(&batch.unread).await?;
        let returned = self.write_events(&batch.events).await?;
        let (later, now) = split_crashes(&batch.crashes, &returned);
        self.put_back(&later).await?;
        self.write_events(&now).await.map(drop)
    }

    /// Writes events down, or makes dead letters of them; returns those that went back to the queue.
    async fn write_events(&mut self, events: &[Event]) -> Result<Vec<Event>, Interrupted> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let Sifted { refused, left, .. } = self.record(events).await?;
        for bad in refused {
            self.put_event_aside(&bad).await?;
        }
        Ok(left)
    }

    /// Writes what can be written. It waits for as long as the database cannot work: the broker keeps what is not acknowledged. What is
    /// left after that went back to the queue.
    async fn record(&mut self, events: &[Event]) -> Result<Sifted, Interrupted> {
        // Before the outcome itself: after a crash in between both are found again.
        let dead = dead_addresses(events);
        while let Err(error) = self.store.suppress(&dead).await {
            if !error.is_unavailable() {
                // Outcomes of every tenant wait behind this; the address is found dead again.
                tracing::error!(error = chain(&error), "dead addresses could not be suppressed");
                break;
            }
            self.pause(&error).await?;
        }
        let mut sifted = sift(&self.store, events).await;
        let mut was_partial = false;
        while let Some(error) = sifted.error.take() {
            let is_partial = error.may_concern_part();
            if is_partial && was_partial {
                self.put_back(&sifted.left).await?;
                break;
            }
            was_partial = is_partial;
            self.pause(&error).await?;
            let rest = sift(&self.store, &sifted.left).await;
            sifted.refused.extend(rest.refused);
            (sifted.left, sifted.error) = (rest.left, rest.error);
        }
        Ok(sifted)
    }

    /// Sends events to the end of the queue, so that no others wait for their rows. A message that is new has no returns.
    async fn put_back(&mut self, events: &[Event]) -> Result<(), Interrupted> {
        while let Err(error) = publish(&self.publisher, events).await {
            self.pause(&error).await?;
        }
        Ok(())
    }

    /// Keeps what this version cannot read.
    async fn keep(&mut self, unread: &[UnreadEvent]) -> Result<(), Interrupted> {
        while let Err(error) = self.store.keep_unread_events(unread).await {
            self.pause(&error).await?;
        }
        counter!("posthaste_events_unread_total").increment(count_of(unread.len()));
        Ok(())
    }

    /// Makes a dead letter of an event. An outcome is noted first: its delivery was tried, and must not be doubted while the
    /// letter is open.
    async fn put_event_aside(&mut self, refused: &Refused) -> Result<(), Interrupted> {
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
        while let Err(error) = self.store.keep_lettered_event(letter, event.delivery, event.run).await {
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

    /// Makes a dead letter of a message that is no batch of events. One that not even that is possible with goes back to the queue,
    /// until the broker gives it up.
    async fn put_aside(&mut self, delivery: &Delivery, detail: &str) -> Result<(), Interrupted> {
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

/// Crash reports of deliveries and runs whose events are in `waiting`, and the others.
fn split_crashes(crashes: &[Event], waiting: &[Event]) -> (Vec<Event>, Vec<Event>) {
    let waiting: HashSet<_> = waiting.iter().map(|event| (event.delivery, event.run)).collect();
    crashes.iter().cloned().partition(|crash| waiting.contains(&(crash.delivery, crash.run)))
}

/// The id of the letter about an event: the same each time it is refused. A claim is reported lost again and again, with another time
/// and pause each: its reports share one letter.
fn letter_id(event: &Event, batch: &EventBatch) -> Uuid {
    if event.crash {
        let (delivery, run) = (event.delivery.0.into_bytes(), event.run.to_be_bytes());
        return NewLetter::id_of(&[EVENTS_LOG.as_bytes(), b"crash", &delivery, &run]);
    }
    NewLetter::id_of(&[EVENTS_LOG.as_bytes(), &serde_json::to_vec(batch).unwrap_or_default()])
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

/// What became of events that were to be written.
#[derive(Default)]
struct Sifted {
    refused: Vec<Refused>,
    /// Not written, for `error`.
    left: Vec<Event>,
    error: Option<DbError>,
}

/// Writes events in one commit. If the database refuses a value, or some of the rows cannot be had, it writes them in halves, until what
/// is in the way stands alone. It ends early if the database cannot work.
async fn sift(store: &Store, events: &[Event]) -> Sifted {
    let mut sifted = Sifted::default();
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        let error = match store.record(part.to_vec()).await {
            Ok(recorded) => {
                tell(&recorded);
                continue;
            }
            Err(error) => error,
        };
        let is_servers = error.is_unavailable();
        let is_whole = is_servers && !error.may_concern_part();
        match part {
            [event] if !is_servers => sifted.refused.push(Refused { event: event.clone(), error }),
            [_, _, ..] if !is_whole => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            _ => {
                sifted.left.extend_from_slice(part);
                sifted.error = Some(error);
            }
        }
        if is_whole {
            sifted.left.extend(parts.drain(..).rev().flatten().cloned());
        }
    }
    sifted
}

/// Ends once the database does not answer although a batch has been in hand for a while. It begins to look early enough for the
/// batch to be back with the broker within `lost_after`.
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
    use chrono::TimeDelta;
    use shared::{
        clock,
        domain::{Channel, DeliveryId, EventKind, TenantId},
    };

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
