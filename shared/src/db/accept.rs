//! Acceptance: one statement, one commit, for many submissions: idempotency key + message + deliveries + outbox row.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use uuid::Uuid;

use super::{
    DbResult, Statement, Store,
    beside::Beside,
    claim::Claim,
    lines::room,
    outbox::{Dispatch, DispatchItem},
    statement,
};
use crate::{
    domain::{Address, BulkId, DeliveryId, Lane, MessageId, State, TenantId, channel::Route, phone::country_prefix},
    seal::{SealError, Sealer},
};

/// SHA-256 of something.
pub type Hash = [u8; 32];

/// An idempotency key as it is stored.
#[derive(Clone, Debug)]
pub struct Key {
    /// SHA-256 of the key.
    pub key_hash: Hash,
    /// SHA-256 of what the request asks for: another one under the same key is refused.
    pub request_hash: Hash,
    /// The answer to give again.
    pub response: Vec<u8>,
}

/// A delivery to store.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its channel and lane.
    pub route: Route,
    /// To whom; empty: the person has no such address, and the worker ends it with that.
    pub recipient: Address,
    /// The line in which it must get a slot before it is sent: its WhatsApp session.
    pub line: Option<Uuid>,
    /// Its place in that line: urgent 3, high 2, normal 1, low 0.
    pub rank: i16,
    /// How a WhatsApp message reads in statistics: `text`, `image`, …
    pub kind: &'static str,
}

impl NewDelivery {
    /// The line it waits in from the start: the one it needs a slot of, or its tenant's share where tenants take turns:
    /// always on the bulk lane, elsewhere while the tenant is crowding. Anything else goes straight to the broker.
    fn parks_in(&self, tenant: TenantId, crowding: &Crowding) -> Option<Uuid> {
        let in_turn = self.route.lane == Lane::Bulk || crowding.contains(&(tenant, self.route));
        self.line.or_else(|| in_turn.then(|| share(tenant, self.route)))
    }
}

/// Tenants that fill a route faster than it empties, and must take turns on it.
pub type Crowding = Arc<HashSet<(TenantId, Route)>>;

/// The line of a tenant's share in a route: an id made of nothing else (a UUIDv8, RFC 9562).
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
    /// What it is about.
    pub category: Option<String>,
    /// `low`, `normal`, `high`, `urgent`.
    pub priority: &'static str,
    /// The content as JSON; `None`: the bulk's.
    pub content: Option<Vec<u8>>,
    /// When to send it, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it is no longer worth sending.
    pub expires_at: Option<DateTime<Utc>>,
    /// To whom and how.
    pub deliveries: Vec<NewDelivery>,
    /// The template its content was rendered from.
    pub template: Option<String>,
}

/// The bulk that messages belong to.
#[derive(Clone, Debug)]
pub struct NewBulk {
    /// Its id.
    pub id: BulkId,
    /// The shared content as JSON.
    pub content: Vec<u8>,
    /// Recipients that were refused.
    pub refused: i32,
}

/// Everything one request asks to be accepted, all or nothing.
#[derive(Clone, Debug)]
pub struct Acceptance {
    /// Whose it is.
    pub tenant: TenantId,
    /// `http` or `amqp`.
    pub source: &'static str,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
    /// The idempotency key, if the producer gave one.
    pub key: Option<Key>,
    /// The bulk, if it is one.
    pub bulk: Option<NewBulk>,
    /// The messages.
    pub messages: Vec<NewMessage>,
    /// What is written in the same commit, and only if the request is new.
    pub beside: Vec<Beside>,
    /// The line in which all of it must find room right now, or nothing is accepted. Only for an acceptance of its own commit.
    pub room_in: Option<Uuid>,
}

