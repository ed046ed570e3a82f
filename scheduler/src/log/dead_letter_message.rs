//! Decodes why a message is in the dead letter queue. Pure code, without I/O.

use std::collections::BTreeMap;

use broker::{DETAIL, DLQ, Delivery, EVENTS_LOG, QUEUE, REASON, ROUTING_KEY, USER_ID, topology};
use deliveries::letters::NewLetter;
use domain::{Channel, DeadOrigin, DeadReason, contract::WorkItem};
use serde_json::Value;
use uuid::Uuid;

/// Header: the id of the letter, if the sender of the message chose one.
pub const LETTER_ID: &str = "x-posthaste-letter-id";
/// Header: how often the drainer has published the message again.
pub const ROUNDS: &str = "x-posthaste-rounds";
/// After this many rounds, each as long as the queue's delivery limit, the message itself is what crashes its readers.
const ROUNDS_MAX: u32 = 50;
/// The broker's reason for a message that was returned too often.
const DELIVERY_LIMIT: &str = "delivery_limit";
/// The prefix of the queues that hold submissions.
const INTAKE_PREFIX: &str = "posthaste.intake.";

/// A message from the dead letter queue.
#[derive(Debug, Default)]
pub struct DeadLetterMessage {
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    user_id: Option<String>,
    headers: BTreeMap<String, Value>,
    body: Vec<u8>,
}

/// The drainer's actions.
#[derive(Debug)]
pub enum Kind {
    /// Write a dead letter.
    Letter(NewLetter),
    /// The broker gave up a work message. Drop it, because it is only a hint: the audit finds its delivery, which is
    /// still queued.
    WorkHint,
    /// The broker returned the only copy of some content too often. Publish it again, as round number `.1`.
    Republish(NewLetter, u32),
}

/// Who dead-lettered the message.
#[derive(Debug, PartialEq, Eq)]
enum DeathCause<'a> {
    /// Posthaste refused it and stated the reason.
    Refused { reason: DeadReason, queue: &'a str },
    /// The broker gave it up after delivering it from `queue` too often.
    GivenUp { reason: &'a str, queue: &'a str },
    /// The ingress exchange: no queue is bound for its routing key.
    Unroutable,
    /// Unknown sender, without a reason.
    Unknown,
}

impl From<Delivery> for DeadLetterMessage {
    fn from(delivery: Delivery) -> Self {
        Self {
            message_id: delivery.properties.message_id().filter(|id| !id.is_empty()).map(str::to_owned),
            user_id: delivery.properties.user_id().map(str::to_owned),
            headers: delivery.properties.headers(),
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            body: delivery.body,
        }
    }
}

impl DeadLetterMessage {
    /// The drainer's action for this message.
    pub fn kind(self) -> Kind {
        if self.is_hint() {
            Kind::WorkHint
        } else if self.is_returned_copy() && self.rounds() < ROUNDS_MAX {
            let round = self.rounds() + 1;
            Kind::Republish(self.into_row(), round)
        } else {
            Kind::Letter(self.into_row())
        }
    }

    /// The queue that it was dead-lettered from.
    pub fn queue(&self) -> &str {
        self.cause().queue()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.as_str()
    }

