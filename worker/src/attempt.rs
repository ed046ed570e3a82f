//! One attempt: from a claimed delivery to the event that says how it ended. The heart of the worker.
//!
//! Nothing here touches the broker or writes to the database. Every claim yields exactly one event, and at most one
//! provider call.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use shared::{
    clock,
    contract::{AttemptRecord, Event, Order, Provider, provider::HeldBack, submission::Content},
    db::claim::Claim,
    domain::{
        DeadReason, DeliveryId, EventKind, Fault, Outcome, OutcomeClass, ProviderName, RetryPolicy, Route, State,
        TenantId, Tries, Verdict, retry::decide,
    },
    faultpoint,
};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    measures,
    registry::{Providers, backend_setting},
    secrets::{Secrets, Signing},
};

/// Providers end a call that takes too long themselves, and know more about how far it came; this much later it is
/// ended for them.
const GRACE: Duration = Duration::from_millis(100);
/// Longest detail, in bytes: a clause, not a document.
const DETAIL_BYTES_MAX: usize = 2 * 1024;
/// Longest code or reference of a provider, in bytes.
const CODE_BYTES_MAX: usize = 200;

/// What all attempts of one channel and lane have in common.
pub struct Desk {
    /// The channel and lane.
    pub route: Route,
    /// Who may be called; the first one is.
    pub providers: Providers,
    /// When to try again.
    pub policy: RetryPolicy,
    /// How long a call may take.
    pub timeout: Duration,
    /// By how much a claim outlives the call.
    pub lease_margin: Duration,
    /// Who knows the webhook secrets, on the channel that signs.
    pub secrets: Option<Arc<Secrets>>,
    /// Ends calls for which a stopping process cannot wait any longer.
    pub hurry: CancellationToken,
}

/// Makes the attempt a claim allows. `claimed_at`: right before the claim was asked for, since its lease runs from there.
pub async fn attempt(desk: &Desk, claim: Claim, claimed_at: Instant) -> Event {
    let subject = Subject::of(&claim);
    let in_time = desk.lease_margin.saturating_sub(GRACE).max(GRACE);
    let late_at = claimed_at + if claim.line.is_some() { in_time.min(SLOT_HOLDS) } else { in_time };
    let ready = prepare(desk, claim, late_at).await;
    faultpoint::pass(faultpoint::AFTER_CLAIM);
    let (provider, order) = match ready {
        Ok(ready) => ready,
        Err(obstacle) => return subject.without_call(desk, obstacle),
    };
    if let Err(held) = gate(desk, &*provider, &order, late_at).await {
        return subject.without_call(desk, Obstacle::HeldBack(held));
    }
    // The gate may have waited for the database as well.
    if Instant::now() >= late_at {
        return subject.without_call(desk, Obstacle::Late);
    }
    let started = Instant::now();
    let outcome = call(desk, &*provider, &order).await;
    faultpoint::pass(faultpoint::AFTER_PROVIDER);
    subject.after_call(desk, provider.name(), outcome, started.elapsed())
}

/// Why no provider is called.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Obstacle {
    /// The message is no longer worth sending.
    Expired,
    /// The channel is not set up.
    NoProvider,
    /// The stored content cannot be read.
    BadContent,
    /// The call could outlive the claim (the process was stopped for a while, or waits for the database), and then
    /// somebody else might make it too; or this process is about to end.
    Late,
    /// The provider is left alone for a while.
    HeldBack(HeldBack),
}

async fn prepare(desk: &Desk, claim: Claim, late_at: Instant) -> Result<(Arc<dyn Provider>, Order), Obstacle> {
    if claim.expires_at.is_some_and(|at| at <= clock::now()) {
        return Err(Obstacle::Expired);
    }
    let provider = desk.providers.first().ok_or(Obstacle::NoProvider)?;
    let content: Content = serde_json::from_slice(&claim.content).map_err(|_| Obstacle::BadContent)?;
    let signing = signing(desk, &claim, &content);
    let signing = timeout_at(late_at.into(), desk.hurry.run_until_cancelled(signing));
    let (webhook_secret, webhook_headers) = signing.await.ok().flatten().ok_or(Obstacle::Late)?;
    if Instant::now() >= late_at || desk.hurry.is_cancelled() {
        return Err(Obstacle::Late);
    }
    let order = Order {
        delivery: claim.delivery,
        message: claim.message,
        tenant: claim.tenant,
        channel: desk.route.channel,
        recipient: claim.recipient,
        line: claim.line,
        user_id: claim.user_id,
        content: Arc::new(content),
        accepted_at: claim.accepted_at,
        webhook_secret,
        webhook_headers,
        request_id: claim.request_id,
        traceparent: claim.traceparent,
        attempt: claim.tries.attempts,
        timeout: desk.timeout,
    };
    Ok((Arc::clone(provider), order))
}

