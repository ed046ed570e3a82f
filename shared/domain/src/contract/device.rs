//! The devices that push notifications go to: a token of a platform, or a browser's Web Push subscription.

use serde::{Deserialize, Serialize};

/// A Web Push subscription, as a browser's `PushSubscription.toJSON()` returns it. It has one written form, so the same
/// subscription is always the same address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The URL at which its push service takes messages.
    pub endpoint: String,
    /// The keys that encrypt messages for this browser.
    pub keys: SubscriptionKeys,
}

/// The keys of a subscription, in base64url.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionKeys {
    /// The browser's public key, an uncompressed point on P-256.
    pub p256dh: String,
    /// A secret of 16 bytes.
    pub auth: String,
}

impl std::fmt::Debug for Subscription {
    /// It is a secret: its holder can write to a person's browser.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription(…)")
    }
}

impl std::fmt::Debug for SubscriptionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SubscriptionKeys(…)")
    }
}

impl Subscription {
    /// Reads a recipient; `None` if it is no complete subscription.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// Whether a recipient looks like a subscription.
pub fn is_subscription(recipient: &str) -> bool {
    recipient.starts_with('{')
}
