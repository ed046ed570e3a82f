//! Reads request bodies, bounded by a size per route, a time, and a budget for the bytes that all requests hold at once.
//!
//! Nothing is read before a handler asks for it, and handlers ask after the credential is checked.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    dev::Payload,
    error::PayloadError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
    web::{Bytes, BytesMut, Data},
};
use domain::{TenantId, contract::submission::parse_json, token::Role};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use crate::{
    auth::Caller,
    client::{self, Network},
    problem::{Code, Problem},
};

/// Default limit of a body, in bytes.
const USUAL: usize = 64 * 1024;
/// Largest submission: 20 MB of attachments in base64, plus the rest.
pub const SUBMISSION: usize = 30 * 1024 * 1024;
/// Largest template.
pub const TEMPLATE: usize = 1024 * 1024;
/// Largest body of a caller without a credential. As many bytes of each body are exempt from the budget, so that a few
/// large bodies do not keep small ones out; the number of connections bounds them.
pub const ANONYMOUS: usize = 8 * 1024;
/// Largest webhook of a provider: SendGrid sends up to 768 KiB at once. Its signature covers the body, so the body is held
/// before the sender is verified.
pub const WEBHOOK: usize = 1024 * 1024;
/// A tenant may hold the budget divided by this, and at least one submission.
const TENANT_PART: usize = 4;
/// An address may hold the budget divided by this, for callers without a credential and for users, and at least one
/// webhook. The users of a tenant together may hold as much.
const ADDRESS_PART: usize = 16;
/// All callers without a credential together may hold the budget divided by this, so that many addresses leave bytes for
/// tenants.
const STRANGERS_PART: usize = 2;
/// How long a body may take to arrive: 30 MiB in that time is 1 MiB/s. A slower sender would hold memory for minutes.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refused body is still read, so that its sender gets to read the answer.
const DISCARD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Largest buffer reserved before any byte has arrived, whatever the headers announce.
const CAPACITY_MAX: usize = 64 * 1024;

/// Budget for the bytes of bodies that all requests of the process hold at once. No holder may take all of it.
#[derive(Clone)]
pub struct BodyBudget {
    max: usize,
    taken: Arc<Mutex<Taken>>,
}

/// The bytes in use, in total and per holder.
#[derive(Default)]
struct Taken {
    all: usize,
    by_holder: HashMap<Holder, usize>,
}

/// A party whose use of the budget is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Address(Option<Network>),
    /// All callers without a credential.
    Strangers,
    /// The producers, admins and operators of a tenant.
    Tenant(TenantId),
    /// The users of a tenant. Their bytes do not count against its producers.
    UsersOf(TenantId),
}

impl Holder {
    /// The holders that a request counts against. A producer sends large bodies from one address, so its address does not
    /// count.
    fn of(request: &HttpRequest) -> Vec<Self> {
        let extensions = request.extensions();
        let identity = extensions.get::<Caller>().and_then(Caller::identity);
        let address = || Self::Address(client::address(request).map(Network::of));
        match identity {
            None => vec![Self::Strangers, address()],
            Some(identity) if identity.role == Role::User => vec![Self::UsersOf(identity.tenant), address()],
            Some(identity) => vec![Self::Tenant(identity.tenant)],
        }
    }

    /// The holder's share of a budget of `max` bytes; at least its largest body.
    fn share(self, max: usize) -> usize {
        match self {
            Self::Address(_) | Self::UsersOf(_) => WEBHOOK.max(max / ADDRESS_PART),
            Self::Strangers => WEBHOOK.max(max / STRANGERS_PART),
            Self::Tenant(_) => SUBMISSION.max(max / TENANT_PART),
        }
    }
}