async fn signing(desk: &Desk, claim: &Claim, content: &Content) -> Signing {
    match &desk.secrets {
        Some(secrets) => secrets.get(claim.tenant, content.configuration, claim.recipient.reveal()).await,
        None => (Arc::from(""), Arc::from([])),
    }
}

/// How long a slot may be used after it was taken; the window in which slots are counted is longer than a minute by more
/// than that.
const SLOT_HOLDS: Duration = Duration::from_secs(1);

/// A gate that cannot say in time lets through: the call itself has the last word.
async fn gate(desk: &Desk, provider: &dyn Provider, order: &Order, late_at: Instant) -> Result<(), HeldBack> {
    let asking = timeout_at(late_at.into(), desk.hurry.run_until_cancelled(provider.gate(order)));
    asking.await.ok().flatten().unwrap_or(Ok(()))
}

/// Calls the provider; whatever it does, an outcome comes back.
async fn call(desk: &Desk, provider: &dyn Provider, order: &Order) -> Outcome {
    let sending = AssertUnwindSafe(async { provider.send(order).await }).catch_unwind();
    let unknown = |code: &str, detail: &str| Outcome::Unknown(Fault::new(code, detail));
    tokio::select! {
        biased;
        ended = timeout(order.timeout + GRACE, sending) => match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => unknown("panic", "the code that talks to the provider failed half-way"),
            Err(_) => unknown("timeout", "the provider did not answer in time"),
        },
        () = desk.hurry.cancelled() => unknown("shutdown", "this process stopped before the provider answered"),
    }
}

