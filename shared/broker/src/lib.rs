//! RabbitMQ: the only place that publishes and the only place that acks.
//!
//! - [`topology`] lists what must exist, as data; [`declare`] creates it, or reports what is missing.
//! - [`Broker`] keeps one connection alive; a process has one to publish and one to consume.
//! - [`Publisher`] publishes, always with confirms; [`dead_letter`] dead-letters a message with a reason.
//! - [`Subscriber`] receives the hints that are published while it is registered.
//! - [`Depths`] reports the lengths of work queues.
//! - [`Consumer`] returns batches of messages; its [`Acker`] finishes them in any order.
//!
//! This crate does not interpret messages, and the broker is never the source of truth: every receiver checks the
//! database before it acts. So a message that the broker loses, repeats or reorders only costs time.

mod connection;
mod consumer;
mod dead_letter;
pub mod declare;
mod depths;
mod ledger;
mod part;
mod pipeline;
mod properties;
mod publisher;
mod subscriber;
pub mod topology;
mod version;

pub use connection::{Broker, BrokerError, BrokerState, OnConnect, connect};
pub use consumer::{Acker, Consumer, ConsumerHealth, Delivery, Tag};
pub use dead_letter::{DETAIL, EXCHANGE, QUEUE, REASON, ROUTING_KEY, USER_ID, dead_letter, dead_letter_of};
pub use declare::{QueueDepth, TopologyError};
pub use depths::{Depths, Ready};
pub use part::BrokerPart;
pub use properties::Properties;
pub use publisher::{Headers, Outgoing, PublishError, Publisher};
pub use subscriber::{Heard, Subscriber};
pub use topology::{DLQ, EVENTS_LOG, INTAKE_HIGH, INTAKE_STD, Topology, work_key, work_queue};
