//! Ends deliveries that wait in a line and are no longer worth sending: behind a session that does not work no claim would.
//!
//! They end as after a claim, by an event that is written down. It is written before the delivery leaves its line, so a scheduler
//! that dies in between leaves it to be taken again, and a repeated event changes nothing.

use std::{collections::HashMap, time::Duration};

use shared::{
    clock,
    contract::Event,
    db::Store,
    domain::{Channel, DeliveryId, EventKind, Round, State, TenantId},
};

use crate::task::{Report, Task, TaskError};

/// Deliveries ended in one turn.
const LIMIT: i64 = 500;
/// When a delivery that was taken may be taken again.
const LEASE_MS: i32 = 30_000;

/// The task.
pub struct Expiry(pub Store);

impl Task for Expiry {
    const NAME: &'static str = "expiry";
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let expired = self.0.take_expired(LIMIT, LEASE_MS).await?;
        if expired.is_empty() {
            return Ok(Report::Done);
        }
        let ids: Vec<DeliveryId> = expired.iter().map(|(id, _)| *id).collect();
        let owners = self.0.delivery_owners(&ids).await?;
        let owners: HashMap<_, _> = owners.into_iter().map(|(id, tenant, channel)| (id, (tenant, channel))).collect();
        let event =
            |(id, run): &(DeliveryId, i32)| owners.get(id).map(|(tenant, channel)| event(*id, *run, *tenant, *channel));
        self.0.record(expired.iter().filter_map(event).collect()).await?;
        self.0.unpark(&expired).await?;
        Ok(if i64::try_from(expired.len()).is_ok_and(|taken| taken >= LIMIT) { Report::More } else { Report::Done })
    }
}

fn event(delivery: DeliveryId, run: i32, tenant: TenantId, channel: Channel) -> Event {
    Event {
        tenant,
        delivery,
        run,
        channel,
        kind: EventKind::Expired,
        at: clock::now(),
        attempt: None,
        state: State::Expired,
        delay_ms: None,
        detail: Some("its time ran out while it waited for its session".to_owned()),
        reason: None,
        dead: None,
        // No claim made an attempt of it that would have to be taken back.
        spent: true,
        round: Round::NEW,
        crash: false,
        report: false,
    }
}
