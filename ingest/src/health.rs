//! Health reports for people and orchestrators, and the metrics.
//!
//! Acceptance needs the database and nothing else. A broker that is away makes the process degraded, not unready; otherwise
//! an outage of the broker would stop acceptance too.

use std::sync::Arc;

use actix_web::{HttpResponse, http::StatusCode, web::Data};
use broker::ConsumerHealth;
use runtime::{
    probe::{Checking, Health, Part, Parts, Report},
    telemetry::MetricsHandle,
};
use serde::Serialize;
use utoipa::ToSchema;

/// State of the health routes.
pub struct HealthReports {
    /// The parts of ingest.
    pub parts: Parts,
    /// The parts of other services in the same process.
    pub others: Parts,
    /// The metrics recorder.
    pub metrics: MetricsHandle,
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
pub async fn all(reports: Data<HealthReports>) -> HttpResponse {
    let (own, others) = futures_util::join!(reports.parts.report(), reports.others.report());
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
/// The broker may be away: messages are still accepted, and published later.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()), responses(
    (status = 200, description = "Ready", body = HealthAnswer),
    (status = 503, description = "Not ready", body = HealthAnswer)))]
pub async fn ready(reports: Data<HealthReports>) -> HttpResponse {
    answer(&reports.parts.report().await)
}

/// All metrics, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses(
    (status = 200, description = "The metrics", body = String, content_type = "text/plain")))]
pub async fn metrics(reports: Data<HealthReports>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(reports.metrics.render())
}

fn answer(report: &Report) -> HttpResponse {
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(report)
}
