//! A server that behaves as WAHA's documentation says: sessions with states, sends that need a working session, signed
//! webhooks with retries, echoes and acks. It speaks real HTTP, and fails where a test tells it to.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use serde_json::{Value, json};
use servers::sinks::http::{HttpSink, Reply, Request};

use crate::eventually;

/// How a send ends.
#[derive(Clone, Debug)]
pub enum SendFault {
    /// A status without a send, with `Retry-After` seconds.
    Status(u16, Option<u32>),
    /// The engine cannot do it.
    NotImplemented,
    /// Sent, and the connection then stays silent.
    HangAfterSending,
    /// Sent, and the connection then closes.
    CloseAfterSending,
    /// Not sent, and the connection then closes.
    CloseWithoutSending,
    /// Sent, and answered with 500.
    FailAfterSending,
    /// As it should be, after a while.
    Slow(Duration),
}

/// How the answer to a send carries the message's id; it differs between engines and versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdShape {
    /// `id` as text.
    #[default]
    Text,
    /// `id._serialized`.
    Serialized,
    /// `key.id` beside `key.remoteJid`.
    Key,
}

/// A message that went out.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The session's name.
    pub session: String,
    /// To which chat.
    pub chat_id: String,
    /// Text or caption.
    pub text: String,
    /// `sendText`, `sendImage`, …
    pub path: String,
    /// The request's body.
    pub body: Value,
    /// The id it got.
    pub id: String,
    /// When the request was read.
    pub at: Instant,
    /// The same by the clock on the wall.
    pub at_clock: SystemTime,
}

/// A webhook as it was given to the receiver, or given up.
#[derive(Clone, Debug)]
pub struct SentWebhook {
    /// Its event.
    pub event: String,
    /// The body.
    pub body: String,
    /// Statuses of the answers; 0 where there was none.
    pub statuses: Vec<u16>,
}

#[derive(Clone, Debug)]
struct Session {
    status: String,
    config: Value,
    is_linked: bool,
}

#[derive(Default)]
struct World {
    api_key: String,
    sessions: BTreeMap<String, Session>,
    links_at_start: bool,
    faults: VecDeque<SendFault>,
    lasting_fault: Option<SendFault>,
    id_shape: IdShape,
    no_echo: bool,
    hides_numbers: bool,
    acks: Vec<i64>,
    status_wait: Duration,
    sent: Vec<Sent>,
    webhooks: Vec<SentWebhook>,
    /// By session and chat, the newest last.
    history: BTreeMap<(String, String), Vec<Value>>,
    /// Answers of check-exists that differ from "yes, under its own digits".
    numbers: BTreeMap<String, Value>,
    checks: Vec<String>,
    count: u64,
    retry_pause: Option<Duration>,
}

/// The server.
pub struct Waha {
    sink: Mutex<Option<HttpSink>>,
    address: SocketAddr,
    world: Arc<Mutex<World>>,
}

/// A change of state takes a moment.
const MOMENT: Duration = Duration::from_millis(30);

