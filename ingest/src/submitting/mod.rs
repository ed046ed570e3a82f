//! Submission over HTTP and AMQP, single and bulk, and reading the messages afterwards.

pub mod accept;
pub mod addresses;
pub mod bulk;
pub mod dry_run;
pub mod envelope;
pub mod events;
pub mod idempotency;
pub mod intake;
pub mod messages;
pub mod notifications;
pub mod rendering;
pub mod templated;
pub mod turns;
pub mod typed;
