//! Events for webhook configurations: written with the fact, sent by a task, held for configurations that are
//! switched off.
//!
//! A statement that writes a fact adds its events, one for each configuration of the tenant that subscribed to them, in
//! a part that is called `heard`; most tenants have no configuration. A configuration gets no events about its own
//! deliveries, and deliveries that carry events produce none; where no event is about a delivery, that is not checked.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use diesel::{
    result::QueryResult,
    sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::AsyncPgConnection;
use domain::{
    Address, Channel, DeliveryId, Lane, MessageId, Priority, Route, TenantId,
    acceptance::{Acceptance, Hash, Key, NewDelivery, NewMessage},
    contract::{
        submission::Content,
        webhooks::{self, SOURCE},
    },
};
use records::wa_inbound::Inbound;
use runtime::telemetry::TraceContext;
use serde_json::{Map, Value, json, value::RawValue};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{WebhookEventStore, events};

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

row! {
    struct PendingRow {
        id: i64 as Int8,
        tenant_id: i32 as Int4,
        configuration_id: Uuid as SqlUuid,
        url: Option<String> as Nullable<Text>,
        is_active: Option<bool> as Nullable<Bool>,
        event: String as Text,
        at: DateTime<Utc> as Timestamptz,
        subject: Option<Uuid> as Nullable<SqlUuid>,
        fact: String as Text,
        round: i32 as Int4,
        message_id: Option<Uuid> as Nullable<SqlUuid>,
        source: Option<String> as Nullable<Text>,
        content: Option<Vec<u8>> as Nullable<Binary>,
        attempts: i64 as Int8,
    }
}

row! {
    /// How many events a page had, the moment of its last one, and the events whose webhook waits, with these webhooks.
    struct Page {
        seen: i64 as Int8,
        last: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        events: Vec<i64> as Array<Int8>,
        carriers: Vec<Uuid> as Array<SqlUuid>,
    }
}

impl WebhookEventStore<'_> {
    /// Turns up to `limit` received messages into events; returns the number of messages.
    pub async fn enqueue_received(self, limit: i64) -> DbResult<i64> {
        Received { limit }.query().row(self.store).await
    }

    /// Up to `limit` events to send, oldest first.
    pub async fn pending(self, limit: i64) -> DbResult<Vec<PendingWebhook>> {
        let rows = Pending { limit }.query().rows(self.store).await?;
        rows.into_iter().map(|row| self.pending_webhook(row)).collect()
    }

    fn pending_webhook(self, row: PendingRow) -> DbResult<PendingWebhook> {
        let tenant = TenantId(row.tenant_id);
        let mut fact: Map<String, Value> = serde_json::from_str(&row.fact).unwrap_or_default();
        if let Some(message) = row.message_id {
            fact.insert("message_id".to_owned(), json!(message));
            if row.attempts > 0 {
                fact.insert("attempt".to_owned(), json!(row.attempts));
            }
        }
        if let Some(content) = row.content {
            // A content under an unknown key must not delay other events, so its event is sent without the metadata.
            let opened = self.store.sealer().open(sealed::CONTENT.of(tenant), content);
            let opened =
                opened.inspect_err(|error| tracing::error!(event.id = row.id, %error, "a content cannot be opened"));
            let content: Content = serde_json::from_slice(&opened.unwrap_or_default()).unwrap_or_default();
            if let Some(metadata) = content.metadata {
                fact.insert("metadata".to_owned(), Value::Object(metadata));
            }
        }
        Ok(PendingWebhook {
            id: row.id,
            tenant,
            configuration: row.configuration_id,
            url: row.url,
            is_active: row.is_active.unwrap_or_default(),
            event: row.event,
            at: row.at,
            subject: row.subject,
            fact,
            round: row.round,
            is_echo: row.source.as_deref() == Some(SOURCE),
        })
    }

    /// Records which webhook carries each of these events; `None`: its configuration is off, and the event is held.
    pub async fn mark_sent(self, events: Vec<(i64, Option<Uuid>)>) -> DbResult<()> {
        let (ids, carriers): (Vec<i64>, Vec<Option<Uuid>>) = events.into_iter().unzip();
        SetCarrier { ids, carriers }.query().run(self.store).await.map(drop)
    }

    /// Deletes events whose configuration is gone.
    pub async fn discard(self, ids: Vec<i64>) -> DbResult<()> {
        Delete { ids }.query().run(self.store).await.map(drop)
    }

    /// Replays at most `limit` events of a configuration, oldest first; returns their number. Events that wait for a
    /// retry are tried at once instead.
    pub async fn replay_webhook_events(
        self,
        tenant: TenantId,
        configuration: Uuid,
        which: Again,
        limit: i64,
    ) -> DbResult<i64> {
        let Again { since, until, status, ids } = which;
        let replay = Replay { tenant: tenant.0, configuration, since, until, status, ids, limit };
        replay.query().within(Some(tenant)).row(self.store).await
    }

    /// Withdraws waiting events of configurations that were switched off recently, and holds them instead. It is
    /// repeated for a while, since a worker may have claimed some. Each call reads up to `limit` events of each
    /// configuration, after those of the last call, which `swept` records. Returns whether there is more. A failure
    /// for one configuration does not stop the others.
    pub async fn hold_back(self, limit: i64, swept: &mut Swept) -> DbResult<bool> {
        let off = SwitchedOff {}.query().rows(self.store).await?;
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
    async fn hold_back_of(self, configuration: Uuid, limit: i64, swept: &mut Swept) -> DbResult<bool> {
        let from = swept.get(&configuration).copied().unwrap_or(DateTime::UNIX_EPOCH);
        let mut conn = self.store.transaction().await?;
        let held = hold(&mut conn, Waiting { configuration, from, limit }).await;
        let (seen, last) = conn.done(held).await?;
        match last.filter(|_| seen >= limit) {
            // A page in which all events have one moment is skipped, since the index has no order within a moment.
            Some(last) => drop(swept.insert(configuration, last.max(from + TimeDelta::microseconds(1)))),
            None => {
                SetSwept { configuration }.query().run(self.store).await?;
                swept.remove(&configuration);
            }
        }
        Ok(seen < limit)
    }

    /// Deletes events and logs older than `days`, at most `limit` rows of each; returns their number.
    pub async fn prune(self, days: i32, limit: i64) -> DbResult<usize> {
        let events = ForgetEvents { days, limit }.query().run(self.store).await?;
        let logs = ForgetLogs { days, limit }.query().run(self.store).await?;
        Ok(events + logs)
    }
}

