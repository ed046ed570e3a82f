//! From a checked submission to what is stored for it, and the answer that stands for it; the same for HTTP and AMQP.

use serde::Serialize;
use shared::{
    contract::submission::Draft,
    db::accept::{Acceptance, Hash, Key, NewDelivery, NewMessage},
    domain::{Address, Channel, DeliveryId, MessageId, Route, State, TenantId},
    telemetry::TraceContext,
};
use utoipa::ToSchema;
use uuid::Uuid;

/// Who asks, and by which way.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Whose message it is.
    pub tenant: TenantId,
    /// `http` or `amqp`.
    pub source: &'static str,
    /// Travels along with the message.
    pub trace: TraceContext,
}

/// What an idempotency key stands for.
#[derive(Clone, Copy, Debug)]
pub struct Hashes {
    /// SHA-256 of the key.
    pub key: Hash,
    /// SHA-256 of what the request asks for.
    pub request: Hash,
}

impl Hashes {
    /// The key as it is stored, with the answer to give again.
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
    /// What will be sent: one delivery for each address.
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

/// What to store for a draft, and the answer to give once it is stored.
///
/// `recipients` has one delivery each; an empty one stands for a person without an address. `line` is the WhatsApp session
/// that carries it.
pub fn seal(
    draft: Draft,
    recipients: Vec<Address>,
    origin: Origin,
    hashes: Option<Hashes>,
    line: Option<Uuid>,
) -> (Acceptance, Vec<u8>) {
    seal_with(draft, recipients, origin, hashes, line, |answer| to_json(&answer))
}

/// As [`seal`], with an answer of another form.
pub fn seal_with(
    draft: Draft,
    recipients: Vec<Address>,
    origin: Origin,
    hashes: Option<Hashes>,
    line: Option<Uuid>,
    say: impl FnOnce(SendAnswer) -> Vec<u8>,
) -> (Acceptance, Vec<u8>) {
    // Deliveries are looked for behind their message: its id comes first.
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
    seal_message(message, origin, hashes, say)
}

/// As [`seal_with`], for a message that is made already.
pub fn seal_message(
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

/// The status of what was just accepted.
pub const fn status(scheduled: bool) -> State {
    if scheduled { State::Scheduled } else { State::Queued }
}

/// Bytes of JSON. Nothing that is answered here has names that are no strings, so it always has a JSON form.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use shared::contract::{
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
        let (acceptance, _) = seal(draft, ["a", "b"].map(Address::new).into(), origin, None, None);
        let [message] = &acceptance.messages[..] else { panic!("one message") };
        assert_eq!(message.deliveries.len(), 2);
        assert!(message.deliveries.iter().all(|delivery| delivery.id.0 > message.id.0), "{message:?}");
    }
}
