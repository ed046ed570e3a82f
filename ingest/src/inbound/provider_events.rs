//! Webhooks in which providers report events: verified, stored and answered at once; the scheduler processes them
//! later.
//!
//! The signature is the authentication. Every request that does not verify gets the same answer.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CONTENT_TYPE, HeaderMap},
    web::Data,
};
use connectors::{
    egress::{self, resolver::GuardedResolver},
    provider_events::{
        sendgrid,
        sns::{Certificate, Envelope},
        twilio::{self, Callback},
    },
};
use deliveries::{Deliveries, provider_events::ProviderEvent};
use domain::{EventSource, clock, contract::guard::Guard, p256::PublicKey};
use futures_util::future::join_all;
use reqwest::Client;
use runtime::{
    batch::{Batcher, Limits, SubmitError},
    config::Config,
    metric,
};
use serde::Serialize;
use store::Store;
use tokio::{sync::Semaphore, time::timeout};
use url::Url;
use utoipa::ToSchema;
use web::{
    Web,
    body::{RawBody, WEBHOOK},
    cache::Cache,
    problem::{Code, Problem},
};

/// Largest message of SNS, which sends up to 256 KiB. Its signature is in the body, so any sender can make us hold one.
const SNS_BYTES_MAX: usize = 320 * 1024;
const LIMITS: Limits = Limits { batch_max: 512, parallel_max: 2, queue_max: 16384, spacing: Duration::from_millis(3) };
/// Most connections for storing events.
pub const CONNECTIONS: usize = LIMITS.parallel_max;
/// Bound from a verified body to its commit. Every vendor waits longer than that, and retries.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a certificate is cached. Certificates change once a year.
const CERTIFICATE_TTL: Duration = Duration::from_hours(6);
/// How long a failed fetch of a certificate is not repeated: any sender can name certificates.
const MISSING_TTL: Duration = Duration::from_secs(10);
const CERTIFICATES_MAX: usize = 64;
const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;
const FETCHES_MAX: usize = 2;
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);

/// Events were not stored; their sender retries.
#[derive(Clone, Copy, Debug)]
pub struct NotStored;