/// Takes back the webhooks of a page that wait, and holds their events; returns the number of events in the page and the
/// moment of the last one.
async fn hold(conn: &mut AsyncPgConnection, page: Waiting) -> QueryResult<(i64, Option<DateTime<Utc>>)> {
    let Page { seen, last, events, carriers } = page.query().row_on(conn).await?;
    let cancelled = events::cancel(conn, carriers, Some("its configuration is off: the event is held")).await?;
    if !cancelled.is_empty() {
        Hold { events, cancelled }.query().run_on(conn).await?;
    }
    Ok((seen, last))
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

sql!(Received in "webhook_events/received.sql" { limit: i64 as Int8 } -> i64 as Int8);
sql!(Pending in "webhook_events/pending.sql" { limit: i64 as Int8 } -> PendingRow);
sql!(SetCarrier in "webhook_events/set_carrier.sql" {
    ids: Vec<i64> as Array<Int8>, carriers: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>
});
sql!(Delete in "webhook_events/delete.sql" { ids: Vec<i64> as Array<Int8> });
sql!(Replay in "webhook_events/replay.sql" {
    tenant: i32 as Int4, configuration: Uuid as SqlUuid, since: DateTime<Utc> as Timestamptz,
    until: DateTime<Utc> as Timestamptz, status: Option<String> as Nullable<Text>,
    ids: Option<Vec<Uuid>> as Nullable<Array<SqlUuid>>, limit: i64 as Int8
} -> i64 as Int8);
sql!(SwitchedOff in "webhook_events/switched_off.sql" {} -> Uuid as SqlUuid);
sql!(SetSwept in "webhook_events/set_swept.sql" { configuration: Uuid as SqlUuid });
sql!(Waiting in "webhook_events/waiting.sql" {
    configuration: Uuid as SqlUuid, from: DateTime<Utc> as Timestamptz, limit: i64 as Int8
} -> Page);
sql!(Hold in "webhook_events/hold.sql" {
    events: Vec<i64> as Array<Int8>, cancelled: Vec<Uuid> as Array<SqlUuid>
});
sql!(ForgetEvents in "webhook_events/forget_events.sql" { days: i32 as Int4, limit: i64 as Int8 });
sql!(ForgetLogs in "webhook_events/forget_logs.sql" { days: i32 as Int4, limit: i64 as Int8 });
statements!(
    Received,
    Pending,
    SetCarrier,
    Delete,
    Replay,
    SwitchedOff,
    SetSwept,
    Waiting,
    Hold,
    ForgetEvents,
    ForgetLogs
);
