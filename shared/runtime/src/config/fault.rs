//! The faults of the settings, all of them at once.

use std::fmt::{Display, Formatter, Result};

/// Every fault of the settings; `Display` lists them, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The faults, in the order the settings are read; never empty.
    pub faults: Vec<ConfigFault>,
}

/// One fault: the variable, its value unless secret, the expected value and an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The variable as it was set, or its first name where it is missing.
    pub name: String,
    /// Its value; `***` for a secret, `None` if it is missing or the value does not help.
    pub value: Option<String>,
    /// The fault and the expected value, as the rest of a sentence that starts with the name.
    pub problem: String,
    /// A value that would do.
    pub example: Option<&'static str>,
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.faults.len() {
            1 => f.write_str("a setting is wrong:")?,
            count => write!(f, "{count} settings are wrong:")?,
        }
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Display for ConfigFault {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        write!(f, " {}", self.problem)?;
        match self.example {
            Some(example) => write!(f, "; for example {example}"),
            None => Ok(()),
        }
    }
}