impl Waha {
    /// Listens on a free port of the loopback interface; callers need `api_key`.
    pub async fn start(api_key: &str) -> Result<Self> {
        let world = World {
            api_key: api_key.to_owned(),
            acks: vec![1, 2, 3],
            status_wait: Duration::from_millis(200),
            links_at_start: true,
            ..World::default()
        };
        let world = Arc::new(Mutex::new(world));
        let sink = listen((std::net::Ipv4Addr::LOCALHOST, 0).into(), &world).await?;
        let address = sink.address();
        Ok(Self { sink: Mutex::new(Some(sink)), address, world })
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Makes a session that works, without webhooks.
    pub fn add_working(&self, name: &str) {
        let session = Session { status: "WORKING".to_owned(), config: json!({"webhooks": []}), is_linked: true };
        self.world().sessions.insert(name.to_owned(), session);
    }

    /// A session's state.
    pub fn status(&self, name: &str) -> Option<String> {
        state_of(&self.world, name)
    }

    /// A session's configuration.
    pub fn config(&self, name: &str) -> Option<Value> {
        self.world().sessions.get(name).map(|session| session.config.clone())
    }

    /// Puts a session into a state and calls its webhooks.
    pub fn set_status(&self, name: &str, status: &str) {
        set_status(&self.world, name, status);
    }

    /// As [`Waha::set_status`], but sends no webhook: it was lost.
    pub fn set_status_silently(&self, name: &str, status: &str) {
        if let Some(session) = self.world().sessions.get_mut(name) {
            session.status = status.to_owned();
        }
    }

    /// The phone scans the code.
    pub fn scan(&self, name: &str) {
        if let Some(session) = self.world().sessions.get_mut(name) {
            session.is_linked = true;
        }
        self.set_status(name, "WORKING");
    }

    /// Whether sessions are linked as soon as they are started (default), or want their code scanned first.
    pub fn link_at_start(&self, yes: bool) {
        self.world().links_at_start = yes;
    }

    /// The next sends end like this, one after the other.
    pub fn next_sends(&self, faults: impl IntoIterator<Item = SendFault>) {
        self.world().faults.extend(faults);
    }

    /// Every send ends like this, until this is called again.
    pub fn all_sends(&self, fault: Option<SendFault>) {
        self.world().lasting_fault = fault;
    }

    /// How answers carry ids.
    pub fn id_shape(&self, shape: IdShape) {
        self.world().id_shape = shape;
    }

    /// Whether sent messages come back as `message.any`, and which acks follow.
    pub fn echoes(&self, yes: bool, acks: &[i64]) {
        let mut world = self.world();
        world.no_echo = !yes;
        world.acks = acks.to_vec();
    }

    /// Whether what comes back names chats by ids that hide the number, as newer accounts do.
    pub fn hides_numbers(&self, yes: bool) {
        self.world().hides_numbers = yes;
    }

    /// How long a send waits for the session to work before it is refused.
    pub fn status_wait(&self, wait: Duration) {
        self.world().status_wait = wait;
    }

    /// Uses this pause between tries of a webhook instead of the configured one.
    pub fn retry_pause(&self, pause: Duration) {
        self.world().retry_pause = Some(pause);
    }

    /// The answer of check-exists for a number (digits).
    pub fn number(&self, digits: &str, chat_id: Option<&str>) {
        let answer = json!({"numberExists": chat_id.is_some(), "chatId": chat_id});
        self.world().numbers.insert(digits.to_owned(), answer);
    }

    /// The numbers that were checked.
    pub fn checks(&self) -> Vec<String> {
        self.world().checks.clone()
    }

    /// Everything that was sent.
    pub fn sent(&self) -> Vec<Sent> {
        self.world().sent.clone()
    }

    /// Waits until that many messages were sent.
    pub async fn wait_sent(&self, count: usize, limit: Duration) -> Result<Vec<Sent>> {
        let what = format!("{count} messages sent through WAHA");
        let found = eventually(&what, limit, || async { Some(self.sent()).filter(|sent| sent.len() >= count) }).await;
        found.with_context(|| format!("{} were", self.sent().len()))
    }

    /// Every webhook that was sent or given up.
    pub fn webhooks(&self) -> Vec<SentWebhook> {
        self.world().webhooks.clone()
    }

    /// Every request, as it came.
    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(HttpSink::requests).unwrap_or_default()
    }

    /// Goes away: connections are refused.
    pub fn go_down(&self) {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Comes back at the same address. `forget`: no session and no configuration is left; otherwise the sessions
    /// that worked do so again.
    pub async fn come_back(&self, forget: bool) -> Result<()> {
        let working: Vec<String> = {
            let mut world = self.world();
            if forget {
                world.sessions.clear();
            }
            let working = world.sessions.iter_mut().filter(|(_, session)| session.status != "STOPPED");
            working.map(|(name, session)| (session.status = "STARTING".to_owned(), name.clone()).1).collect()
        };
        let bound = eventually("the address is free again", Duration::from_secs(60), || async {
            listen(self.address, &self.world).await.ok()
        });
        *self.sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(bound.await?);
        for name in working {
            begin(&self.world, &name);
        }
        Ok(())
    }

    /// A restart.
    pub async fn restart(&self, forget: bool) -> Result<()> {
        self.go_down();
        self.come_back(forget).await
    }

    /// A person writes: the message stands in the history, and `message` and `message.any` go out. Returns its id.
    pub fn receive(&self, session: &str, from: &str, body: &str) -> String {
        let payload = self.receive_silently(session, from, body);
        for event in ["message", "message.any"] {
            emit(&self.world, session, event, payload.clone());
        }
        payload["id"].as_str().unwrap_or_default().to_owned()
    }

    /// A person writes, and no webhook says so. Returns the message.
    pub fn receive_silently(&self, session: &str, from: &str, body: &str) -> Value {
        let mut world = self.world();
        let own = world.next_id();
        let payload = json!({"id": format!("false_{from}_{own}"), "timestamp": now().as_secs(), "from": from,
            "fromMe": false, "source": "app", "to": "4900000000@c.us", "body": body, "hasMedia": false, "ack": 1,
            "ackName": "SERVER"});
        world.remember(session, from, payload.clone());
        payload
    }

    /// Sends an event as it is.
    pub fn inject(&self, session: &str, event: &str, payload: Value) {
        emit(&self.world, session, event, payload);
    }
}

impl World {
    fn next_id(&mut self) -> String {
        self.count += 1;
        format!("3EB0{:012X}", self.count)
    }

