//! Families of refresh tokens: each token works once, and an old one that comes back ends its family.

use std::time::Duration;

use diesel::{
    data_types::PgInterval,
    sql_types::{Binary, Bool, Int4, Int8, Interval, Text, Uuid as SqlUuid},
};
use domain::{
    acceptance::Hash,
    token::{Role, Via},
};
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// What the access tokens of a family say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The tenant's name.
    pub tenant: String,
    /// Whom its access tokens speak for.
    pub subject: String,
    /// What they may do.
    pub role: Role,
    /// How long each access token holds.
    pub ttl: Duration,
    /// The key that began it.
    pub via: Via,
}

/// A family to begin.
#[derive(Clone, Debug)]
pub struct NewFamily {
    /// Its id.
    pub id: Uuid,
    /// The hash of its first token.
    pub hash: Hash,
    /// The key that asks for it.
    pub key: Uuid,
    /// Whom its access tokens speak for.
    pub subject: String,
    /// What they may do.
    pub role: Role,
    /// How long each access token holds.
    pub ttl: Duration,
}

impl Store {
    /// Stores a new family under the hash of its first token; returns the name of the tenant. It begins with the key `key`
    /// and ends with it: `None` if that is revoked.
    pub async fn begin_family(&self, family: NewFamily, holds: Duration) -> DbResult<Option<String>> {
        let query = statement::<Text>(BEGIN)
            .bind::<SqlUuid, _>(family.id)
            .bind::<Binary, _>(family.hash.to_vec())
            .bind::<Text, _>(family.subject)
            .bind::<Text, _>(family.role.as_str())
            .bind::<Int4, _>(i32::try_from(family.ttl.as_secs()).unwrap_or(i32::MAX))
            .bind::<Interval, _>(interval(holds))
            .bind::<SqlUuid, _>(family.key);
        Ok(query.rows(self).await?.into_iter().next())
    }

    /// Puts the token `new` into the place of `old` and returns what the family grants; `None` if `old` does not hold.
    /// An `old` that was replaced before revokes the family. Of two callers with the same token the first gets a new one
    /// and the second revokes it: a used token may be a stolen one.
    pub async fn rotate_family(&self, family: Uuid, old: Hash, new: Hash, holds: Duration) -> DbResult<Option<Grant>> {
        let query = statement::<(Bool, Text, Text, Text, Int4, SqlUuid, Text)>(ROTATE)
            .bind::<Binary, _>(old.to_vec())
            .bind::<Binary, _>(old.to_vec())
            .bind::<Binary, _>(new.to_vec())
            .bind::<Binary, _>(old.to_vec())
            .bind::<Interval, _>(interval(holds))
            .bind::<SqlUuid, _>(family)
            .bind::<Binary, _>(new.to_vec());
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().next().and_then(granted))
    }

    /// Forgets families whose last token has expired, at most `limit` of them; says how many.
    pub async fn forget_families(&self, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET).bind::<Int8, _>(limit).run(self).await
    }
}

/// A rotation as the database answers it: whether it took place, and what the family grants.
type Row = (bool, String, String, String, i32, Uuid, String);

fn granted((is_new, tenant, subject, role, ttl, key, key_role): Row) -> Option<Grant> {
    let ttl = Duration::from_secs(u64::try_from(ttl).ok()?);
    let via = Via { key, role: key_role.parse().ok()? };
    let grant = Grant { tenant, subject, role: role.parse().ok()?, ttl, via };
    is_new.then_some(grant)
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval::from_microseconds(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

const BEGIN: &str = "
WITH made AS (
    INSERT INTO token_families (id, tenant_id, key_id, hash, subject, role, ttl_s, expires_at)
    SELECT ?, k.tenant_id, k.id, ?, ?, ?, ?, now() + ? FROM api_keys k WHERE k.id = ? AND k.revoked_at IS NULL
    RETURNING tenant_id)
SELECT t.slug FROM made m JOIN tenants t ON t.id = m.tenant_id";

// One statement decides: the second caller waits for the row and then sees another hash in it.
const ROTATE: &str = "
UPDATE token_families f SET
    revoked_at = CASE WHEN f.hash = ? THEN NULL ELSE now() END,
    hash = CASE WHEN f.hash = ? THEN ? ELSE f.hash END,
    expires_at = CASE WHEN f.hash = ? THEN now() + ? ELSE f.expires_at END
FROM tenants t, api_keys k
WHERE f.id = ? AND t.id = f.tenant_id AND f.revoked_at IS NULL AND f.expires_at > now()
    AND k.id = f.key_id AND k.revoked_at IS NULL
RETURNING f.hash = ?, t.slug, f.subject, f.role, f.ttl_s, k.id, k.role";

const FORGET: &str = "
DELETE FROM token_families WHERE id IN (SELECT id FROM token_families WHERE expires_at < now() ORDER BY expires_at LIMIT ?)";
