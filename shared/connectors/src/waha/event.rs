//! The events in WAHA's webhooks: the envelope, the identity of an event, and the meaning of a body.
//!
//! Events have WAHA's names or those of the seed documents; both are accepted.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use domain::{acceptance::Hash, contract::submission::parse_time, phone::number_of_chat, session::WORKING};
use records::wa_inbound::InboundContent;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use super::message_id;

/// The longest accepted id; ids of WhatsApp have some 60 bytes.
const ID_BYTES_MAX: usize = 512;
/// The longest name of an event or kind.
const NAME_BYTES_MAX: usize = 100;
/// Numbers above this are milliseconds: as seconds they would be after the year 5000.
const SECONDS_MAX: f64 = 1e11;
/// Events without an identity of their own count as the same within this many seconds.
const ALIKE_SECONDS: i64 = 10;

/// The envelope of every event.
#[derive(Deserialize)]
pub struct Envelope<'a> {
    /// Its id; versions before 2025 have none.
    #[serde(borrow, default)]
    pub id: Option<Cow<'a, str>>,
    /// The name of the event.
    #[serde(borrow)]
    pub event: Cow<'a, str>,
    /// The name of the session.
    #[serde(borrow)]
    pub session: Cow<'a, str>,
    /// When, in milliseconds.
    #[serde(borrow, default)]
    pub timestamp: Option<&'a RawValue>,
    /// The rest.
    #[serde(borrow, default)]
    pub payload: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Reads a body. The error is a clause for its sender.
    pub fn read(body: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(body).map_err(|_| "is not UTF-8".to_owned())?;
        let envelope: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let is_name = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if is_name(&envelope.event) { Ok(envelope) } else { Err("`event` is no name".to_owned()) }
    }

    /// SHA-256 of the event's identity: its id; else, for an event about a message, the message and its content; else
    /// the body. Only signed data counts: otherwise a captured webhook could be repeated with another header.
    pub fn dedup(&self, body: &[u8], now: DateTime<Utc>) -> Hash {
        #[derive(Deserialize)]
        struct Head {
            ack: Option<Value>,
            status: Option<Value>,
        }
        if let Some(id) = self.id.as_deref().filter(|id| !id.is_empty()) {
            return hash(&[b"id", id.as_bytes()]);
        }
        let topic = Topic::of(&self.event);
        let payload = self.payload.map(RawValue::get).unwrap_or_default();
        if matches!(topic, Topic::Message | Topic::Ack)
            && let Some(id) = serde_json::from_str::<Value>(payload).ok().and_then(|payload| message_id(&payload))
        {
            let head: Option<Head> = serde_json::from_str(payload).ok().filter(|_| topic == Topic::Ack);
            let level = head.map(|head| format!("{:?}/{:?}", head.ack, head.status)).unwrap_or_default();
            return hash(&[topic.word(), id.as_bytes(), level.as_bytes()]);
        }
        // A state can come back, and an old WAHA then sends exactly the same body.
        let is_dated = topic != Topic::State || self.timestamp.is_some();
        let moment = if is_dated { 0 } else { now.timestamp() / ALIKE_SECONDS };
        hash(&[b"body", &moment.to_be_bytes(), body])
    }
}

/// Each part follows its length, so two lists never hash alike.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&part.len().to_be_bytes());
        text.extend_from_slice(part);
    }
    digest(&SHA256, &text).as_ref().try_into().unwrap_or_default()
}

/// The topic of an event, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Message,
    Ack,
    State,
    Failure,
    Other,
}

impl Topic {
    fn of(event: &str) -> Self {
        match event {
            "message" | "message.any" | "message.text" | "message.image" | "message.document" | "message.video"
            | "message.audio" | "message.voice" | "message.sticker" | "message.location" | "message.contact" => {
                Self::Message
            }
            "message.ack" | "message.ack.group" | "message.status" => Self::Ack,
            "session.status" | "session.qr" | "session.failed" => Self::State,
            "api.error" => Self::Failure,
            _ => Self::Other,
        }
    }

    const fn word(self) -> &'static [u8] {
        match self {
            Self::Message => b"message",
            Self::Ack => b"ack",
            Self::State => b"state",
            Self::Failure => b"failure",
            Self::Other => b"other",
        }
    }
}

