//! The way to PostgreSQL: the pool, statements as files, row-level security, encrypted columns, migrations. The statements
//! themselves are in `records`, `deliveries` and `maintenance`.
//!
//! No transaction stays open during a network call, and nothing here uses the broker.

mod connect;
pub mod migrate;
mod part;
pub mod scope;

pub mod seal_check;
pub mod sealed;
pub mod sql;
pub mod sqlstate;
pub mod statement;

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use deadpool::{
    Runtime,
    managed::{Hook, HookError, Metrics, Timeouts},
};
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection,
    pooled_connection::{
        AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
        deadpool::{Object, Pool},
    },
};
use domain::seal::{SealError, Sealer};
use futures_util::FutureExt;
use runtime::config::DatabaseConfig;
use secrecy::ExposeSecret;

use sqlstate::{
    DATA_CORRUPTED, DEADLOCK_DETECTED, INDEX_CORRUPTED, LOCK_NOT_AVAILABLE, QUERY_CANCELED, SERIALIZATION_FAILURE,
};

pub use part::DatabasePart;
pub use scope::{Floor, Scoped};
pub use statement::{Statement, statement};

/// Every statement, for the test that compares them with the schema.
pub fn statements() -> Vec<sql::Shape> {
    let modules = [connect::shapes(), migrate::shapes(), scope::shapes(), seal_check::shapes(), statement::shapes()];
    modules.into_iter().flatten().collect()
}

/// The longest wait for a connection. It is below the 2 s within which ingest promises its 503.
const CONNECT_WAIT_MAX: Duration = Duration::from_millis(1500);
/// The longest wait for a connection of [`Store::open_prompt`].
const PROMPT_WAIT_MAX: Duration = Duration::from_millis(1200);
/// The longest wait for a connection of a command: its user was promised no answer within two seconds, and a busy
/// database is no reason to fail.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(15);

/// The minimum age at which a connection is replaced, and the largest random addition. A connection keeps the
/// prepared form of every text it ran, and hot texts contain the day: without a limit they accumulate day by day.
const AGE: Duration = Duration::from_secs(45 * 60);
const AGE_SPREAD_MS: u64 = 30 * 60 * 1000;

/// For statements whose caller must know the outcome within two seconds. The server ends slower statements, so the
/// outcome is known. A statement that waits for a lock gives up early enough to be retried in parts, and before
/// PostgreSQL checks for deadlocks.
const PROMPT_SETTINGS: &str = "SET statement_timeout = '1200ms'; SET lock_timeout = '250ms'";

/// A failed database call.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection was available in time, it broke, or the server could not do its work: a repeat may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database refused the values of a statement: a repeat fails again.
    #[error("the database refused a statement")]
    Refused(#[source] diesel::result::Error),
    /// A stored value could not be encrypted or decrypted.
    #[error("a stored value could not be encrypted or decrypted")]
    Sealed(#[from] SealError),
}

impl DbError {
    /// Whether the server is at fault and not the values, so that a repeat may succeed; [`sqlstate`] has the table.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The SQLSTATE of the server's error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Unavailable(error) => sqlstate::code(error.downcast_ref()?),
            Self::Refused(error) => sqlstate::code(error),
            Self::Sealed(_) => None,
        }
    }

    /// Whether another transaction was in the way: nothing was written, and a repeat may succeed at once.
    pub fn lost_race(&self) -> bool {
        matches!(self.sqlstate(), Some(SERIALIZATION_FAILURE | DEADLOCK_DETECTED | LOCK_NOT_AVAILABLE))
    }

    /// Whether perhaps only some of a statement's rows caused the error, by a lock, the time they take or a damaged
    /// page: the others may succeed without them.
    pub fn may_concern_part(&self) -> bool {
        self.lost_race() || matches!(self.sqlstate(), Some(QUERY_CANCELED | DATA_CORRUPTED | INDEX_CORRUPTED))
    }

    /// Whether the schema lacks a table, column or function that a statement names: migrations are pending.
    pub fn is_schema_missing(&self) -> bool {
        self.sqlstate().is_some_and(sqlstate::is_schema_missing)
    }

    /// Whether the call may have succeeded after all: the connection broke before the server answered.
    pub fn is_outcome_unknown(&self) -> bool {
        let is_of_call = matches!(self, Self::Unavailable(error) if error.is::<diesel::result::Error>());
        is_of_call && self.sqlstate().is_none()
    }
}

