//! Firebase Cloud Messaging, HTTP v1, as a service account.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use domain::{
    Fault, Outcome, ProviderName, clock,
    contract::{
        Order, Provider,
        provider::{Checking, Sending, ThrottleScope},
    },
};
use reqwest::{Client, Url, header::CONTENT_TYPE};
use runtime::config::Config;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Notice, PushSetupError, error_word, file, is_for, signed, time_to_live, token};
use crate::vendor::{self, VendorResponse};

const NAME: &str = "fcm";
const TOKEN_ENDPOINT: &str = "the token endpoint of fcm";
const CREDENTIALS: &str = "FCM_CREDENTIALS_PATH";
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
/// The longest lifetime of an assertion that Google accepts.
const ASSERTION_SECONDS: i64 = 3600;
/// The lifetime of a token whose response does not name one.
const TOKEN_SECONDS: u64 = 300;
/// The share of an attempt's time that getting a token may take.
const TOKEN_SHARE: f64 = 0.75;
/// A token is replaced this long before its end, or at nine tenths of a shorter life.
const RENEWED_BEFORE: Duration = Duration::from_mins(5);

/// Firebase Cloud Messaging.
pub struct Fcm {
    client: Client,
    send: Url,
    project: String,
    tokens: TokenSource,
    breaker: Arc<str>,
    is_only_provider: bool,
}

/// The file of a service account, as far as it matters.
#[derive(Deserialize)]
struct ServiceAccount {
    project_id: Option<String>,
    private_key_id: Option<String>,
    private_key: String,
    client_email: String,
    token_uri: String,
}

impl Fcm {
    /// Reads the file that the settings name; `is_only_provider`: no other push service is set up.
    pub fn new(config: &Config, is_only_provider: bool) -> Result<Self, PushSetupError> {
        let fcm = config.push.fcm.as_ref().ok_or(PushSetupError::Missing(CREDENTIALS))?;
        let text = file(CREDENTIALS, &fcm.credentials_path)?;
        let account: ServiceAccount = serde_json::from_str(&text)
            .map_err(|_| PushSetupError::Content(CREDENTIALS, "the JSON file of a service account"))?;
        let project = fcm.project_id.clone().or_else(|| account.project_id.clone());
        let project = project.ok_or(PushSetupError::Missing("FCM_PROJECT_ID"))?;
        let path = format!("v1/projects/{project}/messages:send");
        let send = fcm.base_url.join(&path).map_err(|_| PushSetupError::Missing("FCM_PROJECT_ID"))?;
        let client = vendor::client(config.provider_timeout).build()?;
        let tokens = TokenSource::new(account, client.clone())?;
        Ok(Self {
            client,
            send,
            project,
            tokens,
            breaker: vendor::breaker_key(ProviderName::Fcm, &text),
            is_only_provider,
        })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let started = Instant::now();
        // Only a part of the time, so that some is left for the call.
        let token = match timeout(order.timeout.mul_f64(TOKEN_SHARE), self.tokens.get()).await {
            Ok(Ok(token)) => token,
            Ok(Err(outcome)) => return outcome,
            Err(_) => {
                return Outcome::Transient(
                    Fault::new("timeout", format!("{TOKEN_ENDPOINT} did not answer in time")),
                    None,
                );
            }
        };
        let request = self
            .client
            .post(self.send.clone())
            .bearer_auth(token.value.expose_secret())
            .json(&message(order))
            .timeout(order.timeout.saturating_sub(started.elapsed()));
        match vendor::call(NAME, request).await {
            Ok(response) => self.classify(&response, &token),
            Err(outcome) => outcome,
        }
    }

