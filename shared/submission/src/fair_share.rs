//! Fair share between tenants: decides which messages go straight to the broker and which wait in their tenant's share.
//!
//! While the work queues are short, all go straight. Once a queue is long, a tenant that keeps filling it is *crowding*:
//! from then on its messages wait in its share, and the scheduler releases the shares in turn. A tenant that sends now and
//! then still goes straight through, at most a window behind.
//!
//! Each replica of ingest counts separately, so with many replicas a tenant may send more before it is noticed. Therefore a
//! queue of twice the window is enough by itself: from then on every tenant's messages of this route wait in shares, in
//! equal turns.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use broker::{Broker, Depths, Ready};
use domain::{
    Route, TenantId,
    acceptance::{Acceptance, Crowding},
};
use tokio_util::sync::CancellationToken;

/// Ready messages of one route at the broker before tenants take turns: about a second's work.
const WINDOW: u32 = 4000;
/// How often the queue depths are checked.
const TICK: Duration = Duration::from_millis(250);
/// How old the depth of a queue may be if no tenant is filling it.
const AGE_WHILE_QUIET: Duration = Duration::from_secs(1);
/// Deliveries of a tenant on a route within a tick that do not count as crowding.
const QUIET: usize = 25;

/// Recent counts of deliveries, and the crowding tenants. Cheap to clone.
#[derive(Clone, Default)]
pub struct FairShare {
    counts: Arc<Mutex<HashMap<(TenantId, Route), usize>>>,
    crowding: Arc<Mutex<Crowding>>,
}

impl FairShare {
    /// Watches the queues of `broker` until `stop`.
    pub fn watch(broker: Broker, stop: CancellationToken) -> Self {
        let fair_share = Self::default();
        tokio::spawn(stop.run_until_cancelled_owned(fair_share.clone().watch_queues(Depths::new(broker))));
        fair_share
    }

    /// The tenants and routes whose messages wait in shares at the moment.
    pub fn crowding(&self) -> Crowding {
        Arc::clone(&self.crowding.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the deliveries of accepted messages.
    pub fn count(&self, batch: &[Acceptance]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for acceptance in batch {
            for delivery in acceptance.messages.iter().flat_map(|message| &message.deliveries) {
                *counts.entry((acceptance.tenant, delivery.route)).or_default() += 1;
            }
        }
    }

    async fn watch_queues(self, depths: Depths) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
            let crowding = if counts.is_empty() { HashSet::new() } else { crowding_among(counts, &depths).await };
            *self.crowding.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(crowding);
        }
    }
}

/// The tenants that crowd a route. If the broker does not answer, none does: unpublished deliveries wait in the outbox
/// anyway.
async fn crowding_among(counts: HashMap<(TenantId, Route), usize>, depths: &Depths) -> HashSet<(TenantId, Route)> {
    let routes: HashSet<Route> = counts.keys().map(|(_, route)| *route).collect();
    let age = if counts.values().any(|count| *count > QUIET) { TICK } else { AGE_WHILE_QUIET };
    let ready = depths.ready(&routes.into_iter().collect::<Vec<_>>(), age).await.unwrap_or_default();
    counts.into_iter().filter(|((_, route), count)| is_crowding(*count, &ready, *route)).map(|(who, _)| who).collect()
}

fn is_crowding(count: usize, ready: &Ready, route: Route) -> bool {
    let ready = ready.get(&route).copied().unwrap_or_default();
    ready > WINDOW * 2 || (ready > WINDOW && count > QUIET)
}

#[cfg(test)]
mod tests {
    use domain::{Channel, Lane};

    use super::*;

    #[test]
    fn a_quiet_tenant_takes_turns_only_on_a_queue_of_two_windows() {
        let route = Route { channel: Channel::Sms, lane: Lane::Normal };
        let crowding = |count, ready| is_crowding(count, &Ready::from([(route, ready)]), route);
        assert!(!crowding(QUIET + 1, WINDOW) && crowding(QUIET + 1, WINDOW + 1), "a tenant that fills a long queue");
        assert!(!crowding(QUIET, 2 * WINDOW) && crowding(1, 2 * WINDOW + 1), "twenty replicas count 25 each");
        assert!(!is_crowding(QUIET + 1, &Ready::new(), route), "nobody knows");
    }
}
