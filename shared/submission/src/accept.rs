//! Acceptance: many concurrent requests share one commit.
//!
//! Requests that arrive during a commit go into the next one. A request that has waited too long, or whose client has
//! hung up, is removed before its commit begins, so that nothing answered with 503 is stored. Once a commit has begun,
//! the request waits for its end, so that the answer is true.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use deliveries::{Deliveries, accept::Accepted};
use domain::{
    Channel, DeliveryId,
    acceptance::{Acceptance, Crowding, at_once},
};
use engine::{
    dispatch::Dispatcher,
    local_dispatch::{LocalDispatch, Reservation},
};
use futures_util::future::BoxFuture;
use runtime::{
    batch::{Batcher, Limits, SubmitError},
    faultpoint, metric,
};
use store::{DbError, Store};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};
use web::problem::Problem;

use crate::fair_share::FairShare;

/// Two commits at once: one gathers rows while the other waits for the disk. 256 rows take about 10 ms. [`QUEUE_WAIT`]
/// bounds the time in the queue; the number bounds memory.
const LIMITS: Limits = Limits { batch_max: 256, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(3) };
/// Bulks that are committed at the same time. Each is one statement over thousands of rows.
const BULKS_PARALLEL_MAX: usize = 2;
/// Connections for commits that requests share.
pub const SHARED_CONNECTIONS: usize = LIMITS.parallel_max;
/// Connections for all other commits: the bulks, and two intake queues.
pub const OTHER_CONNECTIONS: usize = BULKS_PARALLEL_MAX + 2;
/// An acceptance with more deliveries gets a commit of its own, so that it does not delay other requests.
const SHARED_DELIVERIES_MAX: usize = 200;
/// How long a request waits for its commit to begin. The statement of a shared commit ends within 1.2 s
/// ([`Store::open_prompt`]), so that a caller has its answer within two seconds.
const QUEUE_WAIT: Duration = Duration::from_millis(700);
/// After this long a failed shared commit is not retried, neither whole nor in halves. PostgreSQL looks for deadlocks
/// after a second.
const TRY_AGAIN_WITHIN: Duration = Duration::from_millis(1150);
/// The same for a batch of the intake. Its publishers do not wait for an answer.
const INTAKE_TRY_AGAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long a bulk waits for its commit to begin: 10,000 rows take about half a second, and one may wait for another.
const BULK_WAIT: Duration = Duration::from_secs(6);
/// How long to wait for the end of a commit that has begun. The server ends its statements earlier; a commit that takes
/// longer has lost its server.
const COMMIT_WAIT: Duration = Duration::from_secs(15);

/// Why an acceptance failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// Too many requests wait; nothing was stored.
    #[error("too much is waiting to be stored")]
    Full,
    /// Its commit did not begin in time; nothing was stored.
    #[error("the commit did not begin in time")]
    Late,
    /// The database cannot do its work at the moment; nothing was stored.
    #[error("the database is not available")]
    Unavailable,
    /// The connection broke during the commit, or a stored answer cannot be read: the request may be stored.
    #[error("nobody knows whether it is stored")]
    Unknown,
    /// The database refused the values. That is a bug of ours, since everything was validated.
    #[error("the database refused it")]
    Refused,
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl AcceptError {
    /// Whether it is certain that nothing was stored.
    pub const fn is_not_stored(self) -> bool {
        matches!(self, Self::Full | Self::Late | Self::Unavailable | Self::Refused)
    }

    /// The answers to the requests of a failed commit.
    fn of(error: &DbError) -> Self {
        match error {
            error if error.is_outcome_unknown() => Self::Unknown,
            error if error.is_unavailable() => Self::Unavailable,
            _ => Self::Refused,
        }
    }
}

impl From<SubmitError> for AcceptError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full => Self::Full,
            SubmitError::Late => Self::Late,
            SubmitError::Abandoned => Self::Stopping,
        }
    }
}

impl From<AcceptError> for Problem {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Full => Self::overloaded(),
            AcceptError::Late | AcceptError::Unavailable => Self::not_stored(),
            AcceptError::Unknown | AcceptError::Stopping => Self::unavailable(),
            AcceptError::Refused => Self::internal(),
        }
    }
}

/// The result of one acceptance.
pub type AcceptResult = Result<Accepted, AcceptError>;

