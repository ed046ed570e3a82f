//! The interface between the worker and every vendor.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::submission::Content;
use crate::{Address, Channel, DeliveryId, Fault, Lane, MessageId, Outcome, ProviderName, TenantId};

/// The name under which a vendor gets the id of a delivery. The vendor repeats it in its reports.
pub const DELIVERY_TAG: &str = "posthaste_delivery";

/// The input of one attempt.
#[derive(Clone, Debug)]
pub struct Order {
    /// The delivery. Its id is the same for every attempt, so hand it to the vendor as the idempotency key.
    pub delivery: DeliveryId,
    /// The message it belongs to.
    pub message: MessageId,
    /// The tenant of the delivery.
    pub tenant: TenantId,
    /// Its channel.
    pub channel: Channel,
    /// The lane it came by.
    pub lane: Lane,
    /// To whom.
    pub recipient: Address,
    /// The slot that the delivery uses, if it needs one.
    pub slot: Option<Slot>,
    /// The person, if the producer named one.
    pub user_id: Option<String>,
    /// The content of the message.
    pub content: Arc<Content>,
    /// When the producer's message was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it expires. Push services that store messages for devices get it too.
    pub expires_at: Option<DateTime<Utc>>,
    /// Signs webhooks: the secret of the configuration that an event goes to, else the tenant's. `whsec_…`, or `whsk_…`
    /// for Ed25519. There are two, with a space between them, while one replaces the other.
    pub webhook_secret: Arc<str>,
    /// The configuration that owns this secret.
    pub webhook_configuration: Option<Uuid>,
    /// Further headers of webhooks, from the configuration.
    pub webhook_headers: Arc<[(String, String)]>,
    /// The producer's request id, which goes on to other systems.
    pub request_id: Option<String>,
    /// The W3C trace context of the submission, which goes on to other systems.
    pub traceparent: Option<String>,
    /// Which attempt this is, from 1.
    pub attempt: u16,
    /// How long the provider may take; the caller enforces it too.
    pub timeout: Duration,
}

/// A slot of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The line: a WhatsApp session.
    pub line: Uuid,
    /// The slot must not be used after this time: the slots of the next minute are counted from it.
    pub until: Instant,
}

/// Why a call is not made now, and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// One clause for people; it holds no address and no content.
    pub reason: &'static str,
    /// The wait.
    pub wait: Duration,
}

/// The calls that wait when a provider answers that there were too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThrottleScope {
    /// Those of every tenant: the limit applies to our account.
    Provider,
    /// Those of the tenant: the limit may apply to its own addresses, so other tenants go on.
    Tenant,
    /// Only those of the delivery: the limit applies to its recipient.
    Recipient,
}

/// The answer of a gate.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<(), HeldBack>> + Send + 'a>>;

/// The result of a check of credentials and reachability: a sentence for people, or the fault.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<String, Fault>> + Send + 'a>>;

/// The future that a provider returns. It is boxed so that all providers fit behind one pointer.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// A provider of a channel.
pub trait Provider: Send + Sync {
    /// Its name in the log, the metrics and the settings.
    fn name(&self) -> ProviderName;

    /// Whether it can send this delivery. Each push service serves its own kind of device.
    fn fits(&self, _order: &Order) -> bool {
        true
    }

    /// The key of the circuit breaker for this call: calls that fail together share one. A vendor's key is its name and
    /// a fingerprint of the credential. `None`: there is no breaker, or the provider has its own.
    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        None
    }

    /// Whether a failure (`Transient` or `Unknown`) concerns the whole provider and not only this recipient. The
    /// breaker counts it then.
    fn is_down(&self, _failure: &Outcome) -> bool {
        true
    }

    /// The calls that wait for the `Retry-After` of a `Throttled` outcome with this fault.
    fn throttle_scope(&self, _fault: &Fault) -> ThrottleScope {
        ThrottleScope::Provider
    }

    /// Proves credentials and reachability without sending a message.
    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(Ok("there is nothing to check".to_owned())))
    }

    /// Whether a call may be made now. A delivery that is held back uses no attempt, and no attempt is logged.
    fn gate<'a>(&'a self, _order: &'a Order) -> Asking<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes exactly one attempt. Never retries, sleeps, acknowledges, or logs an address or content.
    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a>;
}
