//! One attempt: it takes a claimed delivery and returns the event that tells how the attempt ended. The core of the worker.
//!
//! This module does not use the broker and does not write to the database. Every claim yields exactly one event and at most one
//! provider call.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound, Utc};
use deliveries::claim::Claim;
use domain::{
    Channel, DeadReason, DeliveryId, EventKind, FailoverRound, Fault, Outcome, OutcomeClass, ProviderName,
    ProviderProgress, Reason, RecipientPolicy, RetryDecision, RetryPolicy, Route, State, TenantId, Topic, Tries, Wait,
    clock,
    contract::{
        AttemptRecord, Event, Order, Provider,
        provider::{HeldBack, Slot, ThrottleScope},
        submission::Content,
    },
    retry::{decide, decide_wait},
    suppression::SuppressionReason,
};
use futures_util::FutureExt;
use providers::{
    breakers::{Breakers, CallResult, tenant_key},
    counters,
    email::{tracking::Tracking, unsubscribe_links::UnsubscribeLinks},
    registry::{Providers, backend_setting},
    secrets::{Secrets, Signing},
};
use runtime::faultpoint;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// A provider ends a call that takes too long itself, because it knows how far the call got. If it does not, this module cancels
/// the call this much later.
const GRACE: Duration = Duration::from_millis(100);
/// Maximum length of a detail, in bytes: a clause, not a document.
const DETAIL_BYTES_MAX: usize = 2 * 1024;
/// How long content of a newer version waits before the next check for a worker that can read it.
const UPGRADE_WAIT: Duration = Duration::from_secs(60);
/// Maximum length of a provider's code or reference, in bytes.
const CODE_BYTES_MAX: usize = 200;

/// The context that all attempts of one channel and lane share.
pub struct ChannelContext {
    /// The channel and lane.
    pub route: Route,
    /// The providers, in the order in which they are tried.
    pub providers: Providers,
    /// The circuit breakers of the providers.
    pub breakers: Option<Arc<Breakers>>,
    /// When a failed delivery is retried.
    pub policy: RetryPolicy,
    /// The maximum duration of a provider call.
    pub timeout: Duration,
    /// How much longer than `timeout` the lease of a claim lasts.
    pub lease_margin: Duration,
    /// The webhook secrets; set on the webhook channel only, which signs its messages.
    pub secrets: Option<Arc<Secrets>>,
    /// Adds tracking to mails; set on the email channel if the settings enable it.
    pub tracking: Option<Arc<Tracking>>,
    /// Adds unsubscribe links to mails; set on the email channel only.
    pub unsubscribe_links: Option<Arc<UnsubscribeLinks>>,
    /// Cancels provider calls that a stopping process can no longer wait for.
    pub cut_short: CancellationToken,
}

/// Makes the attempt that a claim allows. `claimed_at` is the time right before the claim statement was sent: the lease is
/// measured from it, and the call must not begin so late that it could outlive the lease.
pub async fn attempt(context: &ChannelContext, claim: Claim, claimed_at: Instant) -> Event {
    let delivery_ref = DeliveryRef::of(&claim);
    let start_window = context.lease_margin.saturating_sub(GRACE).max(GRACE);
    let start_deadline = claimed_at + if claim.line.is_some() { start_window.min(SLOT_TTL) } else { start_window };
    let ready = prepare(context, claim, start_deadline).await;
    faultpoint::pass(faultpoint::AFTER_CLAIM);
    let order = match ready {
        Ok(order) => order,
        Err(skip) => return delivery_ref.without_call(context, skip),
    };
    let choice = match choose_provider(context, &order, delivery_ref, start_deadline).await {
        Ok(choice) => choice,
        Err(skip) => return delivery_ref.without_call(context, skip),
    };
    // The gates may have waited for the database. A call that begins during the shutdown is interrupted, so it does not begin.
    if Instant::now() >= start_deadline || context.cut_short.is_cancelled() {
        return delivery_ref.without_call(context, SkipReason::ClaimTooOld);
    }
    tracing::Span::current().record("provider", choice.provider.name().as_str());
    let started = Instant::now();
    let outcome = call(context, &*choice.provider, &order).await;
    faultpoint::pass(faultpoint::AFTER_PROVIDER);
    record_in_breaker(context, &choice, delivery_ref.tenant, &outcome);
    delivery_ref.after_call(context, &choice, outcome, started.elapsed())
}

