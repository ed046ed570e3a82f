//! The submission of a producer: the body of `send`, from HTTP or AMQP. One validator checks both.

use std::collections::BTreeMap;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

use super::{
    device::{Subscription, is_subscription},
    guard::Refusal,
    send_window,
};
use crate::{Address, Channel, Class, Lane, OnLimit, Priority, Reason, SendWindow, crypto::seal::looks_sealed};

pub use super::field_error::FieldError;

/// Longest `title` or `subject`, in bytes; RFC 5322 folds long ones, people do not read them.
pub const TITLE_BYTES_MAX: usize = 998;
/// Longest `recipient`, in bytes: the usual limit for URLs, far above any e-mail address (254).
pub const RECIPIENT_BYTES_MAX: usize = 2048;
/// An uncompressed point on P-256 (RFC 8291, section 2.1).
const P256DH_BYTES: usize = 65;
/// The secret of a subscription (RFC 8291, section 3.2).
const AUTH_BYTES: usize = 16;
/// Longest text or id that names something (category, user id, type), in bytes.
pub const NAME_BYTES_MAX: usize = 200;
/// Largest `metadata`, in bytes of JSON.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// All attachments of one message together, in bytes before base64.
pub const ATTACHMENTS_BYTES_MAX: usize = 20 * 1024 * 1024;
/// Most attachments of one message.
pub const ATTACHMENTS_MAX: usize = 50;
/// Longest text of a WhatsApp message, in characters.
pub const WHATSAPP_CHARS_MAX: usize = 4096;
/// Longest `Idempotency-Key` or `message_id`, in bytes.
pub const KEY_BYTES_MAX: usize = 200;
/// Longest `html`, in bytes: mail programs show far less (Gmail cuts off at 100 KiB).
pub const HTML_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Why a text that looks like an encrypted value is refused as address, token or name.
pub const LOOKS_SEALED: &str = "must not begin with phs0: or phs1:, which mark encrypted values";
/// How far ahead a message may be scheduled.
pub const SCHEDULE_AHEAD_MAX: chrono::TimeDelta = chrono::TimeDelta::days(366);

/// A file that travels with an e-mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// File name shown to the recipient.
    pub filename: String,
    /// MIME type.
    pub content_type: String,
    /// The bytes, in base64.
    pub content: String,
}

/// A file that travels with a WhatsApp message; its text becomes the caption.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Media {
    /// MIME type; it decides how WhatsApp shows the file.
    pub mimetype: String,
    /// File name shown to the recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// The bytes, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The URL that it is fetched from, if `data` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl std::fmt::Debug for Media {
    /// A log never shows content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Media(…)")
    }
}

/// The content of a message, stored once and read by the provider.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Content {
    /// Subject of a mail, title of a notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The plain part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The HTML part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The producer's data. If it is the only content, it is the whole body of a webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<serde_json::value::RawValue>>,
    /// The kind of notification (`type`), shown in the inbox and in webhook bodies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The subject area of the message, for preferences and statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The target of a click on an in-app notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_url: Option<String>,
    /// The producer's own notes, returned unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// The webhook configuration that it goes to, which signs it. A producer cannot set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<uuid::Uuid>,
    /// The file of a WhatsApp message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
    /// The URL for one-click unsubscription in a mail program (RFC 8058). A producer cannot set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsubscribe_url: Option<String>,
    /// Its class, if it differs from the default of its category. It is fixed at acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// Whether its type is off by default, so only people who switched it on get it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opt_in: bool,
    /// When it may disturb the recipient: its own window, else its type's. It is fixed at acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_window: Option<SendWindow>,
    /// Why it is accepted but not sent. The worker ends the delivery with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Reason>,
    /// The template that it was rendered from, and the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateRef>,
    /// The content of one channel, in place of title, message and HTML.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<Channel, Part>,
}

/// A template at a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRef {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i32,
}

/// The content of one channel.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Subject of a mail, title of a notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The plain part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The HTML part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
}

impl std::fmt::Debug for Part {
    /// A log never shows content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Part(…)")
    }
}

