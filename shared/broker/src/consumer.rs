//! The only place that consumes messages and the only place that acks them.
//!
//! A consumer owns one channel. When its stream ends for any reason (connection lost, queue deleted, the broker's
//! consumer timeout), it opens another channel and registers again under a new tag: RabbitMQ before 3.11.23 could
//! stop delivering to a reused tag, and 3.10.8 may fail a channel that registers again with deliveries in flight.
//!
//! Callers pass finished deliveries to the [`Acker`], in any order and from any task. It drops and counts tags of a
//! lost channel: the broker redelivers those messages.

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
use metrics::{counter, gauge};
use runtime::{metric, reconnect::Reconnect};
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

/// A healthy broker answers a request on a channel within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Acks have no answer, so writing them is fast. Only a dead connection takes this long, and its loss redelivers
/// everything.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// A received message. It is ours until its tag is passed to the [`Acker`].
#[derive(Debug)]
pub struct Delivery {
    /// The tag to finish it with.
    pub tag: Tag,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// The exchange it was published to.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its properties and headers.
    pub properties: Properties,
    /// Its body.
    pub body: Vec<u8>,
}

/// Identifies a delivery of one consumer; only the acker of that consumer takes it.
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
    /// The health of a consumer of `queue`.
    pub fn new(queue: impl Into<String>, is_registered: bool) -> Arc<Self> {
        let (registered, last_delivery) = (AtomicBool::new(is_registered), Mutex::new(None));
        Arc::new(Self { queue: queue.into(), registered, last_delivery })
    }

    /// The queue that the consumer reads.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether the consumer is registered with the broker, as far as we know.
    pub fn is_consuming(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// When the last message arrived, if any.
    pub fn last_delivery(&self) -> Option<Instant> {
        *lock(&self.last_delivery)
    }

    fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
        let value = f64::from(u8::from(registered));
        gauge!(metric::CONSUMER_REGISTERED, "queue" => self.queue.clone()).set(value);
    }

    fn delivered(&self, batch: &[Delivery]) {
        *lock(&self.last_delivery) = Some(Instant::now());
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = gauge!(metric::CONSUMER_LAST_DELIVERY, "queue" => self.queue.clone());
        seconds.set(since_epoch.as_secs_f64());
        let redelivered = batch.iter().filter(|delivery| delivery.redelivered).count();
        if redelivered > 0 {
            count(metric::REDELIVERED, &self.queue, redelivered);
        }
    }
}

fn init_counters(queue: &str) {
    for metric in [metric::REDELIVERED, metric::STALE_ACKS] {
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
    /// Received but not returned yet. It is a field so that a cancelled `next_batch` loses no message.
    batch: Vec<Delivery>,
}

/// One registration with the broker.
struct Stream {
    channel: Channel,
    deliveries: lapin::Consumer,
    generation: u64,
    ended: bool,
    /// The stream ended without an error, so the broker cancelled only this consumer.
    is_cancelled: bool,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Consumes `queue` until `stop`, with at most `prefetch` unfinished messages. Nothing is sent to the broker
    /// before the first [`Consumer::next_batch`].
    pub fn open(broker: &Broker, queue: impl Into<String>, prefetch: u16, stop: &CancellationToken) -> Self {
        let queue = queue.into();
        let prefetch = prefetch.max(1);
        init_counters(&queue);
        Self {
            broker: broker.clone(),
            prefetch,
            stop: stop.child_token(),
            acker: Acker::start(&queue, prefetch),
            health: ConsumerHealth::new(queue.clone(), false),
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

    /// Waits for a message, then adds up to `max` messages that are ready or arrive within `linger`. Returns `None`
    /// only after `stop`: losses are repaired here. Safe to cancel; no message is lost.
    pub async fn next_batch(&mut self, max: usize, linger: Duration) -> Option<Vec<Delivery>> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.gather(max.max(1), linger)).await?;
        let batch = std::mem::take(&mut self.batch);
        self.health.delivered(&batch);
        self.reconnect.reset();
        Some(batch)
    }

    /// Waits until a message is ready; `None` after `stop`.
    pub async fn arrived(&mut self) -> Option<()> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.gather(1, Duration::ZERO)).await
    }

    /// Stops consuming and requeues the messages that were not returned to the caller. The channel stays open so that
    /// the acker can finish the others. Then call [`Acker::flush`], and drop the consumer last.
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

    /// Requeues all unfinished messages and consumes nothing until the next [`Consumer::next_batch`]. Do not use it
    /// as a short pause: the broker counts each return of a message.
    pub async fn give_back(&mut self) {
        // Send the acks first, so that finished messages do not return with the others.
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

    /// Registers with the broker; retries without a limit.
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
        // Pause, so that a consumer that is cancelled again and again does not keep the broker busy. A lost
        // connection needs no pause here: its reconnect pause comes before the next channel.
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

/// Finishes deliveries of one consumer; clones share the state. Only [`Acker::flush`] waits.
#[derive(Clone)]
pub struct Acker {
    state: Arc<AckState>,
    /// Ends the task when the last handle is dropped.
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
    /// The channel for acks. The sender holds the lock, so acks are sent in the order in which they were computed.
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

    /// Acks the message.
    pub fn done(&self, tag: Tag) {
        self.done_all([tag]);
    }

    /// As [`Acker::done`] for many.
    pub fn done_all(&self, tags: impl IntoIterator<Item = Tag>) {
        let now = Instant::now();
        self.state.note(tags, |ledger, number| ledger.finish(number, now));
    }

    /// Returns the message to the queue. Use it only at shutdown, for messages that were not started: as a delay it
    /// would be a hot loop at the head of the queue.
    pub fn requeue(&self, tag: Tag) {
        self.state.note([tag], Ledger::give_back);
    }

    /// Whether the message is still ours. The broker redelivers a message whose channel is lost.
    pub fn is_current(&self, tag: Tag) -> bool {
        lock(&self.state.book).generation == tag.generation
    }

    /// The number of received messages that are neither done nor requeued.
    pub fn in_hand(&self) -> usize {
        lock(&self.state.book).ledger.open()
    }

    /// Sends all acks, due or not, and waits until the broker has processed them.
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

    /// Switches to a new channel; all earlier tags become stale.
    async fn adopt(&self, channel: Channel) -> u64 {
        *self.state.channel.lock().await = Some(channel);
        self.state.next_generation()
    }

    /// Sends the remaining acks, then drops the channel of `generation`.
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
    /// Sends acks when they are due, until the last handle is dropped.
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
            count(metric::STALE_ACKS, &self.queue, stale);
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

    /// Sends requests that make the broker's channel process our acks. It keeps only 32 acks in flight to a quorum
    /// queue and forgets the others if the channel closes meanwhile: measured on 3.10.8, of 200 single acks written
    /// just before a close, 167 messages came back. The broker answers each request after the acks in flight, so the
    /// number of requests follows from the prefetch.
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

/// Acks that the broker's channel process keeps in flight to a quorum queue.
const ACKS_IN_FLIGHT: u16 = 32;

/// Returns the number of deliveries whose ack was not sent, because the channel is lost.
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
