//! Small real servers that receive what Posthaste sends: the demonstration's and every test's audience.
//!
//! They speak the protocol over real sockets, write down what arrives, and misbehave on request. They
//! need a Tokio runtime, on which their tasks run until the sink is dropped.

pub mod http;
mod record;
pub mod smtp;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use http::HttpSink;
pub use smtp::SmtpSink;

use crate::private::ports::find_free;

/// A listening socket and the tasks of its connections. Dropping it closes them all at once, and the
/// address may be bound again right away: that is how a test takes a receiver away and brings it back.
#[derive(Debug)]
struct Listening {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Serves every connection in a task of its own.
    async fn start<S, F>(address: SocketAddr, serve: S) -> std::io::Result<Self>
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = bind(address).await?;
        let address = listener.local_addr()?;
        let accepted = Arc::<AtomicUsize>::default();
        let task = tokio::spawn(accept_all(listener, Arc::clone(&accepted), serve));
        Ok(Self { address, accepted, task })
    }

    /// Connections so far.
    fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// How long an address may stay taken by the sink that was there before: its task ends a moment after it.
const LEAVE_GRACE: Duration = Duration::from_secs(30);

/// Listens on the caller's address once it is free, or on a port of its own. The system does not choose that port: a passing
/// client could take it while its sink is away.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let since = Instant::now();
    loop {
        let port = match address.port() {
            0 => find_free().map_err(std::io::Error::other)?,
            chosen => chosen,
        };
        match TcpListener::bind((address.ip(), port)).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && since.elapsed() < LEAVE_GRACE => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// How long to wait before accepting again after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The set belongs to this task, so that ending the task ends every connection.
async fn accept_all<S, F>(listener: TcpListener, count: Arc<AtomicUsize>, serve: S)
where
    S: Fn(TcpStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    count.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(serve(stream));
                }
                // Out of file descriptors, most likely: some connection will end.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}