    fn cause(&self) -> DeathCause<'_> {
        // A producer may send an `x-death` header of its own. It means nothing on a message that never was in one of
        // our queues.
        if self.exchange == topology::INGRESS {
            return DeathCause::Unroutable;
        }
        let death = self.headers.get("x-death").and_then(|deaths| deaths.get(0));
        let field_of = |field: &str| death.and_then(|death| death.get(field)).and_then(Value::as_str);
        let queue = field_of("queue").or(self.header("x-first-death-queue"));
        if let Some(queue) = queue {
            return DeathCause::GivenUp {
                reason: field_of("reason").or(self.header("x-first-death-reason")).unwrap_or("unknown"),
                queue,
            };
        }
        match self.header(REASON).map(str::parse) {
            Some(Ok(reason)) => DeathCause::Refused { reason, queue: self.header(QUEUE).unwrap_or_default() },
            _ => DeathCause::Unknown,
        }
    }

    /// True for a work message that the broker gave up.
    fn is_hint(&self) -> bool {
        let DeathCause::GivenUp { queue, .. } = self.cause() else { return false };
        channel_of_work(queue).is_some() && serde_json::from_slice::<WorkItem>(&self.body).is_ok()
    }

    /// True if the broker returned the message too often and it is the only copy of its content.
    fn is_returned_copy(&self) -> bool {
        let DeathCause::GivenUp { reason, queue } = self.cause() else { return false };
        reason == DELIVERY_LIMIT && (queue == EVENTS_LOG || queue.starts_with(INTAKE_PREFIX))
    }

    fn rounds(&self) -> u32 {
        self.header(ROUNDS).and_then(|rounds| rounds.parse().ok()).unwrap_or(0)
    }

    fn into_row(self) -> NewLetter {
        let cause = self.cause();
        let (origin, reason) = (cause.origin(), cause.reason());
        let routing_key = self.submitted_with(&cause).map(str::to_owned);
        let amqp_user = routing_key.is_some().then(|| self.published_by(&cause).unwrap_or_default().to_owned());
        let mut segments = routing_key.as_deref().unwrap_or_default().split('.');
        let tenant = segments.next().filter(|slug| !slug.is_empty()).map(str::to_owned);
        let channel =
            segments.next().and_then(|segment| segment.parse().ok()).or_else(|| channel_of_work(cause.queue()));
        NewLetter {
            id: self.id(&cause),
            // A sender who may not publish for a tenant must not add to its letters either.
            tenant: tenant.filter(|_| reason != DeadReason::Tenant),
            channel,
            origin,
            reason,
            detail: cause.detail(self.header(DETAIL)),
            amqp_id: self.message_id,
            routing_key,
            amqp_user,
            body: Some(self.body),
        }
    }

    /// The routing key that a producer published with. `None` if no producer published it.
    fn submitted_with(&self, cause: &DeathCause<'_>) -> Option<&str> {
        match cause {
            DeathCause::Refused { queue, .. } | DeathCause::GivenUp { queue, .. }
                if !queue.starts_with(INTAKE_PREFIX) =>
            {
                None
            }
            DeathCause::Unknown => None,
            // A message that Posthaste refused carries its original key in a header.
            DeathCause::Refused { .. } => Some(self.header(ROUTING_KEY).unwrap_or(&self.routing_key)),
            // So does a message that a scheduler of the previous version republished straight to a queue. In every
            // other message the producer may have set that header.
            DeathCause::GivenUp { .. } => {
                let first = self.header(ROUTING_KEY).filter(|_| self.routing_key.starts_with(INTAKE_PREFIX));
                Some(first.unwrap_or(&self.routing_key))
            }
            DeathCause::Unroutable => Some(&self.routing_key),
        }
    }

    /// The broker user that published the message. A message that Posthaste refused has it in a header. In a message
    /// straight from a producer, the producer may have set that header.
    fn published_by(&self, cause: &DeathCause<'_>) -> Option<&str> {
        match cause {
            DeathCause::Refused { .. } => self.header(USER_ID),
            DeathCause::GivenUp { .. } | DeathCause::Unroutable | DeathCause::Unknown => self.user_id.as_deref(),
        }
    }

    /// The letter's id, the same for each redelivery. The id header counts only on our own refusals: otherwise a
    /// producer could name an existing letter, and its own would not be written.
    fn id(&self, cause: &DeathCause<'_>) -> Uuid {
        let is_ours = matches!(cause, DeathCause::Refused { .. });
        let given = self.header(LETTER_ID).filter(|_| is_ours).and_then(|id| id.parse().ok());
        let parts = [cause.queue(), &self.exchange, &self.routing_key, self.message_id.as_deref().unwrap_or_default()];
        given.unwrap_or_else(|| {
            let [queue, exchange, key, id] = parts.map(str::as_bytes);
            NewLetter::id_of(&[queue, exchange, key, id, &self.body])
        })
    }
}

impl<'a> DeathCause<'a> {
    /// The queue that the message was dead-lettered from.
    const fn queue(&self) -> &'a str {
        match self {
            Self::Refused { queue, .. } | Self::GivenUp { queue, .. } => queue,
            Self::Unroutable | Self::Unknown => DLQ,
        }
    }

    fn origin(&self) -> DeadOrigin {
        match self {
            Self::Refused { queue, .. } if queue.starts_with(INTAKE_PREFIX) || queue.is_empty() => DeadOrigin::Intake,
            Self::Refused { .. } | Self::GivenUp { .. } | Self::Unknown => DeadOrigin::Broker,
            Self::Unroutable => DeadOrigin::Intake,
        }
    }

    const fn reason(&self) -> DeadReason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Unroutable => DeadReason::Unroutable,
            Self::GivenUp { .. } | Self::Unknown => DeadReason::Poison,
        }
    }

    fn detail(&self, given: Option<&str>) -> String {
        match self {
            Self::Refused { .. } => given.unwrap_or_default().to_owned(),
            Self::GivenUp { reason, queue } => format!("the broker gave it up ({reason}) in {queue}"),
            Self::Unroutable => {
                "no queue takes this routing key: use <tenant>.<channel>.<high, normal or bulk>".to_owned()
            }
            Self::Unknown => "it was published to the dead letter queue without a reason".to_owned(),
        }
    }
}