/// The progress of an outgoing message. A later state outranks an earlier one, except for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ack {
    /// WhatsApp refused it.
    Error,
    /// It is still with WAHA.
    Pending,
    /// WhatsApp has it.
    Server,
    /// The recipient's phone has it.
    Device,
    /// It was read.
    Read,
    /// It was listened to or watched.
    Played,
}

impl Ack {
    fn of(payload: &Value) -> Option<Self> {
        let number = payload.get("ack").and_then(Value::as_i64);
        let words = ["ackName", "status", "ack"].iter().filter_map(|name| payload.get(*name)?.as_str());
        number.and_then(Self::of_number).or_else(|| words.filter_map(Self::of_word).next())
    }

    const fn of_number(number: i64) -> Option<Self> {
        match number {
            -1 => Some(Self::Error),
            0 => Some(Self::Pending),
            1 => Some(Self::Server),
            2 => Some(Self::Device),
            3 => Some(Self::Read),
            4 => Some(Self::Played),
            _ => None,
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "error" | "failed" => Some(Self::Error),
            "pending" | "queued" => Some(Self::Pending),
            "server" | "sent" => Some(Self::Server),
            "device" | "delivered" => Some(Self::Device),
            "read" => Some(Self::Read),
            "played" => Some(Self::Played),
            _ => None,
        }
    }
}

/// A message from a person.
#[derive(Clone, Debug)]
pub struct FromPerson {
    /// Its id at WAHA.
    pub waha_id: String,
    /// The sender: E.164 if the number is known, else the chat id.
    pub sender: String,
    /// To whom: our number, or the group.
    pub recipient: String,
    /// `text`, `image`, …
    pub kind: String,
    /// The content.
    pub content: InboundContent,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// When it was sent, as written.
    pub raw_sent_at: String,
}

/// The echo of an outgoing message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromUs {
    /// Its id at WAHA.
    pub waha_id: String,
    /// The chat it went to.
    pub chat_id: String,
    /// Its text.
    pub body: String,
    /// Whether it was sent through WAHA's interface, and not typed on the phone.
    pub by_api: bool,
    /// When.
    pub sent_at: DateTime<Utc>,
}

/// The meaning of an event.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// A message from a person.
    Person(Box<FromPerson>),
    /// The echo of an outgoing message.
    Echo(FromUs),
    /// The progress of an outgoing message.
    Ack {
        /// The message.
        waha_id: String,
        /// How far.
        ack: Ack,
        /// When.
        at: DateTime<Utc>,
    },
    /// The session's state.
    State {
        /// In WAHA's words.
        state: String,
        /// The time of the change, by WAHA's clock.
        at: DateTime<Utc>,
    },
    /// WAHA had an error.
    Failure,
    /// Nothing that is used here.
    Nothing,
}

/// The meaning of a body that arrived at `came_at`. An unreadable body has none.
pub fn meaning(body: &[u8], came_at: DateTime<Utc>) -> Meaning {
    let Ok(envelope) = Envelope::read(body) else { return Meaning::Nothing };
    let payload: Value =
        envelope.payload.and_then(|payload| serde_json::from_str(payload.get()).ok()).unwrap_or_default();
    let told_at = envelope.timestamp.and_then(|raw| moment(raw.get())).unwrap_or(came_at);
    match Topic::of(&envelope.event) {
        Topic::Message => message(&envelope.event, &payload, told_at),
        Topic::Ack => acked(&payload, told_at),
        Topic::State => state(&envelope.event, &payload, told_at),
        Topic::Failure => Meaning::Failure,
        Topic::Other => Meaning::Nothing,
    }
}

/// The meaning of one message in a chat's list: a message from a person, or the progress of an outgoing one.
pub fn listed(payload: &Value, came_at: DateTime<Utc>) -> Meaning {
    match payload.get("fromMe").and_then(Value::as_bool) {
        Some(true) => acked(payload, came_at),
        _ => message("message", payload, came_at),
    }
}

