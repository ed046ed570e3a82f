//! Retries stored events that an earlier version could not read. After an upgrade they go back to the log queue, whose
//! writer handles them like any other event. Also deletes the notes about outcomes in dead letters.

use std::time::Duration;

use broker::{EVENTS_LOG, Outgoing, Publisher};
use chrono::TimeDelta;
use deliveries::{Deliveries, letters::NewLetter, unread_events::KeptEvent};
use domain::{DeadOrigin, DeadReason, clock};
use metrics::gauge;
use runtime::metric;
use store::Store;
use uuid::Uuid;

use crate::{
    log::{incoming, log_writer::count_dead_letters},
    task::{Report, Task, TaskError, count_of, gauge_of},
};

/// Events, or notes, of one turn.
const LIMIT: i64 = 500;
/// After this time no newer scheduler is expected. The event becomes a dead letter, which can be replayed, and its
/// delivery counts as crashed.
const KEPT_AT_MOST: TimeDelta = TimeDelta::days(3);
/// The dead letter's reason for such an event.
const REASON: DeadReason = DeadReason::Schema;
const TOO_OLD: &str = "an event that no scheduler could read for days: replay it after an upgrade";

/// The task that retries unreadable events.
pub struct UnreadEvents {
    store: Store,
    publisher: Publisher,
    /// The last row that was checked.
    after: Uuid,
    /// How many rows up to `after` stay.
    unread: usize,
}

impl UnreadEvents {
    /// Publishes through `publisher`.
    pub fn new(store: Store, publisher: Publisher) -> Self {
        Self { store, publisher, after: Uuid::nil(), unread: 0 }
    }

    /// Handles the next rows, and returns the ids of those that can be deleted.
    async fn handle(&self, kept: Vec<KeptEvent>) -> Result<Vec<Uuid>, TaskError> {
        let (mut readable, mut too_old) = (Vec::new(), Vec::new());
        for event in kept {
            if incoming::read(&event.body).is_ok_and(|incoming| incoming.unread.is_empty()) {
                readable.push(event);
            } else if clock::now() - event.kept_at > KEPT_AT_MOST {
                too_old.push(event);
            }
        }
        let handled = readable.iter().chain(&too_old).map(|event| event.id).collect();
        let outgoing =
            readable.into_iter().map(|event| Outgoing::to_queue(EVENTS_LOG, event.id.to_string(), event.body));
        let results = self.publisher.publish_all(outgoing.collect()).await;
        results.into_iter().collect::<Result<(), _>>()?;
        self.dead_letter(too_old).await?;
        Ok(handled)
    }

    async fn dead_letter(&self, too_old: Vec<KeptEvent>) -> Result<(), TaskError> {
        if too_old.is_empty() {
            return Ok(());
        }
        for event in &too_old {
            tracing::error!(letter.id = %event.id, detail = TOO_OLD, "an event becomes a dead letter");
        }
        let written = self.store.dead_letters().insert(too_old.into_iter().map(letter).collect()).await?;
        count_dead_letters(REASON, count_of(written.len()));
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
        let kept = self
            .store
            .unread_events()
            .list(self.after, LIMIT)
            .await
            .inspect_err(|_| gauge!(metric::EVENTS_UNREAD).set(f64::NAN))?;
        let (n, last) = (kept.len(), kept.last().map(|event| event.id));
        let handled = self.handle(kept).await?;
        self.unread += n - handled.len();
        self.store.unread_events().prune(handled).await?;
        if count_of(n) >= LIMIT.unsigned_abs() {
            self.after = last.unwrap_or_default();
            return Ok(Report::More);
        }
        // All rows were checked: the next turn starts with the first one again.
        gauge!(metric::EVENTS_UNREAD).set(gauge_of(i64::try_from(self.unread).unwrap_or(i64::MAX)));
        (self.after, self.unread) = (Uuid::nil(), 0);
        Ok(Report::Done)
    }
}

/// The task that deletes notes about outcomes in closed dead letters, and counts the others.
pub struct LetteredOutcomes {
    store: Store,
    /// The last note that was checked.
    after: Uuid,
    /// How many notes up to `after` stay.
    open: i64,
}

impl LetteredOutcomes {
    /// Starts with the first note.
    pub fn new(store: Store) -> Self {
        Self { store, after: Uuid::nil(), open: 0 }
    }
}

impl Task for LetteredOutcomes {
    const NAME: &'static str = "lettered_outcomes";
    const PERIOD: Duration = Duration::from_secs(60);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let page = self.store.unread_events().forget_lettered_events(self.after, LIMIT).await;
        let (last, stay) = page.inspect_err(|_| gauge!(metric::OUTCOMES_IN_LETTERS).set(f64::NAN))?;
        self.open += stay;
        if let Some(last) = last {
            self.after = last;
            return Ok(Report::More);
        }
        gauge!(metric::OUTCOMES_IN_LETTERS).set(gauge_of(self.open));
        (self.after, self.open) = (Uuid::nil(), 0);
        Ok(Report::Done)
    }
}
