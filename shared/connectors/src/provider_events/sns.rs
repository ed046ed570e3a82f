//! Messages of Amazon SNS over HTTP, which carry the events of SES.
//!
//! Every AWS account can get messages signed by SNS with the same certificates, so a signature shows only that SNS sent
//! the message. The topic, which must be one of `SNS_TOPIC_ARNS`, shows that it is ours.

use std::sync::Arc;

use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use domain::{
    EventKind, EventSource,
    contract::provider::DELIVERY_TAG,
    suppression::{SuppressionReason as Reason, SuppressionScope as Scope},
};
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use x509_parser::pem::Pem;

use super::{
    AddressNews, Malformed, Meaning, ProviderEvent, Report, detail, id_of_mail, is_timely, moment, own_id,
    provider_event,
};

/// The header of our mails with the id. SES returns it if it is set to include headers.
const DELIVERY_HEADER: &str = "x-posthaste-delivery-id";

/// A message of SNS.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Envelope {
    /// `Notification`, `SubscriptionConfirmation` or `UnsubscribeConfirmation`.
    pub r#type: String,
    /// The id of the message.
    pub message_id: String,
    /// The topic.
    pub topic_arn: String,
    /// The content of the message.
    pub message: String,
    /// When it was published.
    pub timestamp: String,
    /// The hash of the signature: 1 is SHA-1, 2 is SHA-256.
    pub signature_version: String,
    /// The signature, in base64.
    pub signature: String,
    /// Where the certificate is.
    #[serde(rename = "SigningCertURL", alias = "SigningCertUrl")]
    pub signing_cert_url: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default, rename = "SubscribeURL", alias = "SubscribeUrl")]
    subscribe_url: Option<String>,
    #[serde(default)]
    token: Option<String>,
}

impl Envelope {
    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(body).map_err(|_| Malformed)
    }

    /// Whether the certificate's key signed it, and the certificate is valid now.
    pub fn is_signed_by(&self, certificate: &Certificate, now: DateTime<Utc>) -> bool {
        let published = DateTime::parse_from_rfc3339(&self.timestamp).map(|at| at.to_utc());
        let key = match self.signature_version.as_str() {
            "1" => &certificate.sha1,
            "2" => &certificate.sha256,
            _ => return false,
        };
        let (Some(text), Ok(signature)) = (self.signed_text(), STANDARD.decode(&self.signature)) else { return false };
        published.is_ok_and(|at| is_timely(at, now)) && key.verify_sig(text.as_bytes(), &signature).is_ok()
    }

    /// Whether it is signed with SHA-1. A second text with the same hash may become possible.
    pub fn uses_sha1(&self) -> bool {
        self.signature_version == "1"
    }

    /// Names and values, a line each, in alphabetical order. `None`: a signed field is missing.
    fn signed_text(&self) -> Option<String> {
        let (common, id) = (("Message", self.message.as_str()), ("MessageId", self.message_id.as_str()));
        let (time, topic) = (("Timestamp", self.timestamp.as_str()), ("TopicArn", self.topic_arn.as_str()));
        let kind = ("Type", self.r#type.as_str());
        let lines = match self.r#type.as_str() {
            "Notification" => {
                let subject = self.subject.as_deref().map(|subject| ("Subject", subject));
                [common, id].into_iter().chain(subject).chain([time, topic, kind]).collect::<Vec<_>>()
            }
            "SubscriptionConfirmation" | "UnsubscribeConfirmation" => {
                let url = ("SubscribeURL", self.subscribe_url.as_deref()?);
                vec![common, id, url, time, ("Token", self.token.as_deref()?), topic, kind]
            }
            _ => return None,
        };
        Some(lines.iter().map(|(name, value)| format!("{name}\n{value}\n")).collect())
    }

    /// The URL of its certificate, if it is at SNS itself.
    pub fn certificate_url(&self) -> Option<Url> {
        let url: Url = self.signing_cert_url.parse().ok()?;
        (is_sns(&url) && url.path().ends_with(".pem")).then_some(url)
    }

    /// The one event it is.
    pub fn events(&self, body: &[u8]) -> Vec<ProviderEvent> {
        vec![provider_event(
            EventSource::Ses,
            &[b"sns", self.message_id.as_bytes(), self.r#type.as_bytes()],
            body.to_vec(),
        )]
    }
}

/// Whether a URL belongs to SNS, with TLS and the usual port: `sns.<region>.amazonaws.com`, in China followed by `.cn`.
fn is_sns(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let region = host.strip_prefix("sns.").map(|rest| rest.strip_suffix(".cn").unwrap_or(rest));
    let region = region.and_then(|rest| rest.strip_suffix(".amazonaws.com")).unwrap_or_default();
    let is_region = region.len() >= 3 && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    url.scheme() == "https" && is_region && is_plain
}

