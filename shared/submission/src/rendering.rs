//! Renders templates. Rendering keeps a thread busy for up to half a second, so it has threads of its own, and each tenant
//! may use only a few of them.

use std::{sync::Arc, time::Duration};

use actix_web::web::block;
use content::template::{Template, TemplateError};
use domain::{
    Channel, TenantId,
    contract::submission::{FieldError, Part},
};
use serde_json::Value;
use web::{permits::PerTenant, problem::Problem};

/// Renderings of one tenant at once; further ones wait.
const OF_TENANT_MAX: usize = 4;
/// How long a rendering waits for a permit.
const PATIENCE: Duration = Duration::from_secs(10);

/// Renders for all tenants.
pub struct Renderers(PerTenant);

impl Default for Renderers {
    fn default() -> Self {
        Self(PerTenant::new(OF_TENANT_MAX))
    }
}

impl Renderers {
    /// Runs `work` for a tenant, on a thread where it blocks no other request.
    pub async fn run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.0.enter(tenant, PATIENCE).await.ok_or_else(Problem::overloaded)?;
        let working = move || {
            // If the client hangs up, the work continues, and the permit is held until it ends.
            let _permit = permit;
            work()
        };
        block(working).await.map_err(|_| Problem::internal())
    }

    /// Renders a template for a channel.
    pub async fn render(
        &self,
        tenant: TenantId,
        template: Arc<Template>,
        channel: Channel,
        variables: Value,
    ) -> Result<Part, Problem> {
        let rendering =
            move || template.render(channel, &variables).map_err(|error| faults(&template, &variables, error));
        self.run(tenant, rendering).await?.map_err(Problem::validation)
    }
}

/// The faults for the caller, with every declared variable that is missing.
pub fn faults(template: &Template, variables: &Value, error: TemplateError) -> Vec<FieldError> {
    let missing = |name: &str| {
        let message = TemplateError::Missing(name.to_owned()).to_string();
        FieldError::new(format!("template_vars.{name}"), message)
    };
    match error {
        TemplateError::Missing(name) => {
            let mut all = template.missing(variables);
            if !all.contains(&name.as_str()) {
                all.push(&name);
            }
            all.into_iter().map(missing).collect()
        }
        TemplateError::NoPart(_) => vec![FieldError::new("channel", "is none that the template says anything on")],
        TemplateError::TooLarge(why) => vec![FieldError::new("template_vars", format!("cannot be filled in: {why}"))],
        TemplateError::Source(why) => vec![FieldError::new("template_name", format!("cannot be rendered: {why}"))],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::time::timeout;

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
            for _ in 0..OF_TENANT_MAX {
                begins.recv_timeout(Duration::from_secs(60)).unwrap();
            }
            assert!(begins.recv_timeout(Duration::from_millis(200)).is_err(), "no more than that began");
            drop(ends);
        };
        let (all, ()) = tokio::join!(all, other);
        assert!(all.into_iter().all(|one| one.is_ok()));
    }

    #[actix_web::test]
    async fn work_whose_client_hangs_up_keeps_its_permit_until_it_is_done() {
        let renderers = Renderers::default();
        let (begun, begins) = mpsc::channel();
        let mut ends = Vec::new();
        for _ in 0..OF_TENANT_MAX {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let begun = begun.clone();
            let hanging = renderers.run(TenantId(1), move || {
                begun.send(()).unwrap();
                let _ = ended.recv();
            });
            assert!(timeout(Duration::from_millis(50), hanging).await.is_err(), "its client hangs up");
            begins.recv().unwrap();
        }
        let next = timeout(Duration::from_millis(200), renderers.run(TenantId(1), || 7)).await;
        assert!(next.is_err(), "all permits are taken");
        drop(ends);
        assert_eq!(renderers.run(TenantId(1), || 7).await.unwrap(), 7);
    }
}
