//! Reads a JSON body: by its headers, within a size and a time.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use actix_web::{
    FromRequest, HttpRequest,
    dev::Payload,
    error::PayloadError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
    web::{Bytes, BytesMut},
};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use shared::contract::submission::parse_json;

use crate::problem::{Code, Problem};

/// Largest body, in bytes: 20 MB of attachments in base64 and room for the rest.
pub const BODY_BYTES_MAX: usize = 30 * 1024 * 1024;
/// How long a body may take to arrive. 30 MiB in that time is 1 MiB/s; whoever is slower would hold memory for minutes.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that is refused, so that its sender hears why.
const DISCARD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What is reserved before anything has arrived, whatever the headers promise.
const CAPACITY_MAX: usize = 64 * 1024;

/// A body whose headers say that it is JSON; not parsed yet. Nothing is read before [`JsonBody::read`], so whoever has no
/// credential cannot make us hold a body.
pub struct JsonBody {
    payload: Payload,
    length: Option<usize>,
}

impl FromRequest for JsonBody {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let checked = check_headers(request.headers());
        ready(checked.map(|length| Self { payload: payload.take(), length }))
    }
}

impl JsonBody {
    /// The bytes of the body.
    pub async fn read(self) -> Result<Bytes, Problem> {
        let late = |_| Problem::new(Code::RequestTimeout, "Send the whole body within 30 seconds.");
        let collecting = collect(self.payload, self.length, BODY_BYTES_MAX);
        tokio::time::timeout(BODY_TIMEOUT, collecting).await.map_err(late)?.map_err(|fault| fault.problem(too_large))
    }

    /// The body as a value; a fault in it is named.
    pub async fn parse<T: DeserializeOwned>(self) -> Result<T, Problem> {
        parse_json(&self.read().await?).map_err(Problem::malformed)
    }

    /// As [`JsonBody::parse`], where no body means the default.
    pub async fn parse_or_default<T: DeserializeOwned + Default>(self) -> Result<T, Problem> {
        let body = self.read().await?;
        if body.is_empty() { Ok(T::default()) } else { parse_json(&body).map_err(Problem::malformed) }
    }
}

/// A body of which nothing is known yet.
pub struct RawBody {
    payload: Payload,
    length: Option<usize>,
}

impl FromRequest for RawBody {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        ready(Ok(Self { payload: payload.take(), length }))
    }
}

impl RawBody {
    /// The bytes of the body, if there are at most `max`. What is longer is read to its end and thrown away, within bounds:
    /// whoever still writes does not read the answer.
    pub async fn read(self, max: usize) -> Result<Bytes, Problem> {
        let late = |_| Problem::new(Code::RequestTimeout, "Send the whole body within 30 seconds.");
        let mut payload = self.payload;
        let length = self.length;
        let reading = async {
            if length.is_none_or(|length| length <= max) {
                match collect(&mut payload, length, max).await {
                    Err(Fault::TooLarge) => {}
                    other => return other.map_err(|fault| fault.problem(too_large)),
                }
            }
            let mut room = DISCARD_BYTES_MAX;
            while let Some(Ok(chunk)) = payload.next().await {
                let Some(left) = room.checked_sub(chunk.len()) else { break };
                room = left;
            }
            Err(Problem::new(Code::PayloadTooLarge, format!("Send at most {} KiB.", max / 1024)))
        };
        tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(late)?
    }
}

/// Why a body could not be had.
enum Fault {
    TooLarge,
    Broken,
}

impl Fault {
    fn problem(self, too_large: impl FnOnce() -> Problem) -> Problem {
        match self {
            Self::TooLarge => too_large(),
            Self::Broken => Problem::new(Code::MalformedBody, "Send the body in full, as long as Content-Length says."),
        }
    }
}

/// Refuses what is no JSON, or too large by its own word; returns the promised length.
fn check_headers(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if !text(CONTENT_TYPE).is_none_or(is_json) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send JSON, with Content-Type: application/json."));
    }
    if text(CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send the body without a Content-Encoding."));
    }
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) { Err(too_large()) } else { Ok(length) }
}

/// Whether a media type is JSON in UTF-8.
pub fn is_json(media_type: &str) -> bool {
    let mut parts = media_type.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let is_json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    is_json
        && parts
            .filter_map(|part| part.strip_prefix("charset=").map(str::to_owned))
            .all(|charset| charset.trim_matches('"') == "utf-8")
}

fn too_large() -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        "Send at most 30 MiB; split a bulk, or link to large files instead of attaching them.",
    )
}

/// A body in one piece, as almost all are, is not copied.
async fn collect(
    mut payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    length: Option<usize>,
    max: usize,
) -> Result<Bytes, Fault> {
    let Some(first) = payload.next().await else { return Ok(Bytes::new()) };
    let first = first.map_err(broken)?;
    if length == Some(first.len()) && first.len() <= max {
        return Ok(first);
    }
    let mut body = BytesMut::with_capacity(length.unwrap_or_default().min(CAPACITY_MAX));
    let mut next = Some(Ok(first));
    while let Some(chunk) = next {
        let chunk = chunk.map_err(broken)?;
        if body.len() + chunk.len() > max {
            return Err(Fault::TooLarge);
        }
        body.extend_from_slice(&chunk);
        next = payload.next().await;
    }
    Ok(body.freeze())
}

fn broken(_: PayloadError) -> Fault {
    Fault::Broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_in_utf_8_is_json() {
        for good in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON;charset=\"UTF-8\"",
            "application/cloudevents+json",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["text/json", "application/x-www-form-urlencoded", "application/json; charset=latin1", "", "json"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
