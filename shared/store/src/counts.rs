//! How many things of a kind a tenant has, where that is bounded.

use diesel::sql_types::{Int4, Int8};
use domain::TenantId;

use super::{
    DbResult, Store,
    sql::{sql, statements},
};

/// A kind of thing of which a tenant may have only so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Rules.
    Rules,
    /// Webhook configurations.
    Configurations,
    /// API keys that hold.
    Keys,
    /// WhatsApp sessions.
    Sessions,
}

impl Store {
    /// How many of them a tenant has.
    pub async fn count_of(&self, tenant: TenantId, what: Counted) -> DbResult<i64> {
        let query = match what {
            Counted::Rules => Rules { tenant: tenant.0 }.query(),
            Counted::Configurations => Configurations { tenant: tenant.0 }.query(),
            Counted::Keys => Keys { tenant: tenant.0 }.query(),
            Counted::Sessions => Sessions { tenant: tenant.0 }.query(),
        };
        query.within(Some(tenant)).row(self).await
    }
}

sql!(Rules in "counts/rules.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Configurations in "counts/configurations.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Keys in "counts/keys.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Sessions in "counts/sessions.sql" { tenant: i32 as Int4 } -> i64 as Int8);
statements!(Rules, Configurations, Keys, Sessions);
