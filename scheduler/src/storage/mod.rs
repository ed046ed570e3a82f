//! The size of the database: partitions, pruning, retention.

pub mod partitions;
pub mod pruning;
pub mod retention;
