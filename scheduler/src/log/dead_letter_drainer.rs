//! Moves messages from the dead letter queue into the table of dead letters, where operators see them.
//!
//! The queue has three sources: Posthaste (a refused body, with the reason in a header), the broker (a message that was
//! returned too often), and the ingress exchange (a routing key without a queue).

use std::{collections::HashSet, time::Duration};

use broker::{Acker, Consumer, Delivery, EVENTS_LOG, INTAKE_HIGH, INTAKE_STD, Outgoing, Publisher, Tag};
use deliveries::{
    Deliveries,
    letters::{IntakeLetter, NewLetter},
};
use domain::{DeadOrigin, DeadReason, Publishers, RequireMapping, replay};
use metrics::counter;
use records::Records;
use runtime::{metric, telemetry::at_zero};
use store::{DbResult, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    failure_streak::{FailureStreak, chain},
    log::{
        dead_letter_message::{DeadLetterMessage, Kind, ROUNDS},
        log_writer::count_dead_letters,
        replays::outgoing,
    },
};

/// Unacknowledged messages. Few, because a body may have many megabytes.
pub const PREFETCH: u16 = 16;
/// How long a single letter waits for others.
const LINGER: Duration = Duration::from_millis(5);

/// The queues whose messages are published again.
const RETURNED_FROM: [&str; 3] = [EVENTS_LOG, INTAKE_HIGH, INTAKE_STD];

/// The dependencies of the loop.
pub struct Deps {
    /// Stores the letters.
    pub store: Store,
    /// Publishes the messages that go back to their queue.
    pub publisher: Publisher,
    /// Which broker users may publish for a tenant.
    pub require_mapping: RequireMapping,
}

/// The loop that drains the queue.
pub struct DeadLetterDrainer {
    deps: Deps,
    consumer: Consumer,
    acker: Acker,
    failures: FailureStreak,
    stop: CancellationToken,
    /// Signs republished messages for the intake. Loaded on first use.
    key: Option<replay::Key>,
}

/// The process stops. Unacknowledged messages go back to the broker.
struct Stopped;

impl DeadLetterDrainer {
    /// Reads from `consumer`.
    pub fn new(deps: Deps, consumer: Consumer, failures: FailureStreak, stop: CancellationToken) -> Self {
        at_zero(metric::RETURNED_AGAIN, "queue", RETURNED_FROM);
        let acker = consumer.acker();
        Self { deps, consumer, acker, failures, stop, key: None }
    }

    /// Drains until stopped.
    pub async fn run(mut self) {
        while let Some(deliveries) = self.consumer.next_batch(PREFETCH.into(), LINGER).await {
            if self.handle(deliveries).await.is_err() {
                break;
            }
        }
        self.consumer.cancel().await;
    }

