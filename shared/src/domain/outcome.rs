//! How an attempt ended.

use std::time::Duration;

use super::word::words;

words!(
    /// What carries a channel.
    ProviderName {
        /// SMTP server.
        Smtp = "smtp",
        /// SendGrid v3.
        Sendgrid = "sendgrid",
        /// Amazon SES v2.
        Ses = "ses",
        /// Twilio Messages.
        Twilio = "twilio",
        /// Amazon SNS.
        Sns = "sns",
        /// Firebase Cloud Messaging.
        Fcm = "fcm",
        /// Apple Push Notification service.
        Apns = "apns",
        /// Web Push.
        Webpush = "webpush",
        /// HTTP webhook.
        Http = "http",
        /// The in-app inbox.
        Inbox = "inbox",
        /// WhatsApp HTTP API.
        Waha = "waha",
        /// Pretends, deterministically, so that users can try every outcome.
        Sandbox = "sandbox",
    }
);

words!(
    /// The word for an outcome in the log and the metrics.
    OutcomeClass {
        /// Taken by the provider.
        Sent = "sent",
        /// An answer that says "later".
        Transient = "transient",
        /// Too much at once; waits without spending an attempt.
        Throttled = "throttled",
        /// Never retry this delivery.
        Rejected = "rejected",
        /// Never use this address again.
        AddressDead = "address_dead",
        /// Our credentials or settings are wrong.
        Misconfigured = "misconfigured",
        /// May have been sent.
        Unknown = "unknown",
    }
);

/// What the provider said when it took a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The provider's own id for it.
    pub provider_ref: Option<String>,
    /// The status or reply code, as text.
    pub code: Option<String>,
    /// One clause on what is special about it; no address, no content.
    pub note: Option<String>,
    /// Whether the recipient's side itself has it now (a webhook answered 2xx, an inbox row stands).
    pub arrived: bool,
}

/// Why an attempt did not succeed: a code for programs and a sentence for people. Neither holds an address or content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The status or reply code, or a short word such as `connect`.
    pub code: Option<String>,
    /// One clause that says what happened.
    pub detail: String,
}

impl Fault {
    /// A fault with a code and a detail.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: Some(code.into()), detail: detail.into() }
    }
}

/// Every way one attempt can end. Matches on it have no `_` arm: a new way must be thought through everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took it.
    Sent(Receipt),
    /// An answer that says "later", or certainly not sent: 5xx, refused connection.
    Transient(Fault, Option<Duration>),
    /// Too much at once; the provider may say when to come back.
    Throttled(Fault, Option<Duration>),
    /// Never retry this delivery.
    Rejected(Fault),
    /// Never retry this address.
    AddressDead(Fault),
    /// Our credentials or settings; nothing the recipient can help.
    Misconfigured(Fault),
    /// May have been sent: time ran out or the connection broke after the request was written.
    Unknown(Fault),
}

impl Outcome {
    /// The word for this outcome.
    pub const fn class(&self) -> OutcomeClass {
        match self {
            Self::Sent(_) => OutcomeClass::Sent,
            Self::Transient(..) => OutcomeClass::Transient,
            Self::Throttled(..) => OutcomeClass::Throttled,
            Self::Rejected(_) => OutcomeClass::Rejected,
            Self::AddressDead(_) => OutcomeClass::AddressDead,
            Self::Misconfigured(_) => OutcomeClass::Misconfigured,
            Self::Unknown(_) => OutcomeClass::Unknown,
        }
    }

    /// What went wrong, if something did.
    pub const fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Sent(_) => None,
            Self::Transient(fault, _) | Self::Throttled(fault, _) => Some(fault),
            Self::Rejected(fault) | Self::AddressDead(fault) | Self::Misconfigured(fault) | Self::Unknown(fault) => {
                Some(fault)
            }
        }
    }
}
