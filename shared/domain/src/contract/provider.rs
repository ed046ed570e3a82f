//! The one seam between the worker and every vendor.

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

/// Under this name a vendor gets the id of a delivery, and repeats it in its reports.
pub const DELIVERY_TAG: &str = "posthaste_delivery";

/// Everything a provider may need for one attempt.
#[derive(Clone, Debug)]
pub struct Order {
    /// The delivery: stable over every attempt, so hand it to the vendor as its idempotency key.
    pub delivery: DeliveryId,
    /// The message it belongs to.
    pub message: MessageId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its channel.
    pub channel: Channel,
    /// The lane it came by.
    pub lane: Lane,
    /// To whom.
    pub recipient: Address,
    /// The slot it goes out by, where it needs one.
    pub slot: Option<Slot>,
    /// The person, when the producer named one.
    pub user_id: Option<String>,
    /// What to say.
    pub content: Arc<Content>,
    /// When the producer's message was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it is no longer worth showing; push services that store messages for devices get it too.
    pub expires_at: Option<DateTime<Utc>>,
    /// Signs webhooks: the secret of the configuration that an event is for, else the tenant's, `whsec_…`, and `whsk_…` for Ed25519; with spaces
    /// between them, and doubled while one replaces the other.
    pub webhook_secret: Arc<str>,
    /// The configuration whose secret that is.
    pub webhook_configuration: Option<Uuid>,
    /// Further headers of webhooks, from the configuration.
    pub webhook_headers: Arc<[(String, String)]>,
    /// The producer's request id, passed on to systems.
    pub request_id: Option<String>,
    /// The W3C trace context of the submission, passed on to systems.
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
    /// From then on it must not be used any more: the next minute's slots are counted on that.
    pub until: Instant,
}

/// Why a call is not made now, and for how long not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// One clause for people; no address, no content.
    pub reason: &'static str,
    /// The wait.
    pub wait: Duration,
}

/// Whose calls wait when a provider answers that there were too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThrottleScope {
    /// Those of every tenant: the limit is one of our account.
    Provider,
    /// Those of the tenant: the limit may be one of its own addresses, so others are not kept back for it.
    Tenant,
    /// None but the delivery itself: the limit is one of its recipient.
    Recipient,
}

/// The answer of a gate.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<(), HeldBack>> + Send + 'a>>;

/// What a check of credentials and reachability found: a sentence for people, or the fault.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<String, Fault>> + Send + 'a>>;

/// A future that a provider returns; boxed so that providers can stand behind one pointer.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// What carries a channel.
pub trait Provider: Send + Sync {
    /// Its name in the log, the metrics and the settings.
    fn name(&self) -> ProviderName;

    /// Whether it can carry this delivery at all: of several push services each serves its own kind of device.
    fn fits(&self, _order: &Order) -> bool {
        true
    }

    /// What the circuit breaker in front of this call is called: all calls that fail together share one. A vendor's is its name
    /// and a fingerprint of the credential. `None`: there is none, or the provider has breakers of its own.
    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        None
    }

    /// Whether a failure (`Transient` or `Unknown`) lies with the provider as a whole, so that the breaker counts it, and not with
    /// this one recipient.
    fn is_down(&self, _failure: &Outcome) -> bool {
        true
    }

    /// Whose calls wait for the time that came with a `Throttled` outcome of this fault.
    fn throttle_scope(&self, _fault: &Fault) -> ThrottleScope {
        ThrottleScope::Provider
    }

    /// Proves credentials and reachability without sending a message.
    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(Ok("there is nothing to check".to_owned())))
    }

    /// Whether a call may be made now. A delivery that is held back spends no attempt, and none is logged.
    fn gate<'a>(&'a self, _order: &'a Order) -> Asking<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes exactly one attempt. Never retries, sleeps, acknowledges, or logs an address or content.
    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a>;
}
