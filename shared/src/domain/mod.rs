//! The words of Posthaste and the rules that need nothing but their arguments.
//!
//! Nothing here does I/O, awaits, reads a clock or the environment: randomness and time are arguments, so every
//! rule can be tested as a table.

pub mod address;
pub mod breaker;
pub mod channel;
pub mod delivery;
pub mod event;
pub mod id;
pub mod outcome;
pub mod phone;
pub mod retry;
pub mod session;
pub mod suppression;
pub mod teller;
mod word;

pub use word::UnknownWord;

pub use address::Address;
pub use breaker::BreakerState;
pub use channel::{Channel, Lane, Priority, Route};
pub use delivery::State;
pub use event::{DeadOrigin, DeadReason, EventKind};
pub use id::{BulkId, DeliveryId, MessageId, TenantId};
pub use outcome::{Fault, Outcome, OutcomeClass, ProviderName, Receipt};
pub use retry::{RetryPolicy, Round, Schedule, Standing, Tries, Verdict};
pub use session::{OnLimit, SignatureRule};
pub use teller::Teller;