    fn remember(&mut self, session: &str, chat: &str, message: Value) {
        self.history.entry((session.to_owned(), chat.to_owned())).or_default().push(message);
    }

    fn shown(&self, name: &str) -> Option<Value> {
        let session = self.sessions.get(name)?;
        let me = (session.status == "WORKING").then(|| json!({"id": "4900000000@c.us", "pushName": "Posthaste"}));
        let engine = json!({"engine": "WEBJS"});
        Some(json!({"name": name, "status": session.status, "config": session.config, "me": me, "engine": engine}))
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn listen(address: SocketAddr, world: &Arc<Mutex<World>>) -> std::io::Result<HttpSink> {
    let sink = HttpSink::start(address).await?;
    let world = Arc::clone(world);
    sink.reply_by_default(Reply::with(move |request| answer(&world, request)));
    Ok(sink)
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({"statusCode": status, "message": message}))
}

fn answer(world: &Arc<Mutex<World>>, request: &Request) -> Reply {
    let decoded: Vec<String> = request.path().split('/').skip(1).map(decode).collect();
    let path: Vec<&str> = decoded.iter().map(String::as_str).collect();
    if path == ["ping"] {
        return Reply::json(200, &json!({"message": "pong"}));
    }
    if request.header("x-api-key") != Some(lock(world).api_key.as_str()) {
        return error(401, "Unauthorized");
    }
    let body = request.json().unwrap_or_default();
    match (request.method.as_str(), &path[..]) {
        ("GET", ["api", "sessions"]) => {
            let world = lock(world);
            let all: Vec<_> = world.sessions.keys().filter_map(|name| world.shown(name)).collect();
            Reply::json(200, &json!(all))
        }
        ("POST", ["api", "sessions"]) => create(world, &body),
        ("GET", ["api", "sessions", name]) => shown(world, 200, name),
        ("PUT", ["api", "sessions", name]) => update(world, name, &body),
        ("DELETE", ["api", "sessions", name]) => {
            lock(world).sessions.remove(*name);
            Reply::status(200)
        }
        ("POST", ["api", "sessions", name, action]) => turn(world, name, action),
        ("GET", ["api", name, "auth", "qr"]) => qr(world, name),
        ("GET", ["api", "contacts", "check-exists"]) => check(world, request),
        ("GET", ["api", name, "chats"]) => chats(world, name, request),
        ("GET", ["api", name, "chats", chat, "messages"]) => messages(world, name, chat, request),
        ("POST", ["api", path]) if path.starts_with("send") => {
            send(world, path, &body, (request.received_at, request.received_at_clock))
        }
        _ => error(404, "Cannot find it"),
    }
}

fn shown(world: &Mutex<World>, status: u16, name: &str) -> Reply {
    match lock(world).shown(name) {
        Some(session) => Reply::json(status, &session),
        None => error(404, "Session not found"),
    }
}

fn create(world: &Arc<Mutex<World>>, body: &Value) -> Reply {
    let name = body["name"].as_str().unwrap_or("default").to_owned();
    {
        let mut world = lock(world);
        if world.sessions.contains_key(&name) {
            return error(422, &format!("Session '{name}' already exists. Use PUT to update it."));
        }
        let config = if body["config"].is_object() { body["config"].clone() } else { json!({}) };
        let session = Session { status: "STOPPED".to_owned(), config, is_linked: false };
        world.sessions.insert(name.clone(), session);
    }
    if body["start"].as_bool().unwrap_or(true) {
        begin(world, &name);
    }
    shown(world, 201, &name)
}

fn update(world: &Arc<Mutex<World>>, name: &str, body: &Value) -> Reply {
    let runs = {
        let mut world = lock(world);
        let Some(session) = world.sessions.get_mut(name) else { return error(404, "Session not found") };
        session.config = body["config"].clone();
        session.status != "STOPPED"
    };
    if runs {
        begin(world, name);
    }
    shown(world, 200, name)
}

fn turn(world: &Arc<Mutex<World>>, name: &str, action: &str) -> Reply {
    if !lock(world).sessions.contains_key(name) {
        return error(404, "Session not found");
    }
    match action {
        // Starting what runs changes nothing, as documented.
        "start" if !matches!(state_of(world, name).as_deref(), Some("STOPPED" | "FAILED")) => {}
        "start" | "restart" => begin(world, name),
        "stop" => set_status(world, name, "STOPPED"),
        "logout" => {
            if let Some(session) = lock(world).sessions.get_mut(name) {
                session.is_linked = false;
            }
            set_status(world, name, "STOPPED");
        }
        _ => return error(404, "Cannot find it"),
    }
    shown(world, 201, name)
}

fn state_of(world: &Mutex<World>, name: &str) -> Option<String> {
    lock(world).sessions.get(name).map(|session| session.status.clone())
}

/// STARTING, and a moment later whatever its link allows.
fn begin(world: &Arc<Mutex<World>>, name: &str) {
    set_status(world, name, "STARTING");
    let (world, name) = (Arc::clone(world), name.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(MOMENT).await;
        let status = {
            let mut world = lock(&world);
            let links = world.links_at_start;
            // A session that was stopped since stays stopped.
            let Some(session) = world.sessions.get_mut(&name).filter(|session| session.status == "STARTING") else {
                return;
            };
            session.is_linked |= links;
            if session.is_linked { "WORKING" } else { "SCAN_QR_CODE" }
        };
        set_status(&world, &name, status);
    });
}

fn set_status(world: &Arc<Mutex<World>>, name: &str, status: &str) {
    match lock(world).sessions.get_mut(name) {
        Some(session) => session.status = status.to_owned(),
        None => return,
    }
    let statuses = json!([{"status": status, "timestamp": u64::try_from(now().as_millis()).unwrap_or_default()}]);
    emit(world, name, "session.status", json!({"name": name, "status": status, "statuses": statuses}));
}

fn qr(world: &Mutex<World>, name: &str) -> Reply {
    match state_of(world, name).as_deref() {
        None => error(404, "Session not found"),
        Some("SCAN_QR_CODE") => Reply::json(200, &json!({"mimetype": "image/png", "data": "iVBORw0KGgo="})),
        Some(status) => unexpected(name, status, "SCAN_QR_CODE"),
    }
}

/// The documented answer of a call that needs another state.
fn unexpected(name: &str, status: &str, expected: &str) -> Reply {
    let error = "Session status is not as expected. Try again later or restart the session";
    Reply::json(422, &json!({"error": error, "session": name, "status": status, "expected": [expected]}))
}

fn check(world: &Mutex<World>, request: &Request) -> Reply {
    let phone = parameter(request, "phone").unwrap_or_default().trim_start_matches('+').to_owned();
    let mut world = lock(world);
    world.checks.push(phone.clone());
    let usual = json!({"numberExists": true, "chatId": format!("{phone}@c.us")});
    Reply::json(200, &world.numbers.get(&phone).cloned().unwrap_or(usual))
}

fn chats(world: &Mutex<World>, name: &str, request: &Request) -> Reply {
    let world = lock(world);
    let own = world.history.iter().filter(|((session, _), _)| session == name);
    let mut chats: Vec<(i64, &str)> = own
        .map(|((_, chat), all)| (all.last().map_or(0, |last| last["timestamp"].as_i64().unwrap_or(0)), chat.as_str()))
        .collect();
    chats.sort_by(|one, other| other.cmp(one));
    let rows: Vec<Value> = chats.iter().map(|(at, id)| json!({"id": id, "conversationTimestamp": at})).collect();
    Reply::json(200, &json!(page(&rows, request)))
}

fn messages(world: &Mutex<World>, name: &str, chat: &str, request: &Request) -> Reply {
    let since = parameter(request, "filter.timestamp.gte").and_then(|text| text.parse().ok()).unwrap_or(0);
    let from_me = parameter(request, "filter.fromMe").map(|text| text == "true");
    let world = lock(world);
    let all = world.history.get(&(name.to_owned(), chat.to_owned())).cloned().unwrap_or_default();
    let fits = |message: &&Value| {
        message["timestamp"].as_i64().unwrap_or(0) >= since
            && from_me.is_none_or(|wanted| message["fromMe"].as_bool() == Some(wanted))
    };
    let rows: Vec<Value> = all.iter().rev().filter(fits).cloned().collect();
    Reply::json(200, &json!(page(&rows, request)))
}

fn page(rows: &[Value], request: &Request) -> Vec<Value> {
    let number =
        |name: &str, usual: usize| parameter(request, name).and_then(|text| text.parse().ok()).unwrap_or(usual);
    rows.iter().skip(number("offset", 0)).take(number("limit", 10)).cloned().collect()
}

fn parameter(request: &Request, name: &str) -> Option<String> {
    let (_, query) = request.target.split_once('?')?;
    let pair = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| decode(found) == name);
    pair.map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let code = std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                bytes.push(code.unwrap_or(b'%'));
                rest = after;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn send(world: &Arc<Mutex<World>>, path: &str, body: &Value, at: (Instant, SystemTime)) -> Reply {
    let session = body["session"].as_str().unwrap_or("default").to_owned();
    let (status, wait, fault) = {
        let mut world = lock(world);
        let Some(found) = world.sessions.get(&session) else {
            return error(404, "Session not found");
        };
        let status = found.status.clone();
        let fault = if status == "WORKING" { world.faults.pop_front() } else { None };
        (status, world.status_wait, fault.or_else(|| world.lasting_fault.clone()))
    };
    if status != "WORKING" {
        return unexpected(&session, &status, "WORKING").after(wait);
    }
    match fault {
        None => taken(world, path, &session, body, at),
        Some(SendFault::Slow(time)) => taken(world, path, &session, body, at).after(time),
        Some(SendFault::Status(status, seconds)) => {
            let reply = error(status, "the test asked for a failure");
            seconds.map_or(reply.clone(), |seconds| reply.with_header("Retry-After", &seconds.to_string()))
        }
        Some(SendFault::NotImplemented) => error(422, "The method is not implemented by the engine."),
        Some(SendFault::CloseWithoutSending) => Reply::CloseAfterBody,
        Some(SendFault::HangAfterSending) => {
            taken(world, path, &session, body, at);
            Reply::Hang
        }
        Some(SendFault::CloseAfterSending) => {
            taken(world, path, &session, body, at);
            Reply::CloseAfterBody
        }
        Some(SendFault::FailAfterSending) => {
            taken(world, path, &session, body, at);
            error(500, "the test asked for a failure")
        }
    }
}

/// Sends: it is written down, answered, and comes back as an echo with its acks.
fn taken(
    world: &Arc<Mutex<World>>,
    path: &str,
    session: &str,
    body: &Value,
    (at, at_clock): (Instant, SystemTime),
) -> Reply {
    let chat = body["chatId"].as_str().unwrap_or_default().to_owned();
    let text = body["text"].as_str().or_else(|| body["caption"].as_str()).unwrap_or_default().to_owned();
    let (answer, payload, acks) = {
        let mut world = lock(world);
        let own = world.next_id();
        let shown = if world.hides_numbers { format!("{}@lid", chat.len() + 900_000) } else { chat.clone() };
        let id = format!("true_{shown}_{own}");
        let answer = match world.id_shape {
            IdShape::Text => json!({"id": id, "timestamp": now().as_secs()}),
            IdShape::Serialized => json!({"id": {"fromMe": true, "remote": chat, "id": own, "_serialized": id}}),
            IdShape::Key => {
                json!({"key": {"remoteJid": chat.replace("@c.us", "@s.whatsapp.net"), "fromMe": true, "id": own}})
            }
        };
        world.sent.push(Sent {
            session: session.to_owned(),
            chat_id: chat.clone(),
            text: text.clone(),
            path: path.to_owned(),
            body: body.clone(),
            id: id.clone(),
            at,
            at_clock,
        });
        let payload = json!({"id": id, "timestamp": now().as_secs(), "from": "4900000000@c.us", "fromMe": true,
            "source": "api", "to": shown, "body": text, "hasMedia": path != "sendText", "ack": 0, "ackName": "PENDING"});
        world.remember(session, &chat, payload.clone());
        (answer, (!world.no_echo).then_some(payload), world.acks.clone())
    };
    follow(world, session, payload, acks);
    Reply::json(201, &answer)
}

fn follow(world: &Arc<Mutex<World>>, session: &str, payload: Option<Value>, acks: Vec<i64>) {
    let Some(payload) = payload else { return };
    let (world, session) = (Arc::clone(world), session.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(MOMENT).await;
        emit(&world, &session, "message.any", payload.clone());
        for ack in acks {
            tokio::time::sleep(MOMENT).await;
            let name = match ack {
                -1 => "ERROR",
                0 => "PENDING",
                1 => "SERVER",
                2 => "DEVICE",
                3 => "READ",
                _ => "PLAYED",
            };
            let ack = json!({"id": payload["id"], "from": payload["to"], "to": payload["from"], "fromMe": true,
                "participant": null, "ack": ack, "ackName": name});
            emit(&world, &session, "message.ack", ack);
        }
    });
}

