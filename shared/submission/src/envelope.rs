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

use crate::session::ChosenSession;

/// Who submits, how, and under which idempotency key.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The tenant that owns the message.
    pub tenant: TenantId,
    /// `http` or `amqp`.
    pub source: &'static str,
    /// The trace context that goes with the message.
    pub trace: TraceContext,
    /// The key, if one was given.
    pub key: Option<RequestKey>,
}

impl Origin {
    /// An acceptance that stores nothing yet but the key with `answer`.
    pub fn acceptance(self, answer: &[u8]) -> Acceptance {
        let stored = |key: RequestKey| Key { key_hash: key.key, request_hash: key.request, response: answer.to_vec() };
        Acceptance {
            tenant: self.tenant,
            source: self.source,
            request_id: Some(self.trace.request_id),
            traceparent: Some(self.trace.traceparent),
            key: self.key.map(stored),
            bulk: None,
            messages: Vec::new(),
            beside: Vec::new(),
            room_in: None,
        }
    }
}

/// A tenant's idempotency key and the request it stands for.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey {
    /// The tenant.
    pub tenant: TenantId,
    /// SHA-256 of the key.
    pub key: Hash,
    /// SHA-256 of the request's content.
    pub request: Hash,
}

/// The rows of a request, and the answer that is given once they are stored.
pub type Built = (Acceptance, Vec<u8>);

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

/// Builds what to store for a draft.
///
/// `recipients` get one delivery each; an empty recipient means a person without an address. `session` sends it, if it is a
/// WhatsApp message. `answer` gives the answer its form.
pub fn build_acceptance(
    draft: Draft,
    recipients: Vec<Address>,
    origin: Origin,
    session: Option<&ChosenSession>,
    answer: impl FnOnce(SendAnswer) -> Vec<u8>,
) -> Built {
    // Generated before the ids of the deliveries, which are searched for among ids later than the message's.
    let id = MessageId::generate();
    let line = session.map(ChosenSession::line);
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
    acceptance_of(message, origin, session, answer)
}

/// As [`build_acceptance`], for a message that is already built.
pub fn acceptance_of(
    message: NewMessage,
    origin: Origin,
    session: Option<&ChosenSession>,
    answer: impl FnOnce(SendAnswer) -> Vec<u8>,
) -> Built {
    let status = status(message.scheduled_at.is_some());
    let delivery = |of: &NewDelivery| DeliveryAnswer { id: of.id.0, channel: of.route.channel, status };
    let deliveries = message.deliveries.iter().map(delivery).collect();
    let answer = answer(SendAnswer { id: message.id.0, status, deliveries });
    let room_in = session.and_then(ChosenSession::room_in);
    (Acceptance { messages: vec![message], room_in, ..origin.acceptance(&answer) }, answer)
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
        let trace = TraceContext::take_or_make(None, None);
        let origin = Origin { tenant: TenantId(1), source: crate::HTTP, trace, key: None };
        let recipients = ["a", "b"].map(Address::new).into();
        let (acceptance, _) = build_acceptance(draft, recipients, origin, None, |answer| to_json(&answer));
        let [message] = &acceptance.messages[..] else { panic!("one message") };
        assert_eq!(message.deliveries.len(), 2);
        assert!(message.deliveries.iter().all(|delivery| delivery.id.0 > message.id.0), "{message:?}");
    }
}
