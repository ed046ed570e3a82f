//! API keys, as admins manage them.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    contract::submission::{FieldError, NAME_BYTES_MAX},
    token::{ApiKey, Role},
};
use records::{Records, counts::Counted, keys::KeyListing};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web, audit,
    auth::Admin,
    body::JsonBody,
    params::{self, Id, Params, Text},
    problem::{Code, Problem},
};

use crate::{
    managing::tenants::{TenantQuery, tenant_of_query},
    quota::require_quota,
};

/// Which keys to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct KeysQuery {
    /// The slug of a tenant, for operators; without it they see the keys of all tenants.
    #[param(value_type = Option<String>)]
    tenant: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// A key, without its text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyView {
    /// Its id.
    pub id: Uuid,
    /// The slug of its tenant.
    #[schema(example = "acme")]
    pub tenant: String,
    /// Its role.
    #[schema(example = "producer")]
    pub role: String,
    /// The name that its owner gave it.
    #[schema(example = "shop")]
    pub name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Since when it no longer holds.
    pub revoked_at: Option<DateTime<Utc>>,
}

impl From<KeyListing> for KeyView {
    fn from(key: KeyListing) -> Self {
        let KeyListing { id, tenant_slug, role, name, created_at, revoked_at } = key;
        Self { id, tenant: tenant_slug, role, name, created_at, revoked_at }
    }
}

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    /// The keys, newest first, revoked ones too.
    pub keys: Vec<KeyView>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// API keys, newest first; never their texts.
///
/// Roles: admin for its tenant; operator for all.
#[utoipa::path(get, path = "/api/admin/keys", tag = "managing", params(KeysQuery),
    responses((status = 200, description = "A page of keys", body = KeyList)))]
pub async fn list(admin: Admin, query: Params<KeysQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let KeysQuery { tenant, limit, cursor } = query.0;
    let (limit, before) = (params::limit(limit)?, params::cursor(cursor)?);
    let scope = match tenant {
        Some(slug) => Some(tenant_of_query(&web, &admin.0, Some(slug)).await?),
        None => admin.0.scope(),
    };
    let all = web.queries.run(async move |store| store.api_keys().list(scope).await).await?;
    let older = all.into_iter().filter(|key| before.is_none_or(|before| key.id < before));
    let wanted = usize::try_from(limit).unwrap_or_default() + 1;
    let (keys, next_cursor) = params::page_of(older.take(wanted).map(KeyView::from).collect(), limit, |key| key.id);
    Ok(HttpResponse::Ok().json(KeyList { keys, next_cursor }))
}

/// A key to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyBody {
    /// Its role: `admin`, `producer`, `agent` or `user`; an operator may also create keys of operators.
    #[schema(value_type = String, example = "producer")]
    role: Role,
    /// A name to know it by.
    #[serde(default)]
    #[schema(max_length = 200, example = "shop")]
    name: String,
}

/// A key that was made.
#[derive(Serialize, ToSchema)]
pub struct KeyCreated {
    /// Its id, to revoke it by.
    pub id: Uuid,
    /// The key itself: shown only here, and stored as a hash.
    #[schema(example = "ph_…")]
    pub key: String,
    /// Its role.
    #[schema(value_type = String, example = "producer")]
    pub role: Role,
    /// The name that its owner gave it.
    pub name: String,
}

/// Creates an API key. The key is shown only here.
///
/// Roles: admin for its tenant; operator for any, with `?tenant=`.
#[utoipa::path(post, path = "/api/admin/keys", tag = "managing", params(TenantQuery),
    request_body(content = KeyBody, example = json!({"role": "producer", "name": "shop"})),
    responses((status = 201, description = "The key", body = KeyCreated)))]
pub async fn create(
    admin: Admin,
    query: Params<TenantQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let tenant = tenant_of_query(&web, &admin.0, query.0.tenant).await?;
    let KeyBody { role, name } = body.parse().await?;
    if role == Role::Operator && admin.0.role != Role::Operator {
        return Err(Problem::new(Code::Forbidden, "Choose another role: only an operator makes keys of operators."));
    }
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let fault = FieldError::new("name", "must have at most 200 bytes and no control characters");
        return Err(Problem::validation(vec![fault]));
    }
    require_quota(&web, tenant, Counted::Keys).await?;
    let key = ApiKey::generate().map_err(|_| Problem::internal())?;
    let (hash, called) = (key.hash, name.clone());
    let id = web.queries.run(async move |store| store.api_keys().create(tenant, role, &called, hash).await).await?;
    let created = KeyCreated { id, key: key.text.expose_secret().to_owned(), role, name };
    Ok(audit::of_tenant(audit::made(HttpResponse::Created().json(created), id), tenant))
}

/// Revokes an API key, and the refresh tokens made with it.
///
/// This process refuses it at once, and every other process within 30 seconds. Access tokens made with it expire.
///
/// Roles: admin for its tenant; operator for all.
#[utoipa::path(delete, path = "/api/admin/keys/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The key")),
    responses((status = 204, description = "Revoked")))]
pub async fn revoke(admin: Admin, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (admin.0.scope(), id.0);
    let revoked = web.queries.run(async move |store| store.api_keys().revoke(id, scope).await).await?;
    web.credentials.forget_key(id);
    let tenant = revoked.ok_or_else(|| Problem::not_found("key that holds"))?;
    Ok(audit::of_tenant(HttpResponse::NoContent().finish(), tenant))
}
