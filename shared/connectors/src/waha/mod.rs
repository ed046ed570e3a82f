//! WAHA (WhatsApp HTTP API): a typed client for the part of its interface that we use.
//!
//! Tenants name the hosts, so every call goes through the address guard. The host of `WAHA_BASE_URL` is exempt, because
//! the operator named it, but only for sessions of the first tenant, which belongs to the operator: other tenants may
//! not call it. The client follows no redirect, repeats nothing and logs nothing.

mod error;
pub mod event;
pub mod hook;
pub mod mac;
mod message;
mod session;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use domain::{
    clock,
    contract::guard::{Guard, Refusal},
};
use records::wa_sessions;
use reqwest::{
    Client, Method, RequestBuilder, Response,
    header::{ACCEPT, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::{Origin, Url};

use crate::egress::{self, Trouble, resolver::GuardedResolver, retry_after};

pub use error::WahaError;
pub use message::{Chat, MediaKind, Outgoing, OutgoingFile, SentMessage, chat_id_of, message_id};
pub use session::{Hmac, Me, NumberCheck, Qr, Retries, Session, SessionConfig, WebhookSpec};

/// A host that accepts no connection within this time will not answer in time either.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the 5 s after which Node.js, on which WAHA runs, closes an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections to one host.
const IDLE_PER_HOST_MAX: usize = 64;
/// The largest answer that is read: a list of hundreds of sessions is smaller.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The same for a page of chats or messages, in which some engines include small pictures. Parsed, it takes several
/// times its size.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The author of a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The operator: in the settings, or for the first tenant.
    Operator,
    /// Another tenant.
    Tenant,
}

impl NamedBy {
    /// The operator, or not.
    pub const fn operator(is_operators: bool) -> Self {
        if is_operators { Self::Operator } else { Self::Tenant }
    }
}

/// The clients that all calls share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waha {
    guarded: Client,
    plain: Client,
    guard: Guard,
    operator: Option<Arc<Origin>>,
}

impl Waha {
    /// Clients that obey `guard`, except towards the host of `operator_url` (`WAHA_BASE_URL`). It fails if TLS cannot
    /// be set up.
    pub fn new(guard: Guard, operator_url: Option<&Url>) -> reqwest::Result<Self> {
        let client = || {
            egress::client(CONNECT_TIMEOUT)
                .http1_only()
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        };
        Ok(Self {
            guarded: client().dns_resolver(GuardedResolver::shared(guard.clone())).build()?,
            plain: client().build()?,
            guard,
            operator: operator_url.map(|url| Arc::new(url.origin())),
        })
    }

    /// Checks a base URL as written.
    pub fn check_base_url(&self, text: &str, named_by: NamedBy) -> Result<(), Refusal> {
        let url = Url::parse(text).map_err(|_| Refusal::NotHttp)?;
        if self.is_exempt(&url, named_by) { Ok(()) } else { self.guard.check_url(text) }
    }

    /// The WAHA of a session; each call ends after `timeout`.
    pub fn host_of(&self, session: &wa_sessions::Session, timeout: Duration) -> Result<Host, WahaError> {
        let (settings, named_by) = (&session.settings, NamedBy::operator(session.is_operators));
        self.host(&settings.base_url, settings.api_key.as_ref(), timeout, named_by)
    }

    /// A host to call; each call ends after `timeout`.
    pub fn host(
        &self,
        base_url: &str,
        api_key: Option<&SecretString>,
        timeout: Duration,
        named_by: NamedBy,
    ) -> Result<Host, WahaError> {
        let refused = |refusal| WahaError::Unreachable(Trouble::Refused(refusal));
        self.check_base_url(base_url, named_by).map_err(refused)?;
        let base = Url::parse(base_url).map_err(|_| refused(Refusal::NotHttp))?;
        let key = api_key.map(|key| HeaderValue::from_str(key.expose_secret())).transpose();
        let mut key = key.map_err(|_| WahaError::BadKey)?;
        key.iter_mut().for_each(|key| key.set_sensitive(true));
        let client = if self.is_exempt(&base, named_by) { &self.plain } else { &self.guarded };
        Ok(Host { client: client.clone(), base, key, timeout })
    }

    fn is_exempt(&self, url: &Url, named_by: NamedBy) -> bool {
        named_by == NamedBy::Operator && self.operator.as_deref().is_some_and(|origin| *origin == url.origin())
    }
}

/// Messages of a chat.
#[derive(Clone, Debug)]
pub struct MessagePage {
    /// The messages, the newest first.
    pub messages: Vec<Value>,
    /// The size of the answer.
    pub bytes: usize,
}

/// A WAHA, with its API key.
#[derive(Clone, Debug)]
pub struct Host {
    client: Client,
    base: Url,
    key: Option<HeaderValue>,
    timeout: Duration,
}

impl Host {
    /// Whether it answers at all.
    pub async fn ping(&self) -> Result<(), WahaError> {
        self.call(self.request(Method::GET, &["ping"])).await.map(drop)
    }

    /// Every session, the stopped ones included.
    pub async fn sessions(&self) -> Result<Vec<Session>, WahaError> {
        self.read(self.query(&["api", "sessions"], &[("all", "true")])).await
    }

    /// One session; [`WahaError::NotFound`] if WAHA does not know it.
    pub async fn session(&self, name: &str) -> Result<Session, WahaError> {
        self.read(self.request(Method::GET, &["api", "sessions", name])).await
    }

    /// Makes a session and, if `start`, starts it.
    pub async fn create_session(&self, name: &str, config: &SessionConfig, start: bool) -> Result<Session, WahaError> {
        let body = json!({"name": name, "start": start, "config": config});
        self.read(self.request(Method::POST, &["api", "sessions"]).json(&body)).await
    }

