//! Middleware around every request: trace context, timing, and `Connection: close` while the server stops.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    web::Data,
};
use metrics::Histogram;
use runtime::{metric, telemetry::TraceContext};

use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: &str = "traceparent";
/// The label of unknown paths: a made-up path must not become a time series.
const UNMATCHED: &str = "unmatched";

/// Counts requests in progress, and knows whether the server is stopping.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    under_way: AtomicUsize,
    stopping: AtomicBool,
}

impl Traffic {
    /// From now on each response closes its connection, so that clients move to another server.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
    }

    /// Requests in progress.
    pub fn under_way(&self) -> usize {
        self.0.under_way.load(Ordering::SeqCst)
    }

    fn enter(&self) -> InProgress {
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        InProgress(self.clone())
    }
}

/// Counts a request as in progress until it is dropped, also when the client hangs up.
struct InProgress(Traffic);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The pattern of a route and its histograms, one per status: looking them up by name would cost more than recording. One
/// per HTTP thread.
pub struct RouteTimings {
    pattern: &'static str,
    by_status: RefCell<Vec<(u16, Histogram)>>,
}

impl RouteTimings {
    /// The timings of the route `pattern`.
    pub const fn new(pattern: &'static str) -> Self {
        Self { pattern, by_status: RefCell::new(Vec::new()) }
    }

    /// The pattern of the route.
    pub const fn pattern(&self) -> &'static str {
        self.pattern
    }

    fn record(&self, status: u16, started: Instant) {
        let mut by_status = self.by_status.borrow_mut();
        let known = by_status.iter().position(|(known, _)| *known == status);
        let index = known.unwrap_or_else(|| {
            by_status.push((status, histogram(self.pattern, status)));
            by_status.len() - 1
        });
        if let Some((_, histogram)) = by_status.get(index) {
            histogram.record(started.elapsed());
        }
    }
}

fn histogram(route: &'static str, status: u16) -> Histogram {
    metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "route" => route, "status" => status.to_string())
}

/// The middleware around every route, and around requests that match no route.
pub async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let traffic = request.app_data::<Data<Traffic>>().cloned().unwrap_or_else(|| Data::new(Traffic::default()));
    let in_progress = traffic.enter();
    let trace = trace(request.headers());
    let id = HeaderValue::from_str(&trace.request_id).ok();
    request.extensions_mut().insert(trace);
    let mut response = next.call(request).await?;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if traffic.0.stopping.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response.response_mut().head_mut().set_connection_type(actix_web::http::ConnectionType::Close);
    }
    record(&response, started);
    drop(in_progress);
    Ok(response)
}

fn trace(headers: &HeaderMap) -> TraceContext {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    TraceContext::take_or_make(text(REQUEST_ID.as_str()), text(TRACEPARENT))
}

fn record<B>(response: &ServiceResponse<B>, started: Instant) {
    let status = response.status().as_u16();
    match response.request().app_data::<RouteTimings>() {
        Some(timings) => timings.record(status, started),
        None => histogram(UNMATCHED, status).record(started.elapsed()),
    }
}

/// The trace context of the current request.
#[derive(Clone, Debug)]
pub struct Trace(pub TraceContext);

impl FromRequest for Trace {
    type Error = Problem;
    type Future = std::future::Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let taken = request.extensions_mut().remove::<TraceContext>();
        std::future::ready(Ok(Self(taken.unwrap_or_else(|| TraceContext::take_or_make(None, None)))))
    }
}
