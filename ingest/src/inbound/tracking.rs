//! The tracking pixel and the links of tracked mails.
//!
//! A reader never waits for the database, and never notices that it is down: the link itself contains its target, and the
//! event is written after the answer.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method,
        header::{CACHE_CONTROL, LOCATION, REFERRER_POLICY},
    },
    web::Data,
};
use connectors::provider_events::tracking::{Key, Link};
use deliveries::provider_events::ProviderEvent;
use domain::clock;
use runtime::metric;
use tokio::{runtime::Handle, sync::Semaphore, time::sleep};
use web::{Web, client, problem::Problem};

use crate::inbound::provider_events::EventWriter;

/// A transparent image of one pixel.
const PIXEL: &[u8] = &[
    0x47, 0x49, 0x46, 0x38, 0x39, 0x61, 1, 0, 1, 0, 0x80, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0x21, 0xf9, 4, 1, 0, 0, 0,
    0, 0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0, 0x3b,
];
/// Most events that wait to be written while the database is away.
const WAITING_MAX: usize = 10_000;
/// The pauses between tries to write an event, in seconds. If the database is away for longer, the event is lost.
const PAUSES_SECONDS: [u64; 6] = [1, 5, 15, 30, 60, 120];

/// Verifies our links and records opens and clicks. One per process.
pub struct Tracker {
    key: OnceLock<Key>,
    writer: EventWriter,
    waiting: Arc<Semaphore>,
    runtime: Handle,
    /// `RETENTION_DAYS`.
    kept_days: Option<i32>,
}

impl Tracker {
    /// Records through `writer`, on the caller's runtime. Links of mails older than `kept_days` give a 404.
    pub fn new(writer: EventWriter, kept_days: Option<i32>) -> Self {
        let waiting = Arc::new(Semaphore::new(WAITING_MAX));
        Self { key: OnceLock::new(), writer, waiting, runtime: Handle::current(), kept_days }
    }

    /// Sets the key that signs the links.
    pub fn set_key(&self, key: Key) {
        // Every process reads the same key, so a second call changes nothing.
        let _ = self.key.set(key);
    }

    async fn key(&self, web: &Web) -> Result<&Key, Problem> {
        if self.key.get().is_none() {
            web.migrations.require_current()?;
            self.set_key(web.queries.run(async move |store| Key::load(&store).await).await?);
        }
        self.key.get().ok_or_else(Problem::unavailable)
    }

    fn record(&self, event: ProviderEvent) {
        let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else { return lost() };
        let writer = self.writer.clone();
        self.runtime.spawn(async move {
            let _permit = permit;
            for pause in PAUSES_SECONDS {
                if writer.keep(event.clone()).await.is_ok() {
                    return;
                }
                sleep(Duration::from_secs(pause)).await;
            }
            lost();
        });
    }
}

fn lost() {
    metrics::counter!(metric::TRACKING_LOST).increment(1);
}

/// The pixel of a tracked mail: fetching it records the mail as `opened`, once.
///
/// A HEAD request, as mail scanners make it, records nothing.
#[utoipa::path(method(get, head), path = "/t/o/{token}", tag = "provider events", security(()),
    params(("token" = String, Path, description = "As it stands in the mail")),
    responses((status = 200, description = "A transparent GIF", content_type = "image/gif", body = [u8])))]
pub async fn open(web: Data<Web>, tracker: Data<Tracker>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    follow(&web, &tracker, &request, |link| link.target.is_none()).await?;
    Ok(HttpResponse::Ok().content_type("image/gif").insert_header((CACHE_CONTROL, "no-store")).body(PIXEL))
}

/// A link of a tracked mail: following it records the mail as `clicked`, once, and leads to where the mail says.
///
/// A HEAD request, as mail scanners make it, records nothing. A link that we did not write gives a 404, and so does one whose
/// mail is past its retention.
#[utoipa::path(method(get, head), path = "/t/c/{token}", tag = "provider events", security(()),
    params(("token" = String, Path, description = "As it stands in the mail")),
    responses((status = 302, description = "Where the link leads")))]
pub async fn click(web: Data<Web>, tracker: Data<Tracker>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let link = follow(&web, &tracker, &request, |link| link.target.is_some()).await?;
    Ok(HttpResponse::Found()
        .insert_header((LOCATION, link.target.unwrap_or_default()))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .finish())
}

async fn follow(
    web: &Web,
    tracker: &Tracker,
    request: &HttpRequest,
    is_meant: fn(&Link) -> bool,
) -> Result<Link, Problem> {
    let token = request.match_info().get("token").unwrap_or_default();
    let is_over = |link: &Link| tracker.kept_days.is_some_and(|days| link.is_over(clock::now(), days));
    let link = tracker.key(web).await?.read(token).filter(is_meant).filter(|link| !is_over(link));
    let link = link.ok_or_else(|| Problem::not_found("link"))?;
    // The redirect always happens. Over the rate limit of the address only the record is left out.
    let address = || client::address(request);
    let is_within = || web.limits.of_webhooks(address()).refusal().is_none();
    if request.method() == Method::GET && is_within() {
        tracker.record(link.events(clock::now()));
    }
    Ok(link)
}
