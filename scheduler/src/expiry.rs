//! Ends deliveries that wait in a line and are no longer worth sending: behind a session that does not work no claim would.
//!
//! They end as after a claim, by an event that is written down. It is written before the delivery leaves its line, so a scheduler
//! that dies in between leaves it to be taken again, and a repeated event changes nothing.

use std::{collections::HashMap, time::Duration};

use shared::{
    clock,
    contract::Event,
    db::Store,
    domain::{Channel, DeliveryId, EventKind, State, TenantId},
};
use uuid::Uuid;

use crate::{
    log_writer::tell,
    task::{Report, Task, TaskError},
};

/// Deliveries ended in one turn.
const LIMIT: i64 = 500;
/// When a delivery that was taken may be taken again.
const LEASE_MS: i32 = 30_000;
/// Deliveries looked at in one turn for a time that they lack.
const FILL_LIMIT: i64 = 2000;

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
        tell(&self.0.record(expired.iter().filter_map(event).collect()).await?);
        self.0.unpark(&expired).await?;
        Ok(if i64::try_from(expired.len()).is_ok_and(|taken| taken >= LIMIT) { Report::More } else { Report::Done })
    }
}

/// No claim made an attempt of it that would have to be taken back. It is no report of a provider, which could also move a delivery
/// that was sent.
fn event(delivery: DeliveryId, run: i32, tenant: TenantId, channel: Channel) -> Event {
    Event {
        state: State::Expired,
        detail: Some("its time ran out while it waited for its session".to_owned()),
        report: false,
        ..Event::report((tenant, delivery, run, channel), EventKind::Expired, clock::now())
    }
}

/// The task that gives deliveries of the version before the time after which they expire.
pub struct ExpiryFill {
    store: Store,
    /// Deliveries up to this one were looked at.
    passed: DeliveryId,
}

impl ExpiryFill {
    /// Begins with the first delivery that waits.
    pub const fn new(store: Store) -> Self {
        Self { store, passed: DeliveryId(Uuid::nil()) }
    }
}

impl Task for ExpiryFill {
    const NAME: &'static str = "expiry_fill";
    /// Such deliveries become fewer, and some minutes do not matter behind a session that does not work.
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let last = self.store.fill_expiry(self.passed, FILL_LIMIT).await?;
        self.passed = last.unwrap_or(DeliveryId(Uuid::nil()));
        Ok(if last.is_some() { Report::More } else { Report::Done })
    }
}
