//! Keeps one connection to the broker alive and opens channels on it.
//!
//! We do the recovery, not lapin: after any loss we rebuild everything from scratch (connection, topology, channels,
//! consumers). That is one code path instead of two and leaves no stale delivery tags. A process has two connections,
//! one to publish and one to consume, because a broker that is short of memory stops reading from connections that
//! publish.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event,
    tcp::{AsyncTcpStream, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use metrics::{counter, gauge};
use runtime::{metric, reconnect::Reconnect, telemetry};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    declare::{TopologyError, check, declare},
    version,
};

/// Limits the time from the first packet to a ready connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Quorum queues take tens of milliseconds each to create, more on a busy cluster; there are some twenty of them.
const TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a caller waits for a channel, including the wait for a connection.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long we wait for the broker to answer a close. After that we drop the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The heartbeat for URLs that set none. lapin gives up after two missed heartbeats, the broker after up to three. By
/// then a lost log writer's messages are with another one, before their claims count as crashed.
const HEARTBEAT_SECONDS: u16 = 5;
/// A connection that lived this long was healthy, so the next attempt may come soon.
const PROVEN_AFTER: Duration = Duration::from_secs(15);
/// A message that breaks the connection is dead-lettered after its delivery limit of 20. The sooner we have received
/// it that often, the sooner the other messages are served again. After more failures than this the cause is another
/// one, or the message has no limit.
const UNREADABLE_MAX: u32 = 25;
/// Events report every loss; this check catches a loss whose event is missing.
const LIVENESS_PERIOD: Duration = Duration::from_secs(1);

/// The broker logs a line for each version request, so we ask once per process.
static VERSION_ASKED: AtomicBool = AtomicBool::new(false);

/// Why the broker could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The URL is invalid. It may hold the password, so the error does not repeat it.
    #[error("the broker URL is not of the form amqp://user:password@host:port/vhost")]
    Url,
    /// The connection was not established in time.
    #[error("failed to connect to the broker within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The broker did not answer a request on an open connection.
    #[error("the broker did not answer in time")]
    AnswerTimeout,
    /// The topology is missing or differs from what we need.
    #[error("failed to prepare the broker's topology")]
    Topology(#[from] TopologyError),
    /// The topology was not prepared in time.
    #[error("failed to prepare the broker's topology within {} s", TOPOLOGY_TIMEOUT.as_secs())]
    TopologyTimeout,
    /// There is no usable connection now.
    #[error("no channel on connection `{connection}` within {} s: {state}", CHANNEL_TIMEOUT.as_secs())]
    Unavailable {
        /// The connection's name.
        connection: String,
        /// Its state.
        state: BrokerState,
    },
    /// The broker refused or the connection failed.
    #[error("failed to talk to the broker")]
    Amqp(#[from] lapin::Error),
    /// lapin treats an id, key or header name that is not UTF-8 as a broken connection, and the broker then
    /// redelivers the message.
    #[error(
        "the broker sent what lapin cannot read, most likely a message with an id, key or header name that is not UTF-8 \
         at the head of a queue consumed here; the broker dead-letters it after its delivery limit"
    )]
    Unreadable(#[source] lapin::Error),
    /// The process is stopping.
    #[error("the broker connection is stopped")]
    Stopped,
}

/// The state of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerState {
    /// Not connected; another attempt follows.
    Down {
        /// Why.
        reason: String,
    },
    /// Connected, and the broker reads what we write.
    Up {
        /// The number of this connection, counted from 1.
        generation: u64,
    },
    /// Connected, but the broker is short of memory or disk and reads nothing from us.
    Blocked {
        /// As for `Up`.
        generation: u64,
        /// The reason that the broker gave.
        reason: String,
    },
    /// Closed after `stop`.
    Stopped,
}

