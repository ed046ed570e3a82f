//! Reads a body: within a size that its route sets, a time, and the bytes that all requests may hold at once.
//!
//! Nothing is read before a handler asks for it, and handlers ask after their credential is checked.

use std::{
    future::{Ready, ready},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    dev::Payload,
    error::PayloadError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
    web::{Bytes, BytesMut, Data},
};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use shared::contract::submission::parse_json;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    app::App,
    problem::{Code, Problem},
};

/// Largest body of most routes, in bytes.
const USUAL: usize = 64 * 1024;
/// Largest submission: 20 MB of attachments in base64, and room for the rest.
pub const SUBMISSION: usize = 30 * 1024 * 1024;
/// Largest template.
pub const TEMPLATE: usize = 1024 * 1024;
/// Largest body of a caller without a credential. So much of each body is also free of the budget, so that a few large ones
/// do not keep small ones out; connections bound it.
pub const ANONYMOUS: usize = 8 * 1024;
/// How long a body may take to arrive. 30 MiB in that time is 1 MiB/s; whoever is slower would hold memory for minutes.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that is refused, so that its sender hears why.
const DISCARD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What is reserved before anything has arrived, whatever the headers promise.
const CAPACITY_MAX: usize = 64 * 1024;

/// The bytes of bodies that all requests of the process may hold at once.
#[derive(Clone)]
pub struct BodyBudget(Arc<Semaphore>);

impl BodyBudget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }
}

/// The bytes of a body that are taken out of the budget; kept with the request, so that they come back when it ends.
#[derive(Default)]
struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    /// Takes what a body of `length` bytes needs beyond what it has; `false`: there is no more.
    fn cover(&mut self, budget: Option<&BodyBudget>, length: usize) -> bool {
        let held = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = length.saturating_sub(ANONYMOUS).saturating_sub(held);
        let (Some(BodyBudget(bytes)), false) = (budget, missing == 0) else { return true };
        let Ok(missing) = u32::try_from(missing) else { return false };
        let Ok(more) = Arc::clone(bytes).try_acquire_many_owned(missing) else { return false };
        match &mut self.0 {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        true
    }
}

/// A body of at most `MAX` bytes whose headers say that it is JSON; not parsed yet.
pub struct JsonBody<const MAX: usize = USUAL>(RawBody);

impl<const MAX: usize> FromRequest for JsonBody<MAX> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(check_headers(request.headers()).map(|()| Self(RawBody::of(request, payload))))
    }
}

impl<const MAX: usize> JsonBody<MAX> {
    /// The bytes of the body.
    pub async fn read(self) -> Result<Bytes, Problem> {
        self.0.read(MAX).await
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
    request: HttpRequest,
    payload: Payload,
    length: Option<usize>,
}

impl FromRequest for RawBody {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(Ok(Self::of(request, payload)))
    }
}

impl RawBody {
    fn of(request: &HttpRequest, payload: &mut Payload) -> Self {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { request: request.clone(), payload: payload.take(), length }
    }

    /// The bytes of the body, if there are at most `max` and the budget has room for them. What is refused is read to its end
    /// and thrown away, within bounds: a client that still writes does not read the answer.
    pub async fn read(mut self, max: usize) -> Result<Bytes, Problem> {
        let reading = async {
            let fault = match self.collect(max).await {
                Ok(body) => return Ok(body),
                Err(fault) => fault,
            };
            self.discard().await;
            Err(fault.problem(max))
        };
        let late = |_| Problem::new(Code::RequestTimeout, "Send the whole body within 30 seconds.");
        tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(late)?
    }

    /// Refuses a request. Its body is discarded as it arrives.
    pub async fn refuse<T>(mut self, problem: Problem) -> Result<T, Problem> {
        // A client that is still writing by then does not read the answer.
        let _ = tokio::time::timeout(BODY_TIMEOUT, self.discard()).await;
        Err(problem)
    }

    async fn collect(&mut self, max: usize) -> Result<Bytes, Fault> {
        if self.length.is_some_and(|length| length > max) {
            return Err(Fault::TooLarge);
        }
        let app = self.request.app_data::<Data<App>>().cloned();
        let (budget, mut held) = (app.as_ref().map(|app| &app.bodies), Held::default());
        let body = collect(&mut self.payload, self.length, max, |length| held.cover(budget, length)).await?;
        if held.0.is_some() {
            self.request.extensions_mut().insert(held);
        }
        Ok(body)
    }

    async fn discard(&mut self) {
        let mut room = DISCARD_BYTES_MAX;
        while let Some(Ok(chunk)) = self.payload.next().await {
            let Some(left) = room.checked_sub(chunk.len()) else { break };
            room = left;
        }
    }
}

/// Why a body could not be had.
enum Fault {
    TooLarge,
    NoRoom,
    Broken,
}

impl Fault {
    fn problem(self, max: usize) -> Problem {
        match self {
            Self::TooLarge => too_large(max),
            Self::NoRoom => Problem::overloaded(),
            Self::Broken => Problem::new(Code::MalformedBody, "Send the body in full, as long as Content-Length says."),
        }
    }
}

/// Refuses what is no JSON.
fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if !text(CONTENT_TYPE).is_none_or(is_json) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send JSON, with Content-Type: application/json."));
    }
    if text(CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send the body without a Content-Encoding."));
    }
    Ok(())
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

fn too_large(max: usize) -> Problem {
    let detail = match max {
        SUBMISSION => "Send at most 30 MiB; split a bulk, or link to large files instead of attaching them.".to_owned(),
        max => format!("Send at most {} KiB.", max / 1024),
    };
    Problem::new(Code::PayloadTooLarge, detail)
}

/// A body in one piece, as almost all are, is not copied. `has_room` is asked before a length is held.
async fn collect(
    mut payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    length: Option<usize>,
    max: usize,
    mut has_room: impl FnMut(usize) -> bool,
) -> Result<Bytes, Fault> {
    let Some(first) = payload.next().await else { return Ok(Bytes::new()) };
    let first = first.map_err(broken)?;
    if length == Some(first.len()) && first.len() <= max && has_room(first.len()) {
        return Ok(first);
    }
    let mut body = BytesMut::with_capacity(length.unwrap_or_default().min(CAPACITY_MAX));
    let mut next = Some(Ok(first));
    while let Some(chunk) = next {
        let chunk = chunk.map_err(broken)?;
        if body.len() + chunk.len() > max {
            return Err(Fault::TooLarge);
        }
        if !has_room(body.len() + chunk.len()) {
            return Err(Fault::NoRoom);
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
    fn bodies_beyond_the_budget_wait_outside_and_small_ones_come_in() {
        let budget = BodyBudget::new(100);
        let (mut one, mut other, mut small) = (Held::default(), Held::default(), Held::default());
        assert!(one.cover(Some(&budget), ANONYMOUS + 40) && one.cover(Some(&budget), ANONYMOUS + 60));
        assert!(other.cover(Some(&budget), ANONYMOUS + 40), "the first has sixty of it");
        assert!(!other.cover(Some(&budget), ANONYMOUS + 41));
        assert!(small.cover(Some(&budget), ANONYMOUS));
        drop(one);
        assert!(other.cover(Some(&budget), ANONYMOUS + 100));
    }

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
