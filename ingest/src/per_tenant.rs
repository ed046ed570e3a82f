//! Work of which each tenant has a few pieces at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::domain::TenantId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The permits of each tenant that ever asked; about 100 bytes each.
pub struct PerTenant {
    permits: usize,
    all: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

impl Default for PerTenant {
    /// One permit.
    fn default() -> Self {
        Self::new(1)
    }
}

impl PerTenant {
    /// So many permits for each tenant.
    pub fn new(permits: usize) -> Self {
        Self { permits, all: Mutex::default() }
    }

    /// A permit of a tenant, if it has not too much under way.
    pub fn try_enter(&self, tenant: TenantId) -> Option<OwnedSemaphorePermit> {
        self.of(tenant).try_acquire_owned().ok()
    }

    /// A permit of a tenant, once enough of its work is over; `None` if that takes longer than `patience`.
    pub async fn enter(&self, tenant: TenantId, patience: Duration) -> Option<OwnedSemaphorePermit> {
        timeout(patience, self.of(tenant).acquire_owned()).await.ok()?.ok()
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.permits))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenant_has_one_permit_and_none_of_another() {
        let one = PerTenant::default();
        let permit = one.try_enter(TenantId(1)).unwrap();
        assert!(one.try_enter(TenantId(1)).is_none());
        assert!(one.enter(TenantId(1), Duration::from_millis(1)).await.is_none());
        assert!(one.try_enter(TenantId(2)).is_some());
        drop(permit);
        assert!(one.enter(TenantId(1), Duration::from_secs(60)).await.is_some());
    }
}
