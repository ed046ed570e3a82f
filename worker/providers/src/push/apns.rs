//! Apple's push service over HTTP/2, with a signed token or a client certificate.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{
    Fault, Outcome, ProviderName, clock,
    contract::{
        Order, Provider,
        provider::{Checking, Sending, ThrottleScope},
    },
};
use reqwest::{Client, Identity, Url, header::AUTHORIZATION};
use runtime::config::{ApnsSigner, Config};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Notice, PushSetupError, error_word, expiry_time, file, is_for, signed, token};
use crate::vendor::{self, VendorResponse};

const NAME: &str = "apns";
const CERTIFICATE: &str = "APNS_CERTIFICATE_PATH";
/// The largest payload that Apple accepts.
const PAYLOAD_BYTES_MAX: usize = 4096;
/// Apple takes a token for 60 minutes and wants no new one before 20.
const TOKEN_MINUTES: i64 = 40;
const NEW_TOKEN_MINUTES_MIN: i64 = 20;
/// A well-formed token that belongs to no device.
const UNKNOWN_TOKEN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Apple's push service.
pub struct Apns {
    client: Client,
    devices: Url,
    topic: String,
    /// Signs tokens. `None`: the client certificate authenticates.
    signer: Option<Signer>,
    breaker: Arc<str>,
    is_only_provider: bool,
}

impl Apns {
    /// Reads the key or the certificate that the settings name; `is_only_provider`: no other push service is set up.
    pub fn new(config: &Config, is_only_provider: bool) -> Result<Self, PushSetupError> {
        let apns = config.push.apns.as_ref().ok_or(PushSetupError::Missing(CERTIFICATE))?;
        let pem = file(CERTIFICATE, &apns.certificate_path)?;
        // Apple supports only HTTP/2, and a connection without TLS cannot negotiate it.
        let client = vendor::client(config.provider_timeout).http2_prior_knowledge();
        let (client, signer) = match &apns.signer {
            Some(names) => (client, Some(Signer::new(names, pem.as_bytes())?)),
            None => {
                let identity = Identity::from_pem(pem.as_bytes()).map_err(|_| {
                    let what =
                        "a PEM with a certificate and its key (for a token key set APNS_KEY_ID and APNS_TEAM_ID)";
                    PushSetupError::Content(CERTIFICATE, what)
                })?;
                (client.identity(identity), None)
            }
        };
        let devices = apns.base_url.join("3/device/").map_err(|_| PushSetupError::Missing("APNS_BASE_URL"))?;
        let credential = [pem.as_str(), apns.topic.as_str()].concat();
        Ok(Self {
            client: client.build()?,
            devices,
            topic: apns.topic.clone(),
            signer,
            breaker: vendor::breaker_key(ProviderName::Apns, &credential),
            is_only_provider,
        })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let payload = payload(order);
        if payload.len() > PAYLOAD_BYTES_MAX {
            let detail = format!("the notification has more than {PAYLOAD_BYTES_MAX} bytes");
            return Outcome::Rejected(Fault::new("PayloadTooLarge", detail));
        }
        let Some(url) = self.url(token(order)) else {
            return Outcome::Rejected(Fault::new("BadDeviceToken", "the recipient is no device token"));
        };
        let headers = [
            ("apns-id", order.delivery.to_string()),
            ("apns-push-type", "alert".to_owned()),
            ("apns-priority", "10".to_owned()),
            ("apns-expiration", expiry_time(order).timestamp().to_string()),
            // Sent again, it replaces what the device shows instead of joining it.
            ("apns-collapse-id", order.delivery.to_string()),
        ];
        self.call(url, &headers, payload, order.timeout).await
    }

    async fn call(
        &self,
        url: Url,
        headers: &[(&str, String)],
        payload: String,
        timeout: std::time::Duration,
    ) -> Outcome {
        let mut request = self.client.post(url).header("apns-topic", &self.topic).timeout(timeout).body(payload);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut used = None;
        if let Some(signer) = &self.signer {
            let Some(token) = signer.token(clock::now()) else {
                return Outcome::Transient(Fault::new("randomness", "this machine gave no random numbers"), None);
            };
            request = request.header(AUTHORIZATION, format!("bearer {}", token.expose_secret()));
            used = Some((signer, token));
        }
        match vendor::call(NAME, request).await {
            Ok(response) => {
                let reason = reason(&response);
                if let (Some("ExpiredProviderToken"), Some((signer, token))) = (reason.as_deref(), used) {
                    signer.drop_expired(&token, clock::now());
                }
                classify(&response, reason.as_deref())
            }
            Err(outcome) => outcome,
        }
    }

    /// The URL of a device. `None`: the token has characters that a path must not contain.
    fn url(&self, token: &str) -> Option<Url> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
        token.chars().all(plain).then(|| self.devices.join(&format!("./{token}")).ok())?
    }

    /// Sends to a token that no device has: Apple refuses wrong credentials before it looks for the token.
    async fn check_credentials(&self) -> Result<String, Fault> {
        let url = self.url(UNKNOWN_TOKEN).ok_or_else(|| Fault::new("bad_url", "APNS_BASE_URL is no base of URLs"))?;
        let headers = [("apns-push-type", "background".to_owned()), ("apns-priority", "5".to_owned())];
        let nothing = json!({"aps": {"content-available": 1}}).to_string();
        match self.call(url, &headers, nothing, vendor::CHECK_TIMEOUT).await {
            Outcome::Sent(_) | Outcome::AddressDead(_) => Ok(format!("apns knows us and the topic {}", self.topic)),
            Outcome::Transient(fault, _)
            | Outcome::Throttled(fault, _)
            | Outcome::Rejected(fault)
            | Outcome::Misconfigured(fault)
            | Outcome::Unknown(fault) => Err(fault),
        }
    }
}

