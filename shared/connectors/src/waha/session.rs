//! Sessions in WAHA's form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A session.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// Its name.
    pub name: String,
    /// `STOPPED`, `STARTING`, `SCAN_QR_CODE`, `WORKING`, `FAILED`, or a state of a later version.
    pub status: String,
    /// Its configuration; some versions return none for a session that never got one.
    #[serde(default)]
    pub config: Option<SessionConfig>,
    /// The account, once linked.
    #[serde(default)]
    pub me: Option<Me>,
}

/// The account behind a session.
#[derive(Clone, Debug, Deserialize)]
pub struct Me {
    /// Its chat id.
    pub id: String,
}

/// A session's configuration. Unknown parts are kept, so writing it back loses nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionConfig {
    /// Where events go.
    #[serde(default)]
    pub webhooks: Vec<WebhookSpec>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Where events go, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WebhookSpec {
    /// The URL.
    pub url: String,
    /// The names of the events.
    #[serde(default)]
    pub events: Vec<String>,
    /// The key that signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<Hmac>,
    /// How often it is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The key that signs webhooks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hmac {
    /// The key; some versions return none, or only stars.
    #[serde(default)]
    pub key: Option<String>,
}

impl std::fmt::Debug for Hmac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hmac(…)")
    }
}

/// The retries of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// `constant`, `linear` or `exponential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The pause.
    #[serde(rename = "delaySeconds", default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u32>,
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
}

/// The code to scan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Qr {
    /// `image/png`.
    pub mimetype: String,
    /// The picture in base64.
    pub data: String,
}

/// Whether a number is on WhatsApp.
#[derive(Clone, Debug, Deserialize)]
pub struct NumberCheck {
    /// Whether it is.
    #[serde(rename = "numberExists")]
    pub exists: bool,
    /// The chat it has there.
    #[serde(rename = "chatId", default)]
    pub chat_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_what_it_does_not_know() {
        let text = r#"{"webhooks":[{"url":"https://a.example/","events":["*"],"customHeaders":null}],"debug":true}"#;
        let config: SessionConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }
}
