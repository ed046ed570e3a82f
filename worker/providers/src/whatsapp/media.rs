//! Fetches media that a message names by URL, through the egress guard. WAHA would fetch it from inside the operator's network
//! without a guard.
//!
//! A slot lasts for a second and a file may take longer. So a fetch continues after its attempt gave up, and the delivery's next
//! attempt finds the file.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use connectors::egress::{self, Trouble, resolver::GuardedResolver, retry_after};
use domain::{
    Fault, Outcome, TenantId, clock,
    contract::{
        guard::{Guard, Refusal},
        submission::ATTACHMENTS_BYTES_MAX,
    },
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use reqwest::{Client, StatusCode, Url, header::RETRY_AFTER, redirect};
use tokio::time::timeout_at;

use crate::counters;

/// The longest time to connect to a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Redirects that are followed; the guard checks each target.
const REDIRECTS_MAX: usize = 3;
/// How long a fetched file is kept: the recipients of one bulk share one fetch.
const CACHE_TTL: Duration = Duration::from_secs(60);
/// How long a failed fetch is cached.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Fetched files that are kept, in bytes of base64.
const CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Concurrent fetches of one tenant: slow hosts of one tenant leave capacity for the others.
const FETCHES_OF_TENANT_MAX: usize = 2;
/// Concurrent fetches. Each holds up to 20 MB.
const FETCHES_MAX: usize = 8;
/// The pause of a delivery whose file is still being fetched.
const PENDING_RETRY: Duration = Duration::from_secs(1);

type Fetched = Result<Arc<str>, Failure>;

/// Why there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// A target that the guard refuses, at once or after a redirect.
    Refused(Refusal),
    /// No answer.
    Unanswered(Trouble),
    /// An answer without the file, and the wait it asked for.
    Answered(StatusCode, Option<Duration>),
    /// More than 20 MB.
    TooLarge,
}

/// Fetches files, each once for all deliveries that need it at about the same time.
pub struct Fetcher {
    client: Client,
    guard: Guard,
    files: Mutex<HashMap<(TenantId, String), File>>,
}

struct File {
    started_at: Instant,
    fetched: Shared<BoxFuture<'static, Fetched>>,
}

impl Fetcher {
    /// Fetches from addresses that the guard of `resolver` allows, within `timeout`. Fails if TLS cannot be set up.
    pub fn new(resolver: Arc<GuardedResolver>, timeout: Duration) -> reqwest::Result<Self> {
        let (guard, redirect_guard) = (resolver.guard().clone(), resolver.guard().clone());
        let follow = redirect::Policy::custom(move |attempt| match redirect_guard.check_url(attempt.url().as_str()) {
            Err(refusal) => attempt.error(refusal),
            Ok(()) if attempt.previous().len() > REDIRECTS_MAX => attempt.stop(),
            Ok(()) => attempt.follow(),
        });
        let client = egress::client(CONNECT_TIMEOUT.min(timeout))
            .redirect(follow)
            .timeout(timeout)
            .dns_resolver(resolver)
            .build()?;
        Ok(Self { client, guard, files: Mutex::default() })
    }

    /// The file at `url` in base64, if it arrives by `until`; otherwise the delivery's outcome.
    pub async fn get(&self, tenant: TenantId, url: &str, until: Instant) -> Result<Arc<str>, Outcome> {
        self.guard.check_url(url).map_err(|refusal| Failure::Refused(refusal).into_outcome())?;
        let target = Url::parse(url).map_err(|_| Failure::Refused(Refusal::NotHttp).into_outcome())?;
        let fetched = self.fetch(tenant, target).ok_or_else(pending)?;
        let fetched = timeout_at(until.into(), fetched).await.map_err(|_| pending())?;
        fetched.map_err(Failure::into_outcome)
    }