impl From<diesel::result::Error> for DbError {
    fn from(error: diesel::result::Error) -> Self {
        if sqlstate::is_servers_fault(&error) { Self::Unavailable(Box::new(error)) } else { Self::Refused(error) }
    }
}

/// The result of a database call.
pub type DbResult<T> = Result<T, DbError>;

/// The database: a pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool<AsyncPgConnection>,
    sealer: Sealer,
}

impl Store {
    /// Opens a pool of at most `size` connections to `database`; connects only on first use.
    pub fn open(database: &DatabaseConfig, size: usize) -> Result<Self, deadpool::managed::BuildError> {
        Self::open_waiting(database, size, CONNECT_WAIT_MAX, "")
    }

    /// As [`Store::open`], for statements that succeed or fail within 1.2 s.
    pub fn open_prompt(database: &DatabaseConfig, size: usize) -> Result<Self, deadpool::managed::BuildError> {
        Self::open_waiting(database, size, PROMPT_WAIT_MAX, PROMPT_SETTINGS)
    }

    /// As [`Store::open`], for a person's command, who prefers waiting to starting again.
    pub fn open_for_command(database: &DatabaseConfig, size: usize) -> Result<Self, deadpool::managed::BuildError> {
        Self::open_waiting(database, size, COMMAND_WAIT_MAX, "")
    }

    fn open_waiting(
        database: &DatabaseConfig,
        size: usize,
        wait: Duration,
        settings: &'static str,
    ) -> Result<Self, deadpool::managed::BuildError> {
        let mut config = ManagerConfig::default();
        config.recycling_method = RecyclingMethod::Fast;
        config.custom_setup = Box::new(move |url| connect::connect(url, settings).boxed());
        let manager = AsyncDieselConnectionManager::new_with_config(database.url.expose_secret(), config);
        let timeouts = Timeouts { wait: Some(wait), create: Some(wait), recycle: Some(wait) };
        let spread = RandomState::new();
        let pool = Pool::builder(manager)
            .max_size(size)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::sync_fn(move |_, metrics| match metrics.age() > age_max(&spread, metrics) {
                true => Err(HookError::message("the connection is old")),
                false => Ok(()),
            }))
            .build()?;
        Ok(Self { pool, sealer: database.sealer.clone() })
    }

    /// Encrypts and decrypts stored values.
    pub const fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// A connection from the pool.
    pub async fn conn(&self) -> DbResult<Object<AsyncPgConnection>> {
        self.pool.get().await.map_err(|error| DbError::Unavailable(Box::new(error)))
    }

    /// Fails if the database does not answer.
    pub async fn ping(&self) -> DbResult<()> {
        Ok(self.conn().await?.batch_execute("SELECT 1").await?)
    }
}

/// Differs between connections, so that they are not all replaced at once.
fn age_max(spread: &RandomState, metrics: &Metrics) -> Duration {
    AGE + Duration::from_millis(spread.hash_one(metrics.created) % AGE_SPREAD_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_within_a_known_time_and_not_all_at_once() {
        let spread = RandomState::new();
        let ages: Vec<Duration> = (0..100).map(|_| age_max(&spread, &Metrics::default())).collect();
        assert!(ages.iter().all(|age| (AGE..AGE + Duration::from_millis(AGE_SPREAD_MS)).contains(age)), "{ages:?}");
        assert!(ages.iter().any(|age| *age != ages[0]));
    }
}