/// Returns the event that gives a claim back because this process has no time left to use it.
pub fn give_back(context: &ChannelContext, claim: &Claim) -> Event {
    DeliveryRef::of(claim).without_call(context, SkipReason::ClaimTooOld)
}

/// Why an attempt calls no provider.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SkipReason {
    /// The delivery's `expires_at` has passed.
    Expired,
    /// The channel has no provider.
    NoProvider,
    /// No provider of the channel serves this kind of device.
    NoMatchingProvider,
    /// The person has no address on this channel.
    NoAddress,
    /// The message was accepted but must not be sent.
    Withheld(Reason),
    /// The address is suppressed.
    Suppressed(SuppressionReason),
    /// The person's preferences exclude it.
    OptedOut,
    /// The delivery must wait until this time: for the end of quiet hours or the start of its send window.
    NotYet(DateTime<Utc>, Reason),
    /// The person's quiet hours cover the whole send window.
    WindowNeverOpens,
    /// The stored content is not valid JSON.
    BadContent,
    /// The stored content has a field or value that this version does not know.
    NewerContent,
    /// The call could outlive the claim's lease (the process was suspended, or waited for the database), and another worker could
    /// then make the same call. Or this process is about to end.
    ClaimTooOld,
    /// Every remaining provider of this round is held back, by its breaker or by its own gate.
    HeldBack(HeldBack, FailoverRound),
}

async fn prepare(context: &ChannelContext, claim: Claim, start_deadline: Instant) -> Result<Order, SkipReason> {
    if claim.expires_at.is_some_and(|at| at <= clock::now()) {
        return Err(SkipReason::Expired);
    }
    let content: Content = serde_json::from_slice(&claim.content).map_err(|error| match error.is_data() {
        true => SkipReason::NewerContent,
        false => SkipReason::BadContent,
    })?;
    let mut content = content.on(context.route.channel);
    if let Some(reason) = content.withheld {
        return Err(SkipReason::Withheld(reason));
    }
    check_recipient(context.route.channel, &claim, &content)?;
    if let Some(tracking) = &context.tracking {
        let applying = timeout_at(start_deadline.into(), tracking.apply(claim.delivery, &mut content));
        applying.await.ok().flatten().ok_or(SkipReason::ClaimTooOld)?;
    }
    if let Some(unsubscribe_links) = &context.unsubscribe_links {
        let applying = unsubscribe_links.apply(&claim, &mut content);
        let applying = timeout_at(start_deadline.into(), context.cut_short.run_until_cancelled(applying));
        applying.await.ok().flatten().flatten().ok_or(SkipReason::ClaimTooOld)?;
    }
    let signing = signing(context, &claim, &content);
    let signing = timeout_at(start_deadline.into(), context.cut_short.run_until_cancelled(signing));
    let signing = signing.await.ok().flatten().ok_or(SkipReason::ClaimTooOld)?;
    if Instant::now() >= start_deadline || context.cut_short.is_cancelled() {
        return Err(SkipReason::ClaimTooOld);
    }
    Ok(Order {
        delivery: claim.delivery,
        message: claim.message,
        tenant: claim.tenant,
        channel: context.route.channel,
        lane: context.route.lane,
        recipient: claim.recipient,
        slot: claim.line.map(|line| Slot { line, until: start_deadline }),
        user_id: claim.user_id,
        content: Arc::new(content),
        accepted_at: claim.accepted_at,
        expires_at: claim.expires_at,
        webhook_secret: signing.secrets,
        webhook_configuration: signing.configuration,
        webhook_headers: signing.headers,
        request_id: claim.request_id,
        traceparent: claim.traceparent,
        attempt: claim.tries.attempts,
        timeout: context.timeout,
    })
}

/// The reason why the address is suppressed, if the suppression applies to this content.
fn suppression(claim: &Claim, content: &Content) -> Option<SuppressionReason> {
    let (class, category, kind) = (content.class(), content.category.as_deref(), content.kind.as_deref());
    claim.suppressed.iter().find(|(scope, _)| scope.concerns(class, category, kind)).map(|(_, reason)| *reason)
}