    fn classify(&self, response: &VendorResponse, token: &Arc<Token>) -> Outcome {
        #[derive(Deserialize)]
        struct Accepted {
            name: String,
        }
        let status = response.status.as_u16();
        if response.status.is_success() {
            token.was_accepted.store(true, Ordering::Relaxed);
            return match response.json::<Accepted>() {
                Some(accepted) => vendor::sent(response, vendor::reference(&accepted.name)),
                None => response.classify(NAME, None),
            };
        }
        let code = error_code(response);
        let code = code.as_deref();
        let fault =
            |what: &str| Fault::new(code.unwrap_or(response.status.as_str()), format!("fcm answered {status}{what}"));
        match (status, code) {
            (_, Some("UNREGISTERED")) => Outcome::AddressDead(fault(": the device token is dead")),
            (_, Some("SENDER_ID_MISMATCH")) => Outcome::Rejected(fault(": the device token is of another project")),
            (_, Some("INVALID_ARGUMENT")) => Outcome::Rejected(fault(": the token or the message is not valid")),
            (_, Some("QUOTA_EXCEEDED")) => Outcome::Throttled(fault(": too much at once"), response.retry_after()),
            (_, Some("UNAVAILABLE" | "INTERNAL")) => Outcome::Transient(fault(""), response.retry_after()),
            (_, Some("THIRD_PARTY_AUTH_ERROR")) => {
                Outcome::Misconfigured(fault(": the project's own credentials at Apple or for Web Push are refused"))
            }
            (401, _) => {
                self.tokens.drop_refused(token);
                match token.was_accepted.load(Ordering::Relaxed) {
                    true => Outcome::Transient(fault(": the token holds no longer; a new one is fetched"), None),
                    false => response.classify(NAME, code),
                }
            }
            _ => response.classify(NAME, code),
        }
    }

    async fn check_credentials(&self) -> Result<String, Fault> {
        let silent = || Fault::new("timeout", format!("{TOKEN_ENDPOINT} did not answer in time"));
        let outcome = match timeout(vendor::CHECK_TIMEOUT, self.tokens.fetch()).await.map_err(|_| silent())? {
            Ok(_) => return Ok(format!("the service account got a token, for project {}", self.project)),
            Err(outcome) => outcome,
        };
        Err(outcome.fault().cloned().unwrap_or_else(silent))
    }
}

impl Provider for Fcm {
    fn name(&self) -> ProviderName {
        ProviderName::Fcm
    }

    fn fits(&self, order: &Order) -> bool {
        is_for(order, ProviderName::Fcm, self.is_only_provider)
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.breaker))
    }

    /// QUOTA_EXCEEDED does not say reliably whether the project or one device is over its limit.
    fn throttle_scope(&self, _fault: &Fault) -> ThrottleScope {
        ThrottleScope::Tenant
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(self.check_credentials())
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

/// An access token of the service account.
struct Token {
    value: SecretString,
    renew_at: Instant,
    ends_at: Instant,
    /// A message was sent with it. If it is refused later, it expired early, and the credentials are valid.
    was_accepted: AtomicBool,
}

/// Fetches tokens, one at a time, and keeps the last one.
struct TokenSource {
    client: Client,
    endpoint: String,
    account: String,
    key: RsaKeyPair,
    key_id: Option<String>,
    cached: Mutex<Option<Arc<Token>>>,
    refresh_lock: tokio::sync::Mutex<()>,
}

impl TokenSource {
    fn new(account: ServiceAccount, client: Client) -> Result<Self, PushSetupError> {
        let wrong = || PushSetupError::Content(CREDENTIALS, "the file of a service account with an RSA key");
        let ServiceAccount { private_key_id: key_id, private_key, client_email: account, token_uri: endpoint, .. } =
            account;
        let der = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|_| wrong())?;
        let key = RsaKeyPair::from_pkcs8(der.secret_der()).or_else(|_| RsaKeyPair::from_der(der.secret_der()));
        let key = key.map_err(|_| wrong())?;
        Ok(Self { client, endpoint, account, key, key_id, cached: Mutex::default(), refresh_lock: Default::default() })
    }

    /// The cached token, or a new one. On failure, the outcome; no device was sent anything yet.
    async fn get(&self) -> Result<Arc<Token>, Outcome> {
        let Some(token) = self.cached() else {
            let _guard = self.refresh_lock.lock().await;
            // The task before this one may have fetched one.
            return match self.cached() {
                Some(token) => Ok(token),
                None => self.fetch().await,
            };
        };
        if Instant::now() < token.renew_at {
            return Ok(token);
        }
        // One task renews the token. The others, and this one if the renewal fails, use the current token, which is still valid.
        match self.refresh_lock.try_lock() {
            Ok(_guard) => Ok(self.fetch().await.unwrap_or(token)),
            Err(_) => Ok(token),
        }
    }

    fn cached(&self) -> Option<Arc<Token>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().filter(|token| Instant::now() < token.ends_at).cloned()
    }

    /// Drops a refused token, unless a newer one is cached.
    fn drop_refused(&self, token: &Arc<Token>) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.take_if(|cached| Arc::ptr_eq(cached, token));
    }

    async fn fetch(&self) -> Result<Arc<Token>, Outcome> {
        #[derive(Deserialize)]
        struct TokenBody {
            access_token: String,
            expires_in: Option<u64>,
        }
        let no_signature = || Outcome::Misconfigured(Fault::new("key", "the key of the service account cannot sign"));
        let assertion = self.assertion().ok_or_else(no_signature)?;
        let asked_at = Instant::now();
        let request = self
            .client
            .post(self.endpoint.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(format!("{GRANT}&assertion={assertion}"));
        let response = vendor::call(TOKEN_ENDPOINT, request).await.map_err(nothing_sent)?;
        let body = response
            .json::<TokenBody>()
            .filter(|_| response.status.is_success())
            .ok_or_else(|| token_error(&response))?;
        let life = Duration::from_secs(body.expires_in.unwrap_or(TOKEN_SECONDS));
        let token = Arc::new(Token {
            value: body.access_token.into(),
            renew_at: asked_at + life.saturating_sub(RENEWED_BEFORE.min(life / 10)),
            ends_at: asked_at + life,
            was_accepted: AtomicBool::new(false),
        });
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
        Ok(token)
    }

    /// The signed assertion that is exchanged for a token (RFC 7523).
    fn assertion(&self) -> Option<String> {
        let now = clock::now().timestamp();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_id.as_deref()});
        let claims = json!({"iss": self.account.as_str(), "scope": SCOPE, "aud": self.endpoint.as_str(),
            "iat": now, "exp": now + ASSERTION_SECONDS});
        signed::rs256(&self.key, &header, &claims)
    }
}