impl Acceptance {
    /// The id that stands for the request as a whole: the bulk's, else that of what stands beside, else the message's.
    fn subject(&self) -> Uuid {
        let message = || self.messages.first().map(|message| message.id.0);
        let beside = || self.beside.first().map(Beside::id);
        self.bulk.as_ref().map(|bulk| bulk.id.0).or_else(beside).or_else(message).unwrap_or(Uuid::nil())
    }
}

/// Deliveries to be claimed as they are accepted, with the time their claim lasts in ms.
pub type Leases = HashMap<DeliveryId, i32>;

/// What a commit of acceptances came to.
#[derive(Debug)]
pub struct Stored {
    /// One for each acceptance, in order.
    pub results: Vec<Accepted>,
    /// What to publish now.
    pub dispatch: Option<Dispatch>,
    /// What was claimed with its acceptance. Nobody has looked yet what stands against sending it ([`Store::look`]).
    pub claims: Vec<Claim>,
}

/// What became of one acceptance.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// Stored.
    New,
    /// The same request was accepted before: its answer.
    Replayed(Vec<u8>),
    /// The key was used for another request.
    KeyTaken,
    /// Its line has no room; nothing was stored.
    NoRoom {
        /// Seconds until the line's next slot.
        seconds: f64,
    },
}

/// The outbox row to publish, the subjects whose key was free, the moment of acceptance.
type Row = (Option<i64>, Vec<Uuid>, DateTime<Utc>);
type SqlRow = (Nullable<Int8>, Array<SqlUuid>, Timestamptz);

/// Tenant, key hash, request hash, response.
type StoredAnswer = (i32, Vec<u8>, Vec<u8>, Vec<u8>);

impl Store {
    /// Stores all of `batch` in one commit.
    ///
    /// `crowding`: who takes turns; `relay_after_ms`: when the relay may take the outbox row over, should we die before publishing
    /// it; `leases`: what is claimed in the same commit, all of it [`at_once`] and with a content of its own.
    pub async fn accept(
        &self,
        batch: &[Acceptance],
        relay_after_ms: i32,
        crowding: &Crowding,
        leases: &Leases,
    ) -> DbResult<Stored> {
        let columns = Columns::of(batch, crowding, leases, self.sealer())?;
        let statement = columns.bind(relay_after_ms);
        let stands_alone = |acceptance: &Acceptance| acceptance.beside.is_empty() && acceptance.room_in.is_none();
        let (outbox_id, won, accepted_at) = if batch.iter().all(stands_alone) {
            statement.row(self).await?
        } else {
            match self.accept_with(statement, batch).await? {
                Ok(row) => row,
                Err(seconds) => {
                    let results = vec![Accepted::NoRoom { seconds }; batch.len()];
                    return Ok(Stored { results, dispatch: None, claims: Vec::new() });
                }
            }
        };
        let is_new = |acceptance: &Acceptance| is_new(acceptance, &won);
        let results = if batch.iter().all(is_new) {
            vec![Accepted::New; batch.len()]
        } else {
            self.answers(batch, is_new).await?
        };
        let (mut items, mut claims) = (Vec::new(), Vec::new());
        for acceptance in batch.iter().filter(|acceptance| is_new(acceptance)) {
            for (message, delivery) in at_once(acceptance, crowding) {
                match leases.contains_key(&delivery.id) {
                    true => claims.push(Claim::with_acceptance(acceptance, message, delivery, accepted_at)),
                    false => items.push(item(delivery)),
                }
            }
        }
        Ok(Stored { results, dispatch: outbox_id.map(|outbox_id| Dispatch { outbox_id, items }), claims })
    }

