//! The acceptance statement and its binds.

use std::mem::take;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    State, TenantId,
    acceptance::{Acceptance, Crowding, Key, Leases, NewBulk, NewDelivery, NewMessage},
    phone::country_prefix,
    seal::{SealError, Sealer},
};
use uuid::Uuid;

use crate::{Statement, sealed, statement};

/// The outbox row to publish, the subjects whose key was free, the moment of acceptance.
pub(super) type Row = (Option<i64>, Vec<Uuid>, DateTime<Utc>);
pub(super) type SqlRow = (Nullable<Int8>, Array<SqlUuid>, Timestamptz);

/// The batch as columns: one array per column, so that the statement's text never changes.
#[derive(Default)]
pub(super) struct Columns {
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
    keyed_subject: Vec<Option<Uuid>>,
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
    expires_at: Vec<Option<DateTime<Utc>>>,
}

impl Columns {
    /// The columns of `batch`; deliveries in `leases` are claimed at once.
    pub(super) fn of(
        batch: &[Acceptance],
        crowding: &Crowding,
        leases: &Leases,
        sealer: &Sealer,
    ) -> Result<Self, SealError> {
        let mut columns = Self::default();
        // Batches with common keys wait for each other, so every batch takes its keys in the same order.
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
            self.bulks.push(acceptance.tenant, keyed_subject, bulk, sealer)?;
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

    /// Whether any delivery waits in a line.
    pub(super) fn parks(&self) -> bool {
        self.deliveries.park.iter().any(Option::is_some)
    }

    /// The statement that stores the columns.
    pub(super) fn bind(self, relay_after_ms: i32) -> Statement<SqlRow> {
        let waits = self.parks();
        if !waits && self.is_plain() {
            return self.bind_plain(relay_after_ms);
        }
        let Self { keys, bulks, mut messages, mut deliveries } = self;
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
            .bind::<Array<Nullable<SqlUuid>>, _>(bulks.keyed_subject);
        let statement = messages
            .bind(statement)
            .bind::<Array<Nullable<SqlUuid>>, _>(messages.keyed_subject)
            .bind::<Array<Nullable<SqlUuid>>, _>(messages.bulk)
            .bind::<Array<Nullable<Timestamptz>>, _>(messages.scheduled_at);
        let statement = deliveries
            .bind(statement)
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.keyed_subject)
            .bind::<Array<Nullable<Timestamptz>>, _>(deliveries.due_at);
        if !waits {
            return statement.bind::<Int4, _>(relay_after_ms);
        }
        statement
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.line)
            .bind::<Array<Int2>, _>(deliveries.rank)
            .bind::<Array<Nullable<SqlUuid>>, _>(deliveries.park)
            .bind::<Array<Nullable<Text>>, _>(deliveries.kind)
            .bind::<Array<Nullable<Text>>, _>(deliveries.country)
            .bind::<Array<Nullable<Timestamptz>>, _>(deliveries.expires_at)
            .bind::<Int4, _>(relay_after_ms)
    }

    /// Whether the batch has only messages with their own content, to send now: by far the most common case.
    fn is_plain(&self) -> bool {
        self.keys.tenant.is_empty()
            && self.bulks.id.is_empty()
            && self.messages.scheduled_at.iter().all(Option::is_none)
    }

    fn bind_plain(self, relay_after_ms: i32) -> Statement<SqlRow> {
        let Self { mut messages, mut deliveries, .. } = self;
        let statement = statement(ACCEPT_PLAIN).near(messages.id.iter().chain(&deliveries.id));
        deliveries.bind(messages.bind(statement)).bind::<Int4, _>(relay_after_ms)
    }
}

impl KeyColumns {
    fn push(&mut self, acceptance: &Acceptance, key: &Key, sealer: &Sealer) -> Result<(), SealError> {
        self.tenant.push(acceptance.tenant.0);
        self.key_hash.push(key.key_hash.to_vec());
        self.request_hash.push(key.request_hash.to_vec());
        self.subject.push(acceptance.subject());
        self.response.push(sealer.seal(sealed::RESPONSE.of(acceptance.tenant), &key.response)?);
        Ok(())
    }
}

impl BulkColumns {
    fn push(
        &mut self,
        tenant: TenantId,
        keyed_subject: Option<Uuid>,
        bulk: &NewBulk,
        sealer: &Sealer,
    ) -> Result<(), SealError> {
        self.keyed_subject.push(keyed_subject);
        self.id.push(bulk.id.0);
        self.tenant.push(tenant.0);
        self.content.push(sealer.seal(sealed::CONTENT.of(tenant), &bulk.content)?);
        self.refused.push(bulk.refused);
        Ok(())
    }
}

