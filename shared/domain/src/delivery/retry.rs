//! Decides what follows an attempt. The whole retry policy is pure functions without I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{DeadReason, EventKind, Outcome, ProviderName, State};

/// The delays between retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// `base`, then doubled for each retry, up to `max`.
    Exponential {
        /// The first delay.
        base: Duration,
        /// The longest delay.
        max: Duration,
    },
    /// These delays in order; the last one repeats.
    Fixed(Vec<Duration>),
}

/// When and how often a channel retries a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Maximum attempts, including the first.
    pub max_attempts: u16,
    /// The delays between them.
    pub schedule: Schedule,
    /// Whether an attempt with an unknown outcome is retried on the usual schedule (`resend`), or only after a wait for the
    /// provider's report (`hold`).
    pub ambiguous: AmbiguousPolicy,
    /// How long a delivery may wait without any attempt, because no provider may be called, before it becomes a dead letter.
    pub wait_max: Duration,
}

/// The policy after an attempt that may have sent the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmbiguousPolicy {
    /// Send again on the usual schedule, with the same idempotency key for the provider.
    Resend,
    /// Wait this long for the provider's report, then send again.
    Hold(Duration),
}

/// A delivery is dead after providers have throttled it this many times, so that no delivery is retried forever.
pub const DEFERRALS_MAX: u16 = 100;
/// A delivery on which this many workers died becomes a dead letter. RabbitMQ's own limit, 20, is far higher.
pub const CRASHES_MAX: u16 = 3;
/// Maximum `Retry-After` of a provider; a longer one is cut to this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest pause between two checks for a provider that may be called, unless the provider asks for more.
const RECHECK_PAUSE_MAX: Duration = Duration::from_secs(120);
/// Checks become rarer over time: each pause is at least the time waited so far, divided by this.
const RECHECKS_PER_WAIT: u32 = 30;
/// Jitter lengthens a delay by at most this fraction and never shortens it.
const JITTER_SHARE: f64 = 0.1;

impl RetryPolicy {
    /// The delay before try `tries_made + 1`, including jitter (0 ≤ `jitter` < 1).
    fn delay(&self, tries_made: u16, jitter: f64) -> Duration {
        let retry = tries_made.saturating_sub(1);
        let plain = match &self.schedule {
            Schedule::Exponential { base, max } => {
                let factor = 2u32.checked_pow(u32::from(retry)).unwrap_or(u32::MAX);
                base.checked_mul(factor).unwrap_or(*max).min(*max)
            }
            Schedule::Fixed(delays) => delays.get(usize::from(retry)).or(delays.last()).copied().unwrap_or_default(),
        };
        lengthen(plain, jitter)
    }
}

fn lengthen(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(1.0 + JITTER_SHARE * jitter.clamp(0.0, 1.0))
}

/// The tries of a delivery so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Attempts that count towards `max_attempts`, including the current one.
    pub attempts: u16,
    /// Attempts that do not count because the provider throttled them.
    pub deferrals: u16,
    /// Attempts during which the worker died.
    pub crashes: u16,
}

/// The providers that were tried for a delivery since its last pause. It is stored with the delivery, so that the next worker
/// continues with the next provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailoverRound(
    /// One bit per provider: [`ProviderInfo::bit`](crate::ProviderInfo::bit). Bit 30 is set if a tried provider may recover.
    pub i32,
);

impl FailoverRound {
    /// No provider was called.
    pub const NEW: Self = Self(0);
    /// Set if a provider that was tried in this round may succeed in the next.
    const MAY_RECOVER: i32 = 1 << 30;

    /// Whether no provider was tried in this round.
    pub fn is_empty(&self) -> bool {
        *self == Self::NEW
    }

    /// Whether `provider` was tried in this round.
    pub fn has_asked(self, provider: ProviderName) -> bool {
        self.0 & bit(provider) != 0
    }

    /// The round after `provider` was tried. `may_recover`: whether that provider may succeed in a later round.
    #[must_use]
    pub fn with(self, provider: ProviderName, may_recover: bool) -> Self {
        Self(self.0 | bit(provider) | if may_recover { Self::MAY_RECOVER } else { 0 })
    }

    const fn may_recover(self) -> bool {
        self.0 & Self::MAY_RECOVER != 0
    }
}

const fn bit(provider: ProviderName) -> i32 {
    1 << provider.info().bit
}