    async fn handle(&mut self, deliveries: Vec<Delivery>) -> Result<(), Stopped> {
        let (mut tags, mut letters) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            let tag = delivery.tag;
            let dead_letter = DeadLetterMessage::from(delivery);
            let queue = dead_letter.queue().to_owned();
            let letter = match dead_letter.kind() {
                Kind::Letter(letter) => letter,
                Kind::WorkHint => {
                    tracing::warn!(queue, "a work message was returned too often: the audit finds its delivery");
                    counter!(metric::HINTS_GIVEN_UP).increment(1);
                    self.acker.done(tag);
                    continue;
                }
                Kind::Republish(letter, round) => match self.republished(&letter, round).await? {
                    Some(message) => {
                        tracing::warn!(queue, round, "a message was returned too often and is published again");
                        counter!(metric::RETURNED_AGAIN, "queue" => label_of(&queue)).increment(1);
                        self.publish(tag, message).await?;
                        continue;
                    }
                    None => letter,
                },
            };
            tags.push(tag);
            letters.push(letter);
        }
        self.write_letters(&tags, &letters).await
    }

    /// The message to republish. `None`: it is neither a submission nor a batch of events.
    async fn republished(&mut self, letter: &NewLetter, round: u32) -> Result<Option<Outgoing>, Stopped> {
        let NewLetter { id, amqp_id, routing_key, amqp_user, body, .. } = letter.clone();
        let letter = IntakeLetter { id, amqp_id, routing_key, amqp_user, body: body.unwrap_or_default() };
        let message = outgoing(&self.key().await?, letter);
        Ok(message.map(|mut message| {
            message.headers.push((ROUNDS.into(), round.to_string()));
            message
        }))
    }

    async fn key(&mut self) -> Result<replay::Key, Stopped> {
        loop {
            if let Some(key) = &self.key {
                return Ok(key.clone());
            }
            match self.deps.store.provider_events().replay_key().await {
                Ok(key) => self.key = Some(key),
                Err(error) => self.pause(&error).await?,
            }
        }
    }

    async fn publish(&mut self, tag: Tag, message: Outgoing) -> Result<(), Stopped> {
        while let Err(error) = self.deps.publisher.publish_one(message.clone()).await {
            self.pause(&error).await?;
        }
        self.acker.done(tag);
        Ok(())
    }

    /// Writes letters, and waits while the database cannot work. If the database refuses a value, each letter is tried
    /// alone, and the refused one stays safe in its queue.
    async fn write_letters(&mut self, tags: &[Tag], letters: &[NewLetter]) -> Result<(), Stopped> {
        if self.insert(tags, letters).await?.is_ok() {
            self.failures.record_success();
            return Ok(());
        }
        let mut refused = None;
        for (tag, letter) in tags.chunks(1).zip(letters.chunks(1)) {
            if let Err(error) = self.insert(tag, letter).await? {
                tag.iter().for_each(|tag| self.acker.requeue(*tag));
                refused = Some(error);
            }
        }
        let Some(error) = refused else { return Ok(()) };
        tracing::error!(error = chain(&error), "a dead letter cannot be written down and stays in its queue");
        self.pause(&error).await
    }

    /// Returns `Ok(Err(_))` if the database refused a value.
    async fn insert(&mut self, tags: &[Tag], letters: &[NewLetter]) -> Result<DbResult<()>, Stopped> {
        loop {
            match insert(&self.deps, letters).await {
                Ok(()) => {
                    self.acker.done_all(tags.to_vec());
                    return Ok(Ok(()));
                }
                Err(error) if error.is_unavailable() => self.pause(&error).await?,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    async fn pause(&mut self, error: &(dyn std::error::Error + Sync)) -> Result<(), Stopped> {
        if self.failures.wait_out(error, &self.stop).await { Ok(()) } else { Err(Stopped) }
    }
}

/// The queue's name as a metric label. Names come from headers, so unknown ones share a label to bound the number of
/// series.
fn label_of(queue: &str) -> &'static str {
    RETURNED_FROM.into_iter().find(|known| *known == queue).unwrap_or("other")
}

/// Idempotent.
async fn insert(deps: &Deps, letters: &[NewLetter]) -> DbResult<()> {
    if letters.is_empty() {
        return Ok(());
    }
    let mut letters = letters.to_vec();
    remove_unproven_tenants(&deps.store, &mut letters, deps.require_mapping).await?;
    let written: HashSet<Uuid> = deps.store.dead_letters().insert(letters.clone()).await?.into_iter().collect();
    letters
        .iter()
        .filter(|letter| written.contains(&letter.id))
        .for_each(|letter| count_dead_letters(letter.reason, 1));
    Ok(())
}

/// Removes the tenant from letters of submissions that the intake never checked, if their publisher may not publish for
/// that tenant. The publishes of other users must not appear among a tenant's letters or in its webhooks.
async fn remove_unproven_tenants(
    store: &Store,
    letters: &mut [NewLetter],
    require_mapping: RequireMapping,
) -> DbResult<()> {
    let unseen = |letter: &&mut NewLetter| {
        letter.amqp_user.is_some() && (letter.reason == DeadReason::Unroutable || letter.origin == DeadOrigin::Broker)
    };
    let mut unseen = letters.iter_mut().filter(unseen).peekable();
    if unseen.peek().is_none() {
        return Ok(());
    }
    let publishers = Publishers::new(store.tenants().amqp_users().await?, require_mapping);
    for letter in unseen {
        let Some(slug) = &letter.tenant else { continue };
        let tenant = store.tenants().id(slug).await?;
        let user = letter.amqp_user.as_deref().filter(|user| !user.is_empty());
        letter.tenant.take_if(|_| tenant.is_none_or(|tenant| publishers.check(tenant, user).is_err()));
    }
    Ok(())
}