impl BodyBudget {
    /// A budget of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        Self { max: bytes, taken: Arc::default() }
    }

    /// Takes bytes for holders. Returns `false` if the budget or the share of a holder is exhausted.
    fn take(&self, holders: &[Holder], bytes: usize) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |holder: &Holder| {
            let held = taken.by_holder.get(holder).copied().unwrap_or_default();
            held + bytes <= holder.share(self.max)
        };
        if taken.all + bytes > self.max || !holders.iter().all(fits) {
            return false;
        }
        taken.all += bytes;
        for holder in holders {
            *taken.by_holder.entry(*holder).or_default() += bytes;
        }
        true
    }

    /// Returns what [`BodyBudget::take`] took.
    fn give_back(&self, holders: &[Holder], bytes: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(bytes);
        for holder in holders {
            let Entry::Occupied(mut held) = taken.by_holder.entry(*holder) else { continue };
            *held.get_mut() = held.get().saturating_sub(bytes);
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// The bytes that a body has taken from the budget. Stored with the request and returned when it ends.
struct Held {
    budget: BodyBudget,
    holders: Vec<Holder>,
    bytes: usize,
}

impl Held {
    fn new(budget: &BodyBudget, holders: Vec<Holder>) -> Self {
        Self { budget: budget.clone(), holders, bytes: 0 }
    }

    /// Takes what a body of `length` bytes needs beyond what it already holds. Returns `false` if the budget is exhausted.
    fn cover(&mut self, length: usize) -> bool {
        let missing = length.saturating_sub(ANONYMOUS).saturating_sub(self.bytes);
        let is_covered = missing == 0 || self.budget.take(&self.holders, missing);
        if is_covered {
            self.bytes += missing;
        }
        is_covered
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(&self.holders, self.bytes);
    }
}

/// A body of at most `MAX` bytes whose headers declare JSON; not parsed yet.
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

    /// Parses the body; an error names the field.
    pub async fn parse<T: DeserializeOwned>(self) -> Result<T, Problem> {
        parse_json(&self.read().await?).map_err(Problem::malformed)
    }

    /// As [`JsonBody::parse`]; an empty body gives the default.
    pub async fn parse_or_default<T: DeserializeOwned + Default>(self) -> Result<T, Problem> {
        let body = self.read().await?;
        if body.is_empty() { Ok(T::default()) } else { parse_json(&body).map_err(Problem::malformed) }
    }
}

/// A body that has not been checked or read.
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

    /// Reads the body, if it has at most `max` bytes and the budget allows it. A refused body is read to its end and
    /// discarded, within bounds: a client that is still writing does not read the answer.
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

    /// Refuses a request and discards its body as it arrives.
    pub async fn refuse<T>(mut self, problem: Problem) -> Result<T, Problem> {
        // A client that still writes after this time does not read the answer.
        let _ = tokio::time::timeout(BODY_TIMEOUT, self.discard()).await;
        Err(problem)
    }

    async fn collect(&mut self, max: usize) -> Result<Bytes, Fault> {
        if self.length.is_some_and(|length| length > max) {
            return Err(Fault::TooLarge);
        }
        let request = &self.request;
        let budget = request.app_data::<Data<BodyBudget>>().map(|budget| BodyBudget::clone(budget));
        let mut held = None;
        let has_room = |length| match &budget {
            Some(budget) if length > ANONYMOUS => {
                held.get_or_insert_with(|| Held::new(budget, Holder::of(request))).cover(length)
            }
            _ => true,
        };
        let body = collect(&mut self.payload, self.length, max, has_room).await?;
        if let Some(held) = held {
            request.extensions_mut().insert(held);
        }
        Ok(body)
    }

    async fn discard(&mut self) {
        let mut remaining = DISCARD_BYTES_MAX;
        while let Some(Ok(chunk)) = self.payload.next().await {
            let Some(left) = remaining.checked_sub(chunk.len()) else { break };
            remaining = left;
        }
    }
}

/// Why a body could not be read.
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

/// Refuses a body that is not declared as JSON.
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

