//! The broker: the only publish and the only ack of the whole system.
//!
//! - [`topology`] says what must exist, as data; [`declare`] makes it so, or tells what is not.
//! - [`Broker`] keeps one connection alive; a process has one to publish and one to consume.
//! - [`Publisher`] publishes with confirms, always; [`dead_letter`] puts a message aside with a reason.
//! - [`Subscriber`] hears the hints that are published while it listens.
//! - [`Depths`] says how long work queues are.
//! - [`Consumer`] hands out batches; its [`Acker`] takes back what is finished, in any order.
//!
//! Nothing here knows what a message means, and nothing here is the truth: a message lost, repeated or reordered by the
//! broker costs time, because every receiver checks with the database before it acts.

mod connection;
mod consumer;
mod dead_letter;
pub mod declare;
mod depths;
mod ledger;
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
pub use properties::Properties;
pub use publisher::{Headers, Outgoing, PublishError, Publisher};
pub use subscriber::{Heard, Subscriber};
pub use topology::{DLQ, EVENTS_LOG, INTAKE_HIGH, INTAKE_STD, Topology, work_key, work_queue};
