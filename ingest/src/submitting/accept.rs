//! Acceptance: many concurrent requests share one commit.
//!
//! Whatever piled up while the last commit was under way goes into the next one. A request that has waited too long, or whose
//! client has gone, is taken out before its commit begins: what was answered with 503 is not stored. Once a commit has begun
//! its end is waited for, so that the answer is true.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use shared::{
    batch::{Batcher, Limits, SubmitError},
    db::{
        DbError, Store,
        accept::{Acceptance, Accepted, Crowding, at_once},
    },
    dispatch::Dispatcher,
    domain::{Channel, DeliveryId},
    faultpoint,
    local_dispatch::{LocalDispatch, Reservation},
};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use crate::{problem::Problem, submitting::turns::Turns};

/// Two commits at once: one gathers rows while the other waits for the disk. 256 rows take about 10 ms. What waits is bounded by
/// [`QUEUE_WAIT`]; the number bounds memory.
const LIMITS: Limits = Limits { batch_max: 256, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(3) };
/// Bulks committed at once; each is one statement over thousands of rows.
const BULKS_PARALLEL_MAX: usize = 2;
/// Connections for the shared commits of requests.
pub const SHARED_CONNECTIONS: usize = LIMITS.parallel_max;
/// Connections for everything else that is accepted: the bulks, and two queues of the intake.
pub const OTHER_CONNECTIONS: usize = BULKS_PARALLEL_MAX + 2;
/// How long a request waits for its commit to begin. The statement of a shared commit ends within 1.2 s
/// ([`Store::open_prompt`]), so that a caller has its answer within two seconds.
const QUEUE_WAIT: Duration = Duration::from_millis(700);
/// After this long a shared commit that failed is not tried again, neither whole nor in halves. PostgreSQL looks
/// for deadlocks after a second.
const TRY_AGAIN_WITHIN: Duration = Duration::from_millis(1150);
/// The same for a batch of the intake, whose publishers do not wait.
const INTAKE_TRY_AGAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long a bulk waits for its commit to begin: 10,000 rows take about half a second, and one may wait for another.
const BULK_WAIT: Duration = Duration::from_secs(6);
/// How long the end of a commit that has begun is waited for. The server ends its statements before; a commit that takes longer
/// has lost its server.
const COMMIT_WAIT: Duration = Duration::from_secs(15);

/// Why something was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// Too much waits already; nothing was stored.
    #[error("too much is waiting to be stored")]
    Full,
    /// Its commit did not begin in time; nothing was stored.
    #[error("the commit did not begin in time")]
    Late,
    /// The database cannot do its work at the moment; nothing was stored.
    #[error("the database is not available")]
    Unavailable,
    /// The connection broke in mid-commit, or a stored answer cannot be read: it may be stored.
    #[error("nobody knows whether it is stored")]
    Unknown,
    /// The database refused the values: a fault of ours, since everything was validated.
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

    /// What a failed commit means for the requests in it.
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

/// What became of one acceptance.
pub type AcceptResult = Result<Accepted, AcceptError>;

/// Accepts messages. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    batcher: Batcher<Acceptance, AcceptResult>,
    /// Commits what is not shared among requests.
    committer: Committer,
    bulks: Arc<Semaphore>,
    runtime: Handle,
}

impl Acceptor {
    /// Starts accepting, on the runtime of the caller. Commits shared among requests go through `shared`, a
    /// [`Store::open_prompt`], all others through `store`. A pool of the same process gets by `local_dispatch` what it can send at
    /// once.
    pub fn start(
        shared: Store,
        store: Store,
        dispatcher: Dispatcher,
        local_dispatch: LocalDispatch,
        turns: Turns,
        relay_after: Duration,
    ) -> Self {
        let relay_after_ms = i32::try_from(relay_after.as_millis()).unwrap_or(i32::MAX);
        let committer = Committer { store, dispatcher, local_dispatch, turns, relay_after_ms };
        let batches = Committer { store: shared, ..committer.clone() };
        let flush = move |batch: Vec<Acceptance>| {
            let committer = batches.clone();
            async move { committer.commit(batch, TRY_AGAIN_WITHIN).await }
        };
        let batcher = Batcher::start(LIMITS, flush);
        Self { batcher, committer, bulks: Arc::new(Semaphore::new(BULKS_PARALLEL_MAX)), runtime: Handle::current() }
    }

    /// Accepts one request, together with whatever else is waiting.
    pub async fn accept(&self, acceptance: Acceptance) -> AcceptResult {
        if acceptance.room_in.is_some() {
            // What may be refused for want of room takes nobody else's commit with it.
            return self.accept_bulk(acceptance).await;
        }
        let started = Instant::now();
        let verdict = match timeout(COMMIT_WAIT, self.batcher.submit_within(acceptance, QUEUE_WAIT)).await {
            Ok(verdict) => verdict.unwrap_or_else(|error| Err(error.into())),
            Err(_) => Err(AcceptError::Unknown),
        };
        metrics::histogram!("posthaste_accept_seconds").record(started.elapsed());
        verdict
    }

