//! The first tenant and ready-made credentials, created once and kept in `.local/env`.

use anyhow::{Context, Result};
use serde_json::Value;
use servers::{env_file::EnvFile, http};

use super::platform_cli::PlatformCli;

/// The slug of a tenant that has to be created.
const DEFAULT_SLUG: &str = "demo";

const TENANT: &str = "POSTHASTE_TENANT";
const WEBHOOK_SECRET: &str = "POSTHASTE_WEBHOOK_SECRET";

/// The kept keys: name and role.
const KEYS: [(&str, &str); 2] = [("POSTHASTE_ADMIN_KEY", "admin"), ("POSTHASTE_PRODUCER_KEY", "producer")];

/// Every kept name that means nothing in another database.
pub(super) const NAMES: [&str; 4] = [TENANT, WEBHOOK_SECRET, "POSTHASTE_ADMIN_KEY", "POSTHASTE_PRODUCER_KEY"];

/// Finds or creates the tenant and the keys that are not known yet.
pub(super) fn prepare(cli: &PlatformCli<'_>, memory: &mut EnvFile) -> Result<()> {
    let slugs = existing_slugs(&cli.json(&["tenant", "list"])?);
    if !memory.get(TENANT).is_some_and(|slug| slugs.iter().any(|existing| existing == slug)) {
        memory.remove(&NAMES)?;
        match slugs.iter().find(|slug| *slug == DEFAULT_SLUG).or(slugs.first()) {
            Some(slug) => memory.set([(TENANT, slug.clone())])?,
            None => create(cli, memory)?,
        }
    }
    for (name, role) in KEYS {
        if memory.get(name).is_none() {
            create_key(cli, memory, name, role)?;
        }
    }
    Ok(())
}

/// Replaces keys that the running platform does not accept (they may have been revoked), and asks
/// for the webhook secret if it is not known.
pub(super) fn complete(cli: &PlatformCli<'_>, memory: &mut EnvFile, url: &str) -> Result<()> {
    for (name, role) in KEYS {
        if http::get(&format!("{url}/api/messages?limit=1"), memory.get(name))?.status == 401 {
            create_key(cli, memory, name, role)?;
        }
    }
    if memory.get(WEBHOOK_SECRET).is_none() {
        let answer = http::get(&format!("{url}/api/webhooks/signing-secret"), memory.get("POSTHASTE_ADMIN_KEY"))?;
        memory.set([(WEBHOOK_SECRET, text(&answer.success()?, "secret")?)])?;
    }
    Ok(())
}

fn create(cli: &PlatformCli<'_>, memory: &mut EnvFile) -> Result<()> {
    let tenant = cli.json(&["tenant", "create", DEFAULT_SLUG])?;
    memory.set([(TENANT, text(&tenant, "slug")?), (WEBHOOK_SECRET, text(&tenant, "webhook_secret")?)])
}

fn create_key(cli: &PlatformCli<'_>, memory: &mut EnvFile, name: &str, role: &str) -> Result<()> {
    let slug = memory.get(TENANT).unwrap_or(DEFAULT_SLUG).to_owned();
    let key = cli.json(&["key", "create", "--tenant", &slug, "--role", role, "--name", "up"])?;
    memory.set([(name, text(&key, "key")?)])
}

fn existing_slugs(tenants: &Value) -> Vec<String> {
    let tenants = tenants.as_array().into_iter().flatten();
    tenants.filter_map(|tenant| text(tenant, "slug").ok()).collect()
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value.get(field).and_then(Value::as_str);
    Ok(text.with_context(|| format!("there is no `{field}` in {value}"))?.to_owned())
}
