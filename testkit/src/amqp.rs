//! Another backend: publishes to the ingress exchange with plain lapin, as any AMQP library would.

use anyhow::{Context, Result};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};

/// A publisher with confirms.
pub struct Backend {
    connection: Connection,
    channel: Channel,
}

impl Backend {
    /// Connects to a virtual host.
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes to `posthaste.ingress` and waits for the confirm.
    pub async fn publish(&self, key: &str, properties: BasicProperties, body: &[u8]) -> Result<()> {
        self.publish_to("posthaste.ingress", key, properties, body).await
    }

    /// Publishes anywhere and waits for the confirm.
    pub async fn publish_to(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (ShortString::try_new(exchange)?, ShortString::try_new(key)?);
        #[expect(clippy::disallowed_methods, reason = "plays a foreign publisher, which does not have ours")]
        let confirm = self.channel.basic_publish(exchange, key, options, body, properties).await?.await?;
        anyhow::ensure!(matches!(confirm, Confirmation::Ack(None)), "the broker did not take it: {confirm:?}");
        Ok(())
    }

    /// The properties a good citizen sets.
    pub fn properties(message_id: &str) -> Result<BasicProperties> {
        let id = ShortString::try_new(message_id).context("a message id has at most 255 bytes")?;
        Ok(BasicProperties::default()
            .with_message_id(id)
            .with_content_type("application/json".into())
            .with_delivery_mode(2))
    }

    /// A channel for anything else.
    pub async fn channel(&self) -> Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }
}
