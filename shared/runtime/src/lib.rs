//! The life of a process: settings, logs, metrics, health, signals, reconnecting, batching and waking.

pub mod batch;
pub mod config;
pub mod faultpoint;
pub mod metric;
pub mod probe;
pub mod reconnect;
pub mod service;
pub mod telemetry;
pub mod wake;
