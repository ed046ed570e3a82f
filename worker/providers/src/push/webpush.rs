//! Web Push: encrypted for one browser (RFC 8291), signed by our VAPID key (RFC 8292), handed to the service it named (RFC 8030).

use std::sync::Arc;

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree},
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
    rand,
    signature::EcdsaKeyPair,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use connectors::egress::{Trouble, resolver::GuardedResolver};
use domain::{
    Fault, Lane, Outcome, ProviderName, clock,
    contract::{
        Order, Provider,
        device::{Subscription, SubscriptionKeys},
        guard::{Guard, Refusal},
        provider::{Checking, Sending, ThrottleScope},
    },
};
use reqwest::{
    Client, Url,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use runtime::config::Config;
use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::{Notice, PushSetupError, is_for, signed, time_to_live};
use crate::{
    counters,
    vendor::{self, VendorResponse},
};

const NAME: &str = "the push service";
/// Services need not take more than 4096 bytes (RFC 8030, section 7.2); of those the encryption's head, end and tag take these.
const PLAIN_BYTES_MAX: usize = 4096 - 86 - 1 - 16;
/// The whole message is one record of at most this.
const RECORD_BYTES: u32 = 4096;
/// A token may be valid for 24 hours (RFC 8292, section 2). Half of that tolerates wrong clocks.
const SIGNATURE_HOURS: i64 = 12;

/// Browsers' push services. Browsers name their addresses, so the egress guard checks them.
pub struct Webpush {
    client: Client,
    /// The client for plain HTTP, which is allowed only to networks that the operator exempts.
    plain: Client,
    guard: Guard,
    keys: EcdsaKeyPair,
    public_key: String,
    subject: String,
    is_only_provider: bool,
}

impl Webpush {
    /// Takes the keys of the settings; `is_only_provider`: no other push service is set up.
    pub fn new(config: &Config, is_only_provider: bool) -> Result<Self, PushSetupError> {
        let vapid = config.push.webpush.as_ref().ok_or(PushSetupError::Missing("PUSH_VAPID_PRIVATE_KEY"))?;
        let keys = vapid.key_pair().ok_or(PushSetupError::Missing("PUSH_VAPID_PRIVATE_KEY"))?;
        let guard = Guard::new(config.webhook.allow_nets.clone());
        let client = |guard: &Guard| {
            let resolver = GuardedResolver::shared(guard.clone());
            vendor::client(config.provider_timeout).dns_resolver(resolver).build()
        };
        Ok(Self {
            client: client(&guard)?,
            plain: client(&guard.exempt_only())?,
            guard,
            keys,
            public_key: vapid.public_key.clone(),
            subject: vapid.subject.clone(),
            is_only_provider,
        })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let Some(subscription) = Subscription::parse(order.recipient.reveal()) else {
            return rejected("subscription", "the recipient is no Web Push subscription");
        };
        if let Err(refusal) = self.guard.check_push_url(&subscription.endpoint) {
            return refused(refusal);
        }
        let Ok(url) = Url::parse(&subscription.endpoint) else { return refused(Refusal::NotHttp) };
        let Ok(payload) = payload(order) else { return rejected("content", "the content has no JSON form") };
        if payload.len() > PLAIN_BYTES_MAX {
            return rejected("too_large", &format!("the notification has more than {PLAIN_BYTES_MAX} bytes"));
        }
        let Some(body) = encrypted(&subscription.keys, payload) else {
            return rejected("subscription", "the keys of the subscription are no keys");
        };
        let Some(authorization) = self.authorization(&url) else {
            return Outcome::Transient(Fault::new("randomness", "this machine gave no random numbers"), None);
        };
        let client = if url.scheme() == "http" { &self.plain } else { &self.client };
        let request = client
            .post(url)
            .header(AUTHORIZATION, authorization)
            .header("ttl", time_to_live(order).as_secs())
            .header("urgency", urgency(order.lane))
            // Sent again while the browser is away, it replaces the waiting one instead of joining it.
            .header("topic", order.delivery.0.simple().to_string())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_ENCODING, "aes128gcm")
            .timeout(order.timeout)
            .body(body);
        match request.header(reqwest::header::USER_AGENT, vendor::AGENT).send().await {
            Ok(response) => classify(&vendor::read(response).await),
            Err(error) => match Trouble::of(&error) {
                Trouble::Refused(refusal) => refused(refusal),
                _ => vendor::transport_outcome(NAME, &error),
            },
        }
    }

    /// The authorization for this service.
    fn authorization(&self, url: &Url) -> Option<String> {
        let ends = clock::now() + chrono::TimeDelta::hours(SIGNATURE_HOURS);
        let claims =
            json!({"aud": url.origin().ascii_serialization(), "exp": ends.timestamp(), "sub": self.subject.as_str()});
        let token = signed::es256(&self.keys, &json!({"typ": "JWT", "alg": "ES256"}), &claims)?;
        Some(format!("vapid t={token}, k={}", self.public_key))
    }
}

