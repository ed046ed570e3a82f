//! The log writer, and all that reads or refills its queue.

pub mod crash_gate;
pub mod dead_letter_drainer;
pub mod dead_letter_message;
pub mod incoming;
pub mod log_progress;
pub mod log_writer;
pub mod replays;
pub mod unread_events;
