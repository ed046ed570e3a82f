//! `posthaste key`: API keys of programs.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use domain::token::{ApiKey, Role};
use records::{Records, keys::KeyListing};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    output::{Output, table_or, time},
    settings,
};

/// Create, list and revoke API keys
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Create a key; it is shown this once and stored as a hash
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste key create --tenant acme --role producer --name shop
  posthaste key create --tenant acme --role admin --json")]
pub struct Create {
    /// The tenant of the key
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Its role: admin, producer, agent, user or operator (across tenants)
    #[arg(long)]
    role: Role,
    /// A name to know it by
    #[arg(long, default_value = "")]
    name: String,
}

/// List keys, revoked ones too; never their secrets
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  posthaste key list\n  posthaste key list --tenant acme")]
pub struct List {
    /// Only the keys of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

/// End a key, and the refresh tokens made with it; services refuse it within half a minute
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste key revoke 0191d8a0-0000-7000-8000-000000000001")]
pub struct Revoke {
    /// The id that `key list` shows
    id: Uuid,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(args) => args.run(out).await?,
            Self::List(args) => args.run(out).await?,
            Self::Revoke(args) => args.run(out).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        let key = ApiKey::generate()?;
        let id = store
            .api_keys()
            .create(tenant.id, self.role, &self.name, key.hash)
            .await
            .context("failed to store the key")?;
        let recorded = settings::record(&store, "key create", id, Some(tenant.id)).await;
        let text = key.text.expose_secret();
        let created = json!({ "id": id, "key": text, "role": self.role, "tenant": tenant.slug });
        out.print(&created, |_| {
            format!(
                "{text}\nThis {} key of {} is shown only now. To end it: posthaste key revoke {id}",
                self.role, tenant.slug
            )
        })?;
        recorded
    }
}

impl List {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let store = settings::store()?;
        let tenant = settings::tenant_id(&store, self.tenant.as_deref()).await?;
        let keys = store.api_keys().list(tenant).await.context("failed to list the keys")?;
        out.print(&keys.iter().map(json_of).collect::<Vec<_>>(), |_| {
            let header = ["ID", "TENANT", "ROLE", "NAME", "CREATED", "REVOKED"];
            table_or(
                &header,
                keys.iter().map(row_of).collect(),
                "there is no key: posthaste key create --tenant NAME --role ROLE",
            )
        })
    }
}

fn json_of(key: &KeyListing) -> Value {
    json!({ "id": key.id, "tenant": key.tenant_slug, "role": key.role, "name": key.name, "created_at": key.created_at,
            "revoked_at": key.revoked_at })
}

fn row_of(key: &KeyListing) -> Vec<String> {
    let revoked = key.revoked_at.map(time).unwrap_or_default();
    vec![key.id.to_string(), key.tenant_slug.clone(), key.role.clone(), key.name.clone(), time(key.created_at), revoked]
}

impl Revoke {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let id = self.id;
        let store = settings::store()?;
        let revoked = store.api_keys().revoke(id, None).await.context("failed to revoke the key")?;
        ensure!(revoked.is_some(), "there is no key {id}, or it is revoked already: see `posthaste key list`");
        settings::record(&store, "key revoke", id, revoked).await?;
        out.print(&json!({ "id": id, "revoked": true }), |_| format!("revoked {id}"))
    }
}