impl Provider for Webpush {
    fn name(&self) -> ProviderName {
        ProviderName::Webpush
    }

    fn fits(&self, order: &Order) -> bool {
        is_for(order, ProviderName::Webpush, self.is_only_provider)
    }

    /// One breaker per push service.
    fn breaker_key(&self, order: &Order) -> Option<Arc<str>> {
        let url = Url::parse(&Subscription::parse(order.recipient.reveal())?.endpoint).ok()?;
        Some(format!("{}/{}", ProviderName::Webpush, url.origin().ascii_serialization()).into())
    }

    /// A browser names the push service, so its throttling must not affect other tenants.
    fn throttle_scope(&self, _fault: &Fault) -> ThrottleScope {
        ThrottleScope::Tenant
    }

    fn check(&self) -> Checking<'_> {
        // The keys were checked at the start, and there is no service to call before a browser names one.
        Box::pin(std::future::ready(Ok("the VAPID keys belong together; browsers name the services".to_owned())))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

/// How soon the browser should be woken (RFC 8030, section 5.3): what was asked for as urgent or high at once, bulk when it is awake.
const fn urgency(lane: Lane) -> &'static str {
    match lane {
        Lane::High => "high",
        Lane::Normal => "normal",
        Lane::Bulk => "low",
    }
}

fn rejected(code: &str, detail: &str) -> Outcome {
    Outcome::Rejected(Fault::new(code, detail))
}

fn refused(refusal: Refusal) -> Outcome {
    if refusal == Refusal::Private {
        counters::egress_blocked();
        return rejected("target_not_allowed", "the endpoint lies inside a network that may not be reached");
    }
    rejected("bad_url", &format!("the endpoint {refusal}"))
}

fn classify(response: &VendorResponse) -> Outcome {
    match response.status.as_u16() {
        // The body does not matter: the standard defines none.
        200..=299 => vendor::sent(response, None),
        status @ (404 | 410) => Outcome::AddressDead(Fault::new(
            response.status.as_str(),
            format!("{NAME} answered {status}: the subscription is gone"),
        )),
        _ => response.classify(NAME, None),
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

fn payload(order: &Order) -> serde_json::Result<Vec<u8>> {
    let Notice { title, body, data, .. } = Notice::of(order);
    serde_json::to_vec(&Payload { title, body, data })
}

/// Encrypts for the holder of `keys`. `None`: the keys are invalid.
fn encrypted(keys: &SubscriptionKeys, plain: Vec<u8>) -> Option<Vec<u8>> {
    let mut salt = [0; 16];
    rand::fill(&mut salt).ok()?;
    encrypted_with(keys, plain, &PrivateKey::generate(&ECDH_P256).ok()?, salt)
}

/// RFC 8291, section 3.4, in one record of RFC 8188.
fn encrypted_with(keys: &SubscriptionKeys, plain: Vec<u8>, own: &PrivateKey, salt: [u8; 16]) -> Option<Vec<u8>> {
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let (theirs, secret) = (decode(&keys.p256dh)?, decode(&keys.auth)?);
    let ours = own.compute_public_key().ok()?;
    let mixed = agree(own, UnparsedPublicKey::new(&ECDH_P256, &theirs), (), |shared| {
        Ok(Salt::new(HKDF_SHA256, &secret).extract(shared))
    });
    let seed: [u8; 32] = expanded(&mixed.ok()?, &[b"WebPush: info\0", &theirs, ours.as_ref()])?;
    let key = Salt::new(HKDF_SHA256, &salt).extract(&seed);
    let cipher: [u8; 16] = expanded(&key, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce: [u8; 12] = expanded(&key, &[b"Content-Encoding: nonce\0"])?;
    let mut record = plain;
    // The end of the last record; no padding.
    record.push(2);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &cipher).ok()?);
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).ok()?;
    let id_bytes = u8::try_from(ours.as_ref().len()).ok()?;
    Some([&salt[..], &RECORD_BYTES.to_be_bytes(), &[id_bytes], ours.as_ref(), &record].concat())
}

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expanded<const N: usize>(key: &Prk, info: &[&[u8]]) -> Option<[u8; N]> {
    let mut out = [0; N];
    key.expand(info, Bytes(N)).ok()?.fill(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests;
