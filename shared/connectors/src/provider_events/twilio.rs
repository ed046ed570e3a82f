//! Twilio's status callbacks: HMAC-SHA1 over the callback's URL and the sorted parameters.
//!
//! The signed URL is the public one, so it is made from `PUBLIC_URL` and never from the request's host. The signature
//! has no time: a repeated callback is recognized by message and status.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use domain::{
    EventKind, EventSource,
    suppression::{SuppressionReason as Reason, SuppressionScope as Scope},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::{AddressNews, Malformed, Meaning, ProviderEvent, Report, detail, own_id, provider_event};

/// The signature: base64.
pub const SIGNATURE: &str = "x-twilio-signature";
/// The parameter of the callback's URL that carries our id.
pub const DELIVERY: &str = "delivery";
/// The parameter of the URL that signs a body which is not a form.
const BODY_HASH: &str = "bodySHA256";

/// Codes that apply to every message to the number: it is unknown, invalid, no mobile, or has sent STOP.
const DEAD: &[&str] = &["21211", "21610", "21614", "30005", "30006"];

/// The auth token of the account.
#[derive(Clone)]
pub struct Token(hmac::Key);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A callback as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Callback<'a> {
    /// Where others reach us.
    pub public_url: &'a Url,
    /// Path and query of the request, as sent.
    pub path: &'a str,
    /// Whether the body is a form.
    pub is_form: bool,
    /// The body.
    pub body: &'a [u8],
}

impl Token {
    /// Makes the key from this token.
    pub fn new(token: &SecretString) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.expose_secret().as_bytes()))
    }

    /// Whether `signature` signs the callback.
    pub fn verifies(&self, signature: &str, callback: Callback<'_>) -> bool {
        let Ok(tag) = STANDARD.decode(signature) else { return false };
        let Some(params) = callback.signed_params() else { return false };
        // Twilio leaves the port out or includes it, depending on product and protocol.
        callback.urls().iter().any(|url| hmac::verify(&self.0, format!("{url}{params}").as_bytes(), &tag).is_ok())
    }
}

impl Callback<'_> {
    fn urls(&self) -> [String; 2] {
        let base = self.public_url;
        let host = base.host_str().unwrap_or_default();
        let rest = format!("{}{}", base.path().trim_end_matches('/'), self.path);
        let port = base.port_or_known_default().unwrap_or_default();
        [format!("{}://{host}{rest}", base.scheme()), format!("{}://{host}:{port}{rest}", base.scheme())]
    }

    /// The signed part of the body: the parameters of a form one after the other, each name and value once. For any
    /// other body only the hash in the URL is signed. `None`: nothing signs the body.
    fn signed_params(&self) -> Option<String> {
        if self.is_form {
            let mut params: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
            for (name, value) in form_urlencoded::parse(self.body) {
                params.entry(name).or_default().insert(value);
            }
            let pairs = params.iter().flat_map(|(name, values)| values.iter().flat_map(move |value| [name, value]));
            return Some(pairs.map(|part| &**part).collect());
        }
        let claimed = self.query(BODY_HASH)?;
        let hash: String = digest(&SHA256, self.body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        claimed.eq_ignore_ascii_case(&hash).then(String::new)
    }

    fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.path.split_once('?')?;
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The one event of a callback.
    pub fn events(&self) -> Result<Vec<ProviderEvent>, Malformed> {
        let fields: BTreeMap<String, String> = match self.is_form {
            true => form_urlencoded::parse(self.body).into_owned().collect(),
            false => {
                let object: BTreeMap<String, Value> = serde_json::from_slice(self.body).map_err(|_| Malformed)?;
                let texts = object.into_iter().filter_map(|(name, value)| {
                    let text = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()))?;
                    Some((name, text))
                });
                texts.collect()
            }
        };
        let field = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)).cloned().unwrap_or_default();
        let (sid, status) = (field(&["MessageSid", "SmsSid"]), field(&["MessageStatus", "SmsStatus"]));
        if sid.is_empty() || status.is_empty() {
            return Err(Malformed);
        }
        let (code, delivery) = (field(&["ErrorCode"]), self.query(DELIVERY).unwrap_or_default());
        let identity = [b"twilio", sid.as_bytes(), status.as_bytes(), code.as_bytes(), delivery.as_bytes()];
        // Numbers and texts are not stored: nothing here needs them.
        let body = json!({"sid": sid, "status": status, "code": code, "delivery": delivery}).to_string();
        Ok(vec![provider_event(EventSource::Twilio, &identity, body.into_bytes())])
    }
}

