//! Sends events to webhook configurations: each event becomes an ordinary durable webhook delivery.
//!
//! Each event is accepted under an idempotency key derived from it, and marked as sent only afterwards. So it is sent
//! once, even after a crash. Events of a configuration that is switched off are held, see `docs/adr/0010`.

use std::{collections::HashMap, time::Duration};

use deliveries::{
    Deliveries,
    accept::Accepted,
    poll::WorkKind,
    release::CROWD_MAX,
    webhook_events::{PendingWebhook, Swept, is_received},
};
use domain::acceptance::{Leases, crowding_in};
use engine::dispatch::Dispatcher;
use metrics::counter;
use records::{Records, wa_inbound::Inbound};
use runtime::metric;
use store::Store;
use uuid::Uuid;

use crate::task::{Report, Task, TaskError, count_of};

/// Events sent in one turn.
const LIMIT: i64 = 200;
/// Events of a configuration checked in one turn.
const HOLD_LIMIT: i64 = 2000;
/// Rows deleted in one turn.
const PRUNE_LIMIT: i64 = 5000;

/// The task that sends events.
pub struct WebhookEvents {
    store: Store,
    dispatcher: Dispatcher,
    relay_after_ms: i32,
}

impl WebhookEvents {
    /// Accepts deliveries in `store`, and publishes them with `dispatcher`.
    pub const fn new(store: Store, dispatcher: Dispatcher, relay_after_ms: i32) -> Self {
        Self { store, dispatcher, relay_after_ms }
    }

    /// The inbound messages that these events refer to, if they still exist.
    async fn inbound(&self, events: &[PendingWebhook]) -> Result<HashMap<Uuid, Inbound>, TaskError> {
        let ids: Vec<Uuid> =
            events.iter().filter(|event| is_received(&event.event)).filter_map(|event| event.subject).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.store.whatsapp_inbound().messages(ids).await?;
        Ok(found.into_iter().map(|message| (message.id, message)).collect())
    }
}

impl Task for WebhookEvents {
    const NAME: &'static str = "webhook_events";
    const PERIOD: Duration = Duration::from_millis(250);
    const WORK: Option<WorkKind> = Some(WorkKind::WebhookEvents);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let received = self.store.webhook_events().enqueue_received(LIMIT).await?;
        let events = self.store.webhook_events().pending(LIMIT).await?;
        let more = received >= LIMIT || i64::try_from(events.len()).is_ok_and(|count| count >= LIMIT);
        if events.is_empty() {
            return Ok(if more { Report::More } else { Report::Done });
        }
        let inbound = self.inbound(&events).await?;
        let (mut sent, mut dropped, mut ids, mut batch) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for event in &events {
            let message = event.subject.and_then(|subject| inbound.get(&subject));
            let is_lost = is_received(&event.event) && message.is_none();
            match &event.url {
                Some(_) if event.is_echo || is_lost => dropped.push(event.id),
                Some(_) if !event.is_active => sent.push((event.id, None)),
                Some(url) => {
                    let (acceptance, delivery) = event.acceptance(url, message);
                    ids.push((event.id, delivery));
                    batch.push(acceptance);
                }
                None => dropped.push(event.id),
            }
        }
        if !batch.is_empty() {
            let crowding = crowding_in(&batch, CROWD_MAX);
            let stored =
                self.store.acceptance().accept(&batch, self.relay_after_ms, &crowding, &Leases::default()).await?;
            stored.dispatch.into_iter().for_each(|dispatch| self.dispatcher.post(dispatch));
            for ((id, delivery), accepted) in ids.into_iter().zip(stored.results) {
                sent.extend(accepted_delivery(accepted, delivery.0).map(|delivery_id| (id, Some(delivery_id))));
            }
        }
        counter!(metric::WEBHOOK_EVENTS).increment(count_of(sent.len()));
        if !sent.is_empty() {
            self.store.webhook_events().mark_sent(sent).await?;
        }
        if !dropped.is_empty() {
            self.store.webhook_events().discard(dropped).await?;
        }
        Ok(if more { Report::More } else { Report::Done })
    }
}

/// The delivery that carries the event. If an earlier run accepted it before a crash, that is the id in the stored
/// response. `None`: the stored response cannot be read, so the event stays pending.
fn accepted_delivery(accepted: Accepted, ours: Uuid) -> Option<Uuid> {
    match accepted {
        Accepted::Replayed(first) => Some(Uuid::from_slice(&first).unwrap_or(ours)),
        Accepted::New | Accepted::KeyTaken | Accepted::NoRoom { .. } => Some(ours),
        Accepted::Unanswered => None,
    }
}

/// The task that takes back pending events of configurations that were switched off.
pub struct WebhookHolds {
    store: Store,
    swept: Swept,
}

impl WebhookHolds {
    /// Starts without any swept configuration.
    pub fn new(store: Store) -> Self {
        Self { store, swept: Swept::new() }
    }
}

impl Task for WebhookHolds {
    const NAME: &'static str = "webhook_holds";
    const PERIOD: Duration = Duration::from_secs(1);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let more = self.store.webhook_events().hold_back(HOLD_LIMIT, &mut self.swept).await?;
        Ok(if more { Report::More } else { Report::Done })
    }
}

/// The task that deletes old events and logs.
pub struct WebhookPruning {
    /// The database.
    pub store: Store,
    /// The days that they are kept.
    pub days: i32,
}

impl Task for WebhookPruning {
    const NAME: &'static str = "webhook_forgets";
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let forgotten = self.store.webhook_events().prune(self.days, PRUNE_LIMIT).await?;
        Ok(if i64::try_from(forgotten).is_ok_and(|rows| rows >= PRUNE_LIMIT) { Report::More } else { Report::Done })
    }
}
