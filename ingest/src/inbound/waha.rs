//! Webhooks of WAHA: verified, stored and answered at once; the scheduler processes them later.
//!
//! The id in the URL, or else the name of the session, only selects the keys to try. Every request that does not verify
//! gets the same answer.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{HeaderMap, HeaderName},
    web::Data,
};
use api::whatsapp::sessions::{NAME_BYTES_MAX, parse_net};
use chrono::{DateTime, Utc};
use connectors::waha::{
    event::Envelope,
    mac::{Claims, HMAC, HMAC_ALGORITHM, Keys, SIGNATURE},
};
use domain::{SignatureRule, TenantId, clock};
use ipnet::IpNet;
use records::{Records, wa_sessions::Session, waha_events::NewEvent};
use runtime::{
    batch::{Batcher, Limits, SubmitError},
    metric,
};
use serde::Serialize;
use store::Store;
use tokio::{sync::Semaphore, time::timeout};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    Web,
    body::{RawBody, WEBHOOK},
    cache::Cache,
    client,
    permits::FirstLookUps,
    problem::{Code, Problem},
    query_runner::QueryRunner,
};

/// Largest body if only a name selects the session, because several keys are tried.
const NAMED_BODY_BYTES_MAX: usize = 256 * 1024;
/// Most sessions of one name whose keys are tried.
const CANDIDATES_MAX: usize = 10;
/// As for acceptance: two commits at once, and webhooks that arrive meanwhile form the next one.
const LIMITS: Limits = Limits { batch_max: 256, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(3) };
/// Most connections for storing webhooks.
pub const CONNECTIONS: usize = LIMITS.parallel_max;
/// Bound from a verified body to its commit. WAHA waits longer than that, and retries.
const DEADLINE: Duration = Duration::from_millis(1800);
/// How long the sessions of an id or name are cached.
const SESSIONS_TTL: Duration = Duration::from_secs(5);
/// Sessions that were read more recently than this are not read again, even if a webhook does not verify.
const SESSIONS_AGE_MIN: Duration = Duration::from_secs(1);
/// How long a look-up may take.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// Look-ups at once of sessions that verified a webhook lately; and as many of sessions that never did, since ids and
/// names can be invented.
const LOOK_UPS_MAX: usize = 4;
/// The window of "lately".
const VOUCHED_TTL: Duration = Duration::from_secs(3600);
/// Cached ids and names, real and invented.
const NAMES_MAX: usize = 20_000;
/// Stores webhooks of WAHA. One per process.
pub struct WahaWebhooks {
    queries: QueryRunner,
    batcher: Batcher<NewEvent, Result<bool, NotStored>>,
    sessions: Cache<Reference, Arc<KnownSessions>>,
    vouched: Cache<Reference, ()>,
    look_ups: Arc<Semaphore>,
    first_look_ups: FirstLookUps,
}

/// How a webhook names its session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By the id in its URL.
    Id(Uuid),
    /// By the name in its body only.
    Name(String),
}

/// A webhook that is not verified yet.
struct UnverifiedWebhook<'a> {
    session: &'a str,
    claims: Claims,
    peer: Option<IpAddr>,
    body: &'a [u8],
}

/// Why a webhook was not stored; WAHA retries.
#[derive(Clone, Copy, Debug)]
struct NotStored;

/// The session of an id, or the sessions of one name, of any tenant.
struct KnownSessions {
    candidates: Vec<Candidate>,
    read_at: Instant,
}

impl KnownSessions {
    /// The session whose key verifies a webhook. Skips unchanged sessions of `tried`, which did not verify it.
    fn find(&self, webhook: &UnverifiedWebhook<'_>, tried: &[Candidate]) -> Option<(Uuid, TenantId)> {
        let now = clock::now();
        let may_be = |candidate: &&Candidate| candidate.name == webhook.session && candidate.admits(webhook.peer);
        let is_new = |candidate: &&Candidate| !tried.iter().any(|other| other.version == candidate.version);
        let vouches =
            |candidate: &&Candidate| webhook.claims.hold(candidate.keys.iter(), candidate.rule, webhook.body, now);
        let mut candidates = self.candidates.iter().filter(may_be).take(CANDIDATES_MAX).filter(is_new);
        candidates.find(vouches).map(|found| (found.version.0, found.tenant))
    }
}

