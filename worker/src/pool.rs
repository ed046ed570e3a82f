//! One pool: the deliveries of one channel and lane, from the work queue through the claim to the acknowledgement.
//!
//! ```text
//! queue ─▶ room for attempts ─▶ batch ─▶ claim ─▶ a task each: attempt ─▶ event confirmed ─▶ ack
//!                                          └ not won: watched where another worker holds it, then ack
//! shortcut ─▶ what stands against it ─▶ a task each: attempt ─▶ event confirmed
//! ```
//!
//! A delivery stays unacknowledged from the queue to the confirmed event, so a worker that dies loses nothing; the
//! claim's fence keeps what the broker then repeats from being sent twice. What came claimed by the short way was in no queue:
//! the audit finds it when its lease is over.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    amqp::{Acker, Broker, Consumer, ConsumerHealth, Delivery, Publisher, Tag, dead_letter},
    contract::{
        Event, WorkItem,
        wire::{VERSION, Wire},
    },
    db::{DbError, Store, claim::Claim},
    domain::{DeadReason, DeliveryId, retry::AmbiguousPolicy},
    faultpoint,
    local_dispatch::{LocalClaim, LocalDispatch, PoolLimits},
    reconnect::Reconnect,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::Receiver},
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    attempt::{ChannelContext, SLOT_ALLOWANCE, attempt, give_back},
    measures,
    outcomes::Outcomes,
};

/// Deliveries in one claim: beyond this a statement costs as much for each row as several statements would.
const CLAIM_MAX: usize = 64;
/// While claims are under way, another one waits for at least this much room, so that claims grow with the load.
const CLAIM_USUAL: usize = 16;
/// Claims under way at once: enough to hide the database's answer time.
const CLAIMS_IN_FLIGHT_MAX: usize = 2;
/// The least time after a claim of several deliveries. Without it four workers side by side claim one or two deliveries at a time.
const CLAIM_SPACING: Duration = Duration::from_millis(8);
/// Deliveries under way for each attempt at once: the second waits for its event's confirm, or to be claimed. Those that came
/// by the short way count for themselves.
const IN_FLIGHT_PER_ATTEMPT: usize = 2;

/// What the pools of a worker share.
#[derive(Clone)]
pub struct PoolDeps {
    /// The database.
    pub store: Store,
    /// For what cannot be read.
    pub publisher: Publisher,
    /// For what was attempted.
    pub outcomes: Outcomes,
    /// The connection that outcomes are reported on. While the broker does not read from it no delivery is claimed: at most
    /// calls under way already end with outcomes that cannot be reported.
    pub reporting: Broker,
    /// Ends the taking in.
    pub stop: CancellationToken,
}

/// A pool before it runs.
pub struct Pool {
    state: Arc<PoolState>,
    consumer: Consumer,
    /// Before it, deliveries gather for one claim.
    next_claim: Instant,
    local_dispatch: LocalDispatch,
    /// What comes by the short way.
    local_claims: Option<Receiver<LocalClaim>>,
}

/// What the broker brought.
struct QueuedWork {
    work: WorkItem,
    tag: Tag,
}

/// By which way a delivery came, and what it holds until its outcome is written down.
enum Source {
    /// The broker's message.
    Broker(Tag),
    /// Its place among those of the short way.
    Local(OwnedSemaphorePermit),
}

/// What a pool's tasks share.
struct PoolState {
    deps: PoolDeps,
    context: ChannelContext,
    queue: String,
    lease_ms: i32,
    acker: Acker,
    capacity: Arc<Semaphore>,
    capacity_usual: usize,
    claims_in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
    in_flight: metrics::Gauge,
}

/// A claim as it came back.
struct ClaimBatch {
    claims: Vec<Claim>,
    /// Right before it was asked for: leases run from there.
    claimed_at: Instant,
    /// Whether it is known what stands against sending. If not, the process stops.
    is_looked_up: bool,
}

