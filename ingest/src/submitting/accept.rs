//! Acceptance: many concurrent requests share one commit.
//!
//! Whatever piled up while the last commit was under way goes into the next one. The commit runs in a task of its own:
//! a client that hangs up cancels nothing, and one that is told "too late" may still find its message stored, which is
//! what its idempotency key is for.

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
    shortcut::{Place, Shortcut},
};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use crate::{problem::Problem, submitting::turns::Turns};

/// Two commits at once: one gathers rows while the other waits for the disk. 256 rows take about 10 ms; 4096 waiting are
/// more than a second and a half of a slow disk's work, after which a caller would get a 503 anyway.
const LIMITS: Limits = Limits { batch_max: 256, parallel_max: 2, queue_max: 4096, spacing: Duration::from_millis(3) };
/// Bulks committed at once; each is one statement over thousands of rows.
const BULKS_PARALLEL_MAX: usize = 2;
/// Connections that acceptance keeps busy at most: the batches, the bulks, and two queues of the intake.
pub const CONNECTIONS: usize = LIMITS.parallel_max + BULKS_PARALLEL_MAX + 2;
/// From a parsed request to its commit, so that a caller has its 503 within two seconds.
const DEADLINE: Duration = Duration::from_millis(1800);
/// The same for a bulk: 10,000 rows take about half a second, and one may wait for another.
const BULK_DEADLINE: Duration = Duration::from_secs(8);
/// Statements that may fail in search of one bad row; beyond it the fault is not in a row.
const REFUSALS_MAX: u32 = 24;

/// Why something was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// Too much waits already; nothing was stored.
    #[error("too much is waiting to be stored")]
    Full,
    /// It took too long; it may be stored yet.
    #[error("the commit took too long")]
    Late,
    /// The database cannot be reached; it may be stored if the connection broke right after the commit.
    #[error("the database cannot be reached")]
    Unavailable,
    /// The database refused it: a fault of ours, since everything was validated.
    #[error("the database refused it")]
    Refused,
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl From<AcceptError> for Problem {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Full => Self::overloaded(),
            AcceptError::Late | AcceptError::Unavailable | AcceptError::Stopping => Self::unavailable(),
            AcceptError::Refused => Self::internal(),
        }
    }
}

/// What became of one acceptance.
pub type Verdict = Result<Accepted, AcceptError>;

/// Accepts messages. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    batcher: Batcher<Acceptance, Verdict>,
    committer: Committer,
    bulks: Arc<Semaphore>,
    runtime: Handle,
}

impl Acceptor {
    /// Starts accepting, on the runtime of the caller.
    /// A pool of the same process gets by `shortcut` what it can send at once.
    pub fn start(
        store: Store,
        dispatcher: Dispatcher,
        shortcut: Shortcut,
        turns: Turns,
        relay_after: Duration,
    ) -> Self {
        let relay_after_ms = i32::try_from(relay_after.as_millis()).unwrap_or(i32::MAX);
        let committer = Committer { store, dispatcher, shortcut, turns, relay_after_ms };
        let batches = committer.clone();
        let flush = move |batch: Vec<Acceptance>| {
            let committer = batches.clone();
            async move { committer.commit(batch).await }
        };
        let batcher = Batcher::start(LIMITS, flush);
        Self { batcher, committer, bulks: Arc::new(Semaphore::new(BULKS_PARALLEL_MAX)), runtime: Handle::current() }
    }

