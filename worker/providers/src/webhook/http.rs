//! Webhooks over HTTP/1.1, signed as Standard Webhooks.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use connectors::egress::{self, Trouble, resolver::GuardedResolver, retry_after};
use domain::{
    Fault, MessageId, Outcome, OutcomeClass, ProviderName, Receipt, clock,
    contract::{
        Order, Provider,
        guard::{Guard, Refusal},
        provider::{Asking, HeldBack, Sending, ThrottleScope},
        submission::Content,
    },
};
use records::webhook_logs::NewCall;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use runtime::config::WebhookConfig;
use serde::Serialize;
use serde_json::value::RawValue;
use store::Store;
use uuid::Uuid;

use super::{
    super::vendor::AGENT,
    calls::{self, CallLog, RESPONSE_BYTES_MAX},
    origin_limiter::OriginLimiter,
    standard_webhooks,
};
use crate::counters;

/// The longest time to connect to a receiver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than the 5 s after which the most common servers close an idle connection. A request on a connection that is being closed
/// has an unknown outcome. A receiver in steady use keeps its connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections to one receiver: as many as all lanes together can use.
const IDLE_PER_HOST_MAX: usize = 256;
/// The most bytes read of a response. A response that is read to its end leaves its connection reusable.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The longest time to read a response's body. Only the status decides the outcome, and a new connection takes about this long.
const ANSWER_BODY_TIMEOUT: Duration = Duration::from_millis(500);

/// The HTTP client for addresses that tenants name. It follows no redirect, uses no proxy and decompresses nothing.
pub struct Http {
    client: Client,
    guard: Guard,
    limiter: OriginLimiter,
    calls: Option<CallLog>,
}

/// The part of a response that is logged.
struct LoggedResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Http {
    /// A client for a worker that makes up to `permits` calls at once. Fails if TLS cannot be set up.
    pub fn new(config: &WebhookConfig, permits: usize) -> reqwest::Result<Self> {
        let guard = Guard::new(config.allow_nets.clone());
        Self::with_resolver(config, permits, GuardedResolver::shared(guard))
    }

    /// Logs the calls to webhook configurations in `store`.
    pub fn with_call_log(mut self, store: Store, config: &WebhookConfig) -> Self {
        self.calls = Some(CallLog::start(store, config.disable_after));
        self
    }

    fn with_resolver(config: &WebhookConfig, permits: usize, resolver: Arc<GuardedResolver>) -> reqwest::Result<Self> {
        let guard = resolver.guard().clone();
        let client = egress::client(CONNECT_TIMEOUT.min(config.timeout.mul_f64(0.8)))
            .http1_only()
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .dns_resolver(resolver)
            .build()?;
        Ok(Self { client, guard, limiter: OriginLimiter::new(permits), calls: None })
    }

    async fn post(&self, order: &Order) -> Outcome {
        if let Err(refusal) = self.guard.check_url(order.recipient.reveal()) {
            return refused(refusal);
        }
        let Ok(url) = Url::parse(order.recipient.reveal()) else { return refused(Refusal::NotHttp) };
        let Ok(body) = body(order) else {
            return Outcome::Rejected(Fault::new("content", "the content has no JSON form"));
        };
        let Some(headers) = headers(order, &body, clock::now()) else {
            let detail = "the tenant's webhook secret is not `whsec_` and base64";
            return Outcome::Misconfigured(Fault::new("secret", detail));
        };
        let log = self.calls.as_ref().zip(order.webhook_configuration);
        let logged = log.map(|(calls, configuration)| (calls, log_entry(order, configuration, &headers, &body)));
        let began = Instant::now();
        let request = self.client.post(url).headers(headers).body(body.into_owned()).timeout(order.timeout);
        let (outcome, answer) = match request.send().await {
            Ok(response) => response_outcome(response).await,
            Err(error) => (error_outcome(&error), None),
        };
        if let Some((calls, call)) = logged {
            calls.log(NewCall {
                status: answer.as_ref().map(|answer| answer.status.as_u16().into()),
                is_taken: outcome.class() == OutcomeClass::Sent,
                response: answer.map(|answer| calls::response(&answer.headers, &answer.body)),
                duration_ms: i32::try_from(began.elapsed().as_millis()).unwrap_or(i32::MAX),
                ..call
            });
        }
        outcome
    }

