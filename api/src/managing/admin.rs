//! Views for operators.

use std::time::Duration;

use actix_web::{HttpResponse, web::Data};
use broker::{Broker, QueueDepth, declare::depths};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;
use web::{
    auth::Admin,
    problem::{Code, Problem},
};

/// About twenty requests to the broker, each a round trip.
const DEPTHS_TIMEOUT: Duration = Duration::from_secs(5);

/// The queues on the broker.
#[derive(Debug, Serialize, ToSchema)]
pub struct Queues {
    /// Each queue of the topology that exists.
    pub queues: Vec<QueueView>,
}

/// A queue on the broker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Queue)]
pub struct QueueView {
    /// Its name.
    #[schema(example = "posthaste.work.webhook.normal")]
    pub name: String,
    /// Messages waiting, without those handed to consumers.
    pub messages_ready: u32,
    /// Consumers registered.
    pub consumers: u32,
}

impl From<QueueDepth> for QueueView {
    fn from(depth: QueueDepth) -> Self {
        Self { name: depth.name, messages_ready: depth.messages_ready, consumers: depth.consumers }
    }
}

/// The number of messages in each queue of the broker.
///
/// Queues hold only messages that may be sent right now. All tenants share them: a depth is the sum over all tenants,
/// and shows nothing about one of them.
///
/// Roles: admin, operator.
#[utoipa::path(get, path = "/api/admin/queues", tag = "managing",
    responses((status = 200, description = "The queues", body = Queues)))]
pub async fn queues(_: Admin, broker: Data<Broker>) -> Result<HttpResponse, Problem> {
    let away =
        || Problem::new(Code::Unavailable, "The broker is away; ask again later. Acceptance goes on without it.");
    let connection = broker.connection().ok_or_else(away)?;
    let asked = timeout(DEPTHS_TIMEOUT, depths(&connection)).await;
    let depths = asked.map_err(|_| away())?.map_err(|error| {
        tracing::warn!(%error, "the depths of the queues are not known");
        away()
    })?;
    Ok(HttpResponse::Ok().json(Queues { queues: depths.into_iter().map(QueueView::from).collect() }))
}