/// Why events could not be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// The file is missing or unreadable.
    #[error("SNS_SIGNING_CERT_PATH cannot be read")]
    Read(#[source] std::io::Error),
    /// The file contains no certificate.
    #[error("SNS_SIGNING_CERT_PATH must name a file with a certificate in PEM, of an RSA key of 2048 bits or more")]
    Certificate,
    /// The HTTP client that fetches certificates could not be built.
    #[error("failed to prepare the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// The keys and certificates that verify events.
pub struct EventVerifier {
    sendgrid: Option<PublicKey>,
    twilio: Option<twilio::Token>,
    topics: Vec<String>,
    requires_sha256: bool,
    certificates: Certificates,
}

impl EventVerifier {
    /// Loads them as the settings say.
    pub fn of(config: &Config) -> Result<Self, VerifierError> {
        let events = &config.provider_events;
        Ok(Self {
            sendgrid: events.sendgrid_key.clone(),
            twilio: config.sms.twilio.auth_token.as_ref().map(twilio::Token::new),
            topics: events.sns_topics.clone(),
            requires_sha256: events.sns_requires_sha256,
            certificates: Certificates::of(events.sns_cert_path.as_deref())?,
        })
    }
}

/// The certificates of SNS.
struct Certificates {
    pinned: Option<Certificate>,
    client: Client,
    known: Cache<String, Option<Certificate>>,
    fetches: Semaphore,
}

impl Certificates {
    fn of(path: Option<&str>) -> Result<Self, VerifierError> {
        let read = |path| std::fs::read(path).map_err(VerifierError::Read);
        let parse = |pem: Vec<u8>| Certificate::parse(&pem).ok_or(VerifierError::Certificate);
        Ok(Self {
            pinned: path.map(|path| read(path).and_then(parse)).transpose()?,
            client: egress::client(FETCH_TIMEOUT)
                .dns_resolver(GuardedResolver::shared(Guard::default()))
                .timeout(FETCH_TIMEOUT)
                .https_only(true)
                .build()
                .map_err(VerifierError::Client)?,
            known: Cache::new(CERTIFICATES_MAX),
            fetches: Semaphore::new(FETCHES_MAX),
        })
    }

    /// The certificate that a message names; `None` if it is not trustworthy.
    async fn find(&self, webhooks: &ProviderWebhooks, envelope: &Envelope) -> Result<Option<Certificate>, Problem> {
        if self.pinned.is_some() {
            return Ok(self.pinned.clone());
        }
        let Some(url) = envelope.certificate_url() else { return Ok(None) };
        if let Some(known) = self.known.get(url.as_str()) {
            return Ok(known);
        }
        let permit = timeout(FETCH_TIMEOUT, self.fetches.acquire()).await;
        let _permit = permit.map_err(|_| Problem::overloaded())?.map_err(|_| Problem::unavailable())?;
        // Another request may have fetched it in the meantime.
        if let Some(known) = self.known.get(url.as_str()) {
            return Ok(known);
        }
        let fetched = webhooks.web.run_detached(fetch(self.client.clone(), url.clone())).await?;
        let found = fetched.filter(|certificate| certificate.holds_at(clock::now()));
        let ttl = if found.is_some() { CERTIFICATE_TTL } else { MISSING_TTL };
        self.known.put(url.into(), found.clone(), ttl);
        Ok(found)
    }
}

async fn fetch(client: Client, url: Url) -> Option<Certificate> {
    let mut response = client.get(url).send().await.ok().filter(|response| response.status().is_success())?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > CERTIFICATE_BYTES_MAX {
            return None;
        }
    }
    Certificate::parse(&body)
}

/// Stores provider events. Cheap to clone.
#[derive(Clone)]
pub struct EventWriter(Batcher<ProviderEvent, Result<bool, NotStored>>);

impl EventWriter {
    /// Starts storing events in `store`.
    pub fn start(store: Store) -> Self {
        let flush = move |events: Vec<ProviderEvent>| {
            let (store, size) = (store.clone(), events.len());
            async move {
                match store.provider_events().insert(events).await {
                    Ok(kept) => kept.into_iter().map(Ok).collect(),
                    Err(error) => {
                        let source = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::warn!(%error, source, size, "events of providers were not kept");
                        vec![Err(NotStored); size]
                    }
                }
            }
        };
        Self(Batcher::start(LIMITS, flush))
    }

    /// Stores one event, without a bound on the wait.
    pub async fn keep(&self, event: ProviderEvent) -> Result<(), NotStored> {
        self.0.submit(event).await.map_err(|_| NotStored)?.map(drop)
    }

    /// Stores all events or fails; on failure some may be stored. Returns how many are new.
    async fn store_all(&self, events: Vec<ProviderEvent>) -> Result<usize, Problem> {
        let keeping = join_all(events.into_iter().map(|event| self.0.try_submit(event)));
        let answers = timeout(DEADLINE, keeping).await.map_err(|_| Problem::unavailable())?;
        let mut new = 0;
        for answer in answers {
            match answer {
                Ok(Ok(is_new)) => new += usize::from(is_new),
                Err(SubmitError::Full) => return Err(Problem::overloaded()),
                Ok(Err(NotStored)) | Err(SubmitError::Late | SubmitError::Abandoned) => {
                    return Err(Problem::unavailable());
                }
            }
        }
        Ok(new)
    }
}

/// The result of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProviderEventsReceived)]
pub struct Received {
    /// Its events are kept.
    pub received: bool,
    /// Whether all events were already stored; then nothing follows from it.
    pub duplicate: bool,
}