/// Checks the person's preferences, the address, suppressions, quiet hours and the send window, in this order: an unwanted
/// delivery needs no address. If the person is unknown, no preferences apply, and a send window is in UTC.
fn check_recipient(channel: Channel, claim: &Claim, content: &Content) -> Result<(), SkipReason> {
    let defaults = RecipientPolicy::default();
    let policy = claim.person(channel).map(|_| claim.policy.as_deref().unwrap_or(&defaults));
    let topic = Topic {
        kind: content.kind.as_deref(),
        category: content.category.as_deref(),
        class: content.class(),
        channel,
        default_enabled: !content.opt_in,
    };
    if policy.is_some_and(|policy| !policy.preferences.allow(topic)) {
        return Err(SkipReason::OptedOut);
    }
    if claim.recipient.reveal().is_empty() {
        return Err(SkipReason::NoAddress);
    }
    if let Some(reason) = suppression(claim, content) {
        return Err(SkipReason::Suppressed(reason));
    }
    match policy.unwrap_or(&defaults).wait(topic.class, channel, content.send_window.as_ref(), clock::now()) {
        None => Ok(()),
        Some(Wait { until: Some(until), reason }) => Err(SkipReason::NotYet(until, reason)),
        Some(Wait { until: None, .. }) => Err(SkipReason::WindowNeverOpens),
    }
}

/// The chosen provider, and the delivery's failover progress once it was called.
struct ProviderChoice {
    provider: Arc<dyn Provider>,
    /// The key of the provider's breaker.
    breaker: Option<Arc<str>>,
    /// The progress with this provider marked as tried. Its answer later decides whether it may recover.
    progress: ProviderProgress,
    /// A provider that comes earlier in the order but is held back.
    skipped: Option<ProviderName>,
}

/// Chooses the first provider that was not tried in this round and is not held back. If all were tried, a new round begins.
async fn choose_provider(
    context: &ChannelContext,
    order: &Order,
    delivery_ref: DeliveryRef,
    start_deadline: Instant,
) -> Result<ProviderChoice, SkipReason> {
    if context.providers.is_empty() {
        return Err(SkipReason::NoProvider);
    }
    let fitting: Vec<&Arc<dyn Provider>> = context.providers.iter().filter(|provider| provider.fits(order)).collect();
    let is_untried = |round: FailoverRound| move |provider: &&Arc<dyn Provider>| !round.has_asked(provider.name());
    let round = match fitting.iter().copied().any(|provider| is_untried(delivery_ref.round)(&provider)) {
        true => delivery_ref.round,
        false => FailoverRound::NEW,
    };
    let (mut shortest, mut skipped): (Option<HeldBack>, _) = (None, None);
    for provider in fitting.iter().copied().filter(is_untried(round)) {
        let breaker = provider.breaker_key(order);
        match gate(context, &**provider, breaker.as_ref(), order, delivery_ref.jitter(), start_deadline).await {
            Ok(()) => {
                let after = round.with(provider.name(), false);
                let others_left = fitting.iter().copied().any(|other| is_untried(after)(&other));
                let providers = u16::try_from(fitting.len()).unwrap_or(u16::MAX);
                let progress = ProviderProgress { providers, others_left, round: after };
                return Ok(ProviderChoice { provider: Arc::clone(provider), breaker, progress, skipped });
            }
            Err(held) => {
                skipped = skipped.or(Some(provider.name()));
                shortest = Some(shortest.filter(|other| other.wait <= held.wait).unwrap_or(held));
            }
        }
    }
    Err(shortest.map_or(SkipReason::NoMatchingProvider, |held| SkipReason::HeldBack(held, round)))
}

async fn signing(context: &ChannelContext, claim: &Claim, content: &Content) -> Signing {
    match &context.secrets {
        Some(secrets) => secrets.get(claim.tenant, content.configuration).await,
        None => Signing::default(),
    }
}

/// How long a WhatsApp slot may be used after it was taken.
const SLOT_TTL: Duration = Duration::from_secs(1);
/// How much longer than a minute the window is in which slots are counted (`slot_window()` in the migrations). If a call ends
/// later than this after its slot was taken, the message may have arrived late too, and the slot must be moved.
pub const SLOT_ALLOWANCE: Duration = Duration::from_secs(2);

