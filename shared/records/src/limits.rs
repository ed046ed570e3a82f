//! Limits of a tenant that differ from the settings.

use diesel::sql_types::{Int4, Nullable};
use domain::TenantId;
use store::{
    DbResult,
    sql::{row, sql, statements},
};

use crate::LimitStore;

row! {
    /// The limits of a tenant; `None`: the setting applies.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct TenantLimits {
        /// HTTP requests of each credential in a minute.
        pub http_requests_per_minute: Option<i32> as Nullable<Int4>,
        /// WhatsApp messages of all its sessions together in a minute.
        pub whatsapp_per_minute: Option<i32> as Nullable<Int4>,
    }
}

row! {
    struct HttpLimit {
        tenant_id: i32 as Int4,
        http_requests_per_minute: i32 as Int4,
    }
}

impl LimitStore<'_> {
    /// The limits of a tenant.
    pub async fn of_tenant(self, tenant: TenantId) -> DbResult<TenantLimits> {
        let limits = OfTenant { tenant: tenant.0 }.query().within(Some(tenant)).first(self.store).await?;
        Ok(limits.unwrap_or_default())
    }

    /// Stores the limits of a tenant.
    pub async fn set(self, tenant: TenantId, limits: TenantLimits) -> DbResult<()> {
        let TenantLimits { http_requests_per_minute, whatsapp_per_minute } = limits;
        let query = Set { tenant: tenant.0, http_requests_per_minute, whatsapp_per_minute }.query();
        query.within(Some(tenant)).run(self.store).await?;
        Ok(())
    }

    /// Every tenant whose HTTP limit differs from the settings: few enough to keep in memory.
    pub async fn http(self) -> DbResult<Vec<(TenantId, i32)>> {
        let rows = Http {}.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|row| (TenantId(row.tenant_id), row.http_requests_per_minute)).collect())
    }
}

sql!(OfTenant in "limits/of_tenant.sql" { tenant: i32 as Int4 } -> TenantLimits);
sql!(Set in "limits/set.sql" {
    tenant: i32 as Int4,
    http_requests_per_minute: Option<i32> as Nullable<Int4>,
    whatsapp_per_minute: Option<i32> as Nullable<Int4>,
});
sql!(Http in "limits/http.sql" {} -> HttpLimit);
statements!(OfTenant, Set, Http);