/// Accepts messages. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    batcher: Batcher<Acceptance, AcceptResult>,
    /// Commits that are not shared among requests.
    committer: Committer,
    bulks: Arc<Semaphore>,
    runtime: Handle,
}

impl Acceptor {
    /// Starts accepting, on the caller's runtime. Commits that requests share go through `shared`, a
    /// [`Store::open_prompt`]; all others go through `store`. `local_dispatch` hands a worker pool of this process what
    /// it can send at once.
    pub fn start(
        shared: Store,
        store: Store,
        dispatcher: Dispatcher,
        local_dispatch: LocalDispatch,
        fair_share: FairShare,
        relay_after: Duration,
    ) -> Self {
        let relay_after_ms = i32::try_from(relay_after.as_millis()).unwrap_or(i32::MAX);
        let committer = Committer { store, dispatcher, local_dispatch, fair_share, relay_after_ms };
        let batches = Committer { store: shared, ..committer.clone() };
        let flush = move |batch: Vec<Acceptance>| {
            let committer = batches.clone();
            async move { committer.commit(batch, TRY_AGAIN_WITHIN).await }
        };
        let batcher = Batcher::start(LIMITS, flush);
        Self { batcher, committer, bulks: Arc::new(Semaphore::new(BULKS_PARALLEL_MAX)), runtime: Handle::current() }
    }

    /// Accepts one request, in a commit shared with other waiting requests if it is small.
    pub async fn accept(&self, acceptance: Acceptance) -> AcceptResult {
        if !may_share(&acceptance) {
            return self.accept_alone(acceptance).await;
        }
        let started = Instant::now();
        let result = match timeout(COMMIT_WAIT, self.batcher.submit_within(acceptance, QUEUE_WAIT)).await {
            Ok(result) => result.unwrap_or_else(|error| Err(error.into())),
            Err(_) => Err(AcceptError::Unknown),
        };
        metrics::histogram!(metric::ACCEPT_SECONDS).record(started.elapsed());
        result
    }

    /// Accepts a request in a commit of its own: it may have thousands of messages. The commit runs in a task, so that a client
    /// that hangs up does not interrupt it.
    async fn accept_alone(&self, acceptance: Acceptance) -> AcceptResult {
        let permit = match timeout(BULK_WAIT, Arc::clone(&self.bulks).acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| AcceptError::Stopping)?,
            Err(_) => return Err(AcceptError::Late),
        };
        let committer = self.committer.clone();
        let commit = self.runtime.spawn(async move {
            let result = committer.commit(vec![acceptance], TRY_AGAIN_WITHIN).await.pop();
            drop(permit);
            result.unwrap_or(Err(AcceptError::Refused))
        });
        match timeout(COMMIT_WAIT, commit).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AcceptError::Stopping),
            Err(_) => Err(AcceptError::Unknown),
        }
    }

    /// Accepts a batch that the caller gathered, in one commit. Returns one result per acceptance, in order.
    pub async fn accept_batch(&self, batch: Vec<Acceptance>) -> Vec<AcceptResult> {
        self.committer.commit(batch, INTAKE_TRY_AGAIN_WITHIN).await
    }
}

#[derive(Clone)]
struct Committer {
    store: Store,
    dispatcher: Dispatcher,
    local_dispatch: LocalDispatch,
    fair_share: FairShare,
    relay_after_ms: i32,
}

impl Committer {
    async fn commit(&self, batch: Vec<Acceptance>, try_again_within: Duration) -> Vec<AcceptResult> {
        let budget = RetryBudget { until: Instant::now() + try_again_within, once_more: true };
        self.commit_part(&batch, budget).await
    }

    /// Commits `batch`. If it lost a race, it is retried once as a whole. If it fails again, or the database refused
    /// values, each half is retried alone, down to single requests. A bad row costs about two statements for each time
    /// the batch can be halved.
    fn commit_part<'a>(&'a self, batch: &'a [Acceptance], budget: RetryBudget) -> BoxFuture<'a, Vec<AcceptResult>> {
        Box::pin(async move {
            let error = match self.commit_once(batch).await {
                Ok(results) => return results,
                Err(error) => error,
            };
            let lost_race = error.lost_race();
            let may_pass_in_part = lost_race || !error.is_unavailable();
            if Instant::now() >= budget.until || !may_pass_in_part {
                return failed(batch, &error);
            }
            match batch.split_at_checked(batch.len() / 2) {
                _ if lost_race && budget.once_more => {
                    self.commit_part(batch, RetryBudget { once_more: false, ..budget }).await
                }
                Some((left, right)) if !left.is_empty() => {
                    let mut results = self.commit_part(left, budget).await;
                    results.extend(self.commit_part(right, budget).await);
                    results
                }
                _ => failed(batch, &error),
            }
        })
    }

