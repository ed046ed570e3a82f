//! Finds claims whose worker died, and reports them as crashes.
//!
//! An ended lease ends the claim, but is only a reason to check. A crash is reported after the outcome has had enough
//! time to arrive (see [`crate::log::crash_gate`]). The report goes through the log queue and not straight into the database, so
//! that an outcome that waits there is applied first. It applies only while the delivery is still `sending`.

use std::{sync::Arc, time::Duration};

use broker::Publisher;
use chrono::{DateTime, Utc};
use deliveries::{Deliveries, due::Crash, events::WORKER_LOST, poll::WorkKind};
use domain::{
    FailoverRound, OutcomeClass, ProviderName, RetryPolicy, clock,
    contract::{AttemptRecord, Event},
    retry::decide_crash,
};
use metrics::{counter, gauge};
use runtime::{config::Config, metric};
use store::{DbResult, Store};

use crate::{
    log::crash_gate::CrashGate,
    task::{Report, Task, TaskError, gauge_of, jitter, millis},
    webhooks::inbound_webhooks::publish_as,
};

/// Watches checked in one turn.
const LIMIT: i64 = 500;
/// A reported crash is reported again after this time unless it is written.
const REPORT_AGAIN_MS: i32 = 30_000;
/// A crash that cannot be reported yet is checked again after this time.
const RECHECK_MS: i32 = 1_000;
/// Held claims are counted up to this number: a gauge need not be exact, and counting all may be slow.
const HELD_MAX: i64 = 10_000;
/// Deliveries that were lost together are retried one after the other, with this distance, because one of them may be
/// what crashes workers.
const SPACING: Duration = Duration::from_millis(100);
/// The same for deliveries that were lost before. Each is then alone with a worker, unless a call takes longer than
/// this.
const SPACING_REPEATED: Duration = Duration::from_secs(2);
/// The most that the last one waits longer than the first one, however many were lost.
const SPREAD_MAX: Duration = Duration::from_secs(300);
/// The routing key of crash reports.
const ROUTING_KEY: &str = "events.crash";

/// The task that reports crashes.
pub struct Crashes {
    store: Store,
    publisher: Publisher,
    gate: CrashGate,
    config: Arc<Config>,
}

impl Crashes {
    /// Publishes reports through `publisher` when `gate` allows it. The channel's policy in `config` decides what
    /// follows a crash.
    pub fn new(store: Store, publisher: Publisher, gate: CrashGate, config: Arc<Config>) -> Self {
        set_gauges(Some(false), Some(0));
        Self { store, publisher, gate, config }
    }

    fn report(&self, (position, crash): (u32, &Crash)) -> Event {
        let provider = self.config.backends(crash.channel).first().copied().or(crash.provider);
        let event = event(crash, provider, &self.config.retry_policy(crash.channel), clock::now(), jitter());
        spread_out(event, position, crash.tries.crashes)
    }

    async fn publish(&self, events: &[Event]) -> Result<(), TaskError> {
        publish_as(&self.publisher, ROUTING_KEY, events).await?;
        for event in events {
            counter!(metric::WORKERS_LOST, "channel" => event.channel.as_str()).increment(1);
        }
        Ok(())
    }

    /// The ended claims without an outcome. Also shows how many of them wait to be reported, and whether reports are
    /// suspended.
    async fn load_crashes(&self, is_open: bool) -> DbResult<Vec<Crash>> {
        let waits = self.gate.has_waiting() && !is_open;
        let held = if waits { self.store.due().watches_due(RECHECK_MS, HELD_MAX).await? } else { 0 };
        set_gauges(Some(self.gate.is_suspended()), Some(held));
        let (again, grace) =
            (if is_open { REPORT_AGAIN_MS } else { RECHECK_MS }, millis(self.config.timing.doubt_grace));
        self.store.due().crashed(LIMIT, grace, again).await
    }

    /// Without an answer from the database the number of waiting claims is unknown. The claims that waited before still
    /// wait.
    fn set_gauges_unknown(&mut self) {
        let has_waiting = self.gate.has_waiting();
        if has_waiting {
            self.gate.expect_crashes();
        }
        set_gauges(has_waiting.then(|| self.gate.is_suspended()), None);
    }
}

/// `None`: unknown.
fn set_gauges(is_suspended: Option<bool>, held: Option<i64>) {
    let suspended = is_suspended.map_or(f64::NAN, |is_suspended| f64::from(u8::from(is_suspended)));
    gauge!(metric::DOUBT_SUSPENDED).set(suspended);
    gauge!(metric::DOUBT_HELD).set(held.map_or(f64::NAN, gauge_of));
}

