//! What a notification is about, and how firmly a person may say no to it.

use super::word::words;

words!(
    /// The class of a category or type: who may switch it off, and what its mails must offer.
    Class {
        /// Passes every switch and every quiet hour; only a dead address stops it.
        Essential = "essential",
        /// Part of what the person uses; can be switched off.
        Transactional = "transactional",
        /// Advertising; can be switched off, as a whole too.
        Marketing = "marketing",
    }
);

/// The category of advertising.
pub const MARKETING: &str = "marketing";

impl Class {
    /// The default class of a category.
    pub fn of(category: Option<&str>) -> Self {
        match category {
            Some("security" | "system") => Self::Essential,
            Some(MARKETING) => Self::Marketing,
            Some(_) | None => Self::Transactional,
        }
    }
}
