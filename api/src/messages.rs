//! Reading messages: one message, its timeline, a list; and cancelling a message.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use deliveries::{
    Deliveries,
    messages::{MessageFilter, Page, StoredAttempt, StoredDelivery, StoredEvent, StoredMessage},
};
use domain::{Channel, DeliveryId, EventKind, MessageId, State};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::Store;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web,
    auth::Reader,
    params::{self, Id, Params, Text},
    problem::{Code, Problem},
};

/// A message and its deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Message)]
pub struct MessageView {
    /// The message.
    pub id: Uuid,
    /// The least finished status of its deliveries.
    #[schema(value_type = String, example = "delivered")]
    pub status: Option<State>,
    /// The channel of its first delivery.
    #[schema(value_type = String, example = "webhook")]
    pub channel: Option<Channel>,
    /// The channels of all its deliveries.
    #[schema(value_type = Vec<String>)]
    pub channels: Vec<Channel>,
    /// The category of the message.
    pub category: Option<String>,
    /// `low`, `normal`, `high` or `urgent`.
    pub priority: String,
    /// The person.
    pub user_id: Option<String>,
    /// The bulk it belongs to.
    pub bulk_id: Option<Uuid>,
    /// `http` or `amqp`.
    pub source: String,
    /// The `X-Request-Id` of its submission.
    pub request_id: Option<String>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it is sent, if not at once.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The producer's own notes, unchanged; a list leaves out those of messages beyond 64 KiB.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Box<RawValue>>,
    /// To whom and how.
    pub deliveries: Vec<DeliveryView>,
}

/// A delivery as it stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryView {
    /// The delivery.
    pub id: Uuid,
    /// Its channel.
    #[schema(value_type = String, example = "webhook")]
    pub channel: Channel,
    /// To whom.
    pub recipient: String,
    /// Where it stands.
    #[schema(value_type = String, example = "delivered")]
    pub status: State,
    /// The recipient's actions: `read`, `opened`, `clicked`, `complained`.
    #[schema(value_type = Vec<String>, example = json!(["opened"]))]
    pub engagement: Vec<EventKind>,
    /// The provider of the last attempt.
    pub provider: Option<String>,
    /// Calls to providers so far.
    pub attempts: i64,
    /// Why it waits or ended without a call: `no_address`, `address_dead`, `hard_bounce`, `soft_bounces`, `complaint`,
    /// `unsubscribed`, `preference`, `quiet_hours`, `send_window` or `throttled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it is sent, while it is `scheduled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl From<StoredDelivery> for DeliveryView {
    fn from(stored: StoredDelivery) -> Self {
        Self {
            id: stored.id.0,
            channel: stored.channel,
            recipient: stored.recipient.into_inner(),
            status: stored.state,
            engagement: stored.engagement,
            provider: stored.provider,
            attempts: stored.attempts,
            reason: stored.reason,
            scheduled_at: stored.due_at.filter(|_| stored.state == State::Scheduled),
            updated_at: stored.updated_at,
        }
    }
}

/// The one part of a message's content that the API returns.
#[derive(Deserialize)]
struct Notes {
    #[serde(default)]
    metadata: Option<Box<RawValue>>,
}

impl From<StoredMessage> for MessageView {
    fn from(stored: StoredMessage) -> Self {
        let notes = stored.content.and_then(|content| serde_json::from_slice::<Notes>(&content).ok());
        let mut channels: Vec<Channel> = stored.deliveries.iter().map(|delivery| delivery.channel).collect();
        channels.dedup();
        Self {
            id: stored.id.0,
            status: State::of_message(stored.deliveries.iter().map(|delivery| delivery.state)),
            channel: channels.first().copied(),
            channels,
            category: stored.category,
            priority: stored.priority,
            user_id: stored.user_id,
            bulk_id: stored.bulk.map(|bulk| bulk.0),
            source: stored.source,
            request_id: stored.request_id,
            created_at: stored.created_at,
            scheduled_at: stored.scheduled_at,
            expires_at: stored.expires_at,
            metadata: notes.and_then(|notes| notes.metadata),
            deliveries: stored.deliveries.into_iter().map(DeliveryView::from).collect(),
        }
    }
}

/// A message with its deliveries.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/messages/{id}", tag = "messages", params(("id" = Uuid, Path, description = "The message")),
    responses((status = 200, description = "The message", body = MessageView)))]
pub async fn show(reader: Reader, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (reader.0.scope(), MessageId(id.0));
    let found = web.queries.run(async move |store| store.messages().find(scope, id).await).await?;
    let message = found.ok_or_else(|| Problem::not_found("message"))?;
    Ok(HttpResponse::Ok().json(MessageView::from(message)))
}

/// Every attempt and every event of a message, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timeline {
    /// The message.
    pub message_id: Uuid,
    /// One for each call to a provider.
    pub attempts: Vec<AttemptView>,
    /// The events.
    pub events: Vec<EventView>,
}

