//! Families of refresh tokens. Each token works once; if a used one comes back, its family is revoked.

use std::time::Duration;

use diesel::{
    data_types::PgInterval,
    sql_types::{Binary, Bool, Int4, Int8, Interval, Text, Uuid as SqlUuid},
};
use domain::{
    acceptance::Hash,
    token::{Role, Via},
};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::RefreshTokenStore;

/// The claims of a family's access tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The tenant's name.
    pub tenant: String,
    /// The subject of its access tokens.
    pub subject: String,
    /// Their role.
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
    /// The subject of its access tokens.
    pub subject: String,
    /// Their role.
    pub role: Role,
    /// How long each access token holds.
    pub ttl: Duration,
}

impl RefreshTokenStore<'_> {
    /// Stores a new family under the hash of its first token; returns the name of the tenant. The family is valid as
    /// long as the key `key`: `None` if that is revoked.
    pub async fn insert(self, family: NewFamily, holds: Duration) -> DbResult<Option<String>> {
        let begin = Begin {
            id: family.id,
            hash: family.hash.to_vec(),
            subject: family.subject,
            role: family.role.as_str(),
            ttl: i32::try_from(family.ttl.as_secs()).unwrap_or(i32::MAX),
            holds: interval(holds),
            key: family.key,
        };
        begin.query().first(self.store).await
    }

    /// Replaces the token `old` by `new` and returns the claims of the family; `None` if `old` is not valid. An `old`
    /// that was already replaced revokes the family: a used token may be stolen. So of two callers with the same token,
    /// the first gets a new one and the second revokes it.
    pub async fn rotate(self, family: Uuid, old: Hash, new: Hash, holds: Duration) -> DbResult<Option<Grant>> {
        let (old, new, holds) = (old.to_vec(), new.to_vec(), interval(holds));
        let rotated = Rotate { old, new, holds, family }.query().first(self.store).await?;
        Ok(rotated.and_then(granted))
    }

    /// Deletes families whose last token has expired, at most `limit` of them; returns their number.
    pub async fn prune(self, limit: i64) -> DbResult<usize> {
        Forget { limit }.query().run(self.store).await
    }
}

row! {
    /// The result of a rotation: whether it took place, and the claims of the family.
    struct Rotated {
        is_new: bool as Bool,
        tenant: String as Text,
        subject: String as Text,
        role: String as Text,
        ttl: i32 as Int4,
        key: Uuid as SqlUuid,
        key_role: String as Text,
    }
}

fn granted(rotated: Rotated) -> Option<Grant> {
    let Rotated { is_new, tenant, subject, role, ttl, key, key_role } = rotated;
    let ttl = Duration::from_secs(u64::try_from(ttl).ok()?);
    let via = Via { key, role: key_role.parse().ok()? };
    let grant = Grant { tenant, subject, role: role.parse().ok()?, ttl, via };
    is_new.then_some(grant)
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval::from_microseconds(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

sql!(Begin in "refresh/begin.sql" {
    id: Uuid as SqlUuid,
    hash: Vec<u8> as Binary,
    subject: String as Text,
    role: &'static str as Text,
    ttl: i32 as Int4,
    holds: PgInterval as Interval,
    key: Uuid as SqlUuid,
} -> String as Text);
sql!(Rotate in "refresh/rotate.sql" {
    old: Vec<u8> as Binary, new: Vec<u8> as Binary, holds: PgInterval as Interval, family: Uuid as SqlUuid
} -> Rotated);
sql!(Forget in "refresh/forget.sql" { limit: i64 as Int8 });
statements!(Begin, Rotate, Forget);