impl BrokerState {
    /// Whether the broker reads what we write.
    pub const fn is_usable(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl std::fmt::Display for BrokerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Down { reason } => write!(f, "disconnected ({reason})"),
            Self::Up { .. } => f.write_str("connected"),
            Self::Blocked { reason, .. } => write!(f, "blocked by the broker ({reason})"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// The handling of the topology once connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnConnect {
    /// Create what is missing.
    #[default]
    Declare,
    /// Refuse to work if anything is missing or different; create nothing.
    Check,
    /// Assume that it exists.
    Nothing,
}

/// Opens one plain connection without supervision, for commands that ask once and exit.
pub async fn connect(url: &SecretString, name: &str) -> Result<Connection, BrokerError> {
    dial(parse(url)?, name).await
}

fn parse(url: &SecretString) -> Result<AMQPUri, BrokerError> {
    let text = url.expose_secret();
    let mut uri: AMQPUri = text.parse().map_err(|_| BrokerError::Url)?;
    // lapin takes an IPv6 host for a missing one and silently connects to localhost.
    if let Some(url::Host::Ipv6(address)) = url::Url::parse(text).ok().as_ref().and_then(url::Url::host) {
        uri.authority.host = address.to_string();
    }
    uri.query.heartbeat = uri.query.heartbeat.filter(|seconds| *seconds > 0).or(Some(HEARTBEAT_SECONDS));
    Ok(uri)
}

fn properties(name: &str) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "Posthaste".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
}

/// lapin has no timeout for the handshake. It waits on its own thread, forever if the other side accepts the
/// connection and then sends nothing. With a second handle on the socket we can shut it down, which ends that thread
/// too.
async fn dial(uri: AMQPUri, name: &str) -> Result<Connection, BrokerError> {
    let socket = Arc::new(Mutex::new(None::<OwnedFd>));
    let shared = Arc::clone(&socket);
    let connecting = Connection::connector(
        uri,
        lapin::runtime::default_runtime()?,
        async move |uri: AMQPUri, runtime| {
            let address = (uri.authority.host.clone(), uri.authority.port);
            let opening = AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs(address));
            let stream = timeout(CONNECT_TIMEOUT, opening).await.map_err(io::Error::from)??;
            if let AsyncTcpStream::Plain(tcp) = &stream {
                *lock(&shared) = Some(tcp.get_ref().as_fd().try_clone_to_owned()?);
            }
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                AMQPScheme::AMQPS => {
                    Ok(stream.into_tls(&uri.authority.host, OwnedTLSConfig::default().as_ref()).await?)
                }
            }
        },
        properties(name),
    );
    let connected = timeout(CONNECT_TIMEOUT, connecting).await;
    let socket = lock(&socket).take();
    let Ok(connected) = connected else {
        shut_down(socket);
        return Err(BrokerError::ConnectTimeout);
    };
    Ok(connected?)
}

