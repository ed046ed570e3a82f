//! What a tenant may have beyond or below what the settings say.

use diesel::sql_types::{Int4, Nullable};
use domain::TenantId;

use super::{DbResult, Store, statement};

/// Limits of a tenant; `None`: as the settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// HTTP requests of each credential in a minute.
    pub http_requests_per_minute: Option<i32>,
    /// WhatsApp messages of all its sessions together in a minute.
    pub whatsapp_per_minute: Option<i32>,
}

type Row = (Option<i32>, Option<i32>);

impl From<Row> for TenantLimits {
    fn from((http_requests_per_minute, whatsapp_per_minute): Row) -> Self {
        Self { http_requests_per_minute, whatsapp_per_minute }
    }
}

impl Store {
    /// The limits of a tenant.
    pub async fn tenant_limits(&self, tenant: TenantId) -> DbResult<TenantLimits> {
        let query = statement::<(Nullable<Int4>, Nullable<Int4>)>(OF_TENANT).bind::<Int4, _>(tenant.0);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().next().unwrap_or_default().into())
    }

    /// Stores the limits of a tenant.
    pub async fn set_tenant_limits(&self, tenant: TenantId, limits: TenantLimits) -> DbResult<()> {
        let query = statement::<()>(SET)
            .bind::<Int4, _>(tenant.0)
            .bind::<Nullable<Int4>, _>(limits.http_requests_per_minute)
            .bind::<Nullable<Int4>, _>(limits.whatsapp_per_minute);
        query.within(Some(tenant)).run(self).await?;
        Ok(())
    }

    /// Every tenant whose HTTP limit differs from the settings: few enough to keep in memory.
    pub async fn http_limits(&self) -> DbResult<Vec<(TenantId, i32)>> {
        let rows: Vec<(i32, i32)> = statement::<(Int4, Int4)>(HTTP).rows(self).await?;
        Ok(rows.into_iter().map(|(tenant, limit)| (TenantId(tenant), limit)).collect())
    }
}

const OF_TENANT: &str = "SELECT http_requests_per_minute, whatsapp_per_minute FROM tenant_limits WHERE tenant_id = ?";

const SET: &str = "
INSERT INTO tenant_limits (tenant_id, http_requests_per_minute, whatsapp_per_minute) VALUES (?, ?, ?)
ON CONFLICT (tenant_id) DO UPDATE SET http_requests_per_minute = excluded.http_requests_per_minute,
    whatsapp_per_minute = excluded.whatsapp_per_minute, updated_at = now()";

const HTTP: &str =
    "SELECT tenant_id, http_requests_per_minute FROM tenant_limits WHERE http_requests_per_minute IS NOT NULL";
