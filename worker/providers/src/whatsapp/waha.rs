//! WhatsApp through WAHA. Each delivery is sent by the session whose pacing queue gave it a slot.
//!
//! WAHA has no idempotency keys, so a lost response leaves the outcome unknown. A row in `holds` is written before each call. WAHA
//! echoes each message it sent (`message.any`, `source: api`), and the echo is matched with that row.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use connectors::{
    egress::resolver::GuardedResolver,
    waha::{Host, MediaKind, Outgoing, OutgoingFile, Waha as Client, WahaError, chat_id_of, event},
};
use deliveries::{
    Deliveries,
    breakers::{host_key, session_key},
    holds::Begun,
};
use domain::{
    Channel, Fault, Outcome, ProviderName, Receipt, clock,
    contract::{
        Order, Provider,
        guard::Guard,
        provider::{Asking, HeldBack, Sending, Slot},
        submission::Content,
    },
    phone::is_brazilian_mobile,
    retry::AmbiguousPolicy,
};
use records::{Records, wa_sessions::Session};
use runtime::config::Config;
use store::{DbResult, Store};
use uuid::Uuid;

use super::media::Fetcher;
use crate::breakers::Breakers;

/// How much longer than the call the best-effort writes after it may take. Less than the grace of the attempt.
const NOTE_GRACE: Duration = Duration::from_millis(40);
/// The part of a slot's time reserved for the steps after the media fetch: one database write and the start of the call.
const MEDIA_RESERVE: Duration = Duration::from_millis(200);
/// How long a session's settings are cached.
const SESSION_TTL: Duration = Duration::from_secs(3);
/// How long the chat id of a number is cached.
const NUMBER_TTL: Duration = Duration::from_secs(3600);
/// Cached entries. A full cache is cleared.
const CACHE_ENTRIES_MAX: usize = 10_000;

/// The provider.
pub struct Waha {
    store: Store,
    client: Client,
    media: Fetcher,
    breakers: Arc<Breakers>,
    hold: Duration,
    sessions: TtlCache<Uuid, Option<Arc<Session>>>,
    numbers: TtlCache<(Uuid, String), String>,
}

/// The arguments of a call.
struct Call {
    session: Arc<Session>,
    host: Host,
    chat_id: String,
    message: Outgoing,
    began: DateTime<Utc>,
}

impl Waha {
    /// Sends through the sessions in `store`. Fails if TLS cannot be set up.
    pub fn new(config: &Config, store: Store, breakers: Arc<Breakers>) -> reqwest::Result<Self> {
        let guard = Guard::new(config.webhook.allow_nets.clone());
        let media_guard = GuardedResolver::shared(Guard::new(config.waha.media_nets.clone()));
        let hold = match config.retry_policy(Channel::Whatsapp).ambiguous {
            AmbiguousPolicy::Hold(wait) => wait,
            AmbiguousPolicy::Resend => Duration::ZERO,
        };
        Ok(Self {
            media: Fetcher::new(media_guard, config.call_timeout(Channel::Whatsapp))?,
            client: Client::new(guard, config.waha.base_url.as_ref())?,
            breakers,
            store,
            hold,
            sessions: TtlCache::new(SESSION_TTL),
            numbers: TtlCache::new(NUMBER_TTL),
        })
    }

    async fn session(&self, order: &Order) -> DbResult<Option<Arc<Session>>> {
        let Some(Slot { line: id, .. }) = order.slot else { return Ok(None) };
        let session = match self.sessions.get(&id) {
            Some(remembered) => remembered,
            None => {
                let found = self.store.whatsapp_sessions().find(id).await?.map(Arc::new);
                self.sessions.put(id, found.clone());
                found
            }
        };
        // Acceptance checks that a delivery names a session of its tenant. This check is a second barrier.
        Ok(session.filter(|session| session.tenant == order.tenant))
    }

    async fn check_breakers(&self, order: &Order) -> Result<(), HeldBack> {
        let Ok(Some(session)) = self.session(order).await else { return Ok(()) };
        self.breakers.gate(&breaker_keys(&session), order.timeout).await
    }

