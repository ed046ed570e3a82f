//! Hands messages from people on to the tenant's own webhooks: an ordinary durable webhook delivery each.
//!
//! A message is accepted once for each configuration, under a key made of both; only then it counts as handed on.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::SecondsFormat;
use serde_json::{json, value::RawValue};
use shared::{
    contract::submission::Content,
    db::{
        Store,
        accept::{Acceptance, Crowding, Hash, Key, NewDelivery, NewMessage},
        configurations::Configuration,
        wa_inbound::Inbound,
    },
    dispatch::Dispatcher,
    domain::{Address, Channel, DeliveryId, Lane, MessageId, Priority, Route},
    telemetry::TraceContext,
};

use crate::task::{Report, Task, TaskError};

/// Messages handed on in one turn.
const LIMIT: i64 = 200;
/// The event's name.
pub const RECEIVED: &str = "message.received";
/// `source` of messages that nobody submitted.
const SOURCE: &str = "event";

/// The task.
pub struct WahaForward {
    store: Store,
    dispatcher: Dispatcher,
    relay_after_ms: i32,
}

impl WahaForward {
    /// Accepts in `store`, and lets `dispatcher` publish.
    pub const fn new(store: Store, dispatcher: Dispatcher, relay_after_ms: i32) -> Self {
        Self { store, dispatcher, relay_after_ms }
    }
}

impl Task for WahaForward {
    const NAME: &'static str = "waha_forward";
    const PERIOD: Duration = Duration::from_millis(250);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let messages = self.store.inbound_to_forward(LIMIT).await?;
        if messages.is_empty() {
            return Ok(Report::Done);
        }
        let mut tenants: Vec<_> = messages.iter().map(|message| message.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let configurations = self.store.active_configurations(tenants).await?;
        let mut batch = Vec::new();
        for message in &messages {
            let wanted = configurations.iter().filter(|to| to.tenant == message.tenant && to.wants(RECEIVED));
            batch.extend(wanted.map(|to| acceptance(message, to)));
        }
        if !batch.is_empty() {
            let (_, dispatch) = self.store.accept(&batch, self.relay_after_ms, &Crowding::default()).await?;
            dispatch.into_iter().for_each(|dispatch| self.dispatcher.post(dispatch));
        }
        self.store.mark_forwarded(messages.iter().map(|message| message.id).collect()).await?;
        Ok(if i64::try_from(messages.len()) == Ok(LIMIT) { Report::More } else { Report::Done })
    }
}

/// One message with one delivery, to the URL of the configuration.
fn acceptance(message: &Inbound, to: &Configuration) -> Acceptance {
    let id = MessageId::generate();
    let key = hash(format!("{RECEIVED}/{}/{}", message.id, to.id).as_bytes());
    let trace = TraceContext::take_or_make(None, None);
    let delivery = NewDelivery {
        id: DeliveryId::generate(),
        route: Route { channel: Channel::Webhook, lane: Lane::Normal },
        recipient: Address::new(&to.settings.url),
        line: None,
        rank: 1,
        kind: "text",
    };
    let content =
        Content { data: RawValue::from_string(body(message)).ok(), configuration: Some(to.id), ..Content::default() };
    let new = NewMessage {
        id,
        user_id: None,
        category: None,
        priority: Priority::Normal.as_str(),
        content: serde_json::to_vec(&content).ok(),
        scheduled_at: None,
        expires_at: None,
        deliveries: vec![delivery],
    };
    Acceptance {
        tenant: message.tenant,
        source: SOURCE,
        request_id: Some(trace.request_id),
        traceparent: Some(trace.traceparent),
        key: Some(Key { key_hash: key, request_hash: key, response: b"{}".to_vec() }),
        bulk: None,
        messages: vec![new],
    }
}

/// The event in its envelope.
fn body(message: &Inbound) -> String {
    let time = |at: &chrono::DateTime<chrono::Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    json!({
        "type": RECEIVED,
        "timestamp": time(&message.created_at),
        "data": {
            "id": message.id,
            "session_id": message.session,
            "channel": Channel::Whatsapp,
            "waha_id": message.waha_id,
            "from": message.sender,
            "to": message.recipient,
            "type": message.kind,
            "body": message.content.body,
            "media": message.content.media,
            "timestamp": time(&message.sent_at),
        },
    })
    .to_string()
}

fn hash(text: &[u8]) -> Hash {
    digest(&SHA256, text).as_ref().try_into().unwrap_or_default()
}