/// A session that a webhook may belong to.
struct Candidate {
    /// Its id, and when its settings last changed.
    version: (Uuid, DateTime<Utc>),
    name: String,
    tenant: TenantId,
    rule: SignatureRule,
    nets: Vec<IpNet>,
    is_open: bool,
    keys: Vec<Keys>,
}

impl Candidate {
    fn of(session: &Session) -> Self {
        let settings = &session.settings;
        let previous = session.previous_secret.iter().map(|secret| Keys::new(secret, session.previous_until));
        Self {
            version: (session.id, session.updated_at),
            name: settings.name.clone(),
            tenant: session.tenant,
            rule: settings.signature,
            nets: settings.allow_ips.iter().filter_map(|text| parse_net(text)).collect(),
            is_open: settings.allow_ips.is_empty(),
            // Without an end time a previous secret would stay valid for ever.
            keys: settings
                .webhook_secret
                .iter()
                .map(|secret| Keys::new(secret, None))
                .chain(previous.filter(|_| session.previous_until.is_some()))
                .collect(),
        }
    }

    fn admits(&self, peer: Option<IpAddr>) -> bool {
        self.is_open || peer.is_some_and(|peer| self.nets.iter().any(|net| net.contains(&peer)))
    }
}

impl WahaWebhooks {
    /// Starts storing webhooks in `store`; sessions are looked up in `queries`.
    pub fn start(store: Store, queries: QueryRunner) -> Self {
        let flush = move |events: Vec<NewEvent>| {
            let (store, size) = (store.clone(), events.len());
            async move {
                match store.waha_events().insert(events).await {
                    Ok(kept) => kept.into_iter().map(Ok).collect(),
                    Err(error) => {
                        let source = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::warn!(%error, source, size, "webhooks of WAHA were not kept");
                        vec![Err(NotStored); size]
                    }
                }
            }
        };
        Self {
            queries,
            batcher: Batcher::start(LIMITS, flush),
            sessions: Cache::new(NAMES_MAX),
            vouched: Cache::new(NAMES_MAX),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
            first_look_ups: FirstLookUps::new(LOOK_UPS_MAX),
        }
    }

    /// Drops a changed session from the cache.
    pub fn forget(&self, id: Uuid, name: &str) {
        self.sessions.forget(&Reference::Id(id));
        self.sessions.forget(&Reference::Name(name.to_owned()));
    }

    /// Refuses an unknown id, or one whose session does not admit `peer`, before the body is read.
    async fn expect(&self, id: Uuid, peer: Option<IpAddr>) -> Result<(), Problem> {
        let reference = Reference::Id(id);
        let may_vouch = |known: &Arc<KnownSessions>| known.candidates.iter().any(|candidate| candidate.admits(peer));
        let known = self.sessions.get(&reference);
        if known.as_ref().is_some_and(may_vouch) {
            return Ok(());
        }
        // Another process may have created or changed the session.
        let may_ask = known.is_none_or(|known| known.read_at.elapsed() >= SESSIONS_AGE_MIN);
        if may_ask && may_vouch(&self.look_up(&reference, peer).await?) { Ok(()) } else { Err(refuse()) }
    }

    /// Finds the session whose key verifies a webhook, and its tenant.
    async fn verify(&self, reference: Reference, webhook: &UnverifiedWebhook<'_>) -> Result<(Uuid, TenantId), Problem> {
        let name = webhook.session;
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if !is_name {
            return Err(refuse());
        }
        let known = self.sessions.get(&reference);
        let mut found = known.as_ref().and_then(|known| known.find(webhook, &[]));
        // Another process may have replaced the secret.
        if found.is_none() && known.as_ref().is_none_or(|known| known.read_at.elapsed() >= SESSIONS_AGE_MIN) {
            let tried = known.as_ref().map(|known| known.candidates.as_slice()).unwrap_or_default();
            found = self.look_up(&reference, webhook.peer).await?.find(webhook, tried);
        }
        let found = found.ok_or_else(refuse)?;
        if self.vouched.get(&reference).is_none() {
            self.vouched.put(reference, (), VOUCHED_TTL);
        }
        Ok(found)
    }

