//! Messages in WAHA's form, and their ids.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::to_value;

/// The content of a message to send.
#[derive(Clone)]
pub enum Outgoing {
    /// Text.
    Text(String),
    /// A file with an optional caption.
    File {
        /// Decides how WhatsApp shows it.
        kind: MediaKind,
        /// The file.
        file: OutgoingFile,
        /// The text below it.
        caption: Option<String>,
    },
}

impl std::fmt::Debug for Outgoing {
    /// A log never shows content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({})", self.path())
    }
}

/// How WhatsApp shows a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// A picture.
    Image,
    /// A film.
    Video,
    /// A voice note.
    Voice,
    /// A document.
    File,
}

impl MediaKind {
    /// The kind for a media type. Only formats that WhatsApp itself plays are sent as picture, film or voice note,
    /// because it refuses other formats there; all others are documents.
    pub fn of(mimetype: &str) -> Self {
        let plain = mimetype.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match plain.as_str() {
            "image/jpeg" | "image/png" | "image/webp" => Self::Image,
            "video/mp4" | "video/3gpp" => Self::Video,
            "audio/ogg" | "audio/opus" => Self::Voice,
            _ => Self::File,
        }
    }
}

/// A file.
#[derive(Clone)]
pub struct OutgoingFile {
    /// Its media type.
    pub mimetype: String,
    /// The name shown.
    pub filename: Option<String>,
    /// Its bytes in base64. WAHA never gets a URL, because it would fetch it without the address guard.
    pub data: Arc<str>,
}

impl Outgoing {
    /// The last part of the path.
    pub(super) const fn path(&self) -> &'static str {
        match self {
            Self::Text(_) => "sendText",
            Self::File { kind: MediaKind::Image, .. } => "sendImage",
            Self::File { kind: MediaKind::Video, .. } => "sendVideo",
            Self::File { kind: MediaKind::Voice, .. } => "sendVoice",
            Self::File { kind: MediaKind::File, .. } => "sendFile",
        }
    }

    pub(super) fn body(&self, session: &str, chat_id: &str) -> Value {
        match self {
            Self::Text(text) => json!({"session": session, "chatId": chat_id, "text": text}),
            Self::File { kind, file, caption } => {
                let mut body = Map::new();
                body.insert("session".to_owned(), session.into());
                body.insert("chatId".to_owned(), chat_id.into());
                body.insert("file".to_owned(), file.body());
                // A voice note has none.
                if let (Some(caption), false) = (caption, *kind == MediaKind::Voice) {
                    body.insert("caption".to_owned(), to_value(caption));
                }
                Value::Object(body)
            }
        }
    }
}

impl OutgoingFile {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("mimetype".to_owned(), to_value(&self.mimetype));
        if let Some(filename) = &self.filename {
            body.insert("filename".to_owned(), to_value(filename));
        }
        body.insert("data".to_owned(), Value::from(&*self.data));
        Value::Object(body)
    }
}

/// WAHA's answer to an accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// The message's id at WAHA, if it could be read.
    pub id: Option<String>,
}

/// A chat in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// Its id.
    pub id: String,
}

impl Chat {
    pub(super) fn read(row: &Value) -> Option<Self> {
        let id = row.get("id")?;
        let text = id.as_str().or_else(|| id.get("_serialized")?.as_str())?;
        Some(Self { id: text.to_owned() })
    }
}

/// The chat of a phone number in E.164 form; a chat id stays unchanged.
pub fn chat_id_of(recipient: &str) -> String {
    match recipient.strip_prefix('+') {
        Some(digits) => format!("{digits}@c.us"),
        None => recipient.to_owned(),
    }
}

/// The id of a message, from an answer or an event's payload, in the one form `<fromMe>_<chat>_<id>` that WAHA's events
/// use. Engines and versions write it in different ways: `id` as text, `id._serialized`, the parts of `id`, or `key`.
pub fn message_id(message: &Value) -> Option<String> {
    let id = message.get("id");
    let whole = id.and_then(|id| id.as_str().or_else(|| id.get("_serialized")?.as_str()));
    if let Some(whole) = whole.filter(|text| !text.is_empty()) {
        return Some(whole.to_owned());
    }
    let parts = message.get("key").or(id)?;
    let own = parts.get("id")?.as_str().filter(|text| !text.is_empty())?;
    let remote = parts.get("remoteJid").or_else(|| parts.get("remote"))?;
    let remote = remote.as_str().or_else(|| remote.get("_serialized")?.as_str())?;
    let from_me = parts.get("fromMe").and_then(Value::as_bool).unwrap_or(true);
    Some(format!("{from_me}_{}_{own}", remote.replace("@s.whatsapp.net", "@c.us")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_id_is_read() {
        for answer in [
            json!({"id": "true_49@c.us_3EB0"}),
            json!({"id": {"fromMe": true, "remote": "49@c.us", "id": "3EB0", "_serialized": "true_49@c.us_3EB0"}}),
            json!({"id": {"fromMe": true, "remote": {"_serialized": "49@c.us"}, "id": "3EB0"}}),
            json!({"key": {"remoteJid": "49@s.whatsapp.net", "fromMe": true, "id": "3EB0"}}),
        ] {
            assert_eq!(message_id(&answer).as_deref(), Some("true_49@c.us_3EB0"), "{answer}");
        }
        for answer in [json!({}), json!(null), json!({"id": ""}), json!({"id": 7}), json!({"key": {"id": "x"}})] {
            assert_eq!(message_id(&answer), None, "{answer}");
        }
    }

    #[test]
    fn only_what_whatsapp_plays_is_more_than_a_document() {
        assert_eq!(MediaKind::of("image/JPEG"), MediaKind::Image);
        assert_eq!(MediaKind::of("audio/ogg; codecs=opus"), MediaKind::Voice);
        assert_eq!(MediaKind::of("video/mp4"), MediaKind::Video);
        for other in ["image/svg+xml", "application/pdf", "audio/wav", ""] {
            assert_eq!(MediaKind::of(other), MediaKind::File, "{other}");
        }
    }

    #[test]
    fn numbers_become_chats_and_chats_stay() {
        assert_eq!(chat_id_of("+4915112345678"), "4915112345678@c.us");
        assert_eq!(chat_id_of("120363@g.us"), "120363@g.us");
    }

    #[test]
    fn a_picture_has_its_caption_and_a_voice_note_has_none() {
        let file = OutgoingFile { mimetype: "image/png".into(), filename: None, data: "AA==".into() };
        let picture =
            Outgoing::File { kind: MediaKind::Image, file: file.clone(), caption: Some("hi".into()) }.body("s", "c");
        assert_eq!(
            picture,
            json!({"session": "s", "chatId": "c", "caption": "hi", "file": {"mimetype": "image/png", "data": "AA=="}})
        );
        let voice = Outgoing::File { kind: MediaKind::Voice, file, caption: Some("hi".into()) }.body("s", "c");
        assert_eq!(voice.get("caption"), None);
    }
}
