//! The only way messages come off the broker, and the only place that acks.
//!
//! A consumer owns one channel. When the stream ends for whatever reason (connection lost, queue deleted, the broker's
//! consumer timeout) it opens another channel and registers again under a new tag: RabbitMQ before 3.11.23 could stop
//! delivering to a reused tag, and 3.10.8 may fail a channel that registers again with deliveries in flight.
//!
//! Finished deliveries go to the [`Acker`], in any order and from any task. Tags of a channel that is gone are dropped
//! and counted: the broker delivers those messages again.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use metrics::{counter, describe_counter, gauge};
use tokio::{
    sync::Notify,
    time::{timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connection::{Broker, BrokerError},
    declare::is_missing,
    ledger::{AckCommand, Ledger},
    pipeline::Pipeline,
    properties::Properties,
};
use crate::reconnect::Reconnect;

/// A healthy broker answers a question on a channel within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Writing acks takes no answer; only a dead connection takes this long, and its loss redelivers everything anyway.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// A received message. It is leased to us until its tag is given to the [`Acker`].
#[derive(Debug)]
pub struct Delivery {
    /// What the acker needs.
    pub tag: Tag,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// The exchange it was published to.
    pub exchange: String,
    /// The key it was published with.
    pub routing_key: String,
    /// Its properties and headers.
    pub properties: Properties,
    /// Its body.
    pub body: Vec<u8>,
}

/// Identifies a delivery to the acker of the consumer it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    generation: u64,
    number: u64,
}

/// How a consumer is doing, for readiness checks.
#[derive(Debug)]
pub struct ConsumerHealth {
    queue: String,
    registered: AtomicBool,
    last_delivery: Mutex<Option<Instant>>,
}

impl ConsumerHealth {
    /// The queue it takes from.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether the broker has it registered at the moment, as far as we know.
    pub fn is_consuming(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// When the last message came, if any.
    pub fn last_delivery(&self) -> Option<Instant> {
        *lock(&self.last_delivery)
    }

    #[cfg(test)]
    pub(crate) fn of_a_test(registered: bool) -> Arc<Self> {
        let (registered, last_delivery) = (AtomicBool::new(registered), Mutex::new(None));
        Arc::new(Self { queue: "a test".to_owned(), registered, last_delivery })
    }

    fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
        let value = f64::from(u8::from(registered));
        gauge!("posthaste_consumer_registered", "queue" => self.queue.clone()).set(value);
    }

    fn delivered(&self, batch: &[Delivery]) {
        *lock(&self.last_delivery) = Some(Instant::now());
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = gauge!("posthaste_consumer_last_delivery_timestamp_seconds", "queue" => self.queue.clone());
        seconds.set(since_epoch.as_secs_f64());
        let redelivered = batch.iter().filter(|delivery| delivery.redelivered).count();
        if redelivered > 0 {
            count("posthaste_redelivered_total", &self.queue, redelivered);
        }
    }
}

fn begin_counts(queue: &str) {
    describe_counter!("posthaste_redelivered_total", "Messages that may have been delivered before, by queue.");
    describe_counter!(
        "posthaste_stale_acks_total",
        "Messages finished after their channel was lost: the broker delivers them again."
    );
    for metric in ["posthaste_redelivered_total", "posthaste_stale_acks_total"] {
        count(metric, queue, 0);
    }
}

