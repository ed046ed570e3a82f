//! The log queue: its writer, and the tasks that handle dead letters, replays and events that an earlier version could not read.

pub mod crash_gate;
pub mod dead_letter_drainer;
pub mod dead_letter_message;
pub mod incoming;
pub mod log_progress;
pub mod log_writer;
pub mod replays;
pub mod unread_events;