    /// The same in a transaction with what stands beside; undone, with the seconds to wait, where a line has no room.
    async fn accept_with(&self, statement: Statement<SqlRow>, batch: &[Acceptance]) -> DbResult<Result<Row, f64>> {
        let mut conn = self.transaction().await?;
        let stored = async {
            let (outbox_id, won, at): Row = diesel_async::RunQueryDsl::get_result(statement, &mut *conn).await?;
            let new = batch.iter().filter(|acceptance| is_new(acceptance, &won));
            let beside: Vec<(TenantId, &Beside)> =
                new.flat_map(|acceptance| acceptance.beside.iter().map(|beside| (acceptance.tenant, beside))).collect();
            self.write_beside(&mut conn, &beside).await?;
            // What was parked a moment ago counts already, and its line stays locked until the end.
            for line in batch.iter().filter(|acceptance| is_new(acceptance, &won)).filter_map(|one| one.room_in) {
                let rooms: Vec<(i32, f64)> = diesel_async::RunQueryDsl::load(room(line), &mut *conn).await?;
                if let Some((_, seconds)) = rooms.into_iter().find(|(room, _)| *room < 0) {
                    return Ok(Err(seconds));
                }
            }
            Ok(Ok((outbox_id, won, at)))
        };
        match stored.await {
            Ok(Err(seconds)) => {
                conn.undo().await?;
                Ok(Err(seconds))
            }
            stored => conn.finish(stored).await,
        }
    }

    /// Stores all of `batch`, none of which has a key, within a transaction that does more. Returns what to publish once it
    /// is committed.
    pub(super) async fn accept_on(
        &self,
        conn: &mut AsyncPgConnection,
        batch: &[Acceptance],
        relay_after_ms: i32,
    ) -> DbResult<Option<Dispatch>> {
        let crowding = Crowding::default();
        let statement = Columns::of(batch, &crowding, &Leases::new(), self.sealer())?.bind(relay_after_ms);
        let (outbox_id, ..): Row = diesel_async::RunQueryDsl::get_result(statement, conn).await?;
        let items = batch.iter().flat_map(|acceptance| at_once(acceptance, &crowding)).map(|(_, d)| item(d)).collect();
        Ok(outbox_id.map(|outbox_id| Dispatch { outbox_id, items }))
    }

    /// The stored answers for the acceptances whose key was taken.
    async fn answers(&self, batch: &[Acceptance], is_new: impl Fn(&Acceptance) -> bool) -> DbResult<Vec<Accepted>> {
        let keyed = || batch.iter().filter(|a| !is_new(a)).filter_map(|a| a.key.as_ref().map(|key| (a.tenant, key)));
        let query = statement::<(Int4, Binary, Binary, Binary)>(SELECT_ANSWERS)
            .bind::<Array<Int4>, _>(keyed().map(|(tenant, _)| tenant.0).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(keyed().map(|(_, key)| key.key_hash.to_vec()).collect::<Vec<_>>());
        let stored: Vec<StoredAnswer> = query.rows(self).await?;
        let answer = |acceptance: &Acceptance| {
            let Some(key) = acceptance.key.as_ref().filter(|_| !is_new(acceptance)) else { return Ok(Accepted::New) };
            let same = stored
                .iter()
                .find(|(tenant, key_hash, ..)| *tenant == acceptance.tenant.0 && key_hash == &key.key_hash)
                .filter(|(_, _, request_hash, _)| request_hash == &key.request_hash);
            let Some((.., response)) = same else { return Ok(Accepted::KeyTaken) };
            Ok(Accepted::Replayed(self.sealer().open(response.clone())?))
        };
        batch.iter().map(answer).collect()
    }

    /// The answer that was given under a key before, if there was one: for requests that could not be accepted anew.
    pub async fn answered(&self, tenant: TenantId, key_hash: &Hash, request_hash: &Hash) -> DbResult<Option<Vec<u8>>> {
        let query = statement::<(Int4, Binary, Binary, Binary)>(SELECT_ANSWERS)
            .bind::<Array<Int4>, _>(vec![tenant.0])
            .bind::<Array<Binary>, _>(vec![key_hash.to_vec()])
            .within(Some(tenant));
        let stored: Vec<StoredAnswer> = query.rows(self).await?;
        let same = stored.into_iter().find(|(_, _, request, _)| request.as_slice() == request_hash);
        Ok(same.map(|(.., response)| self.sealer().open(response)).transpose()?)
    }

    /// Forgets idempotency keys older than `hours`, at most `limit` of them; says how many.
    pub async fn forget_keys(&self, hours: i32, limit: i64) -> DbResult<usize> {
        let query = statement::<()>(FORGET_KEYS).bind::<Int4, _>(hours).bind::<Int8, _>(limit);
        query.run(self).await
    }
}

fn is_new(acceptance: &Acceptance, won: &[Uuid]) -> bool {
    acceptance.key.is_none() || won.contains(&acceptance.subject())
}

/// The deliveries that may be sent now: they wait for no moment, and in no line.
pub fn at_once<'a>(
    acceptance: &'a Acceptance,
    crowding: &'a Crowding,
) -> impl Iterator<Item = (&'a NewMessage, &'a NewDelivery)> {
    let now = acceptance.messages.iter().filter(|message| message.scheduled_at.is_none());
    let all = now.flat_map(|message| message.deliveries.iter().map(move |delivery| (message, delivery)));
    all.filter(|(_, delivery)| delivery.parks_in(acceptance.tenant, crowding).is_none())
}