/// One call to a provider.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptView {
    /// The delivery.
    pub delivery_id: Uuid,
    /// Counts the calls for this delivery, from 1.
    pub attempt: usize,
    /// The provider that was called.
    #[schema(example = "http")]
    pub provider: String,
    /// How it ended: `sent`, `transient`, `throttled`, `rejected`, `address_dead`, `misconfigured` or `unknown`.
    #[schema(example = "sent")]
    pub outcome: Option<&'static str>,
    /// The provider's status or reply code.
    #[schema(example = "200")]
    pub code: Option<String>,
    /// The failure, as a clause.
    pub detail: Option<String>,
    /// How long the call took.
    pub duration_ms: Option<i32>,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// The provider's own id.
    pub provider_message_id: Option<String>,
}

/// A fact about a delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventView {
    /// When.
    pub at: DateTime<Utc>,
    /// The delivery.
    pub delivery_id: Uuid,
    /// `accepted`, then `sent`, `delivered`, `failed`, `retrying`, `ambiguous`, `dead`, `suppressed`, `expired`,
    /// `cancelled` or `replayed`.
    #[schema(example = "delivered")]
    pub kind: &'static str,
    /// The provider that was called, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The provider's status or reply code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, in a clause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Every attempt and event of a message.
///
/// Each call to a provider is one attempt. A call whose end is unknown (a timeout, a crash) has the outcome `unknown`
/// and an event `ambiguous`.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/messages/{id}/timeline", tag = "messages", params(("id" = Uuid, Path, description = "The message")),
    responses((status = 200, description = "The timeline, oldest first", body = Timeline)))]
pub async fn timeline(reader: Reader, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (reader.0.scope(), MessageId(id.0));
    let found = web.queries.run(async move |store| store.messages().timeline(scope, id).await).await?;
    let (message, events) = found.ok_or_else(|| Problem::not_found("message"))?;
    Ok(HttpResponse::Ok().json(build_timeline(&message, events)))
}

fn build_timeline(message: &StoredMessage, stored: Vec<StoredEvent>) -> Timeline {
    let mut attempts: Vec<AttemptView> = Vec::new();
    let mut events: Vec<EventView> = message.deliveries.iter().map(|delivery| accepted(message, delivery.id)).collect();
    for event in stored {
        events.push(EventView {
            at: event.at,
            delivery_id: event.delivery.0,
            kind: event.kind.as_str(),
            provider: event.attempt.as_ref().map(|call| call.provider.clone()),
            code: event.attempt.as_ref().and_then(|call| call.code.clone()),
            detail: event.detail.clone(),
        });
        if let Some(call) = event.attempt {
            let before = attempts.iter().filter(|attempt| attempt.delivery_id == event.delivery.0).count();
            attempts.push(attempt(call, event.delivery, event.at, event.detail, before + 1));
        }
    }
    Timeline { message_id: message.id.0, attempts, events }
}

fn accepted(message: &StoredMessage, delivery: DeliveryId) -> EventView {
    EventView {
        at: message.created_at,
        delivery_id: delivery.0,
        kind: "accepted",
        provider: None,
        code: None,
        detail: None,
    }
}

fn attempt(
    call: StoredAttempt,
    delivery: DeliveryId,
    at: DateTime<Utc>,
    detail: Option<String>,
    number: usize,
) -> AttemptView {
    AttemptView {
        delivery_id: delivery.0,
        attempt: number,
        provider: call.provider,
        outcome: call.outcome.map(|outcome| outcome.as_str()),
        code: call.code,
        detail,
        duration_ms: call.duration_ms,
        at,
        provider_message_id: call.provider_ref,
    }
}

/// Selects messages. An absent parameter does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// A delivery has this status: `scheduled queued sending retrying sent delivered failed bounced dead suppressed
    /// cancelled expired`; case does not matter.
    #[param(value_type = Option<String>, example = "delivered")]
    status: Option<Text>,
    /// A delivery has this channel.
    #[param(value_type = Option<String>, example = "webhook")]
    channel: Option<Text>,
    /// The person.
    #[param(value_type = Option<String>)]
    user_id: Option<Text>,
    /// Accepted at or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Text>,
    /// Accepted at or before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Text>,
    /// Exactly this recipient, as it was submitted.
    #[param(value_type = Option<String>, example = "ada@example.com")]
    recipient: Option<Text>,
    /// Part of the recipient or the content; case does not matter. If an encryption key is set, an exact recipient is
    /// found at once; for any other text messages are decrypted and searched, newest first, for two seconds a page.
    #[param(value_type = Option<String>)]
    q: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
    /// The number of the page, from 1; a cursor is faster.
    #[param(value_type = Option<u16>)]
    page: Option<Text>,
}

