//! The limits of a tenant.

use actix_web::{HttpResponse, web::Data};
use deliveries::Deliveries;
use domain::{contract::submission::FieldError, token::Role};
use records::{Records, limits::TenantLimits};
use serde::{Deserialize, Deserializer, Serialize};
use store::Store;
use utoipa::ToSchema;
use web::{Web, audit, auth::Admin, body::JsonBody, params::Params, problem::Problem};

use crate::managing::tenants::{TenantQuery, tenant_of_query};

/// More requests or messages a minute than Posthaste can handle.
const PER_MINUTE_MAX: i64 = 100_000_000;

/// The limits of a tenant; `null`: the setting applies.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub struct LimitsView {
    /// HTTP requests that each credential of the tenant may make in a minute, at each ingest process.
    #[schema(example = 20_000)]
    pub http_requests_per_minute: Option<i32>,
    /// WhatsApp messages that all sessions of the tenant together may send in a minute.
    #[schema(example = 100)]
    pub whatsapp_per_minute: Option<i32>,
}

impl From<TenantLimits> for LimitsView {
    fn from(limits: TenantLimits) -> Self {
        let TenantLimits { http_requests_per_minute, whatsapp_per_minute } = limits;
        Self { http_requests_per_minute, whatsapp_per_minute }
    }
}

/// Limits to set. An absent limit stays; `null` removes a limit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsBody {
    /// HTTP requests of each credential in a minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i32>, minimum = 1)]
    http_requests_per_minute: Option<Option<i64>>,
    /// WhatsApp messages of all sessions in a minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i32>, minimum = 1)]
    whatsapp_per_minute: Option<Option<i64>>,
}

/// Tells `null` from nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl LimitsBody {
    /// The limits after the change to `old`.
    fn onto(self, old: TenantLimits, http_max: i64) -> Result<TenantLimits, Problem> {
        let mut faults = Vec::new();
        let mut merge = |field: &'static str, asked: Option<Option<i64>>, old: Option<i32>, max: i64| match asked {
            None => old,
            Some(None) => None,
            Some(Some(number)) => {
                let fits = i32::try_from(number).ok().filter(|_| (1..=max).contains(&number));
                if fits.is_none() {
                    faults.push(FieldError::new(field, format!("must be a whole number from 1 to {max}, or null")));
                }
                fits
            }
        };
        let http =
            merge("http_requests_per_minute", self.http_requests_per_minute, old.http_requests_per_minute, http_max);
        let whatsapp = merge("whatsapp_per_minute", self.whatsapp_per_minute, old.whatsapp_per_minute, PER_MINUTE_MAX);
        let limits = TenantLimits { http_requests_per_minute: http, whatsapp_per_minute: whatsapp };
        if faults.is_empty() { Ok(limits) } else { Err(Problem::validation(faults)) }
    }
}

/// The limits of a tenant.
///
/// Roles: admin for its tenant; operator for any, with `?tenant=`.
#[utoipa::path(get, path = "/api/admin/limits", tag = "managing", params(TenantQuery),
    responses((status = 200, description = "The limits", body = LimitsView)))]
pub async fn show(admin: Admin, query: Params<TenantQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let tenant = tenant_of_query(&web, &admin.0, query.0.tenant).await?;
    let limits = web.queries.run(async move |store| store.limits().of_tenant(tenant).await).await?;
    Ok(HttpResponse::Ok().json(LimitsView::from(limits)))
}

/// Sets limits of a tenant.
///
/// An absent limit stays; `null` removes it. They apply here at once, and in every other process within seconds. An
/// admin may give its tenant at most the limit of the settings (`RATE_LIMIT_MAX_REQUESTS`); an operator may give more.
///
/// Roles: admin for its tenant; operator for any, with `?tenant=`.
#[utoipa::path(put, path = "/api/admin/limits", tag = "managing", params(TenantQuery),
    request_body(content = LimitsBody, example = json!({"http_requests_per_minute": 20_000, "whatsapp_per_minute": null})),
    responses((status = 200, description = "The limits as they are now", body = LimitsView)))]
pub async fn set(
    admin: Admin,
    query: Params<TenantQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let tenant = tenant_of_query(&web, &admin.0, query.0.tenant).await?;
    let asked: LimitsBody = body.parse().await?;
    let usual = i64::try_from(web.limits.usual_per_minute()).unwrap_or(i64::MAX);
    let http_max = if admin.0.role == Role::Operator { PER_MINUTE_MAX } else { usual.min(PER_MINUTE_MAX) };
    let old = web.queries.run(async move |store| store.limits().of_tenant(tenant).await).await?;
    let limits = asked.onto(old, http_max)?;
    let store_both = async move |store: Store| {
        store.limits().set(tenant, limits).await?;
        store.lines().limit_sessions(tenant, limits.whatsapp_per_minute).await
    };
    web.queries.run(store_both).await?;
    web.refresh_limits().await;
    Ok(audit::of_tenant(HttpResponse::Ok().json(LimitsView::from(limits)), tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn onto(body: &str) -> Option<(Option<i32>, Option<i32>)> {
        let old = TenantLimits { http_requests_per_minute: Some(5), whatsapp_per_minute: Some(7) };
        let body: LimitsBody = serde_json::from_str(body).unwrap();
        let limits = body.onto(old, 100).ok()?;
        Some((limits.http_requests_per_minute, limits.whatsapp_per_minute))
    }

    #[test]
    fn what_is_not_given_stays_and_null_takes_back() {
        assert_eq!(onto("{}"), Some((Some(5), Some(7))));
        assert_eq!(onto(r#"{"http_requests_per_minute":null}"#), Some((None, Some(7))));
        assert_eq!(onto(r#"{"http_requests_per_minute":100,"whatsapp_per_minute":1}"#), Some((Some(100), Some(1))));
        for bad in [
            r#"{"http_requests_per_minute":101}"#,
            r#"{"http_requests_per_minute":0}"#,
            r#"{"whatsapp_per_minute":-1}"#,
            r#"{"whatsapp_per_minute":99999999999}"#,
        ] {
            assert_eq!(onto(bad), None, "{bad}");
        }
    }
}
