//! Messages as producers query them: one message, its log, a filtered list, the counts of a bulk, and cancelling.
//!
//! A scope of `None` means every tenant. A delivery is created right after its message, and a message right after its
//! bulk, by one process, so their ids lie within a minute of each other. The statements name that range: then only the
//! partitions in question are opened, and even a poor plan reads no more than a minute's rows.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Address, BulkId, Channel, DeliveryId, EventKind, MessageId, OutcomeClass, State, TenantId};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
    statement::Query,
};
use uuid::Uuid;

use crate::{MessageStore, events};

/// Messages read by the first statement of a search; enough for any page without a filter.
const WINDOW_MIN: i64 = 1000;
/// Messages read by one statement: about a quarter of a second.
const WINDOW_MAX: i64 = 16_000;
/// A search answers with the messages found so far after this time.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// Sealed messages decrypted together in a search: their contents are in memory at the same time.
const OPENED_TOGETHER: usize = 200;

/// A message with its deliveries.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// The tenant of the message.
    pub tenant: TenantId,
    /// The bulk it belongs to.
    pub bulk: Option<BulkId>,
    /// The person.
    pub user_id: Option<String>,
    /// The category of the message.
    pub category: Option<String>,
    /// As asked.
    pub priority: String,
    /// `http` or `amqp`.
    pub source: String,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The content as JSON. A list leaves out content larger than a few pages.
    pub content: Option<Vec<u8>>,
    /// When it is to be sent.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// To whom and how.
    pub deliveries: Vec<StoredDelivery>,
}

/// A delivery as it stands.
#[derive(Clone, Debug)]
pub struct StoredDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its channel.
    pub channel: Channel,
    /// To whom.
    pub recipient: Address,
    /// Where it stands.
    pub state: State,
    /// The recipient's actions.
    pub engagement: Vec<EventKind>,
    /// The provider of the last attempt.
    pub provider: Option<String>,
    /// Calls to providers so far.
    pub attempts: i64,
    /// Why it waits or ended without a provider call, as a word.
    pub reason: Option<String>,
    /// When it is sent, if it waits for a time.
    pub due_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A row of the delivery log.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The delivery of the event.
    pub delivery: DeliveryId,
    /// The run that made it.
    pub run: i32,
    /// The kind of the event.
    pub kind: EventKind,
    /// When.
    pub at: DateTime<Utc>,
    /// The provider call behind it.
    pub attempt: Option<StoredAttempt>,
    /// One clause on the cause, also if there was no provider call.
    pub detail: Option<String>,
}

/// A call to a provider.
#[derive(Clone, Debug)]
pub struct StoredAttempt {
    /// The provider that was called.
    pub provider: String,
    /// How it ended.
    pub outcome: Option<OutcomeClass>,
    /// The provider's code.
    pub code: Option<String>,
    /// How long it took.
    pub duration_ms: Option<i32>,
    /// The provider's own id.
    pub provider_ref: Option<String>,
}

/// Selects messages for a list; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// It has a delivery in this state.
    pub status: Option<State>,
    /// It has a delivery on this channel.
    pub channel: Option<Channel>,
    /// The person.
    pub user_id: Option<String>,
    /// Accepted at or after.
    pub from: Option<DateTime<Utc>>,
    /// Accepted at or before.
    pub to: Option<DateTime<Utc>>,
    /// Exactly to there.
    pub recipient: Option<String>,
    /// Part of the recipient or the content; case does not matter.
    pub text: Option<String>,
}

/// Which part of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Only messages older than this.
    pub before: Option<MessageId>,
    /// Skipped before the first.
    pub skip: usize,
    /// The maximum number.
    pub limit: usize,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct MessagePage {
    /// Newest first. If the search took too long, there are fewer than requested although more match.
    pub messages: Vec<StoredMessage>,
    /// The start of the next page, which is before this message; `None`: this is the last page.
    pub next: Option<MessageId>,
}

/// A bulk and the states of its deliveries.
#[derive(Clone, Debug)]
pub struct BulkCounts {
    /// Recipients that were refused.
    pub refused: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Deliveries by state; states without any are left out.
    pub states: Vec<(State, i64)>,
}

