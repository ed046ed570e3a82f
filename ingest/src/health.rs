//! Health reports for people and orchestrators, and the metrics.
//!
//! Acceptance needs the database and nothing else. A broker that is away makes the process degraded, not unready; otherwise
//! an outage of the broker would stop acceptance too.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use actix_web::{HttpResponse, http::StatusCode, web::Data};
use broker::ConsumerHealth;
use connectors::waha::{Host, WahaError};
use runtime::probe::{Checking, Health, Part, Report};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Db};

/// Whether every migration of this version has run.
pub struct SchemaPart(pub Arc<AtomicBool>);

impl Part for SchemaPart {
    fn name(&self) -> &'static str {
        "schema"
    }

    fn check(&self) -> Checking<'_> {
        let health = match self.0.load(Ordering::Relaxed) {
            true => Health::Up,
            false => Health::Down("migrations are pending: run `posthaste migrate`".to_owned()),
        };
        Box::pin(std::future::ready(health))
    }
}

/// Whether the WAHA of the sessions answers. Only WhatsApp depends on it.
pub struct WahaPart {
    /// Queries which sessions cannot be reached.
    pub db: Db,
    /// The WAHA host from the settings.
    pub host: Option<Host>,
}

impl Part for WahaPart {
    fn name(&self) -> &'static str {
        "waha"
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(async {
            if let Some(host) = &self.host
                && let Err(error) = host.ping().await
            {
                // An old version does not have this path, but its answer shows that it runs.
                if !matches!(error, WahaError::NotFound | WahaError::Refused(_) | WahaError::BadKey) {
                    return Health::Degraded(format!("WAHA_BASE_URL: {error}"));
                }
            }
            match self.db.run(async |store| store.unreachable_sessions().await).await {
                Ok(0) => Health::Up,
                Ok(count) => Health::Degraded(format!("the WAHA of {count} started sessions does not answer")),
                Err(_) => Health::Degraded("the sessions are not known while the database is away".to_owned()),
            }
        })
    }
}

/// Whether the intake consumers are registered at the broker.
pub struct IntakePart(pub Vec<Arc<ConsumerHealth>>);

impl Part for IntakePart {
    fn name(&self) -> &'static str {
        "intake"
    }

    fn check(&self) -> Checking<'_> {
        let idle: Vec<&str> = self.0.iter().filter(|queue| !queue.is_consuming()).map(|queue| queue.queue()).collect();
        let health = match idle.is_empty() {
            true => Health::Up,
            false => Health::Degraded(format!("not consuming {}", idle.join(", "))),
        };
        Box::pin(std::future::ready(health))
    }
}

/// How the process is, and each of its parts.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, example = json!({"status": "degraded", "parts": {"database": {"status": "ok"}, "broker": {"status": "degraded", "detail": "disconnected"}}}))]
pub struct HealthAnswer {
    /// `ok`, `degraded` (works, with something missing) or `down`.
    pub status: String,
    /// Each part: its `status`, and with anything but `ok` a `detail`.
    #[schema(value_type = std::collections::BTreeMap<String, serde_json::Value>)]
    pub parts: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Every part of the process, other services in the same process included.
///
/// 200 while ingest does its work, even if something is missing (`degraded`); 503 when it cannot (`down`).
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses(
    (status = 200, description = "Works; `status` says whether something is missing", body = HealthAnswer),
    (status = 503, description = "Does not work", body = HealthAnswer)))]
pub async fn all(app: Data<App>) -> HttpResponse {
    let (own, others) = futures_util::join!(app.parts.report(), app.others.report());
    answer(&own.beside(others))
}

/// Whether the process runs at all: 200 whenever it can answer.
#[utoipa::path(get, path = "/health/live", tag = "health", security(()), responses(
    (status = 200, description = "Runs", body = HealthAnswer, example = json!({"status": "ok", "parts": {}}))))]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body("{\"status\":\"ok\",\"parts\":{}}")
}

/// Whether requests should be sent here: the database answers and its schema is current.
///
/// The broker may be away: acceptance goes on, and what was accepted is published later.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()), responses(
    (status = 200, description = "Ready", body = HealthAnswer),
    (status = 503, description = "Not ready", body = HealthAnswer)))]
pub async fn ready(app: Data<App>) -> HttpResponse {
    answer(&app.parts.report().await)
}

/// All metrics, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses(
    (status = 200, description = "The metrics", body = String, content_type = "text/plain")))]
pub async fn metrics(app: Data<App>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(app.metrics.render())
}

fn answer(report: &Report) -> HttpResponse {
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(report)
}