impl Task for Crashes {
    const NAME: &'static str = "crashes";
    const PERIOD: Duration = Duration::from_millis(500);
    const WORK: Option<WorkKind> = Some(WorkKind::Watches);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let is_open = self.gate.check().await;
        let held = self.load_crashes(is_open).await.inspect_err(|_| self.set_gauges_unknown())?;
        if held.is_empty() {
            // While claims wait to be reported, the task checks every period, whatever is due.
            return Ok(if self.gate.has_waiting() { Report::Expect(Self::PERIOD) } else { Report::Done });
        }
        self.gate.expect_crashes();
        if !is_open {
            return Ok(Report::Expect(Self::PERIOD));
        }
        let crashes = held.iter().filter(|crash| crash.is_late);
        let events: Vec<Event> = (0..).zip(crashes).map(|numbered| self.report(numbered)).collect();
        self.publish(&events).await?;
        Ok(Report::More)
    }
}

/// Delays a crash by its `position` among the deliveries that were lost together, so that they are not retried at the
/// same time.
fn spread_out(event: Event, position: u32, crashes: u16) -> Event {
    let spacing = if crashes > 1 { SPACING_REPEATED } else { SPACING };
    let wait = i64::from(millis(spacing.saturating_mul(position).min(SPREAD_MAX)));
    Event { delay_ms: event.delay_ms.map(|delay| delay.saturating_add(wait)), ..event }
}

/// The event of a lost claim: an attempt with an unknown outcome, or no attempt if no provider is configured.
fn event(
    crash: &Crash,
    provider: Option<ProviderName>,
    policy: &RetryPolicy,
    now: DateTime<Utc>,
    jitter: f64,
) -> Event {
    let time_left = crash.expires_at.map(|expiry| (expiry - now).to_std().unwrap_or_default());
    let decision = decide_crash(crash.tries, time_left, policy, jitter);
    Event {
        tenant: crash.tenant,
        delivery: crash.delivery,
        run: crash.run,
        channel: crash.channel,
        kind: decision.kind,
        at: now,
        attempt: provider.map(attempt),
        state: decision.state,
        delay_ms: decision.delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        detail: None,
        reason: None,
        dead: decision.dead,
        spent: decision.spent,
        round: FailoverRound::NEW,
        crash: true,
        report: false,
    }
}

fn attempt(provider: ProviderName) -> AttemptRecord {
    AttemptRecord {
        provider,
        outcome: OutcomeClass::Unknown,
        code: Some(WORKER_LOST.to_owned()),
        detail: Some("the worker was lost while it held the delivery; the provider may have been called".to_owned()),
        duration_ms: 0,
        provider_ref: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use domain::{
        Channel, DeadReason, DeliveryId, EventKind, Schedule, State, TenantId, Tries, retry::AmbiguousPolicy,
    };

    fn policy() -> RetryPolicy {
        let schedule = Schedule::Fixed(vec![Duration::from_secs(2)]);
        RetryPolicy { max_attempts: 5, schedule, ambiguous: AmbiguousPolicy::Resend, wait_max: Duration::MAX }
    }

    fn crash(crashes: u16, expires_at: Option<DateTime<Utc>>) -> Crash {
        Crash {
            delivery: DeliveryId::generate(),
            run: 7,
            tenant: TenantId(1),
            channel: Channel::Webhook,
            tries: Tries { attempts: 1, deferrals: 0, crashes },
            provider: None,
            expires_at,
            is_late: true,
        }
    }

    #[test]
    fn what_was_lost_together_goes_on_apart_and_further_apart_the_second_time() {
        let retried = |crashes, position| {
            let event = event(&crash(crashes, None), None, &policy(), clock::now(), 0.0);
            spread_out(event, position, crashes).delay_ms
        };
        assert_eq!([retried(1, 0), retried(1, 1), retried(1, 60)], [Some(2000), Some(2100), Some(8000)]);
        assert_eq!([retried(2, 0), retried(2, 1), retried(2, 60)], [Some(2000), Some(4000), Some(122_000)]);
        assert_eq!(retried(2, 499), Some(302_000), "the last one does not wait for ever");
        assert_eq!(retried(3, 60), None, "a dead letter waits for nothing");
    }

    #[test]
    fn a_lost_worker_is_an_attempt_with_an_unknown_outcome_and_is_tried_again() {
        let event = event(&crash(1, None), Some(ProviderName::Http), &policy(), clock::now(), 0.0);
        assert_eq!((event.kind, event.state, event.delay_ms), (EventKind::Ambiguous, State::Retrying, Some(2000)));
        assert_eq!((event.run, event.crash, event.spent), (7, true, true));
        let attempt = event.attempt.unwrap();
        assert_eq!((attempt.provider, attempt.outcome), (ProviderName::Http, OutcomeClass::Unknown));
    }

    #[test]
    fn a_delivery_that_kills_workers_is_dead() {
        let event = event(&crash(3, None), None, &policy(), clock::now(), 0.0);
        assert_eq!((event.state, event.dead, event.attempt), (State::Dead, Some(DeadReason::ExpiredCrashes), None));
    }

    #[test]
    fn what_is_not_worth_sending_any_more_is_not_sent_again() {
        let now = clock::now();
        for left in [TimeDelta::seconds(1), TimeDelta::seconds(-9)] {
            assert_eq!(event(&crash(1, Some(now + left)), None, &policy(), now, 0.0).state, State::Expired);
        }
    }
}