/// The progress of a delivery through the providers of its channel, including the one just tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderProgress {
    /// How many providers can carry the delivery; 0 counts as one.
    pub providers: u16,
    /// Whether a provider is still untried in this round.
    pub others_left: bool,
    /// The providers that were tried.
    pub round: FailoverRound,
}

impl ProviderProgress {
    /// The number of rounds begun after `attempts` attempts. Attempts are counted singly, but pauses come between rounds.
    fn rounds(self, attempts: u16) -> u16 {
        attempts.div_ceil(self.providers.max(1))
    }

    const fn is_alone(self) -> bool {
        self.providers <= 1
    }
}

/// The consequence of an attempt: the next state, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryDecision {
    /// The event kind in the delivery log.
    pub kind: EventKind,
    /// The delivery's next state.
    pub state: State,
    /// The delay before the next try; set exactly when `state` is `Retrying` or `Scheduled`.
    pub delay: Option<Duration>,
    /// Why the delivery is dead; set exactly when `state` is `Dead`.
    pub dead: Option<DeadReason>,
    /// Whether the attempt counts towards `max_attempts`.
    pub spent: bool,
}

impl RetryDecision {
    /// Ends the delivery in `state`, with an event of `kind`.
    pub const fn end(kind: EventKind, state: State) -> Self {
        Self { kind, state, delay: None, dead: None, spent: true }
    }

    /// Ends the delivery as a dead letter.
    pub const fn dead(kind: EventKind, reason: DeadReason) -> Self {
        Self { kind, state: State::Dead, delay: None, dead: Some(reason), spent: true }
    }

    /// Holds the delivery for `delay`, before a call that has not been made yet.
    pub const fn hold(delay: Duration) -> Self {
        let (kind, state) = (EventKind::Scheduled, State::Scheduled);
        Self { kind, state, delay: Some(delay), dead: None, spent: false }
    }

    const fn again(kind: EventKind, delay: Duration, spent: bool) -> Self {
        Self { kind, state: State::Retrying, delay: Some(delay), dead: None, spent }
    }
}

/// Decides what follows `outcome`.
///
/// `time_left` is the time until the message expires; if a retry would come later, the delivery ends as `expired`. `jitter` is
/// uniform in 0..1. If another provider may succeed, the delivery goes to it at once, whatever the number of attempts. Only when
/// all providers of the round were tried, it pauses or ends.
pub fn decide(
    outcome: &Outcome,
    tries: Tries,
    time_left: Option<Duration>,
    policy: &RetryPolicy,
    jitter: f64,
    progress: ProviderProgress,
) -> RetryDecision {
    let decision = match outcome {
        Outcome::Sent(receipt) if receipt.arrived => RetryDecision::end(EventKind::Delivered, State::Delivered),
        Outcome::Sent(_) => RetryDecision::end(EventKind::Sent, State::Sent),
        Outcome::Rejected(_) | Outcome::AddressDead(_) => RetryDecision::end(EventKind::Failed, State::Failed),
        Outcome::Unknown(_) if let AmbiguousPolicy::Hold(wait) = policy.ambiguous => {
            again(EventKind::Ambiguous, Some(wait), tries, policy, jitter, progress)
        }
        Outcome::Unknown(_) if progress.others_left => RetryDecision::again(EventKind::Ambiguous, Duration::ZERO, true),
        Outcome::Throttled(..) if progress.others_left && tries.deferrals < DEFERRALS_MAX => {
            RetryDecision::again(EventKind::Retrying, Duration::ZERO, false)
        }
        Outcome::Transient(..) | Outcome::Misconfigured(_) if progress.others_left => {
            RetryDecision::again(EventKind::Retrying, Duration::ZERO, true)
        }
        Outcome::Misconfigured(_) if progress.round.may_recover() => {
            again(EventKind::Retrying, None, tries, policy, jitter, progress)
        }
        Outcome::Misconfigured(_) => RetryDecision::dead(EventKind::Dead, DeadReason::Misconfigured),
        Outcome::Throttled(_, retry_after) => throttled(*retry_after, tries, policy, jitter, progress),
        Outcome::Transient(_, retry_after) => again(EventKind::Retrying, *retry_after, tries, policy, jitter, progress),
        Outcome::Unknown(_) => again(EventKind::Ambiguous, None, tries, policy, jitter, progress),
    };
    expire(decision, time_left)
}

