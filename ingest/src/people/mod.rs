//! The people that messages go to, and what is theirs.

pub(crate) mod choices;
pub(crate) mod devices;
pub(crate) mod export;
pub mod importing;
pub(crate) mod imports;
pub(crate) mod inbox;
pub mod person_file;
pub(crate) mod preferences;
pub(crate) mod reads;
pub(crate) mod unsubscribe;
pub(crate) mod users;
