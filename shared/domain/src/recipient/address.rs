//! A recipient's address. Logs show a masked form only.

use serde::{Deserialize, Serialize};

/// An e-mail address, phone number, URL, device token or user id. `Debug` and `Display` show a masked form only.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// Wraps an address that was validated on its way in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The address itself: for the provider and the database, never for a log line.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The address itself, by value.
    pub fn into_inner(self) -> String {
        self.0
    }

    /// The first character and the kind of the address: enough to tell two apart in a log, not enough to use one.
    pub fn masked(&self) -> String {
        let first = self.0.chars().next().map(String::from).unwrap_or_default();
        let tail = match self.0.split_once("://") {
            Some((scheme, _)) => return format!("{scheme}://…"),
            None if self.0.contains('@') => "…@…",
            None => "…",
        };
        format!("{first}{tail}")
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({})", self.masked())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.masked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_prints_itself() {
        for text in ["ada@example.com", "+4915112345678", "https://example.com/hook?key=1", "user-123", ""] {
            let shown = format!("{0} {0:?}", Address::new(text));
            assert!(text.is_empty() || !shown.contains(text), "{shown}");
            assert!(!shown.contains("example.com"), "{shown}");
        }
    }
}