/// State of these webhooks.
pub struct ProviderWebhooks {
    /// State of all handlers.
    pub web: Data<Web>,
    /// Keys and certificates that verify events.
    pub verifier: EventVerifier,
    /// Stores events.
    pub writer: EventWriter,
}

/// Takes the events of a provider about its deliveries: `sendgrid`, `twilio`, `ses` or `sns`.
///
/// The signature is the authentication: that of SendGrid's event webhook (`SENDGRID_WEBHOOK_PUBLIC_KEY`), of Twilio's
/// status callbacks (`TWILIO_AUTH_TOKEN`, over `PUBLIC_URL`, path and query), or of Amazon SNS (topics of
/// `SNS_TOPIC_ARNS`; a subscription is confirmed automatically). The answer comes once the events are on disk; a repeat
/// answers `duplicate: true`.
#[utoipa::path(post, path = "/api/notifications/webhook/{provider}", tag = "provider events", security(()),
    params(("provider" = String, Path, description = "`sendgrid`, `twilio`, `ses` or `sns`")),
    request_body(content = Object, example = json!([{"event": "delivered", "sg_event_id": "ZGVsaXZlcmVk", "sg_message_id": "LRzXl_NHStOGhQ4kofSm_A.filter-9.0"}])),
    responses((status = 200, description = "Kept", body = Received), (status = 401, description = "Nothing vouches for it")))]
pub async fn receive(
    webhooks: Data<ProviderWebhooks>,
    request: HttpRequest,
    body: RawBody,
) -> Result<HttpResponse, Problem> {
    take(&webhooks, &request, body).await
}

/// As `/api/notifications/webhook/{provider}`.
#[utoipa::path(post, path = "/webhooks/{provider}", tag = "provider events", security(()),
    params(("provider" = String, Path, description = "`sendgrid`, `twilio`, `ses` or `sns`")),
    request_body(content = Object, example = json!([{"event": "delivered", "sg_event_id": "ZGVsaXZlcmVk", "sg_message_id": "LRzXl_NHStOGhQ4kofSm_A.filter-9.0"}])),
    responses((status = 200, description = "Kept", body = Received), (status = 401, description = "Nothing vouches for it")))]
pub async fn receive_short(
    webhooks: Data<ProviderWebhooks>,
    request: HttpRequest,
    body: RawBody,
) -> Result<HttpResponse, Problem> {
    take(&webhooks, &request, body).await
}

async fn take(webhooks: &ProviderWebhooks, request: &HttpRequest, body: RawBody) -> Result<HttpResponse, Problem> {
    let source = request.match_info().get("provider").and_then(|name| name.parse().ok());
    if matches!(source, None | Some(EventSource::Tracking)) {
        return body.refuse(Problem::not_found("provider")).await;
    }
    if !may_verify(&webhooks.verifier, source, request.headers()) {
        let problem = refuse();
        count_failure(source, &problem);
        return body.refuse(problem).await;
    }
    let body = body.read(if source == Some(EventSource::Ses) { SNS_BYTES_MAX } else { WEBHOOK }).await?;
    let events = match source {
        Some(EventSource::Sendgrid) => of_sendgrid(&webhooks.verifier, request.headers(), &body),
        Some(EventSource::Twilio) => of_twilio(webhooks, request, &body),
        Some(EventSource::Ses) => of_sns(webhooks, &body).await,
        // Only our own tracker reports tracking events.
        Some(EventSource::Tracking) | None => return Err(Problem::not_found("provider")),
    }
    .inspect_err(|problem| count_failure(source, problem))?;
    webhooks.web.migrations.require_current()?;
    let total = events.len();
    let new = webhooks.writer.store_all(events).await?;
    let source = source.map_or("", EventSource::as_str);
    let count = |duplicate, n: usize| {
        let counter = metrics::counter!(metric::PROVIDER_EVENTS, "provider" => source, "duplicate" => duplicate);
        counter.increment(u64::try_from(n).unwrap_or(u64::MAX));
    };
    count("false", new);
    count("true", total - new);
    Ok(HttpResponse::Ok().json(Received { received: true, duplicate: new == 0 && total > 0 }))
}

