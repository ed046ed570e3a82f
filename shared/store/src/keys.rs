//! API keys: stored as hashes, shown to their owner once.

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, JoinOnDsl, OptionalExtension, QueryDsl,
    sql_types::{Int4, Nullable, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use domain::{TenantId, acceptance::Hash, token::Role};
use uuid::Uuid;

use super::{
    DbResult, Store,
    schema::{api_keys, tenants},
    statement,
};

/// A key that holds, as its bearer is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key.
    pub id: Uuid,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// That tenant's name.
    pub tenant_slug: String,
    /// What it may do.
    pub role: Role,
}

/// A key as lists show it, revoked ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyListing {
    /// The key.
    pub id: Uuid,
    /// Its tenant's name.
    pub tenant_slug: String,
    /// What it may do, as stored.
    pub role: String,
    /// What its owner calls it.
    pub name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Since when it no longer holds.
    pub revoked_at: Option<DateTime<Utc>>,
}

type Listed = (Uuid, String, String, String, DateTime<Utc>, Option<DateTime<Utc>>);

impl From<Listed> for KeyListing {
    fn from((id, tenant_slug, role, name, created_at, revoked_at): Listed) -> Self {
        Self { id, tenant_slug, role, name, created_at, revoked_at }
    }
}

impl Store {
    /// Stores a key by its hash; returns its id.
    pub async fn create_key(&self, tenant: TenantId, role: Role, name: &str, hash: Hash) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let values = (
            api_keys::id.eq(id),
            api_keys::tenant_id.eq(tenant.0),
            api_keys::role.eq(role.as_str()),
            api_keys::name.eq(name),
            api_keys::hash.eq(hash.to_vec()),
        );
        let mut conn = self.within(Some(tenant)).await?;
        let made = diesel::insert_into(api_keys::table).values(values).execute(&mut *conn).await;
        conn.done(made).await?;
        Ok(id)
    }

    /// The keys of a tenant, or of all, newest first.
    pub async fn list_keys(&self, tenant: Option<TenantId>) -> DbResult<Vec<KeyListing>> {
        let columns =
            (api_keys::id, tenants::slug, api_keys::role, api_keys::name, api_keys::created_at, api_keys::revoked_at);
        let mut query = api_keys::table
            .inner_join(tenants::table.on(api_keys::tenant_id.eq(tenants::id)))
            .select(columns)
            .order(api_keys::id.desc())
            .into_boxed();
        if let Some(tenant) = tenant {
            query = query.filter(api_keys::tenant_id.eq(tenant.0));
        }
        let mut conn = self.within(tenant).await?;
        let rows = query.load::<Listed>(&mut *conn).await;
        let rows = conn.done(rows).await?;
        Ok(rows.into_iter().map(KeyListing::from).collect())
    }

    /// Ends a key, of this tenant if one is given; says whose it was, if there was one that held.
    pub async fn revoke_key(&self, id: Uuid, tenant: Option<TenantId>) -> DbResult<Option<TenantId>> {
        let query = statement::<Int4>(REVOKE)
            .bind::<SqlUuid, _>(id)
            .bind::<Nullable<Int4>, _>(tenant.map(|it| it.0))
            .within(tenant);
        let rows: Vec<i32> = query.rows(self).await?;
        Ok(rows.into_iter().next().map(TenantId))
    }

    /// The key with this hash, if it holds and its role is one this version knows.
    pub async fn key_by_hash(&self, hash: &Hash) -> DbResult<Option<KeyRow>> {
        let query = api_keys::table
            .inner_join(tenants::table.on(api_keys::tenant_id.eq(tenants::id)))
            .filter(api_keys::hash.eq(hash.to_vec()))
            .filter(api_keys::revoked_at.is_null())
            .select((api_keys::id, api_keys::tenant_id, tenants::slug, api_keys::role));
        let row: Option<(Uuid, i32, String, String)> = query.first(&mut *self.conn().await?).await.optional()?;
        Ok(row.and_then(held))
    }
}

const REVOKE: &str = "
UPDATE api_keys SET revoked_at = now()
WHERE id = ? AND revoked_at IS NULL AND tenant_id = coalesce(?, tenant_id) RETURNING tenant_id";

fn held((id, tenant, tenant_slug, role): (Uuid, i32, String, String)) -> Option<KeyRow> {
    Some(KeyRow { id, tenant_id: TenantId(tenant), tenant_slug, role: role.parse().ok()? })
}
