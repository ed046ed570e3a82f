//! Whether the database has the schema of this version.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use runtime::probe::{Checking, Health, Part};

use crate::problem::Problem;

/// Whether every migration of this version has run. Clones share it.
#[derive(Clone, Default)]
pub struct MigrationState(Arc<AtomicBool>);

impl MigrationState {
    /// Fails with `unavailable` until the migrations have run.
    pub fn require_current(&self) -> Result<(), Problem> {
        if self.is_current() { Ok(()) } else { Err(Problem::unavailable()) }
    }

    /// Every migration of this version has run: requests may use the database.
    pub fn mark_current(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_current(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Part for MigrationState {
    fn name(&self) -> &'static str {
        "schema"
    }

    fn check(&self) -> Checking<'_> {
        let health = match self.is_current() {
            true => Health::Up,
            false => Health::Down("migrations are pending: run `posthaste migrate`".to_owned()),
        };
        Box::pin(std::future::ready(health))
    }
}
