//! One connection that speaks HTTP/2 from its first byte: requests come side by side, with the same replies.

use std::{
    future::poll_fn,
    io::Result,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use tokio::{net::TcpStream, sync::Notify};

use super::{Reply, Request, Shared, path_of};

/// The first bytes of a client (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Whether the client begins as HTTP/2 does; nothing is taken from the connection.
pub(super) async fn is_spoken(stream: &TcpStream) -> Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        let seen = seen.get(..count).unwrap_or_default();
        if count == 0 || count == PREFACE.len() || !PREFACE.starts_with(seen) {
            return Ok(seen == PREFACE);
        }
        // The rest of the line is on its way; what was looked at does not wait to be looked at again.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Serves one client until the connection ends, or a reply ends it.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let end = Arc::new(Notify::new());
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, answer))) => {
                    let exchange = Exchange { answer, peer, shared: Arc::clone(&shared), end: Arc::clone(&end) };
                    tokio::spawn(exchange.run(request));
                }
                _ => return,
            },
            () = end.notified() => return,
        }
    }
}

/// One request and its reply.
struct Exchange {
    answer: SendResponse<Bytes>,
    peer: SocketAddr,
    shared: Arc<Shared>,
    end: Arc<Notify>,
}

impl Exchange {
    /// An exchange that the client has given up needs no answer.
    async fn run(self, request: http::Request<RecvStream>) {
        let _ = self.exchange(request).await;
    }

    async fn exchange(mut self, request: http::Request<RecvStream>) -> std::result::Result<(), h2::Error> {
        let (head, mut content) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let reply = self.shared.routes().next(path_of(&target));
        if matches!(reply, Reply::CloseBeforeReading) {
            self.shared.cut_off.fetch_add(1, Ordering::Relaxed);
            self.end.notify_one();
            return Ok(());
        }
        let mut body = Vec::new();
        while let Some(piece) = content.data().await {
            let piece = piece?;
            content.flow_control().release_capacity(piece.len())?;
            body.extend_from_slice(&piece);
        }
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let request = Request {
            method: head.method.to_string(),
            target,
            headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body,
            peer: self.peer,
            received_at: Instant::now(),
            received_at_clock: SystemTime::now(),
        };
        let mut reply = reply.decided(&request);
        self.shared.requests.add(request);
        while let Reply::Delay(delay, later) = reply {
            tokio::time::sleep(delay).await;
            reply = *later;
        }
        match reply {
            Reply::Status(code, headers, body) => self.answer(code, &headers, body, true).await,
            Reply::Stall(code, headers, mut body) => {
                body.truncate(body.len() / 2);
                self.answer(code, &headers, body, false).await
            }
            Reply::Hang => self.wait_for_the_client_to_leave().await,
            Reply::Garbage => {
                self.answer.send_reset(Reason::PROTOCOL_ERROR);
                Ok(())
            }
            // Sequences and handlers are resolved by now, so this is `CloseAfterBody`.
            _ => {
                self.end.notify_one();
                Ok(())
            }
        }
    }

    async fn answer(
        mut self,
        code: u16,
        headers: &[(String, String)],
        body: Vec<u8>,
        whole: bool,
    ) -> std::result::Result<(), h2::Error> {
        let mut head = http::Response::builder().status(code);
        for (name, value) in headers {
            head = head.header(name, value);
        }
        // A reply that is not valid HTTP is a mistake of the test, which sees the stream end.
        let Ok(head) = head.body(()) else { return Ok(()) };
        let mut stream = self.answer.send_response(head, whole && body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body.into(), whole)?;
        }
        if whole { Ok(()) } else { self.wait_for_the_client_to_leave().await }
    }

    async fn wait_for_the_client_to_leave(mut self) -> std::result::Result<(), h2::Error> {
        poll_fn(|context| self.answer.poll_reset(context)).await.map(|_| ())
    }
}
