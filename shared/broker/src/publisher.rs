//! The only place that publishes messages: always with a confirm, and persistent and mandatory unless the message is
//! a hint that may get lost.
//!
//! One task owns each publishing channel. It takes all waiting messages, writes them in one go and waits for all
//! their confirms before it takes more; messages that arrive meanwhile go into the next batch. Only one batch is in
//! flight at a time because lapin attaches a returned message to the next confirm, whichever it is. So only when all
//! confirms of a channel are in do we know which messages were returned.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::contract::wire::Wire;
use lapin::{
    BasicProperties, Channel, Confirmation,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, MAX_SHORT_STRING_LENGTH, ShortString},
};
use metrics::{counter, histogram};
use runtime::{metric, reconnect::Reconnect, telemetry::at_zero};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    connection::{Broker, BrokerError, BrokerState},
    declare::is_missing,
    pipeline::Pipeline,
    properties::is_forbidden_header,
};

/// The default time from `publish` to the confirm; also the limit for requests on the channel.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Unconfirmed messages per channel: enough to keep the broker busy for the round trip of a confirm, few enough to
/// lose.
const IN_FLIGHT_MAX: usize = 1024;
/// Messages without a result per channel; beyond it callers wait.
const WAITING_MAX: usize = 4 * IN_FLIGHT_MAX;
/// Messages that a caller hands to the channel's task in one piece.
const BATCH_MAX: usize = 256;
/// Far above our own limits, and below the 16 MiB that brokers from 4.0 on accept.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The headers must fit into one frame. The smallest frame limit that a broker may insist on is 128 KiB by default.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// The delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;
/// The delivery mode of messages that stay in memory.
const TRANSIENT: u8 = 1;

/// Why we do not know that a message is on the broker. The caller keeps the message and publishes it again later.
/// Repeats are safe, because every receiver recognises duplicates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it.
    #[error("no queue takes messages of exchange `{exchange}` with key `{routing_key}`")]
    Unroutable {
        /// The exchange it was published to.
        exchange: &'static str,
        /// Its routing key.
        routing_key: String,
    },
    /// The broker sent a nack, for example because a queue is full.
    #[error("the broker refused the message")]
    Refused,
    /// The confirm did not arrive in time.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// There is no connection, or it was lost.
    #[error("the broker is not connected")]
    Disconnected,
    /// The broker is short of memory or disk and accepts nothing.
    #[error("the broker takes no messages at the moment")]
    Blocked,
    /// No broker accepts such a message.
    #[error("{0}")]
    Invalid(&'static str),
    /// The body cannot be written as JSON.
    #[error("failed to encode the body: {0}")]
    Encode(String),
    /// The channel was not in confirm mode: a bug in this module.
    #[error("the message was published without asking for a confirm")]
    Unconfirmed,
}

/// Every [`PublishError::reason`].
const REASONS: [&str; 8] =
    ["unroutable", "refused", "timed_out", "disconnected", "blocked", "invalid", "encode", "unconfirmed"];