const fn item(delivery: &NewDelivery) -> DispatchItem {
    DispatchItem { delivery: delivery.id, run: 0, route: delivery.route }
}

/// The batch turned on its side: one array per column, so that the statement's text never changes.
#[derive(Default)]
struct Columns {
    keys: KeyColumns,
    bulks: BulkColumns,
    messages: MessageColumns,
    deliveries: DeliveryColumns,
}

#[derive(Default)]
struct KeyColumns {
    tenant: Vec<i32>,
    key_hash: Vec<Vec<u8>>,
    request_hash: Vec<Vec<u8>>,
    subject: Vec<Uuid>,
    response: Vec<Vec<u8>>,
}

#[derive(Default)]
struct BulkColumns {
    id: Vec<Uuid>,
    tenant: Vec<i32>,
    content: Vec<Vec<u8>>,
    refused: Vec<i32>,
}

#[derive(Default)]
struct MessageColumns {
    keyed_subject: Vec<Option<Uuid>>,
    id: Vec<Uuid>,
    tenant: Vec<i32>,
    bulk: Vec<Option<Uuid>>,
    user_id: Vec<Option<String>>,
    category: Vec<Option<String>>,
    priority: Vec<&'static str>,
    content: Vec<Option<Vec<u8>>>,
    source: Vec<&'static str>,
    request_id: Vec<Option<String>>,
    traceparent: Vec<Option<String>>,
    scheduled_at: Vec<Option<DateTime<Utc>>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
}

#[derive(Default)]
struct DeliveryColumns {
    keyed_subject: Vec<Option<Uuid>>,
    id: Vec<Uuid>,
    message: Vec<Uuid>,
    tenant: Vec<i32>,
    channel: Vec<&'static str>,
    lane: Vec<&'static str>,
    recipient: Vec<String>,
    recipient_hash: Vec<Option<Vec<u8>>>,
    category: Vec<Option<String>>,
    template: Vec<Option<String>>,
    state: Vec<&'static str>,
    due_at: Vec<Option<DateTime<Utc>>>,
    lease_ms: Vec<Option<i32>>,
    line: Vec<Option<Uuid>>,
    rank: Vec<i16>,
    park: Vec<Option<Uuid>>,
    kind: Vec<Option<&'static str>>,
    country: Vec<Option<String>>,
}

impl Columns {
    fn of(batch: &[Acceptance], crowding: &Crowding, leases: &Leases, sealer: &Sealer) -> Result<Self, SealError> {
        let mut columns = Self::default();
        // Overlapping batches that wait for each other's keys must take them in one order.
        let mut keyed: Vec<_> = batch.iter().filter_map(|a| a.key.as_ref().map(|key| (a, key))).collect();
        keyed.sort_by_key(|(acceptance, key)| (acceptance.tenant, key.key_hash));
        for (acceptance, key) in keyed {
            columns.keys.push(acceptance, key, sealer)?;
        }
        for acceptance in batch {
            columns.push(acceptance, crowding, leases, sealer)?;
        }
        Ok(columns)
    }

