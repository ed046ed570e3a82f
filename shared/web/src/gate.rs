//! The gate: middleware around every request that authenticates, limits the rate and records audit entries.
//!
//! The gate checks the credential once; the extractors of `auth` read the result. A request with a valid credential
//! counts against that credential. Every other request, also one with an invented credential, counts against its
//! address. The credential is checked even if the address has used up its requests: several callers may share one
//! address, and one that guesses must not lock the others out. Only an API key that this process has not seen lately
//! counts its look-up against the address, in a bucket for nothing else. If that bucket is empty, the key is still
//! looked up if a permit is free at once: another caller's guesses must not block real keys behind the same address.
//!
//! Every decision by path uses the path as the router reads it.

use std::net::IpAddr;

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};
use ipnet::IpNet;

use crate::{
    audit::{AuditGuard, Recorder},
    auth::{self, Caller, Credentials},
    client,
    limits::{Limits, RateLimitDecision},
    problem::Code,
};

/// Specifications, health and metrics are not limited: other callers' requests must not lock their readers out. Nor are
/// links of tracked mails limited: few addresses may fetch them for many readers, and checking one costs an HMAC.
const FREE: [&str; 6] = ["/health", "/metrics", "/docs", "/openapi.json", "/asyncapi.yaml", "/t"];
/// Called by providers, with many events from one address; their signature is their credential. The credential of an
/// unsubscribe link is its token; few mail services follow the links of many readers.
const WEBHOOKS: [&str; 3] = ["/webhooks/", "/api/notifications/webhook/", "/api/notifications/unsubscribe/"];

/// Where refresh tokens are renewed. Each token family also has a bucket of its own.
const REFRESH: &str = "/api/auth/refresh";

/// State of the gate.
#[derive(Clone)]
pub struct Gate {
    /// Authenticates callers.
    pub credentials: Data<Credentials>,
    /// The rate limits.
    pub limits: Data<Limits>,
    /// Writes the audit log.
    pub recorder: Data<Recorder>,
    /// Networks whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
}

/// The middleware around every route.
pub async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let Some(gate) = request.app_data::<Data<Gate>>().cloned() else {
        return Ok(next.call(request).await?.map_into_left_body());
    };
    let address = client::note(&request, &gate.trusted_proxies);
    if is_free(request.match_info().as_str()) {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let (caller, decision) = admit(&gate, &request, address).await;
    if let Some(problem) = decision.as_ref().and_then(RateLimitDecision::refusal) {
        let mut response = request.into_response(problem.error_response()).map_into_right_body();
        finish(&mut response, decision);
        return Ok(response);
    }
    let guard = caller.as_ref().and_then(|caller| AuditGuard::over(&gate.recorder, &request, caller.identity()?));
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let mut response = next.call(request).await?.map_into_left_body();
    if let Some(guard) = guard {
        guard.end(&response).await;
    }
    finish(&mut response, decision);
    Ok(response)
}

/// The identity, if a credential was given, and the rate limit's decision; no decision if the database could not be
/// reached.
async fn admit(
    gate: &Gate,
    request: &ServiceRequest,
    address: Option<IpAddr>,
) -> (Option<Caller>, Option<RateLimitDecision>) {
    let path = request.match_info().as_str();
    if WEBHOOKS.iter().any(|prefix| path.starts_with(prefix)) {
        return (None, Some(gate.limits.of_webhooks(address)));
    }
    if path == REFRESH {
        return (None, Some(gate.limits.of_refreshes(address)));
    }
    let Ok(credential) = auth::presented(request.headers(), path, request.query_string()) else {
        return (None, Some(gate.limits.of_address(address)));
    };
    let paid = gate.credentials.is_unseen(&credential).then(|| gate.limits.of_look_ups(address));
    let is_spent = paid.as_ref().is_some_and(|decision| decision.refusal().is_some());
    let identified = gate.credentials.identify(&credential, address, !is_spent).await;
    let decision = match &identified {
        Ok(identity) => Some(gate.limits.of_credential(identity)),
        Err(problem) if problem.code() == Code::Unauthenticated => {
            Some(paid.unwrap_or_else(|| gate.limits.of_address(address)))
        }
        Err(_) => paid.filter(|_| is_spent),
    };
    (Some(Caller::new(identified)), decision)
}

/// Whether a path has no rate limit.
pub fn is_free(path: &str) -> bool {
    let below = |free: &&str| path.strip_prefix(*free).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    FREE.iter().any(below)
}

fn finish<B>(response: &mut ServiceResponse<B>, decision: Option<RateLimitDecision>) {
    if let Some(decision) = decision {
        decision.write(response.headers_mut());
    }
}