impl PublishError {
    /// The label of the metric.
    const fn reason(&self) -> &'static str {
        match self {
            Self::Unroutable { .. } => "unroutable",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Disconnected => "disconnected",
            Self::Blocked => "blocked",
            Self::Invalid(_) => "invalid",
            Self::Encode(_) => "encode",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// The headers of an outgoing message; a list, because there are few.
pub type Headers = Vec<(Cow<'static, str>, String)>;

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The exchange; with the empty name the key names the queue.
    pub exchange: &'static str,
    /// The routing key.
    pub routing_key: Cow<'static, str>,
    /// Identifies the message to every receiver, and to us when the broker returns it.
    pub message_id: String,
    /// The AMQP `type`, such as `work.v1`.
    pub kind: Cow<'static, str>,
    /// The headers; those that the broker interprets are not sent.
    pub headers: Headers,
    /// The correlation id, if this is an answer.
    pub correlation_id: Option<String>,
    /// The media type of the body.
    pub content_type: Cow<'static, str>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it is a hint: it does not survive a restart of the broker and may have no receiver.
    pub is_hint: bool,
}

impl Outgoing {
    /// A message with `body` as JSON and no optional parts.
    pub fn json<B: Wire>(
        exchange: &'static str,
        routing_key: impl Into<Cow<'static, str>>,
        message_id: impl Into<String>,
        body: &B,
    ) -> Result<Self, PublishError> {
        let body = serde_json::to_vec(body).map_err(|error| PublishError::Encode(error.to_string()))?;
        Ok(Self { exchange, kind: Cow::Borrowed(B::TYPE), ..Self::to_queue(routing_key, message_id, body) })
    }

    /// A message directly to `queue`, with a body that is already JSON and no optional parts.
    pub fn to_queue(queue: impl Into<Cow<'static, str>>, message_id: impl Into<String>, body: Vec<u8>) -> Self {
        Self {
            exchange: "",
            routing_key: queue.into(),
            message_id: message_id.into(),
            kind: Cow::Borrowed(""),
            headers: Headers::new(),
            correlation_id: None,
            content_type: Cow::Borrowed("application/json"),
            body,
            is_hint: false,
        }
    }

    /// As [`Outgoing::json`], for a hint, which may get lost.
    pub fn hint<B: Wire>(
        exchange: &'static str,
        routing_key: &'static str,
        message_id: impl Into<String>,
        body: &B,
    ) -> Result<Self, PublishError> {
        Ok(Self { is_hint: true, ..Self::json(exchange, routing_key, message_id, body)? })
    }

    /// A message that violates the protocol would close the whole channel, so check it before sending.
    fn check(&self) -> Result<(), PublishError> {
        let short = |text: &str| text.len() <= MAX_SHORT_STRING_LENGTH;
        let names = [self.exchange, &self.routing_key, &self.message_id, &self.kind, &self.content_type];
        let names = names.into_iter().chain(self.correlation_id.as_deref());
        if !names.chain(self.headers.iter().map(|(name, _)| &**name)).all(short) {
            return Err(PublishError::Invalid("a key, id, type or header name is longer than 255 bytes"));
        }
        if self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > HEADERS_BYTES_MAX {
            return Err(PublishError::Invalid("the headers are longer than 64 KiB"));
        }
        if self.body.len() > BODY_BYTES_MAX {
            return Err(PublishError::Invalid("the body is longer than 8 MiB"));
        }
        Ok(())
    }

    fn properties(&self) -> Result<BasicProperties, PublishError> {
        let properties = BasicProperties::default()
            .with_delivery_mode(if self.is_hint { TRANSIENT } else { PERSISTENT })
            .with_content_type(short(&self.content_type)?)
            .with_message_id(short(&self.message_id)?)
            .with_type(short(&self.kind)?)
            .with_headers(self.table()?);
        match &self.correlation_id {
            Some(id) => Ok(properties.with_correlation_id(short(id.as_str())?)),
            None => Ok(properties),
        }
    }

    fn table(&self) -> Result<FieldTable, PublishError> {
        let mut table = FieldTable::default();
        for (name, value) in self.headers.iter().filter(|(name, _)| !is_forbidden_header(name)) {
            table.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
        }
        Ok(table)
    }
}

fn short(text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| PublishError::Invalid("a name is longer than 255 bytes"))
}

/// A handle to the publishing channels of a process; clones share them.
#[derive(Clone, Debug)]
pub struct Publisher {
    channels: Arc<[PublishChannel]>,
    turn: Arc<AtomicUsize>,
    confirm_timeout: Duration,
}

#[derive(Debug)]
struct PublishChannel {
    waiting: mpsc::Sender<Batch>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Batch {
    messages: Vec<Outgoing>,
    reply: oneshot::Sender<Vec<Result<(), PublishError>>>,
    _permit: OwnedSemaphorePermit,
}

impl Batch {
    fn answer(self, results: Vec<Result<(), PublishError>>) {
        // Sending fails if the caller gave up.
        let _ = self.reply.send(results);
    }

