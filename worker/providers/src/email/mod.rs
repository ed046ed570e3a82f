//! E-mail.

mod compose;
mod dkim;
pub mod sendgrid;
pub mod ses;
pub mod smtp;
mod smtp_connection;
mod smtp_reply;
pub mod tracking;
pub mod unsubscribe_links;
