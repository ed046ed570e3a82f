//! The recipients of messages and their data: addresses, devices, preferences, and inboxes, also over open sockets.

pub mod choices;
pub mod devices;
pub mod export;
pub mod imports;
pub mod inbox;
pub mod live;
pub mod person_file;
pub mod preferences;
pub mod reads;
pub mod unsubscribe;
pub mod users;
