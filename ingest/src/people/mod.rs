//! The people that messages go to, and what is theirs.

pub mod choices;
pub mod devices;
pub mod export;
pub mod imports;
pub mod inbox;
pub mod preferences;
pub mod reads;
pub mod unsubscribe;
pub mod users;
