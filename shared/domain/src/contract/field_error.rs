//! A fault in a request: the field, and how to correct it.

use serde::Serialize;

/// One fault of a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field as the producer spells it; `body` for the whole body.
    pub field: String,
    /// How to correct it, as a clause.
    pub message: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The name of an unknown field, if it looks like a name. A misplaced value must not be repeated.
pub(super) fn shown(name: String) -> String {
    let is_name = (1..=60).contains(&name.len())
        && name.chars().all(|letter| letter.is_ascii_alphabetic() || letter == '_' || letter == '-');
    if is_name { name } else { "(unknown)".to_owned() }
}