/// Collects the chunks of a body. A body in one chunk, as almost all are, is not copied. `has_room` is called before a
/// length is held.
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

    fn held(budget: &BodyBudget, holders: &[Holder]) -> Held {
        Held::new(budget, holders.to_vec())
    }

    #[test]
    fn bodies_beyond_the_budget_wait_outside_and_small_ones_come_in() {
        let budget = BodyBudget::new(100);
        let (mut one, mut other, mut small) = (held(&budget, &[]), held(&budget, &[]), held(&budget, &[]));
        assert!(one.cover(ANONYMOUS + 40) && one.cover(ANONYMOUS + 60));
        assert!(other.cover(ANONYMOUS + 40), "the first has sixty of it");
        assert!(!other.cover(ANONYMOUS + 41));
        assert!(small.cover(ANONYMOUS));
        drop(one);
        assert!(other.cover(ANONYMOUS + 100));
    }

    #[test]
    fn no_tenant_and_no_address_holds_the_whole_budget() {
        let budget = BodyBudget::new(160 * WEBHOOK);
        let tenant = |id| Holder::Tenant(TenantId(id));
        let address = |text: &str| Holder::Address(Some(Network::of(text.parse().unwrap())));
        let fills = |held: &mut Held, bytes| held.cover(ANONYMOUS + bytes) && !held.cover(ANONYMOUS + bytes + 1);

        let (mut one, mut same) = (held(&budget, &[tenant(1)]), held(&budget, &[tenant(1)]));
        assert!(fills(&mut one, 40 * WEBHOOK), "a quarter of it");
        assert!(!same.cover(ANONYMOUS + 1) && same.cover(ANONYMOUS));
        let mut other = held(&budget, &[tenant(2)]);
        assert!(fills(&mut other, 40 * WEBHOOK), "another tenant has its own quarter");

        let (mut near, mut beside) =
            (held(&budget, &[address("2001:db8::1")]), held(&budget, &[address("2001:db8::2")]));
        assert!(fills(&mut near, 10 * WEBHOOK), "a sixteenth of it");
        assert!(!beside.cover(ANONYMOUS + 1), "an address in the same network");
        assert!(held(&budget, &[address("192.0.2.1")]).cover(ANONYMOUS + WEBHOOK));
        let users = |at| [address(at), Holder::UsersOf(TenantId(1))];
        let (mut user, mut second) = (held(&budget, &users("192.0.2.2")), held(&budget, &users("192.0.2.3")));
        assert!(fills(&mut user, 10 * WEBHOOK), "users have a sixteenth beside their tenant");
        assert!(!second.cover(ANONYMOUS + 1), "the users of a tenant share it");

        drop((one, near));
        assert!(fills(&mut same, 40 * WEBHOOK) && beside.cover(ANONYMOUS + 1), "what is given back can be taken again");
        drop((same, other, beside, user, second));
        let taken = budget.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.by_holder.is_empty(), "nothing is left over");
    }

    #[test]
    fn callers_without_a_credential_leave_room_for_tenants_from_however_many_addresses() {
        let budget = BodyBudget::new(160 * WEBHOOK);
        let mut strangers: Vec<Held> = (1..=16)
            .map(|n| held(&budget, &[Holder::Strangers, Holder::Address(Some(Network::of([192, 0, 2, n].into())))]))
            .collect();
        let full = strangers.iter_mut().map(|stranger| stranger.cover(ANONYMOUS + 10 * WEBHOOK));
        assert_eq!(full.filter(|is_full| *is_full).count(), 8, "they have half of it");
        assert!(held(&budget, &[Holder::Tenant(TenantId(1))]).cover(SUBMISSION));
    }

    #[test]
    fn the_largest_body_fits_into_a_share_of_a_small_budget() {
        let budget = BodyBudget::new(SUBMISSION);
        assert!(held(&budget, &[Holder::Tenant(TenantId(1))]).cover(SUBMISSION));
        assert!(held(&budget, &[Holder::Strangers, Holder::Address(None)]).cover(WEBHOOK));
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
