//! Functions that submission handlers share.

use actix_web::HttpResponse;
use deliveries::{Deliveries, accept::Accepted};
use domain::{TenantId, contract::submission::Draft};
use web::{
    auth::Identity,
    observe::Trace,
    problem::{Code, Problem},
};

use crate::{
    HTTP, Submissions,
    accept::AcceptResult,
    addresses,
    carrier::{self, Carrier, Wanted, no_room},
    envelope::{Hashes, Origin, build_acceptance},
    idempotency::{self, Kind, REPLAYED},
};

/// Accepts one validated message: finds its session and its recipients, commits it and answers.
pub async fn accept(
    submissions: &Submissions,
    tenant: TenantId,
    draft: Draft,
    origin: Origin,
    hashes: Option<Hashes>,
) -> Result<HttpResponse, Problem> {
    let carrier = match carrier::choose(submissions, tenant, draft.channel, &draft.session, Wanted::one(&draft)).await {
        Ok(carrier) => carrier,
        Err(problem) => return repeat(submissions, tenant, hashes, problem).await,
    };
    let recipients = addresses::recipients(submissions, tenant, &draft).await?;
    let line = carrier.as_ref().map(Carrier::line);
    let (mut acceptance, answer) = build_acceptance(draft, recipients, origin, hashes, line);
    acceptance.room_in = carrier.and_then(|carrier| carrier.room_in());
    respond(submissions.acceptor.accept(acceptance).await, answer)
}

/// Repeats the stored answer of an earlier request with the same key; without one, returns the problem.
pub async fn repeat(
    submissions: &Submissions,
    tenant: TenantId,
    hashes: Option<Hashes>,
    problem: Problem,
) -> Result<HttpResponse, Problem> {
    let Some(hashes) = hashes else { return Err(problem) };
    let stored = submissions
        .web
        .queries
        .run(async move |store| store.acceptance().answered(tenant, &hashes.key, &hashes.request).await)
        .await?;
    stored.map_or(Err(problem), |first| respond(Ok(Accepted::Replayed(first)), Vec::new()))
}

/// The origin of an HTTP request.
pub fn origin(identity: &Identity, trace: Trace) -> Origin {
    Origin { tenant: identity.tenant, source: HTTP, trace: trace.0 }
}

/// The hashes of a request with an idempotency key; without a key nothing is hashed.
pub fn hashes(key: Option<String>, kind: Kind, body: &[u8]) -> Option<Hashes> {
    key.map(|key| Hashes { key: idempotency::key_hash(&key), request: idempotency::request_hash(kind, body, &[]) })
}

/// The answer to a submission.
pub fn respond(result: AcceptResult, answer: Vec<u8>) -> Result<HttpResponse, Problem> {
    let mut response = HttpResponse::Accepted();
    response.content_type("application/json");
    match result? {
        Accepted::New => Ok(response.body(answer)),
        Accepted::Replayed(first) => Ok(response.insert_header((REPLAYED, "true")).body(first)),
        Accepted::KeyTaken => Err(key_taken()),
        Accepted::NoRoom { seconds } => Err(no_room(seconds)),
        Accepted::Unanswered => Err(Problem::unavailable()),
    }
}

/// The key belongs to another request.
pub fn key_taken() -> Problem {
    Problem::new(Code::IdempotencyKeyReused, "Use a new key: this one was used for a request with another body.")
}
