//! The ends of the way over HTTP: a request's origin, and its response.

use std::future::Future;

use actix_web::HttpResponse;
use deliveries::accept::Accepted;
use domain::contract::submission::Draft;
use web::{
    auth::Identity,
    observe::Trace,
    problem::{Code, Problem},
};

use crate::{
    HTTP, Submissions,
    accept::AcceptResult,
    envelope::{Built, Origin, RequestKey},
    idempotency::{self, Kind, REPLAYED},
    pipeline::{Prepared, build_message, first_answer, prepare},
    session::no_room,
};

/// Accepts what `build` makes of a request, and answers.
pub async fn submit(
    submissions: &Submissions,
    key: Option<RequestKey>,
    build: impl Future<Output = Result<Built, Problem>>,
) -> Result<HttpResponse, Problem> {
    match prepare(submissions, key, build).await? {
        Prepared::Commit(acceptance, answer) => respond(submissions.acceptor.accept(*acceptance).await, answer),
        Prepared::Repeat(first) => respond(Ok(Accepted::Replayed(first)), Vec::new()),
    }
}

/// Accepts one validated message, and answers.
pub async fn submit_message(submissions: &Submissions, draft: Draft, origin: Origin) -> Result<HttpResponse, Problem> {
    submit(submissions, origin.key, build_message(submissions, draft, origin, false)).await
}

/// The response to a request whose key was used before for the same content.
pub async fn repeat(submissions: &Submissions, key: Option<RequestKey>) -> Result<Option<HttpResponse>, Problem> {
    let first = first_answer(submissions, key).await?;
    first.map(|first| respond(Ok(Accepted::Replayed(first)), Vec::new())).transpose()
}

/// The origin of a request. `content` is what its key stands for; without a key nothing is hashed.
pub fn origin(identity: &Identity, trace: Trace, key: Option<String>, kind: Kind, content: &[u8]) -> Origin {
    let tenant = identity.tenant;
    let hashed = |key: String| RequestKey {
        tenant,
        key: idempotency::key_hash(&key),
        request: idempotency::request_hash(kind, content, &[]),
    };
    Origin { tenant, source: HTTP, trace: trace.0, key: key.map(hashed) }
}

/// The response to a submission.
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

/// Whether a response repeats the answer of an earlier request.
pub fn is_repeated(response: &HttpResponse) -> bool {
    response.headers().contains_key(REPLAYED)
}

/// The key belongs to another request.
pub fn key_taken() -> Problem {
    Problem::new(Code::IdempotencyKeyReused, "Use a new key: this one was used for a request with another body.")
}
