//! The summary once everything runs: addresses, credentials, examples.

use servers::{env_file::EnvFile, sinks::HttpSink};

use std::path::Path;

/// Addresses, credentials and a first request to copy.
pub(super) fn text(memory: &EnvFile, local: &Path, receiver: &HttpSink) -> String {
    let value = |name: &str| memory.get(name).unwrap_or_default();
    let (url, producer) = (value("POSTHASTE_URL"), value("POSTHASTE_PRODUCER_KEY"));
    format!(
        "
Posthaste is running.

  API              {url}
  documentation    {url}/docs
  tenant           {tenant}
  admin key        {admin}
  producer key     {producer}
  webhook secret   {secret}

  All of this is in {env}; logs are in {logs}.

Send a webhook to the built-in receiver:

  curl -sS {url}/api/notifications/send \\
    -H 'Authorization: Bearer {producer}' \\
    -H 'Content-Type: application/json' \\
    -d '{{\"channel\": \"webhook\", \"recipient\": \"{hook}\", \"data\": {{\"hello\": \"world\"}}}}'

Ctrl-C stops everything.",
        tenant = value("POSTHASTE_TENANT"),
        admin = value("POSTHASTE_ADMIN_KEY"),
        secret = value("POSTHASTE_WEBHOOK_SECRET"),
        env = local.join("env").display(),
        logs = local.join("logs").display(),
        hook = receiver.url("/hello"),
    )
}
