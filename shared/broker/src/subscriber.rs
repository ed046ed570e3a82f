//! Receives hints while it is registered. Any hint may be missed.
//!
//! Every registration has its own queue under a new name, exclusive to the connection and deleted with it, so it
//! never sees leftovers of an earlier one. Exclusive queues are classic on every RabbitMQ from 3.10 to 4.x. Messages
//! are not acked: after [`Heard::Began`] the receiver reads again what it may have missed.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use runtime::reconnect::Reconnect;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    connection::{Broker, BrokerError},
    declare::is_missing,
};

/// A healthy broker answers a request on a channel within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Hints that wait in the broker for a busy receiver. Beyond it the oldest are dropped: later hints lead to the same
/// reads.
const WAITING_MAX: i32 = 50_000;

/// The messages of a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A registration began: nothing after this is missed, but earlier messages may be.
    Began,
    /// The body of a message.
    Message(Vec<u8>),
}

/// Consumes an exchange.
pub struct Subscriber {
    broker: Broker,
    exchange: &'static str,
    key: &'static str,
    stop: CancellationToken,
    stream: Option<(Channel, lapin::Consumer)>,
    reconnect: Reconnect,
}

impl Subscriber {
    /// Receives what is published to `exchange` with `key`, until `stop`. Registers with the first
    /// [`Subscriber::next`].
    pub fn new(broker: &Broker, exchange: &'static str, key: &'static str, stop: &CancellationToken) -> Self {
        let (broker, stop) = (broker.clone(), stop.clone());
        Self { broker, exchange, key, stop, stream: None, reconnect: Reconnect::new() }
    }

    /// Waits for the next item; `None` only after `stop`.
    pub async fn next(&mut self) -> Option<Heard> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.receive()).await
    }

    async fn receive(&mut self) -> Heard {
        loop {
            if self.stream.is_none() {
                self.register().await;
                return Heard::Began;
            }
            if let Some(body) = self.take().await {
                self.reconnect.reset();
                return Heard::Message(body);
            }
        }
    }

    /// The next message; `None` if the registration ended.
    async fn take(&mut self) -> Option<Vec<u8>> {
        let (channel, deliveries) = self.stream.as_mut()?;
        match deliveries.next().await {
            Some(Ok(delivery)) => return Some(delivery.data),
            Some(Err(error)) => tracing::warn!(exchange = self.exchange, %error, "hints are not heard for a moment"),
            None => tracing::warn!(exchange = self.exchange, "the broker ended the hearing of hints"),
        }
        // The broker deletes the queue with its connection, or with its last consumer.
        let _ = timeout(Duration::from_secs(1), channel.close(200, "done".into())).await;
        self.stream = None;
        self.reconnect.pause().await;
        None
    }

    /// Registers with the broker; retries without a limit.
    async fn register(&mut self) {
        loop {
            let error = match self.subscribe().await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return;
                }
                Err(error) => error,
            };
            tracing::warn!(exchange = self.exchange, %error, "hints are not heard yet");
            if matches!(&error, BrokerError::Amqp(error) if is_missing(error))
                && let Err(error) = self.broker.restore_topology().await
            {
                tracing::warn!(exchange = self.exchange, %error, "the exchange is missing and could not be restored");
            }
            self.reconnect.pause().await;
        }
    }

    async fn subscribe(&self) -> Result<(Channel, lapin::Consumer), BrokerError> {
        let channel = self.broker.channel().await?;
        let consumer = timeout(ANSWER_TIMEOUT, listen(&channel, self.exchange, self.key));
        let consumer = consumer.await.map_err(|_| BrokerError::AnswerTimeout)??;
        Ok((channel, consumer))
    }
}

async fn listen(channel: &Channel, exchange: &'static str, key: &'static str) -> lapin::Result<lapin::Consumer> {
    let name = ShortString::try_new(format!("{exchange}.{}", Uuid::now_v7())).unwrap_or_default();
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.clone(), options, arguments()).await?;
    let (exchange, key) =
        (ShortString::try_new(exchange).unwrap_or_default(), ShortString::try_new(key).unwrap_or_default());
    channel.queue_bind(name.clone(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    channel.basic_consume(name, ShortString::default(), options, FieldTable::default()).await
}

/// The queue type is set because a virtual host may have another default.
fn arguments() -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", AMQPValue::LongString("classic".into())),
        ("x-max-length", AMQPValue::LongInt(WAITING_MAX)),
        ("x-overflow", AMQPValue::LongString("drop-head".into())),
    ] {
        table.insert(ShortString::try_new(name).unwrap_or_default(), value);
    }
    table
}
