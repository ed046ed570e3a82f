//! Lists the audit log.

use actix_web::{HttpResponse, web::Data};
use records::{
    Records,
    audit::{AuditEntry, AuditFilter},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use web::{
    Web,
    auth::Admin,
    params::{self, Params, Text},
    problem::Problem,
};

/// Selects entries. An absent parameter does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// By this actor, such as `admin:0191d8a0-0000-7000-8000-000000000001` or `cli:ada`.
    #[param(value_type = Option<String>)]
    actor: Option<Text>,
    /// With this prefix of the action, such as `DELETE` or `POST /api/admin/keys`.
    #[param(value_type = Option<String>)]
    action: Option<Text>,
    /// At this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Text>,
    /// Before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditList {
    /// The entries, newest first.
    #[schema(value_type = Vec<crate::openapi::AuditEntryBody>)]
    pub entries: Vec<AuditEntry>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// The audit log, newest first.
///
/// There is one entry for each POST, PUT or DELETE with a credential that was answered with 2xx, for each read of a
/// signing secret, a person's export, a session's QR code or a dead letter's body, and for each `posthaste` command
/// that changed something. A call that was answered with 5xx may have changed something: its target ends in
/// `(ambiguous: answered 503)`. A call that failed after it had changed something ends in `(in part: answered 400)`;
/// one that the client cut off has the target `(interrupted)`. The actor is a role and a subject; ` via key:<id>`
/// behind it names the API key that made a token. Submissions are not recorded (the timeline of a message is their
/// record), nor is what people do in their inboxes. Entries cannot be changed or removed; `posthaste audit verify`
/// checks their chain of hashes.
///
/// Roles: admin for its tenant; operator for all.
#[utoipa::path(get, path = "/api/admin/audit", tag = "managing", params(AuditQuery),
    responses((status = 200, description = "A page of entries", body = AuditList)))]
pub async fn list(admin: Admin, query: Params<AuditQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, query) = (admin.0.scope(), query.0);
    let filter = AuditFilter {
        actor: params::given(query.actor),
        action: params::given(query.action),
        since: params::time("since", query.since)?,
        until: params::time("until", query.until)?,
    };
    let (before, limit) = (params::number_cursor(query.cursor)?, params::limit(query.limit)?);
    let rows =
        web.queries.run(async move |store| store.audit_log().list(scope, filter, before, limit + 1).await).await?;
    let (entries, next_cursor) = params::page_after(rows, limit, |entry| params::number_cursor_after(entry.id));
    Ok(HttpResponse::Ok().json(AuditList { entries, next_cursor }))
}