fn message(event: &str, payload: &Value, told_at: DateTime<Utc>) -> Meaning {
    let Some(waha_id) = id_of(payload) else { return Meaning::Nothing };
    let (from, to) = (text(payload, "from"), text(payload, "to"));
    let raw_sent_at = payload.get("timestamp").map(ToString::to_string).unwrap_or_default();
    let sent_at = moment(&raw_sent_at).unwrap_or(told_at);
    let body = said(payload);
    if payload.get("fromMe").and_then(Value::as_bool) == Some(true) {
        let by_api = text(payload, "source") == "api";
        return Meaning::Echo(FromUs {
            waha_id,
            chat_id: to.replace("@s.whatsapp.net", "@c.us"),
            body,
            by_api,
            sent_at,
        });
    }
    if from.is_empty() || from == "status@broadcast" {
        return Meaning::Nothing;
    }
    // In a group `from` is the group, and a second field names the sender.
    let (sender, recipient) = match text(payload, "participant") {
        participant if participant.is_empty() || !from.ends_with("@g.us") => (from, to),
        participant => (participant, from),
    };
    Meaning::Person(Box::new(FromPerson {
        waha_id,
        sender: number_of_chat(&sender),
        recipient: number_of_chat(&recipient),
        kind: kind(event, payload),
        content: InboundContent { body, media: payload.get("media").filter(|media| !media.is_null()).cloned() },
        sent_at,
        raw_sent_at: clipped(&raw_sent_at),
    }))
}

fn acked(payload: &Value, told_at: DateTime<Utc>) -> Meaning {
    match (id_of(payload), Ack::of(payload)) {
        (Some(waha_id), Some(ack)) => Meaning::Ack { waha_id, ack, at: told_at },
        _ => Meaning::Nothing,
    }
}

fn state(event: &str, payload: &Value, told_at: DateTime<Utc>) -> Meaning {
    let said = clipped(&text(payload, "status"));
    let state = match event {
        "session.failed" => "FAILED".to_owned(),
        "session.qr" => "SCAN_QR_CODE".to_owned(),
        _ if said.eq_ignore_ascii_case(WORKING) => WORKING.to_owned(),
        _ if said.is_empty() => return Meaning::Nothing,
        _ => said.to_ascii_uppercase(),
    };
    let latest = payload.get("statuses").and_then(Value::as_array).and_then(|statuses| statuses.last());
    let at = latest.and_then(|status| moment(&status.get("timestamp")?.to_string()));
    Meaning::State { state, at: at.unwrap_or(told_at) }
}

/// The id of a message: as WAHA writes it, or the `messageId` of the seed documents.
fn id_of(payload: &Value) -> Option<String> {
    let id = message_id(payload).or_else(|| Some(payload.get("messageId")?.as_str()?.to_owned()))?;
    (id.len() <= ID_BYTES_MAX && !id.is_empty() && !id.contains('\0')).then_some(id)
}

/// A short text of the payload that fits into a column.
fn text(payload: &Value, name: &str) -> String {
    let text = payload.get(name).and_then(|value| value.as_str().or_else(|| value.get("_serialized")?.as_str()));
    let text = text.unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(ID_BYTES_MAX).collect()
}

fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX).collect()
}

/// The text of a message, or the caption of its file.
fn said(payload: &Value) -> String {
    ["body", "caption", "text"].iter().find_map(|name| payload.get(*name)?.as_str()).unwrap_or_default().to_owned()
}

/// The kind of a message: from its event or payload, else from its content.
fn kind(event: &str, payload: &Value) -> String {
    let named = event.strip_prefix("message.").filter(|kind| *kind != "any").map(str::to_owned);
    let typed = || Some(clipped(payload.get("type")?.as_str()?)).filter(|kind| !kind.is_empty() && kind != "chat");
    let carried = || {
        let mimetype = payload.get("media")?.get("mimetype")?.as_str()?;
        let family = mimetype.split('/').next().unwrap_or_default();
        Some(if matches!(family, "image" | "video" | "audio") { family } else { "document" }.to_owned())
    };
    let has = |name: &str| {
        payload
            .get(name)
            .is_some_and(|value| value.is_object() || value.as_array().is_some_and(|list| !list.is_empty()))
    };
    let shown = || match (has("location"), has("vCards")) {
        (true, _) => Some("location".to_owned()),
        (_, true) => Some("contact".to_owned()),
        _ => None,
    };
    named.or_else(typed).or_else(carried).or_else(shown).unwrap_or_else(|| "text".to_owned())
}

/// A time as WAHA writes it: seconds or milliseconds, with or without fractions, or a text.
pub fn moment(raw: &str) -> Option<DateTime<Utc>> {
    let bare = raw.trim().trim_matches('"');
    let Ok(number) = bare.parse::<f64>() else { return parse_time(bare) };
    let millis = if number > SECONDS_MAX { number } else { number * 1000.0 };
    // Beyond any calendar: not a time.
    if !millis.is_finite() || millis.abs() > 1e14 {
        return None;
    }
    let text = format!("{millis:.0}");
    DateTime::from_timestamp_millis(text.parse().ok()?)
}