impl MessageColumns {
    /// Binds the message columns that every acceptance statement takes.
    fn bind(&mut self, statement: Statement<SqlRow>) -> Statement<SqlRow> {
        statement
            .bind::<Array<SqlUuid>, _>(take(&mut self.id))
            .bind::<Array<Int4>, _>(take(&mut self.tenant))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.user_id))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.category))
            .bind::<Array<Text>, _>(take(&mut self.priority))
            .bind::<Array<Nullable<Binary>>, _>(take(&mut self.content))
            .bind::<Array<Text>, _>(take(&mut self.source))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.request_id))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.traceparent))
            .bind::<Array<Nullable<Timestamptz>>, _>(take(&mut self.expires_at))
    }

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
        let place = sealed::CONTENT.of(acceptance.tenant);
        self.content.push(message.content.as_ref().map(|content| sealer.seal(place, content)).transpose()?);
        self.source.push(acceptance.source);
        self.request_id.push(acceptance.request_id.clone());
        self.traceparent.push(acceptance.traceparent.clone());
        self.scheduled_at.push(message.scheduled_at);
        self.expires_at.push(message.expires_at);
        Ok(())
    }
}

impl DeliveryColumns {
    /// Binds the delivery columns that every acceptance statement takes.
    fn bind(&mut self, statement: Statement<SqlRow>) -> Statement<SqlRow> {
        statement
            .bind::<Array<SqlUuid>, _>(take(&mut self.id))
            .bind::<Array<SqlUuid>, _>(take(&mut self.message))
            .bind::<Array<Int4>, _>(take(&mut self.tenant))
            .bind::<Array<Text>, _>(take(&mut self.channel))
            .bind::<Array<Text>, _>(take(&mut self.lane))
            .bind::<Array<Text>, _>(take(&mut self.recipient))
            .bind::<Array<Nullable<Binary>>, _>(take(&mut self.recipient_hash))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.category))
            .bind::<Array<Nullable<Text>>, _>(take(&mut self.template))
            .bind::<Array<Text>, _>(take(&mut self.state))
            .bind::<Array<Nullable<Int4>>, _>(take(&mut self.lease_ms))
    }

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
        self.recipient.push(sealer.seal_text(sealed::RECIPIENT.of(tenant), recipient)?);
        self.recipient_hash.push((sealer.is_on() && !recipient.is_empty()).then(hash));
        self.category.push(message.category.clone());
        self.template.push(message.template.clone());
        self.state.push(state.as_str());
        self.due_at.push(message.scheduled_at);
        self.expires_at.push(message.expires_at);
        self.lease_ms.push(lease_ms);
        self.line.push(delivery.line);
        self.rank.push(delivery.rank);
        self.kind.push(delivery.line.map(|_| delivery.kind));
        let country = delivery.line.and_then(|_| country_prefix(recipient));
        self.country.push(country.map(str::to_owned));
        Ok(())
    }
}

/// Keys come first: a row of ours in `won` means that the request is new. If another transaction is inserting the
/// same key, we wait for its commit, so no request ever sees a key "in flight". Claims made at once have their own
/// outbox row, which counts as published: they need no queue, and the audit checks them when their lease is over.
/// Lines add `$columns`, `$types` and `$parking`.
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
    SELECT id, tenant_id, content, refused
    FROM unnest(?::uuid[], ?::int4[], ?::bytea[], ?::int4[], ?::uuid[]) AS b(id, tenant_id, content, refused, keyed_subject)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
    ON CONFLICT DO NOTHING
), new_messages AS (
    INSERT INTO messages@ (id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at, expires_at)
    SELECT id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at, expires_at
    FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::timestamptz[],
                ?::uuid[], ?::uuid[], ?::timestamptz[])
        AS m(id, tenant_id, user_id, category, priority, content, source, request_id, traceparent, expires_at, keyed_subject, bulk_id, scheduled_at)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
), fresh AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::int4[],
                         ?::uuid[], ?::timestamptz[]",
            $types,
            ") AS d(id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, lease_ms,
                    keyed_subject, due_at",
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

/// As [`ACCEPT`], for deliveries that wait in a line. A session's line already exists; a tenant's share is created
/// when it is first needed.
const ACCEPT_AND_PARK: &str = accept!(
    ", line, rank, park, kind, country, expires_at",
    ", ?::uuid[], ?::int2[], ?::uuid[], ?::text[], ?::text[], ?::timestamptz[]",
    " AND park IS NULL",
    ", line, rank, kind, country, expires_at",
    "
), new_shares AS (
    INSERT INTO lines (id, tenant_id, kind, route)
    SELECT DISTINCT park, tenant_id, 'share', channel || '.' || lane FROM fresh WHERE park IS NOT NULL AND line IS NULL ORDER BY 1
    ON CONFLICT DO NOTHING
), new_parked AS (
    INSERT INTO parked (delivery_id, line, run, rank, expires_at) SELECT id, park, 0, rank, expires_at FROM fresh WHERE park IS NOT NULL AND due_at IS NULL"
);

/// [`ACCEPT`] without the parts that plain batches do not have: a quarter of its cost.
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