    /// The running fetch of this file, or a new one. `None`: too many fetches are running.
    fn fetch(&self, tenant: TenantId, url: Url) -> Option<Shared<BoxFuture<'static, Fetched>>> {
        let mut files = self.files();
        evict_old(&mut files);
        let key = (tenant, url.to_string());
        if let Some(known) = files.get(&key) {
            return Some(known.fetched.clone());
        }
        let under_way = files.iter().filter(|(_, file)| file.fetched.peek().is_none());
        let tenants: Vec<TenantId> = under_way.map(|((tenant, _), _)| *tenant).collect();
        let of_tenant = tenants.iter().filter(|other| **other == tenant).count();
        if tenants.len() >= FETCHES_MAX || of_tenant >= FETCHES_OF_TENANT_MAX {
            return None;
        }
        let fetched = fetch(self.client.clone(), url).boxed().shared();
        // A separate task continues the fetch after its attempt gave up.
        tokio::spawn(fetched.clone());
        files.insert(key, File { started_at: Instant::now(), fetched: fetched.clone() });
        Some(fetched)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<(TenantId, String), File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Evicts expired files. While the cache is too large, the tenant with the most bytes loses its oldest file, so no tenant evicts
/// the files of a tenant with fewer bytes.
fn evict_old(files: &mut HashMap<(TenantId, String), File>) {
    files.retain(|_, file| match file.fetched.peek() {
        None => true,
        Some(Ok(_)) => file.started_at.elapsed() < CACHE_TTL,
        Some(Err(_)) => file.started_at.elapsed() < FAILURE_TTL,
    });
    let size = |file: &File| file.fetched.peek().and_then(|fetched| fetched.as_ref().ok()).map_or(0, |data| data.len());
    while files.values().map(size).sum::<usize>() > CACHE_BYTES_MAX {
        let mut bytes_of: HashMap<TenantId, usize> = HashMap::new();
        for ((tenant, _), file) in files.iter() {
            *bytes_of.entry(*tenant).or_default() += size(file);
        }
        let largest = bytes_of.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(tenant, _)| tenant);
        let theirs = files.iter().filter(|((tenant, _), file)| Some(*tenant) == largest && size(file) > 0);
        let Some(oldest) = theirs.min_by_key(|(_, file)| file.started_at).map(|(key, _)| key.clone()) else { return };
        files.remove(&oldest);
    }
}

async fn fetch(client: Client, url: Url) -> Fetched {
    let mut response = client.get(url).send().await.map_err(|error| Failure::of(&error))?;
    if !response.status().is_success() {
        let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|value| retry_after::parse(value, clock::now()));
        return Err(Failure::Answered(response.status(), wait));
    }
    let is_too_large = |length: u64| usize::try_from(length).map_or(true, |length| length > ATTACHMENTS_BYTES_MAX);
    if response.content_length().is_some_and(is_too_large) {
        return Err(Failure::TooLarge);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::of(&error))? {
        if bytes.len() + chunk.len() > ATTACHMENTS_BYTES_MAX {
            return Err(Failure::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(STANDARD.encode(bytes).into())
}

/// The file is still on its way: the delivery waits without having spent an attempt.
fn pending() -> Outcome {
    Outcome::Throttled(Fault::new("media_pending", "its media is still being fetched"), Some(PENDING_RETRY))
}

impl Failure {
    fn of(error: &reqwest::Error) -> Self {
        let refusal = error.is_redirect().then(|| egress::cause::<Refusal>(error).copied()).flatten();
        match (refusal, Trouble::of(error)) {
            (Some(refusal), _) | (None, Trouble::Refused(refusal)) => Self::Refused(refusal),
            (None, trouble) => Self::Unanswered(trouble),
        }
    }

    fn into_outcome(self) -> Outcome {
        let rejected = |code: &str, detail: String| Outcome::Rejected(Fault::new(code, detail));
        match self {
            Self::Refused(Refusal::Private) => {
                counters::egress_blocked();
                let detail = "media.url leads into a network that may not be reached";
                rejected("target_not_allowed", detail.to_owned())
            }
            Self::Refused(refusal) => rejected("bad_url", format!("media.url {refusal}")),
            Self::TooLarge => rejected("media_too_large", "the file at media.url has more than 20 MB".to_owned()),
            Self::Answered(status, wait) => answered(status, wait),
            Self::Unanswered(trouble) => {
                let detail = format!("media.url could not be fetched ({})", trouble.as_str());
                Outcome::Transient(Fault::new("media", detail), None)
            }
        }
    }
}

/// The outcome of a response without a file.
fn answered(status: StatusCode, wait: Option<Duration>) -> Outcome {
    let code = status.as_u16();
    let fault = Fault::new("media", format!("media.url answered {code}"));
    match code {
        408 | 425 | 429 | 500.. => Outcome::Transient(fault, wait),
        _ => Outcome::Rejected(fault),
    }
}

#[cfg(test)]
mod tests;
