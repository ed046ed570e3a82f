//! Builds the rows of a validated submission, and its answer; shared by HTTP and AMQP.

use domain::{
    Address, Channel, DeliveryId, MessageId, Route, State, TenantId,
    acceptance::{Acceptance, Hash, Key, NewDelivery, NewMessage},
    contract::submission::Draft,
};
use runtime::telemetry::TraceContext;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// The submitter and the source.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The tenant that owns the message.
    pub tenant: TenantId,
    /// `http` or `amqp`.
    pub source: &'static str,
    /// The trace context that goes with the message.
    pub trace: TraceContext,
}

/// An idempotency key and the request that it identifies.
#[derive(Clone, Copy, Debug)]
pub struct Hashes {
    /// SHA-256 of the key.
    pub key: Hash,
    /// SHA-256 of the request's content.
    pub request: Hash,
}

impl Hashes {
    /// The key as stored, with the answer for a repeated request.
    pub fn with(self, response: &[u8]) -> Key {
        Key { key_hash: self.key, request_hash: self.request, response: response.to_vec() }
    }
}

/// The answer to an accepted message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Accepted)]
pub struct SendAnswer {
    /// The message.
    pub id: Uuid,
    /// `queued`, or `scheduled` for a later `scheduled_at`.
    #[schema(value_type = String, example = "queued")]
    pub status: State,
    /// The deliveries: one for each address.
    pub deliveries: Vec<DeliveryAnswer>,
}

/// A delivery of an accepted message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AcceptedDelivery)]
pub struct DeliveryAnswer {
    /// The delivery; a webhook's `webhook-id`.
    pub id: Uuid,
    /// Its channel.
    #[schema(value_type = String, example = "webhook")]
    pub channel: Channel,
    /// As the message's.
    #[schema(value_type = String, example = "queued")]
    pub status: State,
}

/// Builds what to store for a draft, and the answer to give once it is stored.
///
/// `recipients` get one delivery each; an empty recipient means a person without an address. `line` is the WhatsApp
/// session that sends it.
pub fn build_acceptance(
    draft: Draft,
    recipients: Vec<Address>,
    origin: Origin,
    hashes: Option<Hashes>,
    line: Option<Uuid>,
) -> (Acceptance, Vec<u8>) {
    build_acceptance_with(draft, recipients, origin, hashes, line, |answer| to_json(&answer))
}

/// As [`build_acceptance`], with a custom form of the answer.
pub fn build_acceptance_with(
    draft: Draft,
    recipients: Vec<Address>,
    origin: Origin,
    hashes: Option<Hashes>,
    line: Option<Uuid>,
    say: impl FnOnce(SendAnswer) -> Vec<u8>,
) -> (Acceptance, Vec<u8>) {
    // Generated before the ids of the deliveries, which are searched for among ids later than the message's.
    let id = MessageId::generate();
    let delivery = |recipient: Address| NewDelivery {
        id: DeliveryId::generate(),
        route: Route { channel: draft.channel, lane: draft.lane },
        line: line.filter(|_| !recipient.reveal().is_empty()),
        recipient,
        rank: draft.priority.rank(),
        kind: draft.content.kind_of_message(),
    };
    let deliveries: Vec<NewDelivery> = recipients.into_iter().map(delivery).collect();
    let message = NewMessage {
        id,
        user_id: draft.user_id,
        category: draft.content.category.clone(),
        priority: draft.priority.as_str(),
        content: Some(to_json(&draft.content)),
        scheduled_at: draft.scheduled_at,
        expires_at: draft.expires_at,
        deliveries,
        template: draft.content.template.map(|template| template.name),
    };
    acceptance_of(message, origin, hashes, say)
}

/// As [`build_acceptance_with`], for a message that is already built.
pub fn acceptance_of(
    message: NewMessage,
    origin: Origin,
    hashes: Option<Hashes>,
    say: impl FnOnce(SendAnswer) -> Vec<u8>,
) -> (Acceptance, Vec<u8>) {
    let status = status(message.scheduled_at.is_some());
    let delivery = |of: &NewDelivery| DeliveryAnswer { id: of.id.0, channel: of.route.channel, status };
    let deliveries = message.deliveries.iter().map(delivery).collect();
    let answer = say(SendAnswer { id: message.id.0, status, deliveries });
    let acceptance = Acceptance {
        tenant: origin.tenant,
        source: origin.source,
        request_id: Some(origin.trace.request_id),
        traceparent: Some(origin.trace.traceparent),
        key: hashes.map(|hashes| hashes.with(&answer)),
        bulk: None,
        messages: vec![message],
        beside: Vec::new(),
        room_in: None,
    };
    (acceptance, answer)
}

/// The status of a message that was just accepted.
pub const fn status(scheduled: bool) -> State {
    if scheduled { State::Scheduled } else { State::Queued }
}

/// Serializes as JSON. All maps that are answered here have string keys, so this always succeeds.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use domain::contract::{
        guard::Guard,
        submission::{Rules, Submission},
    };

    use super::*;

    #[test]
    fn a_message_is_older_than_its_deliveries() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let rules = Rules { now, guard: Guard::default(), media_guard: Guard::default() };
        let body = br#"{"channel":"push","user_id":"ada","message":"m"}"#;
        let draft = Submission::parse(body).unwrap().check(&rules).unwrap();
        let origin = Origin { tenant: TenantId(1), source: crate::HTTP, trace: TraceContext::take_or_make(None, None) };
        let (acceptance, _) = build_acceptance(draft, ["a", "b"].map(Address::new).into(), origin, None, None);
        let [message] = &acceptance.messages[..] else { panic!("one message") };
        assert_eq!(message.deliveries.len(), 2);
        assert!(message.deliveries.iter().all(|delivery| delivery.id.0 > message.id.0), "{message:?}");
    }
}
