//! The health of a process's parts, and its metrics.
//!
//! Ingest serves these on its own port. A separate worker or scheduler has no HTTP server, so [`serve`] serves the
//! same four paths on a bare listener. It parses only the request line and closes the connection after each answer.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::MetricsHandle;

/// A part that does not answer within this time counts as down; orchestrators give a probe a second or more.
const CHECK_TIMEOUT: Duration = Duration::from_millis(900);
/// A probe sends its request at once, in one small packet.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The limit for the request line and the headers; nothing else is read.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Concurrent connections: probes and one or two scrapers.
const CONNECTIONS_MAX: usize = 32;

/// The health of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Works.
    Up,
    /// Not available, but the process works without it for now. The text says what is wrong.
    Degraded(String),
    /// Not available, and the process cannot work without it. The text says what is wrong.
    Down(String),
}

/// A running check; boxed so that parts of all types fit into one list.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Health> + Send + 'a>>;

/// Something a process needs: its database, its broker, its consumers.
pub trait Part: Send + Sync {
    /// Its name in the report, one word.
    fn name(&self) -> &'static str;

    /// Its health now. Must be quick: every probe calls it.
    fn check(&self) -> Checking<'_>;
}

/// The parts of a process. Clones share the list, so parts may be added while it is served.
#[derive(Clone, Default)]
pub struct Parts(Arc<RwLock<Vec<Arc<dyn Part>>>>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list().iter().map(|part| part.name())).finish()
    }
}

impl Parts {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part; it replaces a part of the same name, so that a service may be started again.
    pub fn add(&self, part: impl Part + 'static) {
        let mut parts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|other| other.name() != part.name());
        parts.push(Arc::new(part));
    }

    /// Checks all parts concurrently.
    pub async fn report(&self) -> Report {
        let parts = self.list();
        let checks = parts.iter().map(|part| async { (part.name(), PartReport::from(check(&**part).await)) });
        Report::of(join_all(checks).await.into_iter().collect())
    }

    fn list(&self) -> Vec<Arc<dyn Part>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A placeholder for the part of this name until it is added: a process that has not started is not ready.
pub struct Starting(pub &'static str);

impl Part for Starting {
    fn name(&self) -> &'static str {
        self.0
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(Health::Down("has not begun yet".to_owned())))
    }
}

async fn check(part: &dyn Part) -> Health {
    let late = || Health::Down(format!("no answer within {} ms", CHECK_TIMEOUT.as_millis()));
    timeout(CHECK_TIMEOUT, part.check()).await.unwrap_or_else(|_| late())
}

/// A state in one word; the worst of several is their maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Works.
    Ok,
    /// Works, with something missing.
    Degraded,
    /// Does not work.
    Down,
}

/// One part in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// Its status.
    pub status: Status,
    /// The fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl From<Health> for PartReport {
    fn from(health: Health) -> Self {
        match health {
            Health::Up => Self { status: Status::Ok, detail: None },
            Health::Degraded(detail) => Self { status: Status::Degraded, detail: Some(detail) },
            Health::Down(detail) => Self { status: Status::Down, detail: Some(detail) },
        }
    }
}

/// The report on all parts of a process at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of its parts.
    pub status: Status,
    /// Each part by name.
    pub parts: BTreeMap<&'static str, PartReport>,
}

impl Report {
    fn of(parts: BTreeMap<&'static str, PartReport>) -> Self {
        let status = parts.values().map(|part| part.status).max().unwrap_or(Status::Ok);
        Self { status, parts }
    }

    /// Whether the process can do its work.
    pub fn is_ready(&self) -> bool {
        self.status != Status::Down
    }

    /// Adds the parts of other services in the same process. Their failures are reported, but do not make this
    /// service unready.
    #[must_use]
    pub fn beside(mut self, others: Self) -> Self {
        self.status = self.status.max(others.status.min(Status::Degraded));
        for (name, part) in others.parts {
            self.parts.entry(name).or_insert(part);
        }
        self
    }
}

