//! Schemas that several areas share, for the OpenAPI document.

use utoipa::ToSchema;

/// A field that is not valid.
#[derive(ToSchema)]
#[schema(as = FieldError)]
pub struct FieldErrorBody {
    /// The field as the producer spells it; `body` for the whole body.
    #[schema(example = "recipient")]
    pub field: String,
    /// The fault, and how to correct it.
    #[schema(example = "must be one e-mail address such as ada@example.com")]
    pub message: String,
}

/// A browser's subscription to Web Push.
#[derive(ToSchema)]
#[schema(as = PushSubscription)]
pub struct SubscriptionBody {
    /// The URL at which its push service takes messages: https, and no private address.
    #[schema(example = "https://push.example.com/abc")]
    pub endpoint: String,
    /// Its keys.
    pub keys: SubscriptionKeysBody,
}

/// The keys of a subscription.
#[derive(ToSchema)]
#[schema(as = PushSubscriptionKeys)]
pub struct SubscriptionKeysBody {
    /// The browser's public key: an uncompressed point on P-256 in base64url.
    pub p256dh: String,
    /// A secret of 16 bytes in base64url.
    pub auth: String,
}