    fn fail(self, error: &PublishError) {
        let results = vec![Err(error.clone()); self.messages.len()];
        self.answer(results);
    }
}

impl Publisher {
    /// Publishes through one channel of `broker`, which is enough for tens of thousands of messages a second.
    pub fn start(broker: &Broker) -> Self {
        Self::start_with(broker, 1)
    }

    /// Publishes through several channels of `broker` in turn; messages of different calls may then overtake each
    /// other.
    pub fn start_with(broker: &Broker, channels: usize) -> Self {
        at_zero(metric::PUBLISH_FAILED, "reason", REASONS);
        let channels = (0..channels.max(1)).map(|_| PublishChannel::start(broker.clone())).collect();
        Self { channels, turn: Arc::default(), confirm_timeout: PUBLISH_TIMEOUT }
    }

    /// The same publisher with another confirm timeout.
    #[must_use]
    pub fn waiting(self, confirm_timeout: Duration) -> Self {
        Self { confirm_timeout, ..self }
    }

    /// Publishes one message and waits for its confirm.
    pub async fn publish<B: Wire>(
        &self,
        exchange: &'static str,
        routing_key: impl Into<Cow<'static, str>>,
        message_id: impl Into<String>,
        headers: Headers,
        body: &B,
    ) -> Result<(), PublishError> {
        let message = Outgoing { headers, ..Outgoing::json(exchange, routing_key, message_id, body)? };
        self.publish_one(message).await
    }

    /// Publishes one message and waits for its confirm.
    pub async fn publish_one(&self, message: Outgoing) -> Result<(), PublishError> {
        self.publish_all(vec![message]).await.pop().unwrap_or(Err(PublishError::Disconnected))
    }

    /// Publishes all messages and waits for their confirms; the results have the order of the messages.
    pub async fn publish_all(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let mut results: Vec<_> = messages.iter().map(Outgoing::check).collect();
        let valid = messages.into_iter().zip(&results).filter(|(_, check)| check.is_ok());
        let valid = valid.map(|(message, _)| message).collect();
        let mut sent = self.send(valid).await.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = sent.next().unwrap_or(Err(PublishError::Disconnected));
        }
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            counter!(metric::PUBLISH_FAILED, "reason" => error.reason()).increment(1);
        }
        results
    }

    async fn send(&self, mut messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::with_capacity(messages.len());
        let deadline = tokio::time::Instant::now() + self.confirm_timeout;
        let mut replies = VecDeque::new();
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(BATCH_MAX));
            let batch = std::mem::replace(&mut messages, rest);
            let count = batch.len();
            let reply = tokio::time::timeout_at(deadline, self.enqueue(batch)).await;
            replies.push_back((count, reply));
        }
        for (count, reply) in replies {
            let answer = match reply {
                Ok(Some(reply)) => tokio::time::timeout_at(deadline, reply).await,
                Ok(None) => Ok(Ok(vec![Err(PublishError::Disconnected); count])),
                Err(late) => Err(late),
            };
            match answer {
                Ok(Ok(answer)) => results.extend(answer),
                Ok(Err(_)) => results.extend(vec![Err(PublishError::Disconnected); count]),
                Err(_) => results.extend(vec![Err(PublishError::TimedOut); count]),
            }
        }
        results
    }

    async fn enqueue(&self, messages: Vec<Outgoing>) -> Option<Reply> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels.get(turn)?.enqueue(messages).await
    }
}

type Reply = oneshot::Receiver<Vec<Result<(), PublishError>>>;