/// Sends an event to the session's webhooks, each with its own retries.
fn emit(world: &Arc<Mutex<World>>, session: &str, event: &str, payload: Value) {
    let (hooks, id) = {
        let mut world = lock(world);
        let Some(found) = world.sessions.get(session) else { return };
        let hooks = found.config["webhooks"].as_array().cloned().unwrap_or_default();
        (hooks, format!("evt_{}", world.next_id().to_lowercase()))
    };
    let millis = u64::try_from(now().as_millis()).unwrap_or_default();
    let body = json!({"id": id, "timestamp": millis, "event": event, "session": session, "metadata": {},
        "me": {"id": "4900000000@c.us", "pushName": "Posthaste"}, "payload": payload, "engine": "WEBJS",
        "environment": {"version": "2026.7.1", "engine": "WEBJS", "tier": "PLUS"}});
    for hook in hooks {
        let events = hook["events"].as_array().cloned().unwrap_or_default();
        if events.iter().any(|wanted| wanted == "*" || wanted == event) {
            tokio::spawn(tell(Arc::clone(world), hook, event.to_owned(), body.to_string()));
        }
    }
}

async fn tell(world: Arc<Mutex<World>>, hook: Value, event: String, body: String) {
    let attempts = hook["retries"]["attempts"].as_u64().unwrap_or(15).max(1);
    let configured = Duration::from_secs(hook["retries"]["delaySeconds"].as_u64().unwrap_or(2));
    let client = reqwest::Client::new();
    let mut statuses = Vec::new();
    let request_id = uuid::Uuid::now_v7().to_string();
    for attempt in 0..attempts {
        if attempt > 0 {
            let pause = lock(&world).retry_pause.unwrap_or(configured);
            tokio::time::sleep(pause).await;
        }
        let mut request = client
            .post(hook["url"].as_str().unwrap_or_default())
            .header("content-type", "application/json")
            .header("x-webhook-request-id", &request_id)
            .header("x-webhook-timestamp", now().as_millis().to_string())
            .timeout(Duration::from_secs(30));
        if let Some(key) = hook["hmac"]["key"].as_str() {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, key.as_bytes()), body.as_bytes());
            let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            request = request.header("x-webhook-hmac", hex).header("x-webhook-hmac-algorithm", "sha512");
        }
        let status = request.body(body.clone()).send().await.map_or(0, |answer| answer.status().as_u16());
        statuses.push(status);
        if (200..300).contains(&status) {
            break;
        }
    }
    lock(&world).webhooks.push(SentWebhook { event, body, statuses });
}
