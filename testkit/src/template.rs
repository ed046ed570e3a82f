//! The databases that stacks copy. The first test of a run makes them, so that the others start no command and run no migration.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::{TestServers, programs, test_servers::connect};

/// Number of the advisory lock that lets one test at a time make a template.
const LOCK: i64 = 0x7465_6d70;

/// The schema, without a row.
const SCHEMA: &str = "posthaste_schema";

/// The schema and the first tenant with its keys. The comment of the database has them in the clear.
const TENANT: &str = "posthaste_tenant";

/// The first tenant of a stack.
pub struct FirstTenant {
    /// Its admin key.
    pub admin_key: String,
    /// Its producer key.
    pub producer_key: String,
    /// Its webhook secret.
    pub webhook_secret: String,
}

impl FirstTenant {
    /// Makes it in a database that has the schema, by the commands that an operator uses.
    pub fn create(database_url: &str, settings: &BTreeMap<String, String>) -> Result<Self> {
        let command = |args: &[&str]| {
            let mut command = programs::program("posthaste", None, settings)?;
            programs::run_json(command.env("DATABASE_URL", database_url).args(args))
        };
        let key = |role| programs::text(&command(&["key", "create", "--tenant", "acme", "--role", role])?, "key");
        let tenant = command(&["tenant", "create", "acme"])?;
        Ok(Self {
            webhook_secret: programs::text(&tenant, "webhook_secret")?,
            admin_key: key("admin")?,
            producer_key: key("producer")?,
        })
    }

    fn parse(comment: &str) -> Result<Self> {
        let [admin_key, producer_key, webhook_secret] = comment
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .try_into()
            .ok()
            .context("the comment of the template is another")?;
        Ok(Self { admin_key, producer_key, webhook_secret })
    }

    fn comment(&self) -> String {
        [&*self.admin_key, &self.producer_key, &self.webhook_secret].join(" ")
    }
}

impl TestServers {
    /// Makes a database with the schema and returns its URL.
    pub async fn copy_schema(&self, name: &str) -> Result<String> {
        let client = connect(&self.database_url).await?;
        self.schema(&client).await?;
        self.copy(&client, SCHEMA, name).await
    }

    /// Makes a database with the schema and the first tenant and returns its URL.
    pub async fn copy_tenant(&self, name: &str) -> Result<(String, FirstTenant)> {
        let client = connect(&self.database_url).await?;
        let first = self.tenant(&client).await?;
        Ok((self.copy(&client, TENANT, name).await?, first))
    }

    async fn schema(&self, client: &Client) -> Result<()> {
        self.template(client, SCHEMA, "template0", |url| {
            programs::run(
                programs::program("posthaste", None, &BTreeMap::new())?.env("DATABASE_URL", url).arg("migrate"),
            )?;
            Ok(String::new())
        })
        .await
        .map(drop)
    }

    async fn tenant(&self, client: &Client) -> Result<FirstTenant> {
        if let Some(comment) = comment(client, TENANT).await? {
            return FirstTenant::parse(&comment);
        }
        self.schema(client).await?;
        let create = |url: &str| Ok(FirstTenant::create(url, &BTreeMap::new())?.comment());
        FirstTenant::parse(&self.template(client, TENANT, SCHEMA, create).await?)
    }

    /// The comment of a template, which `fill` makes out of the database at a URL where the template is missing.
    async fn template(
        &self,
        client: &Client,
        name: &str,
        source: &str,
        fill: impl FnOnce(&str) -> Result<String>,
    ) -> Result<String> {
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
        let mut found = comment(client, name).await?;
        if found.is_none() {
            // A half-made template has another name, so a test that is killed here harms no other.
            let half = format!("{name}_half");
            client.batch_execute(&format!("DROP DATABASE IF EXISTS {half} WITH (FORCE)")).await?;
            let comment = fill(&self.copy(client, source, &half).await?)?;
            client.batch_execute(&format!("COMMENT ON DATABASE {half} IS '{comment}'")).await?;
            client.batch_execute(&format!("ALTER DATABASE {half} WITH ALLOW_CONNECTIONS false")).await?;
            client.batch_execute(&format!("ALTER DATABASE {half} RENAME TO {name}")).await?;
            found = Some(comment);
        }
        client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
        Ok(found.unwrap_or_default())
    }

    async fn copy(&self, client: &Client, source: &str, name: &str) -> Result<String> {
        client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {source}")).await?;
        let (base, _) = self.database_url.rsplit_once('/').context("a database URL ends in a name")?;
        Ok(format!("{base}/{name}"))
    }
}

/// The comment of a database; `None` where there is no such database.
async fn comment(client: &Client, name: &str) -> Result<Option<String>> {
    let query = "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = $1";
    Ok(client.query_opt(query, &[&name]).await?.map(|row| row.get(0)))
}
