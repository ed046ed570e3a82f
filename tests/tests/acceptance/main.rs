//! How messages are accepted: over HTTP and AMQP, one by one and in bulk.

mod acceptance;
mod accepting;
mod intake;
mod local_dispatch;
mod sending;
