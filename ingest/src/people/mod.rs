//! The people that messages go to, and what is theirs.

pub mod devices;
pub mod export;
pub mod imports;
pub mod inbox;
pub mod reads;
pub mod users;
