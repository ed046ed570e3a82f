//! One open socket, from its upgrade to its end.

use std::time::Duration;

use actix_web::web::{Bytes, Data};
use actix_ws::{CloseCode, CloseReason, Closed, Message, MessageStream, ProtocolError, Session};
use records::inbox::Reader;
use runtime::metric;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use web::problem::Code;

use super::{feed::PAGE, hub::Registration, state::LiveInbox};
use crate::inbox::ItemView;

/// How often a client is pinged: more often than the usual 60 s timeout of proxies.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A client that sent nothing for so long, not even a pong, is gone.
const DEAD_AFTER: Duration = Duration::from_secs(50);
/// How often a key is checked again. With the time in the cache, a revoked key closes its sockets within half a minute.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often a socket reads the inbox without a hint, as a fallback.
const READ_EVERY: Duration = Duration::from_secs(60);
/// How long a client may take to make room for one message in its buffers.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// How long a close frame may wait to be sent. After that the connection ends without one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for a client that did not read: it may recover, and should then learn the reason.
const SLOW_CLOSE_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause before a failed read is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Close code: the credential is no longer valid.
const UNAUTHORIZED: u16 = 4401;
/// Close code: the client does not read.
const SLOW: u16 = 4408;

/// How long a socket may stay open.
pub enum Pass {
    /// With a token: until it expires.
    Until(Instant),
    /// With a key: as long as it is valid.
    Key(String),
}

/// Why a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client closed it, with this code if it sent one.
    Left(Option<CloseCode>),
    /// The connection broke.
    Client,
    /// The client broke the protocol.
    Protocol(CloseCode),
    /// The client sent nothing for too long.
    Dead,
    /// The client does not read.
    Slow,
    /// The credential expired.
    Expired,
    /// The process is stopping.
    Away,
}

impl End {
    const fn word(self) -> &'static str {
        match self {
            Self::Client | Self::Left(_) => "client",
            Self::Protocol(_) => "protocol",
            Self::Dead => "dead",
            Self::Slow => "slow",
            Self::Expired => "expired",
            Self::Away => "away",
        }
    }

    fn reason(self) -> Option<CloseReason> {
        let (code, text) = match self {
            Self::Client | Self::Dead | Self::Left(None) => return None,
            // A close frame is answered with the same code (RFC 6455, section 5.5.1).
            Self::Left(Some(code)) => return Some(CloseReason { code, description: None }),
            Self::Protocol(code) => (code, "send nothing but small frames"),
            Self::Slow => (CloseCode::Other(SLOW), "too slow: connect again with since"),
            Self::Expired => (CloseCode::Other(UNAUTHORIZED), "the credential has ended: get a new one"),
            Self::Away => (CloseCode::Away, "the server goes away: connect again with since"),
        };
        Some(CloseReason { code, description: Some(text.to_owned()) })
    }
}

/// A message to the client.
#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'static str,
    data: &'a ItemView,
}

/// An open socket.
pub struct Socket {
    live: Data<LiveInbox>,
    session: Session,
    stream: MessageStream,
    registration: Registration,
    reader: Reader,
    pass: Pass,
    last_received: Instant,
    last_ping: Instant,
    last_check: Instant,
    last_read: Instant,
}

impl Socket {
    /// A socket whose upgrade has begun.
    pub fn new(
        live: Data<LiveInbox>,
        session: Session,
        stream: MessageStream,
        registration: Registration,
        reader: Reader,
        pass: Pass,
    ) -> Self {
        let now = Instant::now();
        Self {
            live,
            session,
            stream,
            registration,
            reader,
            pass,
            last_received: now,
            last_ping: now,
            last_check: now,
            last_read: now,
        }
    }

    /// Pushes new items until one side ends the connection.
    pub async fn serve(mut self) {
        let end = loop {
            if let Some(end) = self.step().await {
                break end;
            }
        };
        metrics::counter!(metric::WS_CLOSED, "reason" => end.word()).increment(1);
        let Self { session, registration, stream, .. } = self;
        match end {
            // Keep the registration until the close frame is sent, so that the stopping process waits for it.
            End::Away => {
                let _ = timeout(CLOSE_TIMEOUT, session.close(end.reason())).await;
                drop(registration);
            }
            _ => {
                drop(registration);
                let patience = if end == End::Slow { SLOW_CLOSE_TIMEOUT } else { CLOSE_TIMEOUT };
                let _ = timeout(patience, session.close(end.reason())).await;
            }
        }
        drop(stream);
    }

