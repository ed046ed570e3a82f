//! Suppressed addresses: nothing is sent to them any more.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    Channel, DeliveryId,
    suppression::{SuppressionReason, SuppressionScope},
};
use records::{
    Records,
    suppressions::{Suppression, SuppressionFilter},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web,
    auth::{Admin, Reader},
    params::{self, Id, Params, Text},
    problem::Problem,
};

/// Selects suppressions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SuppressionsQuery {
    /// Of exactly this address; the case of an e-mail address does not matter.
    #[param(value_type = Option<String>)]
    recipient: Option<Text>,
    /// Of this channel: `email`, `sms` or `push`.
    #[param(value_type = Option<String>)]
    channel: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// An address that nothing is sent to.
#[derive(Serialize, ToSchema)]
#[schema(as = Suppression)]
pub struct SuppressionView {
    /// Its id, to lift it by.
    id: Uuid,
    /// The channel.
    #[schema(value_type = String, example = "email")]
    channel: Channel,
    /// The address; `null`: its person was erased.
    #[schema(example = "nobody@example.com")]
    recipient: Option<String>,
    /// `all`; `marketing` for the class `marketing` only; or `category:` and the name of the only category.
    #[schema(value_type = String, example = "all")]
    scope: SuppressionScope,
    /// `address_dead`, `hard_bounce`, `soft_bounces`, `complaint` or `unsubscribed`.
    #[schema(value_type = String, example = "hard_bounce")]
    reason: SuppressionReason,
    /// The provider's code or clause.
    detail: Option<String>,
    /// The delivery that caused it.
    #[schema(value_type = Option<Uuid>)]
    delivery_id: Option<DeliveryId>,
    /// Since when.
    created_at: DateTime<Utc>,
}

impl From<Suppression> for SuppressionView {
    fn from(found: Suppression) -> Self {
        let Suppression { id, channel, address, scope, reason, detail, delivery, created_at } = found;
        Self { id, channel, recipient: address, scope, reason, detail, delivery_id: delivery, created_at }
    }
}

/// Suppressions, newest first.
#[derive(Serialize, ToSchema)]
pub struct SuppressionList {
    /// The suppressions.
    suppressions: Vec<SuppressionView>,
    /// Where the next page begins.
    next_cursor: Option<String>,
}

/// Suppressed addresses: they bounced, do not exist, or their people complained or unsubscribed.
///
/// A delivery to one of them ends as `suppressed`.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/api/suppressions", tag = "managing", params(SuppressionsQuery),
    responses((status = 200, description = "The suppressions", body = SuppressionList)))]
pub async fn list(reader: Reader, query: Params<SuppressionsQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let SuppressionsQuery { recipient, channel, limit, cursor } = query.0;
    let (limit, before) = (params::limit(limit)?, params::cursor(cursor)?);
    let filter = SuppressionFilter { recipient: params::given(recipient), channel: params::word("channel", channel)? };
    let tenant = reader.0.tenant;
    let reading = async move |store: store::Store| store.suppressions().list(tenant, &filter, before, limit + 1).await;
    let (found, next_cursor) = params::page_of(web.queries.run(reading).await?, limit, |suppression| suppression.id);
    let suppressions = found.into_iter().map(SuppressionView::from).collect();
    Ok(HttpResponse::Ok().json(SuppressionList { suppressions, next_cursor }))
}

/// Lifts a suppression: messages sent from now on go to that address again.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/suppressions/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The suppression")),
    responses((status = 204, description = "Lifted")))]
pub async fn lift(admin: Admin, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let was_there = web.queries.run(async move |store| store.suppressions().lift(tenant, id).await).await?;
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found("suppression")) }
}
