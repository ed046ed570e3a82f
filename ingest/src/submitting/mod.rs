//! Submission over HTTP and AMQP, single and bulk.

pub mod bulk;
pub mod dry_run;
pub mod events;
pub mod intake;
pub mod notifications;
pub mod notify;
pub mod templated;
pub mod whatsapp;