    /// Accepts a request with thousands of messages, in a commit of its own. The commit runs in a task: a client that hangs up
    /// does not cut it off half-way.
    pub async fn accept_bulk(&self, acceptance: Acceptance) -> AcceptResult {
        let permit = match timeout(BULK_WAIT, Arc::clone(&self.bulks).acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| AcceptError::Stopping)?,
            Err(_) => return Err(AcceptError::Late),
        };
        let committer = self.committer.clone();
        let commit = self.runtime.spawn(async move {
            let verdict = committer.commit(vec![acceptance], TRY_AGAIN_WITHIN).await.pop();
            drop(permit);
            verdict.unwrap_or(Err(AcceptError::Refused))
        });
        match timeout(COMMIT_WAIT, commit).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(AcceptError::Stopping),
            Err(_) => Err(AcceptError::Unknown),
        }
    }

    /// Accepts a batch that was gathered elsewhere, in one commit. One verdict per acceptance, in order.
    pub async fn accept_batch(&self, batch: Vec<Acceptance>) -> Vec<AcceptResult> {
        self.committer.commit(batch, INTAKE_TRY_AGAIN_WITHIN).await
    }
}

#[derive(Clone)]
struct Committer {
    store: Store,
    dispatcher: Dispatcher,
    local_dispatch: LocalDispatch,
    turns: Turns,
    relay_after_ms: i32,
}

impl Committer {
    async fn commit(&self, batch: Vec<Acceptance>, try_again_within: Duration) -> Vec<AcceptResult> {
        let budget = RetryBudget { until: Instant::now() + try_again_within, once_more: true };
        self.commit_part(&batch, budget).await
    }

    /// Commits `batch`. One that lost a race is tried once more; then, and where the database refuses values, each half is tried
    /// alone, until what fails stands alone. That costs a bad row about two statements for each time the batch can be halved.
    fn commit_part<'a>(&'a self, batch: &'a [Acceptance], budget: RetryBudget) -> BoxFuture<'a, Vec<AcceptResult>> {
        Box::pin(async move {
            let error = match self.commit_once(batch).await {
                Ok(verdicts) => return verdicts,
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
                    let mut verdicts = self.commit_part(left, budget).await;
                    verdicts.extend(self.commit_part(right, budget).await);
                    verdicts
                }
                _ => failed(batch, &error),
            }
        })
    }

    async fn commit_once(&self, batch: &[Acceptance]) -> Result<Vec<AcceptResult>, DbError> {
        faultpoint::pass(faultpoint::BEFORE_COMMIT);
        let crowding = self.turns.crowding();
        let mut reservations = self.reservations(batch, &crowding);
        let leases = reservations.iter().map(|(id, reservation)| (*id, reservation.lease_ms())).collect();
        let claimed_at = Instant::now();
        let stored = self.store.accept(batch, self.relay_after_ms, &crowding, &leases).await?;
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
        self.turns.note(batch);
        let verdict = |accepted| match accepted {
            Accepted::Unanswered => Err(AcceptError::Unknown),
            accepted => Ok(accepted),
        };
        Ok(stored.results.into_iter().map(verdict).collect())
    }

    /// Places for what a pool of this process can send at once. Messages of a bulk have no content of their own, and nobody waits
    /// for them.
    fn reservations(&self, batch: &[Acceptance], crowding: &Crowding) -> HashMap<DeliveryId, Reservation> {
        let candidates = batch.iter().flat_map(|acceptance| at_once(acceptance, crowding));
        let own = candidates.filter(|(message, _)| message.content.is_some());
        own.filter_map(|(_, delivery)| Some((delivery.id, self.local_dispatch.reserve(delivery.route)?))).collect()
    }
}

/// What else may be done about a commit that failed.
#[derive(Clone, Copy)]
struct RetryBudget {
    /// When the last statement may begin.
    until: Instant,
    /// Whether one that lost a race may be tried again as it is.
    once_more: bool,
}

/// Nothing of `batch` was accepted. Values that were refused in company are not known to be the bad ones.
fn failed(batch: &[Acceptance], error: &DbError) -> Vec<AcceptResult> {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let verdict = match AcceptError::of(error) {
        AcceptError::Refused if batch.len() > 1 => AcceptError::Unavailable,
        verdict => verdict,
    };
    match verdict {
        AcceptError::Refused => tracing::error!(%error, source, "the database refused an acceptance"),
        _ => tracing::warn!(%error, source, size = batch.len(), "nothing of a batch was accepted"),
    }
    vec![Err(verdict); batch.len()]
}

/// One increment per channel and source of a commit, not one per message.
fn count(batch: &[Acceptance], accepted: &[Accepted]) {
    metrics::histogram!("posthaste_accept_batch_size").record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
    for source in [crate::HTTP, crate::AMQP] {
        for channel in Channel::ALL {
            let of_source = batch
                .iter()
                .zip(accepted)
                .filter(|(from, verdict)| from.source == source && **verdict == Accepted::New);
            let messages = of_source.flat_map(|(from, _)| &from.messages);
            let n = messages.filter(|message| message.deliveries.iter().any(|d| d.route.channel == *channel)).count();
            if n > 0 {
                let labels = [("channel", channel.as_str()), ("source", source)];
                metrics::counter!("posthaste_messages_accepted_total", &labels)
                    .increment(u64::try_from(n).unwrap_or(u64::MAX));
            }
        }
    }
}