    fn push(
        &mut self,
        acceptance: &Acceptance,
        crowding: &Crowding,
        leases: &Leases,
        sealer: &Sealer,
    ) -> Result<(), SealError> {
        let keyed_subject = acceptance.key.is_some().then(|| acceptance.subject());
        if let Some(bulk) = &acceptance.bulk {
            self.bulks.push(acceptance.tenant, bulk, sealer)?;
        }
        for message in &acceptance.messages {
            self.messages.push(acceptance, keyed_subject, message, sealer)?;
            for delivery in &message.deliveries {
                let lease_ms = leases.get(&delivery.id).copied();
                self.deliveries.push(acceptance.tenant, keyed_subject, message, delivery, lease_ms, sealer)?;
                self.deliveries.park.push(delivery.parks_in(acceptance.tenant, crowding));
            }
        }
        Ok(())
    }

    fn bind(self, relay_after_ms: i32) -> Statement<SqlRow> {
        let waits = self.deliveries.park.iter().any(Option::is_some);
        if !waits && self.is_plain() {
            return self.bind_plain(relay_after_ms);
        }
        let Self { keys, bulks, messages, deliveries } = self;
        let statement = statement(if waits { ACCEPT_AND_PARK } else { ACCEPT })
            .near(messages.id.iter().chain(&deliveries.id))
            .bind::<Array<Int4>, _>(keys.tenant)
            .bind::<Array<Binary>, _>(keys.key_hash)
            .bind::<Array<Binary>, _>(keys.request_hash)
            .bind::<Array<SqlUuid>, _>(keys.subject)
            .bind::<Array<Binary>, _>(keys.response)
            .bind::<Array<SqlUuid>, _>(bulks.id)
            .bind::<Array<Int4>, _>(bulks.tenant)
            .bind::<Array<Binary>, _>(bulks.content)
            .bind::<Array<Int4>, _>(bulks.refused)
            .bind::<Array<Nullable<SqlUuid>>, _>(messages.keyed_subject)
            .bind::<Array<SqlUuid>, _>(messages.id)
            .bind::<Array<Int4>, _>(messages.tenant)
            .bind::<Array<Nullable<SqlUuid>>, _>(messages.bulk)
            .bind::<Array<Nullable<Text>>, _>(messages.user_id)
            .bind::<Array<Nullable<Text>>, _>(messages.category)
            .bind::<Array<Text>, _>(messages.priority)
            .bind::<Array<Nullable<Binary>>, _>(messages.content)
            .bind::<Array<Text>, _>(messages.source)
            .bind::<Array<Nullable<Text>>, _>(messages.request_id)
            .bind::<Array<Nullable<Text>>, _>(messages.traceparent)
            .bind::<Array<Nullable<Timestamptz>>, _>(messages.scheduled_at)
            .bind::<Array<Nullable<Timestamptz>>, _>(messages.expires_at)
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.keyed_subject)
            .bind::<Array<SqlUuid>, _>(deliveries.id)
            .bind::<Array<SqlUuid>, _>(deliveries.message)
            .bind::<Array<Int4>, _>(deliveries.tenant)
            .bind::<Array<Text>, _>(deliveries.channel)
            .bind::<Array<Text>, _>(deliveries.lane)
            .bind::<Array<Text>, _>(deliveries.recipient)
            .bind::<Array<Nullable<Binary>>, _>(deliveries.recipient_hash)
            .bind::<Array<Nullable<Text>>, _>(deliveries.category)
            .bind::<Array<Nullable<Text>>, _>(deliveries.template)
            .bind::<Array<Text>, _>(deliveries.state)
            .bind::<Array<Nullable<Timestamptz>>, _>(deliveries.due_at)
            .bind::<Array<Nullable<Int4>>, _>(deliveries.lease_ms);
        if !waits {
            return statement.bind::<Int4, _>(relay_after_ms);
        }
        statement
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.line)
            .bind::<Array<Int2>, _>(deliveries.rank)
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.park)
            .bind::<Array<Nullable<Text>>, _>(deliveries.kind)
            .bind::<Array<Nullable<Text>>, _>(deliveries.country)
            .bind::<Int4, _>(relay_after_ms)
    }

    /// Nothing but messages of their own, to be sent now: by far most batches.
    fn is_plain(&self) -> bool {
        self.keys.tenant.is_empty()
            && self.bulks.id.is_empty()
            && self.messages.scheduled_at.iter().all(Option::is_none)
    }

    fn bind_plain(self, relay_after_ms: i32) -> Statement<SqlRow> {
        let Self { messages, deliveries, .. } = self;
        statement(ACCEPT_PLAIN)
            .near(messages.id.iter().chain(&deliveries.id))
            .bind::<Array<SqlUuid>, _>(messages.id)
            .bind::<Array<Int4>, _>(messages.tenant)
            .bind::<Array<Nullable<Text>>, _>(messages.user_id)
            .bind::<Array<Nullable<Text>>, _>(messages.category)
            .bind::<Array<Text>, _>(messages.priority)
            .bind::<Array<Nullable<Binary>>, _>(messages.content)
            .bind::<Array<Text>, _>(messages.source)
            .bind::<Array<Nullable<Text>>, _>(messages.request_id)
            .bind::<Array<Nullable<Text>>, _>(messages.traceparent)
            .bind::<Array<Nullable<Timestamptz>>, _>(messages.expires_at)
            .bind::<Array<SqlUuid>, _>(deliveries.id)
            .bind::<Array<SqlUuid>, _>(deliveries.message)
            .bind::<Array<Int4>, _>(deliveries.tenant)
            .bind::<Array<Text>, _>(deliveries.channel)
            .bind::<Array<Text>, _>(deliveries.lane)
            .bind::<Array<Text>, _>(deliveries.recipient)
            .bind::<Array<Nullable<Binary>>, _>(deliveries.recipient_hash)
            .bind::<Array<Nullable<Text>>, _>(deliveries.category)
            .bind::<Array<Nullable<Text>>, _>(deliveries.template)
            .bind::<Array<Text>, _>(deliveries.state)
            .bind::<Array<Nullable<Int4>>, _>(deliveries.lease_ms)
            .bind::<Int4, _>(relay_after_ms)
    }
}