    async fn commit_once(&self, batch: &[Acceptance]) -> Result<Vec<AcceptResult>, DbError> {
        faultpoint::pass(faultpoint::BEFORE_COMMIT);
        let crowding = self.fair_share.crowding();
        let mut reservations = self.reservations(batch, &crowding);
        let leases = reservations.iter().map(|(id, reservation)| (*id, reservation.lease_ms())).collect();
        let claimed_at = Instant::now();
        let stored = self.store.acceptance().accept(batch, self.relay_after_ms, &crowding, &leases).await?;
        faultpoint::pass(faultpoint::AFTER_COMMIT);
        for claim in stored.claims {
            if let Some(reservation) = reservations.remove(&claim.delivery) {
                reservation.send(claim, claimed_at);
            }
        }
        if let Some(dispatch) = stored.dispatch {
            self.dispatcher.post(dispatch);
        }
        count(batch, &stored.results);
        self.fair_share.count(batch);
        let result = |accepted| match accepted {
            Accepted::Unanswered => Err(AcceptError::Unknown),
            accepted => Ok(accepted),
        };
        Ok(stored.results.into_iter().map(result).collect())
    }

    /// Reservations for messages that a worker pool of this process can send at once. Messages of a bulk are left out:
    /// they have no content of their own, and no caller waits for them.
    fn reservations(&self, batch: &[Acceptance], crowding: &Crowding) -> HashMap<DeliveryId, Reservation> {
        let candidates = batch.iter().flat_map(|acceptance| at_once(acceptance, crowding));
        let own = candidates.filter(|(message, _)| message.content.is_some());
        own.filter_map(|(_, delivery)| Some((delivery.id, self.local_dispatch.reserve(delivery.route)?))).collect()
    }
}

/// Whether a request may share its commit. One that needs a slot of its session may be refused, and must not fail the commit
/// of other requests.
fn may_share(acceptance: &Acceptance) -> bool {
    let deliveries: usize = acceptance.messages.iter().map(|message| message.deliveries.len()).sum();
    acceptance.bulk.is_none() && acceptance.room_in.is_none() && deliveries <= SHARED_DELIVERIES_MAX
}

/// Which retries a failed commit still has.
#[derive(Clone, Copy)]
struct RetryBudget {
    /// When the last statement may begin.
    until: Instant,
    /// Whether a commit that lost a race may be retried unchanged.
    once_more: bool,
}

/// The result if nothing of `batch` was accepted. If a batch of several was refused, it is not known which values are
/// bad.
fn failed(batch: &[Acceptance], error: &DbError) -> Vec<AcceptResult> {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let result = match AcceptError::of(error) {
        AcceptError::Refused if batch.len() > 1 => AcceptError::Unavailable,
        result => result,
    };
    match result {
        AcceptError::Refused => tracing::error!(%error, source, "the database refused an acceptance"),
        _ => tracing::warn!(%error, source, size = batch.len(), "nothing of a batch was accepted"),
    }
    vec![Err(result); batch.len()]
}

/// Adds one increment per channel and source of a commit, not one per message.
fn count(batch: &[Acceptance], accepted: &[Accepted]) {
    metrics::histogram!(metric::ACCEPT_BATCH_SIZE).record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
    for source in [crate::HTTP, crate::AMQP] {
        for channel in Channel::ALL {
            let of_source =
                batch.iter().zip(accepted).filter(|(from, result)| from.source == source && **result == Accepted::New);
            let messages = of_source.flat_map(|(from, _)| &from.messages);
            let n = messages.filter(|message| message.deliveries.iter().any(|d| d.route.channel == *channel)).count();
            if n > 0 {
                metrics::counter!(metric::MESSAGES_ACCEPTED, "channel" => channel.as_str(), "source" => source)
                    .increment(u64::try_from(n).unwrap_or(u64::MAX));
            }
        }
    }
}
