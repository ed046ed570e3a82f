//! Notices claims whose worker died, and reports them like any other outcome.
//!
//! A lease that ended is the end of a claim, and no more than a reason to look. A crash is reported once the outcome has had the time to
//! come in all the same (see [`crate::quiet`]). The report goes through the log queue and not straight into the database, so that an
//! outcome which already waits there is applied first; and it only stands while the delivery still says `sending`.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use shared::{
    amqp::Publisher,
    clock,
    config::Config,
    contract::{AttemptRecord, Event},
    db::{DbResult, Store, due::Crash, events::WORKER_LOST, poll::WorkKind},
    domain::{Channel, FailoverRound, OutcomeClass, ProviderName, RetryPolicy, retry::decide_crash},
    telemetry::at_zero,
};

use crate::{
    inbound_webhooks::publish_as,
    quiet::Quiet,
    task::{Report, Task, TaskError, gauge_of, jitter, millis},
};

/// Watches looked at in one turn.
const LIMIT: i64 = 500;
/// A crash that was reported is reported again unless it is written down by then.
const AGAIN_MS: i32 = 30_000;
/// A crash that cannot be reported yet is looked at again after this long.
const SOON_MS: i32 = 1_000;
/// Held claims are counted so far: a gauge need not be exact, and a count of all may be slow.
const HELD_MAX: i64 = 10_000;
/// Deliveries that were lost together go on one after the other, this far apart: one of them may be what kills workers.
const APART: Duration = Duration::from_millis(100);
/// The same for those that were lost before. Each is then alone with a worker, unless a call takes longer than this.
const FAR_APART: Duration = Duration::from_secs(2);
/// However many were lost, the last one waits this much longer than the first one at most.
const SPREAD_MAX: Duration = Duration::from_secs(300);
/// Where crash reports stand among the events.
const ROUTING_KEY: &str = "events.crash";

/// The task.
pub struct Crashes {
    store: Store,
    publisher: Publisher,
    quiet: Quiet,
    config: Arc<Config>,
}

impl Crashes {
    /// Reports through `publisher` when `quiet` allows it; what follows a crash is the channel's policy in `config`.
    pub fn new(store: Store, publisher: Publisher, quiet: Quiet, config: Arc<Config>) -> Self {
        describe_counter!("posthaste_workers_lost_total", "Claims whose worker was taken for lost, and reported so.");
        describe_gauge!(
            "posthaste_doubt_suspended",
            "1 while no claim without an outcome is doubted, since outcomes cannot come in or the log is behind."
        );
        describe_gauge!(
            "posthaste_doubt_held",
            "Claims past lease and grace that wait until all has been well for as long as the grace, counted up to 10,000."
        );
        at_zero("posthaste_workers_lost_total", "channel", Channel::ALL.iter().map(|channel| channel.as_str()));
        show_doubt(Some(false), Some(0));
        Self { store, publisher, quiet, config }
    }

    fn report(&self, (place, crash): (u32, &Crash)) -> Event {
        let provider = self.config.backends(crash.channel).first().copied().or(crash.provider);
        let event = event(crash, provider, &self.config.retry_policy(crash.channel), clock::now(), jitter());
        apart(event, place, crash.tries.crashes)
    }

    async fn publish(&self, events: &[Event]) -> Result<(), TaskError> {
        publish_as(&self.publisher, ROUTING_KEY, events).await?;
        for event in events {
            counter!("posthaste_workers_lost_total", "channel" => event.channel.as_str()).increment(1);
        }
        Ok(())
    }

    /// The claims that are over without an outcome. Shows how many wait to be doubted, and whether that is for longer than usual.
    async fn look_up(&self, is_quiet: bool) -> DbResult<Vec<Crash>> {
        let waits = self.quiet.is_asked() && !is_quiet;
        let held = if waits { self.store.watches_due(SOON_MS, HELD_MAX).await? } else { 0 };
        show_doubt(Some(self.quiet.is_suspended()), Some(held));
        let (again, grace) = (if is_quiet { AGAIN_MS } else { SOON_MS }, millis(self.config.timing.doubt_grace));
        self.store.crashed(LIMIT, grace, again).await
    }

    /// Without an answer of the database it is unknown how many claims wait. Those that waited before still do.
    fn lose_sight(&mut self) {
        let is_asked = self.quiet.is_asked();
        if is_asked {
            self.quiet.ask();
        }
        show_doubt(is_asked.then(|| self.quiet.is_suspended()), None);
    }
}

/// `None`: it is unknown.
fn show_doubt(is_suspended: Option<bool>, held: Option<i64>) {
    let suspended = is_suspended.map_or(f64::NAN, |is_suspended| f64::from(u8::from(is_suspended)));
    gauge!("posthaste_doubt_suspended").set(suspended);
    gauge!("posthaste_doubt_held").set(held.map_or(f64::NAN, gauge_of));
}

impl Task for Crashes {
    const NAME: &'static str = "crashes";
    const PERIOD: Duration = Duration::from_millis(500);
    const WORK: Option<WorkKind> = Some(WorkKind::Watches);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let is_quiet = self.quiet.look().await;
        let held = self.look_up(is_quiet).await.inspect_err(|_| self.lose_sight())?;
        if held.is_empty() {
            // As long as claims wait to be doubted it is looked every period, whatever is due.
            return Ok(if self.quiet.is_asked() { Report::Expect(Self::PERIOD) } else { Report::Done });
        }
        self.quiet.ask();
        if !is_quiet {
            return Ok(Report::Expect(Self::PERIOD));
        }
        let crashes = held.iter().filter(|crash| crash.is_late);
        let events: Vec<Event> = (0..).zip(crashes).map(|numbered| self.report(numbered)).collect();
        self.publish(&events).await?;
        Ok(Report::More)
    }
}

/// Puts off what comes at `place` among deliveries that were lost together, so that it meets none of the others.
fn apart(event: Event, place: u32, crashes: u16) -> Event {
    let distance = if crashes > 1 { FAR_APART } else { APART };
    let wait = i64::from(millis(distance.saturating_mul(place).min(SPREAD_MAX)));
    Event { delay_ms: event.delay_ms.map(|delay| delay.saturating_add(wait)), ..event }
}

/// What the log says about a claim that was lost: an attempt with an unknown outcome, unless no provider is set up.
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
    use shared::domain::{DeadReason, DeliveryId, EventKind, Schedule, State, TenantId, Tries, retry::AmbiguousPolicy};

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
        let retried = |crashes, place| {
            let event = event(&crash(crashes, None), None, &policy(), clock::now(), 0.0);
            apart(event, place, crashes).delay_ms
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
