//! Turns between tenants: whose messages go straight to the broker, and whose wait for their tenant's turn.
//!
//! As long as the work queues are short everybody's do. Once a queue is long, a tenant that keeps filling it is
//! *crowding*: what it sends from then on waits in its share, and the scheduler releases the shares in turn. A tenant that
//! sends now and then still goes straight through, at most a window behind.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{
    amqp::{Broker, declare::depths, work_queue},
    db::accept::{Acceptance, Crowding},
    domain::{Route, TenantId},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Messages of one route that may be ready at the broker before tenants take turns: about a second's work.
const WINDOW: u32 = 4000;
/// How often it is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Deliveries of a tenant on a route within a tick that crowd nobody.
const QUIET: usize = 25;
/// A healthy broker tells the depth of all queues in a few milliseconds.
const DEPTHS_TIMEOUT: Duration = Duration::from_secs(1);

/// What was accepted lately, and who is crowding. Cheap to clone.
#[derive(Clone, Default)]
pub struct Turns {
    counts: Arc<Mutex<HashMap<(TenantId, Route), usize>>>,
    crowding: Arc<Mutex<Crowding>>,
}

impl Turns {
    /// Watches the queues of `broker` until `stop`.
    pub fn watch(broker: Broker, stop: CancellationToken) -> Self {
        let turns = Self::default();
        tokio::spawn(stop.run_until_cancelled_owned(turns.clone().keep(broker)));
        turns
    }

    /// Who must take turns at the moment.
    pub fn crowding(&self) -> Crowding {
        Arc::clone(&self.crowding.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what was accepted.
    pub fn note(&self, batch: &[Acceptance]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for acceptance in batch {
            for delivery in acceptance.messages.iter().flat_map(|message| &message.deliveries) {
                *counts.entry((acceptance.tenant, delivery.route)).or_default() += 1;
            }
        }
    }

    async fn keep(self, broker: Broker) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let busy: Vec<(TenantId, Route)> = {
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.drain().filter(|(_, count)| *count > QUIET).map(|(who, _)| who).collect()
            };
            let crowding = if busy.is_empty() { HashSet::new() } else { among(busy, &broker).await };
            *self.crowding.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(crowding);
        }
    }
}

/// Those of `busy` whose route is full. Without an answer nobody is: what cannot be published waits in the outbox anyway.
async fn among(busy: Vec<(TenantId, Route)>, broker: &Broker) -> HashSet<(TenantId, Route)> {
    let Some(connection) = broker.connection() else { return HashSet::new() };
    let Ok(Ok(depths)) = timeout(DEPTHS_TIMEOUT, depths(&connection)).await else { return HashSet::new() };
    let is_full = |route: Route| {
        let queue = work_queue(route);
        depths.iter().any(|depth| depth.name == queue && depth.messages_ready > WINDOW)
    };
    busy.into_iter().filter(|(_, route)| is_full(*route)).collect()
}