row! {
    struct MessageRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        bulk_id: Option<Uuid> as Nullable<SqlUuid>,
        user_id: Option<String> as Nullable<Text>,
        category: Option<String> as Nullable<Text>,
        priority: String as Text,
        source: String as Text,
        request_id: Option<String> as Nullable<Text>,
        content: Option<Vec<u8>> as Nullable<Binary>,
        scheduled_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        expires_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct DeliveryRow {
        message_id: Uuid as SqlUuid,
        id: Uuid as SqlUuid,
        channel: String as Text,
        recipient: String as Text,
        state: String as Text,
        engagement: Vec<String> as Array<Text>,
        provider: Option<String> as Nullable<Text>,
        attempts: i64 as Int8,
        reason: Option<String> as Nullable<Text>,
        due_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        updated_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    /// A message with its tenant, content and recipients, as stored.
    struct SealedRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        content: Option<Vec<u8>> as Nullable<Binary>,
        recipients: Vec<String> as Array<Text>,
    }
}

row! {
    struct EventRow {
        delivery_id: Uuid as SqlUuid,
        run: i32 as Int4,
        kind: String as Text,
        at: DateTime<Utc> as Timestamptz,
        provider: Option<String> as Nullable<Text>,
        outcome: Option<String> as Nullable<Text>,
        code: Option<String> as Nullable<Text>,
        detail: Option<String> as Nullable<Text>,
        duration_ms: Option<i32> as Nullable<Int4>,
        provider_ref: Option<String> as Nullable<Text>,
    }
}

row! {
    /// A bulk, and one state of its deliveries.
    struct BulkRow {
        refused: i32 as Int4,
        created_at: DateTime<Utc> as Timestamptz,
        state: Option<String> as Nullable<Text>,
        count: i64 as Int8,
    }
}

