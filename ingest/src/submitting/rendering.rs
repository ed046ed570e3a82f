//! Rendering keeps a thread busy for up to half a second. It has threads of its own, and no tenant may keep more than a few of them.

use std::time::Duration;

use actix_web::web;
use shared::domain::TenantId;

use crate::{per_tenant::PerTenant, problem::Problem};

/// Renderings of one tenant at once; the next ones wait.
const OF_TENANT_MAX: usize = 4;
/// How long they wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Renders for all tenants.
pub struct Renderers(PerTenant);

impl Default for Renderers {
    fn default() -> Self {
        Self(PerTenant::new(OF_TENANT_MAX))
    }
}

impl Renderers {
    /// Does `work` for a tenant, on a thread where it keeps no other request waiting.
    pub async fn run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let _permit = self.0.enter(tenant, PATIENCE).await.ok_or_else(Problem::overloaded)?;
        web::block(work).await.map_err(|_| Problem::internal())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[actix_web::test]
    async fn a_tenant_whose_templates_hang_keeps_a_few_threads_and_no_other_tenant_waits() {
        let renderers = Renderers::default();
        let (begun, begins) = mpsc::channel();
        let mut ends = Vec::new();
        let hanging = (0..OF_TENANT_MAX + 1).map(|_| {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let begun = begun.clone();
            renderers.run(TenantId(1), move || {
                begun.send(()).unwrap();
                let _ = ended.recv();
            })
        });
        let all = futures_util::future::join_all(hanging.collect::<Vec<_>>());
        let other = async {
            assert_eq!(renderers.run(TenantId(2), || 7).await.unwrap(), 7);
            assert!(begins.try_iter().count() <= OF_TENANT_MAX, "no more than that began");
            drop(ends);
        };
        let (all, ()) = tokio::join!(all, other);
        assert!(all.into_iter().all(|one| one.is_ok()));
    }
}
