//! All data of one person, as one JSON document that is streamed: memory holds one page at a time, however much there
//! is.

use std::{collections::BTreeSet, time::Duration};

use deliveries::{
    Deliveries,
    messages::{StoredDelivery, StoredEvent, StoredMessage},
};
use domain::{Channel, TenantId, clock, contract::time_of_day::time_of_day};
use records::{
    Records,
    contacts::Contact,
    inbox::{InboxFilter, InboxItem},
    suppressions::{Suppression, SuppressionFilter},
};
use serde::Serialize;
use serde_json::{Value, json};
use store::{DbResult, Store};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Rows of a page.
const PAGE: i64 = 50;
/// Messages per page: each may have tens of megabytes of attachments.
const MESSAGES: i64 = 10;
/// A reader that takes nothing for this long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most addresses whose suppressions are read.
const ADDRESSES_MAX: usize = 500;

/// The receiver of the document's parts.
pub type ChunkSender = mpsc::Sender<DbResult<Vec<u8>>>;

/// The reader of the document is gone, or the database failed.
enum WriteError {
    ReaderGone,
    Db(store::DbError),
}

impl From<store::DbError> for WriteError {
    fn from(error: store::DbError) -> Self {
        Self::Db(error)
    }
}

/// The data of a person, in the form of the API.
pub fn person_json(contact: &Contact) -> Value {
    let Contact { person, devices, created_at, updated_at } = contact;
    let quiet =
        person.quiet_hours.map(|hours| json!({"start": time_of_day(hours.start), "end": time_of_day(hours.end)}));
    let devices: Vec<Value> = devices
        .iter()
        .map(|device| json!({"id": device.id, "platform": device.platform, "created_at": device.created_at}))
        .collect();
    json!({"id": person.id, "email": person.email, "phone": person.phone, "name": person.name, "locale": person.locale,
        "time_zone": person.time_zone.map(chrono_tz::Tz::name), "quiet_hours": quiet, "attributes": person.attributes,
        "devices": devices, "created_at": created_at, "updated_at": updated_at})
}

/// Writes the document to `out`, part by part. Ends early if the reader is gone. `by_address`: includes data that is
/// linked to the person only by an address; otherwise those lists are empty.
pub async fn write(store: &Store, tenant: TenantId, user_id: &str, by_address: bool, out: ChunkSender) -> DbResult<()> {
    let mut file = File { store, tenant, user_id, by_address, out, addresses: BTreeSet::new() };
    match file.write().await {
        Ok(()) | Err(WriteError::ReaderGone) => Ok(()),
        Err(WriteError::Db(error)) => Err(error),
    }
}

struct File<'a> {
    store: &'a Store,
    tenant: TenantId,
    user_id: &'a str,
    by_address: bool,
    out: ChunkSender,
    /// The person's addresses that deliveries used.
    addresses: BTreeSet<String>,
}

/// Writes a list, page by page. `$read` returns the rows of the page before an id (or another key), each with its own.
macro_rules! list {
    ($file:ident, $name:literal, |$before:ident| $read:expr) => {
        list!($file, $name, Uuid::max(), |$before| $read)
    };
    ($file:ident, $name:literal, $newest:expr, |$before:ident| $read:expr) => {{
        $file.put(format!(concat!(",\"", $name, "\":[")).into_bytes()).await?;
        let (mut $before, mut is_first) = ($newest, true);
        loop {
            let rows: Vec<(_, Value)> = $read;
            let Some((last, _)) = rows.last() else { break };
            $before = *last;
            for (_, row) in &rows {
                let comma = if std::mem::take(&mut is_first) { "" } else { "," };
                $file.put(format!("{comma}{row}").into_bytes()).await?;
            }
        }
        $file.put(b"]".to_vec()).await?;
    }};
}