/// Checks the provider's breaker, then its own gate. A check that is not finished at `start_deadline` is dropped: the caller then
/// gives the claim back.
async fn gate(
    context: &ChannelContext,
    provider: &dyn Provider,
    breaker: Option<&Arc<str>>,
    order: &Order,
    jitter: f64,
    start_deadline: Instant,
) -> Result<(), HeldBack> {
    let check = async {
        if let (Some(breakers), Some(key)) = (&context.breakers, breaker) {
            // Lengthen the wait by up to 100 %, so that deliveries that wait for the same provider do not all return at once.
            let spread = |held: HeldBack| HeldBack { wait: held.wait.mul_f64(1.0 + jitter), ..held };
            breakers.gate(&[key], order.timeout + GRACE).await.map_err(spread)?;
            breakers.tenant_gate(key, order.tenant).map_err(spread)?;
        }
        provider.gate(order).await
    };
    let check = timeout_at(start_deadline.into(), context.cut_short.run_until_cancelled(check));
    check.await.ok().flatten().unwrap_or(Ok(()))
}

/// Tells the breaker how the call ended. This runs in the background: neither this delivery nor the next one waits for it.
fn record_in_breaker(context: &ChannelContext, choice: &ProviderChoice, tenant: TenantId, outcome: &Outcome) {
    let (Some(breakers), Some(key)) = (&context.breakers, &choice.breaker) else { return };
    let result = match outcome {
        Outcome::Sent(_) | Outcome::Rejected(_) | Outcome::AddressDead(_) => CallResult::Success,
        Outcome::Throttled(fault, Some(wait)) => match choice.provider.throttle_scope(fault) {
            ThrottleScope::Provider => CallResult::Paused(*wait),
            ThrottleScope::Tenant => return breakers.record(&tenant_key(key, tenant), CallResult::Paused(*wait)),
            ThrottleScope::Recipient => return,
        },
        Outcome::Transient(..) | Outcome::Unknown(_) if choice.provider.is_down(outcome) => CallResult::Failure,
        Outcome::Transient(..) | Outcome::Unknown(_) | Outcome::Throttled(..) | Outcome::Misconfigured(_) => return,
    };
    breakers.record(key, result);
}

/// Calls the provider. Returns an outcome even if the provider panics, hangs or is cut short.
async fn call(context: &ChannelContext, provider: &dyn Provider, order: &Order) -> Outcome {
    let sending = AssertUnwindSafe(async { provider.send(order).await }).catch_unwind();
    let unknown = |code: &str, detail: &str| Outcome::Unknown(Fault::new(code, detail));
    tokio::select! {
        biased;
        ended = timeout(order.timeout + GRACE, sending) => match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => unknown("panic", "the code that talks to the provider failed half-way"),
            Err(_) => unknown("timeout", "the provider did not answer in time"),
        },
        () = context.cut_short.cancelled() => unknown("shutdown", "this process stopped before the provider answered"),
    }
}