impl Content {
    /// As one channel says it.
    pub fn on(mut self, channel: Channel) -> Self {
        if let Some(Part { title, message, html }) = std::mem::take(&mut self.parts).remove(&channel) {
            (self.title, self.message, self.html) = (title, message, html);
        }
        self
    }

    /// How far a person may refuse it.
    pub fn class(&self) -> Class {
        self.class.unwrap_or_else(|| Class::of(self.category.as_deref()))
    }

    /// The kind of this WhatsApp message in statistics.
    pub fn kind_of_message(&self) -> &'static str {
        let Some(media) = &self.media else { return "text" };
        match media.mimetype.split('/').next().unwrap_or_default() {
            "image" => "image",
            "video" => "video",
            "audio" => "audio",
            _ => "document",
        }
    }
}

impl std::fmt::Debug for Content {
    /// A log never shows content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content(…)")
    }
}

/// The body of `POST /api/notifications/send` and of a message on `posthaste.ingress`, as the producer writes it. It
/// takes our names of fields and those of the seed documents.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// `email`, `sms`, `push`, `webhook`, `in_app` or `whatsapp`.
    pub channel: Option<String>,
    /// The recipient: address, phone number, device token, URL or user id; a Web Push subscription as JSON text.
    #[serde(default, alias = "to", alias = "url", deserialize_with = "recipient")]
    pub recipient: Option<String>,
    /// The person.
    #[serde(alias = "userId")]
    pub user_id: Option<String>,
    /// Title or subject.
    #[serde(alias = "subject")]
    pub title: Option<String>,
    /// The plain part.
    #[serde(alias = "text")]
    pub message: Option<String>,
    /// The HTML part.
    pub html: Option<String>,
    /// The category.
    pub category: Option<String>,
    /// `low`, `normal`, `high` or `urgent`.
    pub priority: Option<String>,
    /// Data for the recipient's program; a webhook's body.
    #[serde(alias = "payload")]
    pub data: Option<Box<serde_json::value::RawValue>>,
    /// The producer's notes.
    pub metadata: Option<Map<String, Value>>,
    /// When to send it; past or absent means now.
    #[serde(alias = "scheduledAt", alias = "scheduled_for")]
    pub scheduled_at: Option<String>,
    /// When it expires.
    #[serde(alias = "expiresAt")]
    pub expires_at: Option<String>,
    /// Files.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// The kind of notification.
    #[serde(rename = "type", alias = "eventType", alias = "event_type")]
    pub kind: Option<String>,
    /// Where a click leads.
    #[serde(alias = "actionUrl")]
    pub action_url: Option<String>,
    /// As the header `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// The WhatsApp session that sends it, by id or name.
    #[serde(alias = "sessionId", alias = "session")]
    pub session_id: Option<String>,
    /// The treatment of a message over the session's pace: `queue` or `reject`. Unset: the session's own setting.
    #[serde(alias = "onLimit")]
    pub on_limit: Option<String>,
    /// Whether it may wait while its session is offline.
    #[serde(alias = "queueWhenOffline")]
    pub queue_when_offline: Option<bool>,
    /// The file of a WhatsApp message.
    pub media: Option<Media>,
    /// When it may disturb a person. Unset: the window of its type.
    #[serde(alias = "sendWindow")]
    pub send_window: Option<Value>,
}

/// The wishes of a WhatsApp message about its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionAsk {
    /// Which one, by id or name; `None`: the tenant's only one, or the one called `default`.
    pub session: Option<String>,
    /// The treatment of a message over its pace; `None`: the session's own setting.
    pub on_limit: Option<OnLimit>,
    /// Whether it may wait while its session is offline.
    pub queue_when_offline: bool,
}

/// A checked submission, without its tenant and its key.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The channel.
    pub channel: Channel,
    /// The lane it takes.
    pub lane: Lane,
    /// As asked.
    pub priority: Priority,
    /// The recipient; `None`: the known addresses of the person.
    pub recipient: Option<Address>,
    /// The person.
    pub user_id: Option<String>,
    /// The content of the message.
    pub content: Content,
    /// When to send it, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The session that it asks for; empty on other channels.
    pub session: SessionAsk,
}