impl ListQuery {
    fn read(self) -> Result<(MessageFilter, Page), Problem> {
        let filter = MessageFilter {
            status: params::word("status", self.status)?,
            channel: params::word("channel", self.channel)?,
            user_id: params::given(self.user_id),
            from: params::time("from", self.from)?,
            to: params::time("to", self.to)?,
            recipient: params::given(self.recipient),
            text: params::given(self.q),
        };
        let limit = params::limit(self.limit)?;
        let skip = params::skip(self.page, limit)?;
        let (skip, limit) = (usize::try_from(skip).unwrap_or_default(), usize::try_from(limit).unwrap_or_default());
        Ok((filter, Page { before: params::cursor(self.cursor)?.map(MessageId), skip, limit }))
    }
}

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageList {
    /// The messages, newest first.
    pub messages: Vec<MessageView>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// Messages, newest first.
///
/// With a filter that few messages pass, the answer may be a short or even empty page after two seconds of search; its
/// `next_cursor` continues there.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/messages", tag = "messages", params(ListQuery),
    responses((status = 200, description = "A page of messages", body = MessageList)))]
pub async fn list(reader: Reader, query: Params<ListQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, (filter, page)) = (reader.0.scope(), query.0.read()?);
    let turn = if filter.text.is_some() { web.search_turn(reader.0.tenant).await? } else { None };
    let searching = async move |store: Store| {
        let found = store.messages().list(scope, filter, page).await;
        drop(turn);
        found
    };
    let page = web.queries.run(searching).await?;
    let messages = page.messages.into_iter().map(MessageView::from).collect();
    let next_cursor = page.next.map(|id| params::cursor_after(id.0));
    Ok(HttpResponse::Ok().json(MessageList { messages, next_cursor }))
}

/// Cancels the deliveries of a message that have not been sent.
///
/// Deliveries that are `scheduled`, `queued` or `retrying` become `cancelled`. If there is none, the answer is 409.
///
/// Roles: producer, admin, operator.
#[utoipa::path(post, path = "/api/messages/{id}/cancel", tag = "messages", params(("id" = Uuid, Path, description = "The message")),
    responses((status = 200, description = "The message after that", body = MessageView)))]
pub async fn cancel(reader: Reader, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (reader.0.scope(), MessageId(id.0));
    let (cancelled, found) = web
        .queries
        .run(async move |store| {
            Ok((store.messages().cancel(scope, id).await?, store.messages().find(scope, id).await?))
        })
        .await?;
    let message = MessageView::from(found.ok_or_else(|| Problem::not_found("message"))?);
    if cancelled > 0 {
        return Ok(HttpResponse::Ok().json(message));
    }
    let status = message.status.map_or("unknown", State::as_str);
    Err(Problem::new(Code::StateConflict, format!("Nothing can be taken back any more: the message is `{status}`.")))
}

#[cfg(test)]
mod tests {
    use domain::{Address, EventKind, OutcomeClass};

    use super::*;

    fn message() -> StoredMessage {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let delivery = StoredDelivery {
            engagement: Vec::new(),
            id: DeliveryId::generate(),
            channel: Channel::Webhook,
            recipient: Address::new("https://example.com/hook"),
            state: State::Delivered,
            provider: Some("http".to_owned()),
            attempts: 2,
            reason: None,
            due_at: None,
            updated_at: at,
        };
        StoredMessage {
            tenant: domain::TenantId(1),
            id: MessageId::generate(),
            bulk: None,
            user_id: None,
            category: None,
            priority: "normal".to_owned(),
            source: "http".to_owned(),
            request_id: None,
            content: Some(br#"{"message":"x","metadata":{"a":1.10}}"#.to_vec()),
            scheduled_at: None,
            expires_at: None,
            created_at: at,
            deliveries: vec![delivery],
        }
    }

    #[test]
    fn a_message_shows_its_metadata_as_it_came_and_its_status() {
        let text = serde_json::to_string(&MessageView::from(message())).unwrap();
        assert!(text.contains(r#""metadata":{"a":1.10}"#), "{text}");
        assert!(text.contains(r#""status":"delivered","channel":"webhook","channels":["webhook"]"#), "{text}");
    }

    #[test]
    fn a_timeline_begins_with_the_acceptance_and_counts_each_call() {
        let message = message();
        let call = |outcome| StoredAttempt {
            provider: "http".to_owned(),
            outcome: Some(outcome),
            code: Some("503".to_owned()),
            duration_ms: Some(3),
            provider_ref: None,
        };
        let event = |run, kind, attempt| StoredEvent {
            delivery: message.deliveries[0].id,
            run,
            kind,
            at: message.created_at,
            attempt,
            detail: None,
        };
        let stored = vec![
            event(1, EventKind::Retrying, Some(call(OutcomeClass::Transient))),
            event(2, EventKind::Delivered, Some(call(OutcomeClass::Sent))),
            event(3, EventKind::Replayed, None),
        ];
        let timeline = build_timeline(&message, stored);
        let kinds: Vec<_> = timeline.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, ["accepted", "retrying", "delivered", "replayed"]);
        let attempts: Vec<_> = timeline.attempts.iter().map(|attempt| (attempt.attempt, attempt.outcome)).collect();
        assert_eq!(attempts, [(1, Some("transient")), (2, Some("sent"))]);
    }
}
