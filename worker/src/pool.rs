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
    reconnect::Reconnect,
    shortcut::{Early, Shortcut, Terms},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::Receiver},
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    attempt::{Desk, SLOT_ALLOWANCE, attempt, give_back},
    measures,
    outcomes::Outcomes,
};

/// Deliveries in one claim: beyond this a statement costs as much for each row as several statements would.
const CLAIM_MAX: usize = 64;
/// While claims are under way, another one waits for at least this much room, so that claims grow with the load.
const CLAIM_USUAL: usize = 16;
/// Claims under way at once: enough to hide the database's answer time.
const FLIGHTS_MAX: usize = 2;
/// The least time after a claim of several deliveries. Without it four workers side by side claim one or two deliveries at a time.
const CLAIM_SPACING: Duration = Duration::from_millis(8);
/// Deliveries under way for each attempt at once: the second waits for its event's confirm, or to be claimed. Those that came
/// by the short way count for themselves.
const HANDS_PER_ATTEMPT: usize = 2;

/// What the pools of a worker share.
#[derive(Clone)]
pub struct Shop {
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
    bench: Arc<Bench>,
    consumer: Consumer,
    /// Before it, deliveries gather for one claim.
    next_claim: Instant,
    shortcut: Shortcut,
    /// What comes by the short way.
    early: Option<Receiver<Early>>,
}

/// What the broker brought.
struct Hint {
    work: WorkItem,
    tag: Tag,
}

/// By which way a delivery came, and what it holds until its outcome is written down.
enum Way {
    /// The broker's message.
    Broker(Tag),
    /// Its place among those of the short way.
    Short(OwnedSemaphorePermit),
}

/// What a pool's tasks share.
struct Bench {
    shop: Shop,
    desk: Desk,
    queue: String,
    lease_ms: i32,
    acker: Acker,
    room: Arc<Semaphore>,
    room_usual: usize,
    flights: Arc<Semaphore>,
    tasks: TaskTracker,
    in_flight: metrics::Gauge,
}

/// A claim as it came back.
struct Won {
    claims: Vec<Claim>,
    /// Right before it was asked for: leases run from there.
    claimed_at: Instant,
    /// Whether it is known what stands against sending. If not, the process stops.
    is_looked_up: bool,
}

impl Pool {
    /// A pool that makes up to `concurrency` attempts at once. Nothing happens before [`Pool::run`].
    pub fn open(broker: &Broker, shop: Shop, desk: Desk, concurrency: usize, shortcut: &Shortcut) -> Self {
        let hands = concurrency.saturating_mul(HANDS_PER_ATTEMPT);
        let queue = shared::amqp::work_queue(desk.route);
        let prefetch = u16::try_from(hands).unwrap_or(u16::MAX);
        let consumer = Consumer::open(broker, queue.clone(), prefetch, &shop.stop);
        let lease = desk.timeout + desk.lease_margin;
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        let room = Arc::new(Semaphore::new(concurrency));
        // A claim that was lost unbegun is as doubtful as any other. Where doubt holds a delivery back, it had better be in a queue.
        let early = (desk.policy.ambiguous == AmbiguousPolicy::Resend).then(|| {
            let (health, reporting) = (consumer.health(), shop.reporting.subscribe());
            let terms = Terms { health, reporting, room: Arc::clone(&room), hands, lease_ms };
            shortcut.open(desk.route, terms)
        });
        let bench = Bench {
            queue,
            lease_ms,
            acker: consumer.acker(),
            room,
            room_usual: CLAIM_USUAL.min(concurrency / 2).max(1),
            flights: Arc::new(Semaphore::new(FLIGHTS_MAX)),
            tasks: TaskTracker::new(),
            in_flight: measures::in_flight(desk.route),
            shop,
            desk,
        };
        Self { bench: Arc::new(bench), consumer, next_claim: Instant::now(), early, shortcut: shortcut.clone() }
    }

    /// How the pool's consumer is doing.
    pub fn health(&self) -> Arc<ConsumerHealth> {
        self.consumer.health()
    }

    /// Works until stopped, then gives back what was not begun and finishes the rest, however long that takes. Dropping
    /// it half-way loses nothing: what is not acknowledged is delivered again.
    pub async fn run(mut self) {
        let (bench, early) = (Arc::clone(&self.bench), self.early.take());
        let from_broker = async {
            while let Some((hints, room, flight)) = self.next().await {
                let bench = Arc::clone(&self.bench);
                self.bench.tasks.spawn(async move { bench.take_on(hints, room, flight).await });
            }
            self.consumer.cancel().await;
            self.shortcut.close(self.bench.desk.route);
        };
        tokio::join!(from_broker, bench.take_early(early));
        bench.tasks.close();
        bench.tasks.wait().await;
        bench.acker.flush().await;
    }