    async fn look_up(&self, reference: &Reference, address: Option<IpAddr>) -> Result<Arc<KnownSessions>, Problem> {
        if self.vouched.get(reference).is_none() {
            let permits = self.first_look_ups.enter(address, LOOK_UP_TIMEOUT).await;
            return self.read(reference, permits.ok_or_else(Problem::overloaded)?).await;
        }
        let permit = timeout(LOOK_UP_TIMEOUT, Arc::clone(&self.look_ups).acquire_owned()).await;
        let permit = permit.map_err(|_| Problem::overloaded())?.map_err(|_| Problem::unavailable())?;
        self.read(reference, permit).await
    }

    /// Reads sessions from the database, unless another request has just done so.
    async fn read<P: Send + 'static>(&self, reference: &Reference, permits: P) -> Result<Arc<KnownSessions>, Problem> {
        if let Some(known) = self.sessions.get(reference).filter(|known| known.read_at.elapsed() < SESSIONS_AGE_MIN) {
            return Ok(known);
        }
        let (asked, read_at) = (reference.clone(), Instant::now());
        // The permits move into the query, which may outlive the caller's timeout.
        let reading = async move |store: Store| {
            let found = match &asked {
                Reference::Id(id) => store.whatsapp_sessions().find(*id).await.map(|found| found.into_iter().collect()),
                Reference::Name(name) => store.whatsapp_sessions().named(name).await,
            };
            drop(permits);
            found
        };
        let sessions: Vec<Session> = self.queries.run_within(LOOK_UP_TIMEOUT, reading).await?;
        let known = Arc::new(KnownSessions { candidates: sessions.iter().map(Candidate::of).collect(), read_at });
        self.sessions.put(reference.clone(), Arc::clone(&known), SESSIONS_TTL);
        Ok(known)
    }

    /// Stores a webhook. Returns whether it is new.
    async fn keep(&self, event: NewEvent) -> Result<bool, Problem> {
        match timeout(DEADLINE, self.batcher.try_submit(event)).await {
            Ok(Ok(Ok(is_new))) => Ok(is_new),
            Ok(Err(SubmitError::Full)) => Err(Problem::overloaded()),
            Ok(Ok(Err(NotStored)) | Err(SubmitError::Late | SubmitError::Abandoned)) | Err(_) => {
                Err(Problem::unavailable())
            }
        }
    }
}

fn refuse() -> Problem {
    metrics::counter!(metric::SIGNATURE_FAILURES, "source" => "waha").increment(1);
    Problem::new(Code::Unauthenticated, "Sign the raw body with the webhook secret of the session that it names.")
}

/// The result of a webhook.
#[derive(Debug, Serialize, ToSchema)]
pub struct Received {
    /// It is kept.
    pub received: bool,
    /// Whether it was already stored; then nothing follows from it.
    pub duplicate: bool,
}

/// Takes webhooks of WAHA about a session.
///
/// The signature is the authentication: `X-Webhook-Hmac` (hexadecimal HMAC-SHA512 of the raw body, with
/// `X-Webhook-Hmac-Algorithm: sha512`) or `X-Waha-Signature: sha256=…` (HMAC-SHA256), by the webhook secret of the
/// session. Where both are sent, both must hold. The answer comes once the event is on disk; a repeat answers
/// `duplicate: true`.
#[utoipa::path(post, path = "/webhooks/waha/{id}", tag = "whatsapp", security(()),
    params(("id" = Uuid, Path, description = "The session's id")),
    request_body(content = Object, example = json!({"event": "message.text", "session": "main-session", "payload": {"id": "waha_msg_123456",
        "from": "+1234567890", "to": "+0987654321", "body": "Hello, this is a test message", "timestamp": 1_642_248_600_000_i64, "type": "text"}})),
    responses((status = 200, description = "Kept", body = Received), (status = 401, description = "Nothing vouches for it")))]
pub async fn receive_for(
    web: Data<Web>,
    hooks: Data<WahaWebhooks>,
    request: HttpRequest,
    body: RawBody,
) -> Result<HttpResponse, Problem> {
    match request.match_info().get("id").and_then(|id| id.parse().ok()) {
        Some(id) => take((&web, &hooks), &request, body, Some(id)).await,
        None => body.refuse(refuse()).await,
    }
}

