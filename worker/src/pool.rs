//! A pool sends the deliveries of one route (a channel and a lane): from the work queue, through the claim, to the ack.
//!
//! ```text
//! work queue ─▶ attempt permits ─▶ batch ─▶ claim ─▶ one task each: attempt ─▶ event confirmed ─▶ ack
//!                                            └ lost: set a watch if another worker holds it, then ack
//! local dispatch ─▶ recipient policies ─▶ one task each: attempt ─▶ event confirmed
//! ```
//!
//! A message stays unacknowledged until its event is confirmed, so a worker that dies loses nothing. The broker then redelivers
//! the message, and the claim's fencing token prevents a second send. A delivery from local dispatch is claimed at acceptance
//! and was never in a queue: if the worker dies, the audit finds the delivery when its lease ends.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use broker::{Acker, Broker, Consumer, ConsumerHealth, Delivery, Publisher, Tag, dead_letter};
use deliveries::{Deliveries, claim::Claim};
use domain::{
    DeadReason, DeliveryId,
    contract::{
        Event, WorkItem,
        wire::{VERSION, Wire},
    },
    retry::AmbiguousPolicy,
};
use engine::local_dispatch::{LocalClaim, LocalDispatch, PoolLimits};
use providers::counters;
use runtime::{faultpoint, reconnect::Reconnect};
use store::{DbError, Store};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::Receiver},
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    attempt::{ChannelContext, SLOT_ALLOWANCE, attempt, give_back},
    outcomes::Outcomes,
};

/// Maximum deliveries in one claim. A larger statement costs as much per row as several statements.
const CLAIM_MAX: usize = 64;
/// While another claim is in flight, a claim waits for at least this many attempt permits, so that batches grow with the load.
const CLAIM_USUAL: usize = 16;
/// Maximum claims in flight at once: enough to hide the database's response time.
const CLAIMS_IN_FLIGHT_MAX: usize = 2;
/// Minimum time after a claim of several deliveries. Without it, four parallel workers claim one or two deliveries at a time.
const CLAIM_SPACING: Duration = Duration::from_millis(8);
/// Deliveries in flight per concurrent attempt: while one is attempted, the second waits for its claim or for the confirm of its
/// event. Deliveries from local dispatch have a limit of their own.
const IN_FLIGHT_PER_ATTEMPT: usize = 2;

/// The dependencies that all pools of a worker share.
#[derive(Clone)]
pub struct PoolDeps {
    /// The database.
    pub store: Store,
    /// Publishes dead letters for messages that cannot be parsed.
    pub publisher: Publisher,
    /// Publishes the events of attempts.
    pub outcomes: Outcomes,
    /// The connection that events are published on. While the broker does not read from it, the pool claims nothing: only the
    /// calls that are already in flight can then end with outcomes that cannot be reported.
    pub reporting: Broker,
    /// Stops the intake of new work.
    pub stop: CancellationToken,
}

/// A pool that [`Pool::run`] starts.
pub struct Pool {
    state: Arc<PoolState>,
    consumer: Consumer,
    /// The earliest time of the next claim. Until then, deliveries gather in the queue.
    next_claim: Instant,
    local_dispatch: LocalDispatch,
    /// Deliveries that this process claimed when it accepted them. `None`: this channel holds doubtful deliveries back.
    local_claims: Option<Receiver<LocalClaim>>,
}

/// A parsed message of the work queue.
struct QueuedWork {
    work: WorkItem,
    tag: Tag,
}

/// Where a delivery came from, and what it holds until its outcome is stored.
enum Source {
    /// The work queue: the message to acknowledge.
    Broker(Tag),
    /// Local dispatch: the permit of a delivery in flight.
    Local(OwnedSemaphorePermit),
}

/// The state that a pool's tasks share.
struct PoolState {
    deps: PoolDeps,
    context: ChannelContext,
    queue: String,
    lease_ms: i32,
    acker: Acker,
    /// One permit per concurrent attempt.
    capacity: Arc<Semaphore>,
    /// [`CLAIM_USUAL`], or less for a small pool.
    capacity_usual: usize,
    claims_in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
    in_flight: metrics::Gauge,
}

/// The result of one claim statement.
struct ClaimBatch {
    claims: Vec<Claim>,
    /// The time right before the statement was sent. Leases are measured from it.
    claimed_at: Instant,
    /// Whether the recipient policies are loaded. They are missing only while the process stops.
    has_policies: bool,
}

