//! Work over all tables: erasure, retention, key rotation: one file per table or aggregate, its statements in `sql/`.
//!
//! [`Maintenance`] is the table of contents: each of its methods gives the statements of one file.

pub mod erasure;
pub mod freeze;
pub mod retention;
pub mod rotation;

store::handles! {
    /// Work over all tables: erasure, retention, key rotation.
    pub trait Maintenance {
        /// Erasure of people.
        erasure: ErasureStore,
        /// Partitions of past days.
        partitions: PartitionStore,
        /// Retention of stored rows.
        retention: RetentionStore,
        /// Rotation of encryption keys.
        key_rotation: KeyRotation,
    }
}

/// Every statement, for the test that compares them with the schema.
pub fn statements() -> Vec<store::sql::Shape> {
    let modules = [
        erasure::shapes(),
        freeze::shapes(),
        retention::shapes(),
        retention::days::shapes(),
        retention::rows::shapes(),
    ];
    modules.into_iter().flatten().collect()
}
