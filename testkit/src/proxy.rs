//! A TCP proxy that can cut, freeze and heal the line: faults between our processes and a server that stays up.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The behaviour of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Carries everything.
    Open,
    /// Carries nothing and says nothing: a cable pulled out.
    Frozen,
    /// Every connection is broken and new ones are closed at once.
    Cut,
}

/// A listening proxy.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    line: Arc<watch::Sender<Line>>,
}

impl Proxy {
    /// Listens on a free port of the loopback address and carries to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, target).await
    }

    /// Listens on a free port of an address of this machine and carries to `target`.
    pub async fn start_at(address: Ipv4Addr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let (line, state) = watch::channel(Line::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, state.clone()));
            }
        });
        Ok(Self { address, line: Arc::new(line) })
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the line does, for open connections too.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, state: watch::Receiver<Line>) -> std::io::Result<()> {
    if *state.borrow() == Line::Cut {
        return Ok(());
    }
    let mut server = TcpStream::connect(target).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = pump(&mut from_client, &mut to_server, state.clone());
    let back = pump(&mut from_server, &mut to_client, state);
    tokio::select! { ended = there => ended, ended = back => ended }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<Line>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let line = *state.borrow_and_update();
        match line {
            Line::Cut => return Ok(()),
            Line::Frozen => {
                // The sender is dropped with the proxy: nothing can heal the line any more.
                if state.changed().await.is_err() {
                    return Ok(());
                }
            }
            Line::Open => tokio::select! {
                read = from.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    n => to.write_all(&buffer[..n]).await?,
                },
                changed = state.changed() => if changed.is_err() { return Ok(()) },
            },
        }
    }
}

/// The address part of a server URL such as `amqp://guest:guest@127.0.0.1:5672/vhost`.
pub fn address_of(url: &str) -> Result<SocketAddr> {
    let rest = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    Ok(rest.split('/').next().unwrap_or_default().parse()?)
}

/// The same URL at another address.
pub fn through(url: &str, proxy: &Proxy) -> Result<String> {
    Ok(url.replace(&address_of(url)?.to_string(), &proxy.address().to_string()))
}