/// The channel of a work queue, from its name.
fn channel_of_work(queue: &str) -> Option<Channel> {
    let route = queue.strip_prefix(topology::WORK)?.strip_prefix('.')?;
    route.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::DeliveryId;
    use serde_json::json;

    fn found(exchange: &str, key: &str, headers: Value, body: &[u8]) -> DeadLetterMessage {
        let headers = serde_json::from_value(headers).unwrap();
        DeadLetterMessage {
            exchange: exchange.to_owned(),
            routing_key: key.to_owned(),
            message_id: Some("m-1".to_owned()),
            user_id: Some("shop".to_owned()),
            headers,
            body: body.to_vec(),
        }
    }

    fn letter(found: DeadLetterMessage) -> NewLetter {
        match found.kind() {
            Kind::Letter(letter) | Kind::Republish(letter, _) => letter,
            Kind::WorkHint => panic!("a hint"),
        }
    }

    fn refused(queue: &str, reason: &str) -> Value {
        json!({REASON: reason, DETAIL: "unknown field `colour`", QUEUE: queue, ROUTING_KEY: "acme.in-app.normal"})
    }

    fn given_up(queue: &str) -> Value {
        json!({"x-death": [{"queue": queue, "reason": "delivery_limit", "count": 1}], "x-first-death-queue": queue})
    }

    #[test]
    fn what_the_intake_refused_says_why_and_whose_it_is() {
        let letter = letter(found(topology::DLX, "x", refused("posthaste.intake.std", "schema"), b"{"));
        assert_eq!((letter.origin, letter.reason), (DeadOrigin::Intake, DeadReason::Schema));
        assert_eq!((letter.tenant.as_deref(), letter.channel), (Some("acme"), Some(Channel::InApp)));
        assert_eq!((letter.detail.as_str(), letter.amqp_id.as_deref()), ("unknown field `colour`", Some("m-1")));
        assert_eq!(letter.routing_key.as_deref(), Some("acme.in-app.normal"));
    }

    #[test]
    fn the_publisher_of_what_we_refused_stands_in_a_header_and_of_all_else_in_the_property() {
        let mut headers = refused("posthaste.intake.std", "schema");
        let user = |found: DeadLetterMessage| letter(found).amqp_user;
        assert_eq!(user(found(topology::DLX, "x", headers.clone(), b"{")).as_deref(), Some(""), "it did not say");
        headers[USER_ID] = json!("orders");
        assert_eq!(user(found(topology::DLX, "x", headers.clone(), b"{")).as_deref(), Some("orders"));
        assert_eq!(user(found(topology::INGRESS, "acme.sms.soon", headers, b"{")).as_deref(), Some("shop"));
        assert_eq!(user(found(topology::DLX, "x", refused("posthaste.events.log", "poison"), b"{")), None);
    }

    #[test]
    fn a_letter_about_a_forged_tenant_is_not_shown_to_that_tenant() {
        let letter = letter(found(topology::DLX, "x", refused("posthaste.intake.std", "tenant"), b"{}"));
        assert_eq!((letter.tenant, letter.routing_key.as_deref()), (None, Some("acme.in-app.normal")));
    }

    #[test]
    fn a_key_without_a_queue_is_unroutable_whatever_its_headers_say() {
        for headers in [json!({}), refused("posthaste.work.sms.high", "schema"), given_up("posthaste.intake.std")] {
            let letter = letter(found(topology::INGRESS, "acme.sms.soon", headers, b"{}"));
            assert_eq!((letter.origin, letter.reason), (DeadOrigin::Intake, DeadReason::Unroutable));
            assert_eq!((letter.tenant.as_deref(), letter.channel), (Some("acme"), Some(Channel::Sms)));
            assert_eq!(letter.routing_key.as_deref(), Some("acme.sms.soon"));
        }
    }

    #[test]
    fn a_work_message_the_broker_gave_up_is_only_a_hint() {
        let body = serde_json::to_vec(&WorkItem::new(DeliveryId::generate(), 4)).unwrap();
        let work = found(topology::DLX, "sms.high", given_up("posthaste.work.sms.high"), &body);
        assert!(matches!(work.kind(), Kind::WorkHint));
        let unreadable = letter_of_queue("posthaste.work.sms.high", b"garbage");
        assert_eq!((unreadable.origin, unreadable.reason), (DeadOrigin::Broker, DeadReason::Poison));
    }

    #[test]
    fn an_only_copy_that_was_returned_too_often_is_published_again_unless_that_has_not_helped_for_long() {
        let returned = |rounds: u32| {
            let mut headers = given_up(EVENTS_LOG);
            headers[ROUNDS] = json!(rounds.to_string());
            found(topology::DLX, "events.attempt", headers, b"{}").kind()
        };
        let Kind::Republish(letter, round) = returned(3) else { panic!("it was not published again") };
        assert_eq!((letter.routing_key, letter.body, round), (None, Some(b"{}".to_vec()), 4));
        let Kind::Letter(letter) = returned(ROUNDS_MAX) else { panic!("it goes round for ever") };
        assert_eq!((letter.origin, letter.reason), (DeadOrigin::Broker, DeadReason::Poison));
        let mut expired = given_up(EVENTS_LOG);
        expired["x-death"][0]["reason"] = json!("expired");
        assert!(
            matches!(found(topology::DLX, "x", expired, b"{}").kind(), Kind::Letter(_)),
            "a policy of the operator"
        );
    }

    fn letter_of_queue(queue: &str, body: &[u8]) -> NewLetter {
        letter(found(topology::DLX, "sms.high", given_up(queue), body))
    }

    #[test]
    fn a_submission_the_broker_gave_up_keeps_its_key_even_after_a_replay() {
        let first = letter(found(topology::DLX, "acme.sms.high", given_up("posthaste.intake.high"), b"{}"));
        assert_eq!((first.origin, first.routing_key.as_deref()), (DeadOrigin::Broker, Some("acme.sms.high")));
        let mut headers = given_up("posthaste.intake.std");
        headers[ROUTING_KEY] = json!("acme.sms.high");
        let replayed = letter(found(topology::DLX, "posthaste.intake.std", headers, b"{}"));
        assert_eq!(
            (replayed.tenant.as_deref(), replayed.routing_key.as_deref()),
            (Some("acme"), Some("acme.sms.high"))
        );
    }

    #[test]
    fn a_poisoned_event_and_a_message_without_a_word_come_from_the_broker() {
        let event = letter(found(topology::DLX, "", refused("posthaste.events.log", "poison"), b"{}"));
        assert_eq!((event.origin, event.routing_key), (DeadOrigin::Broker, None));
        let stray = letter(found("", DLQ, json!({REASON: "no such word"}), b"?"));
        assert_eq!((stray.origin, stray.reason, stray.tenant), (DeadOrigin::Broker, DeadReason::Poison, None));
    }

    #[test]
    fn a_message_that_comes_twice_is_one_letter_and_another_one_another() {
        let id = |key: &str, body: &[u8]| letter(found(topology::INGRESS, key, json!({}), body)).id;
        assert_eq!(id("acme.sms.soon", b"{}"), id("acme.sms.soon", b"{}"));
        assert_ne!(id("acme.sms.soon", b"{}"), id("globex.sms.soon", b"{}"));
        assert_ne!(id("acme.sms.soon", b"{}"), id("acme.sms.soon", b"[]"));
        let given = Uuid::now_v7();
        let mut headers = refused(EVENTS_LOG, "poison");
        headers[LETTER_ID] = json!(given.to_string());
        assert_eq!(letter(found(topology::DLX, "", headers, b"{}")).id, given);
    }

    #[test]
    fn what_a_producer_wrote_into_our_headers_is_not_kept_of_a_message_that_the_broker_gave_up() {
        let own = letter(found(topology::DLX, "acme.sms.high", given_up("posthaste.intake.high"), b"{}"));
        let mut headers = given_up("posthaste.intake.high");
        headers[LETTER_ID] = json!(Uuid::now_v7().to_string());
        headers[ROUTING_KEY] = json!("globex.sms.high");
        headers[USER_ID] = json!("globex");
        headers[REASON] = json!("schema");
        headers[DETAIL] = json!("a word of the producer");
        let forged = letter(found(topology::DLX, "acme.sms.high", headers, b"{}"));
        assert_eq!((forged.id, &forged.tenant, &forged.routing_key), (own.id, &own.tenant, &own.routing_key));
        assert_eq!((&forged.amqp_user, &forged.detail, forged.reason), (&own.amqp_user, &own.detail, own.reason));
    }
}