impl MessageStore<'_> {
    /// A message of the tenant.
    pub async fn find(self, scope: Option<TenantId>, id: MessageId) -> DbResult<Option<StoredMessage>> {
        let rows = One { id: id.0, tenant: number(scope) }.query().within(scope).rows(self.store).await?;
        Ok(self.with_deliveries(scope, rows).await?.pop())
    }

    /// A page of the tenant's messages, newest first. A filter that few messages pass could read every message. So the
    /// search ends when its time is up, and returns where to continue.
    pub async fn list(self, scope: Option<TenantId>, filter: MessageFilter, page: Page) -> DbResult<MessagePage> {
        let wanted = page.skip + page.limit;
        let search = Search::new(scope, filter, page.before);
        let exact = if self.store.sealer().is_on() { self.exactly(&search).await? } else { None };
        let (mut ids, next) = match exact {
            Some(hashes) => self.search_recipient(&search, hashes, wanted).await?,
            None => self.search(&search, wanted).await?,
        };
        let ids = ids.split_off(page.skip.min(ids.len()));
        let rows = Many { ids }.query().within(scope).rows(self.store).await?;
        Ok(MessagePage { messages: self.with_deliveries(scope, rows).await?, next: next.map(MessageId) })
    }

    /// The ids of the first `wanted` messages that match, and where to continue if there may be more.
    async fn search(self, search: &Search, wanted: usize) -> DbResult<(Vec<Uuid>, Option<Uuid>)> {
        let (started, mut high, mut window) = (Instant::now(), search.high, WINDOW_MIN);
        let mut ids: Vec<Uuid> = Vec::new();
        loop {
            // One more than wanted shows whether there are more.
            let missing = wanted + 1 - ids.len();
            ids.extend(match &search.filter.text {
                Some(text) if self.store.sealer().is_on() => self.opened_matches(search, text, high, window).await?,
                _ => search.matches(high, window, count(missing)).rows(self.store).await?,
            });
            if ids.len() > wanted {
                ids.truncate(wanted);
                let last = ids.last().copied();
                return Ok((ids, last));
            }
            let Some(end) = search.end_of(high, window).first(self.store).await? else { return Ok((ids, None)) };
            if started.elapsed() > SEARCH_TIME {
                return Ok((ids, Some(end)));
            }
            let largest =
                if search.filter.text.is_some() && self.store.sealer().is_on() { WINDOW_MIN } else { WINDOW_MAX };
            (high, window) = (end, (window * 2).min(largest));
        }
    }

    /// If recipients are sealed: the fingerprints of the recipient to search for; none if the text is only part of a
    /// recipient.
    async fn exactly(self, search: &Search) -> DbResult<Option<Vec<Vec<u8>>>> {
        // A fingerprint belongs to one tenant.
        let Some(tenant) = search.scope else { return Ok(None) };
        let hashes = |text: &str| -> Vec<Vec<u8>> {
            self.store.sealer().fingerprints(&tenant.to_string(), text).iter().map(|hash| hash.to_vec()).collect()
        };
        if let Some(recipient) = &search.filter.recipient {
            return Ok(Some(hashes(recipient)));
        }
        let Some(text) = &search.filter.text else { return Ok(None) };
        let is_recipient = IsRecipient { hashes: hashes(text) }.query().within(search.scope).row(self.store).await?;
        Ok(is_recipient.then(|| hashes(text)))
    }

    /// As [`MessageStore::search`], for messages to one recipient, which an index finds.
    async fn search_recipient(
        self,
        search: &Search,
        hashes: Vec<Vec<u8>>,
        wanted: usize,
    ) -> DbResult<(Vec<Uuid>, Option<Uuid>)> {
        let Search { scope, ref filter, low, high } = *search;
        let sent = ToRecipient {
            hashes,
            low,
            high,
            status: filter.status.map(State::as_str),
            channel: filter.channel.map(Channel::as_str),
            user_id: filter.user_id.clone(),
            limit: count(wanted + 1),
        };
        let mut ids = sent.query().within(scope).rows(self.store).await?;
        let more = ids.len() > wanted;
        ids.truncate(wanted);
        let last = ids.last().copied().filter(|_| more);
        Ok((ids, last))
    }

    /// Those of the `window` messages below `high` whose decrypted recipients or content contain `text`.
    async fn opened_matches(self, search: &Search, text: &str, high: Uuid, window: i64) -> DbResult<Vec<Uuid>> {
        let candidates: Vec<Uuid> = Search { filter: MessageFilter { text: None, ..search.filter.clone() }, ..*search }
            .matches(high, window, window)
            .rows(self.store)
            .await?;
        let (part, json_part) = (text.to_lowercase(), as_stored(text).to_lowercase());
        let mut found = Vec::new();
        for ids in candidates.chunks(OPENED_TOGETHER) {
            let rows = SealedTexts { ids: ids.to_vec() }.query().within(search.scope).rows(self.store).await?;
            for SealedRow { id, tenant_id, content, recipients } in rows {
                let tenant = TenantId(tenant_id);
                let content = content.and_then(|content| self.store.opened(sealed::CONTENT.of(tenant), content));
                let content = content.unwrap_or_default();
                let place = sealed::RECIPIENT.of(tenant);
                let mut recipients =
                    recipients.into_iter().filter_map(|recipient| self.store.opened_text(place, recipient));
                let holds = |text: &str, part: &str| text.to_lowercase().contains(part);
                let matches = holds(&String::from_utf8_lossy(&content), &json_part)
                    || recipients.any(|recipient| holds(&recipient, &part));
                found.extend(matches.then_some(id));
            }
        }
        Ok(found)
    }

    /// The log of a message's deliveries, oldest first; `None` if the tenant has no such message.
    pub async fn timeline(
        self,
        scope: Option<TenantId>,
        id: MessageId,
    ) -> DbResult<Option<(StoredMessage, Vec<StoredEvent>)>> {
        let Some(message) = self.find(scope, id).await? else { return Ok(None) };
        let ids: Vec<Uuid> = message.deliveries.iter().map(|delivery| delivery.id.0).collect();
        let rows = Events { ids: ids.clone() }.query().in_partition_of(&ids).within(scope).rows(self.store).await?;
        Ok(Some((message, rows.into_iter().filter_map(event).collect())))
    }

    /// Up to `limit` messages to a person with their log, newest first; only those older than `before`. Content beyond
    /// a few pages is left out, see [`MessageStore::find`].
    pub async fn sent_to(
        self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(StoredMessage, Vec<StoredEvent>)>> {
        let scope = Some(tenant);
        let newest = IdsTo { tenant: tenant.0, user_id: user_id.to_owned(), before, limit };
        let ids = newest.query().within(scope).rows(self.store).await?;
        let rows = Many { ids }.query().within(scope).rows(self.store).await?;
        let messages = self.with_deliveries(scope, rows).await?;
        let deliveries = messages.iter().flat_map(|message| &message.deliveries);
        let ids = deliveries.map(|delivery| delivery.id.0).collect();
        let rows = Events { ids }.query().within(scope).rows(self.store).await?;
        let mut events: Vec<StoredEvent> = rows.into_iter().filter_map(event).collect();
        let mut own = |message: StoredMessage| {
            let is_own = |event: &mut StoredEvent| message.deliveries.iter().any(|one| one.id == event.delivery);
            let log = events.extract_if(.., is_own).collect();
            (message, log)
        };
        Ok(messages.into_iter().map(&mut own).collect())
    }

    /// Cancels the deliveries of a message that wait to be sent, with log rows and counters; returns their number.
    /// Deliveries that a worker has claimed are not changed.
    pub async fn cancel(self, scope: Option<TenantId>, id: MessageId) -> DbResult<i64> {
        self.cancel_all(scope, WaitingOfMessage { id: id.0, tenant: number(scope) }.query()).await
    }

    /// As [`MessageStore::cancel`], for the deliveries of a broadcast between two of them.
    pub(crate) async fn cancel_page(
        self,
        tenant: TenantId,
        broadcast: Uuid,
        (first, last): (Uuid, Uuid),
    ) -> DbResult<i64> {
        self.cancel_all(Some(tenant), WaitingOfPage { broadcast, tenant: tenant.0, first, last }.query()).await
    }

    async fn cancel_all(self, scope: Option<TenantId>, waiting: Query<Uuid, SqlUuid>) -> DbResult<i64> {
        let mut conn = self.store.within(scope).await?;
        let cancelled = match waiting.rows_on(&mut conn).await {
            Ok(ids) => events::cancel(&mut conn, ids, None).await,
            Err(error) => Err(error),
        };
        conn.done(cancelled).await.map(|cancelled| count(cancelled.len()))
    }

    /// The states of a bulk's deliveries.
    pub async fn bulk_counts(self, scope: Option<TenantId>, id: BulkId) -> DbResult<Option<BulkCounts>> {
        let rows = Bulk { id: id.0, tenant: number(scope) }.query().within(scope).rows(self.store).await?;
        let Some(&BulkRow { refused, created_at, .. }) = rows.first() else { return Ok(None) };
        let states = rows.iter().filter_map(|row| Some((row.state.as_deref()?.parse().ok()?, row.count))).collect();
        Ok(Some(BulkCounts { refused, created_at, states }))
    }

    async fn with_deliveries(self, scope: Option<TenantId>, rows: Vec<MessageRow>) -> DbResult<Vec<StoredMessage>> {
        let mut messages: Vec<StoredMessage> = rows.into_iter().map(StoredMessage::from).collect();
        for message in &mut messages {
            let content = message.content.take();
            message.content =
                content.and_then(|content| self.store.opened(sealed::CONTENT.of(message.tenant), content));
        }
        if messages.is_empty() {
            return Ok(messages);
        }
        let ids = messages.iter().map(|message| message.id.0).collect();
        let engagement = EventKind::words(|info| info.is_engagement);
        for mut row in (Deliveries { ids, engagement }).query().within(scope).rows(self.store).await? {
            let Some(owner) = messages.iter_mut().find(|message| message.id.0 == row.message_id) else { continue };
            row.recipient =
                self.store.opened_text(sealed::RECIPIENT.of(owner.tenant), row.recipient).unwrap_or_default();
            owner.deliveries.extend(delivery(row));
        }
        Ok(messages)
    }
}

