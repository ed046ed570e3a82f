//! The types that cross a boundary: bodies on the broker, the submission of a producer, the provider trait.

pub mod contact;
pub mod device;
mod field_error;
pub mod guard;
pub mod provider;
pub mod send_window;
pub mod submission;
pub mod time_of_day;
pub mod webhooks;
pub mod wire;

pub use provider::{Order, Provider};
pub use wire::{AttemptRecord, Event, EventBatch, WorkItem};
