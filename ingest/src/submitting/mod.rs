//! Taking messages in: over HTTP and AMQP, one by one and many at once; and looking at what became of them.

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