/// Takes webhooks of a WAHA that does not know the URL of the session.
///
/// As `/webhooks/waha/{id}`, with a body of 256 KiB at most. The name in the body selects the keys that are tried;
/// where many tenants have sessions of one name, only those that sent a webhook last are.
#[utoipa::path(post, path = "/webhooks/waha", tag = "whatsapp", security(()),
    request_body(content = Object, example = json!({"event": "message.text", "session": "main-session", "payload": {"id": "waha_msg_123456",
        "from": "+1234567890", "to": "+0987654321", "body": "Hello, this is a test message", "timestamp": 1_642_248_600_000_i64, "type": "text"}})),
    responses((status = 200, description = "Kept", body = Received), (status = 401, description = "Nothing vouches for it")))]
pub async fn receive(
    web: Data<Web>,
    hooks: Data<WahaWebhooks>,
    request: HttpRequest,
    body: RawBody,
) -> Result<HttpResponse, Problem> {
    take((&web, &hooks), &request, body, None).await
}

async fn take(
    (web, hooks): (&Web, &WahaWebhooks),
    request: &HttpRequest,
    body: RawBody,
    id: Option<Uuid>,
) -> Result<HttpResponse, Problem> {
    let peer = client::address(request);
    let claims = match precheck((web, hooks), request.headers(), id, peer).await {
        Ok(claims) => claims,
        Err(problem) => return body.refuse(problem).await,
    };
    let bytes = body.read(if id.is_some() { WEBHOOK } else { NAMED_BODY_BYTES_MAX }).await?;
    let body: &[u8] = &bytes;
    let envelope = Envelope::read(body).map_err(|fault| {
        Problem::new(Code::MalformedBody, format!("Send an event of WAHA as JSON with `event` and `session`: {fault}."))
    })?;
    let reference = id.map_or_else(|| Reference::Name(envelope.session.to_string()), Reference::Id);
    let webhook = UnverifiedWebhook { session: &envelope.session, claims, peer, body };
    let (session, tenant) = hooks.verify(reference, &webhook).await?;
    let dedup = envelope.dedup(body, clock::now());
    let event = NewEvent { tenant, session, dedup, event: envelope.event.into_owned(), body: body.to_vec() };
    let is_new = hooks.keep(event).await?;
    metrics::counter!(metric::WAHA_WEBHOOKS, "duplicate" => if is_new { "false" } else { "true" }).increment(1);
    Ok(HttpResponse::Ok().json(Received { received: true, duplicate: !is_new }))
}

/// Runs all checks that need no body. Returns the signatures that the headers claim.
async fn precheck(
    (web, hooks): (&Web, &WahaWebhooks),
    headers: &HeaderMap,
    id: Option<Uuid>,
    peer: Option<IpAddr>,
) -> Result<Claims, Problem> {
    let claims = Claims::read(&values(headers, HMAC), &values(headers, HMAC_ALGORITHM), &values(headers, SIGNATURE));
    let claims = claims.ok_or_else(refuse)?;
    web.migrations.require_current()?;
    if let Some(id) = id {
        hooks.expect(id, peer).await?;
    }
    Ok(claims)
}

fn values<'a>(headers: &'a HeaderMap, name: &'static str) -> Vec<&'a [u8]> {
    headers.get_all(HeaderName::from_static(name)).map(|value| value.as_bytes()).collect()
}

/// Whether webhooks can be taken.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhooksHealth {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: String,
}

/// Whether webhooks of providers can be taken: the database answers and its schema is current.
#[utoipa::path(get, path = "/webhooks/health", tag = "whatsapp", security(()), responses(
    (status = 200, description = "They can", body = WebhooksHealth), (status = 503, description = "They cannot")))]
pub async fn health(web: Data<Web>) -> Result<HttpResponse, Problem> {
    web.migrations.require_current()?;
    web.queries.run_within(LOOK_UP_TIMEOUT, async move |store| store.ping().await).await?;
    Ok(HttpResponse::Ok().json(WebhooksHealth { status: "ok".to_owned() }))
}