    /// Waits for the next event and handles it.
    async fn step(&mut self) -> Option<End> {
        let tick = self.next_tick();
        tokio::select! {
            () = self.registration.hub().leaving().cancelled() => Some(End::Away),
            () = sleep_until(tick) => self.tick().await,
            message = self.stream.recv() => self.receive(message).await,
            () = self.registration.wakeup().notified() => self.push().await,
        }
    }

    fn next_tick(&self) -> Instant {
        let ping = self.last_ping + PING_EVERY;
        match &self.pass {
            Pass::Until(end) => ping.min(*end),
            Pass::Key(_) => ping.min(self.last_check + CHECK_EVERY),
        }
    }

    async fn tick(&mut self) -> Option<End> {
        let now = Instant::now();
        self.last_check = now;
        if !self.may_stay(now).await {
            return Some(End::Expired);
        }
        if now.duration_since(self.last_received) > DEAD_AFTER {
            return Some(End::Dead);
        }
        if now.duration_since(self.last_read) > READ_EVERY {
            self.registration.wakeup().notify_one();
        }
        if now.duration_since(self.last_ping) < PING_EVERY {
            return None;
        }
        self.last_ping = now;
        let sent = timeout(SLOW_AFTER, self.session.ping(b"")).await;
        end_of(sent)
    }

    /// Whether the credential is still valid. A database that is away closes no sockets.
    async fn may_stay(&self, now: Instant) -> bool {
        match &self.pass {
            Pass::Until(end) => now < *end,
            Pass::Key(key) => match self.live.web.credentials.identify(key, None, true).await {
                Ok(_) => true,
                Err(problem) => problem.code() != Code::Unauthenticated,
            },
        }
    }

    async fn receive(&mut self, message: Option<Result<Message, ProtocolError>>) -> Option<End> {
        self.last_received = Instant::now();
        match message {
            Some(Ok(Message::Ping(bytes))) => self.pong(bytes).await,
            Some(Ok(Message::Close(reason))) => Some(End::Left(reason.map(|reason| reason.code))),
            None => Some(End::Client),
            Some(Ok(_)) => None,
            Some(Err(ProtocolError::Overflow)) => Some(End::Protocol(CloseCode::Size)),
            Some(Err(ProtocolError::Io(_))) => Some(End::Client),
            Some(Err(_)) => Some(End::Protocol(CloseCode::Protocol)),
        }
    }

    async fn pong(&mut self, bytes: Bytes) -> Option<End> {
        let sent = timeout(SLOW_AFTER, self.session.pong(&bytes)).await;
        end_of(sent)
    }

    /// Sends the next page. An item that was sent is never sent again, and a full page wakes the socket for more.
    async fn push(&mut self) -> Option<End> {
        self.last_read = Instant::now();
        let Some(page) = self.live.feed.page(self.reader.clone()).await else {
            self.registration.hub().leaving().run_until_cancelled(sleep(RETRY_AFTER)).await;
            self.registration.wakeup().notify_one();
            return None;
        };
        if i64::try_from(page.len()).is_ok_and(|count| count >= PAGE) {
            self.registration.wakeup().notify_one();
        }
        for item in page {
            let seq = item.seq;
            let view = ItemView::from(item);
            let Ok(text) = serde_json::to_string(&Envelope { r#type: "notification", data: &view }) else { continue };
            let sent = timeout(SLOW_AFTER, self.session.text(text)).await;
            if let Some(end) = end_of(sent) {
                return Some(end);
            }
            self.reader.after = seq;
            metrics::counter!(metric::WS_PUSHED).increment(1);
        }
        None
    }
}

fn end_of(sent: Result<Result<(), Closed>, tokio::time::error::Elapsed>) -> Option<End> {
    match sent {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(End::Client),
        Err(_) => Some(End::Slow),
    }
}
