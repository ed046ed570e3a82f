//! The log of calls to webhook configurations. Calls are masked, truncated and written to the database in batches. They bypass the
//! broker, because broker messages hold no personal data.

use std::time::Duration;

use domain::contract::webhooks::{MASK, is_secret_header};
use records::{Records, webhook_logs::NewCall};
use reqwest::header::HeaderMap;
use runtime::{
    batch::{Batcher, Limits},
    reconnect::Reconnect,
};
use serde_json::{Map, Value, json};
use store::Store;

use crate::counters;

/// Logged bytes of a request's body.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Logged bytes of a response's body.
pub const RESPONSE_BYTES_MAX: usize = 4 * 1024;
const LIMITS: Limits = Limits { batch_max: 128, parallel_max: 1, queue_max: 2048, spacing: Duration::from_millis(20) };
/// Tries to write a batch before it is dropped.
const TRIES_MAX: u32 = 20;

/// Logs calls.
pub struct CallLog(Batcher<NewCall, ()>);

impl CallLog {
    /// Writes to `store`, which switches off a configuration that fails for longer than `disable_after`.
    pub fn start(store: Store, disable_after: Duration) -> Self {
        let disable_after_ms = i64::try_from(disable_after.as_millis()).unwrap_or(i64::MAX);
        Self(Batcher::start(LIMITS, move |calls| write(store.clone(), disable_after_ms, calls)))
    }

    /// Logs a call. The call is dropped if the queue is full: no delivery waits for the log.
    pub fn log(&self, call: NewCall) {
        if self.0.post(call).is_err() {
            counters::call_not_logged();
        }
    }
}

async fn write(store: Store, disable_after_ms: i64, calls: Vec<NewCall>) -> Vec<()> {
    let mut reconnect = Reconnect::new();
    for _ in 0..TRIES_MAX {
        match store.webhook_logs().insert(&calls, disable_after_ms).await {
            Ok(disabled) => {
                for (configuration, why) in disabled {
                    tracing::warn!(configuration.id = %configuration, why, "a webhook configuration was switched off");
                }
                break;
            }
            Err(error) if error.is_unavailable() => reconnect.pause().await,
            Err(error) => {
                tracing::error!(%error, "calls to webhook configurations cannot be logged");
                break;
            }
        }
    }
    vec![(); calls.len()]
}

/// The log entry of a request. `secret` decides whether a header's value is masked.
pub fn request(url: &str, headers: &HeaderMap, secret: impl Fn(&str) -> bool, body: &str) -> Value {
    json!({
        "method": "POST",
        "url": url,
        "headers": headers_json(headers, secret),
        "body": truncated(body.as_bytes(), REQUEST_BYTES_MAX),
        "truncated": body.len() > REQUEST_BYTES_MAX,
    })
}

/// The log entry of a response.
pub fn response(headers: &HeaderMap, body: &[u8]) -> Value {
    json!({ "headers": headers_json(headers, is_secret_header), "body": truncated(body, RESPONSE_BYTES_MAX) })
}

fn headers_json(headers: &HeaderMap, secret: impl Fn(&str) -> bool) -> Map<String, Value> {
    let value = |name: &str, value: &[u8]| match secret(name) {
        true => MASK.to_owned(),
        false => truncated(value, 1024),
    };
    headers.iter().map(|(name, text)| (name.to_string(), value(name.as_str(), text.as_bytes()).into())).collect()
}

/// The first `bytes_max` bytes of a text. Invalid UTF-8 and NUL are replaced, because the database refuses them.
fn truncated(text: &[u8], bytes_max: usize) -> String {
    String::from_utf8_lossy(text.get(..bytes_max).unwrap_or(text)).replace('\0', "\u{fffd}")
}
