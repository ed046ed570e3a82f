//! The properties and headers of a received message.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;

/// Whether a header must not be forwarded. `x-death` and the like make brokers before 4.0 detect a dead-letter cycle
/// and silently drop the message; `CC` and `BCC` add routing keys, and close the channel if they are not lists.
pub(super) fn is_forbidden_header(name: &str) -> bool {
    ["x-death", "x-first-death", "x-last-death"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "CC" | "BCC")
}

/// The properties of a received message. Their content is untrusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties(BasicProperties);

impl From<BasicProperties> for Properties {
    fn from(properties: BasicProperties) -> Self {
        Self(properties)
    }
}

fn text(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str)
}

impl Properties {
    /// The publisher's id of the message; the idempotency key of a submission.
    pub fn message_id(&self) -> Option<&str> {
        text(self.0.message_id())
    }

    /// The correlation id to repeat in an answer.
    pub fn correlation_id(&self) -> Option<&str> {
        text(self.0.correlation_id())
    }

    /// The queue for an answer.
    pub fn reply_to(&self) -> Option<&str> {
        text(self.0.reply_to())
    }

    /// The publishing user; the broker refuses any name but that of the connection's user.
    pub fn user_id(&self) -> Option<&str> {
        text(self.0.user_id())
    }

    /// The media type of the body.
    pub fn content_type(&self) -> Option<&str> {
        text(self.0.content_type())
    }

    /// The AMQP `type`, such as `work.v1`.
    pub fn kind(&self) -> Option<&str> {
        text(self.0.kind())
    }

    /// A header, if its value is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.table()?.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// All headers as JSON.
    pub fn headers(&self) -> BTreeMap<String, Value> {
        let entries = self.table().into_iter().flatten();
        entries.map(|(name, value)| (name.to_string(), json(value))).collect()
    }

    /// How often the message was returned to its queue. A broker from 3.12 on omits the header on the first delivery.
    pub fn delivery_count(&self) -> u64 {
        let count = self.table().and_then(|headers| headers.inner().get("x-delivery-count")).and_then(whole);
        count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }

    fn table(&self) -> Option<&FieldTable> {
        self.0.headers().as_ref()
    }
}

fn whole(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    }
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(truth) => (*truth).into(),
        AMQPValue::Float(number) => (*number).into(),
        AMQPValue::Double(number) => (*number).into(),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::DecimalValue(decimal) => format!("{}e-{}", decimal.value, decimal.scale).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => text.to_string().into(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            table.into_iter().map(|(name, value)| (name.to_string(), json(value))).collect()
        }
        number => whole(number).map_or(Value::Null, Value::from),
    }
}

/// The longest prefix of `text` that fits into `bytes_max` without splitting a character.
pub(super) fn truncated(text: &str, bytes_max: usize) -> &str {
    let end = text.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|end| *end <= bytes_max).last();
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_become_json_whatever_their_type() {
        let mut inner = FieldTable::default();
        inner.insert("deep".into(), AMQPValue::Boolean(true));
        let mut table = FieldTable::default();
        table.insert("text".into(), AMQPValue::LongString("a".into()));
        table.insert("number".into(), AMQPValue::LongInt(-3));
        table.insert("list".into(), AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::FieldTable(inner)].into()));
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(4));
        let properties = Properties(BasicProperties::default().with_headers(table));
        let headers = serde_json::to_string(&properties.headers()).unwrap();
        assert_eq!(headers, r#"{"list":[null,{"deep":true}],"number":-3,"text":"a","x-delivery-count":4}"#);
        assert_eq!(properties.header("text"), Some("a"));
        assert_eq!(properties.header("number"), None);
        assert_eq!(properties.delivery_count(), 4);
        assert_eq!(Properties::default().delivery_count(), 0);
    }

    #[test]
    fn death_headers_and_extra_recipients_are_forbidden() {
        for name in ["x-death", "x-first-death-queue", "x-last-death-reason", "CC", "BCC"] {
            assert!(is_forbidden_header(name), "{name}");
        }
        assert!(!is_forbidden_header("traceparent"));
    }

    #[test]
    fn truncation_never_cuts_a_character() {
        assert_eq!(truncated("añb", 2), "a");
        assert_eq!(truncated("añb", 3), "añ");
        assert_eq!(truncated("añb", 99), "añb");
        assert_eq!(truncated("ñ", 1), "");
    }
}
