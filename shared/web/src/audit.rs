//! The audit log. The gate records every call that changed something or read a secret, and admins can read the log.
//!
//! Not recorded are submissions, because the delivery log records them, and what people do in their inboxes.
//!
//! Recorded are calls that succeed, calls that fail after they changed something, and other calls that are answered with
//! 5xx. It is not known whether those changed anything, and their entry says so.
//!
//! The decision uses the path as the router reads it, with percent-encoding undone. An entry is named after the route that
//! answered. A call of a recorded method without a known route is recorded under its path.
//!
//! **A change that cannot be recorded is not undone.** It has been made, and an answer that denies it would make clients
//! repeat it. The entry is retried until it is written. Meanwhile a log line contains the whole entry, and an alert watches
//! `posthaste_audit_retried_total`.

use std::{fmt::Display, mem, sync::Arc, time::Duration};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode},
    web::Data,
};
use domain::{TenantId, seal::Sealer, token::Role};
use records::{
    Records,
    audit::{Deed, person},
};
use runtime::{
    metric,
    reconnect::Reconnect,
    telemetry::{TraceContext, masked},
};
use store::Store;
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};
use uuid::Uuid;

use crate::{
    auth::Identity,
    observe::RouteTimings,
    params,
    problem::{Code, Problem},
};

/// How long an answer waits for its entry, and how long an entry waits for its turn before it is logged.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most entries that wait for the database; further ones go to the log only. About 500 bytes each.
const WAITING_MAX: usize = 10_000;
/// The same limit for ambiguous entries, counted separately. They come in masses while the database is away and must not
/// keep it busy once it is back.
const AMBIGUOUS_WAITING_MAX: usize = 100;

/// Submissions, by method and path. They are recorded in the delivery log instead.
const SUBMISSIONS: [(Method, &str); 8] = [
    (Method::POST, "/api/notifications/send"),
    (Method::POST, "/api/notifications/send-bulk"),
    (Method::POST, "/api/notifications/send-template"),
    (Method::POST, "/api/notifications/test"),
    (Method::POST, "/api/notifications"),
    (Method::POST, "/api/events"),
    (Method::POST, "/messages/send"),
    (Method::POST, "/messages/bulk"),
];
/// Path prefix of the inbox routes.
const INBOX: &str = "/api/notifications/";
/// Last path segment of inbox actions on many items.
const INBOX_WORDS: [&str; 6] = ["mark-as-read", "mark-all-as-read", "read-all", "delete", "archive", "unarchive"];
/// Last path segment of inbox actions on one item; removal has none.
const ITEM_WORDS: [&str; 4] = ["read", "unread", "archive", "unarchive"];

/// Reads that are recorded: secrets, exports, QR codes that link a WhatsApp account, and the bodies of dead letters.
const READS: [&str; 5] = [
    "/api/webhooks/signing-secret",
    "/sessions/{id}/qr",
    "/api/users/{user_id}/export",
    "/api/notifications/export",
    "/api/admin/dead-letters/{id}",
];

/// The path parameter that holds a person's id.
const PERSON: &str = "user_id";

/// Notes of a handler to the gate about its response.
#[derive(Clone, Debug, Default)]
struct AuditNote {
    is_unchanged: bool,
    is_in_part: bool,
    made: Option<String>,
    person: Option<(TenantId, String)>,
    tenant: Option<TenantId>,
}

fn note(mut response: HttpResponse, add: impl FnOnce(&mut AuditNote)) -> HttpResponse {
    let mut note = response.extensions_mut().remove().unwrap_or_default();
    add(&mut note);
    response.extensions_mut().insert(note);
    response
}

/// Marks the response to a call that changed nothing, such as a dry run.
pub fn unchanged(response: HttpResponse) -> HttpResponse {
    note(response, |note| note.is_unchanged = true)
}

/// Marks the response to a call that failed after it changed something.
pub fn in_part(response: HttpResponse) -> HttpResponse {
    note(response, |note| note.is_in_part = true)
}

/// Names what a call created, if the path does not.
pub fn made(response: HttpResponse, what: impl ToString) -> HttpResponse {
    note(response, |note| note.made = Some(what.to_string()))
}

/// Names the person whose data changed, if the path does not.
pub fn about(response: HttpResponse, tenant: TenantId, id: &str) -> HttpResponse {
    note(response, |note| note.person = Some((tenant, id.to_owned())))
}

