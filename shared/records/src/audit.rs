//! The audit log: who changed what, in one chain of hashes for the whole database.
//!
//! Entries are only ever added, by the SQL function `audit_append`. Checking the chain is done here and not in the
//! database: an attacker who can change its rows can change its functions as well.

use std::fmt::Write;

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, Utc};
use diesel::sql_types::{Binary, Int4, Int8, Nullable, Text, Timestamptz};
use domain::{TenantId, seal::Sealer};
use serde::Serialize;
use store::{
    DbResult,
    sql::{row, sql, statements},
};

use crate::AuditLog;

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// The tenant that the action concerns; `None`: no tenant, or several.
    pub tenant: Option<TenantId>,
    /// The actor: a role and a subject, or `cli:` and a user of the machine.
    pub actor: String,
    /// The action: a method and a route, or a command.
    pub action: String,
    /// To which thing.
    pub target: String,
    /// The request it was done by.
    pub request_id: Option<String>,
}

row! {
    /// An entry as people see it.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
    pub struct AuditEntry {
        /// Its number in the chain.
        pub id: i64 as Int8,
        /// When.
        pub at: DateTime<Utc> as Timestamptz,
        /// The slug of the tenant.
        pub tenant: Option<String> as Nullable<Text>,
        /// The actor.
        pub actor: String as Text,
        /// The action.
        pub action: String as Text,
        /// To which thing.
        pub target: String as Text,
        /// The request.
        pub request_id: Option<String> as Nullable<Text>,
    }
}

/// Selects entries; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// By exactly this actor.
    pub actor: Option<String>,
    /// Of actions that begin so.
    pub action: Option<String>,
    /// At this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
}

row! {
    /// A place in the chain.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Link {
        /// The number of the entry; 0 before the first.
        pub id: i64 as Int8,
        /// Its hash.
        pub hash: Vec<u8> as Binary,
    }
}

impl Link {
    /// Where the chain begins.
    pub fn origin() -> Self {
        Self { id: 0, hash: vec![0; 32] }
    }
}

/// An entry with all inputs of its hash.
pub struct Chained {
    id: i64,
    tenant: Option<i32>,
    micros: i64,
    deed: [String; 3],
    request_id: Option<String>,
    prev_hash: Vec<u8>,
    hash: Vec<u8>,
}

row! {
    struct ChainRow {
        id: i64 as Int8,
        tenant_id: Option<i32> as Nullable<Int4>,
        micros: i64 as Int8,
        actor: String as Text,
        action: String as Text,
        target: String as Text,
        request_id: Option<String> as Nullable<Text>,
        prev_hash: Vec<u8> as Binary,
        hash: Vec<u8> as Binary,
    }
}

impl Chained {
    /// The number of the entry.
    pub const fn id(&self) -> i64 {
        self.id
    }

    /// The link after `last`, if this entry has its original values.
    pub fn follow(&self, last: &Link) -> Option<Link> {
        let sound = self.id == last.id + 1 && self.prev_hash == last.hash && self.hash == self.work_out();
        sound.then(|| Link { id: self.id, hash: self.hash.clone() })
    }

    /// The same as the SQL function `audit_hash`.
    fn work_out(&self) -> Vec<u8> {
        let [actor, action, target] = &self.deed;
        let (id, tenant, micros) =
            (self.id.to_string(), self.tenant.map(|tenant| tenant.to_string()), self.micros.to_string());
        let parts = [
            Some(&id),
            tenant.as_ref(),
            Some(&micros),
            Some(actor),
            Some(action),
            Some(target),
            self.request_id.as_ref(),
        ];
        let mut text = String::new();
        for (place, part) in parts.into_iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = match part {
                Some(part) => write!(text, "{comma}{}:{part}", part.len()),
                None => write!(text, "{comma}-"),
            };
        }
        let mut digest = Context::new(&SHA256);
        digest.update(&self.prev_hash);
        digest.update(text.as_bytes());
        digest.finish().as_ref().to_vec()
    }
}

/// The name of a person in the log. It outlives the person. It is keyed with the encryption key, so an erased person
/// cannot be found again by guessing ids without the key. Without an encryption key it is a plain hash.
pub fn person(sealer: &Sealer, tenant: TenantId, id: &str) -> String {
    let hash = sealer.fingerprint(&format!("audit/{tenant}"), id);
    let start = hash.first_chunk().copied().unwrap_or_default();
    format!("person:{:032x}", u128::from_be_bytes(start))
}