impl Pool {
    /// Creates a pool that makes up to `concurrency` attempts at once. It does nothing before [`Pool::run`].
    pub fn open(
        broker: &Broker,
        deps: PoolDeps,
        context: ChannelContext,
        concurrency: usize,
        local_dispatch: &LocalDispatch,
    ) -> Self {
        let in_flight_max = concurrency.saturating_mul(IN_FLIGHT_PER_ATTEMPT);
        let queue = broker::work_queue(context.route);
        let prefetch = u16::try_from(in_flight_max).unwrap_or(u16::MAX);
        let consumer = Consumer::open(broker, queue.clone(), prefetch, &deps.stop);
        let lease = context.timeout + context.lease_margin;
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        let capacity = Arc::new(Semaphore::new(concurrency));
        // If the process dies after the claim, it is unknown whether the delivery was sent, even if no attempt began. A channel
        // that holds such deliveries back therefore does not use local dispatch: in a queue a delivery is known to be unsent.
        let local_claims = (context.policy.ambiguous == AmbiguousPolicy::Resend).then(|| {
            let (health, reporting) = (consumer.health(), deps.reporting.subscribe());
            let limits =
                PoolLimits { health, reporting, room: Arc::clone(&capacity), in_flight: in_flight_max, lease_ms };
            local_dispatch.open(context.route, limits)
        });
        let state = PoolState {
            queue,
            lease_ms,
            acker: consumer.acker(),
            capacity,
            capacity_usual: CLAIM_USUAL.min(concurrency / 2).max(1),
            claims_in_flight: Arc::new(Semaphore::new(CLAIMS_IN_FLIGHT_MAX)),
            tasks: TaskTracker::new(),
            in_flight: counters::in_flight(context.route),
            deps,
            context,
        };
        Self {
            state: Arc::new(state),
            consumer,
            next_claim: Instant::now(),
            local_claims,
            local_dispatch: local_dispatch.clone(),
        }
    }

    /// The state of the pool's consumer.
    pub fn health(&self) -> Arc<ConsumerHealth> {
        self.consumer.health()
    }

    /// Runs until stopped. Then it requeues the messages that it has not started and finishes the others, however long that
    /// takes. Dropping the future loses nothing: the broker redelivers unacknowledged messages.
    pub async fn run(mut self) {
        let (state, local_claims) = (Arc::clone(&self.state), self.local_claims.take());
        let from_broker = async {
            while let Some((items, permits, claim_permit)) = self.next().await {
                let state = Arc::clone(&self.state);
                self.state.tasks.spawn(async move { state.claim_batch(items, permits, claim_permit).await });
            }
            self.consumer.cancel().await;
            self.local_dispatch.close(self.state.context.route);
        };
        tokio::join!(from_broker, state.run_local_claims(local_claims));
        state.tasks.close();
        state.tasks.wait().await;
        state.acker.flush().await;
    }

    /// Returns the next messages, an attempt permit for each of them, and a claim permit; `None` once stopped.
    async fn next(&mut self) -> Option<(Vec<QueuedWork>, OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let state = Arc::clone(&self.state);
        loop {
            // Acquire the permits last. Permits that wait for the broker are not available to local dispatch.
            self.consumer.arrived().await?;
            state.deps.stop.run_until_cancelled(state.deps.reporting.usable()).await?.ok()?;
            // A single delivery is claimed at once. Deliveries that arrive together share a claim.
            let permits = async {
                sleep_until(self.next_claim.into()).await;
                state.capacity().await
            };
            let (mut permits, claim_permit) = state.deps.stop.run_until_cancelled(permits).await??;
            let batch = self.consumer.next_batch(permits.num_permits(), Duration::ZERO).await?;
            if batch.len() > 1 {
                self.next_claim = Instant::now() + CLAIM_SPACING;
            }
            let items = state.parse(batch);
            if !items.is_empty() {
                // Dropping the remaining permits here returns them.
                let permits = permits.split(items.len()).unwrap_or(permits);
                return Some((items, permits, claim_permit));
            }
        }
    }
}

