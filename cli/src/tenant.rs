//! `posthaste tenant`: creates and lists tenants, and maps broker users to them.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use domain::token;
use records::{Records, tenants::Tenant};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::{
    output::{Output, table_or, time},
    settings,
};

/// Create and list tenants, and tie broker users to them
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(Create),
    List(List),
    MapAmqpUser(MapAmqpUser),
    UnmapAmqpUser(UnmapAmqpUser),
}

/// Create a tenant; prints its webhook signing secret
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  posthaste tenant create acme\n  posthaste tenant create acme --json")]
pub struct Create {
    /// Lower-case letters, digits and hyphens; the first word of AMQP routing keys
    name: String,
}

/// List the tenants and the broker users tied to them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste tenant list")]
pub struct List;

/// Let a broker user publish for this tenant only; the messages of such a tenant must then carry its user_id
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste tenant map-amqp-user shop-backend --tenant acme")]
pub struct MapAmqpUser {
    /// The RabbitMQ user
    user: String,
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
}

/// Take the mapping of a broker user back
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste tenant unmap-amqp-user shop-backend")]
pub struct UnmapAmqpUser {
    /// The RabbitMQ user
    user: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(args) => args.run(out).await?,
            Self::List(args) => args.run(out).await?,
            Self::MapAmqpUser(args) => args.run(out).await?,
            Self::UnmapAmqpUser(args) => args.run(out).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let secret = token::webhook_secret()?;
        let store = settings::store()?;
        let tenant = store.tenants().create(&self.name, &secret).await?;
        let recorded = settings::record(&store, "tenant create", &tenant.slug, Some(tenant.id)).await;
        let secret = tenant.webhook_secret.expose_secret();
        let created = json!({ "id": tenant.id, "slug": tenant.slug, "webhook_secret": secret });
        out.print(&created, |_| {
            format!(
                "created tenant {slug}\nwebhook secret: {secret}\nnext: posthaste key create --tenant {slug} --role producer",
                slug = tenant.slug
            )
        })?;
        recorded
    }
}

impl List {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let store = settings::store()?;
        let tenants = store.tenants().list().await.context("failed to list the tenants")?;
        let users = store.tenants().amqp_users().await.context("failed to list the broker users")?;
        let users_of = |tenant: &Tenant| -> Vec<&str> {
            users.iter().filter(|(_, id)| *id == tenant.id).map(|(user, _)| user.as_str()).collect()
        };
        let json_of = |tenant: &Tenant| json!({ "id": tenant.id, "slug": tenant.slug, "created_at": tenant.created_at, "amqp_users": users_of(tenant) });
        let row_of = |tenant: &Tenant| {
            vec![tenant.slug.clone(), tenant.id.to_string(), time(tenant.created_at), users_of(tenant).join(",")]
        };
        out.print(&tenants.iter().map(json_of).collect::<Vec<_>>(), |_| {
            let rows = tenants.iter().map(row_of).collect();
            table_or(
                &["NAME", "ID", "CREATED", "AMQP USERS"],
                rows,
                "there is no tenant yet: posthaste tenant create NAME",
            )
        })
    }
}

impl MapAmqpUser {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        store.tenants().map_amqp_user(&self.user, tenant.id).await.context("failed to store the mapping")?;
        settings::record(&store, "tenant map-amqp-user", &self.user, Some(tenant.id)).await?;
        let (user, slug) = (self.user, tenant.slug);
        out.print(&json!({ "user": user, "tenant": slug }), |_| {
            format!("broker user {user} may now publish for {slug} only; its messages must carry user_id {user}")
        })
    }
}

impl UnmapAmqpUser {
    async fn run(self, out: Output) -> anyhow::Result<()> {
        let user = self.user;
        let store = settings::store()?;
        let tenant = store.tenants().amqp_mapping(&user).await.context("failed to look the mapping up")?;
        let removed = store.tenants().unmap_amqp_user(&user).await.context("failed to remove the mapping")?;
        anyhow::ensure!(removed, "broker user `{user}` is not mapped to a tenant: see `posthaste tenant list`");
        settings::record(&store, "tenant unmap-amqp-user", &user, tenant).await?;
        out.print(&json!({ "user": user, "tenant": null }), |_| {
            format!("broker user {user} is no longer mapped to a tenant")
        })
    }
}
