//! The outcomes of attempts.

use std::time::Duration;

use crate::word::words;

words!(
    /// The name of an outcome in the log and the metrics.
    OutcomeClass {
        /// The provider accepted it.
        Sent = "sent",
        /// A temporary failure; retried later.
        Transient = "transient",
        /// The provider's rate limit; retried without spending an attempt.
        Throttled = "throttled",
        /// The provider refused this delivery; never retried.
        Rejected = "rejected",
        /// The address is invalid; never used again.
        AddressDead = "address_dead",
        /// Our credentials or settings are wrong.
        Misconfigured = "misconfigured",
        /// The message may have been sent.
        Unknown = "unknown",
    }
);

/// The provider's answer when it accepted a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The provider's own id of the message.
    pub provider_ref: Option<String>,
    /// The status or reply code, as text.
    pub code: Option<String>,
    /// One clause about anything special; it holds no address and no content.
    pub note: Option<String>,
    /// Whether the message has already reached the recipient (a webhook answered 2xx, an inbox row is stored).
    pub arrived: bool,
}

/// Why an attempt did not succeed: a code for programs and a sentence for people. Neither holds an address or content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The status or reply code, or a short word such as `connect`.
    pub code: Option<String>,
    /// One clause that describes what happened.
    pub detail: String,
}

impl Fault {
    /// Creates a fault with a code and a detail.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: Some(code.into()), detail: detail.into() }
    }
}

/// The outcome of one attempt. A `match` on it has no `_` arm, so that a new outcome must be handled everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider accepted it.
    Sent(Receipt),
    /// A temporary failure: the provider asks for a retry, or the message was certainly not sent (5xx, refused connection).
    /// It may carry the provider's `Retry-After`.
    Transient(Fault, Option<Duration>),
    /// The provider's rate limit. It may carry the provider's `Retry-After`.
    Throttled(Fault, Option<Duration>),
    /// The provider refused this delivery; it is never retried.
    Rejected(Fault),
    /// The address is invalid; it is never used again.
    AddressDead(Fault),
    /// Our credentials or settings are wrong; the recipient is not the cause.
    Misconfigured(Fault),
    /// The message may have been sent: the call timed out, or the connection broke, after the request was written.
    Unknown(Fault),
}

impl Outcome {
    /// The class of this outcome.
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

    /// The fault, unless the delivery was sent.
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
