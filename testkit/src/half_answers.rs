//! A proxy before PostgreSQL that hands out half an answer: the row of a statement, and then the end of the connection.
//!
//! That is what a client sees of a server that dies between a statement and the end of its commit.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, tcp::ReadHalf, tcp::WriteHalf},
};

/// The tag of a row (PostgreSQL, "Message Formats").
const DATA_ROW: u8 = b'D';

/// The listening proxy. Connections through it have to be plain.
pub struct HalfAnswers {
    address: SocketAddr,
    is_armed: Arc<AtomicBool>,
}

impl HalfAnswers {
    /// Listens on a free port and carries everything to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, is_armed) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let armed = Arc::clone(&is_armed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, Arc::clone(&armed)));
            }
        });
        Ok(Self { address, is_armed })
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// While armed, each connection ends after the rows of its next answer, before the server says that the statement is complete.
    pub fn arm(&self, is_armed: bool) {
        self.is_armed.store(is_armed, Ordering::SeqCst);
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, is_armed: Arc<AtomicBool>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        ended = copy(&mut from_client, &mut to_server) => ended.map(drop),
        ended = answers(&mut from_server, &mut to_client, &is_armed) => ended,
    }
}

/// Carries messages one by one.
async fn answers(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, is_armed: &AtomicBool) -> std::io::Result<()> {
    let mut has_row = false;
    loop {
        let (tag, length) = (from.read_u8().await?, from.read_u32().await?);
        let mut body = vec![0; usize::try_from(length).unwrap_or_default().saturating_sub(4)];
        from.read_exact(&mut body).await?;
        if has_row && tag != DATA_ROW && is_armed.load(Ordering::SeqCst) {
            return Ok(());
        }
        has_row = tag == DATA_ROW;
        to.write_u8(tag).await?;
        to.write_u32(length).await?;
        to.write_all(&body).await?;
    }
}
