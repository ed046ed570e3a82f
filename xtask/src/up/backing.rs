//! Which PostgreSQL and RabbitMQ the platform runs on: private ones, or the person's own.

use std::path::Path;

use anyhow::{Result, bail};
use servers::{
    environment,
    private::{Install, ServersConfig},
    stop::Stop,
};

/// The other way to name a database. It would contradict the URL that the services are given.
const DATABASE_PARTS: [&str; 5] = ["DB_HOST", "DB_PORT", "DB_USERNAME", "DB_PASSWORD", "DB_DATABASE"];

/// The servers to run on.
pub(super) struct Backing {
    pub(super) database_url: String,
    pub(super) amqp_url: String,
    /// The servers to start, unless the person named some.
    pub(super) private: Option<ServersConfig>,
}

impl Backing {
    /// Private servers below `local`, or those that `DATABASE_URL` and `AMQP_URL` name. A shell that has
    /// sourced `.local/env` names our own private servers, which changes nothing.
    pub(super) fn choose(local: &Path, install: Install, stop: &Stop) -> Result<Self> {
        let config = ServersConfig { install, stop: stop.clone(), ..ServersConfig::below(local) };
        let ours = config.addresses()?;
        let foreign = |name: &str, ours: String| environment::get(name).filter(|url| *url != ours);
        let database = foreign("DATABASE_URL", ours.database_url());
        let amqp = foreign("AMQP_URL", ours.amqp_url());
        if environment::first_set(&DATABASE_PARTS).is_some() {
            bail!(
                "DB_HOST and its like are set; unset them, and name servers of your own in DATABASE_URL and AMQP_URL"
            );
        }
        match (database, amqp) {
            (Some(database_url), Some(amqp_url)) => Ok(Self { database_url, amqp_url, private: None }),
            (None, None) => {
                Ok(Self { database_url: ours.database_url(), amqp_url: ours.amqp_url(), private: Some(config) })
            }
            (Some(_), None) => {
                bail!("DATABASE_URL is set but AMQP_URL is not; set both to use servers of your own, or neither")
            }
            (None, Some(_)) => {
                bail!("AMQP_URL is set but DATABASE_URL is not; set both to use servers of your own, or neither")
            }
        }
    }
}
