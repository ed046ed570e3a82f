//! Text messages.

pub mod sns;
pub mod twilio;
