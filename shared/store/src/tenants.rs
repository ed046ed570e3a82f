//! Tenants, and the broker users that speak for one tenant only.

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl,
    result::{DatabaseErrorKind, Error},
};
use diesel_async::RunQueryDsl;
use domain::TenantId;
use secrecy::{ExposeSecret, SecretString};

use super::{
    DbError, DbResult, Store,
    schema::{amqp_users, tenants},
    seal_check::KeyError,
    sealed,
};

/// Whoever owns messages, keys and settings; nothing crosses from one to another.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its row number.
    pub id: TenantId,
    /// Its name in routing keys, tokens and commands.
    pub slug: String,
    /// Signs its webhooks unless a configuration has a secret of its own.
    pub webhook_secret: SecretString,
    /// When it was created.
    pub created_at: DateTime<Utc>,
}

/// Why a tenant was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTenantError {
    /// There is one of that name.
    #[error("a tenant named `{0}` exists already")]
    Taken(String),
    /// The name does not fit into a routing key.
    #[error("`{0}` cannot name a tenant: use 1 to 63 lower-case letters, digits and hyphens, and no hyphen first")]
    Name(String),
    /// The database did not take it.
    #[error("failed to create tenant `{0}`")]
    Database(String, #[source] DbError),
}

impl CreateTenantError {
    fn of(slug: &str, error: DbError) -> Self {
        match error {
            DbError::Refused(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
                Self::Taken(slug.to_owned())
            }
            DbError::Refused(Error::DatabaseError(DatabaseErrorKind::CheckViolation, _)) => Self::Name(slug.to_owned()),
            other => Self::Database(slug.to_owned(), other),
        }
    }
}

type Row = (i32, String, String, DateTime<Utc>);

impl Store {
    /// Creates a tenant.
    pub async fn create_tenant(&self, slug: &str, webhook_secret: &SecretString) -> Result<Tenant, CreateTenantError> {
        self.insert_tenant(slug, webhook_secret).await.map_err(|error| CreateTenantError::of(slug, error))
    }

    async fn insert_tenant(&self, slug: &str, webhook_secret: &SecretString) -> DbResult<Tenant> {
        // The first thing that is ever sealed: from here on the database knows the key.
        self.check_keys().await.map_err(KeyError::into_db)?;
        let sealed = self.sealer().seal_text(sealed::TENANT_SECRET.of_nobody(), webhook_secret.expose_secret())?;
        let values = (tenants::slug.eq(slug), tenants::webhook_secret.eq(sealed));
        let insert = diesel::insert_into(tenants::table).values(values).returning(tenants::all_columns);
        let row: Row = insert.get_result(&mut *self.conn().await?).await?;
        self.tenant(row)
    }

    /// Whether this is the first tenant, which is the operator's own.
    pub async fn is_first_tenant(&self, tenant: TenantId) -> DbResult<bool> {
        let query = super::statement::<diesel::sql_types::Bool>("SELECT ? = min(id) FROM tenants");
        query.bind::<diesel::sql_types::Int4, _>(tenant.0).row(self).await
    }

    /// Every tenant, the first one first.
    pub async fn list_tenants(&self) -> DbResult<Vec<Tenant>> {
        let rows: Vec<Row> = tenants::table.order(tenants::id).load(&mut *self.conn().await?).await?;
        rows.into_iter().map(|row| self.tenant(row)).collect()
    }

    fn tenant(&self, (id, slug, webhook_secret, created_at): Row) -> DbResult<Tenant> {
        let webhook_secret = self.sealer().open_text(sealed::TENANT_SECRET.of_nobody(), webhook_secret)?.into();
        Ok(Tenant { id: TenantId(id), slug, webhook_secret, created_at })
    }

    /// The row number of the tenant of that name. Its secret is not decrypted: one that cannot be keeps nothing from the tenant's keys
    /// and publishers.
    pub async fn tenant_id(&self, slug: &str) -> DbResult<Option<TenantId>> {
        let query = tenants::table.filter(tenants::slug.eq(slug)).select(tenants::id);
        Ok(query.first(&mut *self.conn().await?).await.optional()?.map(TenantId))
    }

    /// The tenant of that name.
    pub async fn tenant_by_slug(&self, slug: &str) -> DbResult<Option<Tenant>> {
        let row: Option<Row> =
            tenants::table.filter(tenants::slug.eq(slug)).first(&mut *self.conn().await?).await.optional()?;
        row.map(|row| self.tenant(row)).transpose()
    }

    /// The tenant with that row number.
    pub async fn tenant_by_id(&self, id: TenantId) -> DbResult<Option<Tenant>> {
        let row: Option<Row> = tenants::table.find(id.0).first(&mut *self.conn().await?).await.optional()?;
        row.map(|row| self.tenant(row)).transpose()
    }

    /// Lets a broker user speak for this tenant, and for no other.
    pub async fn map_amqp_user(&self, username: &str, tenant: TenantId) -> DbResult<()> {
        diesel::insert_into(amqp_users::table)
            .values((amqp_users::username.eq(username), amqp_users::tenant_id.eq(tenant.0)))
            .on_conflict(amqp_users::username)
            .do_update()
            .set(amqp_users::tenant_id.eq(tenant.0))
            .execute(&mut *self.conn().await?)
            .await?;
        Ok(())
    }

    /// Takes the mapping of a broker user back; says whether there was one.
    pub async fn unmap_amqp_user(&self, username: &str) -> DbResult<bool> {
        let rows = diesel::delete(amqp_users::table.find(username)).execute(&mut *self.conn().await?).await?;
        Ok(rows > 0)
    }

    /// The tenant a broker user is mapped to.
    pub async fn amqp_mapping(&self, username: &str) -> DbResult<Option<TenantId>> {
        let query = amqp_users::table.find(username).select(amqp_users::tenant_id);
        Ok(query.first(&mut *self.conn().await?).await.optional()?.map(TenantId))
    }

    /// Every mapped broker user and its tenant, by name: a small table, for whoever keeps it in memory.
    pub async fn amqp_users(&self) -> DbResult<Vec<(String, TenantId)>> {
        let rows: Vec<(String, i32)> =
            amqp_users::table.order(amqp_users::username).load(&mut *self.conn().await?).await?;
        Ok(rows.into_iter().map(|(username, tenant)| (username, TenantId(tenant))).collect())
    }
}
