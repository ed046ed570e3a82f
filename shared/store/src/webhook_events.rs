//! Events for webhook configurations: written with the fact, sent by a task, held for configurations that are
//! switched off.
//!
//! A statement that writes a fact includes [`enqueue_webhook_events!`]. It looks up the tenant's configurations; most
//! tenants have none.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, DeliveryId, Lane, MessageId, Priority, Route, TenantId,
    acceptance::{Acceptance, Hash, Key, NewDelivery, NewMessage},
    contract::{
        submission::Content,
        webhooks::{self, SOURCE},
    },
};
use runtime::telemetry::TraceContext;
use serde_json::{Map, Value, json, value::RawValue};
use uuid::Uuid;

use super::{
    DbResult, Store,
    analytics::{daily, reach},
    sealed, statement,
    wa_inbound::Inbound,
};

/// Adds events to a statement: one row for each configuration of the tenant that subscribed to them. `$rows` gives
/// `tenant_id, channel, delivery, event, at, subject, run, fact`. A configuration gets no events about its own
/// deliveries, and deliveries that carry events produce none; an optimisation fence skips this check where there is
/// no configuration. With `plain`, for events without a delivery, there is no check at all.
macro_rules! enqueue_webhook_events {
    (plain $rows:literal) => {
        concat!(
            "
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id FROM (",
            $rows,
            ") AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject"
        )
    };
    ($rows:literal) => {
        concat!(
            enqueue_webhook_events!(plain $rows),
            "
      AND NOT (x.channel = 'webhook' AND EXISTS (
          SELECT 1 FROM deliveries@ d JOIN messages@ m ON m.id = d.message_id WHERE d.id = x.delivery AND m.source = 'event'))"
        )
    };
}

pub(super) use enqueue_webhook_events;

/// An event to send to one configuration.
#[derive(Clone, Debug)]
pub struct PendingWebhook {
    /// The row.
    pub id: i64,
    /// Its tenant.
    pub tenant: TenantId,
    /// The id of the configuration.
    pub configuration: Uuid,
    /// The URL of the configuration; `None` if the configuration is deleted.
    pub url: Option<String>,
    /// Whether the configuration is switched on.
    pub is_active: bool,
    /// The event's name.
    pub event: String,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The id of its subject.
    pub subject: Option<Uuid>,
    /// The part of it that may be sent.
    pub fact: Map<String, Value>,
    /// How often it was replayed.
    round: i32,
    /// Whether it is about a delivery that itself carries an event.
    pub is_echo: bool,
}

/// Selects the events to replay.
#[derive(Clone, Debug)]
pub struct Again {
    /// The start of the time range.
    pub since: DateTime<Utc>,
    /// The end of the time range.
    pub until: DateTime<Utc>,
    /// Only events whose webhook has this status; `held`: those that were never sent.
    pub status: Option<String>,
    /// Only the events of these webhooks.
    pub ids: Option<Vec<Uuid>>,
}

/// For each configuration whose events are being held back: the moment from which its events are still to be read.
pub type Swept = HashMap<Uuid, DateTime<Utc>>;

type Row = (
    (i64, i32, Uuid, Option<String>, Option<bool>, String, DateTime<Utc>),
    (Option<Uuid>, String, i32, Option<Uuid>, Option<String>, Option<Vec<u8>>, i64),
);
type SqlRow = (
    (Int8, Int4, SqlUuid, Nullable<Text>, Nullable<Bool>, Text, Timestamptz),
    (Nullable<SqlUuid>, Text, Int4, Nullable<SqlUuid>, Nullable<Text>, Nullable<Binary>, Int8),
);

impl Store {
    /// Turns up to `limit` received messages into events; returns the number of messages.
    pub async fn enqueue_received(&self, limit: i64) -> DbResult<i64> {
        statement::<Int8>(RECEIVED).bind::<Int8, _>(limit).row(self).await
    }

    /// Up to `limit` events to send, oldest first.
    pub async fn pending_webhooks(&self, limit: i64) -> DbResult<Vec<PendingWebhook>> {
        let rows: Vec<Row> = statement::<SqlRow>(PENDING).bind::<Int8, _>(limit).rows(self).await?;
        rows.into_iter().map(|row| self.pending_webhook(row)).collect()
    }

    fn pending_webhook(&self, (head, tail): Row) -> DbResult<PendingWebhook> {
        let (id, tenant, configuration, url, is_active, event, at) = head;
        let (subject, fact, round, message, source, content, attempts) = tail;
        let mut fact: Map<String, Value> = serde_json::from_str(&fact).unwrap_or_default();
        if let Some(message) = message {
            fact.insert("message_id".to_owned(), json!(message));
            if attempts > 0 {
                fact.insert("attempt".to_owned(), json!(attempts));
            }
        }
        if let Some(content) = content {
            // A content under an unknown key must not delay other events, so its event is sent without the metadata.
            let opened = self.sealer().open(sealed::CONTENT.of(TenantId(tenant)), content);
            let opened =
                opened.inspect_err(|error| tracing::error!(event.id = id, %error, "a content cannot be opened"));
            let content: Content = serde_json::from_slice(&opened.unwrap_or_default()).unwrap_or_default();
            if let Some(metadata) = content.metadata {
                fact.insert("metadata".to_owned(), Value::Object(metadata));
            }
        }
        Ok(PendingWebhook {
            id,
            tenant: TenantId(tenant),
            configuration,
            url,
            is_active: is_active.unwrap_or_default(),
            event,
            at,
            subject,
            fact,
            round,
            is_echo: source.as_deref() == Some(SOURCE),
        })
    }

    /// Records which webhook carries each of these events; `None`: its configuration is off, and the event is held.
    pub async fn told(&self, events: Vec<(i64, Option<Uuid>)>) -> DbResult<()> {
        let (ids, carriers): (Vec<i64>, Vec<Option<Uuid>>) = events.into_iter().unzip();
        let query =
            statement::<()>(SET_CARRIER).bind::<Array<Int8>, _>(ids).bind::<Array<Nullable<SqlUuid>>, _>(carriers);
        query.run(self).await.map(drop)
    }

    /// Deletes events whose configuration is gone.
    pub async fn drop_events(&self, ids: Vec<i64>) -> DbResult<()> {
        statement::<()>("DELETE FROM webhook_events WHERE id = ANY (?::int8[])")
            .bind::<Array<Int8>, _>(ids)
            .run(self)
            .await
            .map(drop)
    }

    /// Replays at most `limit` events of a configuration, oldest first; returns their number. Events that wait for a
    /// retry are tried at once instead.
    pub async fn replay_webhook_events(
        &self,
        tenant: TenantId,
        configuration: Uuid,
        which: Again,
        limit: i64,
    ) -> DbResult<i64> {
        let query = statement::<Int8>(REPLAY)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(configuration)
            .bind::<Timestamptz, _>(which.since)
            .bind::<Timestamptz, _>(which.until)
            .bind::<Nullable<Text>, _>(which.status)
            .bind::<Nullable<Array<SqlUuid>>, _>(which.ids)
            .bind::<Int8, _>(limit);
        query.within(Some(tenant)).row(self).await
    }

    /// Withdraws waiting events of configurations that were switched off recently, and holds them instead. It is
    /// repeated for a while, since a worker may have claimed some. Each call reads up to `limit` events of each
    /// configuration, after those of the last call, which `swept` records. Returns whether there is more. A failure
    /// for one configuration does not stop the others.
    pub async fn hold_back(&self, limit: i64, swept: &mut Swept) -> DbResult<bool> {
        let off: Vec<Uuid> = statement::<SqlUuid>(SWITCHED_OFF).rows(self).await?;
        swept.retain(|configuration, _| off.contains(configuration));
        let mut more = Ok(false);
        for configuration in off {
            match self.hold_back_of(configuration, limit, swept).await {
                Ok(is_done) => more = more.map(|more| more || !is_done),
                Err(error) => more = Err(error),
            }
        }
        more
    }

    /// Returns whether all events of the configuration were read.
    async fn hold_back_of(&self, configuration: Uuid, limit: i64, swept: &mut Swept) -> DbResult<bool> {
        let from = swept.get(&configuration).copied().unwrap_or(DateTime::UNIX_EPOCH);
        let query = statement::<(Int8, Nullable<Timestamptz>)>(HOLD)
            .bind::<SqlUuid, _>(configuration)
            .bind::<Timestamptz, _>(from)
            .bind::<Int8, _>(limit);
        let (seen, last): (i64, Option<DateTime<Utc>>) = query.row(self).await?;
        match last.filter(|_| seen >= limit) {
            // A page in which all events have one moment is skipped, since the index has no order within a moment.
            Some(last) => drop(swept.insert(configuration, last.max(from + TimeDelta::microseconds(1)))),
            None => {
                let query = statement::<()>("UPDATE webhook_configurations SET swept_at = now() WHERE id = ?");
                query.bind::<SqlUuid, _>(configuration).run(self).await?;
                swept.remove(&configuration);
            }
        }
        Ok(seen < limit)
    }

    /// Deletes events and logs older than `days`, at most `limit` rows of each; returns their number.
    pub async fn forget_webhooks(&self, days: i32, limit: i64) -> DbResult<usize> {
        let mut forgotten = 0;
        for text in [FORGET_EVENTS, FORGET_LOGS] {
            let query = statement::<()>(text).bind::<Int4, _>(days).bind::<Int8, _>(limit);
            forgotten += query.run(self).await?;
        }
        Ok(forgotten)
    }
}

impl PendingWebhook {
    /// The webhook that carries it to `url`. An event about a received message includes the whole message, `inbound`.
    pub fn acceptance(&self, url: &str, inbound: Option<&Inbound>) -> (Acceptance, DeliveryId) {
        let data = match inbound {
            Some(inbound) => received(inbound),
            None => Value::Object(self.fact.clone()),
        };
        let key = hash(format!("webhook_event/{}/{}", self.id, self.round).as_bytes());
        carrier(self.tenant, self.configuration, url, &self.event, (self.at, data), Some(key))
    }
}

/// One message with one delivery that carries an event, `{type, timestamp, data}`, to a configuration. A key is
/// accepted only once; the stored answer is the delivery's id.
pub fn carrier(
    tenant: TenantId,
    configuration: Uuid,
    url: &str,
    event: &str,
    (at, data): (DateTime<Utc>, Value),
    key: Option<Hash>,
) -> (Acceptance, DeliveryId) {
    let body = json!({"type": event, "timestamp": time(at), "data": data}).to_string();
    let content = Content {
        data: RawValue::from_string(body).ok(),
        kind: Some(event.to_owned()),
        configuration: Some(configuration),
        ..Content::default()
    };
    let message = MessageId::generate();
    let delivery = NewDelivery {
        id: DeliveryId::generate(),
        route: Route { channel: Channel::Webhook, lane: Lane::Normal },
        recipient: Address::new(url),
        line: None,
        rank: 1,
        kind: "text",
    };
    let (id, trace) = (delivery.id, TraceContext::take_or_make(None, None));
    let new = NewMessage {
        id: message,
        user_id: None,
        category: None,
        priority: Priority::Normal.as_str(),
        content: serde_json::to_vec(&content).ok(),
        scheduled_at: None,
        expires_at: None,
        deliveries: vec![delivery],
        template: None,
    };
    let response = id.0.as_bytes().to_vec();
    let acceptance = Acceptance {
        tenant,
        source: SOURCE,
        request_id: Some(trace.request_id),
        traceparent: Some(trace.traceparent),
        key: key.map(|key| Key { key_hash: key, request_hash: key, response }),
        bulk: None,
        messages: vec![new],
        beside: Vec::new(),
        room_in: None,
    };
    (acceptance, id)
}

/// The fields of a received message that are sent.
fn received(message: &Inbound) -> Value {
    json!({
        "id": message.id,
        "session_id": message.session,
        "channel": Channel::Whatsapp,
        "waha_id": message.waha_id,
        "from": message.sender,
        "to": message.recipient,
        "type": message.kind,
        "body": message.content.body,
        "media": message.content.media,
        "timestamp": time(message.sent_at),
    })
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn hash(text: &[u8]) -> Hash {
    use aws_lc_rs::digest::{SHA256, digest};
    digest(&SHA256, text).as_ref().try_into().unwrap_or_default()
}

/// Whether an event with this name is about a received message.
pub fn is_received(event: &str) -> bool {
    event == webhooks::RECEIVED
}

const RECEIVED: &str = concat!(
    "
WITH taken AS (
    UPDATE wa_inbound SET is_forwarded = true
    WHERE id = ANY (ARRAY(SELECT id FROM wa_inbound WHERE NOT is_forwarded ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED)) AND NOT is_forwarded
    RETURNING id, tenant_id, created_at
), heard AS (",
    enqueue_webhook_events!(plain
        "SELECT tenant_id, 'whatsapp', NULL::uuid, 'message.received', created_at, id, NULL::int4, '{}'::jsonb FROM taken"
    ),
    "
)
SELECT count(*) FROM taken"
);

/// The producer's metadata is included, unless it is inside a large content.
const PENDING: &str = "
SELECT w.id, w.tenant_id, w.configuration_id, c.url, c.is_active, w.event, w.at,
       w.subject, w.fact::text, w.round, d.message_id, m.source,
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536 THEN coalesce(m.content, b.content) END,
       CASE WHEN d.id IS NULL THEN 0 ELSE
           (SELECT count(*) FROM delivery_events e WHERE e.delivery_id = d.id AND e.run <= w.run AND e.provider IS NOT NULL) END
FROM (SELECT * FROM webhook_events WHERE pending ORDER BY id LIMIT ?) w
LEFT JOIN webhook_configurations c ON c.id = w.configuration_id
LEFT JOIN LATERAL (SELECT d.id, d.message_id FROM deliveries d WHERE w.run IS NOT NULL AND d.id = w.subject OFFSET 0) d ON true
LEFT JOIN LATERAL (SELECT m.source, m.content, m.bulk_id FROM messages m WHERE m.id = d.message_id OFFSET 0) m ON true
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY w.id";

const SET_CARRIER: &str = "
UPDATE webhook_events w SET pending = false, carrier = x.carrier
FROM unnest(?::int8[], ?::uuid[]) AS x (id, carrier) WHERE w.id = x.id AND w.pending";

const REPLAY: &str = "
WITH f AS (SELECT ?::int4 AS tenant_id, ?::uuid AS configuration_id, ?::timestamptz AS since, ?::timestamptz AS until, ?::text AS status, ?::uuid[] AS ids
), picked AS MATERIALIZED (
    SELECT w.id, w.carrier, d.state FROM f JOIN webhook_events w ON w.configuration_id = f.configuration_id
    LEFT JOIN LATERAL (SELECT d.state FROM deliveries d WHERE d.id = w.carrier OFFSET 0) d ON true
    WHERE w.tenant_id = f.tenant_id AND w.at >= f.since AND w.at <= f.until AND NOT w.pending
      AND (f.ids IS NULL OR w.carrier = ANY (f.ids))
      AND (f.status IS NULL OR f.status = CASE WHEN w.carrier IS NULL THEN 'held' ELSE d.state END)
      AND coalesce(d.state NOT IN ('scheduled', 'queued', 'sending'), true)
    ORDER BY w.at, w.id LIMIT ?
), hurried AS (
    UPDATE due SET due_at = now() WHERE delivery_id = ANY (ARRAY(SELECT carrier FROM picked WHERE state = 'retrying')) AND why = 'retry'
), again AS (
    UPDATE webhook_events w SET pending = true, round = w.round + 1
    FROM picked p WHERE w.id = p.id AND NOT w.pending AND p.state IS DISTINCT FROM 'retrying'
)
SELECT count(*) FROM picked";

/// Sweeps a configuration for two minutes after it was switched off, at most once every 5 s. After that no worker holds
/// any of its events.
const SWITCHED_OFF: &str = "
SELECT id FROM webhook_configurations
WHERE NOT is_active AND disabled_at IS NOT NULL
  AND (swept_at IS NULL OR (swept_at < disabled_at + interval '2 minutes' AND swept_at < now() - interval '5 seconds'))";

/// Works as when a producer cancels a message.
const HOLD: &str = concat!(
    "
WITH seen AS MATERIALIZED (
    SELECT w.id, w.at, w.carrier FROM webhook_events w
    WHERE w.configuration_id = ? AND w.at >= ? AND w.at > now() - interval '8 days'
    ORDER BY w.at LIMIT ?
), waiting AS MATERIALIZED (
    SELECT s.id, s.carrier FROM seen s
    CROSS JOIN LATERAL (SELECT d.state FROM deliveries d WHERE d.id = s.carrier OFFSET 0) d
    WHERE d.state IN ('queued', 'retrying') ORDER BY s.id
), moved AS (
    UPDATE deliveries d SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp(), ",
    reach!("128::smallint"),
    "
    FROM waiting w WHERE d.id = w.carrier AND d.state IN ('queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at, detail)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp(), 'its configuration is off: the event is held' FROM moved
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), daily AS (",
    daily!("SELECT id, tenant_id, channel, provider, category, template, fresh FROM moved"),
    "
), held AS (
    UPDATE webhook_events w SET carrier = NULL FROM waiting t, moved v WHERE w.id = t.id AND v.id = t.carrier
)
SELECT (SELECT count(*) FROM seen), (SELECT max(at) FROM seen)"
);

const FORGET_EVENTS: &str = "
DELETE FROM webhook_events WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_events WHERE at < now() - ? * interval '1 day' AND NOT pending ORDER BY at LIMIT ?))";

const FORGET_LOGS: &str = "
DELETE FROM webhook_logs WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_logs WHERE created_at < now() - ? * interval '1 day' ORDER BY created_at LIMIT ?))";