impl KeyColumns {
    fn push(&mut self, acceptance: &Acceptance, key: &Key, sealer: &Sealer) -> Result<(), SealError> {
        self.tenant.push(acceptance.tenant.0);
        self.key_hash.push(key.key_hash.to_vec());
        self.request_hash.push(key.request_hash.to_vec());
        self.subject.push(acceptance.subject());
        self.response.push(sealer.seal(&key.response)?);
        Ok(())
    }
}

impl BulkColumns {
    fn push(&mut self, tenant: TenantId, bulk: &NewBulk, sealer: &Sealer) -> Result<(), SealError> {
        self.id.push(bulk.id.0);
        self.tenant.push(tenant.0);
        self.content.push(sealer.seal(&bulk.content)?);
        self.refused.push(bulk.refused);
        Ok(())
    }
}

impl MessageColumns {
    fn push(
        &mut self,
        acceptance: &Acceptance,
        keyed_subject: Option<Uuid>,
        message: &NewMessage,
        sealer: &Sealer,
    ) -> Result<(), SealError> {
        self.keyed_subject.push(keyed_subject);
        self.id.push(message.id.0);
        self.tenant.push(acceptance.tenant.0);
        self.bulk.push(acceptance.bulk.as_ref().map(|bulk| bulk.id.0));
        self.user_id.push(message.user_id.clone());
        self.category.push(message.category.clone());
        self.priority.push(message.priority);
        self.content.push(message.content.as_ref().map(|content| sealer.seal(content)).transpose()?);
        self.source.push(acceptance.source);
        self.request_id.push(acceptance.request_id.clone());
        self.traceparent.push(acceptance.traceparent.clone());
        self.scheduled_at.push(message.scheduled_at);
        self.expires_at.push(message.expires_at);
        Ok(())
    }
}