impl PublishChannel {
    fn start(broker: Broker) -> Self {
        let (waiting, batches) = mpsc::channel(WAITING_MAX);
        tokio::spawn(ChannelTask { broker, batches, next: VecDeque::new() }.run());
        Self { waiting, permits: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    /// Hands the messages to the channel's task; `None` once the broker connection is stopped.
    async fn enqueue(&self, messages: Vec<Outgoing>) -> Option<Reply> {
        let weight = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.permits).acquire_many_owned(weight).await.ok()?;
        let (reply, answer) = oneshot::channel();
        self.waiting.send(Batch { messages, reply, _permit: permit }).await.ok()?;
        Some(answer)
    }
}

/// The task that owns a publishing channel. It ends when the last publisher is dropped or the connection is stopped.
struct ChannelTask {
    broker: Broker,
    batches: mpsc::Receiver<Batch>,
    /// Received from the callers, not yet in flight.
    next: VecDeque<Batch>,
}

/// Why a channel is no longer used.
enum End {
    NoPublisher,
    /// It was closed before anything was written to it.
    Closed,
    /// It failed with messages in flight, or did not answer.
    Broken(Option<lapin::Error>),
}

impl ChannelTask {
    async fn run(mut self) {
        let mut reconnect = Reconnect::new();
        loop {
            match self.open().await {
                Ok(Some(channel)) => match self.serve(&channel, &mut reconnect).await {
                    End::NoPublisher => return close(&channel).await,
                    End::Closed => continue,
                    End::Broken(error) => {
                        tracing::warn!(connection = self.broker.name(), ?error, "a publishing channel broke");
                        self.repair(error).await;
                        close(&channel).await;
                    }
                },
                Ok(None) | Err(BrokerError::Stopped) => return self.refuse_all(),
                Err(error) => tracing::warn!(connection = self.broker.name(), %error, "no publishing channel"),
            }
            self.refuse_during(reconnect.next()).await;
        }
    }

    /// Opens a channel in confirm mode. While there is no connection, callers get an error at once: messages should
    /// wait in the outbox, not in memory. `None` if no publisher is left.
    async fn open(&mut self) -> Result<Option<Channel>, BrokerError> {
        if !self.broker.is_usable() {
            self.refuse_next(&unavailable(&self.broker));
        }
        loop {
            tokio::select! {
                biased;
                usable = self.broker.usable() => { usable?; break }
                batch = self.batches.recv() => match batch {
                    Some(batch) => batch.fail(&unavailable(&self.broker)),
                    None => return Ok(None),
                }
            }
        }
        let channel = self.broker.channel().await?;
        timeout(PUBLISH_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default()))
            .await
            .map_err(|_| BrokerError::AnswerTimeout)??;
        Ok(Some(channel))
    }

    /// Pauses before the next channel; callers get an error meanwhile instead of waiting.
    async fn refuse_during(&mut self, pause: Duration) {
        self.refuse_next(&PublishError::Disconnected);
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(batch) = self.batches.recv() => batch.fail(&unavailable(&self.broker)),
            }
        }
    }

    fn refuse_next(&mut self, error: &PublishError) {
        self.next.drain(..).for_each(|batch| batch.fail(error));
    }

    fn refuse_all(&mut self) {
        self.batches.close();
        self.refuse_next(&PublishError::Disconnected);
        while let Ok(batch) = self.batches.try_recv() {
            batch.fail(&PublishError::Disconnected);
        }
    }

    async fn repair(&self, error: Option<lapin::Error>) {
        if error.as_ref().is_some_and(is_missing)
            && let Err(error) = self.broker.restore_topology().await
        {
            tracing::warn!(connection = self.broker.name(), %error, "an exchange is missing and could not be restored");
        }
    }

    async fn serve(&mut self, channel: &Channel, reconnect: &mut Reconnect) -> End {
        loop {
            if !self.fill_queue().await {
                return End::NoPublisher;
            }
            if let BrokerState::Blocked { .. } = self.broker.state() {
                self.refuse_next(&PublishError::Blocked);
                continue;
            }
            if !channel.status().connected() {
                return End::Closed;
            }
            match publish_batches(channel, self.next_batches()).await {
                Ok(()) => reconnect.reset(),
                Err(error) => return End::Broken(error),
            }
        }
    }

    /// Waits for messages to publish; `false` if no publisher is left.
    async fn fill_queue(&mut self) -> bool {
        if self.next.is_empty() {
            let Some(batch) = self.batches.recv().await else { return false };
            self.next.push_back(batch);
        }
        while let Ok(batch) = self.batches.try_recv() {
            self.next.push_back(batch);
        }
        true
    }

    /// The waiting batches, up to `IN_FLIGHT_MAX` messages.
    fn next_batches(&mut self) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut free = IN_FLIGHT_MAX;
        while let Some(batch) = self.next.pop_front_if(|batch| batch.messages.len() <= free) {
            // A caller that gave up leaves its message to the outbox.
            if !batch.reply.is_closed() {
                free -= batch.messages.len();
                batches.push(batch);
            }
        }
        batches
    }
}

