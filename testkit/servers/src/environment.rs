//! The environment that a command was started in.
#![expect(
    clippy::disallowed_methods,
    reason = "this crate starts the services and decides what they find in their environment; it has no settings of its own"
)]

use std::ffi::OsString;

/// The value of a variable. One that is empty counts as not set, as it does for the services.
pub fn get(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first of the variables that is set.
pub fn first_set(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| get(name))
}

/// The names of all variables.
pub fn names() -> Vec<OsString> {
    std::env::vars_os().map(|(name, _)| name).collect()
}