    async fn enter(&self, order: &Order) -> Result<(), HeldBack> {
        match origin(order) {
            Some(origin) => self.limiter.acquire(&(order.lane, origin), order.delivery, order.timeout).await,
            None => Ok(()),
        }
    }
}

/// Releases the permit of a call when it is dropped.
struct PermitGuard<'a> {
    http: &'a Http,
    order: &'a Order,
}

impl Drop for PermitGuard<'_> {
    fn drop(&mut self) {
        if let Some(origin) = origin(self.order) {
            self.http.limiter.release(&(self.order.lane, origin), self.order.delivery);
        }
    }
}

/// Scheme, host and port of the receiver.
fn origin(order: &Order) -> Option<Arc<str>> {
    let url = Url::parse(order.recipient.reveal()).ok()?;
    Some(Arc::from(url.origin().ascii_serialization()))
}

/// The log entry of a call without its response. Every header that the configuration adds may be a secret.
fn log_entry(order: &Order, configuration: Uuid, headers: &HeaderMap, body: &str) -> NewCall {
    let is_added = |name: &str| order.webhook_headers.iter().any(|(added, _)| added.eq_ignore_ascii_case(name));
    let id = Uuid::now_v7();
    // The time of the id: the log is sorted by id, and so also by time.
    let moment = id.get_timestamp().map(|at| at.to_unix());
    let at = moment.and_then(|(seconds, nanos)| DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos));
    NewCall {
        id,
        tenant: order.tenant,
        configuration,
        event: order.content.kind.clone(),
        delivery: order.delivery,
        attempt: order.attempt.into(),
        status: None,
        is_taken: false,
        request: calls::request(order.recipient.reveal(), headers, is_added, body),
        response: None,
        duration_ms: 0,
        at: at.unwrap_or_else(clock::now),
    }
}

impl Provider for Http {
    fn name(&self) -> ProviderName {
        ProviderName::Http
    }

    /// One breaker per tenant and origin: neither another receiver nor another tenant's calls open it.
    fn breaker_key(&self, order: &Order) -> Option<Arc<str>> {
        origin(order).map(|origin| Arc::from(format!("http/{}/{origin}", order.tenant)))
    }

    /// Only timeouts count: a receiver that hangs holds permits, one that refuses or fails does not.
    fn is_down(&self, failure: &Outcome) -> bool {
        failure.fault().and_then(|fault| fault.code.as_deref()) == Some(Trouble::Timeout.as_str())
    }

    /// A receiver throttles one URL, and the breaker guards its whole origin.
    fn throttle_scope(&self, _fault: &Fault) -> ThrottleScope {
        ThrottleScope::Recipient
    }

    fn gate<'a>(&'a self, order: &'a Order) -> Asking<'a> {
        Box::pin(self.enter(order))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(async move {
            let _permit = PermitGuard { http: self, order };
            self.post(order).await
        })
    }
}

/// The body of a webhook with a title or a message.
#[derive(Serialize)]
struct Envelope<'a> {
    id: MessageId,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
    created_at: String,
}

/// The producer's data, byte for byte, if the content has nothing else; otherwise the envelope.
fn body(order: &Order) -> serde_json::Result<Cow<'_, str>> {
    let content: &Content = &order.content;
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if let Some(data) = content.data.as_deref().filter(|_| !is_set(&content.title) && !is_set(&content.message)) {
        return Ok(Cow::Borrowed(data.get()));
    }
    let envelope = Envelope {
        id: order.message,
        kind: content.kind.as_deref(),
        title: content.title.as_deref(),
        message: content.message.as_deref(),
        data: content.data.as_deref(),
        metadata: content.metadata.as_ref(),
        created_at: order.accepted_at.to_rfc3339_opts(SecondsFormat::Millis, true),
    };
    serde_json::to_string(&envelope).map(Cow::Owned)
}

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The headers of a webhook. `None`: the secret cannot sign.
fn headers(order: &Order, body: &str, now: DateTime<Utc>) -> Option<HeaderMap> {
    let id = order.delivery.to_string();
    let sign = |secret| standard_webhooks::sign(secret, &id, now.timestamp(), body.as_bytes());
    let signatures = order.webhook_secret.split(' ').map(sign).collect::<Option<Vec<String>>>()?;
    let mut headers = HeaderMap::with_capacity(12 + order.webhook_headers.len());
    // These come first, so that none of them replaces a header of Posthaste.
    for (name, value) in &*order.webhook_headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now.timestamp()));
    headers.insert(WEBHOOK_SIGNATURE, HeaderValue::try_from(signatures.join(" ")).ok()?);
    let id = HeaderValue::try_from(id).ok()?;
    headers.insert(IDEMPOTENCY_KEY, id.clone());
    headers.insert(WEBHOOK_ID, id);
    // The producer chose these values: an invalid one is left out.
    for (name, value) in [(REQUEST_ID, &order.request_id), (TRACEPARENT, &order.traceparent)] {
        if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    Some(headers)
}

