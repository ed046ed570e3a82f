//! Where the tests find PostgreSQL and RabbitMQ: those that `cargo xtask test` started, or private ones to be killed.

use std::sync::Arc;

use anyhow::{Context, Result};
use servers::{
    private::{Servers, ServersConfig},
    progress::Progress,
};

use crate::{api::SOON, eventually};

/// A PostgreSQL and a RabbitMQ to make databases and virtual hosts on.
#[derive(Clone)]
pub struct TestServers {
    /// Superuser URL of PostgreSQL's maintenance database.
    pub database_url: String,
    /// URL of RabbitMQ's default virtual host.
    pub amqp_url: String,
    /// RabbitMQ's management API.
    pub management_url: String,
    /// The servers themselves, when they are this test's own.
    pub own: Option<Arc<Servers>>,
}

impl TestServers {
    /// The servers all tests share.
    pub fn shared() -> Result<Self> {
        let setting = |name: &str| {
            crate::setting(name).with_context(|| format!("{name} is not set: run the tests with `cargo xtask test`"))
        };
        Ok(Self {
            database_url: setting("POSTHASTE_TEST_DATABASE_URL")?,
            amqp_url: setting("POSTHASTE_TEST_AMQP_URL")?,
            management_url: setting("POSTHASTE_TEST_MANAGEMENT_URL")?,
            own: None,
        })
    }

    /// Servers of this test alone, so that it may kill them. They end with it.
    pub fn private(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("posthaste-{name}-{}", std::process::id()));
        let config = ServersConfig { management: true, ..ServersConfig::below(dir) };
        let servers = Servers::start(&config, &Progress::silent())?;
        Ok(Self {
            database_url: config.addresses()?.maintenance_url(),
            amqp_url: servers.amqp_url(),
            management_url: servers.management_url().context("the private broker has no management API")?,
            own: Some(Arc::new(servers)),
        })
    }

    /// The servers themselves; only a test that made its own may ask.
    pub fn own(&self) -> &Servers {
        self.own.as_deref().expect("only private servers may be killed")
    }

    /// Makes an empty virtual host and returns its URL.
    pub async fn create_vhost(&self, name: &str) -> Result<String> {
        let client = reqwest::Client::builder().timeout(SOON).build()?;
        let base = &self.management_url;
        // Both may be said again. A management API that has just begun to listen, or whose broker is busy, refuses at first.
        let put = async |path: String, body: serde_json::Value| {
            let what = format!("the broker takes {path}");
            eventually(&what, SOON, || async {
                let answer = client.put(format!("{base}{path}")).json(&body).send().await.ok()?;
                answer.status().is_success().then_some(())
            })
            .await
        };
        put(format!("/api/vhosts/{name}"), serde_json::json!({})).await?;
        let all = serde_json::json!({"configure": ".*", "write": ".*", "read": ".*"});
        put(format!("/api/permissions/{name}/guest"), all).await?;
        let (base, _) = self.amqp_url.rsplit_once('/').context("a broker URL ends in a virtual host")?;
        Ok(format!("{base}/{name}"))
    }

    /// Deletes a virtual host with all its queues, and a database: a broker with a hundred dead ones gets slow, and a disk gets full.
    pub fn delete(&self, name: &str) {
        let (url, database_url) = (format!("{}/api/vhosts/{name}", self.management_url), self.database_url.clone());
        let drop_database = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        // Runs in drop, where nothing can be awaited; a failure only leaves litter on a throw-away server.
        let _ = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let vhost = reqwest::Client::new().delete(url).timeout(SOON).send();
                let database = async { connect(&database_url).await?.batch_execute(&drop_database).await };
                let (vhost, database) = tokio::join!(vhost, database);
                vhost?;
                anyhow::Ok(database?)
            })
        })
        .join();
    }
}

/// A connection that lives as long as its client.
pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
