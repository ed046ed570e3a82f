//! The number of rows of a kind that a tenant has, for kinds with a limit.

use diesel::sql_types::{Int4, Int8};
use domain::TenantId;
use store::{
    DbResult,
    sql::{sql, statements},
};

use crate::CountStore;

/// A kind of row with a limit per tenant.
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

impl CountStore<'_> {
    /// The number of rows of this kind that a tenant has.
    pub async fn of(self, tenant: TenantId, what: Counted) -> DbResult<i64> {
        let query = match what {
            Counted::Rules => Rules { tenant: tenant.0 }.query(),
            Counted::Configurations => Configurations { tenant: tenant.0 }.query(),
            Counted::Keys => Keys { tenant: tenant.0 }.query(),
            Counted::Sessions => Sessions { tenant: tenant.0 }.query(),
        };
        query.within(Some(tenant)).row(self.store).await
    }
}

sql!(Rules in "counts/rules.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Configurations in "counts/configurations.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Keys in "counts/keys.sql" { tenant: i32 as Int4 } -> i64 as Int8);
sql!(Sessions in "counts/sessions.sql" { tenant: i32 as Int4 } -> i64 as Int8);
statements!(Rules, Configurations, Keys, Sessions);
