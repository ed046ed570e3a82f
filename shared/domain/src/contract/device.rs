//! The devices that push notifications go to: a token of a platform, or a browser's Web Push subscription.

use serde::{Deserialize, Serialize};

/// A Web Push subscription, as `PushSubscription.toJSON()` of a browser gives it. Written in one form only, so that the same
/// subscription is the same address however it came.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Where its push service takes messages.
    pub endpoint: String,
    /// What only the browser can read is encrypted with these.
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
    /// A secret: with it one can write to a person's browser.
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
    /// Reads a recipient; `None`: it is something else, or not whole.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// Whether a recipient means to be a subscription.
pub fn is_subscription(recipient: &str) -> bool {
    recipient.starts_with('{')
}
