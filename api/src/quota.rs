//! The largest number of rows of a kind that a tenant may have.

use domain::TenantId;
use records::{Records, counts::Counted};
use web::{Web, problem::Problem};

/// The largest number for a tenant, and the name of the kind.
const fn most(what: Counted) -> (i64, &'static str) {
    match what {
        Counted::Rules => (1000, "rules"),
        Counted::Configurations => (100, "webhook configurations"),
        Counted::Keys => (1000, "API keys that hold"),
        Counted::Sessions => (100, "WhatsApp sessions"),
    }
}

/// Refuses one more than a tenant may have. Concurrent calls may exceed the limit by their number.
pub async fn require_quota(web: &Web, tenant: TenantId, what: Counted) -> Result<(), Problem> {
    let has = web.queries.run(async move |store| store.counts().of(tenant, what).await).await?;
    let (most, called) = most(what);
    if has < most {
        return Ok(());
    }
    Err(Problem::conflict(format!("Remove one first: a tenant has at most {most} {called}.")))
}
