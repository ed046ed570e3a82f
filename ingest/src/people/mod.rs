//! The people that messages go to, and what is theirs.

pub mod inbox;
pub mod reads;
pub mod users;