impl PoolState {
    /// Acquires permits for attempts and for one claim. If no claim is in flight, one attempt permit is enough; otherwise it is
    /// worth waiting for `capacity_usual` of them.
    async fn capacity(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let acquire = |count: usize| Arc::clone(&self.capacity).acquire_many_owned(u32::try_from(count).unwrap_or(1));
        let all_claims = u32::try_from(CLAIMS_IN_FLIGHT_MAX).unwrap_or(1);
        let mut permits = tokio::select! {
            biased;
            permits = acquire(self.capacity_usual) => permits.ok()?,
            _idle = self.claims_in_flight.acquire_many(all_claims) => acquire(1).await.ok()?,
        };
        let more = self.capacity.available_permits().min(CLAIM_MAX.saturating_sub(permits.num_permits()));
        if let Ok(more) = Arc::clone(&self.capacity).try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
            permits.merge(more);
        }
        let claim_permit = Arc::clone(&self.claims_in_flight).acquire_owned().await.ok()?;
        Some((permits, claim_permit))
    }

    /// Claims a batch and starts an attempt for each claim that it won.
    async fn claim_batch(
        self: Arc<Self>,
        batch: Vec<QueuedWork>,
        mut permits: OwnedSemaphorePermit,
        claim_permit: OwnedSemaphorePermit,
    ) {
        let items: Vec<WorkItem> = batch.iter().map(|item| item.work).collect();
        let Some(ClaimBatch { claims, claimed_at, has_policies }) = self.claim(&items).await else {
            return batch.iter().for_each(|item| self.acker.requeue(item.tag));
        };
        drop(claim_permit);
        counters::claimed(claims.len(), items.len());
        let mut won: HashMap<(DeliveryId, i32), Claim> =
            claims.into_iter().map(|claim| ((claim.delivery, claim.run), claim)).collect();
        let mut lost = Vec::new();
        for item in batch {
            match (won.remove(&(item.work.d, item.work.r.saturating_add(1))), permits.split(1)) {
                (Some(claim), Some(_)) if !has_policies => self.give_back(&claim, Source::Broker(item.tag)),
                (Some(claim), Some(permit)) => self.spawn_attempt(claim, claimed_at, permit, Source::Broker(item.tag)),
                _ => lost.push(item),
            }
        }
        drop(permits);
        self.settle_lost(lost).await;
    }

    /// Receives deliveries from local dispatch until its channel closes.
    async fn run_local_claims(self: &Arc<Self>, local_claims: Option<Receiver<LocalClaim>>) {
        let Some(mut local_claims) = local_claims else { return };
        let mut batch = Vec::new();
        while local_claims.recv_many(&mut batch, CLAIM_MAX).await > 0 {
            let (state, batch) = (Arc::clone(self), std::mem::take(&mut batch));
            self.tasks.spawn(async move { state.start_local(batch).await });
        }
    }

    /// Loads the recipient policies of deliveries from local dispatch, then starts an attempt for each.
    async fn start_local(self: Arc<Self>, batch: Vec<LocalClaim>) {
        counters::claimed_with_acceptance(batch.len());
        let (mut claims, rest): (Vec<Claim>, Vec<_>) = batch
            .into_iter()
            .map(|LocalClaim { claim, claimed_at, room: attempt_permit, in_flight_permit }| {
                (claim, (claimed_at, attempt_permit, in_flight_permit))
            })
            .unzip();
        let has_policies = self.load_policies(&mut claims).await;
        for (claim, (claimed_at, attempt_permit, in_flight_permit)) in claims.into_iter().zip(rest) {
            match has_policies {
                true => self.spawn_attempt(claim, claimed_at, attempt_permit, Source::Local(in_flight_permit)),
                false => self.give_back(&claim, Source::Local(in_flight_permit)),
            }
        }
    }

    /// Loads suppressions and recipient policies into `claims`, and retries while the database is away. Returns false if the
    /// process stops before that: the caller must then give the claims back.
    async fn load_policies(&self, claims: &mut [Claim]) -> bool {
        let loading = async {
            let mut reconnect = Reconnect::new();
            while let Err(error) = self.deps.store.recipient_policies().load(self.context.route.channel, claims).await {
                self.wait_out(&error, &mut reconnect).await?;
            }
            Some(())
        };
        self.context.cut_short.run_until_cancelled(loading).await.flatten().is_some()
    }

    /// Parses a batch of messages. A message that cannot be parsed becomes a dead letter, for a person to look at.
    fn parse(self: &Arc<Self>, batch: Vec<Delivery>) -> Vec<QueuedWork> {
        let mut items = Vec::with_capacity(batch.len());
        for delivery in batch {
            match parse_work_item(&delivery) {
                Ok(work) => items.push(QueuedWork { work, tag: delivery.tag }),
                Err(detail) => {
                    let state = Arc::clone(self);
                    self.tasks.spawn(async move { state.dead_letter_message(delivery, &detail).await });
                }
            }
        }
        items
    }

    async fn dead_letter_message(&self, delivery: Delivery, detail: &str) {
        tracing::error!(
            queue = self.queue,
            detail,
            "a message on the work queue cannot be read, it goes to the dead letters"
        );
        let publish = || dead_letter(&self.deps.publisher, &self.queue, &delivery, DeadReason::Poison, detail);
        let mut reconnect = Reconnect::new();
        while let Err(error) = publish().await {
            tracing::warn!(queue = self.queue, %error, "a dead letter is not with the broker yet");
            if self.deps.stop.run_until_cancelled(reconnect.pause()).await.is_none() {
                return self.acker.requeue(delivery.tag);
            }
        }
        self.acker.done(delivery.tag);
    }

    /// Claims deliveries, and retries while the database is away; `None` once stopped.
    async fn claim(&self, items: &[WorkItem]) -> Option<ClaimBatch> {
        let mut reconnect = Reconnect::new();
        loop {
            let claimed_at = Instant::now();
            match self.deps.store.claims().claim(self.context.route.channel, items, self.lease_ms).await {
                Ok(mut claims) => {
                    let has_policies = self.load_policies(&mut claims).await;
                    return Some(ClaimBatch { claims, claimed_at, has_policies });
                }
                Err(error) => self.wait_out(&error, &mut reconnect).await?,
            }
        }
    }

    /// Logs a failed database call and pauses; `None` once stopped.
    async fn wait_out(&self, error: &DbError, reconnect: &mut Reconnect) -> Option<()> {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(queue = self.queue, %error, cause, "deliveries wait for the database");
        self.deps.stop.run_until_cancelled(reconnect.pause()).await
    }

    /// Starts the attempt that a claim allows. `permit` is the attempt permit; it is released before the outcome is reported.
    fn spawn_attempt(
        self: &Arc<Self>,
        claim: Claim,
        claimed_at: Instant,
        permit: OwnedSemaphorePermit,
        source: Source,
    ) {
        let state = Arc::clone(self);
        let span = state.span(&claim);
        let slot = claim.line.map(|line| (line, claim.delivery));
        let work = async move {
            state.in_flight.increment(1.0);
            let event = attempt(&state.context, claim, claimed_at).await;
            state.in_flight.decrement(1.0);
            if let Some((line, delivery)) =
                slot.filter(|_| event.attempt.is_some() && claimed_at.elapsed() > SLOT_ALLOWANCE)
            {
                state.charge_late_slot(line, delivery).await;
            }
            drop(permit);
            state.report(event, source).await;
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Gives an unused claim back, so that another worker does not have to wait until its lease ends.
    fn give_back(self: &Arc<Self>, claim: &Claim, source: Source) {
        let (state, span) = (Arc::clone(self), self.span(claim));
        let event = span.in_scope(|| give_back(&self.context, claim));
        self.tasks.spawn(async move { state.report(event, source).await }.instrument(span));
    }

    /// Publishes the event that ends a claim. Acknowledges the message only once the broker has confirmed the event.
    async fn report(&self, event: Event, source: Source) {
        let is_confirmed = self.deps.outcomes.record(event).await;
        if is_confirmed {
            faultpoint::pass(faultpoint::AFTER_EVENT);
        }
        match source {
            Source::Broker(tag) if is_confirmed => self.acker.done(tag),
            Source::Broker(_) => {}
            Source::Local(in_flight_permit) => drop(in_flight_permit),
        }
    }

    /// Moves a slot to the time of its late call. Otherwise the next minute's slots come too soon after that message.
    async fn charge_late_slot(&self, line: Uuid, delivery: DeliveryId) {
        counters::slot_used_late();
        if let Err(error) = self.deps.store.lines().charge_late_slot(line, delivery).await {
            tracing::warn!(session.id = %line, %error, "a slot that was used late could not be moved: the session's next minute may hold more");
        }
    }

    fn span(&self, claim: &Claim) -> tracing::Span {
        // 00-<trace id>-<span id>-<flags>
        let trace_id = claim.traceparent.as_deref().and_then(|trace| trace.split('-').nth(1));
        tracing::info_span!(
            "delivery",
            message.id = %claim.message,
            delivery.id = %claim.delivery,
            tenant.id = claim.tenant.0,
            channel = self.context.route.channel.as_str(),
            provider = tracing::field::Empty,
            attempt = claim.tries.attempts,
            trace.id = trace_id,
        )
    }

    /// Settles the messages whose claim was lost: another worker holds or has finished these deliveries.
    ///
    /// The holder may be a worker that died. This is possible even if the broker delivers the message for the first time, because
    /// the relay may have published it again. So a watch is set for the end of the lease before the message is acknowledged.
    async fn settle_lost(&self, lost: Vec<QueuedWork>) {
        if lost.is_empty() {
            return;
        }
        let items: Vec<WorkItem> = lost.iter().map(|item| item.work).collect();
        let mut reconnect = Reconnect::new();
        while let Err(error) = self.deps.store.claims().watch(&items).await {
            if self.wait_out(&error, &mut reconnect).await.is_none() {
                return lost.iter().for_each(|item| self.acker.requeue(item.tag));
            }
        }
        self.acker.done_all(lost.iter().map(|item| item.tag));
    }
}

fn parse_work_item(delivery: &Delivery) -> Result<WorkItem, String> {
    if delivery.properties.kind() != Some(WorkItem::TYPE) {
        return Err(format!("its type is not {}", WorkItem::TYPE));
    }
    let item: WorkItem = serde_json::from_slice(&delivery.body).map_err(|error| error.to_string())?;
    if item.v == VERSION { Ok(item) } else { Err(format!("its version is not {VERSION}")) }
}
