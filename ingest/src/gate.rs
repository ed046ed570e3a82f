//! The gate that every request passes: who is asking, how often, and what of it goes into the audit log.
//!
//! The credential is checked once, here; the extractors of `auth` find the answer. A request with a valid credential counts
//! for that credential; any other one, also with an invented credential, for the address it comes from. The check comes
//! first even where the address has used its requests up: several callers may have one address, and one that guesses must
//! not lock the others out. Only an API key that this process has not seen lately is looked up at the expense of the address,
//! in a bucket that nothing else uses. Where that is empty, a key is still looked up if this can be done at once: real keys
//! behind one address must not be refused because another caller there guesses.
//!
//! Every decision by path takes the path as the router reads it.

use std::net::IpAddr;

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};

use crate::{
    app::App,
    audit::Watch,
    auth::{self, Caller},
    client,
    limits::RateLimitDecision,
    problem::Code,
};

/// Specifications, health and metrics: who asks for them must not be turned away by anybody's requests. Nor must readers of
/// tracked mails, whom few addresses may fetch for; a link of ours costs an HMAC.
const FREE: [&str; 6] = ["/health", "/metrics", "/docs", "/openapi.json", "/asyncapi.yaml", "/t"];
/// What providers call, many events from one address; their signature is their credential. So is the token of a link that
/// unsubscribes, and few mail services follow those of many readers.
const WEBHOOKS: [&str; 3] = ["/webhooks/", "/api/notifications/webhook/", "/api/notifications/unsubscribe/"];

/// Where refresh tokens are renewed; each family has a bucket of its own besides.
const REFRESH: &str = "/api/auth/refresh";

/// The middleware around every route.
pub async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let Some(app) = request.app_data::<Data<App>>().cloned() else {
        return Ok(next.call(request).await?.map_into_left_body());
    };
    let address = client::note(&request, &app.trusted_proxies);
    if is_free(request.match_info().as_str()) {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let (caller, verdict) = admit(&app, &request, address).await;
    if let Some(problem) = verdict.as_ref().and_then(RateLimitDecision::refusal) {
        let mut response = request.into_response(problem.error_response()).map_into_right_body();
        finish(&mut response, verdict);
        return Ok(response);
    }
    let watch = caller.as_ref().and_then(|caller| Watch::over(&app, &request, caller.identity()?));
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let mut response = next.call(request).await?.map_into_left_body();
    if let Some(watch) = watch {
        watch.end(&response).await;
    }
    finish(&mut response, verdict);
    Ok(response)
}

/// Who it is, where a credential was given, and what its bucket says; nothing where the database could not be asked.
async fn admit(
    app: &App,
    request: &ServiceRequest,
    address: Option<IpAddr>,
) -> (Option<Caller>, Option<RateLimitDecision>) {
    let path = request.match_info().as_str();
    if WEBHOOKS.iter().any(|prefix| path.starts_with(prefix)) {
        return (None, Some(app.limits.of_webhooks(address)));
    }
    if path == REFRESH {
        return (None, Some(app.limits.of_refreshes(address)));
    }
    let Ok(credential) = auth::presented(request.headers(), path, request.query_string()) else {
        return (None, Some(app.limits.of_address(address)));
    };
    let paid = app.credentials.is_unseen(&credential).then(|| app.limits.of_look_ups(address));
    let is_spent = paid.as_ref().is_some_and(|verdict| verdict.refusal().is_some());
    let identified = app.credentials.identify(&credential, address, !is_spent).await;
    let verdict = match &identified {
        Ok(identity) => Some(app.limits.of_credential(identity)),
        Err(problem) if problem.code() == Code::Unauthenticated => {
            Some(paid.unwrap_or_else(|| app.limits.of_address(address)))
        }
        Err(_) => paid.filter(|_| is_spent),
    };
    (Some(Caller::new(identified)), verdict)
}

fn is_free(path: &str) -> bool {
    let below = |free: &&str| path.strip_prefix(*free).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    FREE.iter().any(below)
}

fn finish<B>(response: &mut ServiceResponse<B>, verdict: Option<RateLimitDecision>) {
    if let Some(verdict) = verdict {
        verdict.write(response.headers_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::TABLE;

    #[test]
    fn only_health_metrics_specifications_and_links_in_mails_are_free() {
        let free: Vec<&str> = TABLE.iter().map(|(path, _)| *path).filter(|path| is_free(path)).collect();
        let wanted = [
            "/t/o/{token}",
            "/t/c/{token}",
            "/health",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/openapi.json",
            "/asyncapi.yaml",
            "/docs/problems",
        ];
        assert_eq!(free, wanted);
        assert!(is_free("/docs/") && is_free("/docs/swagger-ui.css"));
        assert!(
            !is_free("/healthy") && !is_free("/tenants") && !is_free("/api/admin/keys") && !is_free("/webhooks/health")
        );
    }
}
