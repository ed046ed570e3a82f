//! Dead-letters a message for a person to look at, with a reason in its headers. `basic.reject` cannot carry a
//! reason.

use std::borrow::Cow;

use domain::DeadReason;

use super::{
    consumer::Delivery,
    properties::truncated,
    publisher::{Headers, Outgoing, PublishError, Publisher},
    topology::DLX,
};

/// Header: the reason, a [`DeadReason`].
pub const REASON: &str = "x-posthaste-reason";
/// Header: one clause about what went wrong.
pub const DETAIL: &str = "x-posthaste-detail";
/// Header: the queue it was consumed from.
pub const QUEUE: &str = "x-posthaste-queue";
/// Header: the exchange it was published to.
pub const EXCHANGE: &str = "x-posthaste-exchange";
/// Header: the routing key it was published with.
pub const ROUTING_KEY: &str = "x-posthaste-routing-key";
/// Header: the publishing user, as the broker verified it. We cannot copy the property: it may only name our own
/// user.
pub const USER_ID: &str = "x-posthaste-user-id";

/// The limit for the detail: it is a clause, not a document.
const DETAIL_BYTES_MAX: usize = 2 * 1024;
/// The limit for the publisher's headers, so that ours always fit.
const FOREIGN_BYTES_MAX: usize = 16 * 1024;
/// The limit of an AMQP short string.
const SHORT_BYTES_MAX: usize = 255;

/// Publishes a copy of `delivery`, consumed from `queue`, to the dead letter exchange. Ack the delivery only after
/// this returned `Ok`: until then the original is the only copy.
pub async fn dead_letter(
    publisher: &Publisher,
    queue: &str,
    delivery: &Delivery,
    reason: DeadReason,
    detail: &str,
) -> Result<(), PublishError> {
    dead_letter_of(publisher, queue, delivery, delivery.properties.user_id(), reason, detail).await
}

/// As [`dead_letter`], for a message whose publisher is not taken from its `user_id` property.
pub async fn dead_letter_of(
    publisher: &Publisher,
    queue: &str,
    delivery: &Delivery,
    user: Option<&str>,
    reason: DeadReason,
    detail: &str,
) -> Result<(), PublishError> {
    publisher.publish_one(letter(queue, delivery, user, reason, detail)).await
}

fn letter(queue: &str, delivery: &Delivery, user: Option<&str>, reason: DeadReason, detail: &str) -> Outgoing {
    let properties = &delivery.properties;
    let clipped = |text: Option<&str>| truncated(text.unwrap_or_default(), SHORT_BYTES_MAX).to_owned();
    Outgoing {
        exchange: DLX,
        routing_key: Cow::Owned(clipped(Some(&delivery.routing_key))),
        message_id: clipped(properties.message_id()),
        kind: Cow::Owned(clipped(properties.kind())),
        headers: headers(queue, delivery, user, reason, detail),
        correlation_id: properties.correlation_id().map(|id| clipped(Some(id))),
        content_type: Cow::Owned(clipped(properties.content_type())),
        body: delivery.body.clone(),
        is_hint: false,
    }
}

fn headers(queue: &str, delivery: &Delivery, user: Option<&str>, reason: DeadReason, detail: &str) -> Headers {
    let ours = [
        (REASON, reason.as_str()),
        (DETAIL, truncated(detail, DETAIL_BYTES_MAX)),
        (QUEUE, queue),
        (EXCHANGE, &delivery.exchange),
        (ROUTING_KEY, &delivery.routing_key),
        (USER_ID, user.unwrap_or_default()),
    ];
    let ours = ours.into_iter().filter(|(name, value)| *name != USER_ID || !value.is_empty());
    let mut headers: Headers = ours.map(|(name, value)| (Cow::Borrowed(name), value.to_owned())).collect();
    headers.extend(foreign(delivery));
    headers
}

/// The publisher's own headers. Names that start with `x-` belong to the broker, which acts on some of them, or to
/// us.
fn foreign(delivery: &Delivery) -> impl Iterator<Item = (Cow<'static, str>, String)> {
    let headers = delivery.properties.headers().into_iter().filter(|(name, _)| !name.starts_with("x-"));
    let headers = headers.map(|(name, value)| match value {
        serde_json::Value::String(text) => (name, text),
        other => (name, other.to_string()),
    });
    let mut bytes_left = FOREIGN_BYTES_MAX;
    headers.map_while(move |(name, value)| {
        bytes_left = bytes_left.checked_sub(name.len() + value.len())?;
        Some((Cow::Owned(name), value))
    })
}
