//! Notices claims whose worker died, and reports them like any other outcome.
//!
//! The report goes through the log queue and not straight into the database, so that an outcome which already waits
//! there is applied first; and it only stands while the delivery still says `sending`.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use metrics::counter;
use shared::{
    amqp::{Outgoing, Publisher, topology},
    clock,
    config::Config,
    contract::{AttemptRecord, Event, EventBatch, wire::EVENTS_MAX},
    db::{Store, due::Crash, events::WORKER_LOST},
    domain::{OutcomeClass, ProviderName, RetryPolicy, Round, retry::decide_crash},
};
use uuid::Uuid;

use crate::task::{Report, Task, TaskError, jitter};

/// Watches looked at in one turn.
const LIMIT: i64 = 500;
/// A crash that was reported is reported again unless it is written down by then.
const AGAIN_MS: i32 = 30_000;
/// Where crash reports stand among the events.
const ROUTING_KEY: &str = "events.crash";

/// The task.
pub struct Crashes {
    store: Store,
    publisher: Publisher,
    config: Arc<Config>,
}

impl Crashes {
    /// Reports through `publisher`; what follows a crash is the channel's policy in `config`.
    pub const fn new(store: Store, publisher: Publisher, config: Arc<Config>) -> Self {
        Self { store, publisher, config }
    }

    fn report(&self, crash: &Crash) -> Event {
        counter!("posthaste_workers_lost_total", "channel" => crash.channel.as_str()).increment(1);
        let provider = self.config.backends(crash.channel).first().copied().or(crash.provider);
        event(crash, provider, &self.config.retry_policy(crash.channel), clock::now(), jitter())
    }

    async fn publish(&self, events: &[Event]) -> Result<(), TaskError> {
        let batches = events.chunks(EVENTS_MAX).map(|part| EventBatch::new(part.to_vec()));
        let outgoing = batches.map(|batch| Outgoing::json(topology::EVENTS, ROUTING_KEY, Uuid::now_v7(), &batch));
        let results = self.publisher.publish_all(outgoing.collect::<Result<_, _>>()?).await;
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }
}

impl Task for Crashes {
    const NAME: &'static str = "crashes";
    const PERIOD: Duration = Duration::from_millis(500);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let crashes = self.store.crashed(LIMIT, AGAIN_MS).await?;
        if crashes.is_empty() {
            return Ok(Report::Done);
        }
        let events: Vec<Event> = crashes.iter().map(|crash| self.report(crash)).collect();
        self.publish(&events).await?;
        Ok(Report::More)
    }
}

/// What the log says about a claim that was lost: an attempt whose outcome nobody knows, unless nobody could have made one.
fn event(
    crash: &Crash,
    provider: Option<ProviderName>,
    policy: &RetryPolicy,
    now: DateTime<Utc>,
    jitter: f64,
) -> Event {
    let time_left = crash.expires_at.map(|expiry| (expiry - now).to_std().unwrap_or_default());
    let verdict = decide_crash(crash.tries, time_left, policy, jitter);
    Event {
        tenant: crash.tenant,
        delivery: crash.delivery,
        run: crash.run,
        channel: crash.channel,
        kind: verdict.kind,
        at: now,
        attempt: provider.map(attempt),
        state: verdict.state,
        delay_ms: verdict.delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        detail: None,
        reason: None,
        dead: verdict.dead,
        spent: verdict.spent,
        round: Round::NEW,
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
    use shared::domain::{
        Channel, DeadReason, DeliveryId, EventKind, Schedule, State, TenantId, Tries, retry::AmbiguousPolicy,
    };

    fn policy() -> RetryPolicy {
        let schedule = Schedule::Fixed(vec![Duration::from_secs(2)]);
        RetryPolicy { max_attempts: 5, schedule, ambiguous: AmbiguousPolicy::Resend }
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
        }
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
