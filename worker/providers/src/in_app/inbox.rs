//! The inbox: a row per delivery, written many at a time.

use std::time::Duration;

use domain::{
    Fault, Outcome, ProviderName, Receipt,
    contract::{Order, Provider, provider::Sending, wire::InboxHint},
};
use records::{
    Records,
    inbox::{self, NewItem},
};
use runtime::batch::{Batcher, Limits};
use store::Store;

use super::hints::Hints;

/// A batch has as many rows as a claim has deliveries. The second commit hides the round trip of the first. The queue is longer
/// than the number of attempts that all lanes make at once.
const LIMITS: Limits = Limits { batch_max: 64, parallel_max: 2, queue_max: 1024, spacing: Duration::ZERO };

/// Puts notifications into the inbox of the person named by the recipient.
pub struct Inbox {
    rows: Batcher<NewItem, bool>,
}

impl Inbox {
    /// Writes to `store` and sends hints for open sockets through `hints`. Needs a Tokio runtime for its writer.
    pub fn start(store: Store, hints: Hints) -> Self {
        Self { rows: Batcher::start(LIMITS, move |items| write(store.clone(), hints.clone(), items)) }
    }

    async fn insert(&self, order: &Order) -> Outcome {
        let Ok(content) = serde_json::to_vec(&*order.content) else {
            return Outcome::Rejected(Fault::new("content", "the content has no JSON form"));
        };
        let (delivery, tenant) = (order.delivery, order.tenant);
        let (kind, category) = (order.content.kind.clone(), order.content.category.clone());
        let user_id = order.recipient.reveal().to_owned();
        let item = NewItem { delivery, tenant, user_id, content, kind, category };
        match self.rows.submit(item).await {
            Ok(true) => Outcome::Sent(Receipt { arrived: true, ..Receipt::default() }),
            // The row may exist all the same. Then the next attempt changes nothing, so the failure counts as transient.
            Ok(false) | Err(_) => Outcome::Transient(Fault::new("database", "the inbox could not be written"), None),
        }
    }
}

impl Provider for Inbox {
    fn name(&self) -> ProviderName {
        ProviderName::Inbox
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.insert(order))
    }
}

/// Writes rows and sends their hints. Existing rows get a hint again: their writer may have died before it sent one.
async fn write(store: Store, hints: Hints, items: Vec<NewItem>) -> Vec<bool> {
    let count = items.len();
    let person = |item: &NewItem| InboxHint::of(&inbox::person(store.sealer(), item.tenant, &item.user_id));
    let people: Vec<InboxHint> = items.iter().map(person).collect();
    let written = store.inbox().insert(items).await;
    if let Err(error) = &written {
        tracing::warn!(%error, count, "inbox rows could not be written");
    }
    if written.is_ok() {
        hints.push(people);
    }
    vec![written.is_ok(); count]
}