/// Decides what follows a claim that called no provider (a breaker is open, or the claim was too old).
///
/// This is not counted as an attempt, however often it happens. The delivery is dead when it has `waited` for
/// [`RetryPolicy::wait_max`] since its last attempt. The next check comes after `wait`, or after the usual first delay.
pub fn decide_wait(
    waited: Duration,
    wait: Option<Duration>,
    time_left: Option<Duration>,
    policy: &RetryPolicy,
    jitter: f64,
) -> RetryDecision {
    if waited >= policy.wait_max {
        return RetryDecision::dead(EventKind::Dead, DeadReason::AttemptsExhausted);
    }
    let pause = wait.map_or_else(|| policy.delay(1, jitter), |wait| capped(Some(wait), jitter));
    let delay = pause.max((waited / RECHECKS_PER_WAIT).min(RECHECK_PAUSE_MAX));
    expire(RetryDecision::again(EventKind::Retrying, delay, false), time_left)
}

/// Decides what follows when a worker died while it held the delivery. It is unknown whether the provider was called.
pub fn decide_crash(tries: Tries, time_left: Option<Duration>, policy: &RetryPolicy, jitter: f64) -> RetryDecision {
    if tries.crashes >= CRASHES_MAX {
        return RetryDecision::dead(EventKind::Ambiguous, DeadReason::ExpiredCrashes);
    }
    let held = match policy.ambiguous {
        AmbiguousPolicy::Resend => None,
        AmbiguousPolicy::Hold(wait) => Some(wait),
    };
    expire(again(EventKind::Ambiguous, held, tries, policy, jitter, ProviderProgress::default()), time_left)
}

/// Retries the delivery on the schedule, or ends it if its attempts are exhausted.
fn again(
    kind: EventKind,
    retry_after: Option<Duration>,
    tries: Tries,
    policy: &RetryPolicy,
    jitter: f64,
    progress: ProviderProgress,
) -> RetryDecision {
    if tries.attempts >= policy.max_attempts {
        let kind = if kind == EventKind::Retrying { EventKind::Dead } else { kind };
        return RetryDecision::dead(kind, DeadReason::AttemptsExhausted);
    }
    let delay = policy.delay(progress.rounds(tries.attempts), jitter).max(capped(retry_after, jitter));
    RetryDecision::again(kind, delay, true)
}

/// Retries a throttled delivery. If the channel has several providers, the delivery waits for the usual delay only: the others
/// may be called, and a breaker enforces the pause of the one that asked for it.
fn throttled(
    retry_after: Option<Duration>,
    tries: Tries,
    policy: &RetryPolicy,
    jitter: f64,
    progress: ProviderProgress,
) -> RetryDecision {
    if tries.deferrals >= DEFERRALS_MAX {
        return RetryDecision::dead(EventKind::Dead, DeadReason::AttemptsExhausted);
    }
    let delay = match retry_after {
        Some(_) if progress.is_alone() => capped(retry_after, jitter),
        _ => policy.delay(progress.rounds(tries.deferrals.saturating_add(1)), jitter),
    };
    RetryDecision::again(EventKind::Retrying, delay, false)
}

/// The provider's `Retry-After`, at most [`RETRY_AFTER_MAX`] plus jitter; zero if there is none.
fn capped(retry_after: Option<Duration>, jitter: f64) -> Duration {
    retry_after.map(|wait| lengthen(wait.min(RETRY_AFTER_MAX), jitter)).unwrap_or_default()
}