/// The key in a certificate, for either hash.
#[derive(Clone, Debug)]
pub struct Certificate {
    sha1: Arc<ParsedPublicKey>,
    sha256: Arc<ParsedPublicKey>,
    holds: (i64, i64),
}

impl Certificate {
    /// Reads a certificate in PEM.
    pub fn parse(pem: &[u8]) -> Option<Self> {
        let pem = Pem::iter_from_buffer(pem).find_map(|pem| pem.ok().filter(|pem| pem.label == "CERTIFICATE"))?;
        let certificate = pem.parse_x509().ok()?;
        let spki = certificate.public_key().raw;
        let key = |hash: &'static dyn VerificationAlgorithm| ParsedPublicKey::new(hash, spki).ok().map(Arc::new);
        let validity = certificate.validity();
        Some(Self {
            sha1: key(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY)?,
            sha256: key(&RSA_PKCS1_2048_8192_SHA256)?,
            holds: (validity.not_before.timestamp(), validity.not_after.timestamp()),
        })
    }

    /// Whether the certificate is valid at this time.
    pub fn holds_at(&self, now: DateTime<Utc>) -> bool {
        (self.holds.0..=self.holds.1).contains(&now.timestamp())
    }
}

pub(super) fn meaning(envelope: &Value, received_at: DateTime<Utc>) -> Option<Meaning> {
    let text = |name: &str| envelope.get(name).and_then(Value::as_str);
    match text("Type")? {
        "SubscriptionConfirmation" => {
            let url: Url = text("SubscribeURL").or_else(|| text("SubscribeUrl"))?.parse().ok()?;
            is_sns(&url).then_some(Meaning::Subscribe(url))
        }
        "Notification" => of_ses(&serde_json::from_str(text("Message")?).ok()?, received_at),
        _ => None,
    }
}

fn of_ses(event: &Value, received_at: DateTime<Utc>) -> Option<Meaning> {
    let part = |name: &str| event.get(name).unwrap_or(&Value::Null);
    let name = part("eventType").as_str().or_else(|| part("notificationType").as_str())?;
    let (own, kind, said, address) = match name {
        "Send" => ("send", EventKind::Sent, None, AddressNews::None),
        "Delivery" => ("delivery", EventKind::Delivered, None, AddressNews::Works),
        "Bounce" => {
            let code = status(part("bounce"));
            match part("bounce").get("bounceType").and_then(Value::as_str) {
                Some("Permanent") => (
                    "bounce",
                    EventKind::Bounced,
                    detail("the address does not take mail", code),
                    AddressNews::Suppress(Scope::All, Reason::HardBounce),
                ),
                _ => ("bounce", EventKind::Bounced, detail("the mail came back", code), AddressNews::Weak),
            }
        }
        "Complaint" => {
            ("complaint", EventKind::Complained, None, AddressNews::Suppress(Scope::Marketing, Reason::Complaint))
        }
        "Reject" => ("reject", EventKind::Failed, detail("SES rejected the mail", None), AddressNews::None),
        "Rendering Failure" => {
            ("failure", EventKind::Failed, detail("SES could not render it", None), AddressNews::None)
        }
        "Open" => ("open", EventKind::Opened, None, AddressNews::None),
        "Click" => ("click", EventKind::Clicked, None, AddressNews::None),
        // Still on its way: `DeliveryDelay`.
        _ => return None,
    };
    let told_at = part(own).get("timestamp").and_then(Value::as_str);
    let at = told_at.and_then(|at| DateTime::parse_from_rfc3339(at).ok()).map(|at| at.to_utc());
    let mail = part("mail");
    Some(Meaning::Report(Report {
        kind: Some(kind),
        at: moment(at, received_at),
        delivery: delivery(mail),
        references: mail.get("messageId").and_then(Value::as_str).map(str::to_owned).into_iter().collect(),
        detail: said,
        address,
    }))
}

/// The status of the first recipient; our mails have one.
fn status(bounce: &Value) -> Option<&str> {
    bounce.get("bouncedRecipients")?.get(0)?.get("status")?.as_str()
}

/// Our id: in a tag, in our header, or in the original `Message-ID`, before SES replaced it.
fn delivery(mail: &Value) -> Option<domain::DeliveryId> {
    let tag = || mail.get("tags")?.get(DELIVERY_TAG)?.get(0)?.as_str().and_then(own_id);
    let header = |name: &str| {
        let headers = mail.get("headers")?.as_array()?;
        let named = |header: &&Value| {
            header.get("name").and_then(Value::as_str).is_some_and(|own| own.eq_ignore_ascii_case(name))
        };
        headers.iter().find(named)?.get("value")?.as_str()
    };
    tag().or_else(|| header(DELIVERY_HEADER).and_then(own_id)).or_else(|| header("message-id").and_then(id_of_mail))
}

#[cfg(test)]
mod tests;