fn unavailable(broker: &Broker) -> PublishError {
    match broker.state() {
        BrokerState::Blocked { .. } => PublishError::Blocked,
        _ => PublishError::Disconnected,
    }
}

async fn close(channel: &Channel) {
    let _ = timeout(Duration::from_secs(1), channel.close(200, "done".into())).await;
}

/// Publishes the batches and sends the results to their callers. Fails, with the reason if there is one, when the
/// channel is no longer usable.
async fn publish_batches(channel: &Channel, batches: Vec<Batch>) -> Result<(), Option<lapin::Error>> {
    let started = Instant::now();
    let messages: Vec<&Outgoing> = batches.iter().flat_map(|batch| &batch.messages).collect();
    let mut pipeline = Pipeline::start(messages.iter().map(|message| send(channel, message)));
    let in_time = timeout(PUBLISH_TIMEOUT, pipeline.finish()).await.is_ok();
    let outcomes = pipeline.results();
    let failure = outcomes.iter().flatten().find_map(|outcome| outcome.as_ref().err()).cloned();
    let mut results = match_confirms(&messages, outcomes).into_iter();
    count(&messages, results.as_slice());
    histogram!(metric::PUBLISH_CONFIRM_SECONDS).record(started.elapsed());
    for batch in batches {
        let results = results.by_ref().take(batch.messages.len()).collect();
        batch.answer(results);
    }
    if in_time && failure.is_none() { Ok(()) } else { Err(failure) }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one legal caller: persistent, mandatory and confirmed, but for hints"
)]
async fn send(channel: &Channel, message: &Outgoing) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: !message.is_hint, immediate: false };
    let (Ok(key), Ok(exchange), Ok(properties)) =
        (short(&message.routing_key), short(message.exchange), message.properties())
    else {
        // `check` has already refused such a message.
        return Ok(Confirmation::Nack(None));
    };
    channel.basic_publish(exchange, key, options, &message.body, properties).await?.await
}

/// Identifies a returned message. Messages that are equal in all three parts share one result.
type Label = (String, String, String);

fn label(returned: &BasicReturnMessage) -> Label {
    let id = returned.properties.message_id().as_ref().map_or("", ShortString::as_str);
    (id.to_owned(), returned.exchange.to_string(), returned.routing_key.to_string())
}

fn match_confirms(
    messages: &[&Outgoing],
    outcomes: Vec<Option<lapin::Result<Confirmation>>>,
) -> Vec<Result<(), PublishError>> {
    let mut returned = HashSet::new();
    let mut results: Vec<_> = outcomes.into_iter().map(|outcome| confirm_result(outcome, &mut returned)).collect();
    if !returned.is_empty() {
        for (result, message) in results.iter_mut().zip(messages) {
            let label = (message.message_id.clone(), message.exchange.to_owned(), message.routing_key.to_string());
            if returned.contains(&label) {
                let (exchange, routing_key) = (message.exchange, message.routing_key.to_string());
                *result = Err(PublishError::Unroutable { exchange, routing_key });
            }
        }
    }
    results
}

