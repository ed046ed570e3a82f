//! The secret for receivers of our webhooks.

use actix_web::{HttpResponse, web::Data};
use records::Records;
use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;
use web::{Web, auth::Admin, problem::Problem};

/// The secret that signs webhooks.
#[derive(Serialize, ToSchema)]
pub struct SigningSecret {
    /// `whsec_` and base64, the form for any Standard Webhooks library.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: String,
}

/// The secret that signs the tenant's webhooks.
///
/// Signatures follow Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
///
/// Roles: admin, operator (for the tenant of the credential).
#[utoipa::path(get, path = "/api/webhooks/signing-secret", tag = "managing",
    responses((status = 200, description = "The secret", body = SigningSecret)))]
pub async fn signing_secret(admin: Admin, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let tenant = admin.0.tenant;
    let found = web.queries.run(async move |store| store.tenants().by_id(tenant).await).await?;
    let tenant = found.ok_or_else(|| Problem::not_found("tenant"))?;
    Ok(HttpResponse::Ok().json(SigningSecret { secret: tenant.webhook_secret.expose_secret().to_owned() }))
}
