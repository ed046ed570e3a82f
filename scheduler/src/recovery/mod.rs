//! Work of processes that died.

pub mod audit;
pub mod crashes;
