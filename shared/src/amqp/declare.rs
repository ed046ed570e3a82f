//! Makes the topology exist, or says what of it does not.

use std::fmt;

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::topology::{Argument, Arguments, Binding, Exchange, ExchangeType, Queue, Topology, topology};

/// Why the topology is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// What is wrong, one problem per object.
    #[error("the broker's topology is not as needed: {}", join(.0))]
    Problems(Vec<Problem>),
    /// The connection failed meanwhile, so nothing is known.
    #[error("failed to ask the broker about its topology")]
    Broker(#[from] lapin::Error),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// One thing that is not as needed, with what to do about it in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The exchange, queue or binding.
    pub object: String,
    /// What is wrong with it.
    pub fault: Fault,
    /// The broker's own words.
    pub detail: String,
}

/// What can be wrong with an exchange, a queue or a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not exist.
    Missing,
    /// It exists with another type or other arguments.
    Inequivalent,
    /// Our user may not declare it.
    Forbidden,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, detail, .. } = self;
        match self.fault {
            Fault::Missing => write!(f, "{object} is missing: run `posthaste topology declare`"),
            Fault::Inequivalent => write!(
                f,
                "{object} exists with other settings, which cannot be changed in place: drain and delete it, then run \
                 `posthaste topology declare` (broker: {detail})"
            ),
            Fault::Forbidden => write!(
                f,
                "{object} may not be declared by this user: grant `configure`, `write` and `read` on `^posthaste\\.`, \
                 or declare as an administrator and let the services only check (broker: {detail})"
            ),
        }
    }
}

/// The state of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue.
    pub name: String,
    /// Messages waiting, without those handed to consumers.
    pub messages_ready: u32,
    /// Consumers registered.
    pub consumers: u32,
}

enum Object<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    Binding(&'a Binding),
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "exchange `{}`", exchange.name),
            Self::Queue(queue) => write!(f, "queue `{}`", queue.name),
            Self::Binding(it) => write!(f, "binding `{}` of `{}` to `{}`", it.key, it.queue, it.exchange),
        }
    }
}

fn objects(topology: &Topology) -> impl Iterator<Item = Object<'_>> {
    let exchanges = topology.exchanges.iter().map(Object::Exchange);
    let queues = topology.queues.iter().map(Object::Queue);
    exchanges.chain(queues).chain(topology.bindings.iter().map(Object::Binding))
}

/// Creates whatever is missing. What is there already stays untouched, so every process may call it at every start.
/// All problems are reported together.
pub async fn declare(connection: &Connection) -> Result<(), TopologyError> {
    let topology = topology();
    let mut asker = Asker::open(connection).await?;
    let mut problems = Vec::new();
    for object in objects(&topology) {
        problems.extend(asker.create(&object).await?);
    }
    asker.close().await;
    conclude(problems)
}

/// Reports everything that is missing or has other settings, and creates nothing. Settings are compared by declaring
/// again what exists, which needs the `configure` permission; without it only existence is checked. AMQP cannot show
/// bindings, so those are not checked.
pub async fn check(connection: &Connection) -> Result<(), TopologyError> {
    let topology = topology();
    let mut asker = Asker::open(connection).await?;
    let mut problems = Vec::new();
    for object in objects(&topology).filter(|object| !matches!(object, Object::Binding(_))) {
        let problem = match asker.look(&object).await? {
            None => asker.create(&object).await?.filter(|problem| problem.fault != Fault::Forbidden),
            missing => missing,
        };
        problems.extend(problem);
    }
    asker.close().await;
    conclude(problems)
}

fn conclude(problems: Vec<Problem>) -> Result<(), TopologyError> {
    if problems.is_empty() { Ok(()) } else { Err(TopologyError::Problems(problems)) }
}

/// How much waits in each queue of the topology; a queue that does not exist is left out.
pub async fn depths(connection: &Connection) -> Result<Vec<QueueDepth>, TopologyError> {
    let mut asker = Asker::open(connection).await?;
    let mut depths = Vec::new();
    for queue in topology().queues {
        depths.extend(asker.depth(&queue).await?);
    }
    asker.close().await;
    Ok(depths)
}