impl File<'_> {
    async fn put(&self, piece: Vec<u8>) -> Result<(), WriteError> {
        self.out.send_timeout(Ok(piece), PATIENCE).await.map_err(|_| WriteError::ReaderGone)
    }

    async fn member(&self, name: &str, value: &impl Serialize) -> Result<(), WriteError> {
        let value = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
        self.put(format!(",\"{name}\":{value}").into_bytes()).await
    }

    async fn write(&mut self) -> Result<(), WriteError> {
        let (store, tenant, user_id) = (self.store, self.tenant, self.user_id);
        self.put(format!("{{\"user_id\":{},\"exported_at\":{}", json!(user_id), json!(clock::now())).into_bytes())
            .await?;
        let contact = store.contacts().find(tenant, user_id).await?;
        let known = store.people().load(tenant, vec![user_id.to_owned()]).await?.remove(user_id).unwrap_or_default();
        for channel in [Channel::Email, Channel::Sms, Channel::Push] {
            self.addresses.extend(known.addresses(channel).iter().map(|address| address.reveal().to_owned()));
        }
        self.member("user", &contact.as_ref().map(person_json)).await?;
        self.member("devices", &store.person_files().devices_as_stored(tenant, user_id).await?).await?;
        self.member("preferences", &store.person_files().preferences_as_stored(tenant, user_id).await?).await?;
        list!(self, "inbox", i64::MAX, |before| {
            let items = store.inbox().list(tenant, user_id, InboxFilter::default(), Some(before), PAGE).await?;
            items.into_iter().map(|item| (item.seq, inbox_item(&item))).collect()
        });
        list!(self, "messages", |before| self.messages(before).await?);
        list!(self, "events", |before| store.person_files().events_about(tenant, user_id, before, PAGE).await?);
        list!(self, "digests", |before| store.person_files().digests_of(tenant, user_id, before, PAGE).await?);
        list!(self, "whatsapp_received", |before| match &known.phone {
            Some(phone) if self.by_address => store.person_files().inbound_from(tenant, phone, before, PAGE).await?,
            _ => Vec::new(),
        });
        if !self.by_address {
            self.addresses.clear();
        }
        self.member("suppressions", &self.suppressions().await?).await?;
        self.put(b"}".to_vec()).await
    }

    async fn messages(&mut self, before: Uuid) -> DbResult<Vec<(Uuid, Value)>> {
        let mut page = Vec::new();
        for (mut message, events) in self.store.messages().sent_to(self.tenant, self.user_id, before, MESSAGES).await? {
            if message.content.is_none() {
                let whole = self.store.messages().find(Some(self.tenant), message.id).await?;
                message.content = whole.and_then(|whole| whole.content);
            }
            for delivery in &message.deliveries {
                if self.addresses.len() < ADDRESSES_MAX && delivery.channel != Channel::Webhook {
                    self.addresses.insert(delivery.recipient.reveal().to_owned());
                }
            }
            page.push((message.id.0, message_of(&message, &events)));
        }
        Ok(page)
    }

    async fn suppressions(&self) -> DbResult<Vec<Value>> {
        let mut found = Vec::new();
        for address in self.addresses.iter().filter(|address| !address.is_empty()) {
            let filter = SuppressionFilter { recipient: Some(address.clone()), channel: None };
            let rows = self.store.suppressions().list(self.tenant, &filter, None, PAGE).await?;
            found.extend(rows.iter().map(|row| suppression(address, row)));
        }
        Ok(found)
    }
}

fn content(json: Option<&[u8]>) -> Option<Value> {
    serde_json::from_slice(json?).ok()
}

fn inbox_item(item: &InboxItem) -> Value {
    json!({"id": item.id, "content": content(Some(&item.content)), "read_at": item.read_at, "created_at": item.created_at})
}

fn message_of(message: &StoredMessage, events: &[StoredEvent]) -> Value {
    json!({"id": message.id.0, "category": message.category, "priority": message.priority, "source": message.source,
        "content": content(message.content.as_deref()), "scheduled_at": message.scheduled_at, "expires_at": message.expires_at,
        "created_at": message.created_at, "deliveries": message.deliveries.iter().map(delivery).collect::<Vec<_>>(),
        "events": events.iter().map(event).collect::<Vec<_>>()})
}

fn delivery(delivery: &StoredDelivery) -> Value {
    json!({"id": delivery.id.0, "channel": delivery.channel, "recipient": delivery.recipient.reveal(), "status": delivery.state,
        "engagement": delivery.engagement, "provider": delivery.provider, "reason": delivery.reason,
        "updated_at": delivery.updated_at})
}

fn event(event: &StoredEvent) -> Value {
    let (provider, outcome) = event.attempt.as_ref().map(|attempt| (&attempt.provider, attempt.outcome)).unzip();
    json!({"delivery_id": event.delivery.0, "kind": event.kind, "at": event.at, "provider": provider, "outcome": outcome,
        "detail": event.detail})
}

fn suppression(address: &str, row: &Suppression) -> Value {
    json!({"id": row.id, "channel": row.channel, "address": row.address.as_deref().unwrap_or(address), "scope": row.scope,
        "reason": row.reason, "created_at": row.created_at})
}
