//! Helpers of the tests of this crate.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain::{Address, Channel, DeliveryId, Lane, MessageId, TenantId, contract::Order};
use runtime::config::Config;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

/// A webhook secret of the right form.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The settings given, and the two that every start needs.
pub fn config<'a>(settings: impl IntoIterator<Item = (&'a str, String)>) -> Config {
    let servers = [("DATABASE_URL", "postgres://u@db/posthaste"), ("AMQP_URL", "amqp://mq/")];
    let servers = servers.map(|(name, value)| (name, value.to_owned()));
    Config::from_env_map(servers.into_iter().chain(settings)).unwrap()
}

/// The first attempt of a delivery of `content`, which is the stored JSON.
pub fn order(channel: Channel, recipient: &str, content: &str) -> Order {
    Order {
        delivery: DeliveryId::generate(),
        message: MessageId::generate(),
        tenant: TenantId(1),
        channel,
        lane: Lane::Normal,
        slot: None,
        recipient: Address::new(recipient),
        user_id: None,
        content: Arc::new(serde_json::from_str(content).unwrap()),
        accepted_at: "2026-11-20T12:00:00Z".parse().unwrap(),
        expires_at: None,
        webhook_secret: Arc::from(SECRET),
        webhook_configuration: None,
        webhook_headers: Arc::from([]),
        request_id: None,
        traceparent: None,
        attempt: 1,
        timeout: Duration::from_secs(60),
    }
}

/// A proxy that counts connections.
pub struct CountingProxy {
    /// Where it listens.
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl CountingProxy {
    /// Starts a proxy before `server`.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut upstream = TcpStream::connect(server).await?;
                    copy_bidirectional(&mut client, &mut upstream).await
                });
            }
        });
        Self { address, connections }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}