fn count(metric: &'static str, queue: &str, by: usize) {
    counter!(metric, "queue" => queue.to_owned()).increment(u64::try_from(by).unwrap_or(u64::MAX));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes messages from one queue.
pub struct Consumer {
    broker: Broker,
    queue: String,
    prefetch: u16,
    stop: CancellationToken,
    acker: Acker,
    health: Arc<ConsumerHealth>,
    stream: Option<Stream>,
    reconnect: Reconnect,
    /// Taken from the stream but not handed out; kept here so that dropping `next_batch` half-way loses nothing.
    batch: Vec<Delivery>,
}

/// A registration with the broker.
struct Stream {
    channel: Channel,
    deliveries: lapin::Consumer,
    generation: u64,
    ended: bool,
    /// It ended without an error: the broker ended it alone.
    is_cancelled: bool,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Takes messages from `queue`, at most `prefetch` of them unfinished at a time, until `stop`. Nothing happens
    /// before the first [`Consumer::next_batch`].
    pub fn open(broker: &Broker, queue: impl Into<String>, prefetch: u16, stop: &CancellationToken) -> Self {
        let queue = queue.into();
        let prefetch = prefetch.max(1);
        let (registered, last_delivery) = (AtomicBool::new(false), Mutex::new(None));
        begin_counts(&queue);
        Self {
            broker: broker.clone(),
            prefetch,
            stop: stop.child_token(),
            acker: Acker::start(&queue, prefetch),
            health: Arc::new(ConsumerHealth { queue: queue.clone(), registered, last_delivery }),
            queue,
            stream: None,
            reconnect: Reconnect::new(),
            batch: Vec::new(),
        }
    }

    /// A handle to finish deliveries with.
    pub fn acker(&self) -> Acker {
        self.acker.clone()
    }

    /// How this consumer is doing.
    pub fn health(&self) -> Arc<ConsumerHealth> {
        Arc::clone(&self.health)
    }

    /// Waits for a message, then adds what else is there or comes within `linger`, up to `max`. `None` once stopped,
    /// and only then: losses are repaired in here. May be dropped and called again without losing a message.
    pub async fn next_batch(&mut self, max: usize, linger: Duration) -> Option<Vec<Delivery>> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.gather(max.max(1), linger)).await?;
        let batch = std::mem::take(&mut self.batch);
        self.health.delivered(&batch);
        self.reconnect.reset();
        Some(batch)
    }

    /// Waits until a message is there to be taken; `None` once stopped.
    pub async fn arrived(&mut self) -> Option<()> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.gather(1, Duration::ZERO)).await
    }

    /// Stops taking messages and gives back what was not handed out. The channel stays open so that the acker can
    /// finish what was; call [`Acker::flush`] after that and drop the consumer last.
    pub async fn cancel(&mut self) {
        self.stop.cancel();
        self.health.set_registered(false);
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_alive()) {
            let tag = stream.deliveries.tag();
            let cancelling = stream.channel.basic_cancel(tag, BasicCancelOptions::default());
            if !matches!(timeout(ANSWER_TIMEOUT, cancelling).await, Ok(Ok(()))) {
                tracing::warn!(queue = self.queue, "a consumer could not be cancelled; its messages are redelivered");
            }
            while let Some(Some(Ok(delivery))) = stream.deliveries.next().now_or_never() {
                self.batch.push(received(delivery, stream.generation, &self.acker));
            }
        }
        for delivery in self.batch.drain(..) {
            self.acker.requeue(delivery.tag);
        }
        self.acker.flush().await;
    }

    /// Gives back all that is not finished, and takes nothing until the next [`Consumer::next_batch`]. The broker counts a return of
    /// each message, so it is no way to wait for a moment.
    pub async fn give_back(&mut self) {
        // What is finished must not come back with the rest.
        self.acker.flush().await;
        self.batch.clear();
        self.abandon().await;
    }

    /// Fills the batch with at least one delivery.
    async fn gather(&mut self, max: usize, linger: Duration) {
        while self.batch.is_empty() {
            self.register().await;
            self.take_next().await;
        }
        self.take_ready(max);
        let deadline = Instant::now() + linger;
        while self.batch.len() < max && self.is_alive() && Instant::now() < deadline {
            if timeout_at(deadline.into(), self.take_next()).await.is_err() {
                return;
            }
            self.take_ready(max);
        }
    }

    fn is_alive(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::is_alive)
    }

    async fn take_next(&mut self) {
        if let Some(stream) = &mut self.stream {
            let item = stream.deliveries.next().await;
            self.batch.extend(stream.accept(item, &self.queue, &self.acker));
        }
    }

    fn take_ready(&mut self, max: usize) {
        let Some(stream) = &mut self.stream else { return };
        while self.batch.len() < max && !stream.ended {
            let Some(item) = stream.deliveries.next().now_or_never() else { return };
            self.batch.extend(stream.accept(item, &self.queue, &self.acker));
        }
    }

    /// Makes sure that there is a registration, however long that takes.
    async fn register(&mut self) {
        while !self.is_alive() {
            self.abandon().await;
            match self.consume().await {
                Ok(stream) => {
                    tracing::info!(queue = self.queue, generation = stream.generation, "consuming");
                    self.stream = Some(stream);
                    self.health.set_registered(true);
                }
                Err(error) => {
                    self.repair(&error).await;
                    self.reconnect.pause().await;
                }
            }
        }
    }

    async fn abandon(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        self.health.set_registered(false);
        self.acker.release(stream.generation).await;
        // The broker returns the unfinished messages to the queue when the channel closes.
        let _ = timeout(Duration::from_secs(1), stream.channel.close(200, "done".into())).await;
        // A consumer that is lost again and again must not keep the broker busy registering it. A lost connection needs
        // no pause here: its own comes before the next channel.
        if stream.is_cancelled {
            self.reconnect.pause().await;
        }
    }

    async fn consume(&self) -> Result<Stream, BrokerError> {
        let channel = self.broker.channel().await?;
        let deliveries = timeout(ANSWER_TIMEOUT, subscribe(&channel, &self.queue, self.prefetch))
            .await
            .map_err(|_| BrokerError::AnswerTimeout)??;
        let generation = self.acker.adopt(channel.clone()).await;
        Ok(Stream { channel, deliveries, generation, ended: false, is_cancelled: false })
    }

    async fn repair(&self, error: &BrokerError) {
        tracing::warn!(queue = self.queue, %error, "not consuming");
        if matches!(error, BrokerError::Amqp(error) if is_missing(error))
            && let Err(error) = self.broker.restore_topology().await
        {
            tracing::warn!(queue = self.queue, %error, "the queue is missing and could not be restored");
        }
    }
}

