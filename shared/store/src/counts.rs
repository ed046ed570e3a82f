//! How many things of a kind a tenant has, where that is bounded.

use diesel::sql_types::{Int4, Int8};
use domain::TenantId;

use super::{DbResult, Store, statement};

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

impl Counted {
    const fn statement(self) -> &'static str {
        match self {
            Self::Rules => "SELECT count(*) FROM rules WHERE tenant_id = ?",
            Self::Configurations => "SELECT count(*) FROM webhook_configurations WHERE tenant_id = ?",
            Self::Keys => "SELECT count(*) FROM api_keys WHERE tenant_id = ? AND revoked_at IS NULL",
            Self::Sessions => "SELECT count(*) FROM wa_sessions WHERE tenant_id = ?",
        }
    }
}

impl Store {
    /// How many of them a tenant has.
    pub async fn count_of(&self, tenant: TenantId, what: Counted) -> DbResult<i64> {
        statement::<Int8>(what.statement()).bind::<Int4, _>(tenant.0).within(Some(tenant)).row(self).await
    }
}
