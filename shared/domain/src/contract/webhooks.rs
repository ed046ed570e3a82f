//! Names of webhook configurations: events, headers of Posthaste, headers whose values are secret.

use crate::{EventKind, WebhookRule};

/// A message from a person arrived.
pub const RECEIVED: &str = "message.received";
/// A dead letter was written.
pub const DEAD_LETTER: &str = "dead_letter.created";
/// A configuration was switched off, because its receiver is gone or keeps failing.
pub const ENDPOINT_DISABLED: &str = "endpoint.disabled";
/// The breaker of a provider opened, because the provider keeps failing.
pub const BREAKER_OPENED: &str = "breaker.opened";
/// It works again.
pub const BREAKER_CLOSED: &str = "breaker.closed";
/// A test event that an admin sends to check a configuration.
pub const TEST: &str = "test";
/// `source` of the messages that carry events. Their own events are not reported, because each report would cause
/// another.
pub const SOURCE: &str = "event";

/// The text shown in place of a secret header's value.
pub const MASK: &str = "***";

const OTHERS: &[&str] = &[RECEIVED, DEAD_LETTER, ENDPOINT_DISABLED, BREAKER_OPENED, BREAKER_CLOSED];

/// Whether events of this name are ever reported: `message.<status>`, engagement included, and a few more.
pub fn is_event(name: &str) -> bool {
    // A delivery is replayed or ambiguous only in its own log. Outside, the word is `queued` or `retrying`.
    let is_reported = |kind: EventKind| kind.info().webhooks != WebhookRule::Never;
    let of_message = name.strip_prefix("message.").and_then(|word| word.parse().ok());
    of_message.is_some_and(is_reported) || OTHERS.contains(&name)
}

/// Headers of the HTTP protocol, and our own.
const RESERVED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-request-id",
];

/// Whether a configuration may not set this header.
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("webhook-") || RESERVED.contains(&name.as_str())
}

/// Parts of the names of headers whose values are secret.
const SECRET_PARTS: &[&str] = &["auth", "cookie", "key", "token", "secret", "signature", "password", "session"];

/// Whether the value of this response header is masked wherever it is shown. Headers that a configuration adds to
/// requests are masked under any name.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_PARTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_those_of_messages_and_a_few_more() {
        for good in ["message.sent", "message.read", "message.clicked", RECEIVED, DEAD_LETTER, BREAKER_CLOSED] {
            assert!(is_event(good), "{good}");
        }
        for bad in
            ["", "message", "message.", "message.eaten", "message.ambiguous", "message.queued", "sent", "*", TEST]
        {
            assert!(!is_event(bad), "{bad}");
        }
    }

    #[test]
    fn our_headers_cannot_be_set_and_secret_ones_are_known_by_their_names() {
        for ours in ["Host", "Webhook-Id", "webhook-anything", "Transfer-Encoding", "Proxy-Authorization"] {
            assert!(is_reserved_header(ours), "{ours}");
        }
        assert!(!is_reserved_header("Authorization") && !is_reserved_header("X-Source"));
        assert!(is_secret_header("X-Api-Key") && is_secret_header("Set-Cookie") && !is_secret_header("X-Source"));
    }
}