impl AuditLog<'_> {
    /// Adds an entry; returns its number.
    pub async fn append(self, deed: Deed) -> DbResult<i64> {
        let Deed { tenant, actor, action, target, request_id } = deed;
        let tenant = tenant.map(|tenant| tenant.0);
        Append { tenant, actor, action, target, request_id }.query().row(self.store).await
    }

    /// Up to `limit` entries of a tenant, or of all tenants, newest first; only those before the entry `before`, if
    /// given.
    pub async fn list(
        self,
        tenant: Option<TenantId>,
        filter: AuditFilter,
        before: Option<i64>,
        limit: i64,
    ) -> DbResult<Vec<AuditEntry>> {
        let AuditFilter { actor, action, since, until } = filter;
        let before = before.unwrap_or(i64::MAX);
        let query = match tenant {
            Some(TenantId(tenant)) => ListOfTenant { tenant, before, actor, action, since, until, limit }.query(),
            None => List { before, actor, action, since, until, limit }.query(),
        };
        query.within(tenant).rows(self.store).await
    }

    /// The end of the chain, as the database records it.
    pub async fn head(self) -> DbResult<Link> {
        Head {}.query().row(self.store).await
    }

    /// Up to `limit` entries after the number `after`, oldest first, in the order of the chain.
    pub async fn chain(self, after: i64, limit: i64) -> DbResult<Vec<Chained>> {
        let rows = Chain { after, limit }.query().rows(self.store).await?;
        let chained = |row: ChainRow| Chained {
            id: row.id,
            tenant: row.tenant_id,
            micros: row.micros,
            deed: [row.actor, row.action, row.target],
            request_id: row.request_id,
            prev_hash: row.prev_hash,
            hash: row.hash,
        };
        Ok(rows.into_iter().map(chained).collect())
    }
}

sql!(Append in "audit/append.sql" {
    tenant: Option<i32> as Nullable<Int4>,
    actor: String as Text,
    action: String as Text,
    target: String as Text,
    request_id: Option<String> as Nullable<Text>,
} -> i64 as Int8);
sql!(List in "audit/list.sql" {
    before: i64 as Int8,
    actor: Option<String> as Nullable<Text>,
    action: Option<String> as Nullable<Text>,
    since: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    limit: i64 as Int8,
} -> AuditEntry);
sql!(ListOfTenant in "audit/list_of_tenant.sql" {
    tenant: i32 as Int4,
    before: i64 as Int8,
    actor: Option<String> as Nullable<Text>,
    action: Option<String> as Nullable<Text>,
    since: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    limit: i64 as Int8,
} -> AuditEntry);
sql!(Head in "audit/head.sql" {} -> Link);
sql!(Chain in "audit/chain.sql" { after: i64 as Int8, limit: i64 as Int8 } -> ChainRow);
statements!(Append, List, ListOfTenant, Head, Chain);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last: &Link, deed: [&str; 3]) -> Chained {
        let mut entry = Chained {
            id: last.id + 1,
            tenant: Some(1),
            micros: 1_800_000_000_000_000,
            deed: deed.map(str::to_owned),
            request_id: None,
            prev_hash: last.hash.clone(),
            hash: Vec::new(),
        };
        entry.hash = entry.work_out();
        entry
    }

    #[test]
    fn a_chain_holds_until_an_entry_is_changed_missing_or_put_in() {
        let origin = Link::origin();
        let one = entry(&origin, ["admin:a", "POST /api/admin/keys", "k"]);
        let first = one.follow(&origin).unwrap();
        let two = entry(&first, ["admin:a", "DELETE /api/admin/keys/{id}", "k"]);
        assert!(two.follow(&first).is_some());
        assert!(two.follow(&origin).is_none(), "one is missing");
        assert!(one.follow(&first).is_none(), "one stands twice");
        let forged = Chained {
            deed: ["admin:b", "POST /api/admin/keys", "k"].map(str::to_owned),
            ..entry(&origin, ["", "", ""])
        };
        assert!(forged.follow(&origin).is_none(), "one was changed");
        let rehashed = entry(&origin, ["admin:b", "POST /api/admin/keys", "k"]);
        assert!(two.follow(&rehashed.follow(&origin).unwrap()).is_none(), "one was changed and hashed anew");
    }

    #[test]
    fn two_entries_that_read_alike_have_different_hashes() {
        let origin = Link::origin();
        let hash = |deed| entry(&origin, deed).hash;
        assert_ne!(hash(["a", "b,1:c", "d"]), hash(["a,1:b", "c", "d"]));
        assert_ne!(hash(["ab", "", "d"]), hash(["a", "b", "d"]));
    }
}