impl DeliveryColumns {
    fn push(
        &mut self,
        tenant: TenantId,
        keyed_subject: Option<Uuid>,
        message: &NewMessage,
        delivery: &NewDelivery,
        lease_ms: Option<i32>,
        sealer: &Sealer,
    ) -> Result<(), SealError> {
        let state = match (message.scheduled_at, lease_ms) {
            (Some(_), _) => State::Scheduled,
            (None, Some(_)) => State::Sending,
            (None, None) => State::Queued,
        };
        self.keyed_subject.push(keyed_subject);
        self.id.push(delivery.id.0);
        self.message.push(message.id.0);
        self.tenant.push(tenant.0);
        self.channel.push(delivery.route.channel.as_str());
        self.lane.push(delivery.route.lane.as_str());
        let recipient = delivery.recipient.reveal();
        let hash = || sealer.fingerprint(&tenant.to_string(), recipient).to_vec();
        self.recipient.push(sealer.seal_text(recipient)?);
        self.recipient_hash.push((sealer.is_on() && !recipient.is_empty()).then(hash));
        self.category.push(message.category.clone());
        self.template.push(message.template.clone());
        self.state.push(state.as_str());
        self.due_at.push(message.scheduled_at);
        self.lease_ms.push(lease_ms);
        self.line.push(delivery.line);
        self.rank.push(delivery.rank);
        self.kind.push(delivery.line.map(|_| delivery.kind));
        let country = delivery.line.and_then(|_| country_prefix(recipient));
        self.country.push(country.map(str::to_owned));
        Ok(())
    }
}

