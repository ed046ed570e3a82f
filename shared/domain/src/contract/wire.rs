//! Bodies on the broker. Versioned, thin, and without an address, content or secret (invariant P).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    Channel, DeadReason, DeliveryId, EventKind, FailoverRound, OutcomeClass, ProviderName, Reason, State, TenantId,
    crypto::seal::Fingerprint,
};

/// The version every body carries; a reader refuses any other.
pub const VERSION: u8 = 1;

/// A body on the broker, with the AMQP `type` property that names it.
pub trait Wire: Serialize + for<'de> Deserialize<'de> {
    /// The AMQP `type` property, such as `work.v1`.
    const TYPE: &'static str;
}

/// "This delivery may be sent now": a hint. Only a won claim allows the send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkItem {
    /// Version.
    pub v: u8,
    /// The delivery.
    pub d: DeliveryId,
    /// The run that the row must have for the claim to succeed.
    pub r: i32,
}

impl Wire for WorkItem {
    const TYPE: &'static str = "work.v1";
}

impl WorkItem {
    /// The hint for `delivery` at `run`.
    pub const fn new(delivery: DeliveryId, run: i32) -> Self {
        Self { v: VERSION, d: delivery, r: run }
    }
}

/// One call to one provider, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The provider that was called.
    pub provider: ProviderName,
    /// How it ended.
    pub outcome: OutcomeClass,
    /// The provider's status or reply code, or a short word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One clause on the failure; it holds no address and no content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long the call took.
    pub duration_ms: i32,
    /// The provider's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_ref: Option<String>,
}

/// A fact for the delivery log, and its consequence. Its identity is (delivery, run, kind).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The tenant of the delivery.
    pub tenant: TenantId,
    /// The delivery.
    pub delivery: DeliveryId,
    /// The run that made it. A row at another run does not change.
    pub run: i32,
    /// The delivery's channel, for the counters.
    pub channel: Channel,
    /// The kind of the event.
    pub kind: EventKind,
    /// When.
    pub at: DateTime<Utc>,
    /// The provider call behind it, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptRecord>,
    /// The delivery's next state.
    pub state: State,
    /// With state `retrying`: milliseconds to the next try, from the time when the log writer applies the event. With
    /// state `scheduled`: milliseconds from `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<i64>,
    /// One clause for people, if no provider call gives one; it holds no address and no content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why it waits or ended without a provider call: a word of a closed list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// With state `dead`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<DeadReason>,
    /// Whether the attempt counts towards the channel's maximum.
    pub spent: bool,
    /// The providers that were tried since the last pause, for the next try.
    #[serde(default, skip_serializing_if = "FailoverRound::is_empty")]
    pub round: FailoverRound,
    /// Whether a worker died while it held the delivery. Such an event counts only while the row is `sending`: a real
    /// outcome wins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub crash: bool,
    /// Whether the provider reported it after the call (arrived, read, bounced). A state never moves backwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub report: bool,
}

impl Event {
    /// A provider's report about a delivery, at the run that made the call.
    pub const fn report(about: (TenantId, DeliveryId, i32, Channel), kind: EventKind, at: DateTime<Utc>) -> Self {
        let (tenant, delivery, run, channel) = about;
        // No other kind without a state is reported; a report shows at least that the message arrived.
        let state = match kind.info().shows {
            Some(state) => state,
            None => State::Delivered,
        };
        Self {
            tenant,
            delivery,
            run,
            channel,
            kind,
            at,
            attempt: None,
            state,
            delay_ms: None,
            detail: None,
            reason: None,
            dead: None,
            spent: true,
            round: FailoverRound::NEW,
            crash: false,
            report: true,
        }
    }
}

/// Many events in one AMQP message: one publish and one confirm for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventBatch {
    /// Version.
    pub v: u8,
    /// The events, at most [`EVENTS_MAX`].
    pub events: Vec<Event>,
}

/// Events in one AMQP message: about 20 kB, far below any broker limit.
pub const EVENTS_MAX: usize = 64;

impl Wire for EventBatch {
    const TYPE: &'static str = "events.v1";
}

impl EventBatch {
    /// A batch of `events`.
    pub const fn new(events: Vec<Event>) -> Self {
        Self { v: VERSION, events }
    }
}

/// "Look into these inboxes": there is something new. It is a hint: a listener that misses it looks by itself later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboxHints {
    /// Version.
    pub v: u8,
    /// The inboxes, by the first bytes of their persons' fingerprints. Empty: any inbox.
    pub p: Vec<InboxHint>,
}

/// The first bytes of a person's fingerprint, in hexadecimal: enough to find the right sockets, not enough to identify
/// the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InboxHint(pub u64);

/// Inboxes in one AMQP message: under 5 kB.
pub const HINTS_MAX: usize = 256;

impl Wire for InboxHints {
    const TYPE: &'static str = "inbox.v1";
}

impl InboxHints {
    /// Hints at these inboxes.
    pub const fn new(people: Vec<InboxHint>) -> Self {
        Self { v: VERSION, p: people }
    }
}

impl InboxHint {
    /// The hint for the inbox of the person with this fingerprint.
    pub fn of(fingerprint: &Fingerprint) -> Self {
        Self(u64::from_be_bytes(fingerprint.first_chunk().copied().unwrap_or_default()))
    }
}

impl Serialize for InboxHint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for InboxHint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_body_is_this_and_nothing_else() {
        let id = "0191d8a0-0000-7000-8000-000000000001".parse().unwrap();
        let body = serde_json::to_string(&WorkItem::new(id, 3)).unwrap();
        assert_eq!(body, r#"{"v":1,"d":"0191d8a0-0000-7000-8000-000000000001","r":3}"#);
        assert!(serde_json::from_str::<WorkItem>(r#"{"v":1,"d":"x","r":3}"#).is_err());
    }

    #[test]
    fn a_hint_at_an_inbox_is_a_number_that_names_nobody() {
        let mut fingerprint = [0xff; 32];
        fingerprint[0] = 0;
        let hints = InboxHints::new(vec![InboxHint::of(&fingerprint)]);
        let body = serde_json::to_string(&hints).unwrap();
        assert_eq!(body, r#"{"v":1,"p":["00ffffffffffffff"]}"#);
        assert_eq!(serde_json::from_str::<InboxHints>(&body).unwrap(), hints);
    }
}
