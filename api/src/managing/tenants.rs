//! Tenants, for operators.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    TenantId,
    contract::submission::FieldError,
    token::{self, Role},
};
use records::{
    Records,
    tenants::{CreateTenantError, Tenant},
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use web::{
    Web, audit,
    auth::{Identity, Operator},
    body::JsonBody,
    params::{self, Params, Text},
    problem::Problem,
};

/// A page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// Selects a tenant.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct TenantQuery {
    /// The slug of a tenant, for operators; else the tenant of the credential.
    #[param(value_type = Option<String>)]
    pub tenant: Option<Text>,
}

/// The tenant of the request: the caller's own, or any tenant for an operator.
pub async fn tenant_of_query(web: &Web, caller: &Identity, slug: Option<Text>) -> Result<TenantId, Problem> {
    let Some(slug) = params::given(slug) else { return Ok(caller.tenant) };
    let found = web.credentials.tenant(&slug).await?;
    let seen = |tenant: &TenantId| caller.role == Role::Operator || *tenant == caller.tenant;
    found.filter(seen).ok_or_else(|| Problem::not_found("tenant"))
}

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tenant)]
pub struct TenantView {
    /// Its number.
    pub id: i32,
    /// Its name in routing keys, tokens and commands.
    #[schema(example = "acme")]
    pub slug: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
}

impl From<&Tenant> for TenantView {
    fn from(tenant: &Tenant) -> Self {
        Self { id: tenant.id.0, slug: tenant.slug.clone(), created_at: tenant.created_at }
    }
}

/// A page of tenants.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantList {
    /// The tenants, newest first.
    pub tenants: Vec<TenantView>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// Every tenant, newest first.
///
/// Roles: operator.
#[utoipa::path(get, path = "/api/admin/tenants", tag = "managing", params(PageQuery),
    responses((status = 200, description = "A page of tenants", body = TenantList)))]
pub async fn list(_: Operator, query: Params<PageQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(query.0.limit)?, params::number_cursor(query.0.cursor)?);
    let all = web.queries.run(async move |store| store.tenants().list().await).await?;
    let older = all.iter().rev().filter(|tenant| before.is_none_or(|before| i64::from(tenant.id.0) < before));
    let wanted = usize::try_from(limit).unwrap_or_default() + 1;
    let rows: Vec<TenantView> = older.take(wanted).map(TenantView::from).collect();
    let (tenants, next_cursor) =
        params::page_after(rows, limit, |tenant| params::number_cursor_after(tenant.id.into()));
    Ok(HttpResponse::Ok().json(TenantList { tenants, next_cursor }))
}

/// A tenant to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantBody {
    /// Lower-case letters, digits and hyphens; the first word of its AMQP routing keys. `name` is accepted too.
    #[serde(alias = "name")]
    #[schema(max_length = 63, example = "acme")]
    slug: String,
}

/// A tenant that was created.
#[derive(Serialize, ToSchema)]
pub struct TenantCreated {
    /// The tenant.
    #[schema(inline)]
    #[serde(flatten)]
    pub tenant: TenantView,
    /// Signs its webhooks.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub webhook_secret: String,
}

/// Creates a tenant.
///
/// Its first key comes from `POST /api/admin/keys?tenant=…`.
///
/// Roles: operator.
#[utoipa::path(post, path = "/api/admin/tenants", tag = "managing",
    request_body(content = TenantBody, example = json!({"slug": "acme"})),
    responses((status = 201, description = "Created", body = TenantCreated),
        (status = 409, description = "`state_conflict`: There is a tenant of that name", body = web::problem::ProblemBody,
            content_type = "application/problem+json")))]
pub async fn create(operator: Operator, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let asked: TenantBody = body.parse().await?;
    let secret = token::webhook_secret().map_err(|_| Problem::internal())?;
    let created = web.queries.run(async move |store| Ok(store.tenants().create(&asked.slug, &secret).await)).await?;
    let tenant = created.map_err(|error| match error {
        CreateTenantError::Taken(_) => Problem::conflict("Choose another name: there is a tenant of this one."),
        CreateTenantError::Name(_) => Problem::validation(vec![FieldError::new(
            "slug",
            "must have 1 to 63 lower-case letters, digits and hyphens, and no hyphen first",
        )]),
        CreateTenantError::Database(_, error) => error.into(),
    })?;
    tracing::info!(tenant = tenant.slug, actor = operator.0.actor(), "a tenant was created");
    let webhook_secret = tenant.webhook_secret.expose_secret().to_owned();
    let answer = TenantCreated { tenant: TenantView::from(&tenant), webhook_secret };
    Ok(audit::of_tenant(audit::made(HttpResponse::Created().json(answer), tenant.slug), tenant.id))
}
