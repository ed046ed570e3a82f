//! Reads kept events again: after an upgrade this version may know their words. They go back to the log queue, whose writer
//! treats them like any other. Forgets the notes about outcomes in dead letters.

use std::time::Duration;

use chrono::TimeDelta;
use metrics::{describe_counter, describe_gauge, gauge};
use shared::{
    amqp::{EVENTS_LOG, Outgoing, Publisher},
    clock,
    db::{Store, letters::NewLetter, unread_events::KeptEvent},
    domain::{DeadOrigin, DeadReason},
};
use uuid::Uuid;

use crate::{
    incoming,
    log_writer::tell_dead,
    task::{Report, Task, TaskError, count_of, gauge_of},
};

/// Counts kept events.
const UNREAD: &str = "posthaste_events_unread";
/// Counts notes about outcomes in dead letters.
const LETTERED: &str = "posthaste_outcomes_in_letters";
/// Events, or notes, of one turn.
const LIMIT: i64 = 500;
/// After so long no newer scheduler is expected: the event becomes a dead letter, which can be replayed, and its delivery
/// counts as crashed.
const KEPT_AT_MOST: TimeDelta = TimeDelta::days(3);
/// What is wrong with such an event.
const REASON: DeadReason = DeadReason::Schema;
const TOO_OLD: &str = "an event that no scheduler could read for days: replay it after an upgrade";

/// The task.
pub struct UnreadEvents {
    store: Store,
    publisher: Publisher,
    /// The last row that was looked at.
    after: Uuid,
    /// Rows up to there that stay.
    unread: usize,
}

impl UnreadEvents {
    /// Publishes through `publisher`.
    pub fn new(store: Store, publisher: Publisher) -> Self {
        describe_counter!("posthaste_events_unread_total", "Events kept because this version cannot read them.");
        describe_gauge!(UNREAD, "Kept events that no scheduler can read yet.");
        Self { store, publisher, after: Uuid::nil(), unread: 0 }
    }

    /// Takes the next rows; returns those that are dealt with.
    async fn turn(&self, kept: Vec<KeptEvent>) -> Result<Vec<Uuid>, TaskError> {
        let (mut again, mut too_old) = (Vec::new(), Vec::new());
        for event in kept {
            if incoming::read(&event.body).is_ok_and(|incoming| incoming.unread.is_empty()) {
                again.push(event);
            } else if clock::now() - event.kept_at > KEPT_AT_MOST {
                too_old.push(event);
            }
        }
        let dealt_with = again.iter().chain(&too_old).map(|event| event.id).collect();
        let outgoing = again.into_iter().map(|event| Outgoing::to_queue(EVENTS_LOG, event.id.to_string(), event.body));
        let results = self.publisher.publish_all(outgoing.collect()).await;
        results.into_iter().collect::<Result<(), _>>()?;
        self.give_up(too_old).await?;
        Ok(dealt_with)
    }

    async fn give_up(&self, too_old: Vec<KeptEvent>) -> Result<(), TaskError> {
        if too_old.is_empty() {
            return Ok(());
        }
        for event in &too_old {
            tracing::error!(letter.id = %event.id, detail = TOO_OLD, "an event becomes a dead letter");
        }
        let written = self.store.insert_letters(too_old.into_iter().map(letter).collect()).await?;
        tell_dead(REASON, count_of(written.len()));
        Ok(())
    }
}

fn letter(event: KeptEvent) -> NewLetter {
    NewLetter {
        id: event.id,
        tenant: None,
        channel: None,
        origin: DeadOrigin::Broker,
        reason: REASON,
        detail: TOO_OLD.to_owned(),
        amqp_id: None,
        routing_key: None,
        amqp_user: None,
        body: Some(event.body),
    }
}

impl Task for UnreadEvents {
    const NAME: &'static str = "unread_events";
    const PERIOD: Duration = Duration::from_secs(60);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let kept = self.store.unread_events(self.after, LIMIT).await.inspect_err(|_| gauge!(UNREAD).set(f64::NAN))?;
        let (n, last) = (kept.len(), kept.last().map(|event| event.id));
        let dealt_with = self.turn(kept).await?;
        self.unread += n - dealt_with.len();
        self.store.forget_unread_events(dealt_with).await?;
        if count_of(n) >= LIMIT.unsigned_abs() {
            self.after = last.unwrap_or_default();
            return Ok(Report::More);
        }
        // The last row was seen: the next turn begins with the first again.
        gauge!(UNREAD).set(gauge_of(i64::try_from(self.unread).unwrap_or(i64::MAX)));
        (self.after, self.unread) = (Uuid::nil(), 0);
        Ok(Report::Done)
    }
}

/// The task that forgets notes about outcomes in dead letters once they are over, and counts the others.
pub struct LetteredOutcomes {
    store: Store,
    /// The last note that was looked at.
    after: Uuid,
    /// Notes up to there that stay.
    open: i64,
}

impl LetteredOutcomes {
    /// Begins with the first note.
    pub fn new(store: Store) -> Self {
        describe_gauge!(LETTERED, "Deliveries that stay `sending` because their outcome is in an open dead letter.");
        Self { store, after: Uuid::nil(), open: 0 }
    }
}

impl Task for LetteredOutcomes {
    const NAME: &'static str = "lettered_outcomes";
    const PERIOD: Duration = Duration::from_secs(60);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let page = self.store.forget_lettered_events(self.after, LIMIT).await;
        let (last, stay) = page.inspect_err(|_| gauge!(LETTERED).set(f64::NAN))?;
        self.open += stay;
        if let Some(last) = last {
            self.after = last;
            return Ok(Report::More);
        }
        gauge!(LETTERED).set(gauge_of(self.open));
        (self.after, self.open) = (Uuid::nil(), 0);
        Ok(Report::Done)
    }
}
