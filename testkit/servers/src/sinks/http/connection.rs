//! One connection: requests in, replies out, until either side has had enough.

use std::{
    io::{Error, ErrorKind, Result},
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Reply, Request, Shared, http2, path_of};
use crate::http::dechunk;

/// The largest head that is read; a client that sends more is broken.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The largest body that is read: above the 30 MiB that the platform takes in.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most header fields of a request.
const HEADERS_MAX: usize = 128;

/// Serves one client until the connection ends.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    match http2::is_spoken(&stream).await {
        Ok(true) => return http2::serve(stream, shared).await,
        Ok(false) => {}
        Err(_) => return,
    }
    let mut connection = Connection { stream, input: Vec::new(), shared };
    while let Ok(Next::KeepOpen) = connection.exchange().await {}
}

/// The state of the connection after a request.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Next {
    KeepOpen,
    Close,
}

struct Connection {
    stream: TcpStream,
    /// Read, but not yet understood: the rest of a head or the beginning of the next request.
    input: Vec<u8>,
    shared: Arc<Shared>,
}

impl Connection {
    async fn exchange(&mut self) -> Result<Next> {
        let Some(head) = self.read_head().await? else {
            return Ok(Next::Close);
        };
        let reply = self.shared.routes().next(path_of(&head.target));
        if matches!(reply, Reply::CloseBeforeReading) {
            self.shared.cut_off.fetch_add(1, Ordering::Relaxed);
            return self.reset();
        }
        let keep = head.next;
        let request = self.read_body(head).await?;
        let reply = reply.decided(&request);
        self.shared.requests.add(request);
        match self.perform(reply).await? {
            Next::KeepOpen => Ok(keep),
            Next::Close => Ok(Next::Close),
        }
    }

    async fn perform(&mut self, mut reply: Reply) -> Result<Next> {
        while let Reply::Delay(delay, later) = reply {
            tokio::time::sleep(delay).await;
            reply = *later;
        }
        match reply {
            Reply::Status(code, headers, body) => self.answer(code, &headers, &body, body.len()).await,
            Reply::Stall(code, headers, body) => {
                // One byte more is promised than a half can be, so that an empty body stalls as well.
                self.answer(code, &headers, body.get(..body.len() / 2).unwrap_or_default(), body.len().max(1)).await?;
                self.wait_for_the_client_to_leave().await
            }
            Reply::Hang => self.wait_for_the_client_to_leave().await,
            Reply::CloseBeforeReading => self.reset(),
            Reply::Garbage => {
                self.stream.write_all(b"\x00\x15\xffthis is not HTTP\r\n\r\n").await?;
                Ok(Next::Close)
            }
            // Sequences and handlers are resolved by now, so this is `CloseAfterBody`.
            _ => Ok(Next::Close),
        }
    }

    async fn answer(&mut self, code: u16, headers: &[(String, String)], body: &[u8], promised: usize) -> Result<Next> {
        let mut answer = format!("HTTP/1.1 {code} {}\r\n", reason(code)).into_bytes();
        for (name, value) in headers {
            answer.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        // These two never have content, and saying so is not allowed either.
        if code != 204 && code != 304 {
            answer.extend(format!("Content-Length: {promised}\r\n\r\n").into_bytes());
            answer.extend(body);
        } else {
            answer.extend(b"\r\n");
        }
        self.stream.write_all(&answer).await?;
        Ok(Next::KeepOpen)
    }

    /// Ends the connection with a reset instead of a polite end.
    fn reset(&self) -> Result<Next> {
        self.stream.set_zero_linger()?;
        Ok(Next::Close)
    }

    async fn wait_for_the_client_to_leave(&mut self) -> Result<Next> {
        while self.read_more().await? > 0 {
            self.input.clear();
        }
        Ok(Next::Close)
    }

    async fn read_more(&mut self) -> Result<usize> {
        self.stream.read_buf(&mut self.input).await
    }

    /// The next head, or nothing when the client has left.
    async fn read_head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some((head, size)) = Head::parse(&self.input)? {
                self.input.drain(..size);
                return Ok(Some(head));
            }
            if self.input.len() > HEAD_BYTES_MAX {
                return Err(invalid("the head is too long"));
            }
            if self.read_more().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn read_body(&mut self, head: Head) -> Result<Request> {
        if head.expects_continue {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = match head.length {
            Length::Known(length) => self.read_known(length).await?,
            Length::Chunked => self.read_chunked().await?,
        };
        Ok(Request {
            method: head.method,
            target: head.target,
            headers: head.headers,
            body,
            peer: self.stream.peer_addr()?,
            received_at: Instant::now(),
            received_at_clock: SystemTime::now(),
        })
    }

    async fn read_known(&mut self, length: usize) -> Result<Vec<u8>> {
        if length > BODY_BYTES_MAX {
            return Err(invalid("the body is too long"));
        }
        while self.input.len() < length {
            self.read_body_part().await?;
        }
        Ok(self.input.drain(..length).collect())
    }

    async fn read_chunked(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some((body, size)) = dechunk(&self.input).map_err(invalid)? {
                self.input.drain(..size);
                return Ok(body);
            }
            if self.input.len() > BODY_BYTES_MAX {
                return Err(invalid("the body is too long"));
            }
            self.read_body_part().await?;
        }
    }

    async fn read_body_part(&mut self) -> Result<()> {
        match self.read_more().await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    length: Length,
    expects_continue: bool,
    next: Next,
}

/// How the end of a body is known.
enum Length {
    Known(usize),
    Chunked,
}

impl Head {
    /// A head at the beginning of `input` and its size, once all of it is there.
    fn parse(input: &[u8]) -> Result<Option<(Self, usize)>> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(size) = request.parse(input).map_err(invalid)? else {
            return Ok(None);
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<(String, String)> =
            request.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
        let says = |name: &str, word: &str| {
            headers
                .iter()
                .any(|(found, value)| found.eq_ignore_ascii_case(name) && value.to_ascii_lowercase().contains(word))
        };
        let closes = says("connection", "close") || (request.version == Some(0) && !says("connection", "keep-alive"));
        let head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            length: if says("transfer-encoding", "chunked") { Length::Chunked } else { known_length(&headers)? },
            expects_continue: says("expect", "100-continue"),
            next: if closes { Next::Close } else { Next::KeepOpen },
            headers,
        };
        Ok(Some((head, size)))
    }
}

fn known_length(headers: &[(String, String)]) -> Result<Length> {
    match headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        Some((_, length)) => length.trim().parse().map(Length::Known).map_err(invalid),
        None => Ok(Length::Known(0)),
    }
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}

/// Clients ignore the phrase, people reading a capture do not.
fn reason(code: u16) -> &'static str {
    match code {
        200..300 => "OK",
        300..400 => "Elsewhere",
        429 => "Too Many Requests",
        400..500 => "Refused",
        _ => "Failed",
    }
}