/// How many messages wait in one queue, without those handed to consumers; `None`: there is no such queue.
pub async fn ready(connection: &Connection, name: &str) -> Result<Option<u32>, TopologyError> {
    let mut asker = Asker::open(connection).await?;
    let mut ready = None;
    if let Some(queue) = topology().queues.iter().find(|queue| queue.name == name) {
        ready = asker.depth(queue).await?.map(|depth| depth.messages_ready);
    }
    asker.close().await;
    Ok(ready)
}

/// The same on a channel that stays open; a queue that does not exist closes it.
pub(super) async fn ready_on(channel: &Channel, queue: &str) -> Result<u32, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}

/// A channel for questions. The broker closes a channel with every "no", so each one costs a new channel.
struct Asker<'a> {
    connection: &'a Connection,
    channel: Channel,
}

impl<'a> Asker<'a> {
    async fn open(connection: &'a Connection) -> Result<Self, lapin::Error> {
        Ok(Self { connection, channel: connection.create_channel().await? })
    }

    /// A leftover channel costs nothing that closing the connection does not clean up, so failing here is no matter.
    async fn close(self) {
        let _ = self.channel.close(200, "done".into()).await;
    }

    async fn create(&mut self, object: &Object<'_>) -> Result<Option<Problem>, TopologyError> {
        let answer = match object {
            Object::Exchange(exchange) => declare_exchange(&self.channel, exchange, false).await,
            Object::Queue(queue) => declare_queue(&self.channel, queue, false).await.map(drop),
            Object::Binding(binding) => bind(&self.channel, binding).await,
        };
        self.problem(object, answer).await
    }

    async fn look(&mut self, object: &Object<'_>) -> Result<Option<Problem>, TopologyError> {
        let answer = match object {
            Object::Exchange(exchange) => declare_exchange(&self.channel, exchange, true).await,
            Object::Queue(queue) => declare_queue(&self.channel, queue, true).await.map(drop),
            Object::Binding(_) => Ok(()),
        };
        self.problem(object, answer).await
    }

    async fn depth(&mut self, queue: &Queue) -> Result<Option<QueueDepth>, TopologyError> {
        match declare_queue(&self.channel, queue, true).await {
            Ok(found) => Ok(Some(QueueDepth {
                name: queue.name.clone(),
                messages_ready: found.message_count(),
                consumers: found.consumer_count(),
            })),
            Err(error) => self.problem(&Object::Queue(queue), Err(error)).await.map(|_| None),
        }
    }

    async fn problem(
        &mut self,
        object: &Object<'_>,
        answer: Result<(), lapin::Error>,
    ) -> Result<Option<Problem>, TopologyError> {
        let Err(error) = answer else { return Ok(None) };
        let Some(fault) = fault(&error) else { return Err(error.into()) };
        self.channel = self.connection.create_channel().await?;
        Ok(Some(Problem { object: object.to_string(), fault, detail: error.to_string() }))
    }
}

fn fault(error: &lapin::Error) -> Option<Fault> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Some(Fault::Missing),
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Some(Fault::Inequivalent),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Some(Fault::Forbidden),
        _ => None,
    }
}

/// Whether the broker said that an exchange or a queue does not exist.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    fault(error) == Some(Fault::Missing)
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange, passive: bool) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    channel.exchange_declare(exchange.name.into(), kind(exchange.kind), options, table(&exchange.arguments)).await
}

async fn declare_queue(channel: &Channel, queue: &Queue, passive: bool) -> Result<lapin::Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
    channel.queue_declare(queue.name.as_str().into(), options, table(&queue.arguments)).await
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<(), lapin::Error> {
    let key: ShortString = binding.key.as_str().into();
    let (queue, options) = (binding.queue.as_str().into(), QueueBindOptions::default());
    channel.queue_bind(queue, binding.exchange.into(), key, options, FieldTable::default()).await
}

fn kind(kind: ExchangeType) -> ExchangeKind {
    match kind {
        ExchangeType::Direct => ExchangeKind::Direct,
        ExchangeType::Fanout => ExchangeKind::Fanout,
        ExchangeType::Topic => ExchangeKind::Topic,
    }
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in arguments {
        let value = match argument {
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
            Argument::Text(text) => AMQPValue::LongString((*text).into()),
        };
        table.insert((*name).into(), value);
    }
    table
}