    /// Replaces a session's configuration; WAHA restarts a running one.
    pub async fn update_session(&self, name: &str, config: &SessionConfig) -> Result<Session, WahaError> {
        let body = json!({"config": config});
        self.read(self.request(Method::PUT, &["api", "sessions", name]).json(&body)).await
    }

    /// Deletes a session and all its data at WAHA.
    pub async fn delete_session(&self, name: &str) -> Result<(), WahaError> {
        self.call(self.request(Method::DELETE, &["api", "sessions", name])).await.map(drop)
    }

    /// Starts a session.
    pub async fn start_session(&self, name: &str) -> Result<(), WahaError> {
        self.turn(name, "start").await
    }

    /// Stops a session.
    pub async fn stop_session(&self, name: &str) -> Result<(), WahaError> {
        self.turn(name, "stop").await
    }

    /// Stops and starts a session.
    pub async fn restart_session(&self, name: &str) -> Result<(), WahaError> {
        self.turn(name, "restart").await
    }

    /// Unlinks a session from its phone.
    pub async fn logout_session(&self, name: &str) -> Result<(), WahaError> {
        self.turn(name, "logout").await
    }

    async fn turn(&self, name: &str, action: &str) -> Result<(), WahaError> {
        self.call(self.request(Method::POST, &["api", "sessions", name, action])).await.map(drop)
    }

    /// The code to scan with the phone, as a picture.
    pub async fn qr(&self, name: &str) -> Result<Qr, WahaError> {
        let request = self.query(&["api", name, "auth", "qr"], &[("format", "image")]);
        self.read(request.header(ACCEPT, "application/json")).await
    }

    /// Whether a phone number (digits) is on WhatsApp, and the chat it has there.
    pub async fn check_exists(&self, session: &str, phone: &str) -> Result<NumberCheck, WahaError> {
        self.read(self.query(&["api", "contacts", "check-exists"], &[("phone", phone), ("session", session)])).await
    }

    /// Sends one message. A success whose body cannot be read is a success without an id.
    pub async fn send(&self, session: &str, chat_id: &str, message: &Outgoing) -> Result<SentMessage, WahaError> {
        let body = message.body(session, chat_id);
        match self.read::<Value>(self.request(Method::POST, &["api", message.path()]).json(&body)).await {
            Ok(answer) => Ok(SentMessage { id: message_id(&answer) }),
            Err(WahaError::Unreadable) => Ok(SentMessage { id: None }),
            Err(error) => Err(error),
        }
    }

    /// Chats, the one with the newest message first.
    pub async fn chats(&self, session: &str, limit: usize, offset: usize) -> Result<Vec<Chat>, WahaError> {
        let (limit, offset) = (limit.to_string(), offset.to_string());
        let order = [("sortBy", "conversationTimestamp"), ("sortOrder", "desc")];
        let query = [&[("limit", limit.as_str()), ("offset", offset.as_str())], &order[..]].concat();
        let request = self.query(&["api", session, "chats"], &query);
        let body = self.call_within(request, PAGE_BYTES_MAX).await?;
        let rows: Vec<Value> = serde_json::from_slice(&body).map_err(|_| WahaError::Unreadable)?;
        Ok(rows.iter().filter_map(Chat::read).collect())
    }

    /// Messages of a chat since `since`, the newest first, in the form of a `message` event's payload.
    pub async fn chat_messages(
        &self,
        session: &str,
        chat_id: &str,
        since: Option<DateTime<Utc>>,
        limit: usize,
        offset: usize,
    ) -> Result<MessagePage, WahaError> {
        let (limit, offset) = (limit.to_string(), offset.to_string());
        let since = since.map(|since| since.timestamp().to_string());
        let mut query = vec![("limit", limit.as_str()), ("offset", offset.as_str()), ("downloadMedia", "false")];
        query.extend(since.as_deref().map(|since| ("filter.timestamp.gte", since)));
        let request = self.query(&["api", session, "chats", chat_id, "messages"], &query);
        let body = self.call_within(request, PAGE_BYTES_MAX).await?;
        let messages = serde_json::from_slice(&body).map_err(|_| WahaError::Unreadable)?;
        Ok(MessagePage { messages, bytes: body.len() })
    }

    fn query(&self, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.url(path);
        url.query_pairs_mut().extend_pairs(query);
        self.to(Method::GET, url)
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.to(method, self.url(path))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // It fails only for a URL that cannot be a base; http and https URLs always can.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn to(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url).timeout(self.timeout);
        match &self.key {
            Some(key) => request.header("x-api-key", key.clone()),
            None => request,
        }
    }

    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, WahaError> {
        let body = self.call(request).await?;
        serde_json::from_slice(&body).map_err(|_| WahaError::Unreadable)
    }

    /// The body of a success.
    async fn call(&self, request: RequestBuilder) -> Result<Vec<u8>, WahaError> {
        self.call_within(request, ANSWER_BYTES_MAX).await
    }

    /// The same, with a limit of bytes.
    async fn call_within(&self, request: RequestBuilder, bytes_max: usize) -> Result<Vec<u8>, WahaError> {
        let response = request.send().await.map_err(|error| WahaError::unanswered(&error))?;
        let (status, wait) = (response.status(), wait(&response));
        let body = body(response, bytes_max).await;
        match status.is_success() {
            true => body.ok_or(WahaError::Unreadable),
            false => Err(WahaError::answered(status.as_u16(), wait, &body.unwrap_or_default())),
        }
    }
}

fn wait(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    retry_after::parse(value, clock::now())
}

/// `None`: the body broke off, or is too long.
async fn body(mut response: Response, bytes_max: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > bytes_max {
            return None;
        }
    }
    Some(body)
}

/// Serialized in WAHA's form.
fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
