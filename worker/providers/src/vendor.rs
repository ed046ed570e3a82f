//! HTTP calls to vendors: the client, and the outcome by status or transport error. A vendor's module adds the vendor's own codes.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use connectors::egress::{self, Trouble, retry_after};
use domain::{Fault, Outcome, ProviderName, Receipt, clock};
use reqwest::{
    ClientBuilder, RequestBuilder, Response, StatusCode,
    header::{HeaderMap, RETRY_AFTER, USER_AGENT},
};

/// The longest time to connect to a vendor.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than the shortest time after which common load balancers close an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most bytes read of a response: vendors' errors are short.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// The longest check of credentials.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message id of a vendor that is stored.
const REFERENCE_BYTES_MAX: usize = 128;
/// The content type of forms.
pub const FORM: &str = "application/x-www-form-urlencoded";
/// The `User-Agent` of all calls.
pub const AGENT: &str = concat!("Posthaste/", env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// Why a vendor could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A setting that the vendor needs is missing.
    #[error("{0} must be set")]
    Incomplete(&'static str),
    /// The sender is no address.
    #[error("EMAIL_FROM must be an e-mail address, bare or as `Name <address>`")]
    From(#[source] lettre::address::AddressError),
    /// A setting has an invalid value.
    #[error("{0} cannot be used")]
    Unusable(&'static str),
    /// The HTTP client could not be created.
    #[error("failed to prepare the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// The key of a vendor's breaker. It holds a fingerprint of the credentials, which tells them apart without exposing them.
pub fn breaker_key(name: ProviderName, credential: &str) -> Arc<str> {
    let digest = digest(&SHA256, credential.as_bytes());
    let print: String = digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}/{print}").into()
}

/// A vendor's message id, if `text` has the form of one. The form excludes addresses and content.
pub fn reference(text: &str) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'%');
    ((1..=REFERENCE_BYTES_MAX).contains(&text.len()) && text.bytes().all(good)).then(|| text.to_owned())
}

/// The outcome of a message that the vendor accepted.
pub fn sent(response: &VendorResponse, provider_ref: Option<String>) -> Outcome {
    Outcome::Sent(Receipt { provider_ref, code: Some(response.status.as_str().to_owned()), ..Receipt::default() })
}

/// Checks the credentials with a call that sends no message.
pub async fn check(name: &str, request: RequestBuilder) -> Result<String, Fault> {
    let outcome = match call(name, request.timeout(CHECK_TIMEOUT)).await {
        Ok(response) if response.status.is_success() => return Ok(format!("{name} takes the credentials")),
        Ok(response) => response.classify(name, None),
        Err(outcome) => outcome,
    };
    Err(outcome.fault().cloned().unwrap_or_default())
}

/// A client for calls of up to `timeout`. The operator sets the vendor's address, so the egress guard does not check it.
pub fn client(timeout: Duration) -> ClientBuilder {
    egress::client(CONNECT_TIMEOUT.min(timeout.mul_f64(0.8))).pool_idle_timeout(IDLE_TIMEOUT)
}

/// A vendor's response.
#[derive(Clone, Debug)]
pub struct VendorResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, up to 64 KiB. `None`: it is longer, or the connection broke.
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

    /// The body as JSON of type `T`. `None`: it has another form.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.body.as_deref()?).ok()
    }

    /// The outcome by status, with `code` and a detail that names the vendor. The caller handles success; here it counts as a
    /// response that cannot be read.
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

/// Makes the call and reads the response within the timeout of `request`. Without a response it returns the outcome.
pub async fn call(name: &str, request: RequestBuilder) -> Result<VendorResponse, Outcome> {
    match request.header(USER_AGENT, AGENT).send().await {
        Ok(response) => Ok(read(response).await),
        Err(error) => Err(transport_outcome(name, &error)),
    }
}

/// Reads a response, up to 64 KiB of its body.
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

/// The outcome of a call without a response: transient if there was no connection, unknown after that.
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
