//! The life of a process: its settings, logs, metrics, health and signals, and what reconnects, batches and wakes.

pub mod batch;
pub mod config;
pub mod faultpoint;
pub mod metric;
pub mod probe;
pub mod reconnect;
pub mod service;
pub mod telemetry;
pub mod wake;
