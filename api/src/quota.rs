//! How many things of a kind a tenant may have.

use domain::TenantId;
use store::counts::Counted;
use web::{Web, problem::Problem};

/// The most that a tenant may have, and what they are called.
const fn most(what: Counted) -> (i64, &'static str) {
    match what {
        Counted::Rules => (1000, "rules"),
        Counted::Configurations => (100, "webhook configurations"),
        Counted::Keys => (1000, "API keys that hold"),
        Counted::Sessions => (100, "WhatsApp sessions"),
    }
}

/// Refuses one more than a tenant may have. Calls at the same moment may exceed the bound by as many as they are.
pub async fn require_quota(web: &Web, tenant: TenantId, what: Counted) -> Result<(), Problem> {
    let has = web.queries.run(async move |store| store.count_of(tenant, what).await).await?;
    let (most, called) = most(what);
    if has < most {
        return Ok(());
    }
    Err(Problem::conflict(format!("Remove one first: a tenant has at most {most} {called}.")))
}
