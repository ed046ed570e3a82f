//! What is wrong with something that was written: the field, and what to do about it.

use serde::Serialize;

/// One thing wrong with a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field, in the producer's own spelling; `body` for the whole.
    pub field: String,
    /// What to do about it, as a clause.
    pub message: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The name of an unknown field, where it looks like a name: a misplaced value must not be repeated.
pub(super) fn shown(name: String) -> String {
    let is_name = (1..=60).contains(&name.len())
        && name.chars().all(|letter| letter.is_ascii_alphabetic() || letter == '_' || letter == '-');
    if is_name { name } else { "(unknown)".to_owned() }
}