impl Pool {
    /// A pool that makes up to `concurrency` attempts at once. Nothing happens before [`Pool::run`].
    pub fn open(
        broker: &Broker,
        deps: PoolDeps,
        context: ChannelContext,
        concurrency: usize,
        local_dispatch: &LocalDispatch,
    ) -> Self {
        let in_flight_max = concurrency.saturating_mul(IN_FLIGHT_PER_ATTEMPT);
        let queue = shared::amqp::work_queue(context.route);
        let prefetch = u16::try_from(in_flight_max).unwrap_or(u16::MAX);
        let consumer = Consumer::open(broker, queue.clone(), prefetch, &deps.stop);
        let lease = context.timeout + context.lease_margin;
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        let capacity = Arc::new(Semaphore::new(concurrency));
        // A claim that was lost unbegun is as doubtful as any other. Where doubt holds a delivery back, it had better be in a queue.
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
            in_flight: measures::in_flight(context.route),
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

    /// How the pool's consumer is doing.
    pub fn health(&self) -> Arc<ConsumerHealth> {
        self.consumer.health()
    }

    /// Works until stopped, then gives back what was not begun and finishes the rest, however long that takes. Dropping
    /// it half-way loses nothing: what is not acknowledged is delivered again.
    pub async fn run(mut self) {
        let (state, local_claims) = (Arc::clone(&self.state), self.local_claims.take());
        let from_broker = async {
            while let Some((items, room, claim_permit)) = self.next().await {
                let state = Arc::clone(&self.state);
                self.state.tasks.spawn(async move { state.claim_batch(items, room, claim_permit).await });
            }
            self.consumer.cancel().await;
            self.local_dispatch.close(self.state.context.route);
        };
        tokio::join!(from_broker, state.run_local_claims(local_claims));
        state.tasks.close();
        state.tasks.wait().await;
        state.acker.flush().await;
    }

    /// The next hints with room for an attempt each; `None` once stopped.
    async fn next(&mut self) -> Option<(Vec<QueuedWork>, OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let state = Arc::clone(&self.state);
        loop {
            // Room is taken last: while it waits for the broker it is none for what comes by the short way.
            self.consumer.arrived().await?;
            state.deps.stop.run_until_cancelled(state.deps.reporting.usable()).await?.ok()?;
            // Single deliveries are claimed at once; those that come in company share a claim.
            let room = async {
                sleep_until(self.next_claim.into()).await;
                state.capacity().await
            };
            let (mut room, claim_permit) = state.deps.stop.run_until_cancelled(room).await??;
            let batch = self.consumer.next_batch(room.num_permits(), Duration::ZERO).await?;
            if batch.len() > 1 {
                self.next_claim = Instant::now() + CLAIM_SPACING;
            }
            let items = state.parse(batch);
            if !items.is_empty() {
                // What is left of the room goes back when it is dropped here.
                let room = room.split(items.len()).unwrap_or(room);
                return Some((items, room, claim_permit));
            }
        }
    }
}

impl PoolState {
    /// Room for attempts and a claim. With no claim under way a single free place will do; otherwise more are worth
    /// waiting for.
    async fn capacity(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let places = |count: usize| Arc::clone(&self.capacity).acquire_many_owned(u32::try_from(count).unwrap_or(1));
        let all_claims = u32::try_from(CLAIMS_IN_FLIGHT_MAX).unwrap_or(1);
        let mut room = tokio::select! {
            biased;
            room = places(self.capacity_usual) => room.ok()?,
            _idle = self.claims_in_flight.acquire_many(all_claims) => places(1).await.ok()?,
        };
        let more = self.capacity.available_permits().min(CLAIM_MAX.saturating_sub(room.num_permits()));
        if let Ok(more) = Arc::clone(&self.capacity).try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
            room.merge(more);
        }
        let claim_permit = Arc::clone(&self.claims_in_flight).acquire_owned().await.ok()?;
        Some((room, claim_permit))
    }

    /// Claims a batch and starts an attempt for each delivery that was won.
    async fn claim_batch(
        self: Arc<Self>,
        batch: Vec<QueuedWork>,
        mut room: OwnedSemaphorePermit,
        claim_permit: OwnedSemaphorePermit,
    ) {
        let items: Vec<WorkItem> = batch.iter().map(|item| item.work).collect();
        let Some(ClaimBatch { claims, claimed_at, is_looked_up }) = self.claim(&items).await else {
            return batch.iter().for_each(|item| self.acker.requeue(item.tag));
        };
        drop(claim_permit);
        measures::claimed(claims.len(), items.len());
        let mut won: HashMap<(DeliveryId, i32), Claim> =
            claims.into_iter().map(|claim| ((claim.delivery, claim.run), claim)).collect();
        let mut lost = Vec::new();
        for item in batch {
            match (won.remove(&(item.work.d, item.work.r.saturating_add(1))), room.split(1)) {
                (Some(claim), Some(_)) if !is_looked_up => self.give_back(&claim, Source::Broker(item.tag)),
                (Some(claim), Some(place)) => self.spawn_attempt(claim, claimed_at, place, Source::Broker(item.tag)),
                _ => lost.push(item),
            }
        }
        drop(room);
        self.settle_lost(lost).await;
    }

    /// Takes what comes by the short way, until it ends.
    async fn run_local_claims(self: &Arc<Self>, local_claims: Option<Receiver<LocalClaim>>) {
        let Some(mut local_claims) = local_claims else { return };
        let mut batch = Vec::new();
        while local_claims.recv_many(&mut batch, CLAIM_MAX).await > 0 {
            let (state, batch) = (Arc::clone(self), std::mem::take(&mut batch));
            self.tasks.spawn(async move { state.start_local(batch).await });
        }
    }

    /// Starts an attempt for each delivery that came claimed, once it is known what stands against sending it.
    async fn start_local(self: Arc<Self>, batch: Vec<LocalClaim>) {
        measures::came_claimed(batch.len());
        let (mut claims, rest): (Vec<Claim>, Vec<_>) = batch
            .into_iter()
            .map(|LocalClaim { claim, claimed_at, room, in_flight_permit }| {
                (claim, (claimed_at, room, in_flight_permit))
            })
            .unzip();
        let is_looked_up = self.load_policies(&mut claims).await;
        for (claim, (claimed_at, room, in_flight_permit)) in claims.into_iter().zip(rest) {
            match is_looked_up {
                true => self.spawn_attempt(claim, claimed_at, room, Source::Local(in_flight_permit)),
                false => self.give_back(&claim, Source::Local(in_flight_permit)),
            }
        }
    }