async fn response_outcome(mut response: Response) -> (Outcome, Option<LoggedResponse>) {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let outcome = classify(status, retry_after.and_then(|value| retry_after::parse(value, clock::now())));
    let mut answer = LoggedResponse { status, headers: std::mem::take(response.headers_mut()), body: Vec::new() };
    // The body does not change the outcome.
    let _ = tokio::time::timeout(ANSWER_BODY_TIMEOUT, drain_body(response, &mut answer.body)).await;
    (outcome, Some(answer))
}

/// Reads a body and keeps its beginning.
async fn drain_body(mut response: Response, beginning: &mut Vec<u8>) {
    let mut budget = ANSWER_BYTES_MAX;
    while let Ok(Some(chunk)) = response.chunk().await {
        let wanted = RESPONSE_BYTES_MAX.saturating_sub(beginning.len()).min(chunk.len());
        beginning.extend_from_slice(chunk.get(..wanted).unwrap_or_default());
        match budget.checked_sub(chunk.len()) {
            Some(left) => budget = left,
            None => return,
        }
    }
}

/// The outcome by status. `retry_after` is the pause that the receiver asked for.
fn classify(status: StatusCode, retry_after: Option<Duration>) -> Outcome {
    let code = status.as_u16();
    let fault = |detail: String| Fault::new(status.as_str(), detail);
    let plain = || fault(format!("the receiver answered {code}"));
    match code {
        200..=299 => {
            Outcome::Sent(Receipt { code: Some(status.as_str().to_owned()), arrived: true, ..Receipt::default() })
        }
        300..=399 => {
            Outcome::Transient(fault(format!("the receiver answered {code}; redirects are not followed")), retry_after)
        }
        408 | 409 | 425 => Outcome::Transient(plain(), retry_after),
        410 => Outcome::Rejected(fault("the receiver answered 410: it is gone for good".to_owned())),
        429 => Outcome::Throttled(plain(), retry_after),
        400..=499 => Outcome::Rejected(plain()),
        _ => Outcome::Transient(plain(), retry_after),
    }
}

fn refused(refusal: Refusal) -> Outcome {
    if refusal == Refusal::Private {
        counters::egress_blocked();
        return Outcome::Rejected(Fault::new(
            "target_not_allowed",
            "the address lies inside a network that webhooks may not reach",
        ));
    }
    Outcome::Rejected(Fault::new("bad_url", format!("the URL {refusal}")))
}

/// The outcome of a call without a response: transient if there was no connection, unknown after that.
fn error_outcome(error: &reqwest::Error) -> Outcome {
    let trouble = Trouble::of(error);
    let fault = |detail: &str| Fault::new(trouble.as_str(), detail);
    let (later, unknown) = (|detail| Outcome::Transient(fault(detail), None), |detail| Outcome::Unknown(fault(detail)));
    match trouble {
        Trouble::Refused(refusal) => refused(refusal),
        Trouble::Dns => later("the receiver's name could not be resolved"),
        Trouble::Tls => later("no TLS connection could be made with the receiver"),
        Trouble::Connect => later("the receiver could not be connected to"),
        Trouble::Timeout => unknown("the receiver did not answer in time"),
        Trouble::Reset => unknown("the connection broke before an answer came"),
        Trouble::BadAnswer => unknown("what came back was no HTTP answer"),
    }
}

#[cfg(test)]
mod tests;