/// Keys first: a row of ours in `won` means the request is new. A key that another transaction is inserting makes us wait
/// for its commit, so nobody ever sees a key "in flight". What is claimed at once has an outbox row of its own, which counts as published:
/// no queue has to hear of it, and the audit looks at it when its lease is over. `$columns`, `$types` and `$parking` are what lines add.
macro_rules! accept {
    ($columns:literal, $types:literal, $at_once:literal, $stored:literal, $parking:literal) => {
        concat!(
            "
WITH won AS (
    INSERT INTO idempotency_keys (tenant_id, key_hash, request_hash, subject, response)
    SELECT * FROM unnest(?::int4[], ?::bytea[], ?::bytea[], ?::uuid[], ?::bytea[])
    ON CONFLICT DO NOTHING RETURNING subject
), won_ids AS MATERIALIZED (SELECT coalesce(array_agg(subject), '{}') AS ids FROM won
), new_bulks AS (
    INSERT INTO bulks (id, tenant_id, content, refused)
    SELECT * FROM unnest(?::uuid[], ?::int4[], ?::bytea[], ?::int4[])
    ON CONFLICT DO NOTHING
), new_messages AS (
    INSERT INTO messages@ (id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at, expires_at)
    SELECT id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at, expires_at
    FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::uuid[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[],
                ?::timestamptz[], ?::timestamptz[])
        AS m(keyed_subject, id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at, expires_at)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
), fresh AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::uuid[], ?::int4[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[],
                         ?::timestamptz[], ?::int4[]",
            $types,
            ") AS d(keyed_subject, id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, due_at,
                    lease_ms",
            $columns,
            ")
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
), new_deliveries AS (
    INSERT INTO deliveries@ (id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, run, attempts,
                             lease_until",
            $stored,
            ")
    SELECT id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state,
           (lease_ms IS NOT NULL)::int, (lease_ms IS NOT NULL)::int, clock_timestamp() + lease_ms * interval '1 millisecond'",
            $stored,
            " FROM fresh
), new_due AS (
    INSERT INTO due (delivery_id, due_at, run, why) SELECT id, due_at, 0, 'scheduled' FROM fresh WHERE due_at IS NOT NULL",
            $parking,
            "
), new_outbox AS (
    INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
    SELECT now() + coalesce(max(lease_ms), ?) * interval '1 millisecond', CASE WHEN bool_and(lease_ms IS NOT NULL) THEN now() END,
           array_agg(id), array_agg(0), array_agg(channel || '.' || lane)
    FROM fresh WHERE due_at IS NULL",
            $at_once,
            " GROUP BY lease_ms IS NULL
    RETURNING id, published_at
)
SELECT (SELECT id FROM new_outbox WHERE published_at IS NULL), (SELECT ids FROM won_ids), now()"
        )
    };
}

const ACCEPT: &str = accept!("", "", "", "", "");

/// The same where something waits in a line. A session's line is there; a tenant's share is made when it is first needed.
const ACCEPT_AND_PARK: &str = accept!(
    ", line, rank, park, kind, country",
    ", ?::uuid[], ?::int2[], ?::uuid[], ?::text[], ?::text[]",
    " AND park IS NULL",
    ", line, rank, kind, country",
    "
), new_shares AS (
    INSERT INTO lines (id, tenant_id, kind, route)
    SELECT DISTINCT park, tenant_id, 'share', channel || '.' || lane FROM fresh WHERE park IS NOT NULL AND line IS NULL ORDER BY 1
    ON CONFLICT DO NOTHING
), new_parked AS (
    INSERT INTO parked (delivery_id, line, run, rank) SELECT id, park, 0, rank FROM fresh WHERE park IS NOT NULL AND due_at IS NULL"
);

/// [`ACCEPT`] without what plain batches do not have: a quarter of its cost.
const ACCEPT_PLAIN: &str = "
WITH new_messages AS (
    INSERT INTO messages@ (id, tenant_id, user_id, category, priority, content, source, request_id, traceparent, expires_at)
    SELECT * FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::timestamptz[])
), fresh AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::int4[])
        AS d(id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, lease_ms)
), new_deliveries AS (
    INSERT INTO deliveries@ (id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, run, attempts,
                             lease_until)
    SELECT id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state,
           (lease_ms IS NOT NULL)::int, (lease_ms IS NOT NULL)::int, clock_timestamp() + lease_ms * interval '1 millisecond'
    FROM fresh
), new_outbox AS (
    INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
    SELECT now() + coalesce(max(lease_ms), ?) * interval '1 millisecond', CASE WHEN bool_and(lease_ms IS NOT NULL) THEN now() END,
           array_agg(id), array_agg(0), array_agg(channel || '.' || lane)
    FROM fresh GROUP BY lease_ms IS NULL
    RETURNING id, published_at
)
SELECT (SELECT id FROM new_outbox WHERE published_at IS NULL), '{}'::uuid[], now()";

const SELECT_ANSWERS: &str = "
SELECT k.tenant_id, k.key_hash, k.request_hash, k.response
FROM unnest(?::int4[], ?::bytea[]) AS asked(tenant_id, key_hash)
JOIN idempotency_keys k ON k.tenant_id = asked.tenant_id AND k.key_hash = asked.key_hash";

const FORGET_KEYS: &str = "
DELETE FROM idempotency_keys WHERE (tenant_id, key_hash) IN (
    SELECT tenant_id, key_hash FROM idempotency_keys WHERE created_at < now() - ? * interval '1 hour' LIMIT ? FOR UPDATE SKIP LOCKED)";