/// The fields of a claim that every event of its delivery needs, whatever the outcome.
#[derive(Clone, Copy)]
struct DeliveryRef {
    tenant: TenantId,
    delivery: DeliveryId,
    run: i32,
    tries: Tries,
    round: FailoverRound,
    waiting_since: Option<DateTime<Utc>>,
    accepted_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl DeliveryRef {
    const fn of(claim: &Claim) -> Self {
        let Claim { tenant, delivery, run, tries, round, waiting_since, accepted_at, expires_at, .. } = *claim;
        Self { tenant, delivery, run, tries, round, waiting_since, accepted_at, expires_at }
    }

    fn after_call(self, context: &ChannelContext, choice: &ProviderChoice, outcome: Outcome, took: Duration) -> Event {
        let now = clock::now();
        let provider = choice.provider.name();
        counters::attempted(context.route.channel, provider, outcome.class(), took);
        if outcome.class() == OutcomeClass::Sent && self.run == 1 {
            counters::sent_at_once(context.route, (now - self.accepted_at).to_std().unwrap_or_default());
        }
        let may_recover = outcome.class() != OutcomeClass::Misconfigured;
        let progress = ProviderProgress { round: choice.progress.round.with(provider, may_recover), ..choice.progress };
        let decision = self.decide(context, &outcome, now, progress);
        let round = match decision.delay {
            Some(Duration::ZERO) => {
                counters::failed_over(context.route.channel, provider);
                progress.round
            }
            // The outcome is unknown: the delivery stays with this provider until it reports, or until the hold ends.
            Some(_) if outcome.class() == OutcomeClass::Unknown && progress.others_left => self.round,
            Some(_) | None => FailoverRound::NEW,
        };
        let attempt = attempt_record(provider, outcome, took, choice.skipped);
        let event = Event { attempt: Some(attempt), round, ..self.event(context, decision, now) };
        log(&event, event.attempt.as_ref().and_then(|attempt| attempt.detail.as_deref()));
        event
    }

    fn without_call(self, context: &ChannelContext, skip: SkipReason) -> Event {
        // Truncate to milliseconds, as delays are: a held delivery must not continue shortly before its time.
        let now = clock::now().trunc_subsecs(3);
        let (detail, reason) = (skip.detail(context), skip.reason());
        let later = |wait| self.decide_wait(context, wait, now);
        let decision = match skip {
            SkipReason::Expired => RetryDecision::end(EventKind::Expired, State::Expired),
            SkipReason::NoAddress => RetryDecision::end(EventKind::Failed, State::Failed),
            SkipReason::Withheld(_)
            | SkipReason::Suppressed(_)
            | SkipReason::OptedOut
            | SkipReason::WindowNeverOpens => RetryDecision::end(EventKind::Suppressed, State::Suppressed),
            // The delivery expires before it may be sent.
            SkipReason::NotYet(until, _) if self.expires_at.is_some_and(|at| at <= until) => {
                RetryDecision::end(EventKind::Expired, State::Expired)
            }
            SkipReason::NotYet(until, _) => RetryDecision::hold((until - now).to_std().unwrap_or_default()),
            SkipReason::NoProvider | SkipReason::NoMatchingProvider => {
                RetryDecision::dead(EventKind::Dead, DeadReason::Misconfigured)
            }
            SkipReason::BadContent => RetryDecision::dead(EventKind::Dead, DeadReason::Schema),
            // This spends no attempt. `wait_max` bounds how long the delivery can wait.
            SkipReason::ClaimTooOld => later(None),
            // A worker of a newer version can read it.
            SkipReason::NewerContent => later(Some(UPGRADE_WAIT)),
            // Other providers were already tried in this round, and may recover within the usual pause.
            SkipReason::HeldBack(HeldBack { wait, .. }, round) if !round.is_empty() => {
                let usual = later(None);
                RetryDecision { delay: usual.delay.map(|delay| delay.min(wait)), ..usual }
            }
            SkipReason::HeldBack(HeldBack { wait, .. }, _) => later(Some(wait)),
        };
        let round = if matches!(skip, SkipReason::ClaimTooOld) { self.round } else { FailoverRound::NEW };
        let event = Event { spent: false, detail: Some(detail), reason, round, ..self.event(context, decision, now) };
        log(&event, event.detail.as_deref());
        event
    }

    fn decide(
        self,
        context: &ChannelContext,
        outcome: &Outcome,
        now: DateTime<Utc>,
        progress: ProviderProgress,
    ) -> RetryDecision {
        let time_left = self.expires_at.map(|at| (at - now).to_std().unwrap_or_default());
        decide(outcome, self.tries, time_left, &context.policy, self.jitter(), progress)
    }

    fn decide_wait(self, context: &ChannelContext, wait: Option<Duration>, now: DateTime<Utc>) -> RetryDecision {
        let time_left = self.expires_at.map(|at| (at - now).to_std().unwrap_or_default());
        let waited = self.waiting_since.and_then(|since| (now - since).to_std().ok()).unwrap_or_default();
        decide_wait(waited, wait, time_left, &context.policy, self.jitter())
    }

    /// A value in 0..1 without a random generator: the last bits of an id are random, and each run mixes them differently.
    fn jitter(self) -> f64 {
        let [.., a, b, c, d] = *self.delivery.0.as_bytes();
        let mixed = (u32::from_be_bytes([a, b, c, d]) ^ self.run.unsigned_abs()).wrapping_mul(0x9E37_79B1);
        f64::from(mixed) / (f64::from(u32::MAX) + 1.0)
    }

    fn event(self, context: &ChannelContext, decision: RetryDecision, at: DateTime<Utc>) -> Event {
        Event {
            tenant: self.tenant,
            delivery: self.delivery,
            run: self.run,
            channel: context.route.channel,
            kind: decision.kind,
            at,
            attempt: None,
            state: decision.state,
            delay_ms: decision.delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
            detail: None,
            reason: None,
            dead: decision.dead,
            spent: decision.spent,
            round: FailoverRound::NEW,
            crash: false,
            report: false,
        }
    }
}

impl SkipReason {
    /// The reason for the event, if there is one.
    const fn reason(&self) -> Option<Reason> {
        match self {
            Self::NoAddress => Some(Reason::NoAddress),
            Self::Withheld(reason) | Self::NotYet(_, reason) => Some(*reason),
            Self::Suppressed(reason) => Some(match reason {
                SuppressionReason::AddressDead => Reason::AddressDead,
                SuppressionReason::HardBounce => Reason::HardBounce,
                SuppressionReason::SoftBounces => Reason::SoftBounces,
                SuppressionReason::Complaint => Reason::Complaint,
                SuppressionReason::Unsubscribed => Reason::Unsubscribed,
            }),
            Self::OptedOut => Some(Reason::Preference),
            Self::WindowNeverOpens => Some(Reason::SendWindow),
            Self::Expired
            | Self::NoProvider
            | Self::NoMatchingProvider
            | Self::BadContent
            | Self::NewerContent
            | Self::ClaimTooOld
            | Self::HeldBack(..) => None,
        }
    }

