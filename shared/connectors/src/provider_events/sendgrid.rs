//! SendGrid's Event Webhook: an ECDSA signature (P-256, SHA-256) over the timestamp header and the raw body.

use chrono::{DateTime, Utc};
use domain::{
    EventKind, EventSource,
    contract::provider::DELIVERY_TAG,
    p256::PublicKey,
    suppression::{SuppressionReason as Reason, SuppressionScope as Scope},
};
use serde_json::{Value, value::RawValue};

use super::{
    AddressNews, Malformed, Meaning, ProviderEvent, Report, detail, id_of_mail, is_timely, moment, own_id,
    provider_event,
};

/// The signature: base64 of DER.
pub const SIGNATURE: &str = "x-twilio-email-event-webhook-signature";
/// The time of the signature, in seconds since 1970.
pub const TIMESTAMP: &str = "x-twilio-email-event-webhook-timestamp";

/// Reasons of a drop that apply to every mail to the address.
const DEAD: &[&str] = &["bounced address", "invalid", "invalid address", "invalid email address"];

/// Whether the headers are a valid signature of the body now.
pub fn verifies(key: &PublicKey, signature: &str, timestamp: &str, body: &[u8], now: DateTime<Utc>) -> bool {
    let made_at = timestamp.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let signed = || [timestamp.as_bytes(), body].concat();
    made_at.is_some_and(|at| is_timely(at, now)) && key.verifies(&signed(), signature)
}

/// The events of a body, which is an array of them.
pub fn split(body: &[u8]) -> Result<Vec<ProviderEvent>, Malformed> {
    let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(|_| Malformed)?;
    events.into_iter().map(one).collect()
}

fn one(event: &RawValue) -> Result<ProviderEvent, Malformed> {
    let value: Value = serde_json::from_str(event.get()).map_err(|_| Malformed)?;
    if !value.is_object() {
        return Err(Malformed);
    }
    let id = value.get("sg_event_id").and_then(Value::as_str).filter(|id| !id.is_empty());
    let identity = id.unwrap_or(event.get()).as_bytes();
    Ok(provider_event(EventSource::Sendgrid, &[b"sendgrid", identity], event.get().as_bytes().to_vec()))
}

pub(super) fn meaning(event: &Value, received_at: DateTime<Utc>) -> Option<Meaning> {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let (kind, said, address) = match text("event")? {
        "delivered" => (Some(EventKind::Delivered), None, AddressNews::Works),
        "bounce" => match text("type") {
            // A block concerns this mail, not the address.
            Some("blocked") => bounced("the receiver blocked the mail", text("status"), AddressNews::Weak),
            _ => bounced(
                "the address does not take mail",
                text("status"),
                AddressNews::Suppress(Scope::All, Reason::HardBounce),
            ),
        },
        // Some accounts use this name for a block.
        "blocked" => bounced("the receiver blocked the mail", text("status"), AddressNews::Weak),
        "dropped" => {
            let is_dead =
                text("reason").is_some_and(|reason| DEAD.contains(&reason.trim().to_ascii_lowercase().as_str()));
            let news = if is_dead { AddressNews::Suppress(Scope::All, Reason::HardBounce) } else { AddressNews::None };
            (Some(EventKind::Failed), detail("SendGrid dropped the mail", None), news)
        }
        "open" => (Some(EventKind::Opened), None, AddressNews::None),
        "click" => (Some(EventKind::Clicked), None, AddressNews::None),
        "spamreport" => (Some(EventKind::Complained), None, AddressNews::Suppress(Scope::Marketing, Reason::Complaint)),
        "unsubscribe" => (None, None, AddressNews::Suppress(Scope::Marketing, Reason::Unsubscribed)),
        // Still on its way: `processed` and `deferred`.
        _ => return None,
    };
    let at = event.get("timestamp").and_then(Value::as_i64).and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    Some(Meaning::Report(Report {
        kind,
        at: moment(at, received_at),
        delivery: text(DELIVERY_TAG).and_then(own_id).or_else(|| text("smtp-id").and_then(id_of_mail)),
        references: text("sg_message_id").map(names).unwrap_or_default(),
        detail: said,
        address,
    }))
}

