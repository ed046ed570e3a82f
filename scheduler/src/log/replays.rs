//! Replays and drops dead letters in passes, at the requested rate.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use broker::{EVENTS_LOG, Headers, Outgoing, PublishError, Publisher, USER_ID, topology};
use deliveries::{
    Deliveries,
    letters::{IntakeLetter, Pass, Replay, RunningReplay},
    poll::WorkKind,
};
use domain::replay::{self, Replayed};
use engine::dispatch::Dispatcher;
use metrics::counter;
use runtime::metric;
use store::Store;
use uuid::Uuid;

use crate::{
    failure_streak::chain,
    log::incoming,
    task::{Report, Task, TaskError},
};

/// Replays that run in parallel.
const REPLAYS_MAX: i64 = 16;
/// Letters of one pass: one statement of some tens of milliseconds.
const PASS_MAX: i64 = 1000;

/// The task that runs replays.
pub struct Replays {
    store: Store,
    publisher: Publisher,
    dispatcher: Dispatcher,
    relay_after_ms: i32,
    progress: HashMap<Uuid, Progress>,
    /// Signs replayed messages for the intake. Loaded on first use.
    key: Option<replay::Key>,
}

/// This process's progress in a replay. Losing it only costs time.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Letters up to this one were checked.
    after: Option<Uuid>,
    /// When its last pass began.
    passed: Instant,
}

/// The result of one replay in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The rate, or another scheduler, allows no more for now.
    Wait,
    /// More letters may follow.
    More,
}

impl Replays {
    /// Publishes deliveries through `dispatcher`, and refused submissions through `publisher`.
    pub fn new(store: Store, publisher: Publisher, dispatcher: Dispatcher, relay_after_ms: i32) -> Self {
        Self { store, publisher, dispatcher, relay_after_ms, progress: HashMap::new(), key: None }
    }

    async fn advance(&mut self, running: &RunningReplay) -> Result<Step, TaskError> {
        let replay = &running.replay;
        let now = Instant::now();
        let known = self.progress.get(&replay.id).copied();
        let since = known.map_or(Duration::ZERO, |progress| now.duration_since(progress.passed));
        let limit = allowance(replay.rate, running.seconds, replay.replayed, since);
        let after = known.and_then(|progress| progress.after);
        if limit <= 0 {
            self.progress.entry(replay.id).or_insert(Progress { after, passed: now });
            return Ok(Step::Wait);
        }
        // If this pass fails, the next one starts from the first letter.
        self.progress.insert(replay.id, Progress { after: None, passed: now });
        let pass = self.store.replays().run_pass(replay, limit, after, self.relay_after_ms).await?;
        let (seen, last) = (pass.seen, pass.last);
        self.publish_pass(replay, pass).await?;
        self.progress.insert(replay.id, Progress { after: last, passed: now });
        // A pass that found no letter after its start makes one more pass from the first letter before the replay ends.
        Ok(if replay.rate.is_none() && (seen > 0 || after.is_some()) { Step::More } else { Step::Wait })
    }

    async fn publish_pass(&mut self, replay: &Replay, pass: Pass) -> Result<(), TaskError> {
        counter!(metric::LETTERS_MOVED, "action" => replay.action.clone())
            .increment(u64::try_from(pass.moved).unwrap_or(0));
        pass.dispatches.into_iter().for_each(|dispatch| self.dispatcher.post(dispatch));
        if pass.intake.is_empty() && pass.unreadable.is_empty() {
            return Ok(());
        }
        self.republish(replay, pass.intake, pass.unreadable).await
    }

    /// Publishes refused submissions as a producer does, with a signature that proves their source, and events straight
    /// to the log queue. A letter is marked as moved only after the broker confirmed its message.
    async fn republish(
        &mut self,
        replay: &Replay,
        letters: Vec<IntakeLetter>,
        mut unpublishable: Vec<Uuid>,
    ) -> Result<(), TaskError> {
        let key = match &self.key {
            Some(key) => key,
            None => self.key.insert(self.store.provider_events().replay_key().await?),
        };
        let (mut ids, mut messages) = (Vec::new(), Vec::new());
        for letter in letters {
            let id = letter.id;
            match outgoing(key, letter) {
                Some(message) => {
                    ids.push(id);
                    messages.push(message);
                }
                None => unpublishable.push(id),
            }
        }
        let results = self.publisher.publish_all(messages).await;
        let (mut done, mut failure) = (Vec::new(), None);
        for (id, result) in ids.into_iter().zip(results) {
            match result {
                Ok(()) => done.push(id),
                Err(PublishError::Invalid(_)) => unpublishable.push(id),
                Err(error) => failure = Some(error),
            }
        }
        self.store.replays().mark_republished(replay.id, done, unpublishable).await?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Task for Replays {
    const NAME: &'static str = "replays";
    const PERIOD: Duration = Duration::from_millis(250);
    const WORK: Option<WorkKind> = Some(WorkKind::Replays);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let running = self.store.replays().running(REPLAYS_MAX).await?;
        self.progress.retain(|id, _| running.iter().any(|running| running.replay.id == *id));
        let (mut more, mut failed) = (false, 0);
        for running in &running {
            match self.advance(running).await {
                Ok(step) => more |= step == Step::More,
                Err(error) => {
                    // A replay that fails must not hold up the others.
                    tracing::warn!(replay = %running.replay.id, error = chain(&error), "a replay could not go on");
                    failed += 1;
                }
            }
        }
        match failed {
            0 => Ok(if more { Report::More } else { Report::Done }),
            _ => Err(TaskError::Replays(failed)),
        }
    }
}

/// How many letters a pass may move: in total no more than the rate allows since the replay began, and, if the replay
/// is behind, no more than the rate allows for the time since the last pass.
fn allowance(rate: Option<i32>, seconds: f64, moved: i32, since: Duration) -> i64 {
    let Some(rate) = rate else { return PASS_MAX };
    let in_all = whole(seconds * f64::from(rate)).saturating_add(1) - i64::from(moved);
    let now = whole((since.as_secs_f64().min(1.0) * f64::from(rate)).ceil()).max(1);
    in_all.min(now).min(PASS_MAX)
}

/// The whole part of a number. The standard library offers this conversion only for seconds.
fn whole(number: f64) -> i64 {
    Duration::try_from_secs_f64(number).map_or(i64::MAX, |seconds| i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX))
}