    /// A clause for people that explains the reason.
    fn detail(&self, context: &ChannelContext) -> String {
        let channel = context.route.channel;
        match self {
            Self::Expired => "it expired before it could be sent".to_owned(),
            Self::NoProvider => format!("no provider for channel `{channel}`: set {}", backend_setting(channel)),
            Self::BadContent => "its stored content cannot be read".to_owned(),
            Self::NewerContent => {
                "its content has a form that this version cannot read: it waits for a newer worker".to_owned()
            }
            Self::NoMatchingProvider => format!(
                "no provider of channel `{channel}` serves its kind of device: see {}",
                backend_setting(channel)
            ),
            Self::NoAddress => "no_address: this person has no address on the channel".to_owned(),
            Self::Withheld(reason) => format!("{reason}: accepted, but not sent to this person"),
            Self::Suppressed(reason) => format!("its address is suppressed: {reason}"),
            Self::OptedOut => "preference: the person switched it off".to_owned(),
            Self::NotYet(_, Reason::SendWindow) => "send_window: it is sent when the window opens".to_owned(),
            Self::NotYet(_, reason) => format!("{reason}: it is sent when they end"),
            Self::WindowNeverOpens => "send_window: the person's quiet hours cover the whole window".to_owned(),
            Self::HeldBack(held, _) => held.reason.to_owned(),
            Self::ClaimTooOld => {
                "the worker had no time left for it, or could not prepare it: it is tried again".to_owned()
            }
        }
    }
}

fn attempt_record(
    provider: ProviderName,
    outcome: Outcome,
    took: Duration,
    skipped: Option<ProviderName>,
) -> AttemptRecord {
    let class = outcome.class();
    let (code, detail, provider_ref) = match outcome {
        Outcome::Sent(receipt) => (receipt.code, receipt.note, receipt.provider_ref),
        Outcome::Transient(fault, _) | Outcome::Throttled(fault, _) => (fault.code, Some(fault.detail), None),
        Outcome::Rejected(fault)
        | Outcome::AddressDead(fault)
        | Outcome::Misconfigured(fault)
        | Outcome::Unknown(fault) => (fault.code, Some(fault.detail), None),
    };
    let instead =
        skipped.map(|name| format!("called instead of {name}, which keeps failing and is not called for a while"));
    let detail = match (detail, instead) {
        (Some(detail), Some(instead)) => Some(format!("{detail}; {instead}")),
        (detail, instead) => detail.or(instead),
    };
    AttemptRecord {
        provider,
        outcome: class,
        code: code.map(|code| sanitized(code, CODE_BYTES_MAX)),
        detail: detail.map(|detail| sanitized(detail, DETAIL_BYTES_MAX)),
        duration_ms: i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
        provider_ref: provider_ref.map(|id| sanitized(id, CODE_BYTES_MAX)),
    }
}

/// Truncates `text` and removes control characters. It may come from a vendor, and a database column may refuse such characters.
fn sanitized(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    if text.contains(char::is_control) {
        text.retain(|c| !c.is_control());
    }
    text
}

/// Logs one line per attempt, in the delivery's span. Successes are logged at level debug.
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
        State::Scheduled => {
            tracing::debug!(state, detail, delay_ms, "held the delivery until its send time")
        }
        _ => tracing::info!(state, outcome, code, detail, duration_ms, "ended the delivery"),
    }
}

#[cfg(test)]
mod tests;
