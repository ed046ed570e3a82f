//! Reads messages of the log queue event by event, because a newer worker may use values that this version does not
//! know.

use deliveries::unread_events::UnreadEvent;
use domain::contract::{
    Event, EventBatch,
    wire::{VERSION, Wire},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The content of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// The events that this version can read.
    pub events: Vec<Event>,
    /// The events that this version cannot read.
    pub unread: Vec<UnreadEvent>,
}

/// A batch of any version.
#[derive(Deserialize)]
struct Envelope<'a> {
    v: u64,
    #[serde(borrow, default)]
    events: Option<Vec<&'a RawValue>>,
}

/// The fields that every version of an event has.
#[derive(Deserialize)]
struct EventKey {
    delivery: Uuid,
    run: i32,
}

/// Reads a message. Fails if it is not a batch of events of any version.
pub fn read(body: &[u8]) -> Result<Incoming, String> {
    if let Ok(EventBatch { v: VERSION, events }) = serde_json::from_slice(body) {
        return Ok(Incoming { events, unread: Vec::new() });
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(body).map_err(|error| format!("no batch of events: {error}"))?;
    if envelope.v != u64::from(VERSION) {
        tracing::warn!(version = envelope.v, "a batch of events is of another version; it is kept");
        return Ok(Incoming { events: Vec::new(), unread: vec![UnreadEvent { about: None, body: body.to_vec() }] });
    }
    let events = envelope.events.ok_or_else(|| format!("no events in {}", EventBatch::TYPE))?;
    Ok(events.into_iter().fold(Incoming::default(), Incoming::with))
}

/// True if a body is a batch of events of any version.
pub fn is_batch(body: &[u8]) -> bool {
    serde_json::from_slice::<Envelope<'_>>(body).is_ok_and(|envelope| envelope.events.is_some())
}

impl Incoming {
    fn with(mut self, raw: &RawValue) -> Self {
        match serde_json::from_str(raw.get()) {
            Ok(event) => self.events.push(event),
            Err(error) => self.unread.push(unread(raw, &error)),
        }
        self
    }
}

fn unread(raw: &RawValue, error: &serde_json::Error) -> UnreadEvent {
    let about: Option<EventKey> = serde_json::from_str(raw.get()).ok();
    let delivery = about.as_ref().map(|about| about.delivery);
    tracing::warn!(delivery.id = ?delivery, %error, "an event cannot be read by this version; it is kept");
    let body = format!(r#"{{"v":{VERSION},"events":[{}]}}"#, raw.get()).into_bytes();
    UnreadEvent { about: about.map(|about| (about.delivery, about.run)), body }
}

#[cfg(test)]
mod tests {
    use domain::{Channel, DeliveryId, EventKind, TenantId, clock};
    use serde_json::json;

    use super::*;

    fn event() -> Event {
        let about = (TenantId(1), DeliveryId::generate(), 3, Channel::Sms);
        Event::report(about, EventKind::Delivered, clock::now())
    }

    #[test]
    fn an_event_with_an_unknown_word_is_kept_and_its_neighbours_are_read() {
        let (known, newer) = (event(), event());
        let mut raw = serde_json::to_value(&newer).unwrap();
        raw["reason"] = json!("from_the_future");
        let incoming = read(json!({"v": 1, "events": [known, raw], "more": 1}).to_string().as_bytes()).unwrap();
        assert_eq!(incoming.events, [known]);
        let [unread] = &incoming.unread[..] else { panic!("{incoming:?}") };
        assert_eq!(unread.about, Some((newer.delivery.0, 3)));
        let alone: serde_json::Value = serde_json::from_slice(&unread.body).unwrap();
        assert_eq!(alone, json!({"v": 1, "events": [raw]}));
    }

    #[test]
    fn a_batch_of_another_version_is_kept_whole_and_garbage_is_not() {
        assert_eq!(read(br#"{"v":1,"events":[]}"#), Ok(Incoming::default()));
        let newer = br#"{"v":2,"facts":[]}"#;
        assert_eq!(read(newer).unwrap().unread, [UnreadEvent { about: None, body: newer.to_vec() }]);
        for garbage in [&b"{"[..], b"\xff", br#"{"v":1}"#, br#"{"events":[]}"#, b"[]"] {
            assert!(read(garbage).is_err(), "{garbage:?}");
        }
        assert!(is_batch(br#"{"v":1,"events":[{}]}"#) && !is_batch(br#"{"channel":"sms"}"#) && !is_batch(b"{"));
    }
}
