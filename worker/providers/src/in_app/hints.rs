//! Says into whose inboxes something came, so that open sockets look. Only hints: nothing waits for them and nothing fails
//! with them, since a socket also looks by itself after a while.

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

/// Hints for inboxes that wait while the broker is away; with more of them one hint for all sockets is sent.
const WAITING_MAX: usize = 10_000;

/// Takes down whom to tell. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hints(Arc<Board>);

#[derive(Default)]
struct Board {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

#[derive(Default)]
struct Waiting {
    people: HashSet<InboxHint>,
    everybody: bool,
}

impl Hints {
    /// Tells through `publisher` what is taken down, until `give_up`.
    pub async fn tell(self, publisher: Publisher, give_up: CancellationToken) {
        give_up.run_until_cancelled(tell(&self.0, &publisher)).await;
    }

    /// Something came into these inboxes, and is committed.
    pub fn give(&self, people: impl IntoIterator<Item = InboxHint>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.add(people);
        drop(waiting);
        self.0.bell.notify_one();
    }
}

impl Waiting {
    fn add(&mut self, people: impl IntoIterator<Item = InboxHint>) {
        if !self.everybody {
            self.people.extend(people);
        }
        if self.people.len() > WAITING_MAX {
            (self.people, self.everybody) = (HashSet::new(), true);
        }
    }

    /// What the next messages say.
    fn take(&mut self) -> Vec<InboxHints> {
        let people: Vec<InboxHint> = mem::take(&mut self.people).into_iter().collect();
        let mut hints: Vec<_> = people.chunks(HINTS_MAX).map(|part| InboxHints::new(part.to_vec())).collect();
        if mem::take(&mut self.everybody) {
            hints.push(InboxHints::new(Vec::new()));
        }
        hints
    }

    /// These hints could not be sent.
    fn put_back(&mut self, hints: InboxHints) {
        if hints.p.is_empty() {
            (self.people, self.everybody) = (HashSet::new(), true);
        }
        self.add(hints.p);
    }
}

/// One flight at a time: what comes meanwhile shares the next one, and a person is named once in it.
async fn tell(board: &Board, publisher: &Publisher) {
    let mut reconnect = Reconnect::new();
    loop {
        let told = board.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if told.is_empty() {
            board.bell.notified().await;
        } else if publish(publisher, board, told).await {
            reconnect.reset();
        } else {
            reconnect.pause().await;
        }
    }
}

async fn publish(publisher: &Publisher, board: &Board, told: Vec<InboxHints>) -> bool {
    let message = |hints| Outgoing::hint(topology::LIVE, topology::LIVE_INBOX, Uuid::now_v7().to_string(), hints);
    let messages: Result<Vec<_>, _> = told.iter().map(message).collect();
    let Ok(messages) = messages else { return true };
    let results = publisher.publish_all(messages).await;
    let mut all = true;
    for (hints, result) in told.into_iter().zip(results) {
        if let Err(error) = result {
            tracing::debug!(%error, "hints for open sockets are sent later");
            board.waiting.lock().unwrap_or_else(PoisonError::into_inner).put_back(hints);
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
        let told = waiting.take();
        assert_eq!((told.len(), told[0].p.len()), (1, 2));
        assert!(waiting.take().is_empty());

        waiting.add((0..=u64::try_from(WAITING_MAX).unwrap()).map(InboxHint));
        waiting.add([InboxHint(1)]);
        assert_eq!(waiting.take(), [InboxHints::new(Vec::new())]);
        waiting.put_back(InboxHints::new(Vec::new()));
        assert_eq!(waiting.take(), [InboxHints::new(Vec::new())], "hints that could not be sent are sent later");
    }
}