/// The possible ids in the answer to the call for a mail whose events name it `id`: the parts of `id` up to a dot, most
/// likely the first.
fn names(id: &str) -> Vec<String> {
    const PARTS_MAX: usize = 6;
    let ends = id.match_indices('.').map(|(at, _)| at).chain([id.len()]).take(PARTS_MAX);
    ends.filter_map(|end| id.get(..end)).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn bounced(what: &str, code: Option<&str>, address: AddressNews) -> (Option<EventKind>, Option<String>, AddressNews) {
    (Some(EventKind::Bounced), detail(what, code), address)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;
    use crate::provider_events;
    use domain::DeliveryId;

    // The test vector of SendGrid's own library.
    const PUBLIC_KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g==";
    const OTHER_KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqTxd43gyp8IOEto2LdIfjRQrIbsd4SXZkLW6jDutdhXSJCWHw8REntlo7aNDthvj+y7GjUuFDb/R1NGe1OPzpA==";
    const SIGNED: &str =
        "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM=";
    const OTHER_SIGNED: &str =
        "MEUCIQCtIHJeH93Y+qpYeWrySphQgpNGNr/U+UyUlBkU6n7RAwIgJTz2C+8a8xonZGi6BpSzoQsbVRamr2nlxFDWYNH3j/0=";
    const AT: &str = "1600112502";
    const BODY: &[u8] = b"[{\"email\":\"hello@world.com\",\"event\":\"dropped\",\"reason\":\"Bounced Address\",\"sg_event_id\":\"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA\",\"sg_message_id\":\"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0\",\"smtp-id\":\"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>\",\"timestamp\":1600112492}]\r\n";

    fn key() -> PublicKey {
        PublicKey::parse(PUBLIC_KEY).unwrap()
    }

    fn then() -> DateTime<Utc> {
        DateTime::from_timestamp(1_600_112_502, 0).unwrap()
    }

    #[test]
    fn the_published_vector_holds_and_its_twins_do_not() {
        assert!(verifies(&key(), SIGNED, AT, BODY, then()));
        assert!(!verifies(&PublicKey::parse(OTHER_KEY).unwrap(), SIGNED, AT, BODY, then()), "another key");
        assert!(!verifies(&key(), OTHER_SIGNED, AT, BODY, then()), "another signature");
        assert!(!verifies(&key(), SIGNED, "1600112503", BODY, then()), "another time");
        assert!(!verifies(&key(), SIGNED, "timestamp", BODY, then()), "no time");
        assert!(!verifies(&key(), SIGNED, AT, &BODY[..BODY.len() - 2], then()), "the line end is signed too");
        for at in [0, 40, BODY.len() - 1] {
            let mut changed = BODY.to_vec();
            changed[at] ^= 1;
            assert!(!verifies(&key(), SIGNED, AT, &changed, then()), "byte {at} flipped");
        }
        for signature in ["", "=", "AAAA", &SIGNED[..40]] {
            assert!(!verifies(&key(), signature, AT, BODY, then()), "{signature}");
        }
    }

    #[test]
    fn a_signature_holds_for_a_day_and_not_from_the_future() {
        assert!(verifies(&key(), SIGNED, AT, BODY, then() + TimeDelta::hours(24)));
        assert!(!verifies(&key(), SIGNED, AT, BODY, then() + TimeDelta::hours(26)));
        assert!(!verifies(&key(), SIGNED, AT, BODY, then() - TimeDelta::minutes(11)));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "AAAA", "not base64", &PUBLIC_KEY[..60]] {
            assert!(PublicKey::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_body_is_split_into_events_and_a_repeat_is_the_same_event() {
        let first = split(BODY).unwrap();
        assert_eq!((first.len(), &first), (1, &split(BODY).unwrap()));
        let two = json!([{"event": "open", "sg_event_id": "a"}, {"event": "open", "sg_event_id": "b"}]).to_string();
        let two = split(two.as_bytes()).unwrap();
        assert_ne!(two.first().map(|told| told.dedup), two.last().map(|told| told.dedup));
        for garbage in [&b"{}"[..], b"[1]", b"", b"\xff", b"[{}"] {
            assert_eq!(split(garbage), Err(Malformed));
        }
        assert_eq!(split(b"[]"), Ok(Vec::new()));
    }

    fn report(event: &Value) -> Option<Report> {
        match provider_events::meaning(EventSource::Sendgrid, event.to_string().as_bytes(), then()) {
            Meaning::Report(report) => Some(report),
            _ => None,
        }
    }

    #[test]
    fn each_event_means_what_sendgrid_says() {
        let hard = || AddressNews::Suppress(Scope::All, Reason::HardBounce);
        for (event, kind, address) in [
            (json!({"event": "delivered"}), Some(EventKind::Delivered), AddressNews::Works),
            (json!({"event": "bounce", "type": "bounce"}), Some(EventKind::Bounced), hard()),
            (json!({"event": "bounce"}), Some(EventKind::Bounced), hard()),
            (json!({"event": "bounce", "type": "blocked"}), Some(EventKind::Bounced), AddressNews::Weak),
            (json!({"event": "dropped", "reason": "Bounced Address"}), Some(EventKind::Failed), hard()),
            (json!({"event": "dropped", "reason": "Unsubscribed Address"}), Some(EventKind::Failed), AddressNews::None),
            (json!({"event": "open"}), Some(EventKind::Opened), AddressNews::None),
            (json!({"event": "click"}), Some(EventKind::Clicked), AddressNews::None),
            (
                json!({"event": "spamreport"}),
                Some(EventKind::Complained),
                AddressNews::Suppress(Scope::Marketing, Reason::Complaint),
            ),
            (json!({"event": "unsubscribe"}), None, AddressNews::Suppress(Scope::Marketing, Reason::Unsubscribed)),
        ] {
            let found = report(&event).unwrap();
            assert_eq!((found.kind, found.address), (kind, address), "{event}");
        }
        for event in [json!({"event": "processed"}), json!({"event": "deferred"}), json!({"event": 1}), json!({})] {
            assert_eq!(report(&event), None, "{event}");
        }
    }

    #[test]
    fn a_delivery_is_named_by_our_id_and_by_theirs() {
        let id = DeliveryId::generate();
        let event = json!({"event": "bounce", DELIVERY_TAG: id.to_string(), "status": "5.1.1", "timestamp": 1_600_112_492,
            "reason": "550 no such user ada@example.com", "sg_message_id": "abc.dfd.filter-1.0"});
        let found = report(&event).unwrap();
        assert_eq!(found.delivery, Some(id));
        assert_eq!(found.references, ["abc", "abc.dfd", "abc.dfd.filter-1", "abc.dfd.filter-1.0"]);
        assert_eq!(found.detail.as_deref(), Some("the address does not take mail (5.1.1)"));
        assert_eq!(found.at.timestamp(), 1_600_112_492);
        let by_mail = json!({"event": "open", "smtp-id": format!("<{id}@example.com>")});
        assert_eq!(report(&by_mail).unwrap().delivery, Some(id));
        let ahead = json!({"event": "open", "timestamp": 4_000_000_000_u32});
        assert_eq!(report(&ahead).unwrap().at, then());
    }
}