    /// Looks what stands against sending, however long the database stays away; false once stopped, or once a stopping process
    /// can wait no longer. The claims are then to be given back.
    async fn load_policies(&self, claims: &mut [Claim]) -> bool {
        let looking = async {
            let mut reconnect = Reconnect::new();
            while let Err(error) = self.deps.store.load_policies(self.context.route.channel, claims).await {
                self.wait_out(&error, &mut reconnect).await?;
            }
            Some(())
        };
        self.context.cut_short.run_until_cancelled(looking).await.flatten().is_some()
    }

    /// The hints of a batch. What is none is put aside for a person.
    fn parse(self: &Arc<Self>, batch: Vec<Delivery>) -> Vec<QueuedWork> {
        let mut items = Vec::with_capacity(batch.len());
        for delivery in batch {
            match read(&delivery) {
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
        let put = || dead_letter(&self.deps.publisher, &self.queue, &delivery, DeadReason::Poison, detail);
        let mut reconnect = Reconnect::new();
        while let Err(error) = put().await {
            tracing::warn!(queue = self.queue, %error, "a dead letter is not with the broker yet");
            if self.deps.stop.run_until_cancelled(reconnect.pause()).await.is_none() {
                return self.acker.requeue(delivery.tag);
            }
        }
        self.acker.done(delivery.tag);
    }

    /// Claims, however long the database stays away; `None` once stopped.
    async fn claim(&self, items: &[WorkItem]) -> Option<ClaimBatch> {
        let mut reconnect = Reconnect::new();
        loop {
            let claimed_at = Instant::now();
            match self.deps.store.claim(self.context.route.channel, items, self.lease_ms).await {
                Ok(mut claims) => {
                    let is_looked_up = self.load_policies(&mut claims).await;
                    return Some(ClaimBatch { claims, claimed_at, is_looked_up });
                }
                Err(error) => self.wait_out(&error, &mut reconnect).await?,
            }
        }
    }

    /// A pause after a database call that failed; `None` once stopped.
    async fn wait_out(&self, error: &DbError, reconnect: &mut Reconnect) -> Option<()> {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(queue = self.queue, %error, cause, "deliveries wait for the database");
        self.deps.stop.run_until_cancelled(reconnect.pause()).await
    }

    /// Starts the attempt of a claim that has room for it.
    fn spawn_attempt(self: &Arc<Self>, claim: Claim, claimed_at: Instant, room: OwnedSemaphorePermit, source: Source) {
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
            drop(room);
            state.report(event, source).await;
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Gives a claim back unused, so that another worker need not wait for the end of its lease.
    fn give_back(self: &Arc<Self>, claim: &Claim, source: Source) {
        let (state, span) = (Arc::clone(self), self.span(claim));
        let event = span.in_scope(|| give_back(&self.context, claim));
        self.tasks.spawn(async move { state.report(event, source).await }.instrument(span));
    }

    /// Reports how a claim ended, and lets go of what it held once that is certain to be written down.
    async fn report(&self, event: Event, source: Source) {
        let is_written = self.deps.outcomes.record(event).await;
        if is_written {
            faultpoint::pass(faultpoint::AFTER_EVENT);
        }
        match source {
            Source::Broker(tag) if is_written => self.acker.done(tag),
            Source::Broker(_) => {}
            Source::Local(in_flight_permit) => drop(in_flight_permit),
        }
    }

    /// The next minute's slots must not come too soon after a message that was heard late.
    async fn charge_late_slot(&self, line: Uuid, delivery: DeliveryId) {
        measures::slot_used_late();
        if let Err(error) = self.deps.store.charge_late_slot(line, delivery).await {
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

    /// Acknowledges what others hold or ended. Whoever holds it may be a worker that died, also where the broker delivers it for
    /// the first time (the relay may have published it once more), so a watch is set for the end of its lease.
    async fn settle_lost(&self, lost: Vec<QueuedWork>) {
        if lost.is_empty() {
            return;
        }
        let items: Vec<WorkItem> = lost.iter().map(|item| item.work).collect();
        let mut reconnect = Reconnect::new();
        while let Err(error) = self.deps.store.watch(&items).await {
            if self.wait_out(&error, &mut reconnect).await.is_none() {
                return lost.iter().for_each(|item| self.acker.requeue(item.tag));
            }
        }
        self.acker.done_all(lost.iter().map(|item| item.tag));
    }
}

fn read(delivery: &Delivery) -> Result<WorkItem, String> {
    if delivery.properties.kind() != Some(WorkItem::TYPE) {
        return Err(format!("its type is not {}", WorkItem::TYPE));
    }
    let item: WorkItem = serde_json::from_slice(&delivery.body).map_err(|error| error.to_string())?;
    if item.v == VERSION { Ok(item) } else { Err(format!("its version is not {VERSION}")) }
}
