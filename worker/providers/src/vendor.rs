//! Calls to vendors over HTTP: how a client is made, and what an answer, or its absence, means unless the vendor says more.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use connectors::egress::{self, Trouble, retry_after};
use domain::{Fault, Outcome, ProviderName, Receipt, clock};
use reqwest::{
    ClientBuilder, RequestBuilder, Response, StatusCode,
    header::{HeaderMap, RETRY_AFTER, USER_AGENT},
};

/// A vendor that cannot be connected to within this will not answer in time either.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the shortest time after which the usual load balancers close an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// An answer is read this far: errors of vendors are short.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// How long a check of credentials may take.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest id of a vendor that is kept.
const REFERENCE_BYTES_MAX: usize = 128;
/// The content type of forms.
pub const FORM: &str = "application/x-www-form-urlencoded";
/// How we call ourselves.
pub const AGENT: &str = concat!("Posthaste/", env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// Why a vendor could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// It is named as a backend, and something it needs is not set.
    #[error("{0} must be set")]
    Incomplete(&'static str),
    /// The sender is no address.
    #[error("EMAIL_FROM must be an e-mail address, bare or as `Name <address>`")]
    From(#[source] lettre::address::AddressError),
    /// A setting has no form that the vendor could be called with.
    #[error("{0} cannot be used")]
    Unusable(&'static str),
    /// The HTTP client could not be made.
    #[error("failed to prepare the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// What the breaker in front of a vendor is called: a fingerprint tells credentials apart and gives none away.
pub fn breaker_key(name: ProviderName, credential: &str) -> Arc<str> {
    let digest = digest(&SHA256, credential.as_bytes());
    let print: String = digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}/{print}").into()
}

/// A vendor's own id for what it took, where `text` can be one: an id has no room for an address or a text.
pub fn reference(text: &str) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'%');
    ((1..=REFERENCE_BYTES_MAX).contains(&text.len()) && text.bytes().all(good)).then(|| text.to_owned())
}

/// The vendor took it.
pub fn sent(response: &VendorResponse, provider_ref: Option<String>) -> Outcome {
    Outcome::Sent(Receipt { provider_ref, code: Some(response.status.as_str().to_owned()), ..Receipt::default() })
}

/// Makes a call that sends no message, and says whether the vendor accepts our credentials.
pub async fn check(name: &str, request: RequestBuilder) -> Result<String, Fault> {
    let outcome = match call(name, request.timeout(CHECK_TIMEOUT)).await {
        Ok(response) if response.status.is_success() => return Ok(format!("{name} takes the credentials")),
        Ok(response) => response.classify(name, None),
        Err(outcome) => outcome,
    };
    Err(outcome.fault().cloned().unwrap_or_default())
}

/// A client for one vendor whose calls may take `timeout`. Its address comes from the operator, so no guard looks at it.
pub fn client(timeout: Duration) -> ClientBuilder {
    egress::client(CONNECT_TIMEOUT.min(timeout.mul_f64(0.8))).pool_idle_timeout(IDLE_TIMEOUT)
}

/// What a vendor answered.
#[derive(Clone, Debug)]
pub struct VendorResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, up to 64 KiB; `None`: it broke off.
    pub body: Option<Vec<u8>>,
}

impl VendorResponse {
    /// The wait that the vendor asked for, in seconds or as a date.
    pub fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        retry_after::parse(value, clock::now())
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON of type `T`; `None` where it is none.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.body.as_deref()?).ok()
    }

    /// The outcome by the status alone, with `code` and a detail that names the vendor, such as `sendgrid`. The caller has to read a status
    /// of success; here it counts as an answer that cannot be understood.
    pub fn classify(&self, name: &str, code: Option<&str>) -> Outcome {
        let status = self.status.as_u16();
        let code = code.unwrap_or(self.status.as_str());
        let fault = |rest: &str| Fault::new(code, format!("{name} answered {status}{rest}"));
        match status {
            200..=299 => Outcome::Unknown(fault(" and something that cannot be read")),
            300..=399 => Outcome::Transient(fault("; redirects are not followed"), self.retry_after()),
            401 | 403 => Outcome::Misconfigured(fault(": the credentials are refused")),
            408 | 425 => Outcome::Transient(fault(""), self.retry_after()),
            429 => Outcome::Throttled(fault(": too much at once"), self.retry_after()),
            400..=499 => Outcome::Rejected(fault("")),
            _ => Outcome::Transient(fault(""), self.retry_after()),
        }
    }
}

/// Makes the call and reads the answer, within the time that `request` has; an outcome where there is none.
pub async fn call(name: &str, request: RequestBuilder) -> Result<VendorResponse, Outcome> {
    match request.header(USER_AGENT, AGENT).send().await {
        Ok(response) => Ok(read(response).await),
        Err(error) => Err(transport_outcome(name, &error)),
    }
}

/// The answer, read as far as it matters.
pub async fn read(mut response: Response) -> VendorResponse {
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    let body = loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= RESPONSE_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(None) => break Some(body),
            Ok(Some(_)) | Err(_) => break None,
        }
    };
    VendorResponse { status, headers, body }
}

/// The outcome of a call without an answer: before the connection stands nothing was sent; after that it is unknown.
pub fn transport_outcome(name: &str, error: &reqwest::Error) -> Outcome {
    let trouble = Trouble::of(error);
    let fault = |rest: &str| Fault::new(trouble.as_str(), format!("{name} {rest}"));
    match trouble {
        Trouble::Refused(_) => Outcome::Misconfigured(fault("is set to an address that is no HTTP URL")),
        Trouble::Dns => Outcome::Transient(fault("has a name that cannot be resolved"), None),
        Trouble::Tls => Outcome::Transient(fault("could not be spoken to over TLS"), None),
        Trouble::Connect => Outcome::Transient(fault("could not be connected to"), None),
        Trouble::Timeout => Outcome::Unknown(fault("did not answer in time")),
        Trouble::Reset => Outcome::Unknown(fault("broke the connection before it answered")),
        Trouble::BadAnswer => Outcome::Unknown(fault("answered what is no HTTP")),
    }
}