/// An unknown outcome of a token call is transient: no device was sent anything.
fn nothing_sent(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Unknown(fault) => Outcome::Transient(fault, None),
        other => other,
    }
}

/// The outcome of a token endpoint's error response.
fn token_error(response: &VendorResponse) -> Outcome {
    #[derive(Deserialize)]
    struct ErrorBody {
        error: String,
    }
    let code = response.json::<ErrorBody>().and_then(|body| error_word(&body.error).map(str::to_owned));
    match response.classify(TOKEN_ENDPOINT, code.as_deref()) {
        // For example `invalid_grant`: the account, its key or the clock is wrong.
        Outcome::Rejected(fault) => Outcome::Misconfigured(fault),
        other => nothing_sent(other),
    }
}

/// FCM's own error code, or else the general one of Google's services.
fn error_code(response: &VendorResponse) -> Option<String> {
    let body: Value = response.json()?;
    let error = body.get("error")?;
    let details = error.get("details").and_then(Value::as_array).into_iter().flatten();
    let own = details.filter_map(|detail| detail.get("errorCode")?.as_str()).next();
    own.or_else(|| error.get("status")?.as_str()).and_then(error_word).map(str::to_owned)
}

fn message(order: &Order) -> Value {
    let notice = Notice::of(order);
    let mut notification = Map::new();
    notification.extend(notice.title.map(|title| ("title".to_owned(), Value::from(title))));
    notification.extend(notice.body.map(|body| ("body".to_owned(), Value::from(body))));
    let data: Map<String, Value> = notice.members().into_iter().map(|(name, value)| (name, text(value))).collect();
    let id = order.delivery.to_string();
    let mut message = json!({
        "token": token(order),
        "notification": notification,
        // Sent again, it replaces what the device shows instead of joining it.
        "android": {"notification": {"tag": id}},
        "apns": {"headers": {"apns-collapse-id": id}},
    });
    let mut set = |pointer: &str, name: &str, value: Value| {
        if let Some(Value::Object(members)) = message.pointer_mut(pointer) {
            members.insert(name.to_owned(), value);
        }
    };
    if !data.is_empty() {
        set("", "data", Value::Object(data));
    }
    if let Some(badge) = notice.badge {
        set("/apns", "payload", json!({"aps": {"badge": badge}}));
    }
    if let Some(at) = order.expires_at {
        set("/android", "ttl", format!("{}s", time_to_live(order).as_secs()).into());
        set("/apns/headers", "apns-expiration", at.timestamp().to_string().into());
    }
    json!({"message": message})
}

/// FCM accepts only strings as data values.
fn text(value: Value) -> Value {
    match value {
        Value::String(_) => value,
        other => Value::String(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
