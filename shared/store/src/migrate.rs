//! The schema: embedded migrations, run under one lock.

use std::time::Duration;

use diesel::sql_types::{Bool, Int4, Int8, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use runtime::reconnect::Reconnect;
use secrecy::{ExposeSecret, SecretString};

use super::{
    DbResult, Store,
    connect::{dial, is_role_missing},
    seal_check::KeyError,
    sql::{sql, statements},
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");

/// Only one migration runs at a time, whichever process starts it.
const LOCK: i64 = 0x706f_7374_6861_7374;
/// The pause between two tries for the lock. A session that waits for the lock inside the server holds a snapshot, and
/// `CREATE INDEX CONCURRENTLY` waits for every snapshot: they would wait for each other.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// A table that has no policies yet may be in use. Then the command fails after a while, and no statement queues behind
/// it.
const SECURE: &str = "SET lock_timeout = '5s'; SELECT secure_tables()";

/// The tables with a partition for each day.
const PARTITIONED: [&str; 3] = ["messages", "deliveries", "delivery_events"];

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// No connection.
    #[error("failed to connect to the database")]
    Connect(#[from] diesel::ConnectionError),
    /// The lock could not be taken.
    #[error("failed to lock the schema")]
    Lock(#[from] diesel::result::Error),
    /// A migration failed; the earlier ones are applied.
    #[error("failed to migrate the schema")]
    Migrate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The role of the services, its rights or its policies could not be created.
    #[error("failed to put row-level security in place")]
    Secure(#[source] diesel::result::Error),
    /// The task was torn down.
    #[error("the migration was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Runs every pending migration on its own connection; returns the versions that ran.
pub async fn migrate(url: &SecretString) -> Result<Vec<String>, MigrateError> {
    let mut conn = dial(url.expose_secret()).await?;
    // Policies also bind the owner, so a migration names all tenants.
    conn.batch_execute("SET posthaste.tenant = '*'").await?;
    while !(TryLock { lock: LOCK }.query().row_on(&mut conn).await?) {
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    // The harness blocks on its connection, so it must not run on an async worker thread. Closing the connection
    // releases the lock.
    let (ran, mut conn) = tokio::task::spawn_blocking(move || {
        let mut harness = AsyncMigrationHarness::new(conn);
        let ran = run_pending(&mut harness).map_err(MigrateError::Migrate)?;
        Ok::<_, MigrateError>((ran, harness.into_inner()))
    })
    .await??;
    // New tables get their policies before any row is written.
    conn.batch_execute(SECURE).await.map_err(MigrateError::Secure)?;
    Ok(ran)
}

/// Runs pending migrations. A migration outside a transaction may have been killed before its version was stored, and
/// `CREATE INDEX CONCURRENTLY` may have left an invalid index: its `down.sql` runs first and removes that.
fn run_pending(harness: &mut AsyncMigrationHarness<AsyncPgConnection>) -> diesel::migration::Result<Vec<String>> {
    let mut ran = Vec::new();
    for migration in harness.pending_migrations(MIGRATIONS)? {
        if !migration.metadata().run_in_transaction() {
            harness.revert_migration(&migration)?;
        }
        ran.push(harness.run_migration(&migration)?.to_string());
    }
    Ok(ran)
}

/// Why a service must not continue with its database.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database is behind.
    #[error("the database lacks {}: run `posthaste migrate`, then start again", .0.join(", "))]
    Pending(Vec<String>),
    /// Row-level security does not bind the login.
    #[error(
        "the database login may not act as the role posthaste_services, which keeps tenants apart: run `posthaste migrate` as \
         the owner of the database; for another login than the owner's, also GRANT posthaste_services TO it"
    )]
    Role,
    /// The keys do not match the stored values.
    #[error(transparent)]
    Keys(KeyError),
    /// The query failed.
    #[error("the schema could not be compared")]
    Refused(#[from] super::DbError),
}

impl Store {
    /// Waits for the database without a limit, and fails if its schema is not the expected one.
    pub async fn await_schema(&self) -> Result<(), SchemaError> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.pending_migrations().await {
                Ok(pending) if pending.is_empty() => match self.fit().await {
                    Err(SchemaError::Refused(error) | SchemaError::Keys(KeyError::Database(error)))
                        if error.is_unavailable() =>
                    {
                        tracing::warn!(%error, "waiting for the database");
                    }
                    answer => return answer,
                },
                Ok(pending) => return Err(SchemaError::Pending(pending)),
                Err(error) if is_role_missing(&error) => return Err(SchemaError::Role),
                Err(error) if error.is_unavailable() => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "waiting for the database");
                }
                Err(error) => return Err(error.into()),
            }
            reconnect.pause().await;
        }
    }

    /// Whether role and keys match the database.
    async fn fit(&self) -> Result<(), SchemaError> {
        let floor = self.floor().await?;
        if !floor.is_bound {
            return Err(SchemaError::Role);
        }
        if floor.login_is_privileged {
            tracing::warn!(
                "the database login is a superuser, bypasses row-level security or owns the tables: one injected statement \
                 leaves every tenant's walls behind; give the services a login that is only a member of posthaste_services"
            );
        }
        self.check_keys().await.map_err(SchemaError::Keys)
    }

    /// The migrations of this version that the database lacks.
    pub async fn pending_migrations(&self) -> DbResult<Vec<String>> {
        use diesel::migration::MigrationSource;
        let applied = Applied {}.query().rows(self).await;
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) if error.is_schema_missing() => Vec::new(),
            Err(error) => return Err(error),
        };
        let known = MigrationSource::<diesel::pg::Pg>::migrations(&MIGRATIONS).unwrap_or_default();
        let versions = known.iter().map(|migration| migration.name().version().to_string());
        Ok(versions.filter(|version| !applied.contains(version)).collect())
    }

    /// Creates the daily partitions up to `ahead` days from now, one table per transaction; returns their number. A
    /// table that another caller works on or has locked is left for the next call.
    pub async fn ensure_partitions(&self, ahead: i32) -> DbResult<i32> {
        let mut made = 0;
        for parent in PARTITIONED {
            made += AttachPartitions { parent, ahead }.query().row(self).await?;
        }
        Ok(made)
    }

    /// The number of days after today that have partitions without a gap, as the database's catalogue shows. It checks
    /// the result of `ensure_partitions`. -1: today has none either.
    pub async fn partition_days_ahead(&self) -> DbResult<i64> {
        DaysAhead {}.query().row(self).await
    }
}

sql!(TryLock in "migrate/try_lock.sql" { lock: i64 as Int8 } -> bool as Bool);
sql!(Applied in "migrate/applied.sql" {} -> String as Text);
sql!(AttachPartitions in "migrate/attach_partitions.sql" {
    parent: &'static str as Text, ahead: i32 as Int4
} -> i32 as Int4);
sql!(DaysAhead in "migrate/days_ahead.sql" {} -> i64 as Int8);
statements!(TryLock, Applied, AttachPartitions, DaysAhead);
