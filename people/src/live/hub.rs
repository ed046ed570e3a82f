//! The open sockets of this process, and the signal that wakes each.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use domain::{TenantId, contract::wire::InboxHint};
use runtime::metric;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Sockets that one person may have open in a process: generous for tabs and devices.
pub const PERSON_MAX: usize = 50;
/// Sockets that the people of one tenant may have open in a process.
pub const TENANT_MAX: usize = 50_000;
/// Shards with a lock each, so that many threads open and close sockets concurrently.
const SHARDS: usize = 16;

/// Notifies a socket that there may be something new. It stores one notification, so that a busy listener misses none.
pub type Wakeup = Arc<Notify>;

type Shard = HashMap<InboxHint, Vec<Wakeup>>;

/// Every open socket of this process.
pub struct Hub {
    shards: [Mutex<Shard>; SHARDS],
    tenants: Mutex<HashMap<TenantId, usize>>,
    open: AtomicUsize,
    leaving: CancellationToken,
}

/// The limit of open sockets is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Of the person.
    Person,
    /// Of the tenant.
    Tenant,
}

impl Hub {
    /// A hub without sockets. All sockets close once `leaving` is cancelled.
    pub fn new(leaving: CancellationToken) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, tenants: Mutex::default(), open: AtomicUsize::new(0), leaving }
    }

    /// Cancelled when every socket is to close.
    pub const fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// How many sockets are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Registers a socket. `names` are the names that hints may use for the person; the first one is
    /// the current one.
    pub fn enter(self: &Arc<Self>, tenant: TenantId, names: Vec<InboxHint>) -> Result<Registration, Full> {
        let mut tenants = lock(&self.tenants);
        let of_tenant = tenants.entry(tenant).or_default();
        let of_person = names.first().map_or(0, |name| self.shard(*name).get(name).map_or(0, Vec::len));
        match () {
            () if *of_tenant >= TENANT_MAX => return Err(Full::Tenant),
            () if of_person >= PERSON_MAX => return Err(Full::Person),
            () => *of_tenant += 1,
        }
        let wakeup = Wakeup::default();
        for name in &names {
            self.shard(*name).entry(*name).or_default().push(Arc::clone(&wakeup));
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!(metric::WS_CONNECTIONS).increment(1.0);
        Ok(Registration { hub: Arc::clone(self), tenant, names, wakeup })
    }

    /// Notifies the sockets of this person that there may be something new.
    pub fn notify(&self, person: InboxHint) {
        if let Some(wakeups) = self.shard(person).get(&person) {
            wakeups.iter().for_each(|wakeup| wakeup.notify_one());
        }
    }

    /// Notifies all sockets.
    pub fn notify_all(&self) {
        for shard in &self.shards {
            lock(shard).values().flatten().for_each(|wakeup| wakeup.notify_one());
        }
    }

    fn shard(&self, person: InboxHint) -> MutexGuard<'_, Shard> {
        let [first, ..] = &self.shards;
        let index = usize::try_from(person.0).unwrap_or_default() % SHARDS;
        lock(self.shards.get(index).unwrap_or(first))
    }

    fn leave(&self, registration: &Registration) {
        for name in &registration.names {
            let mut shard = self.shard(*name);
            if let Some(wakeups) = shard.get_mut(name) {
                wakeups.retain(|wakeup| !Arc::ptr_eq(wakeup, &registration.wakeup));
                if wakeups.is_empty() {
                    shard.remove(name);
                }
            }
        }
        let mut tenants = lock(&self.tenants);
        if let Some(of_tenant) = tenants.get_mut(&registration.tenant) {
            *of_tenant = of_tenant.saturating_sub(1);
            if *of_tenant == 0 {
                tenants.remove(&registration.tenant);
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!(metric::WS_CONNECTIONS).decrement(1.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registration of an open socket; dropping it unregisters the socket.
pub struct Registration {
    hub: Arc<Hub>,
    tenant: TenantId,
    names: Vec<InboxHint>,
    wakeup: Wakeup,
}

impl Registration {
    /// The signal that wakes the socket.
    pub const fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }

    /// The hub that the socket is registered with.
    pub const fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let hub = Arc::clone(&self.hub);
        hub.leave(self);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ADA: InboxHint = InboxHint(1);
    const EVE: InboxHint = InboxHint(18);

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(CancellationToken::new()))
    }

    fn is_signalled(registration: &Registration) -> bool {
        registration.wakeup().notified().now_or_never().is_some()
    }

    #[test]
    fn a_hint_wakes_the_sockets_of_its_person_and_no_other() {
        let hub = hub();
        let [first, second] = [0, 1].map(|_| hub.enter(TenantId(1), vec![ADA, InboxHint(9)]).unwrap());
        let other = hub.enter(TenantId(1), vec![EVE]).unwrap();
        hub.notify(ADA);
        assert_eq!([is_signalled(&first), is_signalled(&second), is_signalled(&other)], [true, true, false]);
        hub.notify(InboxHint(9));
        assert!(is_signalled(&first), "by another key's name as well");
        hub.notify_all();
        hub.notify_all();
        assert_eq!([is_signalled(&first), is_signalled(&second), is_signalled(&other)], [true; 3]);
        assert!(!is_signalled(&first), "a signal is held once");
    }

    #[test]
    fn what_closes_makes_room_and_leaves_nothing_behind() {
        let hub = hub();
        let mut registrations: Vec<Registration> =
            (0..PERSON_MAX).map(|_| hub.enter(TenantId(1), vec![ADA]).unwrap()).collect();
        assert_eq!(hub.enter(TenantId(1), vec![ADA]).err(), Some(Full::Person));
        assert!(hub.enter(TenantId(1), vec![EVE]).is_ok(), "another person has room");
        assert_eq!(hub.open(), PERSON_MAX);
        registrations.pop();
        registrations.push(hub.enter(TenantId(1), vec![ADA]).unwrap());
        drop(registrations);
        assert_eq!(hub.open(), 0);
        assert!(lock(&hub.tenants).is_empty() && hub.shards.iter().all(|shard| lock(shard).is_empty()));
    }
}
