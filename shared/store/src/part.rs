//! The database as a part of a process.

use runtime::probe::{Checking, Health, Part};

use crate::Store;

/// The database as a part; every service needs it.
pub struct DatabasePart(pub Store);

impl Part for DatabasePart {
    fn name(&self) -> &'static str {
        "database"
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(async {
            match self.0.ping().await {
                Ok(()) => Health::Up,
                Err(error) => Health::Down(error.to_string()),
            }
        })
    }
}
