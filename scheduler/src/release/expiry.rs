//! Expires deliveries that wait in a pacing queue for too long. No claim would do it for a session that does not work.
//!
//! They expire through a recorded event, as after a claim. The event is written before the delivery leaves its queue:
//! if a scheduler dies in between, another one takes the delivery again, and a repeated event changes nothing.

use std::{collections::HashMap, time::Duration};

use deliveries::Deliveries;
use domain::{Channel, DeliveryId, EventKind, State, TenantId, clock, contract::Event};
use store::Store;
use uuid::Uuid;

use crate::{
    log::log_writer::count_recorded,
    task::{Report, Task, TaskError},
};

/// Deliveries expired in one turn.
const LIMIT: i64 = 500;
/// How long a taken delivery is reserved.
const LEASE_MS: i32 = 30_000;
/// Deliveries checked in one turn for a missing expiry time.
const FILL_LIMIT: i64 = 2000;

/// The task that expires deliveries.
pub struct Expiry(pub Store);

impl Task for Expiry {
    const NAME: &'static str = "expiry";
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let expired = self.0.expiry().take_expired(LIMIT, LEASE_MS).await?;
        if expired.is_empty() {
            return Ok(Report::Done);
        }
        let ids: Vec<DeliveryId> = expired.iter().map(|(id, _)| *id).collect();
        let owners = self.0.delivery_log().delivery_owners(&ids).await?;
        let owners: HashMap<_, _> = owners.into_iter().map(|(id, tenant, channel)| (id, (tenant, channel))).collect();
        let event =
            |(id, run): &(DeliveryId, i32)| owners.get(id).map(|(tenant, channel)| event(*id, *run, *tenant, *channel));
        count_recorded(&self.0.delivery_log().record(expired.iter().filter_map(event).collect()).await?);
        self.0.expiry().unpark(&expired).await?;
        Ok(if i64::try_from(expired.len()).is_ok_and(|taken| taken >= LIMIT) { Report::More } else { Report::Done })
    }
}

/// The event of an expiry. It takes back no attempt, because no claim made one. It is not marked as a provider report,
/// because such a report could also change a delivery that was sent.
fn event(delivery: DeliveryId, run: i32, tenant: TenantId, channel: Channel) -> Event {
    Event {
        state: State::Expired,
        detail: Some("it expired while it waited for its session".to_owned()),
        report: false,
        ..Event::report((tenant, delivery, run, channel), EventKind::Expired, clock::now())
    }
}

/// The task that sets the missing expiry time of deliveries that the previous version stored.
pub struct ExpiryFill {
    store: Store,
    /// Deliveries up to this one were checked.
    passed: DeliveryId,
}

impl ExpiryFill {
    /// Starts with the first waiting delivery.
    pub const fn new(store: Store) -> Self {
        Self { store, passed: DeliveryId(Uuid::nil()) }
    }
}

impl Task for ExpiryFill {
    const NAME: &'static str = "expiry_fill";
    /// Such deliveries become fewer, and a few minutes do not matter for a session that does not work.
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let last = self.store.expiry().fill_expiry(self.passed, FILL_LIMIT).await?;
        self.passed = last.unwrap_or(DeliveryId(Uuid::nil()));
        Ok(if last.is_some() { Report::More } else { Report::Done })
    }
}
