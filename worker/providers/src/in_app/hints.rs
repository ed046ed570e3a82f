//! Publishes hints about new inbox rows, so that open sockets reload. Hints may be lost: a socket also reloads periodically.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use broker::{Outgoing, Publisher, topology};
use domain::contract::wire::{HINTS_MAX, InboxHint, InboxHints};
use runtime::reconnect::Reconnect;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Hints kept while the broker is away. More are replaced by one hint for all sockets.
const WAITING_MAX: usize = 10_000;

/// The queue of hints for open sockets. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hints(Arc<HintQueue>);

#[derive(Default)]
struct HintQueue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    people: HashSet<InboxHint>,
    all_people: bool,
}

impl Hints {
    /// Publishes queued hints until `give_up`.
    pub async fn publish_until(self, publisher: Publisher, give_up: CancellationToken) {
        give_up.run_until_cancelled(publish_loop(&self.0, &publisher)).await;
    }

    /// Queues hints for these inboxes, whose rows are committed.
    pub fn push(&self, people: impl IntoIterator<Item = InboxHint>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.add(people);
        drop(waiting);
        self.0.wake.notify_one();
    }
}

impl Waiting {
    fn add(&mut self, people: impl IntoIterator<Item = InboxHint>) {
        if !self.all_people {
            self.people.extend(people);
        }
        if self.people.len() > WAITING_MAX {
            (self.people, self.all_people) = (HashSet::new(), true);
        }
    }

    /// The next messages.
    fn take(&mut self) -> Vec<InboxHints> {
        let people: Vec<InboxHint> = mem::take(&mut self.people).into_iter().collect();
        let mut hints: Vec<_> = people.chunks(HINTS_MAX).map(|part| InboxHints::new(part.to_vec())).collect();
        if mem::take(&mut self.all_people) {
            hints.push(InboxHints::new(Vec::new()));
        }
        hints
    }

    /// Takes back hints that were not published.
    fn put_back(&mut self, hints: InboxHints) {
        if hints.p.is_empty() {
            (self.people, self.all_people) = (HashSet::new(), true);
        }
        self.add(hints.p);
    }
}

/// Publishes one batch at a time. Hints that arrive meanwhile form the next batch, each person once.
async fn publish_loop(queue: &HintQueue, publisher: &Publisher) {
    let mut reconnect = Reconnect::new();
    loop {
        let batch = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if batch.is_empty() {
            queue.wake.notified().await;
        } else if publish_batch(publisher, queue, batch).await {
            reconnect.reset();
        } else {
            reconnect.pause().await;
        }
    }
}

async fn publish_batch(publisher: &Publisher, queue: &HintQueue, batch: Vec<InboxHints>) -> bool {
    let message = |hints| Outgoing::hint(topology::LIVE, topology::LIVE_INBOX, Uuid::now_v7().to_string(), hints);
    let messages: Result<Vec<_>, _> = batch.iter().map(message).collect();
    let Ok(messages) = messages else { return true };
    let results = publisher.publish_all(messages).await;
    let mut all = true;
    for (hints, result) in batch.into_iter().zip(results) {
        if let Err(error) = result {
            tracing::debug!(%error, "hints for open sockets are sent later");
            queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).put_back(hints);
            all = false;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_named_once_and_too_many_people_are_everybody() {
        let mut waiting = Waiting::default();
        waiting.add([1, 2, 1, 2].map(InboxHint));
        let batch = waiting.take();
        assert_eq!((batch.len(), batch[0].p.len()), (1, 2));
        assert!(waiting.take().is_empty());

        waiting.add((0..=u64::try_from(WAITING_MAX).unwrap()).map(InboxHint));
        waiting.add([InboxHint(1)]);
        assert_eq!(waiting.take(), [InboxHints::new(Vec::new())]);
        waiting.put_back(InboxHints::new(Vec::new()));
        assert_eq!(waiting.take(), [InboxHints::new(Vec::new())], "hints that could not be sent are sent later");
    }
}
