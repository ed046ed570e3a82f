//! A real server of HTTP/1.1, and of HTTP/2 without TLS, that records every request and answers, or misbehaves, as a test asks.
//!
//! ```no_run
//! use std::time::Duration;
//! use servers::sinks::http::{HttpSink, Reply};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let sink = HttpSink::start_local().await?;
//! sink.reply_to("/hook", Reply::Sequence(vec![Reply::status(503), Reply::CloseAfterBody, Reply::ok()]));
//! // … have something POST to sink.url("/hook") …
//! let requests = sink.wait_for(3, Duration::from_secs(5)).await?;
//! assert_eq!(requests.last().and_then(|request| request.header("content-type")), Some("application/json"));
//! # Ok(())
//! # }
//! ```

mod connection;
mod http2;
mod reply;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde_json::Value;

pub use reply::{Handler, Reply};

use super::Listening;
use super::record::Record;
use reply::Routes;

/// One request, exactly as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST`, mostly.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Field names as they were written, in their order.
    pub headers: Vec<(String, String)>,
    /// The content; a chunked one is put together.
    pub body: Vec<u8>,
    /// The client's address.
    pub peer: SocketAddr,
    /// When the last byte was read.
    pub received_at: Instant,
    /// The same moment by the wall clock.
    pub received_at_clock: SystemTime,
}

impl Request {
    /// The path without the query.
    pub fn path(&self) -> &str {
        path_of(&self.target)
    }

    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// The server. It answers 200 with an empty body unless told otherwise.
#[derive(Debug)]
pub struct HttpSink {
    listening: Listening,
    shared: Arc<Shared>,
}

/// The state that the connections share with the sink.
#[derive(Debug, Default)]
struct Shared {
    routes: Mutex<Routes>,
    requests: Record<Request>,
    /// Requests that were cut off before their body was read; they are in no list.
    cut_off: AtomicUsize,
}

impl Shared {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpSink {
    /// Listens on an address; port 0 takes any free one.
    pub async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let listening = Listening::start(address, move |stream| connection::serve(stream, Arc::clone(&state))).await?;
        Ok(Self { listening, shared })
    }

    /// Listens on a free port of the loopback interface.
    pub async fn start_local() -> std::io::Result<Self> {
        Self::start((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// Connections that were made to it so far.
    pub fn connections(&self) -> usize {
        self.listening.connections()
    }

    /// The URL of a path (which begins with a slash).
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// How to answer requests to one path, or to every path below it when it ends in `*`. The exact
    /// path wins, then the longest match. Counting for [`Reply::Sequence`] starts anew.
    pub fn reply_to(&self, path: &str, reply: Reply) {
        self.shared.routes().set(path, reply);
    }

    /// How to answer everything else.
    pub fn reply_by_default(&self, reply: Reply) {
        self.reply_to("*", reply);
    }

    /// Every request so far whose body was read to its end, in the order of arrival.
    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.shared.requests.all()
    }

    /// The requests to one path.
    pub fn requests_to(&self, path: &str) -> Vec<Arc<Request>> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    /// How many requests met [`Reply::CloseBeforeReading`].
    pub fn cut_off(&self) -> usize {
        self.shared.cut_off.load(Ordering::Relaxed)
    }

    /// Waits until `wanted` requests have arrived since the last [`clear`](Self::clear), and returns all
    /// of them.
    pub async fn wait_for(&self, wanted: usize, limit: Duration) -> Result<Vec<Arc<Request>>> {
        self.shared.requests.wait_for(wanted, limit).await
    }

    /// Forgets the requests; what was said about replies stays.
    pub fn clear(&self) {
        self.shared.requests.clear();
        self.shared.cut_off.store(0, Ordering::Relaxed);
    }
}
