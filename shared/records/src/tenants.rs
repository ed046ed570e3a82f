//! Tenants, and the broker users that are mapped to one tenant.

use chrono::{DateTime, Utc};
use diesel::{
    result::{DatabaseErrorKind, Error},
    sql_types::{Bool, Int4, Text, Timestamptz},
};
use domain::TenantId;
use secrecy::{ExposeSecret, SecretString};
use store::{
    DbError, DbResult,
    seal_check::KeyError,
    sealed,
    sql::{row, sql, statements},
};

use crate::TenantStore;

/// The owner of messages, keys and settings. No row belongs to two tenants.
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
    /// The statement failed.
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

row! {
    struct TenantRow {
        id: i32 as Int4,
        slug: String as Text,
        webhook_secret: String as Text,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct AmqpUser {
        username: String as Text,
        tenant_id: i32 as Int4,
    }
}

impl TenantStore<'_> {
    /// Creates a tenant.
    pub async fn create(self, slug: &str, webhook_secret: &SecretString) -> Result<Tenant, CreateTenantError> {
        self.insert_tenant(slug, webhook_secret).await.map_err(|error| CreateTenantError::of(slug, error))
    }

    async fn insert_tenant(self, slug: &str, webhook_secret: &SecretString) -> DbResult<Tenant> {
        // This is the first value that is sealed: from here on the database knows the key.
        self.store.check_keys().await.map_err(KeyError::into_db)?;
        let sealed =
            self.store.sealer().seal_text(sealed::TENANT_SECRET.of_nobody(), webhook_secret.expose_secret())?;
        let row = Create { slug: slug.to_owned(), webhook_secret: sealed }.query().row(self.store).await?;
        self.tenant(row)
    }

    /// Whether this is the first tenant, which belongs to the operator.
    pub async fn is_first(self, tenant: TenantId) -> DbResult<bool> {
        IsFirst { tenant: tenant.0 }.query().row(self.store).await
    }

    /// Every tenant, the first one first.
    pub async fn list(self) -> DbResult<Vec<Tenant>> {
        let rows = List {}.query().rows(self.store).await?;
        rows.into_iter().map(|row| self.tenant(row)).collect()
    }

    fn tenant(self, row: TenantRow) -> DbResult<Tenant> {
        let webhook_secret =
            self.store.sealer().open_text(sealed::TENANT_SECRET.of_nobody(), row.webhook_secret)?.into();
        Ok(Tenant { id: TenantId(row.id), slug: row.slug, webhook_secret, created_at: row.created_at })
    }

    /// The row number of the tenant of that name. Its secret is not decrypted: an unreadable secret must not lock out
    /// the tenant's keys and publishers.
    pub async fn id(self, slug: &str) -> DbResult<Option<TenantId>> {
        Ok(IdBySlug { slug: slug.to_owned() }.query().first(self.store).await?.map(TenantId))
    }

    /// The tenant of that name.
    pub async fn by_slug(self, slug: &str) -> DbResult<Option<Tenant>> {
        let row = BySlug { slug: slug.to_owned() }.query().first(self.store).await?;
        row.map(|row| self.tenant(row)).transpose()
    }

    /// The tenant with that row number.
    pub async fn by_id(self, id: TenantId) -> DbResult<Option<Tenant>> {
        let row = ById { tenant: id.0 }.query().first(self.store).await?;
        row.map(|row| self.tenant(row)).transpose()
    }

    /// Maps a broker user to this tenant; it can then publish for no other.
    pub async fn map_amqp_user(self, username: &str, tenant: TenantId) -> DbResult<()> {
        MapAmqpUser { username: username.to_owned(), tenant: tenant.0 }.query().run(self.store).await.map(drop)
    }

    /// Removes the mapping of a broker user; returns whether there was one.
    pub async fn unmap_amqp_user(self, username: &str) -> DbResult<bool> {
        Ok(UnmapAmqpUser { username: username.to_owned() }.query().run(self.store).await? > 0)
    }

    /// The tenant a broker user is mapped to.
    pub async fn amqp_mapping(self, username: &str) -> DbResult<Option<TenantId>> {
        Ok(AmqpMapping { username: username.to_owned() }.query().first(self.store).await?.map(TenantId))
    }

    /// Every mapped broker user and its tenant, by name: a small table that callers cache.
    pub async fn amqp_users(self) -> DbResult<Vec<(String, TenantId)>> {
        let rows = AmqpUsers {}.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|row| (row.username, TenantId(row.tenant_id))).collect())
    }
}

sql!(Create in "tenants/create.sql" { slug: String as Text, webhook_secret: String as Text } -> TenantRow);
sql!(IsFirst in "tenants/is_first.sql" { tenant: i32 as Int4 } -> bool as Bool);
sql!(List in "tenants/list.sql" {} -> TenantRow);
sql!(IdBySlug in "tenants/id_by_slug.sql" { slug: String as Text } -> i32 as Int4);
sql!(BySlug in "tenants/by_slug.sql" { slug: String as Text } -> TenantRow);
sql!(ById in "tenants/by_id.sql" { tenant: i32 as Int4 } -> TenantRow);
sql!(MapAmqpUser in "tenants/map_amqp_user.sql" { username: String as Text, tenant: i32 as Int4 });
sql!(UnmapAmqpUser in "tenants/unmap_amqp_user.sql" { username: String as Text });
sql!(AmqpMapping in "tenants/amqp_mapping.sql" { username: String as Text } -> i32 as Int4);
sql!(AmqpUsers in "tenants/amqp_users.sql" {} -> AmqpUser);
statements!(Create, IsFirst, List, IdBySlug, BySlug, ById, MapAmqpUser, UnmapAmqpUser, AmqpMapping, AmqpUsers);
