//! The words and rules of Posthaste, and the types that cross a boundary.
//!
//! Nothing here does I/O, awaits or reads the environment, and only [`clock`] reads the time. Randomness and time are
//! arguments, so every rule can be tested as a table.

pub mod acceptance;
pub mod broadcast;
pub mod category;
pub mod channel;
pub mod clock;
pub mod contract;
mod crypto;
mod delivery;
pub mod id;
pub mod provider;
pub mod publishers;
mod recipient;
pub mod rule;
pub mod session;
pub mod window;
mod word;

pub use crypto::{p256, seal, token};
pub use delivery::{breaker, event, event_source, outcome, replay, retry, state};
pub use recipient::{address, person, phone, preference, quiet, send_window, suppression, unsubscribe};

pub use word::UnknownWord;

pub use address::Address;
pub use breaker::BreakerState;
pub use broadcast::{BroadcastStatus, Target};
pub use category::Class;
pub use channel::{Channel, Lane, Priority, Route};
pub use event::{DeadOrigin, DeadReason, EventKind, Reason, WebhookRule};
pub use event_source::EventSource;
pub use id::{BulkId, DeliveryId, MessageId, TenantId};
pub use outcome::{Fault, Outcome, OutcomeClass, Receipt};
pub use person::{Device, Person, Platform, push_target};
pub use preference::{Choice, Preferences, RecipientPolicy, Topic, Wait};
pub use provider::{ProviderInfo, ProviderName};
pub use publishers::{Publishers, RequireMapping};
pub use quiet::QuietHours;
pub use retry::{FailoverRound, ProviderProgress, RetryDecision, RetryPolicy, Schedule, Tries};
pub use rule::{Condition, Operator, RuleDefinition, RuleIndex, Throttle};
pub use send_window::{Day, SendWindow};
pub use session::{OnLimit, SignatureRule};
pub use state::{State, Trigger};
pub use window::{DigestRule, LocalSchedule};