fn shut_down(socket: Option<OwnedFd>) {
    if let Some(socket) = socket {
        let _ = std::net::TcpStream::from(socket).shutdown(std::net::Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle to one supervised connection; clones share it.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    url: SecretString,
    on_connect: OnConnect,
    state: watch::Sender<BrokerState>,
    connection: Mutex<Option<Arc<Connection>>>,
    generation: AtomicU64,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("name", &self.inner.name).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts to connect, and creates the topology on every connect. `name` is shown in the broker's list of
    /// connections. `stop` closes the connection, so a process must cancel this token last: consumers still send acks
    /// while they drain.
    pub fn start(url: &SecretString, name: &str, stop: CancellationToken) -> Self {
        Self::start_with(url, name, OnConnect::Declare, stop)
    }

    /// As [`Broker::start`], with a choice of what to do about the topology.
    pub fn start_with(url: &SecretString, name: &str, on_connect: OnConnect, stop: CancellationToken) -> Self {
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            url: url.clone(),
            on_connect,
            state: watch::Sender::new(BrokerState::Down { reason: "not connected yet".to_owned() }),
            connection: Mutex::new(None),
            generation: AtomicU64::new(0),
        });
        tokio::spawn(supervise(Arc::clone(&inner), stop));
        Self { inner }
    }

    /// The name in the broker's list of connections.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The current state.
    pub fn state(&self) -> BrokerState {
        self.inner.state.borrow().clone()
    }

    /// A receiver of state changes.
    pub fn subscribe(&self) -> watch::Receiver<BrokerState> {
        self.inner.state.subscribe()
    }

    /// Whether we are connected, blocked or not.
    pub fn is_connected(&self) -> bool {
        matches!(*self.inner.state.borrow(), BrokerState::Up { .. } | BrokerState::Blocked { .. })
    }

    /// Whether the broker reads what we write.
    pub fn is_usable(&self) -> bool {
        self.inner.state.borrow().is_usable()
    }

    /// The number of connections so far; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Relaxed)
    }

    /// The current connection, for requests about the topology.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.inner.connection()
    }

    /// Opens a channel; waits a limited time for a usable connection.
    pub async fn channel(&self) -> Result<Channel, BrokerError> {
        timeout(CHANNEL_TIMEOUT, self.open_channel()).await.unwrap_or_else(|_| {
            Err(BrokerError::Unavailable { connection: self.inner.name.clone(), state: self.state() })
        })
    }

    async fn open_channel(&self) -> Result<Channel, BrokerError> {
        let mut states = self.subscribe();
        loop {
            self.usable().await?;
            states.borrow_and_update();
            if let Some(connection) = self.inner.connection() {
                match connection.create_channel().await {
                    // The connection is lost and the supervisor does not know it yet.
                    Err(_) if !connection.status().connected() => {}
                    answer => return Ok(answer?),
                }
            }
            states.changed().await.map_err(|_| BrokerError::Stopped)?;
        }
    }

    /// Waits without a limit until the connection is usable.
    pub async fn usable(&self) -> Result<(), BrokerError> {
        let mut states = self.subscribe();
        let reached = |state: &BrokerState| matches!(state, BrokerState::Up { .. } | BrokerState::Stopped);
        match states.wait_for(reached).await.as_deref() {
            Ok(BrokerState::Up { .. }) => Ok(()),
            _ => Err(BrokerError::Stopped),
        }
    }

    /// After `stop`: waits until the connection is closed.
    pub async fn closed(&self) {
        let _ = self.subscribe().wait_for(|state| *state == BrokerState::Stopped).await;
    }

    /// Creates deleted objects again, if this process may create any.
    pub(super) async fn restore_topology(&self) -> Result<(), BrokerError> {
        match self.inner.connection() {
            Some(connection) if self.inner.on_connect == OnConnect::Declare => self.inner.prepare(&connection).await,
            _ => Ok(()),
        }
    }
}