/// What an event says about its delivery, whatever the attempt comes to.
#[derive(Clone, Copy)]
struct Subject {
    tenant: TenantId,
    delivery: DeliveryId,
    run: i32,
    tries: Tries,
    accepted_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl Subject {
    const fn of(claim: &Claim) -> Self {
        let Claim { tenant, delivery, run, tries, accepted_at, expires_at, .. } = *claim;
        Self { tenant, delivery, run, tries, accepted_at, expires_at }
    }

    fn after_call(self, desk: &Desk, provider: ProviderName, outcome: Outcome, took: Duration) -> Event {
        let now = clock::now();
        measures::attempted(desk.route.channel, provider, outcome.class(), took);
        if outcome.class() == OutcomeClass::Sent && self.run == 1 {
            measures::sent_at_once(desk.route, (now - self.accepted_at).to_std().unwrap_or_default());
        }
        let verdict = self.decide(desk, &outcome, now);
        let event = Event { attempt: Some(record(provider, outcome, took)), ..self.event(desk, verdict, now) };
        log(&event, event.attempt.as_ref().and_then(|attempt| attempt.detail.as_deref()));
        event
    }

    fn without_call(self, desk: &Desk, obstacle: Obstacle) -> Event {
        let now = clock::now();
        let detail = obstacle.detail(desk);
        let verdict = match obstacle {
            Obstacle::Expired => Verdict::end(EventKind::Expired, State::Expired),
            Obstacle::NoProvider => Verdict::dead(EventKind::Dead, DeadReason::Misconfigured),
            Obstacle::BadContent => Verdict::dead(EventKind::Dead, DeadReason::Schema),
            // As if somebody had asked to wait: it spends no attempt, and it cannot go on for ever.
            Obstacle::Late => self.decide(desk, &Outcome::Throttled(Fault::default(), None), now),
            Obstacle::HeldBack(HeldBack { wait, .. }) => {
                self.decide(desk, &Outcome::Throttled(Fault::default(), Some(wait)), now)
            }
        };
        let event = Event { spent: false, detail: Some(detail), ..self.event(desk, verdict, now) };
        log(&event, event.detail.as_deref());
        event
    }

    fn decide(self, desk: &Desk, outcome: &Outcome, now: DateTime<Utc>) -> Verdict {
        let time_left = self.expires_at.map(|at| (at - now).to_std().unwrap_or_default());
        decide(outcome, self.tries, time_left, &desk.policy, self.jitter())
    }

    /// Chance in 0..1 without a generator: the last bits of an id are random, and each run turns them differently.
    fn jitter(self) -> f64 {
        let [.., a, b, c, d] = *self.delivery.0.as_bytes();
        let mixed = (u32::from_be_bytes([a, b, c, d]) ^ self.run.unsigned_abs()).wrapping_mul(0x9E37_79B1);
        f64::from(mixed) / (f64::from(u32::MAX) + 1.0)
    }

    fn event(self, desk: &Desk, verdict: Verdict, at: DateTime<Utc>) -> Event {
        Event {
            tenant: self.tenant,
            delivery: self.delivery,
            run: self.run,
            channel: desk.route.channel,
            kind: verdict.kind,
            at,
            attempt: None,
            state: verdict.state,
            delay_ms: verdict.delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
            detail: None,
            dead: verdict.dead,
            spent: verdict.spent,
            crash: false,
            report: false,
        }
    }
}

impl Obstacle {
    /// One clause for people.
    fn detail(&self, desk: &Desk) -> String {
        let channel = desk.route.channel;
        match self {
            Self::Expired => "its time ran out before it could be sent".to_owned(),
            Self::NoProvider => format!("nothing carries channel `{channel}`: set {}", backend_setting(channel)),
            Self::BadContent => "its stored content cannot be read".to_owned(),
            Self::HeldBack(held) => held.reason.to_owned(),
            Self::Late => "its claim could have ended before the provider's answer".to_owned(),
        }
    }
}

fn record(provider: ProviderName, outcome: Outcome, took: Duration) -> AttemptRecord {
    let class = outcome.class();
    let (code, detail, provider_ref) = match outcome {
        Outcome::Sent(receipt) => (receipt.code, receipt.note, receipt.provider_ref),
        Outcome::Transient(fault, _) | Outcome::Throttled(fault, _) => (fault.code, Some(fault.detail), None),
        Outcome::Rejected(fault)
        | Outcome::AddressDead(fault)
        | Outcome::Misconfigured(fault)
        | Outcome::Unknown(fault) => (fault.code, Some(fault.detail), None),
    };
    AttemptRecord {
        provider,
        outcome: class,
        code: code.map(|code| clipped(code, CODE_BYTES_MAX)),
        detail: detail.map(|detail| clipped(detail, DETAIL_BYTES_MAX)),
        duration_ms: i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
        provider_ref: provider_ref.map(|id| clipped(id, CODE_BYTES_MAX)),
    }
}

/// Part of it may be a stranger's words: without control characters, which a database column may refuse, and bounded.
fn clipped(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    if text.contains(char::is_control) {
        text.retain(|c| !c.is_control());
    }
    text
}

/// One line for each attempt, inside the delivery's span; what went well only where somebody wants to see everything.
fn log(event: &Event, detail: Option<&str>) {
    let outcome = event.attempt.as_ref().map(|attempt| attempt.outcome.as_str());
    let code = event.attempt.as_ref().and_then(|attempt| attempt.code.as_deref());
    let duration_ms = event.attempt.as_ref().map(|attempt| attempt.duration_ms);
    let (state, delay_ms) = (event.state.as_str(), event.delay_ms);
    match event.state {
        State::Sent | State::Delivered => tracing::debug!(state, code, duration_ms, "sent the delivery"),
        State::Dead => {
            tracing::warn!(state, outcome, code, detail, duration_ms, "gave the delivery up as a dead letter")
        }
        State::Retrying => tracing::info!(
            state,
            outcome,
            code,
            detail,
            duration_ms,
            delay_ms,
            "the attempt failed, another one follows"
        ),
        _ => tracing::info!(state, outcome, code, detail, duration_ms, "ended the delivery without sending it"),
    }
}

#[cfg(test)]
mod tests;