async fn subscribe(channel: &Channel, queue: &str, prefetch: u16) -> lapin::Result<lapin::Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let tag = format!("posthaste-{}", uuid::Uuid::now_v7());
    let name = ShortString::try_new(queue).unwrap_or_default();
    channel.basic_consume(name, tag.into(), BasicConsumeOptions::default(), FieldTable::default()).await
}

fn received(delivery: lapin::message::Delivery, generation: u64, acker: &Acker) -> Delivery {
    let tag = Tag { generation, number: delivery.delivery_tag };
    acker.delivered(tag);
    Delivery {
        tag,
        redelivered: delivery.redelivered,
        exchange: delivery.exchange.into(),
        routing_key: delivery.routing_key.into(),
        properties: delivery.properties.into(),
        body: delivery.data,
    }
}

impl Stream {
    fn is_alive(&self) -> bool {
        !self.ended && self.channel.status().connected()
    }

    fn accept(
        &mut self,
        item: Option<lapin::Result<lapin::message::Delivery>>,
        queue: &str,
        acker: &Acker,
    ) -> Option<Delivery> {
        match item {
            Some(Ok(delivery)) => return Some(received(delivery, self.generation, acker)),
            Some(Err(error)) => tracing::warn!(queue, %error, "the consumer failed"),
            None => {
                self.is_cancelled = true;
                tracing::warn!(queue, "the broker cancelled the consumer");
            }
        }
        self.ended = true;
        None
    }
}

/// Finishes deliveries of one consumer; clones share it. Nothing here waits but [`Acker::flush`].
#[derive(Clone)]
pub struct Acker {
    state: Arc<AckState>,
    /// Ends the task behind the desk with the last handle.
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Acker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acker").field("queue", &self.state.queue).finish_non_exhaustive()
    }
}

struct AckState {
    queue: String,
    prefetch: u16,
    book: Mutex<AckBook>,
    /// The channel to speak on. Whoever speaks holds it, so words go out in the order they were found.
    channel: tokio::sync::Mutex<Option<Channel>>,
    changed: Notify,
}

struct AckBook {
    generation: u64,
    ledger: Ledger,
}

impl Acker {
    fn start(queue: &str, prefetch: u16) -> Self {
        let state = Arc::new(AckState {
            queue: queue.to_owned(),
            prefetch,
            book: Mutex::new(AckBook { generation: 0, ledger: Ledger::new(prefetch) }),
            channel: tokio::sync::Mutex::new(None),
            changed: Notify::new(),
        });
        let last = CancellationToken::new();
        tokio::spawn(Arc::clone(&state).run(last.clone()));
        Self { state, _last: Arc::new(last.drop_guard()) }
    }

    /// The message is dealt with and may be forgotten.
    pub fn done(&self, tag: Tag) {
        self.done_all([tag]);
    }

    /// As [`Acker::done`] for many.
    pub fn done_all(&self, tags: impl IntoIterator<Item = Tag>) {
        let now = Instant::now();
        self.state.note(tags, |ledger, number| ledger.finish(number, now));
    }

    /// Gives the message back to the queue. Only for what was not begun when the process stops: as a way to wait it
    /// would be a hot loop at the head of the queue.
    pub fn requeue(&self, tag: Tag) {
        self.state.note([tag], Ledger::give_back);
    }

    /// Whether a message is still leased to us. One whose channel is gone is delivered again.
    pub fn is_current(&self, tag: Tag) -> bool {
        lock(&self.state.book).generation == tag.generation
    }

    /// How many messages handed out are neither done nor given back.
    pub fn in_hand(&self) -> usize {
        lock(&self.state.book).ledger.open()
    }

    /// Writes every ack, due or not, and waits until the broker has read them.
    pub async fn flush(&self) {
        self.state.send_acks(true).await;
        self.state.sync_with_broker().await;
    }