pub(super) fn meaning(event: &Value, received_at: DateTime<Utc>) -> Option<Meaning> {
    let text = |name: &str| event.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let code = text("code");
    let kind = match text("status")? {
        // Twilio has it; after a call without an answer, no more is known.
        "accepted" | "scheduled" | "queued" | "sending" | "sent" => EventKind::Sent,
        "delivered" => EventKind::Delivered,
        "read" => EventKind::Read,
        "undelivered" | "failed" | "canceled" => EventKind::Failed,
        _ => return None,
    };
    let is_dead = code.is_some_and(|code| DEAD.contains(&code));
    let (said, address) = match kind {
        EventKind::Failed if is_dead => {
            (detail("the number does not take messages", code), AddressNews::Suppress(Scope::All, Reason::AddressDead))
        }
        EventKind::Failed => (detail("the message did not arrive", code), AddressNews::None),
        _ => (None, AddressNews::None),
    };
    Some(Meaning::Report(Report {
        kind: Some(kind),
        at: received_at,
        delivery: text("delivery").and_then(own_id),
        references: text("sid").map(str::to_owned).into_iter().collect(),
        detail: said,
        address,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider_events;
    use domain::{DeliveryId, clock};

    // The test vectors of Twilio's own library.
    const FORM: &[u8] =
        b"CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309";
    const PATH: &str = "/myapp.php?foo=1&bar=2";
    const SIGNED: &str = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
    const JSON_BODY: &[u8] = br#"{"property": "value", "boolean": true}"#;
    const JSON_PATH: &str =
        "/myapp.php?foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";

    fn verifies(token: &str, base: &str, path: &str, is_form: bool, body: &[u8], signature: &str) -> bool {
        let public_url = base.parse().unwrap();
        Token::new(&token.into()).verifies(signature, Callback { public_url: &public_url, path, is_form, body })
    }

    #[test]
    fn the_published_vectors_hold_and_their_twins_do_not() {
        let holds = |signature| verifies("12345", "https://mycompany.com/", PATH, true, FORM, signature);
        assert!(holds(SIGNED));
        assert!(holds("kvajT1Ptam85bY51eRf/AJRuM3w="), "signed with the port");
        let twin = "/myapp.php?Sid=1";
        assert!(!verifies("12346", "https://mycompany.com/", PATH, true, FORM, SIGNED), "another token");
        assert!(!verifies("12345", "https://mycompany.com/", twin, true, FORM, SIGNED), "another query");
        assert!(!verifies("12345", "https://other.com/", PATH, true, FORM, SIGNED), "another host");
        assert!(!verifies("12345", "http://mycompany.com/", PATH, true, FORM, SIGNED), "another scheme");
        assert!(!verifies("12345", "https://mycompany.com/", PATH, false, FORM, SIGNED), "not read as a form");
        for at in 0..FORM.len() {
            let mut changed = FORM.to_vec();
            changed[at] ^= 1;
            assert!(!verifies("12345", "https://mycompany.com/", PATH, true, &changed, SIGNED), "byte {at} flipped");
        }
        for signature in ["", "RSOYDt4T1cUTdK1PDd93", "AAAA", "not base64!"] {
            assert!(!holds(signature), "{signature}");
        }
    }

    #[test]
    fn the_port_may_be_in_the_signed_url_or_not() {
        let http = "0ZXoZLH/DfblKGATFgpif+LLRf4=";
        assert!(verifies("12345", "http://mycompany.com/", PATH, true, FORM, http), "port 80 was put in");
        assert!(verifies("12345", "https://mycompany.com:1234/", PATH, true, FORM, SIGNED), "port 1234 was left out");
        let with_port = "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=";
        assert!(verifies("12345", "http://mycompany.com:1234/", PATH, true, FORM, with_port));
        assert!(!verifies("12345", "http://mycompany.com:1235/", PATH, true, FORM, with_port));
    }

    #[test]
    fn parameters_given_twice_are_signed_in_order() {
        let (form, signed) =
            (&b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234"[..], "IK+Dwps556ElfBT0I3Rgjkr1wJU=");
        assert!(verifies("12345", "https://mycompany.com/", PATH, true, form, signed));
        let (one, base) = (b"Sid=CA123&SidAccount=AC123&Digits=5678", "https://mycompany.com/");
        assert!(!verifies("12345", base, PATH, true, one, signed));
    }

    #[test]
    fn another_body_is_vouched_for_by_its_hash_in_the_url() {
        let signed = "a9nBmqA0ju/hNViExpshrM61xv4=";
        assert!(verifies("12345", "https://mycompany.com/", JSON_PATH, false, JSON_BODY, signed));
        assert!(!verifies("12345", "https://mycompany.com/", JSON_PATH, false, b"{}", signed), "another body");
        assert!(!verifies("12345", "https://mycompany.com/", PATH, false, JSON_BODY, signed), "no hash");
    }

    #[test]
    fn the_path_of_the_public_url_stands_before_that_of_the_request() {
        let url = "https://example.com/notify/".parse().unwrap();
        let callback = Callback { public_url: &url, path: "/webhooks/twilio?delivery=1", is_form: true, body: b"" };
        assert_eq!(
            callback.urls(),
            [
                "https://example.com/notify/webhooks/twilio?delivery=1".to_owned(),
                "https://example.com:443/notify/webhooks/twilio?delivery=1".to_owned(),
            ]
        );
    }

    fn events(path: &str, is_form: bool, body: &[u8]) -> Result<Vec<ProviderEvent>, Malformed> {
        let public_url = "https://example.com/".parse().unwrap();
        Callback { public_url: &public_url, path, is_form, body }.events()
    }

    fn report(path: &str, body: &str) -> Option<Report> {
        let events = events(path, true, body.as_bytes()).unwrap();
        match provider_events::meaning(EventSource::Twilio, &events.first()?.body, clock::now()) {
            Meaning::Report(report) => Some(report),
            _ => None,
        }
    }

    #[test]
    fn each_status_means_what_twilio_says() {
        let id = DeliveryId::generate();
        let path = format!("/webhooks/twilio?delivery={id}");
        let of = |status: &str| report(&path, &format!("MessageSid=SM1&MessageStatus={status}&To=%2B4915112345678"));
        for (status, kind) in [
            ("queued", EventKind::Sent),
            ("sent", EventKind::Sent),
            ("delivered", EventKind::Delivered),
            ("read", EventKind::Read),
            ("undelivered", EventKind::Failed),
            ("failed", EventKind::Failed),
            ("canceled", EventKind::Failed),
        ] {
            let found = of(status).unwrap();
            assert_eq!((found.kind, found.delivery, found.references), (Some(kind), Some(id), vec!["SM1".to_owned()]));
            assert_eq!(found.address, AddressNews::None);
        }
        assert_eq!((of("received"), of("nonsense")), (None, None));
        for code in DEAD {
            let found = report(&path, &format!("MessageSid=SM1&MessageStatus=undelivered&ErrorCode={code}")).unwrap();
            assert_eq!(found.address, AddressNews::Suppress(Scope::All, Reason::AddressDead), "{code}");
            assert_eq!(found.detail, Some(format!("the number does not take messages ({code})")));
        }
        let unreachable = report(&path, "MessageSid=SM1&MessageStatus=undelivered&ErrorCode=30003").unwrap();
        assert_eq!(unreachable.address, AddressNews::None, "a phone that is switched off is not dead");
    }

    #[test]
    fn a_callback_is_one_event_and_keeps_no_number() {
        let form = b"MessageSid=SM1&MessageStatus=sent&To=%2B4915112345678&Body=secret";
        let first = events("/x", true, form).unwrap();
        let text = String::from_utf8_lossy(&first[0].body).into_owned();
        assert!(!text.contains("4915") && !text.contains("secret"), "{text}");
        assert_eq!(first, events("/x", true, form).unwrap());
        let next = events("/x", true, b"MessageSid=SM1&MessageStatus=delivered").unwrap();
        assert_ne!(first[0].dedup, next[0].dedup);
        assert_eq!(
            events("/x", false, br#"{"MessageSid":"SM1","MessageStatus":"sent","ErrorCode":0}"#).map(|t| t.len()),
            Ok(1)
        );
        for (is_form, garbage) in [(true, &b"a=b"[..]), (true, b""), (false, b"["), (false, b"{}")] {
            assert_eq!(events("/x", is_form, garbage), Err(Malformed));
        }
    }
}
