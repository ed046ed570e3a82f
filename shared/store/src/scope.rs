//! The rows that a connection sees. Row-level security is the second barrier behind every `WHERE tenant_id = …`.
//!
//! A connection of the pool sees all tenants: it accepts, claims and records for all of them at once. A statement for
//! one tenant runs in a transaction that names the tenant, so a forgotten condition shows no rows of other tenants.

use std::ops::{Deref, DerefMut};

use diesel::{
    result::{Error, QueryResult},
    sql_types::{Array, Bool, Text},
};
use diesel_async::{AsyncConnection, AsyncPgConnection, TransactionManager, pooled_connection::deadpool::Object};
use domain::TenantId;

use super::{
    DbResult, Store,
    sql::{row, sql, statements},
};

type Manager = <AsyncPgConnection as AsyncConnection>::TransactionManager;

/// A connection that sees the rows of one tenant, or of all, until [`Scoped::done`]. If it is dropped before, it is
/// in the middle of a transaction, and the pool discards it.
pub struct Scoped {
    conn: Object<AsyncPgConnection>,
    in_transaction: bool,
}

impl Scoped {
    /// Ends the scope: commits if `result` is a success, else rolls back.
    pub async fn done<T>(mut self, result: QueryResult<T>) -> DbResult<T> {
        match result {
            Ok(value) => {
                if self.in_transaction {
                    Manager::commit_transaction(&mut *self.conn).await?;
                }
                Ok(value)
            }
            Err(error) => {
                // The first error is the one to report.
                if self.in_transaction && Manager::rollback_transaction(&mut *self.conn).await.is_err() {
                    drop(Object::take(self.conn));
                }
                Err(error.into())
            }
        }
    }
}

impl Scoped {
    /// Rolls back the transaction.
    pub async fn undo(mut self) -> DbResult<()> {
        Ok(Manager::rollback_transaction(&mut *self.conn).await?)
    }

    /// As [`Scoped::done`], for a result whose error may not come from a query.
    pub async fn finish<T>(self, result: DbResult<T>) -> DbResult<T> {
        match result {
            Ok(value) => self.done(Ok(value)).await,
            Err(error) => {
                // Rolled back; the first error is the one to report.
                drop(self.done::<()>(Err(Error::RollbackTransaction)).await);
                Err(error)
            }
        }
    }
}

impl Deref for Scoped {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &Self::Target {
        &self.conn
    }
}

impl DerefMut for Scoped {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.conn
    }
}

row! {
    /// Whether row-level security is effective.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Floor {
        /// The services' connections use a role to which it applies.
        pub is_bound: bool as Bool,
        /// The login behind that role is a superuser, bypasses row-level security or may act as the owner of the
        /// tables: after `RESET ROLE` the session is not bound by the role.
        pub login_is_privileged: bool as Bool,
        /// Tables with tenants' rows that row-level security does not cover.
        pub open_tables: Vec<String> as Array<Text>,
    }
}

impl Store {
    /// A connection that sees only the rows of `scope`; `None`: all tenants.
    pub async fn within(&self, scope: Option<TenantId>) -> DbResult<Scoped> {
        let mut conn = self.conn().await?;
        if let Some(tenant) = scope {
            Manager::begin_transaction(&mut *conn).await?;
            if let Err(error) = narrow(&mut conn, tenant).await {
                drop(Object::take(conn));
                return Err(error.into());
            }
        }
        Ok(Scoped { conn, in_transaction: scope.is_some() })
    }

    /// A connection in a transaction that sees the rows of all tenants.
    pub async fn transaction(&self) -> DbResult<Scoped> {
        let mut conn = self.conn().await?;
        Manager::begin_transaction(&mut *conn).await?;
        Ok(Scoped { conn, in_transaction: true })
    }

    /// Reads whether row-level security is effective.
    pub async fn floor(&self) -> DbResult<Floor> {
        ReadFloor {}.query().row(self).await
    }
}

/// Narrows a connection to the rows of a tenant, until the end of its transaction.
pub async fn narrow(conn: &mut AsyncPgConnection, tenant: TenantId) -> Result<(), Error> {
    Narrow { tenant: tenant.to_string() }.query().row_on(conn).await.map(drop)
}

sql!(Narrow in "scope/narrow.sql" { tenant: String as Text } -> String as Text);
sql!(ReadFloor in "scope/floor.sql" {} -> Floor);
statements!(Narrow, ReadFloor);