    async fn attempt(&self, order: &Order) -> Outcome {
        let began = Instant::now();
        let session = match self.session(order).await {
            Ok(Some(session)) => session,
            Ok(None) => {
                return Outcome::Misconfigured(Fault::new("no_session", "it has no WhatsApp session, or that is gone"));
            }
            Err(_) => return settings_unavailable(),
        };
        let call = match self.prepare(order, session).await {
            Ok(call) => call,
            Err(outcome) => return outcome,
        };
        let begun = Begun {
            delivery: order.delivery,
            tenant: order.tenant,
            session: call.session.id,
            chat_id: &call.chat_id,
            body: order.content.message.as_deref().unwrap_or_default(),
            hold_ms: i32::try_from(self.hold.as_millis()).unwrap_or(i32::MAX),
        };
        // Without this row a lost response could not be resolved, so no call is made without it.
        let Ok(is_again) = self.store.holds().begin(begun).await else { return settings_unavailable() };
        // The steps before may have waited for the database.
        if order.slot.is_some_and(|slot| Instant::now() >= slot.until) {
            if !is_again {
                self.end_hold(order, None, began + order.timeout).await;
            }
            return Outcome::Throttled(Fault::new("slot_over", "its slot was over before the call could begin"), None);
        }
        let left = order.timeout.saturating_sub(began.elapsed());
        let sending = call.host.send(&call.session.settings.name, &call.chat_id, &call.message);
        let result = match tokio::time::timeout(left, sending).await {
            Ok(result) => result.map(|sent| sent.id),
            Err(_) => Err(WahaError::Unanswered(connectors::egress::Trouble::Timeout)),
        };
        self.settle(order, &call, result, (is_again, began + order.timeout)).await
    }

    async fn prepare(&self, order: &Order, session: Arc<Session>) -> Result<Call, Outcome> {
        let host = self.client.host_of(&session, order.timeout);
        let host = host.map_err(|error| match error {
            WahaError::Unreachable(_) => {
                let detail = "the session's base_url lies inside a network that may not be reached";
                Outcome::Misconfigured(Fault::new("target_not_allowed", detail))
            }
            _ => Outcome::Misconfigured(Fault::new("api_key", "the session's api_key cannot stand in a header")),
        })?;
        let chat_id = self.chat_id(order, &session, &host).await?;
        let message = self.outgoing(order).await?;
        Ok(Call { session, host, chat_id, message, began: clock::now() })
    }

    async fn outgoing(&self, order: &Order) -> Result<Outgoing, Outcome> {
        let content: &Content = &order.content;
        let text = content.message.clone().filter(|text| !text.is_empty());
        let Some(media) = &content.media else { return Ok(Outgoing::Text(text.unwrap_or_default())) };
        let data: Arc<str> = match (&media.data, &media.url) {
            (Some(data), _) => data.as_str().into(),
            (None, url) => {
                let slot_ends = order.slot.and_then(|slot| slot.until.checked_sub(MEDIA_RESERVE));
                let until = slot_ends.unwrap_or_else(|| Instant::now() + order.timeout / 2);
                self.media.get(order.tenant, url.as_deref().unwrap_or_default(), until).await?
            }
        };
        let file = OutgoingFile { mimetype: media.mimetype.clone(), filename: media.filename.clone(), data };
        Ok(Outgoing::File { kind: MediaKind::of(&media.mimetype), file, caption: text })
    }

    /// The chat id of a number. WAHA is asked only for numbers whose chat id may differ from their digits.
    async fn chat_id(&self, order: &Order, session: &Session, host: &Host) -> Result<String, Outcome> {
        let recipient = order.recipient.reveal();
        if !is_brazilian_mobile(recipient) {
            return Ok(chat_id_of(recipient));
        }
        let key = (session.id, recipient.to_owned());
        if let Some(known) = self.numbers.get(&key) {
            return Ok(known);
        }
        match host.check_exists(&session.settings.name, recipient.trim_start_matches('+')).await {
            Ok(check) if !check.exists => {
                Err(Outcome::Rejected(Fault::new("not_on_whatsapp", "the number is not on WhatsApp")))
            }
            Ok(check) => {
                let chat_id = check.chat_id.unwrap_or_else(|| chat_id_of(recipient));
                self.numbers.put(key, chat_id.clone());
                Ok(chat_id)
            }
            Err(WahaError::NotImplemented) => Ok(chat_id_of(recipient)),
            // The lookup sends no message, so its failure is transient.
            Err(WahaError::Unanswered(trouble)) => {
                let detail = "WAHA did not say where the number is on WhatsApp";
                Err(Outcome::Transient(Fault::new(trouble.as_str(), detail), None))
            }
            Err(error) => Err(self.failed(session, clock::now(), error).await),
        }
    }

    async fn settle(
        &self,
        order: &Order,
        call: &Call,
        result: Result<Option<String>, WahaError>,
        (is_again, until): (bool, Instant),
    ) -> Outcome {
        let session = &call.session;
        let outcome = match result {
            Ok(id) => {
                best_effort(until, async {
                    for key in breaker_keys(session) {
                        self.breakers.record_success(&key).await;
                    }
                })
                .await;
                let provider_ref = id.map(|id| event::reference(session.id, &id));
                let note = is_again.then(|| "sent again after an unknown end: possibly a duplicate".to_owned());
                Outcome::Sent(Receipt { provider_ref, code: Some("201".to_owned()), note, arrived: false })
            }
            Err(error) => self.failed(session, call.began, error).await,
        };
        match &outcome {
            Outcome::Unknown(_) => {}
            // The echo of an earlier call with an unknown outcome may still arrive: its row stays.
            other if is_again && !matches!(other, Outcome::Sent(_)) => {}
            Outcome::Sent(receipt) => self.end_hold(order, receipt.provider_ref.clone(), until).await,
            _ => self.end_hold(order, None, until).await,
        }
        outcome
    }