/// Names the tenant whose data changed, if an operator's credential does not.
pub fn of_tenant(response: HttpResponse, tenant: TenantId) -> HttpResponse {
    note(response, |note| note.tenant = Some(tenant))
}

/// Whether a call is recorded when it succeeds. `path` is decoded.
pub fn is_recorded(method: &Method, path: &str) -> bool {
    if method == Method::GET {
        return READS.iter().any(|pattern| fits(pattern, path));
    }
    let changes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    changes && !SUBMISSIONS.iter().any(|(of, at)| *at == path && of == method) && !is_inbox(path)
}

/// Whether a path matches the pattern of a route.
pub fn fits(pattern: &str, path: &str) -> bool {
    let is_same = |(pattern, part): (&str, &str)| pattern == part || (pattern.starts_with('{') && !part.is_empty());
    pattern.split('/').count() == path.split('/').count() && pattern.split('/').zip(path.split('/')).all(is_same)
}

fn is_inbox(path: &str) -> bool {
    let is_id = |text: &str| text.parse::<Uuid>().is_ok();
    let is_item = |rest: &str| match rest.split_once('/') {
        Some((id, word)) => ITEM_WORDS.contains(&word) && is_id(id),
        None => is_id(rest),
    };
    path.strip_prefix(INBOX).is_some_and(|rest| INBOX_WORDS.contains(&rest) || is_item(rest))
}

/// Records one call when it ends. When a client hangs up, the call is dropped at any await point while its queries
/// continue; it is then recorded as interrupted.
pub struct AuditGuard {
    recorder: Data<Recorder>,
    deed: Option<Deed>,
    caller: TenantId,
}

impl AuditGuard {
    /// Watches this request, if it has to be recorded.
    pub fn over(recorder: &Data<Recorder>, request: &ServiceRequest, identity: &Identity) -> Option<Self> {
        let action = recorded_action(request)?;
        let actor = match identity.role {
            Role::User => identity.actor_as(&person(recorder.sealer(), identity.tenant, &identity.subject)),
            _ => identity.actor(),
        };
        let request_id = request.extensions().get::<TraceContext>().map(|trace| masked(&trace.request_id));
        let target = "(interrupted)".to_owned();
        let deed = Deed { tenant: Some(identity.tenant), actor, action, target, request_id };
        Some(Self { recorder: recorder.clone(), deed: Some(deed), caller: identity.tenant })
    }

    /// Records the call unless it changed nothing.
    pub async fn end<B>(mut self, response: &ServiceResponse<B>) {
        let Some(deed) = self.deed.take() else { return };
        let note = response.response().extensions().get::<AuditNote>().cloned().unwrap_or_default();
        let Some(ending) = CallOutcome::of(response, &note) else { return };
        let about = note.person.map(|(tenant, id)| person(self.recorder.sealer(), tenant, &id));
        let made = about.or_else(|| note.made.map(|made| masked(&made)));
        let target = made.unwrap_or_else(|| ids(response.request(), self.caller, self.recorder.sealer()));
        let tenant = note.tenant.or(deed.tenant);
        let action = answered_action(response.request()).unwrap_or(deed.action);
        let deed = Deed { target: ending.noted(target, response.status()), tenant, action, ..deed };
        match ending {
            CallOutcome::Ambiguous => self.recorder.record_ambiguous(deed),
            CallOutcome::Done | CallOutcome::InPart => self.recorder.record(deed).await,
        }
    }
}

/// How a recorded call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallOutcome {
    Done,
    /// It failed after it changed something.
    InPart,
    /// It failed, and it is not known whether it changed anything.
    Ambiguous,
}

impl CallOutcome {
    fn of<B>(response: &ServiceResponse<B>, note: &AuditNote) -> Option<Self> {
        // `Overloaded` says that nothing was stored.
        let problem = response.response().error().and_then(|error| error.as_error::<Problem>());
        let is_not_stored = problem.is_some_and(|problem| problem.code() == Code::Overloaded);
        Self::classify(response.status(), response.request().method() == Method::GET || is_not_stored, note)
    }

    /// `is_harmless`: a 5xx means that nothing changed and no secret was shown.
    fn classify(status: StatusCode, is_harmless: bool, note: &AuditNote) -> Option<Self> {
        match status {
            _ if status.is_success() => (!note.is_unchanged).then_some(Self::Done),
            _ if note.is_in_part => Some(Self::InPart),
            _ => (status.is_server_error() && !is_harmless).then_some(Self::Ambiguous),
        }
    }