/// The part of a message's id that is unique within a session. The chat before it may be a number in one event and a
/// hidden id in the next, and a number must not be stored unencrypted.
pub fn own_id(waha_id: &str) -> &str {
    let mut parts = waha_id.split('_');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("true" | "false"), Some(chat), Some(own)) if chat.contains('@') && !own.is_empty() => own,
        _ => waha_id,
    }
}

/// The reference of a session's message in `provider_refs`.
pub fn reference(session: Uuid, waha_id: &str) -> String {
    format!("{session}/{}", own_id(waha_id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dedup_at(body: &Value, seconds: i64) -> Hash {
        let body = body.to_string();
        let now = DateTime::from_timestamp(seconds, 0).unwrap();
        Envelope::read(body.as_bytes()).unwrap().dedup(body.as_bytes(), now)
    }

    fn dedup(body: &Value) -> Hash {
        dedup_at(body, 0)
    }

    fn means(body: &Value) -> Meaning {
        meaning(body.to_string().as_bytes(), DateTime::from_timestamp_millis(0).unwrap())
    }

    #[test]
    fn an_event_is_known_again_by_its_id_else_by_its_message_else_by_its_body() {
        let with = |id: &str| json!({"id": id, "event": "message", "session": "s", "payload": {"id": "m"}});
        assert_eq!(dedup(&with("evt_1")), dedup_at(&with("evt_1"), 99));
        assert_ne!(dedup(&with("evt_1")), dedup(&with("evt_2")));
        let old =
            |event: &str, extra: &str| json!({"event": event, "session": "s", "payload": {"id": "m", "x": extra}});
        assert_eq!(dedup(&old("message", "a")), dedup(&old("message.any", "b")));
        assert_ne!(dedup(&old("message", "a")), dedup(&old("message.ack", "a")));
        let ack = |ack: i64| json!({"event": "message.ack", "session": "s", "payload": {"id": "m", "ack": ack}});
        assert_eq!(dedup(&ack(1)), dedup(&ack(1)));
        assert_ne!(dedup(&ack(1)), dedup(&ack(2)));
        assert_ne!(dedup(&old("presence.update", "a")), dedup(&old("presence.update", "b")));
        let state = json!({"event": "session.status", "session": "s", "payload": {"status": "WORKING"}});
        assert_eq!(dedup_at(&state, 1), dedup_at(&state, 2), "WAHA repeats it");
        assert_ne!(dedup_at(&state, 1), dedup_at(&state, 99), "the state came back, and an old WAHA gives no time");
        let dated =
            json!({"event": "session.status", "session": "s", "timestamp": 7, "payload": {"status": "WORKING"}});
        assert_eq!(dedup_at(&dated, 1), dedup_at(&dated, 99), "a captured one is known for as long as it is kept");
    }

    #[test]
    fn a_body_without_event_or_session_or_no_text_is_no_envelope() {
        for bad in [
            &b"{"[..],
            b"",
            b"[]",
            b"{\"event\":\"message\"}",
            b"{\"session\":\"s\"}",
            b"{\"event\":\"a\\u0000\",\"session\":\"s\"}",
            b"{\"event\":\"message\",\"session\":\"s\",\"payload\":{\"body\":\"\xff\xfe\"}}",
        ] {
            assert!(Envelope::read(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn moments_come_in_seconds_milliseconds_and_fractions() {
        let expected = |millis| DateTime::from_timestamp_millis(millis);
        for (raw, millis) in [
            ("1642248600", 1_642_248_600_000),
            ("1642248600000", 1_642_248_600_000),
            ("1642248600.25", 1_642_248_600_250),
            ("1642248600250.9", 1_642_248_600_251),
            ("\"1642248600\"", 1_642_248_600_000),
            ("\"2022-01-15T12:10:00Z\"", 1_642_248_600_000),
        ] {
            assert_eq!(moment(raw), expected(millis), "{raw}");
        }
        for bad in ["", "null", "\"yesterday\"", "1e300", "NaN", "{}"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_printed_message_is_from_a_person() {
        let Meaning::Person(message) = means(&json!({"event": "message.text", "session": "main-session", "payload": {
            "id": "waha_msg_123456", "from": "+1234567890", "to": "+0987654321", "body": "Hello, this is a test message",
            "timestamp": 1_642_248_600_000_i64, "type": "text"}}))
        else {
            panic!("no message")
        };
        assert_eq!(
            (message.waha_id.as_str(), message.sender.as_str(), message.recipient.as_str()),
            ("waha_msg_123456", "+1234567890", "+0987654321")
        );
        assert_eq!((message.kind.as_str(), message.content.body.as_str()), ("text", "Hello, this is a test message"));
        assert_eq!((message.sent_at.timestamp(), message.raw_sent_at.as_str()), (1_642_248_600, "1642248600000"));
    }

    #[test]
    fn a_message_of_waha_is_from_a_person_or_in_a_group_or_our_own() {
        let body = |payload: Value| json!({"event": "message.any", "session": "s", "timestamp": 1_741_249_702_485_i64, "payload": payload});
        let Meaning::Person(message) = means(&body(
            json!({"id": "false_49151@c.us_AAA", "timestamp": 1_667_561_485, "from": "4915112345678@c.us",
            "fromMe": false, "to": "490000000@c.us", "body": "", "hasMedia": true, "media": {"mimetype": "image/jpeg", "url": "http://x"}}),
        )) else {
            panic!("no message")
        };
        assert_eq!((message.sender.as_str(), message.kind.as_str()), ("+4915112345678", "image"));
        let Meaning::Person(message) = means(&body(
            json!({"id": "false_1@g.us_AAA_49151@c.us", "from": "1203@g.us", "participant": "4915112345678@c.us", "body": "hi"}),
        )) else {
            panic!("no message")
        };
        assert_eq!((message.sender.as_str(), message.recipient.as_str()), ("+4915112345678", "1203@g.us"));
        let Meaning::Echo(echo) = means(&body(
            json!({"id": "true_49151@c.us_BBB", "from": "49@c.us", "to": "4915112345678@c.us", "fromMe": true, "source": "api", "body": "hi"}),
        )) else {
            panic!("no echo")
        };
        assert!(echo.by_api && echo.chat_id == "4915112345678@c.us");
    }

    #[test]
    fn acks_and_states_are_read_in_both_spellings() {
        let ack =
            |event: &str, payload: Value| match means(&json!({"event": event, "session": "s", "payload": payload})) {
                Meaning::Ack { ack, .. } => Some(ack),
                _ => None,
            };
        assert_eq!(ack("message.ack", json!({"id": "m", "ack": 3, "ackName": "READ"})), Some(Ack::Read));
        assert_eq!(ack("message.ack", json!({"id": "m", "ack": -1})), Some(Ack::Error));
        assert_eq!(ack("message.status", json!({"id": "m", "status": "delivered"})), Some(Ack::Device));
        assert_eq!(ack("message.status", json!({"messageId": "m", "status": "READ"})), Some(Ack::Read));
        assert_eq!(ack("message.ack", json!({"id": "m", "ack": 9})), None);
        let state =
            |event: &str, payload: Value| match means(&json!({"event": event, "session": "s", "payload": payload})) {
                Meaning::State { state, .. } => Some(state),
                _ => None,
            };
        assert_eq!(state("session.status", json!({"status": "WORKING"})).as_deref(), Some("WORKING"));
        assert_eq!(state("session.failed", json!({})).as_deref(), Some("FAILED"));
        assert_eq!(state("session.qr", json!({"qr": "x"})).as_deref(), Some("SCAN_QR_CODE"));
    }

    #[test]
    fn what_is_not_known_or_cannot_be_read_means_nothing() {
        for body in [
            json!({"event": "label.upsert", "session": "s", "payload": {}}),
            json!({"event": "message", "session": "s", "payload": null}),
            json!({"event": "message", "session": "s", "payload": {"id": "x".repeat(600), "from": "1@c.us"}}),
            json!({"event": "message", "session": "s", "payload": [1]}),
            json!({"event": "session.status", "session": "s"}),
        ] {
            assert!(matches!(means(&body), Meaning::Nothing), "{body}");
        }
    }

    #[test]
    fn a_message_is_found_again_however_its_chat_is_written() {
        let session = Uuid::nil();
        assert_eq!(reference(session, "true_49151@c.us_3EB0"), reference(session, "true_867@lid_3EB0"));
        assert_eq!(reference(session, "waha_msg_123456"), format!("{session}/waha_msg_123456"));
        assert_ne!(reference(session, "true_49151@c.us_3EB0"), reference(session, "true_49151@c.us_3EB1"));
    }
}
