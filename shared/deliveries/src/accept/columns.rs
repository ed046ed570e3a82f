//! The acceptance statements and their binds.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Int8, Nullable, Text, Timestamptz, Untyped, Uuid as SqlUuid};
use domain::{
    State, TenantId,
    acceptance::{Acceptance, Crowding, Key, Leases, NewBulk, NewDelivery, NewMessage},
    phone::country_prefix,
    seal::{SealError, Sealer},
};
use store::{
    sealed,
    sql::{row, sql, statements},
    statement::Query,
};
use uuid::Uuid;

row! {
    /// The state of a batch after its commit.
    pub(crate) struct StoredRow {
        /// The outbox row to publish.
        pub(crate) outbox_id: Option<i64> as Nullable<Int8>,
        /// The subjects whose key was free.
        pub(crate) won: Vec<Uuid> as Array<SqlUuid>,
        /// The moment of acceptance.
        pub(crate) accepted_at: DateTime<Utc> as Timestamptz,
    }
}

/// The batch as columns: one array per column, so that a statement's text never changes.
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
    pub(super) fn query(self, relay_after_ms: i32) -> Query<StoredRow, Untyped> {
        let ids: Vec<Uuid> = self.messages.id.iter().chain(&self.deliveries.id).copied().collect();
        let query = match (self.parks(), self.is_plain()) {
            (true, _) => self.accept_and_park(relay_after_ms).query(),
            (false, true) => self.accept_plain(relay_after_ms).query(),
            (false, false) => self.accept(relay_after_ms).query(),
        };
        query.in_partition_of(&ids)
    }

    /// Whether the batch has only messages with their own content, to send now: by far the most common case.
    fn is_plain(&self) -> bool {
        self.keys.tenant.is_empty()
            && self.bulks.id.is_empty()
            && self.messages.scheduled_at.iter().all(Option::is_none)
    }

    fn accept_plain(self, relay_after_ms: i32) -> AcceptPlain {
        let Self { messages, deliveries, .. } = self;
        AcceptPlain {
            message_id: messages.id,
            message_tenant: messages.tenant,
            message_user: messages.user_id,
            message_category: messages.category,
            message_priority: messages.priority,
            message_content: messages.content,
            message_source: messages.source,
            message_request: messages.request_id,
            message_traceparent: messages.traceparent,
            message_expires_at: messages.expires_at,
            delivery_id: deliveries.id,
            delivery_message: deliveries.message,
            delivery_tenant: deliveries.tenant,
            delivery_channel: deliveries.channel,
            delivery_lane: deliveries.lane,
            delivery_recipient: deliveries.recipient,
            delivery_recipient_hash: deliveries.recipient_hash,
            delivery_category: deliveries.category,
            delivery_template: deliveries.template,
            delivery_state: deliveries.state,
            delivery_lease_ms: deliveries.lease_ms,
            relay_after_ms,
        }
    }

    fn accept(self, relay_after_ms: i32) -> Accept {
        let Self { keys, bulks, messages, deliveries } = self;
        Accept {
            key_tenant: keys.tenant,
            key_hash: keys.key_hash,
            key_request_hash: keys.request_hash,
            key_subject: keys.subject,
            key_response: keys.response,
            bulk_id: bulks.id,
            bulk_tenant: bulks.tenant,
            bulk_content: bulks.content,
            bulk_refused: bulks.refused,
            bulk_keyed_subject: bulks.keyed_subject,
            message_id: messages.id,
            message_tenant: messages.tenant,
            message_user: messages.user_id,
            message_category: messages.category,
            message_priority: messages.priority,
            message_content: messages.content,
            message_source: messages.source,
            message_request: messages.request_id,
            message_traceparent: messages.traceparent,
            message_expires_at: messages.expires_at,
            message_keyed_subject: messages.keyed_subject,
            message_bulk: messages.bulk,
            message_scheduled_at: messages.scheduled_at,
            delivery_id: deliveries.id,
            delivery_message: deliveries.message,
            delivery_tenant: deliveries.tenant,
            delivery_channel: deliveries.channel,
            delivery_lane: deliveries.lane,
            delivery_recipient: deliveries.recipient,
            delivery_recipient_hash: deliveries.recipient_hash,
            delivery_category: deliveries.category,
            delivery_template: deliveries.template,
            delivery_state: deliveries.state,
            delivery_lease_ms: deliveries.lease_ms,
            delivery_keyed_subject: deliveries.keyed_subject,
            delivery_due_at: deliveries.due_at,
            relay_after_ms,
        }
    }

    fn accept_and_park(self, relay_after_ms: i32) -> AcceptAndPark {
        let Self { keys, bulks, messages, deliveries } = self;
        AcceptAndPark {
            key_tenant: keys.tenant,
            key_hash: keys.key_hash,
            key_request_hash: keys.request_hash,
            key_subject: keys.subject,
            key_response: keys.response,
            bulk_id: bulks.id,
            bulk_tenant: bulks.tenant,
            bulk_content: bulks.content,
            bulk_refused: bulks.refused,
            bulk_keyed_subject: bulks.keyed_subject,
            message_id: messages.id,
            message_tenant: messages.tenant,
            message_user: messages.user_id,
            message_category: messages.category,
            message_priority: messages.priority,
            message_content: messages.content,
            message_source: messages.source,
            message_request: messages.request_id,
            message_traceparent: messages.traceparent,
            message_expires_at: messages.expires_at,
            message_keyed_subject: messages.keyed_subject,
            message_bulk: messages.bulk,
            message_scheduled_at: messages.scheduled_at,
            delivery_id: deliveries.id,
            delivery_message: deliveries.message,
            delivery_tenant: deliveries.tenant,
            delivery_channel: deliveries.channel,
            delivery_lane: deliveries.lane,
            delivery_recipient: deliveries.recipient,
            delivery_recipient_hash: deliveries.recipient_hash,
            delivery_category: deliveries.category,
            delivery_template: deliveries.template,
            delivery_state: deliveries.state,
            delivery_lease_ms: deliveries.lease_ms,
            delivery_keyed_subject: deliveries.keyed_subject,
            delivery_due_at: deliveries.due_at,
            delivery_line: deliveries.line,
            delivery_rank: deliveries.rank,
            delivery_park: deliveries.park,
            delivery_kind: deliveries.kind,
            delivery_country: deliveries.country,
            delivery_expires_at: deliveries.expires_at,
            relay_after_ms,
        }
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

sql!(AcceptPlain in "accept/accept_plain.sql" {
    message_id: Vec<Uuid> as Array<SqlUuid>,
    message_tenant: Vec<i32> as Array<Int4>,
    message_user: Vec<Option<String>> as Array<Nullable<Text>>,
    message_category: Vec<Option<String>> as Array<Nullable<Text>>,
    message_priority: Vec<&'static str> as Array<Text>,
    message_content: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    message_source: Vec<&'static str> as Array<Text>,
    message_request: Vec<Option<String>> as Array<Nullable<Text>>,
    message_traceparent: Vec<Option<String>> as Array<Nullable<Text>>,
    message_expires_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    delivery_id: Vec<Uuid> as Array<SqlUuid>,
    delivery_message: Vec<Uuid> as Array<SqlUuid>,
    delivery_tenant: Vec<i32> as Array<Int4>,
    delivery_channel: Vec<&'static str> as Array<Text>,
    delivery_lane: Vec<&'static str> as Array<Text>,
    delivery_recipient: Vec<String> as Array<Text>,
    delivery_recipient_hash: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    delivery_category: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_template: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_state: Vec<&'static str> as Array<Text>,
    delivery_lease_ms: Vec<Option<i32>> as Array<Nullable<Int4>>,
    relay_after_ms: i32 as Int4,
} -> StoredRow);
sql!(Accept in "accept/accept.sql" {
    key_tenant: Vec<i32> as Array<Int4>,
    key_hash: Vec<Vec<u8>> as Array<Binary>,
    key_request_hash: Vec<Vec<u8>> as Array<Binary>,
    key_subject: Vec<Uuid> as Array<SqlUuid>,
    key_response: Vec<Vec<u8>> as Array<Binary>,
    bulk_id: Vec<Uuid> as Array<SqlUuid>,
    bulk_tenant: Vec<i32> as Array<Int4>,
    bulk_content: Vec<Vec<u8>> as Array<Binary>,
    bulk_refused: Vec<i32> as Array<Int4>,
    bulk_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_id: Vec<Uuid> as Array<SqlUuid>,
    message_tenant: Vec<i32> as Array<Int4>,
    message_user: Vec<Option<String>> as Array<Nullable<Text>>,
    message_category: Vec<Option<String>> as Array<Nullable<Text>>,
    message_priority: Vec<&'static str> as Array<Text>,
    message_content: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    message_source: Vec<&'static str> as Array<Text>,
    message_request: Vec<Option<String>> as Array<Nullable<Text>>,
    message_traceparent: Vec<Option<String>> as Array<Nullable<Text>>,
    message_expires_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    message_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_bulk: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_scheduled_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    delivery_id: Vec<Uuid> as Array<SqlUuid>,
    delivery_message: Vec<Uuid> as Array<SqlUuid>,
    delivery_tenant: Vec<i32> as Array<Int4>,
    delivery_channel: Vec<&'static str> as Array<Text>,
    delivery_lane: Vec<&'static str> as Array<Text>,
    delivery_recipient: Vec<String> as Array<Text>,
    delivery_recipient_hash: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    delivery_category: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_template: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_state: Vec<&'static str> as Array<Text>,
    delivery_lease_ms: Vec<Option<i32>> as Array<Nullable<Int4>>,
    delivery_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    delivery_due_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    relay_after_ms: i32 as Int4,
} -> StoredRow);
sql!(AcceptAndPark in "accept/accept_and_park.sql" {
    key_tenant: Vec<i32> as Array<Int4>,
    key_hash: Vec<Vec<u8>> as Array<Binary>,
    key_request_hash: Vec<Vec<u8>> as Array<Binary>,
    key_subject: Vec<Uuid> as Array<SqlUuid>,
    key_response: Vec<Vec<u8>> as Array<Binary>,
    bulk_id: Vec<Uuid> as Array<SqlUuid>,
    bulk_tenant: Vec<i32> as Array<Int4>,
    bulk_content: Vec<Vec<u8>> as Array<Binary>,
    bulk_refused: Vec<i32> as Array<Int4>,
    bulk_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_id: Vec<Uuid> as Array<SqlUuid>,
    message_tenant: Vec<i32> as Array<Int4>,
    message_user: Vec<Option<String>> as Array<Nullable<Text>>,
    message_category: Vec<Option<String>> as Array<Nullable<Text>>,
    message_priority: Vec<&'static str> as Array<Text>,
    message_content: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    message_source: Vec<&'static str> as Array<Text>,
    message_request: Vec<Option<String>> as Array<Nullable<Text>>,
    message_traceparent: Vec<Option<String>> as Array<Nullable<Text>>,
    message_expires_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    message_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_bulk: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    message_scheduled_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    delivery_id: Vec<Uuid> as Array<SqlUuid>,
    delivery_message: Vec<Uuid> as Array<SqlUuid>,
    delivery_tenant: Vec<i32> as Array<Int4>,
    delivery_channel: Vec<&'static str> as Array<Text>,
    delivery_lane: Vec<&'static str> as Array<Text>,
    delivery_recipient: Vec<String> as Array<Text>,
    delivery_recipient_hash: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    delivery_category: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_template: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_state: Vec<&'static str> as Array<Text>,
    delivery_lease_ms: Vec<Option<i32>> as Array<Nullable<Int4>>,
    delivery_keyed_subject: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    delivery_due_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    delivery_line: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    delivery_rank: Vec<i16> as Array<Int2>,
    delivery_park: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    delivery_kind: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    delivery_country: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery_expires_at: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    relay_after_ms: i32 as Int4,
} -> StoredRow);
statements!(AcceptPlain, Accept, AcceptAndPark);
