//! Hears what is published while it listens: hints, each of which may be missed.
//!
//! Every registration has a queue of its own, exclusive to the connection and gone with it, under a new name: so it never
//! meets the rest of an earlier one. Exclusive queues are classic on every RabbitMQ from 3.10 to 4.x. Nothing is acknowledged:
//! a listener makes up for lost messages when it hears that a registration began.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    connection::{Broker, BrokerError},
    declare::is_missing,
};
use crate::reconnect::Reconnect;

/// A healthy broker answers a question on a channel within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Hints that wait in the broker for a listener that is busy; of more the oldest are dropped, since the rest says the same.
const WAITING_MAX: i32 = 50_000;

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From here on nothing is missed; what was published before may have been.
    Began,
    /// The body of a message.
    Message(Vec<u8>),
}

/// Listens to an exchange.
pub struct Subscriber {
    broker: Broker,
    exchange: &'static str,
    key: &'static str,
    stop: CancellationToken,
    stream: Option<(Channel, lapin::Consumer)>,
    reconnect: Reconnect,
}

impl Subscriber {
    /// Will listen to what is published to `exchange` with `key`, until `stop`.
    pub fn new(broker: &Broker, exchange: &'static str, key: &'static str, stop: &CancellationToken) -> Self {
        let (broker, stop) = (broker.clone(), stop.clone());
        Self { broker, exchange, key, stop, stream: None, reconnect: Reconnect::new() }
    }

    /// Waits for the next thing to hear; `None` once stopped, and only then.
    pub async fn next(&mut self) -> Option<Heard> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.hear()).await
    }

    async fn hear(&mut self) -> Heard {
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

    /// The next message; nothing where the registration is over.
    async fn take(&mut self) -> Option<Vec<u8>> {
        let (channel, deliveries) = self.stream.as_mut()?;
        match deliveries.next().await {
            Some(Ok(delivery)) => return Some(delivery.data),
            Some(Err(error)) => tracing::warn!(exchange = self.exchange, %error, "hints are not heard for a moment"),
            None => tracing::warn!(exchange = self.exchange, "the broker ended the hearing of hints"),
        }
        // The queue goes with the channel's connection, or with its last consumer.
        let _ = timeout(Duration::from_secs(1), channel.close(200, "done".into())).await;
        self.stream = None;
        self.reconnect.pause().await;
        None
    }

    /// Makes sure that there is a registration, however long that takes.
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

/// The kind is named because a virtual host may have another one as its default.
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
