//! The category of a notification, and how far a person may refuse it.

use super::word::words;

words!(
    /// The class of a category or type. It decides who may switch it off, and which unsubscribe links its mails need.
    Class {
        /// Passes every preference and quiet hour. Only a dead address stops it.
        Essential = "essential",
        /// Part of a service that the person uses; can be switched off.
        Transactional = "transactional",
        /// Advertising; can be switched off, also all of it at once.
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
