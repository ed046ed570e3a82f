//! Idempotency keys, for HTTP and AMQP alike.
//!
//! A key is compared by its hash. A request is compared by the hash of its JSON, with sorted names and without the key, so
//! that spaces and order make no difference.

use actix_web::http::header::HeaderMap;
use aws_lc_rs::digest::{Context, SHA256, digest};
use domain::{acceptance::Hash, contract::submission::KEY_BYTES_MAX};
use serde_json::Value;
use web::problem::{Code, Problem};

/// The request header.
pub const HEADER: &str = "Idempotency-Key";
/// Response header of a replayed answer.
pub const REPLAYED: &str = "Idempotent-Replayed";

/// The kind of a request: the same body has another meaning at another route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One message, over HTTP or AMQP.
    Send,
    /// Many messages.
    Bulk,
    /// A test notification.
    Test,
    /// One message of a WhatsApp session.
    SessionSend,
    /// Many messages of a WhatsApp session.
    SessionBulk,
    /// One message, rendered from a template.
    Template,
    /// One message of a type, on each channel that it takes.
    Notification,
    /// A test of a template.
    TemplateTest,
    /// An event of another system.
    Event,
    /// A broadcast.
    Broadcast,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Bulk => "bulk",
            Self::Test => "test",
            Self::SessionSend => "session_send",
            Self::SessionBulk => "session_bulk",
            Self::Template => "template",
            Self::Notification => "typed",
            Self::TemplateTest => "template_test",
            Self::Event => "event",
            Self::Broadcast => "broadcast",
        }
    }
}

/// The key of a request, from its header, its body, or both.
pub fn key(headers: &HeaderMap, in_body: Option<String>) -> Result<Option<String>, Problem> {
    let in_header = in_header(headers)?;
    let key = match (in_header, in_body) {
        (Some(one), Some(other)) if one != other => {
            return Err(refuse("Give one key: the header and the body name different ones."));
        }
        (one, other) => one.or(other),
    };
    key.map(check).transpose()
}

/// Validates a key.
pub fn check(key: String) -> Result<String, Problem> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains('\0') {
        return Err(refuse("Give a key of 1 to 200 bytes."));
    }
    Ok(key)
}

fn refuse(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidIdempotencyKey, detail)
}

fn in_header(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut all = headers.get_all(HEADER);
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(refuse("Give the header once."));
    }
    let text = std::str::from_utf8(first.as_bytes()).map_err(|_| refuse("Give a key in UTF-8."))?;
    Ok(Some(unquoted(text)))
}

/// The draft of the header asks for a structured-field string (`"a-key"`), but most clients send the bare key.
fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return text.to_owned() };
    let mut chars = inner.chars();
    let next = || chars.next().map(|c| if c == '\\' { chars.next().unwrap_or(c) } else { c });
    std::iter::from_fn(next).collect()
}

/// SHA-256 of a key.
pub fn key_hash(key: &str) -> Hash {
    bytes(digest(&SHA256, key.as_bytes()).as_ref())
}

/// SHA-256 of what a JSON body requests. `implied` are members that come from outside the body, such as the channel in a
/// routing key.
pub fn request_hash(kind: Kind, body: &[u8], implied: &[(&str, &str)]) -> Hash {
    let mut hash = Context::new(&SHA256);
    hash.update(kind.as_str().as_bytes());
    hash.update(b"\n");
    match canonical(body, implied) {
        Some(text) => hash.update(&text),
        // Numbers beyond any machine type are valid JSON. Such a body equals only itself.
        None => hash.update(body),
    }
    bytes(hash.finish().as_ref())
}

fn canonical(body: &[u8], implied: &[(&str, &str)]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    if let Value::Object(members) = &mut value {
        members.remove("idempotency_key");
        for (name, text) in implied {
            members.entry(*name).or_insert_with(|| (*text).into());
        }
    }
    // A no-op while maps are ordered, but another crate may switch that off for the whole build.
    value.sort_all_objects();
    serde_json::to_vec(&value).ok()
}

fn bytes(digest: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
    hash
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers
                .append(HeaderName::from_static("idempotency-key"), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn parsed(header: &str) -> Option<String> {
        key(&headers(&[header]), None).ok().flatten()
    }

    #[test]
    fn a_key_is_taken_bare_or_quoted_from_the_header_or_the_body() {
        assert_eq!(parsed("order-42").as_deref(), Some("order-42"));
        assert_eq!(parsed("\"order-42\"").as_deref(), Some("order-42"));
        assert_eq!(parsed(r#""a \"b\" \\""#).as_deref(), Some(r#"a "b" \"#));
        assert_eq!(parsed("schlüssel").as_deref(), Some("schlüssel"));
        assert_eq!(key(&headers(&[]), Some("k".to_owned())).unwrap().as_deref(), Some("k"));
        assert_eq!(key(&headers(&["k"]), Some("k".to_owned())).unwrap().as_deref(), Some("k"));
        assert_eq!(key(&headers(&[]), None).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let longest = "x".repeat(KEY_BYTES_MAX);
        assert_eq!(parsed(&longest).as_deref(), Some(&*longest));
        for bad in [&*"x".repeat(KEY_BYTES_MAX + 1), "", "\"\""] {
            assert_eq!(key(&headers(&[bad]), None).unwrap_err().code(), Code::InvalidIdempotencyKey, "{bad}");
        }
        assert!(key(&headers(&["a", "b"]), None).is_err(), "two headers");
        assert!(key(&headers(&["a"]), Some("b".to_owned())).is_err(), "header and body differ");
    }

    #[test]
    fn order_spaces_and_the_key_itself_do_not_change_a_request() {
        let hash = |body: &str| request_hash(Kind::Send, body.as_bytes(), &[]);
        let one = hash(r#"{"channel":"sms","data":{"b":[1,{"y":2,"x":1}],"a":"ü"},"recipient":"+123"}"#);
        let other = hash(
            r#" {"recipient":"+123", "idempotency_key":"k", "data":{"a":"\u00fc","b":[1,{"x":1,"y":2}]}, "channel":"sms"} "#,
        );
        assert_eq!(one, other);
        assert_ne!(
            one,
            hash(r#"{"channel":"sms","data":{"b":[{"y":2,"x":1},1],"a":"ü"},"recipient":"+123"}"#),
            "order in a list matters"
        );
    }

    #[test]
    fn amqp_and_http_agree_when_the_channel_stands_in_the_routing_key() {
        let http = request_hash(Kind::Send, br#"{"channel":"sms","recipient":"+123"}"#, &[]);
        assert_eq!(http, request_hash(Kind::Send, br#"{"recipient":"+123"}"#, &[("channel", "sms")]));
        assert_eq!(http, request_hash(Kind::Send, br#"{"channel":"sms","recipient":"+123"}"#, &[("channel", "sms")]));
        assert_ne!(http, request_hash(Kind::Bulk, br#"{"channel":"sms","recipient":"+123"}"#, &[]), "send is not bulk");
    }

    #[test]
    fn a_number_beyond_any_type_still_hashes() {
        let body = br#"{"data":1e999}"#;
        assert_eq!(request_hash(Kind::Send, body, &[]), request_hash(Kind::Send, body, &[]));
    }
}
