//! E-mail.

mod compose;
pub mod sendgrid;
pub mod ses;
pub mod smtp;
mod smtp_connection;
mod smtp_reply;
