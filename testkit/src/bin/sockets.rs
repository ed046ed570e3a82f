//! Measures open sockets: how fast they open, what each costs, and how long a notification takes from `send` to its socket.
//! `cargo run --release -p posthaste-testkit --bin sockets`, with PostgreSQL and RabbitMQ installed; programs are taken from
//! `target/release` if they are there. Each socket needs a file on both sides: `ulimit -n` must be above their number.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use domain::token;
use futures_util::{StreamExt, TryStreamExt, stream};
use secrecy::SecretString;
use serde_json::{Value, json};
use testkit::{Role, Stack, TestServers};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// As the harness sets it.
const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
/// Sockets that are opened at once.
const OPENING: usize = 64;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// The pause between two single notifications.
const PACE: Duration = Duration::from_millis(10);

#[derive(Parser)]
struct Args {
    /// Sockets, each of another person
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Single notifications, each to another person
    #[arg(long, default_value_t = 1_000)]
    sends: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Args { sockets, sends } = Args::parse();
    let mut stack = Stack::prepare(TestServers::private("sockets")?, &[]).await?;
    for (name, role) in [("ingest", Role::Ingest), ("scheduler", Role::Scheduler), ("worker", Role::Worker)] {
        stack.launch(name, role, &[]).await?;
    }
    // Memory that is loaded on first use does not belong to the sockets.
    open(&stack, "warm").await?.close(None).await?;
    let before = resident(&stack)?;
    let (tell, mut told) = mpsc::channel(65_536);
    let (started, mut took) = (Instant::now(), Vec::with_capacity(sockets));
    let opened = stream::iter(0..sockets).map(|n| opened(&stack, n)).buffer_unordered(OPENING);
    let mut opened = std::pin::pin!(opened);
    let mut listeners = Vec::with_capacity(sockets);
    while let Some((socket, handshake)) = opened.try_next().await? {
        took.push(handshake);
        listeners.push(tokio::spawn(listen(socket, tell.clone())));
    }
    let all = started.elapsed();
    let idle = resident(&stack)?;
    println!(
        "{sockets} sockets in {:.1} s: {:.0}/s, handshake {}, {:.1} KB each ({before} KB before, {idle} KB after)",
        all.as_secs_f64(),
        sockets as f64 / all.as_secs_f64(),
        quantiles(&mut took),
        (idle - before) as f64 / sockets as f64,
    );
    println!("singles, one each {PACE:?}, send to socket: {}", singles(&stack, sockets, sends, &mut told).await?);
    println!("{}", bulk(&stack, sockets, &mut told).await?);
    let after = resident(&stack)?;
    println!("{after} KB at the end: {:.1} KB for each socket", (after - before) as f64 / sockets as f64);
    listeners.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn opened(stack: &Stack, n: usize) -> Result<(WebSocketStream<TcpStream>, Duration)> {
    let started = Instant::now();
    Ok((open(stack, &format!("u{n}")).await?, started.elapsed()))
}

async fn open(stack: &Stack, user: &str) -> Result<WebSocketStream<TcpStream>> {
    let secret = SecretString::from(JWT_SECRET);
    let token = token::encode(&secret, user, "acme", token::Role::User, Duration::from_secs(3600))?;
    let port = stack.port("ingest")?;
    let request = format!("ws://127.0.0.1:{port}/ws/notifications/{user}?token={token}").into_client_request()?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // The library's own buffers would be a gigabyte.
    let small = WebSocketConfig::default().read_buffer_size(4096);
    let (socket, _) = client_async_with_config(request, stream, Some(small)).await.context("refused")?;
    Ok(socket)
}

/// Passes on the title of each notification, and when it came.
async fn listen(mut socket: WebSocketStream<TcpStream>, tell: mpsc::Sender<(String, Instant)>) {
    while let Some(Ok(message)) = socket.next().await {
        let at = Instant::now();
        if let Message::Text(text) = message
            && let Ok(message) = serde_json::from_str::<Value>(&text)
            && let Some(title) = message["data"]["title"].as_str()
        {
            let _ = tell.send((title.to_owned(), at)).await;
        }
    }
}

async fn singles(
    stack: &Stack,
    sockets: usize,
    sends: usize,
    told: &mut mpsc::Receiver<(String, Instant)>,
) -> Result<String> {
    let api = stack.producer();
    let mut sent = HashMap::new();
    for n in 0..sends {
        let (user, title) = (format!("u{}", n * 7919 % sockets), format!("single {n}"));
        sent.insert(title.clone(), Instant::now());
        api.send(
            &json!({"channel": "in_app", "recipient": user, "title": title, "message": "Your order has shipped."}),
        )
        .await?;
        tokio::time::sleep(PACE).await;
    }
    let mut took = Vec::with_capacity(sends);
    while took.len() < sends {
        let (title, at) =
            timeout(LIMIT, told.recv()).await.context("not all came")?.context("the listeners have ended")?;
        took.push(at - *sent.get(&title).context("shown once")?);
    }
    Ok(quantiles(&mut took))
}

/// One notification for all sockets.
async fn bulk(stack: &Stack, sockets: usize, told: &mut mpsc::Receiver<(String, Instant)>) -> Result<String> {
    let started = Instant::now();
    let users: Vec<String> = (0..sockets).map(|n| format!("u{n}")).collect();
    for part in users.chunks(10_000) {
        let body = json!({"channel": "in_app", "user_ids": part, "title": "bulk", "message": "Maintenance tonight."});
        stack.producer().post("/api/notifications/send-bulk", &body).await?.ok()?;
    }
    let accepted = started.elapsed();
    let mut took = Vec::with_capacity(sockets);
    while took.len() < sockets {
        let (title, at) =
            timeout(LIMIT, told.recv()).await.context("not all came")?.context("the listeners have ended")?;
        ensure!(title == "bulk", "{title} was shown twice");
        took.push(at - started);
    }
    took.sort();
    let last = took.last().copied().unwrap_or_default().as_secs_f64();
    let rate = sockets as f64 / last;
    Ok(format!(
        "to all {sockets} in one bulk: accepted in {:.2} s, on the last socket after {last:.1} s: {rate:.0}/s",
        accepted.as_secs_f64()
    ))
}

fn quantiles(took: &mut [Duration]) -> String {
    took.sort();
    let at = |share: f64| took.get(((took.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default();
    let ms = |share: f64| at(share).as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms", ms(0.5), ms(0.99))
}

/// The memory of ingest, in KB.
fn resident(stack: &Stack) -> Result<i64> {
    let status = fs::read_to_string(format!("/proc/{}/status", stack.pid("ingest")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no memory in the status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