/// A search through a list, window by window.
struct Search {
    scope: Option<TenantId>,
    filter: MessageFilter,
    low: Uuid,
    high: Uuid,
}

impl Search {
    fn new(scope: Option<TenantId>, filter: MessageFilter, before: Option<MessageId>) -> Self {
        let low = filter.from.map_or(Uuid::nil(), floor);
        let high =
            filter.to.and_then(|to| to.checked_add_signed(TimeDelta::milliseconds(1))).map_or(Uuid::max(), floor);
        Self { scope, filter, low, high: before.map_or(high, |before| before.0.min(high)) }
    }

    /// Those of the `window` messages below `high` that match.
    fn matches(&self, high: Uuid, window: i64, limit: i64) -> Query<Uuid, SqlUuid> {
        let Self { scope, ref filter, low, .. } = *self;
        let tenant = number(scope);
        let (status, channel) = (filter.status.map(State::as_str), filter.channel.map(Channel::as_str));
        let (user_id, recipient) = (filter.user_id.clone(), filter.recipient.clone());
        let (part, json_part) = (filter.text.clone(), filter.text.as_deref().map(as_stored));
        let query = if scope.is_some() {
            MatchesOfTenant { status, channel, user_id, recipient, part, json_part, tenant, low, high, window, limit }
                .query()
        } else {
            MatchesOfAll { status, channel, user_id, recipient, part, json_part, tenant, low, high, window, limit }
                .query()
        };
        query.within(scope)
    }

