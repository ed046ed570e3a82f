//! API keys: stored as hashes, shown to their owner once.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Binary, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, acceptance::Hash, token::Role};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::KeyStore;

/// A valid key, with its tenant and role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key.
    pub id: Uuid,
    /// The tenant of the key.
    pub tenant_id: TenantId,
    /// That tenant's name.
    pub tenant_slug: String,
    /// Its role.
    pub role: Role,
}

row! {
    /// A key as lists show it, revoked ones too.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct KeyListing {
        /// The key.
        pub id: Uuid as SqlUuid,
        /// Its tenant's name.
        pub tenant_slug: String as Text,
        /// Its role, as stored.
        pub role: String as Text,
        /// The name that its owner gave it.
        pub name: String as Text,
        /// When it was made.
        pub created_at: DateTime<Utc> as Timestamptz,
        /// Since when it no longer holds.
        pub revoked_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    }
}

row! {
    struct HeldKey {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        tenant_slug: String as Text,
        role: String as Text,
    }
}

impl KeyStore<'_> {
    /// Stores a key by its hash; returns its id.
    pub async fn create(self, tenant: TenantId, role: Role, name: &str, hash: Hash) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let (role, name, hash) = (role.as_str(), name.to_owned(), hash.to_vec());
        Create { id, tenant: tenant.0, role, name, hash }.query().within(Some(tenant)).run(self.store).await?;
        Ok(id)
    }

    /// The keys of a tenant, or of all tenants, newest first.
    pub async fn list(self, tenant: Option<TenantId>) -> DbResult<Vec<KeyListing>> {
        List { tenant: tenant.map(|it| it.0) }.query().within(tenant).rows(self.store).await
    }

    /// Revokes a key, of this tenant if one is given; returns its tenant if the key was valid.
    pub async fn revoke(self, id: Uuid, tenant: Option<TenantId>) -> DbResult<Option<TenantId>> {
        let revoked = Revoke { id, tenant: tenant.map(|it| it.0) }.query().within(tenant).first(self.store).await?;
        Ok(revoked.map(TenantId))
    }

    /// The key with this hash, if it is valid and this version knows its role.
    pub async fn by_hash(self, hash: &Hash) -> DbResult<Option<KeyRow>> {
        let found = ByHash { hash: hash.to_vec() }.query().first(self.store).await?;
        Ok(found.and_then(held))
    }
}

fn held(HeldKey { id, tenant_id, tenant_slug, role }: HeldKey) -> Option<KeyRow> {
    Some(KeyRow { id, tenant_id: TenantId(tenant_id), tenant_slug, role: role.parse().ok()? })
}

sql!(Create in "keys/create.sql" {
    id: Uuid as SqlUuid, tenant: i32 as Int4, role: &'static str as Text, name: String as Text, hash: Vec<u8> as Binary
});
sql!(List in "keys/list.sql" { tenant: Option<i32> as Nullable<Int4> } -> KeyListing);
sql!(Revoke in "keys/revoke.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> } -> i32 as Int4);
sql!(ByHash in "keys/by_hash.sql" { hash: Vec<u8> as Binary } -> HeldKey);
statements!(Create, List, Revoke, ByHash);