    /// The next hints with room for an attempt each; `None` once stopped.
    async fn next(&mut self) -> Option<(Vec<Hint>, OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let bench = Arc::clone(&self.bench);
        loop {
            // Room is taken last: while it waits for the broker it is none for what comes by the short way.
            self.consumer.arrived().await?;
            bench.shop.stop.run_until_cancelled(bench.shop.reporting.usable()).await?.ok()?;
            // Single deliveries are claimed at once; those that come in company share a claim.
            let room = async {
                sleep_until(self.next_claim.into()).await;
                bench.room().await
            };
            let (mut room, flight) = bench.shop.stop.run_until_cancelled(room).await??;
            let batch = self.consumer.next_batch(room.num_permits(), Duration::ZERO).await?;
            if batch.len() > 1 {
                self.next_claim = Instant::now() + CLAIM_SPACING;
            }
            let hints = bench.sort_out(batch);
            if !hints.is_empty() {
                // What is left of the room goes back when it is dropped here.
                let room = room.split(hints.len()).unwrap_or(room);
                return Some((hints, room, flight));
            }
        }
    }
}

impl Bench {
    /// Room for attempts and a claim. With no claim under way a single free place will do; otherwise more are worth
    /// waiting for.
    async fn room(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let places = |count: usize| Arc::clone(&self.room).acquire_many_owned(u32::try_from(count).unwrap_or(1));
        let all_flights = u32::try_from(FLIGHTS_MAX).unwrap_or(1);
        let mut room = tokio::select! {
            biased;
            room = places(self.room_usual) => room.ok()?,
            _idle = self.flights.acquire_many(all_flights) => places(1).await.ok()?,
        };
        let more = self.room.available_permits().min(CLAIM_MAX.saturating_sub(room.num_permits()));
        if let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
            room.merge(more);
        }
        let flight = Arc::clone(&self.flights).acquire_owned().await.ok()?;
        Some((room, flight))
    }

    /// Claims a batch and starts an attempt for each delivery that was won.
    async fn take_on(self: Arc<Self>, batch: Vec<Hint>, mut room: OwnedSemaphorePermit, flight: OwnedSemaphorePermit) {
        let hints: Vec<WorkItem> = batch.iter().map(|hint| hint.work).collect();
        let Some(Won { claims, claimed_at, is_looked_up }) = self.claim(&hints).await else {
            return batch.iter().for_each(|hint| self.acker.requeue(hint.tag));
        };
        drop(flight);
        measures::claimed(claims.len(), hints.len());
        let mut won: HashMap<(DeliveryId, i32), Claim> =
            claims.into_iter().map(|claim| ((claim.delivery, claim.run), claim)).collect();
        let mut lost = Vec::new();
        for hint in batch {
            match (won.remove(&(hint.work.d, hint.work.r.saturating_add(1))), room.split(1)) {
                (Some(claim), Some(_)) if !is_looked_up => self.give_back(&claim, Way::Broker(hint.tag)),
                (Some(claim), Some(place)) => self.start(claim, claimed_at, place, Way::Broker(hint.tag)),
                _ => lost.push(hint),
            }
        }
        drop(room);
        self.let_go(lost).await;
    }

    /// Takes what comes by the short way, until it ends.
    async fn take_early(self: &Arc<Self>, early: Option<Receiver<Early>>) {
        let Some(mut early) = early else { return };
        let mut batch = Vec::new();
        while early.recv_many(&mut batch, CLAIM_MAX).await > 0 {
            let (bench, batch) = (Arc::clone(self), std::mem::take(&mut batch));
            self.tasks.spawn(async move { bench.begin(batch).await });
        }
    }

    /// Starts an attempt for each delivery that came claimed, once it is known what stands against sending it.
    async fn begin(self: Arc<Self>, batch: Vec<Early>) {
        measures::came_claimed(batch.len());
        let (mut claims, rest): (Vec<Claim>, Vec<_>) =
            batch.into_iter().map(|Early { claim, claimed_at, room, hand }| (claim, (claimed_at, room, hand))).unzip();
        let is_looked_up = self.look(&mut claims).await;
        for (claim, (claimed_at, room, hand)) in claims.into_iter().zip(rest) {
            match is_looked_up {
                true => self.start(claim, claimed_at, room, Way::Short(hand)),
                false => self.give_back(&claim, Way::Short(hand)),
            }
        }
    }

    /// Looks what stands against sending, however long the database stays away; false once stopped, or once a stopping process
    /// can wait no longer. The claims are then to be given back.
    async fn look(&self, claims: &mut [Claim]) -> bool {
        let looking = async {
            let mut reconnect = Reconnect::new();
            while let Err(error) = self.shop.store.look(self.desk.route.channel, claims).await {
                self.wait_out(&error, &mut reconnect).await?;
            }
            Some(())
        };
        self.desk.hurry.run_until_cancelled(looking).await.flatten().is_some()
    }

    /// The hints of a batch. What is none is put aside for a person.
    fn sort_out(self: &Arc<Self>, batch: Vec<Delivery>) -> Vec<Hint> {
        let mut hints = Vec::with_capacity(batch.len());
        for delivery in batch {
            match read(&delivery) {
                Ok(work) => hints.push(Hint { work, tag: delivery.tag }),
                Err(detail) => {
                    let bench = Arc::clone(self);
                    self.tasks.spawn(async move { bench.put_aside(delivery, &detail).await });
                }
            }
        }
        hints
    }

    async fn put_aside(&self, delivery: Delivery, detail: &str) {
        tracing::error!(
            queue = self.queue,
            detail,
            "a message on the work queue cannot be read, it goes to the dead letters"
        );
        let put = || dead_letter(&self.shop.publisher, &self.queue, &delivery, DeadReason::Poison, detail);
        let mut reconnect = Reconnect::new();
        while let Err(error) = put().await {
            tracing::warn!(queue = self.queue, %error, "a dead letter is not with the broker yet");
            if self.shop.stop.run_until_cancelled(reconnect.pause()).await.is_none() {
                return self.acker.requeue(delivery.tag);
            }
        }
        self.acker.done(delivery.tag);
    }

    /// Claims, however long the database stays away; `None` once stopped.
    async fn claim(&self, hints: &[WorkItem]) -> Option<Won> {
        let mut reconnect = Reconnect::new();
        loop {
            let claimed_at = Instant::now();
            match self.shop.store.claim(self.desk.route.channel, hints, self.lease_ms).await {
                Ok(mut claims) => {
                    let is_looked_up = self.look(&mut claims).await;
                    return Some(Won { claims, claimed_at, is_looked_up });
                }
                Err(error) => self.wait_out(&error, &mut reconnect).await?,
            }
        }
    }

    /// A pause after a database call that failed; `None` once stopped.
    async fn wait_out(&self, error: &DbError, reconnect: &mut Reconnect) -> Option<()> {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(queue = self.queue, %error, cause, "deliveries wait for the database");
        self.shop.stop.run_until_cancelled(reconnect.pause()).await
    }

    /// Starts the attempt of a claim that has room for it.
    fn start(self: &Arc<Self>, claim: Claim, claimed_at: Instant, room: OwnedSemaphorePermit, way: Way) {
        let bench = Arc::clone(self);
        let span = bench.span(&claim);
        let slot = claim.line.map(|line| (line, claim.delivery));
        let work = async move {
            bench.in_flight.increment(1.0);
            let event = attempt(&bench.desk, claim, claimed_at).await;
            bench.in_flight.decrement(1.0);
            if let Some((line, delivery)) =
                slot.filter(|_| event.attempt.is_some() && claimed_at.elapsed() > SLOT_ALLOWANCE)
            {
                bench.move_slot(line, delivery).await;
            }
            drop(room);
            bench.report(event, way).await;
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Gives a claim back unused, so that another worker need not wait for the end of its lease.
    fn give_back(self: &Arc<Self>, claim: &Claim, way: Way) {
        let (bench, span) = (Arc::clone(self), self.span(claim));
        let event = span.in_scope(|| give_back(&self.desk, claim));
        self.tasks.spawn(async move { bench.report(event, way).await }.instrument(span));
    }

    /// Reports how a claim ended, and lets go of what it held once that is certain to be written down.
    async fn report(&self, event: Event, way: Way) {
        let is_written = self.shop.outcomes.record(event).await;
        if is_written {
            faultpoint::pass(faultpoint::AFTER_EVENT);
        }
        match way {
            Way::Broker(tag) if is_written => self.acker.done(tag),
            Way::Broker(_) => {}
            Way::Short(hand) => drop(hand),
        }
    }

    /// The next minute's slots must not come too soon after a message that was heard late.
    async fn move_slot(&self, line: Uuid, delivery: DeliveryId) {
        measures::slot_used_late();
        if let Err(error) = self.shop.store.move_slot(line, delivery).await {
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
            channel = self.desk.route.channel.as_str(),
            provider = tracing::field::Empty,
            attempt = claim.tries.attempts,
            trace.id = trace_id,
        )
    }

    /// Acknowledges what others hold or ended. Whoever holds it may be a worker that died, also where the broker delivers it for
    /// the first time (the relay may have published it once more), so a watch is set for the end of its lease.
    async fn let_go(&self, lost: Vec<Hint>) {
        if lost.is_empty() {
            return;
        }
        let hints: Vec<WorkItem> = lost.iter().map(|hint| hint.work).collect();
        let mut reconnect = Reconnect::new();
        while let Err(error) = self.shop.store.watch(&hints).await {
            if self.wait_out(&error, &mut reconnect).await.is_none() {
                return lost.iter().for_each(|hint| self.acker.requeue(hint.tag));
            }
        }
        self.acker.done_all(lost.iter().map(|hint| hint.tag));
    }
}

fn read(delivery: &Delivery) -> Result<WorkItem, String> {
    if delivery.properties.kind() != Some(WorkItem::TYPE) {
        return Err(format!("its type is not {}", WorkItem::TYPE));
    }
    let hint: WorkItem = serde_json::from_slice(&delivery.body).map_err(|error| error.to_string())?;
    if hint.v == VERSION { Ok(hint) } else { Err(format!("its version is not {VERSION}")) }
}
