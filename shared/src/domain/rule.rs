//! Rules: which events make which notifications. Conditions never coerce: unlike types compare false.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Channel, Priority, word::words};

words!(
    /// How a condition compares.
    Operator {
        /// Equal.
        Eq = "eq",
        /// Not equal.
        Ne = "ne",
        /// Greater.
        Gt = "gt",
        /// Greater or equal.
        Gte = "gte",
        /// Less.
        Lt = "lt",
        /// Less or equal.
        Lte = "lte",
        /// One of a list.
        In = "in",
        /// There at all, `null` included; compared with `false`: not there.
        Exists = "exists",
        /// A text holds a text, a list an element.
        Contains = "contains",
    }
);

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// A path such as `data.amount` or `user.attributes.tier`.
    pub field: String,
    /// How it is compared.
    pub op: Operator,
    /// With what.
    #[serde(default)]
    pub value: Value,
}

/// How events gather into one notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestRule {
    /// How long a window is, in seconds; a sliding one after its last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u32>,
    /// A path in the event whose value keeps windows apart, such as `data.project`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Closes a window early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_items: Option<u32>,
    /// Makes the window slide: each event prolongs it, up to this many seconds after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_window_seconds: Option<u32>,
    /// Tells the first event at once and gathers only what follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_immediately: bool,
    /// Closes windows by the person's clock instead, such as `0 8 * * *`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
}

/// How often one person is told by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// So many times.
    pub limit: u32,
    /// Within any so many seconds.
    pub window_seconds: u32,
}

/// What a rule says, but for its name and event type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDefinition {
    /// All of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What is written.
    pub template_name: String,
    /// By which ways.
    pub channels: Vec<Channel>,
    /// The type of the notification; unset: the event's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification_type: Option<String>,
    /// What it is about; unset: the type's, else the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// How long it waits first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u32>,
    /// Whether events gather.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<DigestRule>,
    /// How often one person is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
}
