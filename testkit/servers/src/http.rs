//! A minimal HTTP client for our own services: plain HTTP/1.1 on the loopback interface, one request
//! per connection. Everything it talks to was started by this crate, so it needs no more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long one exchange may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The most header fields that an answer may have; httparse needs a number.
const HEADERS_MAX: usize = 64;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The content, with a chunked transfer put together.
    pub body: Vec<u8>,
}

impl Response {
    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// The JSON content of a success; any other status is an error that carries what the server said.
    pub fn success(&self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("the answer was {}: {}", self.status, self.text());
        }
        self.json()
    }
}

/// `GET url`, with a bearer credential if one is given.
pub fn get(url: &str, bearer: Option<&str>) -> Result<Response> {
    exchange("GET", url, bearer, b"")
}

/// `POST url` with a JSON body.
pub fn post(url: &str, bearer: Option<&str>, body: &Value) -> Result<Response> {
    exchange("POST", url, bearer, body.to_string().as_bytes())
}

fn exchange(method: &str, url: &str, bearer: Option<&str>, body: &[u8]) -> Result<Response> {
    let rest = url.strip_prefix("http://").with_context(|| format!("not an http:// URL: {url}"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let authorization = bearer.map(|credential| format!("Authorization: Bearer {credential}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{authorization}\r\n",
        body.len()
    );
    let answer = talk(host, head.as_bytes(), body).with_context(|| format!("{method} {url} failed"))?;
    parse(&answer).with_context(|| format!("{method} {url} was not answered with HTTP"))
}

fn talk(host: &str, head: &[u8], body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(host)?;
    server.set_read_timeout(Some(TIME_LIMIT))?;
    server.set_write_timeout(Some(TIME_LIMIT))?;
    server.write_all(&[head, body].concat())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let (httparse::Status::Complete(end), Some(status)) = (head.parse(answer)?, head.code) else {
        bail!("it broke off early");
    };
    let chunked = head.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("transfer-encoding") && header.value.eq_ignore_ascii_case(b"chunked")
    });
    let rest = answer.get(end..).unwrap_or_default();
    let body = if chunked { dechunk(rest)?.context("it broke off early")?.0 } else { rest.to_vec() };
    Ok(Response { status, body })
}

/// Puts a chunked body together: the content and how many bytes of `input` it took, or nothing when the
/// input ends before the body does. Trailer fields are skipped.
pub(crate) fn dechunk(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let size = httparse::parse_chunk_size(rest).map_err(|_| anyhow::anyhow!("a chunk has no valid size"))?;
        let httparse::Status::Complete((line, size)) = size else {
            return Ok(None);
        };
        let size = usize::try_from(size)?;
        if size == 0 {
            return Ok(end_of_trailer(rest.get(line..).unwrap_or_default()).map(|end| (content, at + line + end)));
        }
        let Some(chunk) = rest.get(line..line.saturating_add(size).saturating_add(2)) else {
            return Ok(None);
        };
        content.extend_from_slice(chunk.strip_suffix(b"\r\n").context("a chunk is longer than it says")?);
        at += line + size + 2;
    }
}

fn end_of_trailer(input: &[u8]) -> Option<usize> {
    if input.starts_with(b"\r\n") {
        return Some(2);
    }
    input.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_answer_is_put_together() -> Result<()> {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n5\r\n\": 1}\r\n0\r\n\r\n";
        assert_eq!(parse(answer)?.json()?, serde_json::json!({"a": 1}));
        Ok(())
    }

    #[test]
    fn an_unfinished_chunked_body_is_not_an_error_yet() -> Result<()> {
        let whole = b"3\r\nabc\r\n0\r\n\r\nGET";
        for end in 0..whole.len() - 3 {
            assert_eq!(dechunk(whole.get(..end).unwrap_or_default())?, None, "after {end} bytes");
        }
        assert_eq!(dechunk(whole)?, Some((b"abc".to_vec(), whole.len() - 3)));
        Ok(())
    }

    #[test]
    fn a_failure_says_what_the_server_said() -> Result<()> {
        let answer = parse(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope")?;
        assert!(answer.success().is_err_and(|error| error.to_string().contains("nope")));
        Ok(())
    }
}
