//! Clients that post under keys, and repeat a key until it is accepted.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Api, HttpSink, Stack};

/// How long a client waits for an answer before it asks another process.
const PATIENCE: Duration = Duration::from_secs(5);

/// The clients of a run.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    next: AtomicUsize,
    accepted: Mutex<Vec<String>>,
    apis: Vec<Api>,
    url: String,
    /// The process that gave no answer last; it is asked now and then only, or every client would wait for it most of the time.
    silent: AtomicUsize,
    /// The pause of a client between two posts.
    rest: Duration,
}

impl Load {
    /// Starts `connections` clients at the processes named, which post `rate` messages a second together; 0: as fast as they can.
    pub fn start(stack: &Stack, sink: &HttpSink, accepting: &[&str], connections: usize, rate: u32) -> Result<Self> {
        let rest = match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) * u32::try_from(connections)? / rate,
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            accepted: Mutex::default(),
            apis: accepting.iter().map(|name| stack.api_of(name)).collect::<Result<_>>()?,
            url: sink.url("/hook"),
            silent: AtomicUsize::new(usize::MAX),
            rest,
        });
        let clients = (0..connections).map(|_| tokio::spawn(Arc::clone(&shared).post())).collect();
        Ok(Self { shared, clients })
    }

    /// Messages accepted so far.
    pub fn count(&self) -> usize {
        self.shared.accepted.lock().unwrap().len()
    }

    /// Goes on until `at_least` messages are accepted, then stops and returns their ids.
    pub async fn finish(self, at_least: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(900);
        while self.count() < at_least && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            // A client only ends by itself.
            let _ = client.await;
        }
        std::mem::take(&mut self.shared.accepted.lock().unwrap())
    }
}

impl Shared {
    async fn post(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let id = self.insist(n).await;
            self.accepted.lock().unwrap().push(id);
            tokio::time::sleep(self.rest.saturating_sub(begun.elapsed())).await;
        }
    }

    /// The process that message `n` is posted to first.
    fn first(&self, n: usize) -> usize {
        let index = n % self.apis.len();
        let is_avoided = index == self.silent.load(Ordering::Relaxed) && !n.is_multiple_of(100);
        index + usize::from(is_avoided)
    }

    /// Posts one message under its key, to one process after the other, until it is accepted.
    async fn insist(&self, n: usize) -> String {
        let (key, body) = (format!("key-{n}"), json!({"channel": "webhook", "recipient": self.url, "data": {"n": n}}));
        for (index, api) in self.apis.iter().enumerate().cycle().skip(self.first(n)) {
            if let Some(id) = ask(api, &key, &body).await {
                let _ = self.silent.compare_exchange(index, usize::MAX, Ordering::Relaxed, Ordering::Relaxed);
                return id;
            }
            self.silent.store(index, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("a cycle has no end")
    }
}

async fn ask(api: &Api, key: &str, body: &Value) -> Option<String> {
    let answer = tokio::time::timeout(PATIENCE, api.send_keyed(key, body)).await.ok()?.ok()?;
    if answer.status.as_u16() != 202 {
        return None;
    }
    answer.body["id"].as_str().map(str::to_owned)
}