/// The inputs of the validator beside the body.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The current time.
    pub now: DateTime<Utc>,
    /// Which webhook targets are allowed.
    pub guard: crate::contract::guard::Guard,
    /// Where media may be fetched from.
    pub media_guard: crate::contract::guard::Guard,
}

impl Submission {
    /// Reads a JSON body. The error names an unknown field or a field of a wrong type.
    pub fn parse(body: &[u8]) -> Result<Self, FieldError> {
        parse_json(body)
    }

    /// Checks everything that does not depend on the recipient, then the recipient; reports every fault at once.
    pub fn check(self, rules: &Rules) -> Result<Draft, Vec<FieldError>> {
        let mut faults = Faults::default();
        let recipient = self.recipient.clone().or_else(|| self.user_id.clone().filter(|_| self.is_in_app()));
        let head = self.check_head(rules, &mut faults);
        let checked = head.and_then(|head| match recipient {
            Some(text) => faults.take(check_recipient(head.channel, &text, rules)).map(|address| (head, Some(address))),
            None if head.user_id.is_some() && head.channel != Channel::Webhook => Some((head, None)),
            None => faults.refuse("recipient", "is required: to whom should it go?"),
        });
        match checked {
            Some((head, recipient)) if faults.0.is_empty() => Ok(head.into_draft(recipient)),
            _ => Err(faults.0),
        }
    }

    /// Checks a body without looking at `recipient`: for bulk, where there are many.
    pub fn check_shared(self, rules: &Rules) -> Result<Shared, Vec<FieldError>> {
        let mut faults = Faults::default();
        match self.check_head(rules, &mut faults) {
            Some(head) if faults.0.is_empty() => Ok(head),
            _ => Err(faults.0),
        }
    }

    fn is_in_app(&self) -> bool {
        self.channel.as_deref().and_then(|c| c.parse().ok()) == Some(Channel::InApp)
    }

    fn check_head(self, rules: &Rules, faults: &mut Faults) -> Option<Shared> {
        let channel = faults.word::<Channel>("channel", self.channel.as_deref(), None);
        let priority = faults.word("priority", self.priority.as_deref(), Some(Priority::default()));
        let scheduled_at = faults.time("scheduled_at", self.scheduled_at.as_deref()).filter(|at| *at > rules.now);
        let expires_at = faults.time("expires_at", self.expires_at.as_deref());
        check_times(scheduled_at, expires_at, rules.now, faults);
        for (field, text) in [("user_id", &self.user_id), ("category", &self.category), ("type", &self.kind)] {
            faults.name(field, text.as_deref());
        }
        faults.text("title", self.title.as_deref(), TITLE_BYTES_MAX);
        faults.text("action_url", self.action_url.as_deref(), RECIPIENT_BYTES_MAX);
        check_metadata(self.metadata.as_ref(), faults);
        check_attachments(&self.attachments, channel, faults);
        check_media(self.media.as_ref(), rules, faults);
        let of_whatsapp = [
            ("session_id", self.session_id.is_some()),
            ("on_limit", self.on_limit.is_some()),
            ("queue_when_offline", self.queue_when_offline.is_some()),
            ("media", self.media.is_some()),
        ];
        for (field, _) in of_whatsapp.iter().filter(|(_, is_set)| *is_set && channel != Some(Channel::Whatsapp)) {
            faults.add(field, "is for channel whatsapp only");
        }
        faults.name("session_id", self.session_id.as_deref());
        let send_window = self.send_window.and_then(|window| faults.take_all(send_window::read("send_window", window)));
        let on_limit = self.on_limit.as_deref().and_then(|text| faults.word("on_limit", Some(text), None));
        let session = SessionAsk {
            session: self.session_id,
            on_limit,
            queue_when_offline: self.queue_when_offline.unwrap_or(false),
        };
        let content = Content {
            title: self.title,
            message: self.message,
            html: self.html,
            data: self.data,
            kind: self.kind,
            category: self.category,
            action_url: self.action_url,
            metadata: self.metadata,
            attachments: self.attachments,
            media: self.media,
            send_window,
            ..Content::default()
        };
        let (channel, priority) = (channel?, priority?);
        check_content(channel, &content, faults);
        Some(Shared { channel, priority, user_id: self.user_id, content, scheduled_at, expires_at, session })
    }
}