impl Inner {
    fn connection(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).clone()
    }

    fn set(&self, state: BrokerState) {
        let connected = matches!(state, BrokerState::Up { .. } | BrokerState::Blocked { .. });
        let blocked = matches!(state, BrokerState::Blocked { .. });
        gauge!(metric::BROKER_CONNECTED, "connection" => self.name.clone()).set(f64::from(u8::from(connected)));
        gauge!(metric::BROKER_BLOCKED, "connection" => self.name.clone()).set(f64::from(u8::from(blocked)));
        self.state.send_replace(state);
    }

    async fn prepare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let preparing = async {
            match self.on_connect {
                OnConnect::Declare => declare(connection).await,
                OnConnect::Check => check(connection).await,
                OnConnect::Nothing => Ok(()),
            }
        };
        Ok(timeout(TOPOLOGY_TIMEOUT, preparing).await.map_err(|_| BrokerError::TopologyTimeout)??)
    }

    /// Runs one connection from connect to loss; returns why it ended.
    async fn session(&self) -> BrokerError {
        let connection = match self.open().await {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        let mut events = Box::pin(connection.events_listener());
        if let Err(error) = self.prepare(&connection).await {
            close_connection(&connection).await;
            return error;
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        *lock(&self.connection) = Some(Arc::clone(&connection));
        self.set(BrokerState::Up { generation });
        tracing::info!(connection = %self.name, generation, "the broker connection is ready");
        let error = self.watch(&connection, generation, &mut events).await;
        *lock(&self.connection) = None;
        error
    }

    async fn open(&self) -> Result<Arc<Connection>, BrokerError> {
        let uri = parse(&self.url)?;
        let connection = dial(uri.clone(), &self.name).await?;
        if uri.scheme == AMQPScheme::AMQP && !VERSION_ASKED.swap(true, Ordering::Relaxed) {
            self.log_version(&uri).await;
        }
        Ok(Arc::new(connection))
    }

    async fn log_version(&self, uri: &AMQPUri) {
        let Some(version) = version::ask(&uri.authority.host, uri.authority.port).await else { return };
        if version::is_too_old(&version) {
            let (major, minor) = version::OLDEST;
            tracing::warn!(connection = %self.name, %version, "the broker is older than {major}.{minor}, which is the \
                oldest version Posthaste is made for");
        } else {
            tracing::info!(connection = %self.name, %version, "found the broker");
        }
    }

    async fn watch<S>(&self, connection: &Connection, generation: u64, events: &mut S) -> BrokerError
    where
        S: futures_util::Stream<Item = Event> + Unpin,
    {
        let mut liveness = tokio::time::interval(LIVENESS_PERIOD);
        let mut last_error = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.blocked(generation, reason),
                    Some(Event::ConnectionUnblocked) => self.set(BrokerState::Up { generation }),
                    // Channel errors arrive here too; the owners of the channels handle them.
                    Some(Event::Error(error)) => last_error = Some(error),
                    _ => {}
                },
                _ = liveness.tick() => {}
            }
            if !connection.status().connected() {
                return loss(last_error);
            }
        }
    }

    fn blocked(&self, generation: u64, reason: String) {
        tracing::warn!(connection = %self.name, reason, "the broker stopped reading from this connection");
        self.set(BrokerState::Blocked { generation, reason });
    }
}

fn loss(error: Option<lapin::Error>) -> BrokerError {
    match error {
        Some(error) if matches!(error.kind(), ErrorKind::ParsingError(_)) => BrokerError::Unreadable(error),
        Some(error) => BrokerError::Amqp(error),
        None => BrokerError::Amqp(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    }
}

async fn supervise(inner: Arc<Inner>, stop: CancellationToken) {
    let mut reconnect = Reconnect::new();
    let mut unreadable = 0;
    loop {
        let started = Instant::now();
        let Some(error) = stop.run_until_cancelled(inner.session()).await else { break };
        unreadable = if matches!(error, BrokerError::Unreadable(_)) { unreadable + 1 } else { 0 };
        if started.elapsed() > PROVEN_AFTER || (1..=UNREADABLE_MAX).contains(&unreadable) {
            reconnect.reset();
        }
        let reason = telemetry::chain(&error);
        tracing::warn!(connection = %inner.name, reason, "the broker connection is down, trying again");
        inner.set(BrokerState::Down { reason });
        counter!(metric::BROKER_RECONNECTS, "connection" => inner.name.clone()).increment(1);
        if stop.run_until_cancelled(reconnect.pause()).await.is_none() {
            break;
        }
    }
    let connection = lock(&inner.connection).take();
    if let Some(connection) = connection {
        close_connection(&connection).await;
    }
    inner.set(BrokerState::Stopped);
}

async fn close_connection(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> AMQPUri {
        parse(&url.into()).unwrap()
    }

    #[test]
    fn a_url_without_a_heartbeat_gets_ours() {
        assert_eq!(parsed("amqp://h/%2f").query.heartbeat, Some(HEARTBEAT_SECONDS));
        assert_eq!(parsed("amqp://h/%2f?heartbeat=0").query.heartbeat, Some(HEARTBEAT_SECONDS));
        assert_eq!(parsed("amqp://h/%2f?heartbeat=5").query.heartbeat, Some(5));
    }

    #[test]
    fn an_ipv6_host_is_not_mistaken_for_localhost() {
        assert_eq!(parsed("amqp://[2001:db8::1]:5671/v").authority.host, "2001:db8::1");
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_repeating_it() {
        let error = parse(&"http://user:secret@host/".into()).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        let error = parse(&"user:secret".into()).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