/// Ends the delivery as expired if its next try would come after the expiry.
fn expire(decision: RetryDecision, time_left: Option<Duration>) -> RetryDecision {
    match (decision.delay, time_left) {
        (Some(delay), Some(left)) if delay >= left => {
            let kind = if decision.kind == EventKind::Retrying { EventKind::Expired } else { decision.kind };
            RetryDecision { kind, state: State::Expired, delay: None, ..decision }
        }
        _ => decision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, Receipt, Trigger};

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 4,
            schedule: Schedule::Exponential { base: Duration::from_secs(1), max: Duration::from_secs(3) },
            ambiguous: AmbiguousPolicy::Resend,
            wait_max: Duration::from_secs(3600),
        }
    }

    fn tries(attempts: u16) -> Tries {
        Tries { attempts, ..Tries::default() }
    }

    fn transient() -> Outcome {
        Outcome::Transient(Fault::default(), None)
    }

    #[test]
    fn every_decision_is_a_transition_of_the_table() {
        let fault = Fault::default;
        let outcomes = [
            Outcome::Sent(Receipt::default()),
            Outcome::Sent(Receipt { arrived: true, ..Receipt::default() }),
            Outcome::Transient(fault(), None),
            Outcome::Throttled(fault(), None),
            Outcome::Rejected(fault()),
            Outcome::AddressDead(fault()),
            Outcome::Misconfigured(fault()),
            Outcome::Unknown(fault()),
        ];
        let is_of_table = |trigger: Trigger, decision: RetryDecision| {
            assert!(trigger.moves(Some(State::Sending), decision.state), "{trigger}: {decision:?}");
        };
        let ambiguous = [AmbiguousPolicy::Resend, AmbiguousPolicy::Hold(Duration::from_secs(1))];
        for (count, left) in [(1, None), (4, None), (1, Some(Duration::ZERO)), (u16::MAX, None)] {
            let tries = Tries { attempts: count, deferrals: count, crashes: count };
            for policy in ambiguous.map(|ambiguous| RetryPolicy { ambiguous, ..policy() }) {
                for outcome in &outcomes {
                    let progress = ProviderProgress::default();
                    is_of_table(Trigger::Outcome, decide(outcome, tries, left, &policy, 0.0, progress));
                }
                is_of_table(Trigger::Outcome, decide_wait(Duration::ZERO, None, left, &policy, 0.0));
                is_of_table(Trigger::Crash, decide_crash(tries, left, &policy, 0.0));
            }
        }
        is_of_table(Trigger::Outcome, RetryDecision::hold(Duration::ZERO));
    }

    #[test]
    fn delays_double_up_to_the_maximum_and_then_the_delivery_is_dead() {
        let delays: Vec<_> = (1..=3)
            .map(|n| decide(&transient(), tries(n), None, &policy(), 0.0, ProviderProgress::default()).delay)
            .collect();
        assert_eq!(delays, [1, 2, 3].map(|s| Some(Duration::from_secs(s))));
        let last = decide(&transient(), tries(4), None, &policy(), 0.0, ProviderProgress::default());
        assert_eq!((last.state, last.dead), (State::Dead, Some(DeadReason::AttemptsExhausted)));
    }

    #[test]
    fn jitter_only_lengthens_and_by_at_most_a_tenth() {
        let delay = decide(&transient(), tries(1), None, &policy(), 0.999, ProviderProgress::default()).delay.unwrap();
        assert!(delay >= Duration::from_secs(1) && delay <= Duration::from_millis(1100), "{delay:?}");
    }

    #[test]
    fn retry_after_is_never_undercut() {
        let asked = Duration::from_secs(60);
        for outcome in
            [Outcome::Transient(Fault::default(), Some(asked)), Outcome::Throttled(Fault::default(), Some(asked))]
        {
            assert!(
                decide(&outcome, tries(1), None, &policy(), 0.0, ProviderProgress::default()).delay.unwrap() >= asked
            );
        }
    }

    #[test]
    fn a_throttled_delivery_waits_without_spending_an_attempt() {
        let decision = decide(
            &Outcome::Throttled(Fault::default(), None),
            tries(4),
            None,
            &policy(),
            0.0,
            ProviderProgress::default(),
        );
        assert_eq!((decision.state, decision.spent), (State::Retrying, false));
    }

    #[test]
    fn a_throttled_delivery_cannot_circle_for_ever() {
        let tries = Tries { deferrals: DEFERRALS_MAX, ..Tries::default() };
        assert_eq!(
            decide(
                &Outcome::Throttled(Fault::default(), None),
                tries,
                None,
                &policy(),
                0.0,
                ProviderProgress::default()
            )
            .state,
            State::Dead
        );
    }

    #[test]
    fn a_wait_for_a_provider_ends_by_its_length_alone() {
        let look =
            |waited| decide_wait(Duration::from_secs(waited), Some(Duration::from_secs(5)), None, &policy(), 0.0);
        assert_eq!(
            (look(0).state, look(0).delay, look(0).spent),
            (State::Retrying, Some(Duration::from_secs(5)), false)
        );
        assert_eq!(look(600).delay, Some(Duration::from_secs(20)), "looks get rarer");
        assert_eq!(look(3570).delay, Some(Duration::from_secs(119)), "within bounds");
        assert_eq!((look(3600).state, look(3600).dead), (State::Dead, Some(DeadReason::AttemptsExhausted)));
        let soon = Some(Duration::from_secs(3));
        assert_eq!(decide_wait(Duration::ZERO, None, soon, &policy(), 0.0).delay, Some(Duration::from_secs(1)));
        let over = decide_wait(Duration::ZERO, Some(Duration::from_secs(5)), soon, &policy(), 0.0);
        assert_eq!(over.state, State::Expired);
    }

    #[test]
    fn a_retry_after_the_expiry_is_not_made() {
        let decision = decide(
            &transient(),
            tries(1),
            Some(Duration::from_millis(500)),
            &policy(),
            0.0,
            ProviderProgress::default(),
        );
        assert_eq!((decision.kind, decision.state, decision.delay), (EventKind::Expired, State::Expired, None));
    }

    #[test]
    fn doubt_is_reported_as_doubt_whether_or_not_another_try_follows() {
        let unknown = Outcome::Unknown(Fault::default());
        assert_eq!(
            decide(&unknown, tries(1), None, &policy(), 0.0, ProviderProgress::default()).kind,
            EventKind::Ambiguous
        );
        let last = decide(&unknown, tries(4), None, &policy(), 0.0, ProviderProgress::default());
        assert_eq!((last.kind, last.state), (EventKind::Ambiguous, State::Dead));
    }

    #[test]
    fn a_held_channel_waits_for_the_echo_first() {
        let hold = RetryPolicy { ambiguous: AmbiguousPolicy::Hold(Duration::from_secs(600)), ..policy() };
        let decision =
            decide(&Outcome::Unknown(Fault::default()), tries(1), None, &hold, 0.0, ProviderProgress::default());
        assert!(decision.delay.unwrap() >= Duration::from_secs(600));
    }

    #[test]
    fn what_another_provider_may_do_better_goes_to_it_at_once_and_the_pause_comes_after_all_of_them() {
        let policy = policy();
        let asked = |round: FailoverRound, left: bool| ProviderProgress { providers: 2, others_left: left, round };
        let first = FailoverRound::default().with(ProviderName::Sendgrid, true);
        for outcome in [transient(), Outcome::Unknown(Fault::default()), Outcome::Misconfigured(Fault::default())] {
            let decision = decide(&outcome, tries(4), None, &policy, 0.0, asked(first, true));
            assert_eq!((decision.state, decision.delay), (State::Retrying, Some(Duration::ZERO)), "{outcome:?}");
        }
        let both = first.with(ProviderName::Ses, false);
        assert!(both.has_asked(ProviderName::Ses) && both.has_asked(ProviderName::Sendgrid));
        let refused = Outcome::Misconfigured(Fault::default());
        let decision = decide(&refused, tries(2), None, &policy, 0.0, asked(both, false));
        assert_eq!(
            (decision.state, decision.delay),
            (State::Retrying, Some(Duration::from_secs(1))),
            "one may recover"
        );
        let hopeless = FailoverRound::default().with(ProviderName::Sendgrid, false).with(ProviderName::Ses, false);
        let decision = decide(&refused, tries(2), None, &policy, 0.0, asked(hopeless, false));
        assert_eq!(decision.dead, Some(DeadReason::Misconfigured), "nobody will do better");
        let decision = decide(&Outcome::Rejected(Fault::default()), tries(1), None, &policy, 0.0, asked(first, true));
        assert_eq!(decision.state, State::Failed, "a refusal of the message holds for every provider");
    }

    #[test]
    fn doubt_that_is_held_stays_with_its_provider() {
        let hold = RetryPolicy { ambiguous: AmbiguousPolicy::Hold(Duration::from_secs(600)), ..policy() };
        let progress = ProviderProgress { providers: 2, others_left: true, round: FailoverRound::default() };
        let decision = decide(&Outcome::Unknown(Fault::default()), tries(1), None, &hold, 0.0, progress);
        assert!(decision.delay.unwrap() >= Duration::from_secs(600));
    }

    #[test]
    fn the_third_crash_takes_the_delivery_out() {
        let crashed = |crashes| decide_crash(Tries { attempts: 1, deferrals: 0, crashes }, None, &policy(), 0.0);
        assert_eq!(crashed(2).state, State::Retrying);
        assert_eq!(crashed(3).dead, Some(DeadReason::ExpiredCrashes));
    }

    #[test]
    fn a_receipt_that_says_arrived_is_delivered() {
        let arrived = Outcome::Sent(Receipt { arrived: true, ..Receipt::default() });
        assert_eq!(
            decide(&arrived, tries(1), None, &policy(), 0.0, ProviderProgress::default()).state,
            State::Delivered
        );
        assert_eq!(
            decide(&Outcome::Sent(Receipt::default()), tries(1), None, &policy(), 0.0, ProviderProgress::default())
                .state,
            State::Sent
        );
    }
}