/// A returned message inside a confirm says nothing about the message that the confirm is for.
fn confirm_result(
    outcome: Option<lapin::Result<Confirmation>>,
    returned: &mut HashSet<Label>,
) -> Result<(), PublishError> {
    match outcome {
        Some(Ok(Confirmation::Ack(stray))) => {
            returned.extend(stray.iter().map(label));
            Ok(())
        }
        Some(Ok(Confirmation::Nack(stray))) => {
            returned.extend(stray.iter().map(label));
            Err(PublishError::Refused)
        }
        Some(Ok(Confirmation::NotRequested)) => Err(PublishError::Unconfirmed),
        Some(Err(_)) => Err(PublishError::Disconnected),
        None => Err(PublishError::TimedOut),
    }
}

/// One increment per consecutive messages to the same exchange, which is usually one per batch.
fn count(messages: &[&Outgoing], results: &[Result<(), PublishError>]) {
    let mut published = messages.iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(it, _)| it.exchange);
    let Some(mut exchange) = published.next() else { return };
    let mut run = 1;
    for next in published {
        if next != exchange {
            counter!(metric::PUBLISHED, "exchange" => exchange).increment(run);
            (exchange, run) = (next, 0);
        }
        run += 1;
    }
    counter!(metric::PUBLISHED, "exchange" => exchange).increment(run);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing() -> Outgoing {
        Outgoing {
            exchange: "e",
            routing_key: "k".into(),
            message_id: "m".to_owned(),
            kind: "work.v1".into(),
            headers: Headers::new(),
            correlation_id: None,
            content_type: "application/json".into(),
            body: Vec::new(),
            is_hint: false,
        }
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused_before_it_is_sent() {
        let long = "x".repeat(256);
        assert_eq!(outgoing().check(), Ok(()));
        let refused = [
            Outgoing { message_id: long.clone(), ..outgoing() },
            Outgoing { routing_key: long.clone().into(), ..outgoing() },
            Outgoing { correlation_id: Some(long.clone()), ..outgoing() },
            Outgoing { headers: vec![(long.into(), String::new())], ..outgoing() },
            Outgoing { headers: vec![("h".into(), "x".repeat(HEADERS_BYTES_MAX))], ..outgoing() },
            Outgoing { body: vec![0; BODY_BYTES_MAX + 1], ..outgoing() },
        ];
        for message in refused {
            assert!(matches!(message.check(), Err(PublishError::Invalid(_))), "{message:?}");
        }
    }

    #[test]
    fn every_message_but_a_hint_is_persistent_and_carries_no_header_of_the_broker() {
        let headers = vec![("x-death".into(), "1".to_owned()), ("traceparent".into(), "2".to_owned())];
        let properties = Outgoing { headers, ..outgoing() }.properties().unwrap();
        assert_eq!(*properties.delivery_mode(), Some(PERSISTENT));
        let hint = Outgoing { is_hint: true, ..outgoing() }.properties().unwrap();
        assert_eq!(*hint.delivery_mode(), Some(TRANSIENT));
        let headers = properties.headers().as_ref().unwrap();
        assert!(headers.contains_key("traceparent") && !headers.contains_key("x-death"));
    }

    #[test]
    fn a_message_without_an_answer_timed_out_and_one_with_an_error_is_disconnected() {
        let (first, second) = (outgoing(), outgoing());
        let lost = lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionAborted));
        let results = match_confirms(&[&first, &second], vec![None, Some(Err(lost))]);
        assert_eq!(results, [Err(PublishError::TimedOut), Err(PublishError::Disconnected)]);
    }
}