/// Whether the body may still verify, judging by the headers alone. If not, the body is not read.
fn may_verify(verifier: &EventVerifier, source: Option<EventSource>, headers: &HeaderMap) -> bool {
    let is_signed = |name| header(headers, name).is_some_and(is_signature);
    match source {
        Some(EventSource::Sendgrid) => verifier.sendgrid.is_some() && is_signed(sendgrid::SIGNATURE),
        Some(EventSource::Twilio) => verifier.twilio.is_some() && is_signed(twilio::SIGNATURE),
        // The signature of SNS is in the body.
        Some(EventSource::Ses) => !verifier.topics.is_empty(),
        Some(EventSource::Tracking) | None => false,
    }
}

/// Whether a text looks like a base64 signature: the shortest is a SHA-1, the longest an ECDSA signature.
fn is_signature(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    (28..=200).contains(&text.len()) && text.bytes().all(is_digit)
}

fn of_sendgrid(verifier: &EventVerifier, headers: &HeaderMap, body: &[u8]) -> Result<Vec<ProviderEvent>, Problem> {
    let claims = header(headers, sendgrid::SIGNATURE).zip(header(headers, sendgrid::TIMESTAMP));
    let verified = verifier.sendgrid.as_ref().zip(claims);
    let verified = verified.filter(|(key, (signature, at))| sendgrid::verifies(key, signature, at, body, clock::now()));
    verified.ok_or_else(refuse)?;
    sendgrid::split(body).map_err(|_| malformed("an array of SendGrid's events"))
}

fn of_twilio(webhooks: &ProviderWebhooks, request: &HttpRequest, body: &[u8]) -> Result<Vec<ProviderEvent>, Problem> {
    let headers = request.headers();
    let media_type = header(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let is_json = web::body::is_json(media_type);
    let callback = Callback { public_url: &webhooks.web.public_url, path, is_form: !is_json, body };
    let verified = webhooks.verifier.twilio.as_ref().zip(header(headers, twilio::SIGNATURE));
    verified.filter(|(token, signature)| token.verifies(signature, callback)).ok_or_else(refuse)?;
    callback.events().map_err(|_| malformed("a status callback of Twilio"))
}

async fn of_sns(webhooks: &ProviderWebhooks, body: &[u8]) -> Result<Vec<ProviderEvent>, Problem> {
    let value: serde_json::Value = serde_json::from_slice(body).map_err(|_| malformed("a message of Amazon SNS"))?;
    // A message without a signature, or without a signed field, is not signed.
    let envelope: Envelope = serde_json::from_value(value).map_err(|_| refuse())?;
    let is_weak = webhooks.verifier.requires_sha256 && envelope.uses_sha1();
    if is_weak || !webhooks.verifier.topics.contains(&envelope.topic_arn) {
        return Err(refuse());
    }
    let certificate = webhooks.verifier.certificates.find(webhooks, &envelope).await?.ok_or_else(refuse)?;
    if !envelope.is_signed_by(&certificate, clock::now()) {
        return Err(refuse());
    }
    Ok(envelope.events(body))
}

/// The value of a header that is present exactly once.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first)
}

fn count_failure(source: Option<EventSource>, problem: &Problem) {
    if problem.code() == Code::Unauthenticated {
        metrics::counter!(metric::SIGNATURE_FAILURES, "source" => source.map_or("", EventSource::as_str)).increment(1);
    }
}

fn refuse() -> Problem {
    Problem::new(Code::Unauthenticated, "Sign the raw body as this provider does, with the key that is set up here.")
}

fn malformed(what: &str) -> Problem {
    Problem::new(Code::MalformedBody, format!("Send {what}."))
}