    /// Accepts one request, together with whatever else is waiting.
    pub async fn accept(&self, acceptance: Acceptance) -> Verdict {
        if acceptance.room_in.is_some() {
            // What may be refused for want of room takes nobody else's commit with it.
            return self.accept_bulk(acceptance).await;
        }
        let started = Instant::now();
        let verdict = match timeout(DEADLINE, self.batcher.try_submit(acceptance)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(SubmitError::Full)) => Err(AcceptError::Full),
            Ok(Err(SubmitError::Abandoned)) => Err(AcceptError::Stopping),
            Err(_) => Err(AcceptError::Late),
        };
        metrics::histogram!("posthaste_accept_seconds").record(started.elapsed());
        verdict
    }

    /// Accepts a request with thousands of messages, in a commit of its own.
    pub async fn accept_bulk(&self, acceptance: Acceptance) -> Verdict {
        let (committer, bulks) = (self.committer.clone(), Arc::clone(&self.bulks));
        let commit = self.runtime.spawn(async move {
            let _permit = bulks.acquire_owned().await.map_err(|_| AcceptError::Stopping)?;
            committer.commit(vec![acceptance]).await.pop().unwrap_or(Err(AcceptError::Refused))
        });
        match timeout(BULK_DEADLINE, commit).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(AcceptError::Stopping),
            Err(_) => Err(AcceptError::Late),
        }
    }

    /// Accepts a batch that was gathered elsewhere, in one commit. One verdict per acceptance, in order.
    pub async fn accept_batch(&self, batch: Vec<Acceptance>) -> Vec<Verdict> {
        self.committer.commit(batch).await
    }
}

#[derive(Clone)]
struct Committer {
    store: Store,
    dispatcher: Dispatcher,
    shortcut: Shortcut,
    turns: Turns,
    relay_after_ms: i32,
}

impl Committer {
    async fn commit(&self, batch: Vec<Acceptance>) -> Vec<Verdict> {
        let mut refusals = 0;
        self.commit_part(&batch, &mut refusals).await
    }

    /// Commits `batch`. If the database refuses it, each half is tried alone, until the bad row stands alone.
    fn commit_part<'a>(&'a self, batch: &'a [Acceptance], refusals: &'a mut u32) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(async move {
            match self.commit_once(batch).await {
                Ok(verdicts) => verdicts,
                Err(error) if error.is_unavailable() => {
                    tracing::warn!(%error, size = batch.len(), "nothing of a batch was accepted");
                    vec![Err(AcceptError::Unavailable); batch.len()]
                }
                Err(error) => {
                    *refusals += 1;
                    self.commit_halves(batch, refusals, &error).await
                }
            }
        })
    }

    async fn commit_halves(&self, batch: &[Acceptance], refusals: &mut u32, error: &DbError) -> Vec<Verdict> {
        if batch.len() < 2 || *refusals >= REFUSALS_MAX {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, source, size = batch.len(), "the database refused an acceptance");
            return vec![Err(AcceptError::Refused); batch.len()];
        }
        let (left, right) = batch.split_at(batch.len() / 2);
        let mut verdicts = self.commit_part(left, refusals).await;
        verdicts.extend(self.commit_part(right, refusals).await);
        verdicts
    }

    async fn commit_once(&self, batch: &[Acceptance]) -> Result<Vec<Verdict>, DbError> {
        faultpoint::pass(faultpoint::BEFORE_COMMIT);
        let crowding = self.turns.crowding();
        let mut places = self.places(batch, &crowding);
        let leases = places.iter().map(|(id, place)| (*id, place.lease_ms())).collect();
        let claimed_at = Instant::now();
        let stored = self.store.accept(batch, self.relay_after_ms, &crowding, &leases).await?;
        faultpoint::pass(faultpoint::AFTER_COMMIT);
        for claim in stored.claims {
            if let Some(place) = places.remove(&claim.delivery) {
                place.send(claim, claimed_at);
            }
        }
        if let Some(dispatch) = stored.dispatch {
            self.dispatcher.post(dispatch);
        }
        count(batch, &stored.results);
        self.turns.note(batch);
        Ok(stored.results.into_iter().map(Ok).collect())
    }

    /// Places for what a pool of this process can send at once. Messages of a bulk have no content of their own, and nobody waits
    /// for them.
    fn places(&self, batch: &[Acceptance], crowding: &Crowding) -> HashMap<DeliveryId, Place> {
        let candidates = batch.iter().flat_map(|acceptance| at_once(acceptance, crowding));
        let own = candidates.filter(|(message, _)| message.content.is_some());
        own.filter_map(|(_, delivery)| Some((delivery.id, self.shortcut.reserve(delivery.route)?))).collect()
    }
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