/// A submission goes to the intake, a batch of events to the log writer. Nothing else can be republished.
pub fn outgoing(key: &replay::Key, letter: IntakeLetter) -> Option<Outgoing> {
    let id = letter.id.to_string();
    let Some(routing_key) = letter.routing_key else {
        return incoming::is_batch(&letter.body).then(|| Outgoing::to_queue(EVENTS_LOG, id, letter.body));
    };
    // The same id is the same idempotency key, so a repeat is harmless. A message without an id gets the letter's.
    let message_id = letter.amqp_id.unwrap_or_else(|| id.clone());
    let replayed = Replayed {
        letter: &id,
        routing_key: &routing_key,
        message_id: &message_id,
        user: letter.amqp_user.as_deref(),
        body: &letter.body,
    };
    let proof = key.proof(&replayed);
    let mut headers: Headers = vec![(replay::LETTER.into(), id), (replay::PROOF.into(), proof)];
    headers.extend(letter.amqp_user.map(|user| (USER_ID.into(), user)));
    Some(Outgoing { exchange: topology::INGRESS, headers, ..Outgoing::to_queue(routing_key, message_id, letter.body) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: f64, moved: i32, since_ms: u64) -> i64 {
        allowance(Some(10), seconds, moved, Duration::from_millis(since_ms))
    }

    #[test]
    fn a_rate_is_kept_from_the_first_letter_on() {
        assert_eq!(after(0.0, 0, 0), 1);
        assert_eq!(after(0.25, 1, 250), 2);
        assert_eq!(after(0.25, 3, 250), 0);
        assert_eq!(after(60.0, 601, 250), 0);
    }

    #[test]
    fn what_fell_behind_catches_up_at_the_rate() {
        assert_eq!(after(3600.0, 0, 500), 5);
        assert_eq!(after(3600.0, 0, 60_000), 10);
    }

    #[test]
    fn without_a_rate_a_pass_is_as_large_as_it_goes() {
        assert_eq!(allowance(None, 0.0, 1_000_000, Duration::ZERO), PASS_MAX);
        assert_eq!(allowance(Some(i32::MAX), 1e9, 0, Duration::from_secs(1)), PASS_MAX);
    }

    #[test]
    fn a_replayed_submission_keeps_its_id_and_its_key() {
        let letter = IntakeLetter {
            id: Uuid::now_v7(),
            amqp_id: None,
            routing_key: Some("acme.sms.high".to_owned()),
            amqp_user: Some("orders".to_owned()),
            body: b"{}".to_vec(),
        };
        let key = replay::Key::new(&[1; 32]);
        let unnamed = outgoing(&key, letter.clone()).unwrap();
        assert_eq!(
            (unnamed.exchange, &*unnamed.routing_key, unnamed.message_id),
            (topology::INGRESS, "acme.sms.high", letter.id.to_string())
        );
        let named = outgoing(&key, IntakeLetter { amqp_id: Some("order-7".to_owned()), ..letter }).unwrap();
        assert_eq!(named.message_id, "order-7");
        assert!(named.headers.contains(&(USER_ID.into(), "orders".to_owned())));
    }

    #[test]
    fn a_batch_of_events_goes_back_to_the_log_writer_and_what_is_neither_stays() {
        let again = |body: &[u8]| {
            let (id, body) = (Uuid::now_v7(), body.to_vec());
            let letter = IntakeLetter { id, amqp_id: None, routing_key: None, amqp_user: None, body };
            outgoing(&replay::Key::new(&[1; 32]), letter)
        };
        let event = again(br#"{"v":1,"events":[{}]}"#).unwrap();
        assert_eq!((event.exchange, &*event.routing_key, event.headers.len()), ("", EVENTS_LOG, 0));
        assert_eq!(again(br#"{"v":1,"d":"x","r":1}"#), None);
    }
}