/// Serves `/health`, `/health/live`, `/health/ready` and `/metrics` on its own listener until `stop`.
pub async fn serve(
    host: &str,
    port: u16,
    parts: Parts,
    metrics: MetricsHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind((host, port)).await?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(Ok(permit)) = stop.run_until_cancelled(Arc::clone(&room).acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let Ok((stream, _)) = accepted else { continue };
        let (parts, metrics) = (parts.clone(), metrics.clone());
        tokio::spawn(async move {
            // A client that disconnects early needs no action.
            let _ = timeout(REQUEST_TIMEOUT * 2, answer(stream, &parts, &metrics)).await;
            drop(permit);
        });
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, parts: &Parts, metrics: &MetricsHandle) -> std::io::Result<()> {
    let head = timeout(REQUEST_TIMEOUT, read_head(&mut stream)).await??;
    let answer = respond(&head, parts, metrics).await;
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < REQUEST_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn respond(head: &str, parts: &Parts, metrics: &MetricsHandle) -> String {
    let mut words = head.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET", "/health/live") => http("200 OK", "application/json", "{\"status\":\"ok\"}"),
        ("GET", "/health" | "/health/ready") => health(&parts.report().await),
        ("GET", "/metrics") => http("200 OK", "text/plain; version=0.0.4", &metrics.render()),
        ("GET", _) => http("404 Not Found", "text/plain", "try /health, /health/live, /health/ready or /metrics\n"),
        _ => http("405 Method Not Allowed", "text/plain", "only GET is answered here\n"),
    }
}

fn health(report: &Report) -> String {
    let status = if report.is_ready() { "200 OK" } else { "503 Service Unavailable" };
    http(status, "application/json", &serde_json::to_string(report).unwrap_or_default())
}

fn http(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::install_metrics;

    struct Fixed(&'static str, Health);

    impl Part for Fixed {
        fn name(&self) -> &'static str {
            self.0
        }

        fn check(&self) -> Checking<'_> {
            Box::pin(std::future::ready(self.1.clone()))
        }
    }

    fn parts(list: impl IntoIterator<Item = Fixed>) -> Parts {
        let parts = Parts::new();
        list.into_iter().for_each(|part| parts.add(part));
        parts
    }

    #[tokio::test]
    async fn a_process_is_as_well_as_its_worst_part_and_ready_unless_one_is_down() {
        let away = || Health::Degraded("away".to_owned());
        assert_eq!(Parts::new().report().await.status, Status::Ok);
        let degraded = parts([Fixed("database", Health::Up), Fixed("broker", away())]).report().await;
        assert_eq!((degraded.status, degraded.is_ready()), (Status::Degraded, true));
        let down = parts([Fixed("database", Health::Down("gone".to_owned())), Fixed("broker", away())]).report().await;
        assert!(!down.is_ready());
        assert!(degraded.beside(down).is_ready(), "another service of the process is down, not this one");
    }

    #[tokio::test]
    async fn probes_are_answered_over_a_socket() {
        let stop = CancellationToken::new();
        // Another process may have taken the free port meanwhile; then try another one.
        let (port, serving) = loop {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let down = parts([Fixed("consumers", Health::Down("none".to_owned()))]);
            let stop = stop.clone();
            let serving = tokio::spawn(async move { serve("127.0.0.1", port, down, install_metrics(), stop).await });
            // One scheduler turn is enough to listen, or to fail.
            tokio::task::yield_now().await;
            if !serving.is_finished() {
                break (port, serving);
            }
        };
        assert!(ask(port, "GET /health/live HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
        let ready = ask(port, "GET /health/ready?x=1 HTTP/1.1").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(
            ready.ends_with(r#"{"status":"down","parts":{"consumers":{"status":"down","detail":"none"}}}"#),
            "{ready}"
        );
        assert!(ask(port, "GET /metrics HTTP/1.1").await.contains(crate::metric::BUILD_INFO));
        assert!(ask(port, "POST /health HTTP/1.1").await.starts_with("HTTP/1.1 405 "));
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    async fn ask(port: u16, line: &str) -> String {
        let mut stream = loop {
            // The task above may not have bound the listener yet.
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream.write_all(format!("{line}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
