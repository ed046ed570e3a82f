//! The types of an acceptance: the messages, deliveries and records that one commit stores.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Address, BulkId, DeliveryId, Lane, MessageId, TenantId, channel::Route};

/// SHA-256 of something.
pub type Hash = [u8; 32];

/// An idempotency key as it is stored.
#[derive(Clone, Debug)]
pub struct Key {
    /// SHA-256 of the key.
    pub key_hash: Hash,
    /// SHA-256 of the request's content. Other content under the same key is refused.
    pub request_hash: Hash,
    /// The answer to repeat.
    pub response: Vec<u8>,
}

/// A delivery to store.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its channel and lane.
    pub route: Route,
    /// The recipient's address. If the person has none, it is empty, and the worker ends the delivery as `no_address`.
    pub recipient: Address,
    /// The line in which it needs a slot before it is sent: that of its WhatsApp session.
    pub line: Option<Uuid>,
    /// Its rank in that line: urgent 3, high 2, normal 1, low 0.
    pub rank: i16,
    /// The kind of a WhatsApp message in statistics: `text`, `image`, …
    pub kind: &'static str,
}

impl NewDelivery {
    /// The line in which it waits first: the one in which it needs a slot, or its tenant's share. The share is always
    /// used on the bulk lane, and on other lanes while the tenant is in `crowding`. Any other delivery goes directly to
    /// the broker.
    pub fn parks_in(&self, tenant: TenantId, crowding: &Crowding) -> Option<Uuid> {
        let in_turn = self.route.lane == Lane::Bulk || crowding.contains(&(tenant, self.route));
        self.line.or_else(|| in_turn.then(|| share(tenant, self.route)))
    }
}

/// Tenants over their fair share of a route. They fill it faster than it empties, so they take turns on it.
pub type Crowding = Arc<HashSet<(TenantId, Route)>>;

/// The tenants with more than `quiet` deliveries of a route in one batch.
pub fn crowding_in(batch: &[Acceptance], quiet: usize) -> Crowding {
    let mut counts: HashMap<(TenantId, Route), usize> = HashMap::new();
    for acceptance in batch {
        for delivery in acceptance.messages.iter().flat_map(|message| &message.deliveries) {
            *counts.entry((acceptance.tenant, delivery.route)).or_default() += 1;
        }
    }
    Arc::new(counts.into_iter().filter(|(_, count)| *count > quiet).map(|(who, _)| who).collect())
}

/// The id of the line for a tenant's share of a route. It is derived from these two alone (a UUIDv8, RFC 9562).
pub fn share(tenant: TenantId, route: Route) -> Uuid {
    let name = format!("{tenant}/{route}");
    let hash = digest(&SHA256, name.as_bytes());
    Uuid::new_v8(hash.as_ref().first_chunk().copied().unwrap_or_default())
}

/// A message to store.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Its id.
    pub id: MessageId,
    /// The person.
    pub user_id: Option<String>,
    /// Its category.
    pub category: Option<String>,
    /// `low`, `normal`, `high`, `urgent`.
    pub priority: &'static str,
    /// The content as JSON; `None`: the content of the bulk.
    pub content: Option<Vec<u8>>,
    /// When to send it, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Its deliveries.
    pub deliveries: Vec<NewDelivery>,
    /// The template that the content was rendered from.
    pub template: Option<String>,
}

/// The bulk of several messages.
#[derive(Clone, Debug)]
pub struct NewBulk {
    /// Its id.
    pub id: BulkId,
    /// The shared content as JSON.
    pub content: Vec<u8>,
    /// The number of recipients that were refused.
    pub refused: i32,
}

/// All that one request submits. It is accepted as a whole or not at all.
#[derive(Clone, Debug)]
pub struct Acceptance {
    /// Its tenant.
    pub tenant: TenantId,
    /// `http` or `amqp`.
    pub source: &'static str,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
    /// The idempotency key, if the producer gave one.
    pub key: Option<Key>,
    /// The bulk, if the request is one.
    pub bulk: Option<NewBulk>,
    /// The messages.
    pub messages: Vec<NewMessage>,
    /// Records written in the same commit, only if the request is new.
    pub beside: Vec<SideRecord>,
    /// The line that must have a free slot for all deliveries right now; otherwise nothing is accepted. Only for an
    /// acceptance with a commit of its own.
    pub room_in: Option<Uuid>,
}

impl Acceptance {
    /// The id of the request as a whole: the id of the bulk, else of the first side record, else of the message.
    pub fn subject(&self) -> Uuid {
        let message = || self.messages.first().map(|message| message.id.0);
        let beside = || self.beside.first().map(SideRecord::id);
        self.bulk.as_ref().map(|bulk| bulk.id.0).or_else(beside).or_else(message).unwrap_or(Uuid::nil())
    }
}

/// Deliveries to claim together with their acceptance, with the duration of their lease in ms.
pub type Leases = HashMap<DeliveryId, i32>;

/// The deliveries that may be sent now: they have no later time and wait in no line.
pub fn at_once<'a>(
    acceptance: &'a Acceptance,
    crowding: &'a Crowding,
) -> impl Iterator<Item = (&'a NewMessage, &'a NewDelivery)> {
    let now = acceptance.messages.iter().filter(|message| message.scheduled_at.is_none());
    let all = now.flat_map(|message| message.deliveries.iter().map(move |delivery| (message, delivery)));
    all.filter(|(_, delivery)| delivery.parks_in(acceptance.tenant, crowding).is_none())
}

/// An event in another system.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its id.
    pub id: Uuid,
    /// Its type.
    pub event_type: String,
    /// The person it is about.
    pub user_id: Option<String>,
    /// Its data as JSON.
    pub data: Vec<u8>,
    /// The ids of the rules that matched.
    pub matched: Vec<Uuid>,
}

/// An event that is collected with others of its rule, person and key.
#[derive(Clone, Debug)]
pub struct NewDigestItem {
    /// The id of the digest, if this item opens a window.
    pub digest: Uuid,
    /// The rule.
    pub rule: Uuid,
    /// The person.
    pub user_id: String,
    /// The key that separates windows: a hash of the grouping key, or empty.
    pub key: String,
    /// The event.
    pub event: Uuid,
    /// Its data as JSON.
    pub data: Vec<u8>,
    /// The event's type.
    pub event_type: String,
    /// When the window opens, if this item opens it.
    pub opened_at: DateTime<Utc>,
    /// When a new window closes; an open window is extended to it.
    pub closes_at: DateTime<Utc>,
    /// The latest time at which it closes.
    pub latest_at: DateTime<Utc>,
    /// The window closes when it has this many items.
    pub max_items: i32,
}

/// A broadcast.
#[derive(Clone, Debug)]
pub struct NewBroadcast {
    /// Its id.
    pub id: Uuid,
    /// The notification and its target, as JSON.
    pub definition: Vec<u8>,
    /// When it starts, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
}

/// A record that an acceptance writes beside its messages.
#[derive(Clone, Debug)]
pub enum SideRecord {
    /// An event in another system.
    Event(NewEvent),
    /// An event for a digest.
    DigestItem(NewDigestItem),
    /// A broadcast.
    Broadcast(NewBroadcast),
}

impl SideRecord {
    /// The id of the record; it identifies the whole request if the record is the first one.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Event(event) => event.id,
            Self::DigestItem(item) => item.event,
            Self::Broadcast(broadcast) => broadcast.id,
        }
    }
}