    /// The target, with a note on how the call ended unless it succeeded.
    fn noted(self, target: String, status: StatusCode) -> String {
        let word = match self {
            Self::Done => return target,
            Self::InPart => "in part",
            Self::Ambiguous => "ambiguous",
        };
        format!("{target} ({word}: answered {})", status.as_u16()).trim_start().to_owned()
    }
}

/// The name of a call that has no response yet, if it has to be recorded. Used if the call is cut off; the route is certain
/// only after the response.
pub fn recorded_action(request: &ServiceRequest) -> Option<String> {
    // The path as the router reads it. In the request's own path any letter may be percent-encoded.
    let path = request.match_info().as_str();
    let name = || request.resource_map().match_pattern(path).unwrap_or_else(|| masked(path));
    is_recorded(request.method(), path).then(|| format!("{} {}", request.method(), name()))
}

/// The name of a call, by the route that answered it.
pub fn answered_action(request: &HttpRequest) -> Option<String> {
    let route = request.app_data::<RouteTimings>()?;
    Some(format!("{} {}", request.method(), route.pattern()))
}

/// The ids in the path, fully decoded as in the handlers.
pub fn ids(request: &HttpRequest, tenant: TenantId, sealer: &Sealer) -> String {
    let shown = |(name, id): (&str, &str)| match (name, params::decoded(id)) {
        (PERSON, id) => person(sealer, tenant, &id),
        (_, id) => masked(&id),
    };
    request.match_info().iter().map(shown).collect::<Vec<_>>().join("/")
}

impl Drop for AuditGuard {
    fn drop(&mut self) {
        if let Some(deed) = self.deed.take() {
            self.recorder.record_interrupted(deed);
        }
    }
}

/// Writes entries to the audit log.
pub struct Recorder {
    store: Store,
    runtime: tokio::runtime::Handle,
    /// One permit: the hash chain takes one entry at a time, and each entry that waits in the database holds a connection.
    turn: Arc<Semaphore>,
    /// A permit for each entry that waits.
    waiting: Arc<Semaphore>,
    ambiguous_waiting: Arc<Semaphore>,
}

impl Recorder {
    /// Writes on the runtime of the caller.
    pub fn new(store: Store) -> Self {
        let permits = |permits| Arc::new(Semaphore::new(permits));
        Self {
            store,
            runtime: tokio::runtime::Handle::current(),
            turn: permits(1),
            waiting: permits(WAITING_MAX),
            ambiguous_waiting: permits(AMBIGUOUS_WAITING_MAX),
        }
    }

    /// Derives the names of people in entries.
    fn sealer(&self) -> &Sealer {
        self.store.sealer()
    }

    /// Writes an entry and waits for it for [`PATIENCE`] at most. The write is retried in the background.
    async fn record(&self, deed: Deed) {
        if let Some(writing) = self.start(deed, &self.waiting) {
            // The writer logs a failure itself.
            let _ = timeout(PATIENCE, writing).await;
        }
    }

    /// Writes an entry about a call with an unknown end. Its answer promises nothing and does not wait for the entry.
    fn record_ambiguous(&self, deed: Deed) {
        mem::drop(self.start(deed, &self.ambiguous_waiting));
    }

    /// Writes an entry about a call that was cut off.
    fn record_interrupted(&self, deed: Deed) {
        mem::drop(self.start(deed, &self.waiting));
    }

    /// Starts writing an entry. Returns `None` if too many entries wait.
    fn start(&self, deed: Deed, permits: &Arc<Semaphore>) -> Option<JoinHandle<()>> {
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            report(&deed, "too many entries wait", false);
            return None;
        };
        let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
        Some(self.runtime.spawn(async move {
            write(&store, &turn, deed).await;
            mem::drop(permit);
        }))
    }
}

async fn write(store: &Store, turn: &Semaphore, deed: Deed) {
    let mut reconnect = Reconnect::new();
    let mut is_reported = false;
    loop {
        let (error, goes_on) = match timeout(PATIENCE, turn.acquire()).await {
            Ok(_turn) => match store.audit_log().append(deed.clone()).await {
                Ok(_) => return,
                Err(error) => (error.to_string(), error.is_unavailable()),
            },
            Err(_) => ("other entries are before it".to_owned(), true),
        };
        if !is_reported || !goes_on {
            report(&deed, error, goes_on);
        }
        if !goes_on {
            return;
        }
        is_reported = true;
        reconnect.pause().await;
    }
}

