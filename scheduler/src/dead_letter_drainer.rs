//! Takes what was given up from the dead letter queue into the table where people look at it.
//!
//! Three kinds of sender fill that queue: we ourselves (a body that was refused, with the reason in a header), the
//! broker (a message it handed out too often), and the ingress exchange (a key that no queue is bound for).

use std::{collections::HashSet, time::Duration};

use shared::{
    amqp::{Acker, Consumer, Delivery},
    clock,
    contract::{Event, WorkItem},
    db::{DbResult, Store, letters::NewLetter},
    domain::{
        Channel, DeadOrigin, DeadReason, DeliveryId, EventKind, Publishers, RequireMapping, Round, State, TenantId,
    },
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    found::{Found, Kind},
    log_writer::{tell, tell_dead},
    trouble::Trouble,
};

/// Messages in hand: few, since a body may have many megabytes.
pub const PREFETCH: u16 = 16;
/// A lone letter waits this long for company.
const LINGER: Duration = Duration::from_millis(5);

/// The loop.
pub struct DeadLetterDrainer {
    store: Store,
    consumer: Consumer,
    acker: Acker,
    require_mapping: RequireMapping,
    trouble: Trouble,
    stop: CancellationToken,
}

impl DeadLetterDrainer {
    /// Reads with `consumer`.
    pub fn new(
        store: Store,
        consumer: Consumer,
        require_mapping: RequireMapping,
        trouble: Trouble,
        stop: CancellationToken,
    ) -> Self {
        let acker = consumer.acker();
        Self { store, consumer, acker, require_mapping, trouble, stop }
    }

    /// Drains until stopped.
    pub async fn run(mut self) {
        while let Some(deliveries) = self.consumer.next_batch(PREFETCH.into(), LINGER).await {
            let (tags, kinds): (Vec<_>, Vec<_>) = deliveries.into_iter().map(sort).unzip();
            while let Err(error) = file(&self.store, &kinds, self.require_mapping).await {
                // Even a refusal is waited out: the letters stay in their queue, which is where they are safe.
                if !self.trouble.wait_out(&error, &self.stop).await {
                    return self.consumer.cancel().await;
                }
            }
            self.acker.done_all(tags);
            self.trouble.over();
        }
        self.consumer.cancel().await;
    }
}

fn sort(delivery: Delivery) -> (shared::amqp::Tag, Kind) {
    (delivery.tag, Found::from(delivery).kind())
}

/// Files everything; doing it twice changes nothing.
async fn file(store: &Store, kinds: &[Kind], require_mapping: RequireMapping) -> DbResult<()> {
    let work = kinds.iter().filter_map(|kind| match kind {
        Kind::Work(item, _) => Some(*item),
        Kind::Letter(_) => None,
    });
    let known = bury(store, work.collect()).await?;
    let letters = kinds.iter().filter_map(|kind| match kind {
        Kind::Letter(letter) => Some(letter.clone()),
        Kind::Work(item, letter) => (!known.contains(&item.d)).then(|| letter.clone()),
    });
    let mut letters: Vec<NewLetter> = letters.collect();
    withhold(store, &mut letters, require_mapping).await?;
    let written: HashSet<Uuid> = store.insert_letters(letters.clone()).await?.into_iter().collect();
    letters.iter().filter(|letter| written.contains(&letter.id)).for_each(|letter| tell_dead(letter.reason, 1));
    Ok(())
}

/// Takes the tenant from letters about submissions that the intake never saw, where their publisher may not publish for it:
/// nobody else's publish may appear among a tenant's letters, nor be reported to its webhooks.
async fn withhold(store: &Store, letters: &mut [NewLetter], require_mapping: RequireMapping) -> DbResult<()> {
    let unseen = |letter: &&mut NewLetter| {
        letter.amqp_user.is_some() && (letter.reason == DeadReason::Unroutable || letter.origin == DeadOrigin::Broker)
    };
    let mut unseen = letters.iter_mut().filter(unseen).peekable();
    if unseen.peek().is_none() {
        return Ok(());
    }
    let publishers = Publishers::new(store.amqp_users().await?, require_mapping);
    for letter in unseen {
        let Some(slug) = &letter.tenant else { continue };
        let tenant = store.tenant_by_slug(slug).await?.map(|tenant| tenant.id);
        let user = letter.amqp_user.as_deref().filter(|user| !user.is_empty());
        letter.tenant.take_if(|_| !tenant.is_some_and(|tenant| publishers.check(tenant, user).is_ok()));
    }
    Ok(())
}

/// Marks deliveries dead that the broker could not get rid of, unless they went on by another way; the event that does
/// it writes the letter. Returns the deliveries that exist.
async fn bury(store: &Store, work: Vec<WorkItem>) -> DbResult<HashSet<DeliveryId>> {
    if work.is_empty() {
        return Ok(HashSet::new());
    }
    let ids: Vec<DeliveryId> = work.iter().map(|item| item.d).collect();
    let owners = store.delivery_owners(&ids).await?;
    let owner = |item: &WorkItem| owners.iter().find(|(id, ..)| *id == item.d).copied();
    let events = work.iter().filter_map(|item| owner(item).map(|(_, tenant, channel)| death(*item, tenant, channel)));
    tell(&store.record(events.collect()).await?);
    Ok(owners.into_iter().map(|(id, ..)| id).collect())
}

/// The end of a delivery that is still queued at the run its work message names; at any other it changes nothing.
fn death(item: WorkItem, tenant: TenantId, channel: Channel) -> Event {
    Event {
        tenant,
        delivery: item.d,
        run: item.r,
        channel,
        kind: EventKind::Dead,
        at: clock::now(),
        attempt: None,
        state: State::Dead,
        delay_ms: None,
        detail: Some("the broker gave up handing it to workers".to_owned()),
        reason: None,
        dead: Some(DeadReason::Poison),
        spent: true,
        crash: false,
        round: Round::NEW,
        report: false,
    }
}