    fn delivered(&self, tag: Tag) {
        let mut book = lock(&self.state.book);
        if book.generation == tag.generation {
            book.ledger.delivered(tag.number);
        }
    }

    /// Takes a fresh channel; tags handed out before are stale from now on.
    async fn adopt(&self, channel: Channel) -> u64 {
        *self.state.channel.lock().await = Some(channel);
        self.state.next_generation()
    }

    /// Lets go of the channel of `generation`, having said what can still be said.
    async fn release(&self, generation: u64) {
        self.state.send_acks(true).await;
        let mut channel = self.state.channel.lock().await;
        if lock(&self.state.book).generation == generation {
            *channel = None;
            self.state.next_generation();
        }
    }
}

impl AckState {
    /// Speaks when it is time, until the last handle is gone.
    async fn run(self: Arc<Self>, last: CancellationToken) {
        loop {
            let due = lock(&self.book).ledger.due(Instant::now());
            let time = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into());
            tokio::select! {
                () = last.cancelled() => {
                    self.send_acks(true).await;
                    return self.sync_with_broker().await;
                }
                () = self.changed.notified() => {}
                () = time, if due.is_some() => self.send_acks(false).await,
            }
        }
    }

    fn note(&self, tags: impl IntoIterator<Item = Tag>, mut note: impl FnMut(&mut Ledger, u64) -> bool) {
        let mut stale = 0;
        let mut changed = false;
        {
            let mut book = lock(&self.book);
            for tag in tags {
                if tag.generation == book.generation {
                    changed |= note(&mut book.ledger, tag.number);
                } else {
                    stale += 1;
                }
            }
        }
        if changed {
            self.changed.notify_one();
        }
        self.count_stale(stale);
    }

    fn count_stale(&self, stale: usize) {
        if stale > 0 {
            count("posthaste_stale_acks_total", &self.queue, stale);
        }
    }

    fn next_generation(&self) -> u64 {
        let mut book = lock(&self.book);
        let unsent = book.ledger.unsent();
        book.ledger = Ledger::new(self.prefetch);
        book.generation += 1;
        let generation = book.generation;
        drop(book);
        self.count_stale(unsent);
        generation
    }

    async fn send_acks(&self, all: bool) {
        let channel = self.channel.lock().await;
        let commands = lock(&self.book).ledger.commands(Instant::now(), all);
        if commands.is_empty() {
            return;
        }
        let unsent = match &*channel {
            Some(channel) => send_commands(channel, &commands).await,
            None => commands.iter().map(|command| command.count()).sum(),
        };
        self.count_stale(unsent);
    }

    /// Questions that make the broker's channel process work off what we said. It keeps but 32 acks in flight to a quorum
    /// queue and forgets the others if the channel closes meanwhile: measured on 3.10.8, of 200 single acks written just
    /// before a close, 167 messages came back. Each question is answered after those in flight, so there are as many as
    /// it takes.
    async fn sync_with_broker(&self) {
        let channel = self.channel.lock().await;
        let Some(channel) = channel.as_ref().filter(|channel| channel.status().connected()) else { return };
        let asking = async {
            for _ in 0..=self.prefetch / ACKS_IN_FLIGHT {
                let name = ShortString::try_new(self.queue.as_str()).unwrap_or_default();
                let options = QueueDeclareOptions::durable().passive();
                if channel.queue_declare(name, options, FieldTable::default()).await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(ANSWER_TIMEOUT, asking).await;
    }
}

/// Acks that the broker's channel process has in flight to a quorum queue.
const ACKS_IN_FLIGHT: u16 = 32;

/// Returns how many deliveries the broker was not told about, because the channel is gone.
async fn send_commands(channel: &Channel, commands: &[AckCommand]) -> usize {
    let mut pipeline = Pipeline::start(commands.iter().map(|command| send_ack(channel, *command)));
    let _ = timeout(ACK_TIMEOUT, pipeline.finish()).await;
    let sent = pipeline.results().into_iter().map(|result| matches!(result, Some(Ok(()))));
    commands.iter().zip(sent).filter(|(_, sent)| !sent).map(|(command, _)| command.count()).sum()
}

#[expect(clippy::disallowed_methods, reason = "the one legal caller: it speaks for the ledger, in order")]
async fn send_ack(channel: &Channel, command: AckCommand) -> lapin::Result<()> {
    match command {
        AckCommand::DoneThrough(number, _) => channel.basic_ack(number, BasicAckOptions { multiple: true }).await,
        AckCommand::Done(number) => channel.basic_ack(number, BasicAckOptions { multiple: false }).await,
        AckCommand::Requeue(number) => {
            channel.basic_nack(number, BasicNackOptions { multiple: false, requeue: true }).await
        }
    }
}