/// A checked body that still lacks its recipient.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The channel.
    pub channel: Channel,
    /// As asked.
    pub priority: Priority,
    /// The person.
    pub user_id: Option<String>,
    /// The content of the message.
    pub content: Content,
    /// When to send it, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The session that it asks for; empty on other channels.
    pub session: SessionAsk,
}

impl Shared {
    fn into_draft(self, recipient: Option<Address>) -> Draft {
        Draft {
            channel: self.channel,
            lane: self.priority.lane(),
            priority: self.priority,
            recipient,
            user_id: self.user_id,
            content: self.content,
            scheduled_at: self.scheduled_at,
            expires_at: self.expires_at,
            session: self.session,
        }
    }
}

/// Reads JSON; the error names the path of the field, such as `recipients[2]`, and `body` where the text is no JSON.
pub fn parse_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FieldError> {
    // Tracking the path costs time, so only a bad body is read a second time for it.
    serde_json::from_slice(body).map_err(|error| field_of::<T>(body).unwrap_or_else(|| no_json(&error)))
}

fn no_json(error: &serde_json::Error) -> FieldError {
    FieldError::new("body", error.to_string())
}

/// The field that makes a body unreadable as a `T`.
fn field_of<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<FieldError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let error = serde_path_to_error::deserialize::<_, T>(&mut reader).err()?;
    if !error.inner().is_data() {
        return Some(no_json(error.inner()));
    }
    let text = error.inner().to_string();
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|lead| text.strip_prefix(lead)?.split_once('`').map(|(field, _)| field));
    let path = error.path().to_string();
    let path = path.trim_matches('.');
    let field = match named {
        Some(name) if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) => format!("{path}.{name}"),
        None if path.is_empty() || path == "?" => "body".to_owned(),
        None => path.to_owned(),
    };
    Some(FieldError::new(field, text))
}

/// A time as producers write it: RFC 3339. A time without a zone is UTC.
pub fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let zoned = DateTime::parse_from_rfc3339(text).map(|at| at.with_timezone(&Utc));
    zoned.ok().or_else(|| {
        ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
            .iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
            .map(|at| at.and_utc())
    })
}

/// A text, or a Web Push subscription as the object it is in a browser.
fn recipient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Recipient>::deserialize(deserializer)?.map(|recipient| recipient.0))
}

/// One recipient as producers write it, turned into text.
#[derive(Debug)]
pub struct Recipient(pub String);

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Recipient;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, or a Web Push subscription")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Recipient, E> {
                Ok(Recipient(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Recipient, A::Error> {
                let object = Map::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Recipient(Value::Object(object).to_string()))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// Checks one recipient for `channel`.
pub fn check_recipient(channel: Channel, text: &str, rules: &Rules) -> Result<Address, FieldError> {
    let refuse = |message: &str| Err(FieldError::new("recipient", message));
    if text.is_empty() || text.len() > RECIPIENT_BYTES_MAX {
        return refuse("must have 1 to 2048 bytes");
    }
    if text.chars().any(char::is_control) {
        return refuse("must not contain control characters");
    }
    if looks_sealed(text) {
        return refuse(LOOKS_SEALED);
    }
    match channel {
        Channel::Email if !is_email(text) => refuse("must be one e-mail address such as ada@example.com"),
        Channel::Sms | Channel::Whatsapp if !is_phone(text) => {
            refuse("must be a phone number in E.164 form: + and 7 to 15 digits")
        }
        Channel::Webhook => rules
            .guard
            .check_url(text)
            .map(|()| Address::new(text))
            .map_err(|why| FieldError::new("recipient", why.to_string())),
        Channel::Push if is_subscription(text) => check_subscription(text, rules),
        Channel::InApp if text.len() > NAME_BYTES_MAX => refuse("must be a user id of at most 200 bytes"),
        Channel::Email | Channel::Sms | Channel::Push | Channel::InApp | Channel::Whatsapp => Ok(Address::new(text)),
    }
}

fn check_subscription(text: &str, rules: &Rules) -> Result<Address, FieldError> {
    let refuse = |message: String| FieldError::new("recipient", message);
    let subscription = Subscription::parse(text).ok_or_else(|| {
        refuse("must be a device token, or a Web Push subscription with endpoint, keys.p256dh and keys.auth".to_owned())
    })?;
    rules.guard.check_push_url(&subscription.endpoint).map_err(|why| match why {
        Refusal::Private => refuse(why.to_string()),
        Refusal::NotHttp | Refusal::UserInfo | Refusal::Port | Refusal::NotEncrypted => {
            refuse(format!("its endpoint {why}"))
        }
    })?;
    let size = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_or(0, |bytes| bytes.len());
    if size(&subscription.keys.p256dh) != P256DH_BYTES || size(&subscription.keys.auth) != AUTH_BYTES {
        return Err(refuse("must have keys.p256dh (65 bytes) and keys.auth (16 bytes) in base64url".to_owned()));
    }
    serde_json::to_string(&subscription).map(Address::new).map_err(|_| refuse("has no JSON form".to_owned()))
}

/// One mailbox, without a display name (RFC 5321 lengths; quoted local parts are not accepted).
pub(super) fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let plain = |c: char| !c.is_whitespace() && !"<>()[]\\,;:@\"".contains(c);
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && !l.starts_with('-') && !l.ends_with('-');
    text.len() <= 254
        && (1..=64).contains(&local.len())
        && local.chars().all(plain)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && domain.split('.').all(label)
        && domain.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '.')
}

