//! Creates the topology, or reports how the broker's objects differ from it.

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
    /// The problems, one per object.
    #[error("the broker's topology is not as needed: {}", join(.0))]
    Problems(Vec<Problem>),
    /// The connection failed meanwhile, so the state is unknown.
    #[error("failed to ask the broker about its topology")]
    Broker(#[from] lapin::Error),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// One difference; its text says how to fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The exchange, queue or binding.
    pub object: String,
    /// Its fault.
    pub fault: Fault,
    /// The broker's message.
    pub detail: String,
}

/// The possible faults of an exchange, a queue or a binding.
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
    /// Messages ready, without those delivered to consumers.
    pub messages_ready: u32,
    /// Registered consumers.
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

/// Creates missing objects and leaves existing ones untouched, so every process may call it at every start. Reports
/// all problems together.
pub async fn declare(connection: &Connection) -> Result<(), TopologyError> {
    let topology = topology();
    let mut client = TopologyClient::open(connection).await?;
    let mut problems = Vec::new();
    for object in objects(&topology) {
        problems.extend(client.create(&object).await?);
    }
    client.close().await;
    conclude(problems)
}

/// Reports missing objects and objects with other settings; creates nothing. To compare settings it declares existing
/// objects again, which needs the `configure` permission; without it, it checks only existence. AMQP cannot list
/// bindings, so it does not check them.
pub async fn check(connection: &Connection) -> Result<(), TopologyError> {
    let topology = topology();
    let mut client = TopologyClient::open(connection).await?;
    let mut problems = Vec::new();
    for object in objects(&topology).filter(|object| !matches!(object, Object::Binding(_))) {
        let problem = match client.check_exists(&object).await? {
            None => client.create(&object).await?.filter(|problem| problem.fault != Fault::Forbidden),
            missing => missing,
        };
        problems.extend(problem);
    }
    client.close().await;
    conclude(problems)
}

fn conclude(problems: Vec<Problem>) -> Result<(), TopologyError> {
    if problems.is_empty() { Ok(()) } else { Err(TopologyError::Problems(problems)) }
}

/// The depth of each queue of the topology; a missing queue is left out.
pub async fn depths(connection: &Connection) -> Result<Vec<QueueDepth>, TopologyError> {
    let mut client = TopologyClient::open(connection).await?;
    let mut depths = Vec::new();
    for queue in topology().queues {
        depths.extend(client.depth(&queue).await?);
    }
    client.close().await;
    Ok(depths)
}

/// The messages ready in one queue, without those delivered to consumers; `None` if there is no such queue.
pub async fn ready(connection: &Connection, name: &str) -> Result<Option<u32>, TopologyError> {
    let mut client = TopologyClient::open(connection).await?;
    let mut ready = None;
    if let Some(queue) = topology().queues.iter().find(|queue| queue.name == name) {
        ready = client.depth(queue).await?.map(|depth| depth.messages_ready);
    }
    client.close().await;
    Ok(ready)
}

/// As [`ready`], on a channel that stays open; a missing queue closes it.
pub(super) async fn ready_on(channel: &Channel, queue: &str) -> Result<u32, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}

/// A channel for requests. The broker closes the channel with every error, so each error costs a new channel.
struct TopologyClient<'a> {
    connection: &'a Connection,
    channel: Channel,
}

impl<'a> TopologyClient<'a> {
    async fn open(connection: &'a Connection) -> Result<Self, lapin::Error> {
        Ok(Self { connection, channel: connection.create_channel().await? })
    }

    /// Ignores errors: closing the connection closes its channels too.
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

    async fn check_exists(&mut self, object: &Object<'_>) -> Result<Option<Problem>, TopologyError> {
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

/// Whether the broker reported that an exchange or a queue does not exist.
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
