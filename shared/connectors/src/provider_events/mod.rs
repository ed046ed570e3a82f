//! Reports of providers after a call: verifies them and reads their meaning.
//!
//! There is one file per vendor. It verifies the raw request, splits it into events that are stored one by one, and
//! reads a stored event. Our own ids inside an event are trusted only because the signature covers them.

pub mod sendgrid;
pub mod sns;
pub mod tracking;
pub mod twilio;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, TimeDelta, Utc};
use deliveries::provider_events::ProviderEvent;
use domain::{
    DeliveryId, EventKind, EventSource,
    suppression::{SuppressionReason, SuppressionScope},
};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

/// The largest age of a signed time. Vendors retry for a day; a request that is repeated within that time is recognized
/// by the ids of its events.
const AGE_MAX: TimeDelta = TimeDelta::hours(25);
/// Clocks differ.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(10);

/// An event with the SHA-256 of its identity.
fn provider_event(source: EventSource, identity: &[&[u8]], body: Vec<u8>) -> ProviderEvent {
    let mut dedup = [0; 32];
    // The length of each part keeps apart parts that differ only in where one ends.
    let framed: Vec<u8> =
        identity.iter().flat_map(|part| [part.len().to_be_bytes().as_slice(), part].concat()).collect();
    dedup.copy_from_slice(digest(&SHA256, &framed).as_ref());
    ProviderEvent { source, dedup, body }
}

/// A verified request that is not of the vendor's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not what this provider sends")]
pub struct Malformed;

/// The content of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// News of a delivery.
    Report(Report),
    /// The vendor asks to confirm a subscription: fetching this URL confirms it.
    Subscribe(Url),
    /// Nothing.
    Nothing,
}

/// News of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The event for the delivery; `None`: it only affects the address.
    pub kind: Option<EventKind>,
    /// When.
    pub at: DateTime<Utc>,
    /// The delivery, if the event carries our own id.
    pub delivery: Option<DeliveryId>,
    /// The possible ids of the message at the provider: one of these.
    pub references: Vec<String>,
    /// One clause for people; no address, no content.
    pub detail: Option<String>,
    /// The consequence for the address.
    pub address: AddressNews,
}

/// The consequence of an event for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressNews {
    /// Nothing.
    None,
    /// It works.
    Works,
    /// It did not accept the message this time.
    Weak,
    /// The address is suppressed for these notifications from now on.
    Suppress(SuppressionScope, SuppressionReason),
}

/// Reads a stored event. An event that cannot be read has no meaning: it was verified, and its sender could not correct it.
pub fn meaning(source: EventSource, body: &[u8], received_at: DateTime<Utc>) -> Meaning {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return Meaning::Nothing };
    let found = match source {
        EventSource::Sendgrid => sendgrid::meaning(&value, received_at),
        EventSource::Twilio => twilio::meaning(&value, received_at),
        EventSource::Ses => sns::meaning(&value, received_at),
        EventSource::Tracking => tracking::meaning(&value, received_at),
    };
    found.unwrap_or(Meaning::Nothing)
}

/// Whether a signed time is neither too old nor from the future.
fn is_timely(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now - at <= AGE_MAX && at - now <= AHEAD_MAX
}

/// A time that is not in the future: a vendor's clock never moves ours forward.
fn moment(at: Option<DateTime<Utc>>, received_at: DateTime<Utc>) -> DateTime<Utc> {
    at.unwrap_or(received_at).min(received_at)
}

/// One of our delivery ids. They are ordered by time; any other UUID is not ours.
fn own_id(text: &str) -> Option<DeliveryId> {
    let id: Uuid = text.trim().parse().ok()?;
    (id.get_version_num() == 7).then_some(DeliveryId(id))
}

/// Our id in a `Message-ID`: `<id@domain>`.
fn id_of_mail(text: &str) -> Option<DeliveryId> {
    own_id(text.trim().trim_start_matches('<').split_once('@')?.0)
}

/// A vendor's status, if it consists of digits, dots and at most a word.
fn plain_code(text: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=40).contains(&text.len()).then_some(text).filter(|text| text.chars().all(plain))
}

/// `what`, followed by the vendor's code.
fn detail(what: &str, code: Option<&str>) -> Option<String> {
    Some(match code.and_then(plain_code) {
        Some(code) => format!("{what} ({code})"),
        None => what.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_kind_of_id_is_taken_for_ours() {
        let id = DeliveryId::generate();
        assert_eq!(own_id(&id.to_string()), Some(id));
        assert_eq!(id_of_mail(&format!("<{id}@example.com>")), Some(id));
        assert_eq!(own_id("8e03978e-40d5-43e8-bc93-6894a57f9324"), None, "version 4");
        assert_eq!(id_of_mail("<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>"), None);
    }

    #[test]
    fn a_detail_never_carries_what_is_not_plainly_a_code() {
        assert_eq!(detail("bounced", Some("5.1.1")).as_deref(), Some("bounced (5.1.1)"));
        assert_eq!(detail("bounced", Some("550 <ada@example.com>")).as_deref(), Some("bounced"));
        assert_eq!(detail("bounced", None).as_deref(), Some("bounced"));
    }

    #[test]
    fn parts_of_an_identity_do_not_run_together() {
        let events = |parts: &[&[u8]]| provider_event(EventSource::Twilio, parts, Vec::new()).dedup;
        assert_ne!(events(&[b"ab", b"c"]), events(&[b"a", b"bc"]));
    }
}