pub(super) fn is_phone(text: &str) -> bool {
    text.strip_prefix('+')
        .is_some_and(|digits| (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn check_times(
    scheduled: Option<DateTime<Utc>>,
    expires: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    faults: &mut Faults,
) {
    if scheduled.is_some_and(|at| at > now + SCHEDULE_AHEAD_MAX) {
        faults.add("scheduled_at", "must be within a year from now");
    }
    if expires.is_some_and(|at| at <= now) {
        faults.add("expires_at", "must be in the future");
    } else if expires.zip(scheduled).is_some_and(|(expires, scheduled)| expires <= scheduled) {
        faults.add("expires_at", "must be after scheduled_at");
    }
}

fn check_metadata(metadata: Option<&Map<String, Value>>, faults: &mut Faults) {
    let bytes = metadata.and_then(|map| serde_json::to_vec(map).ok()).map_or(0, |json| json.len());
    if bytes > METADATA_BYTES_MAX {
        faults.add("metadata", "must have at most 8 KiB as JSON");
    }
}

fn check_attachments(attachments: &[Attachment], channel: Option<Channel>, faults: &mut Faults) {
    if !attachments.is_empty() && channel.is_some_and(|channel| channel != Channel::Email) {
        faults.add("attachments", "travel with e-mail only");
    }
    if attachments.len() > ATTACHMENTS_MAX {
        faults.add("attachments", "must be at most 50");
    }
    let mut bytes = 0;
    for (index, attachment) in attachments.iter().enumerate() {
        let field = |name: &str| format!("attachments[{index}].{name}");
        faults.name(&field("filename"), Some(&attachment.filename));
        faults.name(&field("content_type"), Some(&attachment.content_type));
        match STANDARD.decode(&attachment.content) {
            Ok(content) => bytes += content.len(),
            Err(_) => faults.add(&field("content"), "must be base64"),
        }
    }
    if bytes > ATTACHMENTS_BYTES_MAX {
        faults.add("attachments", "must have at most 20 MB together");
    }
}

/// The worker fetches a file that is named by URL. Here the guard checks the URL as written; host names are checked
/// when they are dialled.
fn check_media(media: Option<&Media>, rules: &Rules, faults: &mut Faults) {
    let Some(media) = media else { return };
    faults.name("media.mimetype", Some(&media.mimetype));
    faults.name("media.filename", media.filename.as_deref());
    match (&media.data, &media.url) {
        (Some(data), None) => match STANDARD.decode(data) {
            Ok(bytes) if bytes.len() > ATTACHMENTS_BYTES_MAX => faults.add("media.data", "must have at most 20 MB"),
            Ok(_) => {}
            Err(_) => faults.add("media.data", "must be base64"),
        },
        (None, Some(url)) => {
            if let Err(why) = rules.media_guard.check_url(url) {
                faults.add("media.url", why.to_string());
            }
        }
        _ => faults.add("media", "must have either data or url"),
    }
}

/// Whether `channel` can carry this content; every fault is named.
pub fn check_said(channel: Channel, content: &Content) -> Vec<FieldError> {
    let mut faults = Faults::default();
    faults.text("title", content.title.as_deref(), TITLE_BYTES_MAX);
    check_content(channel, content, &mut faults);
    faults.0
}

fn check_content(channel: Channel, content: &Content, faults: &mut Faults) {
    if content.html.as_deref().is_some_and(|html| html.len() > HTML_BYTES_MAX) {
        faults.add("html", "must have at most 2 MiB");
    }
    let has_text = content.message.as_deref().is_some_and(|text| !text.is_empty());
    let has_title = content.title.as_deref().is_some_and(|text| !text.is_empty());
    match channel {
        Channel::Email if !has_text && content.html.is_none() => faults.add("message", "is required (or html)"),
        Channel::Sms if !has_text => faults.add("message", "is required"),
        Channel::Whatsapp if !has_text && content.media.is_none() => faults.add("message", "is required (or media)"),
        Channel::Whatsapp
            if content.message.as_deref().is_some_and(|text| text.chars().count() > WHATSAPP_CHARS_MAX) =>
        {
            faults.add("message", "must have at most 4096 characters");
        }
        Channel::Push | Channel::InApp if !has_text && !has_title => faults.add("message", "is required (or title)"),
        Channel::Webhook if content.data.is_none() && !has_text && !has_title => {
            faults.add("data", "is required: it becomes the body")
        }
        _ => {}
    }
}

/// Collects faults, so that the producer sees all of them at once.
#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(FieldError::new(field, message));
    }

    fn refuse<T>(&mut self, field: &str, message: &str) -> Option<T> {
        self.add(field, message);
        None
    }

    fn take<T>(&mut self, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|fault| self.0.push(fault)).ok()
    }

    fn take_all<T>(&mut self, result: Result<T, Vec<FieldError>>) -> Option<T> {
        result.map_err(|faults| self.0.extend(faults)).ok()
    }

    fn word<W>(&mut self, field: &str, text: Option<&str>, default: Option<W>) -> Option<W>
    where
        W: std::str::FromStr<Err = crate::UnknownWord>,
    {
        match text {
            None if default.is_some() => default,
            None => self.refuse(field, "is required"),
            Some(text) => match text.parse() {
                Ok(word) => Some(word),
                Err(unknown) => self.refuse(field, &unknown.to_string()),
            },
        }
    }

    fn time(&mut self, field: &str, text: Option<&str>) -> Option<DateTime<Utc>> {
        let text = text?;
        let at = parse_time(text);
        if at.is_none() {
            self.add(field, "must be an RFC 3339 time such as 2026-01-31T09:00:00Z");
        }
        at
    }

    fn name(&mut self, field: &str, text: Option<&str>) {
        self.text(field, text, NAME_BYTES_MAX);
        match text {
            Some("") => self.add(field, "must not be empty"),
            Some(text) if looks_sealed(text) => self.add(field, LOOKS_SEALED),
            _ => {}
        }
    }

    /// One line that may end up in a header or a column.
    fn text(&mut self, field: &str, text: Option<&str>, bytes_max: usize) {
        let Some(text) = text else { return };
        if text.len() > bytes_max {
            self.add(field, format!("must have at most {bytes_max} bytes"));
        }
        if text.chars().any(char::is_control) {
            self.add(field, "must not contain control characters");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::guard::Guard;

    fn check(body: &str) -> Result<Draft, Vec<FieldError>> {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let rules = Rules { now, guard: Guard::default(), media_guard: Guard::default() };
        Submission::parse(body.as_bytes()).map_err(|fault| vec![fault])?.check(&rules)
    }

    #[test]
    fn a_body_that_cannot_be_read_names_the_path_of_its_field() {
        for (body, field) in [
            (r#"{"data": {"a": 1}, "recipient": 5}"#, "recipient"),
            (r#"{"to": ["a"]}"#, "to"),
            (r#"{"title": 7}"#, "title"),
            (r#"{"metadata": []}"#, "metadata"),
            (
                r#"{"attachments": [{"filename": "a", "content_type": "b", "content": "c"}, {"filename": 1}]}"#,
                "attachments[1].filename",
            ),
            (r#"{"media": {"mimetype": 3}}"#, "media.mimetype"),
            (r#"{"media": {"colour": 3}}"#, "media.colour"),
            (r#"{"colour": "red"}"#, "colour"),
            (r#"{"title": "a", "title": "b"}"#, "title"),
            (r#"{"title": "a""#, "body"),
            ("[]", "body"),
            ("5", "body"),
        ] {
            let fault = Submission::parse(body.as_bytes()).unwrap_err();
            assert_eq!(fault.field, field, "{body}: {}", fault.message);
        }
    }

    fn fields(body: &str) -> Vec<String> {
        check(body).unwrap_err().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn the_printed_spellings_of_every_seed_are_accepted() {
        for body in [
            r#"{"user_id":"user123","channel":"email","recipient":"user@example.com","title":"W","message":"T","category":"onboarding","priority":"normal"}"#,
            r#"{"channel":"email","to":"user@example.com","subject":"W","text":"T","html":"<p>T</p>","userId":"user-123","eventType":"user.registered"}"#,
            r#"{"channel":"sms","to":"+1234567890","message":"code"}"#,
            r#"{"channel":"webhook","url":"https://example.com/webhook","payload":{"event":"order.created"}}"#,
            r#"{"channel":"in-app","userId":"user-123","title":"N","message":"M","type":"info","actionUrl":"/messages/123"}"#,
            r#"{"channel":"push","recipient":"device-token-here","title":"N","message":"M","data":{"badge":5}}"#,
        ] {
            check(body).unwrap_or_else(|faults| panic!("{body}: {faults:?}"));
        }
    }

    const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    fn subscription(endpoint: &str, p256dh: &str, auth: &str) -> Value {
        json!({"endpoint": endpoint, "expirationTime": null, "keys": {"p256dh": p256dh, "auth": auth}})
    }

    fn push(recipient: &Value) -> String {
        json!({"channel": "push", "recipient": recipient, "message": "m"}).to_string()
    }

    #[test]
    fn a_subscription_may_be_an_object_or_its_text_and_is_the_same_address() {
        let object = subscription("https://push.example.com/abc", P256DH, AUTH);
        let address = check(&push(&object)).unwrap().recipient.unwrap();
        assert_eq!(Some(&address), check(&push(&json!(object.to_string()))).unwrap().recipient.as_ref());
        let kept: Value = serde_json::from_str(address.reveal()).unwrap();
        assert_eq!((&kept["keys"], &kept["endpoint"]), (&object["keys"], &object["endpoint"]));
        assert!(!address.masked().contains("push.example.com"), "{}", address.masked());
        let named = json!({"channel": "push", "to": object, "message": "m"});
        assert_eq!(check(&named.to_string()).unwrap().recipient, Some(address));
    }

    #[test]
    fn what_is_no_subscription_or_leads_inside_is_refused() {
        for (recipient, says) in [
            (json!({}), "with endpoint, keys.p256dh and keys.auth"),
            (json!("{"), "with endpoint, keys.p256dh and keys.auth"),
            (json!({"endpoint": "https://push.example.com/abc"}), "with endpoint"),
            (subscription("push.example.com", P256DH, AUTH), "its endpoint must be an absolute"),
            (subscription("http://push.example.com/abc", P256DH, AUTH), "its endpoint must be an https URL"),
            (subscription("https://10.0.0.1/abc", P256DH, AUTH), "target_not_allowed"),
            (subscription("https://localhost/abc", P256DH, AUTH), "target_not_allowed"),
            (subscription("https://push.example.com/abc", P256DH, "c2hvcnQ"), "keys.auth (16 bytes)"),
            (subscription("https://push.example.com/abc", AUTH, AUTH), "keys.p256dh (65 bytes)"),
            (subscription(&format!("https://push.example.com/{}", "a".repeat(2048)), P256DH, AUTH), "2048 bytes"),
        ] {
            let faults = check(&push(&recipient)).unwrap_err();
            let [fault] = faults.as_slice() else { panic!("{recipient}: {faults:?}") };
            assert!(fault.field == "recipient" && fault.message.contains(says), "{recipient}: {fault}");
        }
        let mail = json!({"channel": "email", "recipient": {"endpoint": "x"}, "message": "m"});
        assert_eq!(fields(&mail.to_string()), ["recipient"]);
        assert_eq!(fields(r#"{"channel":"push","recipient":7,"message":"m"}"#), ["recipient"]);
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(
            fields(r#"{"channel":"email","recipient":"x","priority":"soon","title":"a\nb"}"#),
            ["priority", "title"]
        );
        assert_eq!(fields(r#"{"recipient":"x"}"#), ["channel"]);
        assert_eq!(fields(r#"{"channel":"email","recipient":"no at","message":"m"}"#), ["recipient"]);
        assert_eq!(fields(r#"{"channel":"sms","recipient":"12345","message":"m"}"#), ["recipient"]);
        assert_eq!(fields(r#"{"channel":"webhook","recipient":"https://example.com"}"#), ["data"]);
        assert_eq!(fields(r#"{"channel":"email","colour":"red"}"#), ["colour"]);
        assert_eq!(fields("{"), ["body"]);
    }

    #[test]
    fn a_person_may_stand_for_an_address_where_people_have_one() {
        for channel in ["email", "sms", "push", "whatsapp"] {
            let body = format!(r#"{{"channel":"{channel}","user_id":"ada","message":"m"}}"#);
            assert_eq!(check(&body).unwrap().recipient, None, "{channel}");
        }
        assert_eq!(fields(r#"{"channel":"webhook","user_id":"ada","message":"m"}"#), ["recipient"]);
        assert_eq!(fields(r#"{"channel":"email","message":"m"}"#), ["recipient"]);
        assert_eq!(fields(r#"{"channel":"email","user_id":"","message":"m"}"#), ["user_id"]);
    }

    #[test]
    fn a_time_without_a_zone_is_utc_and_a_past_one_means_now() {
        let body =
            |at: &str| format!(r#"{{"channel":"sms","recipient":"+1234567890","message":"m","scheduled_at":"{at}"}}"#);
        let later = check(&body("2027-02-01T10:00:00.123456")).unwrap().scheduled_at.unwrap();
        assert_eq!(later.to_rfc3339(), "2027-02-01T10:00:00.123456+00:00");
        assert_eq!(check(&body("2020-01-01T00:00:00Z")).unwrap().scheduled_at, None);
        assert_eq!(fields(&body("tomorrow")), ["scheduled_at"]);
    }

    #[test]
    fn a_message_may_have_a_send_window_of_its_own() {
        let body = |window: Value| {
            json!({"channel": "sms", "recipient": "+1234567890", "message": "m", "send_window": window}).to_string()
        };
        let content = check(&body(json!({"days": ["mon"], "from": "09:00", "to": "17:00"}))).unwrap().content;
        let kept: Content = serde_json::from_slice(&serde_json::to_vec(&content).unwrap()).unwrap();
        let window = SendWindow { days: [crate::Day::Mon].into(), from: 540, to: 1020 };
        assert_eq!(kept.send_window, Some(window));
        assert_eq!(check(&body(Value::Null)).unwrap().content.send_window, None);
        assert_eq!(
            fields(&body(json!({"days": ["someday"], "from": "09:00"}))),
            ["send_window.days[0]", "send_window.to"]
        );
    }

    #[test]
    fn a_past_expiry_is_refused() {
        assert_eq!(
            fields(r#"{"channel":"sms","recipient":"+1234567890","message":"m","expires_at":"2020-01-01T00:00:00Z"}"#),
            ["expires_at"]
        );
    }

    #[test]
    fn a_header_cannot_be_injected_through_a_recipient() {
        for address in ["a@b.c\\r\\nBcc: x@y.z", "a@b.c, d@e.f", "<a@b.c>", "a b@c.d", "@b.c", "a@", "a@b..c", "a@-b.c"]
        {
            let body = format!(r#"{{"channel":"email","recipient":"{address}","message":"m"}}"#);
            assert_eq!(fields(&body), ["recipient"], "{address}");
        }
    }
}