/// Logs the whole of an entry that could not be written. `goes_on`: it is retried; otherwise this line is the only record.
fn report(deed: &Deed, error: impl Display, goes_on: bool) {
    let Deed { tenant, actor, action, target, request_id } = deed;
    let tenant = tenant.map(|tenant| tenant.0);
    tracing::error!(%error, tenant, actor, action, target, request_id, goes_on, "an audit entry could not be written");
    metrics::counter!(metric::AUDIT_RETRIED).increment(1);
    if !goes_on {
        metrics::counter!(metric::AUDIT_LOST_ENTRIES).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERSON_OF_USER123: &str = "person:e05ffd1564b8dba0b1beb222fd1f1764";

    #[test]
    fn what_changes_something_is_recorded_but_submissions_and_inboxes_are_not() {
        for (method, path) in [
            (Method::POST, "/api/admin/keys"),
            (Method::DELETE, "/api/admin/keys/0191d8a0-0000-7000-8000-000000000001"),
            (Method::PUT, "/api/notifications"),
            (Method::PUT, "/api/notifications/preferences"),
            (Method::POST, "/api/auth/token"),
            (Method::POST, "/api/notifications/templates/0191d8a0-0000-7000-8000-000000000001/preview"),
            (Method::PATCH, "/anything/new"),
            (Method::GET, "/api/users/ada/export"),
            (Method::GET, "/sessions/main/qr"),
            (Method::GET, "/api/webhooks/signing-secret"),
            (Method::GET, "/api/admin/dead-letters/0191d8a0-0000-7000-8000-000000000001"),
        ] {
            assert!(is_recorded(&method, path), "{method} {path}");
        }
        for (method, path) in [
            (Method::GET, "/api/admin/keys"),
            (Method::GET, "/api/admin/dead-letters"),
            (Method::GET, "/api/users//export"),
            (Method::POST, "/api/notifications/send"),
            (Method::POST, "/messages/bulk"),
            (Method::POST, "/api/notifications/read-all"),
            (Method::POST, "/api/notifications/0191d8a0-0000-7000-8000-000000000001/read"),
            (Method::POST, "/api/notifications/0191d8a0-0000-7000-8000-000000000001/archive"),
            (Method::POST, "/api/notifications/archive"),
            (Method::DELETE, "/api/notifications/0191d8a0-0000-7000-8000-000000000001"),
        ] {
            assert!(!is_recorded(&method, path), "{method} {path}");
        }
    }

    #[test]
    fn a_call_that_may_have_changed_something_is_recorded_with_how_it_ended() {
        let (plain, unchanged) = (AuditNote::default(), AuditNote { is_unchanged: true, ..AuditNote::default() });
        let in_part = AuditNote { is_in_part: true, ..AuditNote::default() };
        for (status, is_harmless, note, wanted) in [
            (201, false, &plain, Some("7")),
            (200, false, &unchanged, None),
            (400, false, &plain, None),
            (409, false, &in_part, Some("7 (in part: answered 409)")),
            (500, false, &plain, Some("7 (ambiguous: answered 500)")),
            (502, false, &in_part, Some("7 (in part: answered 502)")),
            (503, true, &plain, None),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let ending = CallOutcome::classify(status, is_harmless, note);
            let target = ending.map(|ending| ending.noted("7".to_owned(), status));
            assert_eq!(target.as_deref(), wanted, "{status} {is_harmless} {note:?}");
        }
        let unnamed = CallOutcome::Ambiguous.noted(String::new(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(unnamed, "(ambiguous: answered 503)");
    }

    #[test]
    fn a_person_is_recognised_and_not_readable() {
        // printf '7:audit/1user123' | sha256sum | head -c 32
        let plain = Sealer::default();
        assert_eq!(person(&plain, TenantId(1), "user123"), PERSON_OF_USER123);
        assert_ne!(person(&plain, TenantId(2), "user123"), PERSON_OF_USER123);
        let keyed = Sealer::new([&"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".into()]).unwrap();
        assert_ne!(person(&keyed, TenantId(1), "user123"), PERSON_OF_USER123, "nobody guesses it without the key");
    }
}