    /// Deletes the row of a call. The scheduler deletes a row that is left behind once the delivery has ended.
    async fn end_hold(&self, order: &Order, provider_ref: Option<String>, until: Instant) {
        best_effort(until, async {
            if let Err(error) = self.store.holds().end(order.tenant, order.delivery, provider_ref).await {
                tracing::debug!(%error, "the end of a call could not be noted");
            }
        })
        .await;
    }

    /// Handles a failed call: returns its outcome, and updates the session's pacing queue and the breakers.
    async fn failed(&self, session: &Session, began: DateTime<Utc>, error: WahaError) -> Outcome {
        let fault = |detail: &str| Fault::new(error.code(), detail);
        let [own, host] = breaker_keys(session);
        match &error {
            WahaError::SessionStatus { status } => {
                self.close_line(session, status, began).await;
                Outcome::Throttled(fault("the session is not WORKING; it waits until it is"), None)
            }
            WahaError::NotFound => {
                self.close_line(session, "STOPPED", began).await;
                Outcome::Throttled(fault("WAHA does not know the session; it waits until it does"), None)
            }
            WahaError::NotImplemented => Outcome::Rejected(fault("the session's engine cannot send this")),
            WahaError::BadKey => Outcome::Misconfigured(fault("WAHA refused the session's api_key")),
            WahaError::TooMany(wait) => {
                let pause = wait.unwrap_or(TOO_MANY_WAIT);
                self.pause_line(session, pause).await;
                Outcome::Throttled(fault("WAHA asked to wait"), Some(pause))
            }
            WahaError::Refused(status) => Outcome::Rejected(fault(&format!("WAHA refused the message with {status}"))),
            WahaError::Failed(status, wait) => {
                self.breakers.record_failure(&own).await;
                Outcome::Transient(fault(&format!("WAHA failed with {status}")), *wait)
            }
            WahaError::Unreachable(connectors::egress::Trouble::Refused(_)) => {
                Outcome::Misconfigured(fault("the session's base_url lies inside a network that may not be reached"))
            }
            WahaError::Unreachable(_) => {
                self.breakers.record_failure(&host).await;
                Outcome::Transient(fault("WAHA could not be reached"), None)
            }
            WahaError::Unanswered(_) => {
                self.breakers.record_failure(&own).await;
                self.breakers.record_failure(&host).await;
                Outcome::Unknown(fault("WAHA did not answer; it waits for the message to come back"))
            }
            WahaError::Unreadable => Outcome::Unknown(fault("WAHA's answer cannot be read")),
        }
    }

    async fn close_line(&self, session: &Session, status: &str, began: DateTime<Utc>) {
        if let Err(error) = self.store.breakers().shut_session(session.id, status, began).await {
            tracing::warn!(%error, session.id = %session.id, "a session's line could not be shut");
        }
    }

    async fn pause_line(&self, session: &Session, wait: Duration) {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        if let Err(error) = self.store.breakers().block_line(session.id, wait_ms).await {
            tracing::warn!(%error, session.id = %session.id, "a session's line could not be kept still");
        }
    }
}

/// The pause after WAHA throttles a session without naming one.
const TOO_MANY_WAIT: Duration = Duration::from_secs(10);

impl Provider for Waha {
    fn name(&self) -> ProviderName {
        ProviderName::Waha
    }

    fn gate<'a>(&'a self, order: &'a Order) -> Asking<'a> {
        Box::pin(self.check_breakers(order))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.attempt(order))
    }
}

/// Runs a write that may be lost. The provider's response is known, and a database that is down must not make the outcome
/// unknown.
async fn best_effort(until: Instant, note: impl Future<Output = ()>) {
    if tokio::time::timeout_at((until + NOTE_GRACE).into(), note).await.is_err() {
        tracing::warn!("a note on a call that ended took too long and was left out");
    }
}

fn breaker_keys(session: &Session) -> [String; 2] {
    [session_key(session.id), host_key(session.tenant, &session.settings.base_url)]
}

fn settings_unavailable() -> Outcome {
    Outcome::Transient(Fault::new("database", "the session's settings could not be read"), None)
}

/// A cache whose entries expire.
struct TtlCache<K, V> {
    ttl: Duration,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + std::hash::Hash, V: Clone> TtlCache<K, V> {
    fn new(ttl: Duration) -> Self {
        Self { ttl, entries: Mutex::default() }
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(at, _)| at.elapsed() < self.ttl).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CACHE_ENTRIES_MAX {
            entries.clear();
        }
        entries.insert(key, (Instant::now(), value));
    }
}
