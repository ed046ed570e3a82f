//! The few settings that commands need, so that a command runs although the other settings are missing.

use std::path::Path;

use anyhow::{Context, bail};
use domain::{RequireMapping, TenantId};
use records::{Records, audit::Deed, tenants::Tenant};
use runtime::config::{self, BrokerConfig, DatabaseConfig};
use secrecy::{ExposeSecret, SecretString};
use store::Store;
use url::Url;

/// A command runs one statement after the other.
const POOL_SIZE: usize = 2;

/// A variable, or the content of the file in `NAME_FILE`. An empty value counts as unset.
fn variable(name: &str) -> Option<String> {
    let mut variables = config::environment();
    let file = variables.remove(&format!("{name}_FILE"));
    let value = variables.remove(name).filter(|value| !value.trim().is_empty());
    value.or_else(|| Some(std::fs::read_to_string(file?.trim()).ok()?.trim_end().to_owned()))
}

/// An option from the command line or its variable. An empty value counts as unset.
pub fn given(option: Option<String>) -> Option<String> {
    option.filter(|value| !value.trim().is_empty())
}

/// A secret from the command line: the trimmed content of its file if one is named.
pub fn secret_of(file: Option<&Path>, given: Option<SecretString>) -> anyhow::Result<Option<SecretString>> {
    let Some(file) = file else { return Ok(given) };
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    if text.trim().is_empty() {
        bail!("{} is empty", file.display());
    }
    Ok(Some(text.trim().into()))
}

/// The database settings.
pub fn database() -> anyhow::Result<DatabaseConfig> {
    Ok(DatabaseConfig::from_env_map(config::environment())?)
}

/// Opens the database.
pub fn store() -> anyhow::Result<Store> {
    Ok(Store::open_for_command(&database()?, POOL_SIZE)?)
}

/// The broker's URL.
pub fn broker_url() -> anyhow::Result<SecretString> {
    let url = variable("AMQP_URL")
        .context("AMQP_URL is missing: set it to the broker, for example amqp://user:password@127.0.0.1:5672/%2f")?;
    Ok(url.into())
}

/// Whether broker users must be mapped to tenants.
pub fn require_mapping() -> anyhow::Result<RequireMapping> {
    Ok(BrokerConfig::require_mapping_of(config::environment())?)
}

/// A server's URL for display: without password, and without options, which may contain a password too.
pub fn shown(url: &SecretString) -> String {
    let parsed = Url::parse(url.expose_secret()).ok().and_then(|mut url| {
        url.set_password(None).ok()?;
        url.set_query(None);
        Some(url)
    });
    parsed.map_or_else(|| "the server".to_owned(), String::from)
}

/// The secret that signs tokens.
pub fn jwt_secret() -> anyhow::Result<SecretString> {
    let secret = variable("JWT_SECRET").context("JWT_SECRET is missing: set it to the one that ingest runs with")?;
    Ok(secret.into())
}

/// The operating system user, for the audit log.
pub fn actor() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| variable(name));
    user.map_or_else(|| "cli".to_owned(), |user| format!("cli:{user}"))
}

/// Records a command's change in the audit log. If that fails, the command fails: the change stays, and the user must
/// know that the audit log lacks it.
pub async fn record(
    store: &Store,
    action: &str,
    target: impl ToString,
    tenant: Option<TenantId>,
) -> anyhow::Result<()> {
    let (action, target) = (action.to_owned(), target.to_string());
    let deed = Deed { tenant, actor: actor(), action, target, request_id: None };
    store.audit_log().append(deed).await.context("it was done, but could not be written into the audit log")?;
    Ok(())
}

/// The tenant with this name.
pub async fn tenant(store: &Store, slug: &str) -> anyhow::Result<Tenant> {
    match store.tenants().by_slug(slug).await.context("failed to look the tenant up")? {
        Some(tenant) => Ok(tenant),
        None => {
            bail!("there is no tenant `{slug}`: see `posthaste tenant list`, or run `posthaste tenant create {slug}`")
        }
    }
}

/// The tenant with this name, if a name is given.
pub async fn tenant_id(store: &Store, slug: Option<&str>) -> anyhow::Result<Option<TenantId>> {
    match slug {
        Some(slug) => Ok(Some(tenant(store, slug).await?.id)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_from_its_file() {
        let file = std::env::temp_dir().join(format!("posthaste-secret-{}", std::process::id()));
        std::fs::write(&file, "s3cret\n").unwrap();
        let read = |file: Option<&Path>| secret_of(file, Some("given".into()));
        assert_eq!(read(Some(&file)).unwrap().unwrap().expose_secret(), "s3cret");
        std::fs::write(&file, " \n").unwrap();
        assert!(read(Some(&file)).is_err(), "an empty file is a slip");
        std::fs::remove_file(&file).unwrap();
        assert!(read(Some(&file)).unwrap_err().to_string().contains("failed to read"));
        assert_eq!(read(None).unwrap().unwrap().expose_secret(), "given");
    }

    #[test]
    fn a_shown_url_has_no_password() {
        for (url, wanted) in [
            ("postgres://ada:hunter2@db:5432/posthaste?password=hunter2", "postgres://ada@db:5432/posthaste"),
            ("amqp://ada:hunter2@mq/%2f", "amqp://ada@mq/%2f"),
            ("hunter2", "the server"),
        ] {
            assert_eq!(shown(&url.into()), wanted);
        }
    }
}