    /// The last of the `window` messages below `high`; none if there are fewer.
    fn end_of(&self, high: Uuid, window: i64) -> Query<Uuid, SqlUuid> {
        let (tenant, low, skip) = (number(self.scope), self.low, window - 1);
        let query = match self.scope {
            Some(_) => EndOfTenant { tenant, low, high, skip }.query(),
            None => EndOfAll { tenant, low, high, skip }.query(),
        };
        query.within(self.scope)
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn number(scope: Option<TenantId>) -> Option<i32> {
    scope.map(|tenant| tenant.0)
}

/// The smallest UUIDv7 of a time, as the SQL function `uuid7_floor` returns it.
pub fn floor(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(millis.min((1 << 48) - 1) << 80)
}

/// The form of a text inside stored JSON.
fn as_stored(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap_or_default();
    json.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned()
}

impl From<MessageRow> for StoredMessage {
    fn from(row: MessageRow) -> Self {
        Self {
            id: MessageId(row.id),
            tenant: TenantId(row.tenant_id),
            bulk: row.bulk_id.map(BulkId),
            user_id: row.user_id,
            category: row.category,
            priority: row.priority,
            source: row.source,
            request_id: row.request_id,
            content: row.content,
            scheduled_at: row.scheduled_at,
            expires_at: row.expires_at,
            created_at: row.created_at,
            deliveries: Vec::new(),
        }
    }
}

/// A row with a word that this version does not know is left out.
fn delivery(row: DeliveryRow) -> Option<StoredDelivery> {
    let (channel, state): (Channel, State) = (row.channel.parse().ok()?, row.state.parse().ok()?);
    Some(StoredDelivery {
        id: DeliveryId(row.id),
        channel,
        recipient: Address::new(row.recipient),
        state,
        engagement: row.engagement.iter().filter_map(|word| word.parse().ok()).collect(),
        provider: row.provider,
        attempts: row.attempts,
        reason: row.reason,
        due_at: row.due_at.filter(|_| !state.is_end()),
        updated_at: row.updated_at,
    })
}

fn event(row: EventRow) -> Option<StoredEvent> {
    let EventRow { delivery_id, run, kind, at, provider, outcome, code, detail, duration_ms, provider_ref } = row;
    let outcome = outcome.and_then(|word| word.parse().ok());
    let attempt = provider.map(|provider| StoredAttempt { provider, outcome, code, duration_ms, provider_ref });
    Some(StoredEvent { delivery: DeliveryId(delivery_id), run, kind: kind.parse().ok()?, at, attempt, detail })
}

sql!(One in "messages/one.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> } -> MessageRow);
sql!(Many in "messages/many.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> MessageRow);
sql!(Deliveries in "messages/deliveries.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, engagement: Vec<&'static str> as Array<Text>
} -> DeliveryRow);
sql!(Events in "messages/events.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> EventRow);
sql!(MatchesOfTenant in "messages/matches_of_tenant.sql" {
    status: Option<&'static str> as Nullable<Text>,
    channel: Option<&'static str> as Nullable<Text>,
    user_id: Option<String> as Nullable<Text>,
    recipient: Option<String> as Nullable<Text>,
    part: Option<String> as Nullable<Text>,
    json_part: Option<String> as Nullable<Text>,
    tenant: Option<i32> as Nullable<Int4>,
    low: Uuid as SqlUuid,
    high: Uuid as SqlUuid,
    window: i64 as Int8,
    limit: i64 as Int8,
} -> Uuid as SqlUuid);
sql!(MatchesOfAll in "messages/matches_of_all.sql" {
    status: Option<&'static str> as Nullable<Text>,
    channel: Option<&'static str> as Nullable<Text>,
    user_id: Option<String> as Nullable<Text>,
    recipient: Option<String> as Nullable<Text>,
    part: Option<String> as Nullable<Text>,
    json_part: Option<String> as Nullable<Text>,
    tenant: Option<i32> as Nullable<Int4>,
    low: Uuid as SqlUuid,
    high: Uuid as SqlUuid,
    window: i64 as Int8,
    limit: i64 as Int8,
} -> Uuid as SqlUuid);
sql!(EndOfTenant in "messages/end_of_tenant.sql" {
    tenant: Option<i32> as Nullable<Int4>, low: Uuid as SqlUuid, high: Uuid as SqlUuid, skip: i64 as Int8
} -> Uuid as SqlUuid);
sql!(EndOfAll in "messages/end_of_all.sql" {
    tenant: Option<i32> as Nullable<Int4>, low: Uuid as SqlUuid, high: Uuid as SqlUuid, skip: i64 as Int8
} -> Uuid as SqlUuid);
sql!(IsRecipient in "messages/is_recipient.sql" { hashes: Vec<Vec<u8>> as Array<Binary> } -> bool as Bool);
sql!(ToRecipient in "messages/to_recipient.sql" {
    hashes: Vec<Vec<u8>> as Array<Binary>,
    low: Uuid as SqlUuid,
    high: Uuid as SqlUuid,
    status: Option<&'static str> as Nullable<Text>,
    channel: Option<&'static str> as Nullable<Text>,
    user_id: Option<String> as Nullable<Text>,
    limit: i64 as Int8,
} -> Uuid as SqlUuid);
sql!(SealedTexts in "messages/sealed_texts.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> SealedRow);
sql!(IdsTo in "messages/ids_to.sql" {
    tenant: i32 as Int4, user_id: String as Text, before: Uuid as SqlUuid, limit: i64 as Int8
} -> Uuid as SqlUuid);
sql!(WaitingOfMessage in "messages/waiting_of_message.sql" {
    id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4>
} -> Uuid as SqlUuid);
sql!(WaitingOfPage in "messages/waiting_of_page.sql" {
    broadcast: Uuid as SqlUuid, tenant: i32 as Int4, first: Uuid as SqlUuid, last: Uuid as SqlUuid
} -> Uuid as SqlUuid);
sql!(Bulk in "messages/bulk.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> } -> BulkRow);
statements!(
    One,
    Many,
    Deliveries,
    Events,
    MatchesOfTenant,
    MatchesOfAll,
    EndOfTenant,
    EndOfAll,
    IsRecipient,
    ToRecipient,
    SealedTexts,
    IdsTo,
    WaitingOfMessage,
    WaitingOfPage,
    Bulk,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_of_a_moment_is_below_every_id_of_it_and_above_those_before() {
        let at = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        assert_eq!(floor(at).to_string(), "01a3185c-507b-0000-0000-000000000000");
        assert_eq!(floor(DateTime::<Utc>::MIN_UTC), Uuid::nil());
    }

    #[test]
    fn a_text_is_searched_as_json_has_it() {
        assert_eq!(as_stored("say \"hi\"\n"), "say \\\"hi\\\"\\n");
        assert_eq!(as_stored("\""), "\\\"");
    }
}
