//! Webhooks of WAHA beside single sends: both accepted by the same ingest, with the same generator.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use serde_json::{Value, json};
use servers::private::ports;

use super::{Bench, BenchServers, Settings, wait_ready};

const CONNECTIONS: usize = 32;
/// The vector of WAHA's own documentation uses it too.
const SECRET: &str = "my-secret-key";

impl Bench {
    /// Only ingest runs: signed webhooks, each a message of its own, and sends, in turn.
    pub(super) fn webhooks(&self, messages: u32) -> Result<()> {
        let servers = BenchServers::start(self, "ours")?;
        let settings = Settings::new(self, &servers)?;
        let key = settings.tenant("bench")?;
        let port = ports::find_free()?;
        let _ingest = settings.spawn("ingest", "posthaste-ingest", &[], port)?;
        wait_ready(port, &settings.log("ingest"))?;
        let admin: Value =
            serde_json::from_str(&settings.cli(&["key", "create", "--tenant", "bench", "--role", "admin", "--json"])?)?;
        let admin = admin.get("key").and_then(Value::as_str).context("no key was made")?;
        let session =
            json!({"name": "bench", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": SECRET});
        let head = format!("authorization: Bearer {admin}\r\n");
        let answer = Connection::open(port)?.post("/sessions", &head, session.to_string().as_bytes())?;
        ensure!((200..300).contains(&answer), "the session was refused with {answer}");
        let each = usize::try_from(messages)? / CONNECTIONS;
        for run in 1..=3 {
            let sides: [(_, _, Make); 2] =
                [("webhooks", "/webhooks/waha", webhook), ("sends", "/api/notifications/send", send)];
            for (name, route, make) in sides {
                let (rate, p99) = load(port, route, make, &key, (run, each))?;
                println!("{name}: {rate:.0} a second, p99 {:.1} ms", p99.as_secs_f64() * 1000.0);
            }
        }
        Ok(())
    }
}

/// Further headers and the body of the request with this number.
type Make = fn(&str, usize) -> (String, String);

fn webhook(_: &str, n: usize) -> (String, String) {
    let body = json!({"id": format!("evt_{n:026}"), "timestamp": 1_700_000_000_000_u64, "event": "message", "session": "bench",
        "payload": {"id": format!("false_491700000000@c.us_{n:020}"), "timestamp": 1_700_000_000, "from": "491700000000@c.us",
        "fromMe": false, "to": "491711111111@c.us", "body": "x".repeat(200), "hasMedia": false}});
    let body = body.to_string();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, SECRET.as_bytes()), body.as_bytes());
    let mut head = "x-webhook-hmac-algorithm: sha512\r\nx-webhook-hmac: ".to_owned();
    for byte in tag.as_ref() {
        // Writing into a string does not fail.
        let _ = write!(head, "{byte:02x}");
    }
    head.push_str("\r\n");
    (head, body)
}

fn send(key: &str, n: usize) -> (String, String) {
    let body = json!({"channel": "in_app", "recipient": format!("user-{n}"), "message": "x".repeat(300)});
    (format!("authorization: Bearer {key}\r\n"), body.to_string())
}

/// Posts `each` requests on every connection; requests a second, and the 99th percentile of an answer.
fn load(port: u16, route: &'static str, make: Make, key: &str, (run, each): (u16, usize)) -> Result<(f64, Duration)> {
    // Each run has numbers of its own, so that nothing is a repeat.
    let first = usize::from(run);
    let started = Instant::now();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|lane| {
            let key = key.to_owned();
            thread::spawn(move || -> Result<Vec<Duration>> {
                let mut connection = Connection::open(port)?;
                let mut took = Vec::with_capacity(each);
                for n in 0..each {
                    let (head, body) = make(&key, (first << 32) + lane * each + n);
                    let begun = Instant::now();
                    let status = connection.post(route, &head, body.as_bytes())?;
                    ensure!(status == 200 || status == 202, "{route} answered {status}");
                    took.push(begun.elapsed());
                }
                Ok(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for thread in threads {
        took.extend(thread.join().map_err(|_| anyhow::anyhow!("a connection panicked"))??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    Ok((f64::from(u32::try_from(took.len())?) / elapsed, p99))
}

/// A connection that is kept.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Posts and reads the whole answer; its status.
    fn post(&mut self, route: &str, head: &str, body: &[u8]) -> Result<u16> {
        let mut request = format!(
            "POST {route} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{head}\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.0.get_mut().write_all(&request)?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status line")?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        Ok(status)
    }
}