impl Provider for Apns {
    fn name(&self) -> ProviderName {
        ProviderName::Apns
    }

    fn fits(&self, order: &Order) -> bool {
        is_for(order, ProviderName::Apns, self.is_only_provider)
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.breaker))
    }

    /// TooManyRequests is about one device token, TooManyProviderTokenUpdates about our credentials; other limits hold back the tenant.
    fn throttle_scope(&self, fault: &Fault) -> ThrottleScope {
        match fault.code.as_deref() {
            Some("TooManyRequests") => ThrottleScope::Recipient,
            Some("TooManyProviderTokenUpdates") => ThrottleScope::Provider,
            _ => ThrottleScope::Tenant,
        }
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(self.check_credentials())
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

/// Signs tokens and caches the last one, because Apple refuses clients that create many.
struct Signer {
    key: EcdsaKeyPair,
    key_id: String,
    team_id: String,
    cache: Mutex<TokenCache>,
}

#[derive(Default)]
struct TokenCache {
    token: Option<(Arc<SecretString>, DateTime<Utc>)>,
    /// When Apple last refused a current token as expired.
    dropped_at: Option<DateTime<Utc>>,
}

impl Signer {
    fn new(names: &ApnsSigner, pem: &[u8]) -> Result<Self, PushSetupError> {
        let wrong = || PushSetupError::Content(CERTIFICATE, "a token key of Apple (.p8: a P-256 key as PKCS #8)");
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| wrong())?;
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der());
        let (key_id, team_id) = (names.key_id.clone(), names.team_id.clone());
        Ok(Self { key: key.map_err(|_| wrong())?, key_id, team_id, cache: Mutex::default() })
    }

    fn token(&self, now: DateTime<Utc>) -> Option<Arc<SecretString>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let holds =
            |since: &DateTime<Utc>| (TimeDelta::zero()..TimeDelta::minutes(TOKEN_MINUTES)).contains(&(now - *since));
        if let Some((token, _)) = cache.token.as_ref().filter(|(_, since)| holds(since)) {
            return Some(Arc::clone(token));
        }
        let header = json!({"alg": "ES256", "kid": self.key_id.as_str()});
        let claims = json!({"iss": self.team_id.as_str(), "iat": now.timestamp()});
        let token = Arc::new(SecretString::from(signed::es256(&self.key, &header, &claims)?));
        cache.token = Some((Arc::clone(&token), now));
        Some(token)
    }

    /// Drops a token that was refused as expired, at most every 20 minutes: if a new one is refused too, the clock is wrong.
    fn drop_expired(&self, token: &Arc<SecretString>, now: DateTime<Utc>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = cache.dropped_at.is_some_and(|at| now - at < TimeDelta::minutes(NEW_TOKEN_MINUTES_MIN));
        let is_current = cache.token.as_ref().is_some_and(|(cached, _)| Arc::ptr_eq(cached, token));
        if is_current && !is_recent {
            *cache = TokenCache { token: None, dropped_at: Some(now) };
        }
    }
}

fn payload(order: &Order) -> String {
    let notice = Notice::of(order);
    let mut members = notice.members();
    let mut alert = serde_json::Map::new();
    alert.extend(notice.title.map(|title| ("title".to_owned(), Value::from(title))));
    alert.extend(notice.body.map(|body| ("body".to_owned(), Value::from(body))));
    let mut aps = serde_json::Map::from_iter([("alert".to_owned(), Value::Object(alert))]);
    aps.extend(notice.badge.map(|badge| ("badge".to_owned(), Value::from(badge))));
    // Apple reserves this member, so it replaces the producer's.
    members.insert("aps".to_owned(), Value::Object(aps));
    Value::Object(members).to_string()
}

fn reason(response: &VendorResponse) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        reason: String,
    }
    error_word(&response.json::<ErrorBody>()?.reason).map(str::to_owned)
}

fn classify(response: &VendorResponse, reason: Option<&str>) -> Outcome {
    let status = response.status.as_u16();
    let fault =
        |what: &str| Fault::new(reason.unwrap_or(response.status.as_str()), format!("apns answered {status}{what}"));
    match (status, reason) {
        // Apple's response has an id and no body. Any other response is from another server.
        (200, _) if response.header("apns-id").is_some() || response.body.as_ref().is_some_and(Vec::is_empty) => {
            vendor::sent(response, response.header("apns-id").and_then(vendor::reference))
        }
        (410, _) | (_, Some("BadDeviceToken" | "Unregistered" | "ExpiredToken")) => {
            Outcome::AddressDead(fault(": the device token is dead"))
        }
        (_, Some("ExpiredProviderToken")) => {
            Outcome::Transient(fault(": our token is too old by its clock; a new one is made"), response.retry_after())
        }
        (_, Some("BadTopic" | "MissingTopic" | "TopicDisallowed")) => {
            Outcome::Misconfigured(fault(": APNS_TOPIC is not ours"))
        }
        (_, Some("BadCertificate" | "BadCertificateEnvironment")) => {
            Outcome::Misconfigured(fault(": the certificate is refused"))
        }
        (_, Some("IdleTimeout")) => Outcome::Transient(fault(": the connection stood idle"), response.retry_after()),
        _ => response.classify(NAME, reason),
    }
}

#[cfg(test)]
mod tests;
