//! Webhook configurations: where a tenant receives events.

use std::time::Duration;

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use connectors::egress::same_origin;
use deliveries::{
    Deliveries,
    webhook_events::{Again, carrier},
};
use domain::{
    Channel, State, clock,
    contract::{
        submission::{FieldError, parse_time},
        webhooks::{self, MASK, is_event, is_reserved_header},
    },
    token,
};
use records::{
    Records,
    configurations::{Configuration, ConfigurationSettings},
    counts::Counted,
    webhook_logs::Call,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::Store;
use submission::{
    Submissions,
    envelope::{DeliveryAnswer, SendAnswer},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    auth::Admin,
    body::JsonBody,
    params::{self, Id, Page, Params},
    problem::{Code, Problem},
};

use crate::quota::require_quota;

const NAME_BYTES_MAX: usize = 200;
const URL_BYTES_MAX: usize = 2048;
const HEADERS_MAX: usize = 20;
const HEADER_BYTES_MAX: usize = 2048;
/// How long a replaced secret also signs by default: a day.
const GRACE_SECONDS: i64 = 86_400;
const GRACE_SECONDS_MAX: i64 = 30 * GRACE_SECONDS;
/// The most events that one request replays.
const REPLAY_MAX: i64 = 100_000;
/// The most webhooks that one request may name.
const REPLAY_IDS_MAX: usize = 1000;
/// Less than the database's own limit for a statement.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(9);
/// The word for events that were never sent, among the states of a delivery.
const HELD: &str = "held";

/// A new webhook configuration. A PUT changes the given fields.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WebhookConfigurationSettings)]
pub struct ConfigurationBody {
    /// Its name. Required to create one.
    #[schema(max_length = 200, example = "CRM")]
    name: Option<String>,
    /// The URL that events are sent to. Required to create one.
    #[schema(max_length = 2048, example = "https://example.com/hook")]
    url: Option<String>,
    /// Which events; none: all.
    #[schema(example = json!(["message.received", "message.failed"]))]
    events: Option<Vec<String>>,
    /// Further headers.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>, example = json!({"X-Source": "posthaste"}))]
    headers: Option<Map<String, Value>>,
    /// Whether events are sent there. `true` switches it on again.
    active: Option<bool>,
    /// Whether it also signs with Ed25519 (`v1a`). A receiver then needs only `public_key` and no secret.
    asymmetric: Option<bool>,
}

impl ConfigurationBody {
    /// The signing secret, followed by a private key if one is wanted.
    fn secret(&self, before: Option<&Configuration>) -> Result<Option<SecretString>, Problem> {
        let has_key = before.is_some_and(|before| before.public_key().is_some());
        let wants_key = self.asymmetric.unwrap_or(has_key);
        match before {
            Some(_) if wants_key == has_key => Ok(None),
            Some(before) if wants_key => with_key(before.shared_secret()).map(Some),
            Some(before) => Ok(Some(before.shared_secret().into())),
            None => new_secret(wants_key).map(Some),
        }
    }

    /// Headers may hold secrets, so a new receiver needs new ones, and no masked values.
    fn require_headers(&self, before: &ConfigurationSettings) -> Result<(), Problem> {
        let moves = self.url.as_ref().is_some_and(|url| !same_origin(url, &before.url));
        let is_masked = |headers: &Map<String, Value>| headers.values().any(|value| value.as_str() == Some(MASK));
        let is_given = self.headers.as_ref().map_or(before.headers.is_empty(), |headers| !is_masked(headers));
        if !moves || is_given {
            return Ok(());
        }
        let fault = FieldError::new("headers", "must be given in full where url leads to another host");
        Err(Problem::secrets_required(vec![fault]))
    }

    fn apply(
        self,
        submissions: &Submissions,
        before: Option<ConfigurationSettings>,
    ) -> Result<ConfigurationSettings, Problem> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: &str| faults.push(FieldError::new(field, message));
        for (field, is_given) in [("name", self.name.is_some()), ("url", self.url.is_some())] {
            if before.is_none() && !is_given {
                fault(field, "is required");
            }
        }
        let is_name = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if self.name.as_ref().is_some_and(|name| !is_name(name)) {
            fault("name", "must have 1 to 200 bytes and no control characters");
        }
        if let Some(url) = &self.url {
            match submissions.web.rules().guard.check_url(url) {
                Err(refusal) => fault("url", &refusal.to_string()),
                Ok(()) if url.len() > URL_BYTES_MAX || url.chars().any(char::is_control) => {
                    fault("url", "must have at most 2048 bytes and no control characters");
                }
                Ok(()) => {}
            }
        }
        for event in self.events.iter().flatten().filter(|event| !is_event(event)) {
            fault(
                "events",
                &format!("must be names such as message.received or message.failed; `{}` is none", clip(event)),
            );
        }
        if let Some(headers) = &self.headers {
            if headers.len() > HEADERS_MAX {
                fault("headers", "must be at most 20");
            }
            if let Some((name, _)) = headers.iter().find(|(name, value)| !is_header(name, value)) {
                fault("headers", &format!("must be texts under names that are not our own; `{}` is not", clip(name)));
            }
        }
        if !faults.is_empty() {
            return Err(Problem::validation(faults));
        }
        before.as_ref().map_or(Ok(()), |before| self.require_headers(before))?;
        let before = before.unwrap_or(ConfigurationSettings {
            name: String::new(),
            url: String::new(),
            events: None,
            headers: Map::new(),
            is_active: true,
        });
        Ok(ConfigurationSettings {
            name: self.name.unwrap_or(before.name),
            url: self.url.unwrap_or(before.url),
            // An empty list means the same as no list.
            events: self.events.or(before.events).filter(|events| !events.is_empty()),
            headers: self.headers.map_or(before.headers.clone(), |headers| unmasked(headers, &before.headers)),
            is_active: self.active.unwrap_or(before.is_active),
        })
    }
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

fn is_header(name: &str, value: &Value) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = !name.is_empty() && name.bytes().all(is_token);
    let is_text = |text: &str| text.len() <= HEADER_BYTES_MAX && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    is_name && !is_reserved_header(name) && value.as_str().is_some_and(is_text)
}

fn new_secret(with_a_key: bool) -> Result<SecretString, Problem> {
    let secret = token::webhook_secret().map_err(|_| Problem::internal())?;
    if with_a_key { with_key(secret.expose_secret()) } else { Ok(secret) }
}

fn with_key(secret: &str) -> Result<SecretString, Problem> {
    let key = token::webhook_key().map_err(|_| Problem::internal())?;
    Ok(format!("{secret} {}", key.expose_secret()).into())
}

/// A masked value stands for the value that was masked.
fn unmasked(headers: Map<String, Value>, before: &Map<String, Value>) -> Map<String, Value> {
    let value = |name: &str, value: Value| match value.as_str() == Some(MASK) {
        true => before.get(name).cloned().unwrap_or(value),
        false => value,
    };
    headers.into_iter().map(|(name, given)| (name.clone(), value(&name, given))).collect()
}

/// A webhook configuration.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookConfiguration)]
pub struct ConfigurationView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where events go.
    pub url: String,
    /// Which events; `null`: all.
    pub events: Option<Vec<String>>,
    /// Further headers; values of secret ones are masked.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub headers: Map<String, Value>,
    /// Whether events are sent there.
    pub active: bool,
    /// When it was switched off.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why it was switched off: `admin`, `gone` (it answered 410) or `failing` (every call failed for days).
    pub disabled_reason: Option<String>,
    /// Verifies its `v1a` signatures, if it makes any.
    #[schema(example = "whpk_9T0Ia8z1Kc5v0mQnO0nq6S9vZzq0bTn3XyOZ0q1o2p4=")]
    pub public_key: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// Signs its webhooks (Standard Webhooks). Returned once, when it is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: Option<String>,
}

impl From<Configuration> for ConfigurationView {
    fn from(found: Configuration) -> Self {
        let public_key = found.public_key();
        let Configuration { id, settings, created_at, updated_at, disabled, .. } = found;
        let (disabled_at, disabled_reason) = disabled.unzip();
        let shown = |(name, _): (String, Value)| (name, MASK.into());
        Self {
            id,
            name: settings.name,
            url: settings.url,
            events: settings.events,
            headers: settings.headers.into_iter().map(shown).collect(),
            active: settings.is_active,
            disabled_at,
            disabled_reason,
            public_key,
            created_at,
            updated_at,
            secret: None,
        }
    }
}

/// Configurations, newest first.
#[derive(Serialize, ToSchema)]
pub struct ConfigurationList {
    /// The configurations.
    pub configurations: Vec<ConfigurationView>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// The tenant's webhook configurations.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/webhooks/configurations", tag = "managing", params(Page),
    responses((status = 200, description = "The configurations", body = ConfigurationList)))]
pub async fn list(admin: Admin, page: Params<Page>, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = admin.0.tenant;
    let found = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().list(tenant, before, limit + 1).await)
        .await?;
    let (found, next_cursor) = params::page_of(found, limit, |configuration| configuration.id);
    let configurations = found.into_iter().map(ConfigurationView::from).collect();
    Ok(HttpResponse::Ok().json(ConfigurationList { configurations, next_cursor }))
}

/// Sends events to a URL.
///
/// Each event is a durable webhook `{type, timestamp, data}`, signed as Standard Webhooks with the configuration's own
/// secret, which is returned here and never again.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/webhooks/configurations", tag = "managing",
    request_body(content = ConfigurationBody, example = json!({"name": "CRM", "url": "https://example.com/hook", "events": ["message.received"]})),
    responses((status = 201, description = "Made", body = ConfigurationView)))]
pub async fn create(admin: Admin, submissions: Data<Submissions>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let body = body.parse::<ConfigurationBody>().await?;
    let secret = body.secret(None)?.ok_or_else(Problem::internal)?;
    let (tenant, settings) = (admin.0.tenant, body.apply(&submissions, None)?);
    require_quota(&submissions.web, tenant, Counted::Configurations).await?;
    let saving = async move |store: Store| {
        let id = store.webhook_configurations().create(tenant, &settings, &secret).await?;
        store.webhook_configurations().find(tenant, id).await
    };
    let made = submissions.web.queries.run(saving).await?.ok_or_else(Problem::internal)?;
    let secret = Some(made.shared_secret().to_owned());
    Ok(HttpResponse::Created().json(ConfigurationView { secret, ..ConfigurationView::from(made) }))
}

fn unknown() -> Problem {
    Problem::not_found("webhook configuration")
}

/// A webhook configuration.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    responses((status = 200, description = "The configuration", body = ConfigurationView)))]
pub async fn show(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let found = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().find(tenant, id).await)
        .await?
        .ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(ConfigurationView::from(found)))
}

/// Changes a webhook configuration. An absent field stays; but if `url` leads to another host, `headers` must be given
/// again.
///
/// `active: true` also switches a configuration on again that was switched off because its receiver answered 410 or
/// failed for days. Events of the time in between are held; see `replay`.
///
/// Roles: admin.
#[utoipa::path(put, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    request_body(content = ConfigurationBody, example = json!({"active": false})),
    responses((status = 200, description = "Changed", body = ConfigurationView),
        (status = 422, description = "`url` leads to another host, and the headers for it are not given")))]
pub async fn update(
    admin: Admin,
    id: Id,
    submissions: Data<Submissions>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let body: ConfigurationBody = body.parse().await?;
    let (tenant, id) = (admin.0.tenant, id.0);
    let before = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().find(tenant, id).await)
        .await?
        .ok_or_else(unknown)?;
    let secret = body.secret(Some(&before))?;
    let settings = body.apply(&submissions, Some(before.settings))?;
    let saving = async move |store: Store| {
        store.webhook_configurations().update(tenant, id, &settings).await?;
        if let Some(secret) = secret {
            store.webhook_configurations().replace_secret(tenant, id, &secret, seconds(GRACE_SECONDS)).await?;
        }
        store.webhook_configurations().find(tenant, id).await
    };
    let changed = submissions.web.queries.run(saving).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(ConfigurationView::from(changed)))
}

/// Removes a webhook configuration. Webhooks already accepted for it are still sent, signed with the tenant's own
/// secret.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    responses((status = 204, description = "Removed")))]
pub async fn remove(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let was_there =
        submissions.web.queries.run(async move |store| store.webhook_configurations().remove(tenant, id).await).await?;
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(unknown()) }
}

fn seconds(seconds: i64) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// How long the former secret also signs.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegenerateBody {
    /// Seconds for which the former secret also signs; default a day, at most thirty days.
    #[schema(minimum = 0, maximum = 2_592_000, example = 86400)]
    grace_period_seconds: Option<i64>,
}

/// A new secret.
#[derive(Serialize, ToSchema)]
pub struct RegeneratedSecret {
    /// The secret that signs from now on. Returned once.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: String,
    /// The time until which the former secret also signs.
    pub previous_until: DateTime<Utc>,
    /// The new public key, if it also signs with Ed25519.
    pub public_key: Option<String>,
}

/// Gives a webhook configuration a new secret.
///
/// Until the grace period ends, webhooks carry signatures of both secrets, so that receivers can change theirs in
/// between.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/webhooks/configurations/{id}/regenerate-secret", tag = "managing",
    params(("id" = Uuid, Path, description = "The configuration")),
    request_body(content = Option<RegenerateBody>, example = json!({"grace_period_seconds": 3600})),
    responses((status = 200, description = "Another secret signs now", body = RegeneratedSecret)))]
pub async fn regenerate(
    admin: Admin,
    id: Id,
    submissions: Data<Submissions>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let asked: RegenerateBody = body.parse_or_default().await?;
    let grace = asked.grace_period_seconds.unwrap_or(GRACE_SECONDS);
    if !(0..=GRACE_SECONDS_MAX).contains(&grace) {
        let fault = FieldError::new("grace_period_seconds", "must be a whole number from 0 to 2592000");
        return Err(Problem::validation(vec![fault]));
    }
    let (tenant, id) = (admin.0.tenant, id.0);
    let before = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().find(tenant, id).await)
        .await?
        .ok_or_else(unknown)?;
    let secret = new_secret(before.public_key().is_some())?;
    let saving = async move |store: Store| {
        store.webhook_configurations().replace_secret(tenant, id, &secret, seconds(grace)).await?;
        store.webhook_configurations().find(tenant, id).await
    };
    let changed = submissions.web.queries.run(saving).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(RegeneratedSecret {
        secret: changed.shared_secret().to_owned(),
        previous_until: changed.previous_until.unwrap_or_else(clock::now),
        public_key: changed.public_key(),
    }))
}

/// Sends an event of type `test` to a webhook configuration.
///
/// It is sent whatever events the configuration subscribes to, even while it is switched off, and appears in its logs.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/webhooks/configurations/{id}/test", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    responses((status = 202, description = "Accepted: it is on its way", body = SendAnswer)))]
pub async fn test(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let found = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().find(tenant, id).await)
        .await?
        .ok_or_else(unknown)?;
    let data =
        json!({"configuration_id": id, "name": found.settings.name, "message": "If you can read this, it works."});
    let event = (clock::now(), data);
    let (acceptance, delivery) = carrier(tenant, id, &found.settings.url, webhooks::TEST, event, None);
    let message = acceptance.messages.first().map_or(delivery.0, |message| message.id.0);
    submissions.acceptor.accept(acceptance).await?;
    let deliveries = vec![DeliveryAnswer { id: delivery.0, channel: Channel::Webhook, status: State::Queued }];
    Ok(HttpResponse::Accepted().json(SendAnswer { id: message, status: State::Queued, deliveries }))
}

/// A call to the receiver.
#[derive(Serialize, ToSchema)]
pub struct WebhookLog {
    /// The event's name, or the `type` of a producer's webhook.
    #[schema(example = "message.delivered")]
    pub event: Option<String>,
    /// The `webhook-id`, which is the delivery's id.
    pub webhook_id: Uuid,
    /// Which attempt, from 1.
    pub attempt: i32,
    /// The status of the answer; `null`: there was none.
    #[schema(example = 200)]
    pub response_status: Option<i32>,
    /// The request: `{method, url, headers, body, truncated}`, secret headers masked, the body cut off after 16 KiB.
    #[schema(value_type = Object)]
    pub request: Value,
    /// The response: `{headers, body}`, secret headers masked, the body cut off after 4 KiB.
    #[schema(value_type = Option<Object>)]
    pub response: Option<Value>,
    /// How long the call took.
    pub duration_ms: i32,
    /// When it was made.
    pub at: DateTime<Utc>,
}

impl From<Call> for WebhookLog {
    fn from(call: Call) -> Self {
        let Call { event, delivery, attempt, status, request, response, duration_ms, at, .. } = call;
        Self { event, webhook_id: delivery, attempt, response_status: status, request, response, duration_ms, at }
    }
}

/// Calls, newest first.
#[derive(Serialize, ToSchema)]
pub struct WebhookLogList {
    /// The calls.
    pub logs: Vec<WebhookLog>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// Every call to the receiver of a webhook configuration, newest first. Kept for `WEBHOOK_KEEP_DAYS`.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/webhooks/configurations/{id}/logs", tag = "managing",
    params(("id" = Uuid, Path, description = "The configuration"), Page),
    responses((status = 200, description = "The calls", body = WebhookLogList)))]
pub async fn logs(
    admin: Admin,
    id: Id,
    page: Params<Page>,
    submissions: Data<Submissions>,
) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let (tenant, id) = (admin.0.tenant, id.0);
    let reading = async move |store: Store| {
        let is_known = store.webhook_configurations().find(tenant, id).await?.is_some();
        let calls = if is_known { store.webhook_logs().list(tenant, id, before, limit + 1).await? } else { Vec::new() };
        Ok((is_known, calls))
    };
    let (is_known, calls) = submissions.web.queries.run(reading).await?;
    if !is_known {
        return Err(unknown());
    }
    let (calls, next_cursor) = params::page_of(calls, limit, |call| call.id);
    Ok(HttpResponse::Ok().json(WebhookLogList { logs: calls.into_iter().map(WebhookLog::from).collect(), next_cursor }))
}

/// Selects the events to send again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventReplayBody {
    /// Events from this time on. Required unless `ids` are given.
    #[schema(value_type = Option<DateTime<Utc>>)]
    since: Option<String>,
    /// Events up to this time; default now.
    #[schema(value_type = Option<DateTime<Utc>>)]
    until: Option<String>,
    /// Only events whose webhook has this status; `held`: events that were never sent because the configuration was
    /// off. Empty: all.
    #[schema(example = "held")]
    status: Option<String>,
    /// Only the events of these webhooks (`webhook_id` of the logs).
    #[schema(max_items = 1000)]
    ids: Option<Vec<Uuid>>,
}

/// The number of events that are sent again.
#[derive(Serialize, ToSchema)]
pub struct EventReplay {
    /// At most 100,000, the oldest ones.
    pub matched: i64,
}

impl EventReplayBody {
    fn check(self) -> Result<Again, Problem> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: &str| faults.push(FieldError::new(field, message));
        let mut time = |field: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(parse_time);
            if parsed == Some(None) {
                fault(field, "must be an RFC 3339 time such as 2026-01-31T09:00:00Z");
            }
            parsed.flatten()
        };
        let (since, until) = (time("since", &self.since), time("until", &self.until));
        if self.since.is_none() && self.ids.is_none() {
            fault("since", "is required, unless `ids` are given");
        }
        let is_status = |status: &String| status == HELD || status.parse::<State>().is_ok();
        let status = self.status.map(|status| status.to_lowercase());
        if status.as_ref().is_some_and(|status| !is_status(status)) {
            fault("status", "must be `held` or the status of a delivery, such as failed, dead or delivered");
        }
        if self.ids.as_ref().is_some_and(|ids| ids.len() > REPLAY_IDS_MAX) {
            fault("ids", "must be at most 1000");
        }
        if !faults.is_empty() {
            return Err(Problem::validation(faults));
        }
        let since = since.unwrap_or(DateTime::UNIX_EPOCH);
        Ok(Again { since, until: until.unwrap_or_else(clock::now), status, ids: self.ids })
    }
}

/// Sends events of a webhook configuration again.
///
/// Events from the time in which it was switched off are held for `WEBHOOK_KEEP_DAYS` and sent by this. Failed or
/// delivered events are sent again in a new webhook with another `webhook-id` and the same `timestamp` and `data`.
/// Events that wait for a retry are tried at once.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/webhooks/configurations/{id}/replay", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    request_body(content = EventReplayBody, example = json!({"since": "2026-01-31T09:00:00Z", "status": "held"})),
    responses((status = 202, description = "They are on their way", body = EventReplay)))]
pub async fn replay(
    admin: Admin,
    id: Id,
    submissions: Data<Submissions>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let again = body.parse::<EventReplayBody>().await?.check()?;
    let (tenant, id) = (admin.0.tenant, id.0);
    let found = submissions
        .web
        .queries
        .run(async move |store| store.webhook_configurations().find(tenant, id).await)
        .await?
        .ok_or_else(unknown)?;
    if !found.settings.is_active {
        return Err(Problem::new(Code::StateConflict, "Switch the configuration on first: PUT `{\"active\": true}`."));
    }
    let telling =
        async move |store: Store| store.webhook_events().replay_webhook_events(tenant, id, again, REPLAY_MAX).await;
    let matched = submissions.web.queries.run_within(REPLAY_TIMEOUT, telling).await?;
    Ok(HttpResponse::Accepted().json(EventReplay { matched }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_texts_and_none_of_ours() {
        assert!(is_header("X-Source", &json!("crm")) && is_header("Authorization", &json!("Bearer x")));
        for (name, value) in [
            ("Host", json!("x")),
            ("Webhook-Signature", json!("x")),
            ("a b", json!("x")),
            ("", json!("x")),
            ("X", json!("a\r\nb")),
            ("X", json!(7)),
        ] {
            assert!(!is_header(name, &value), "{name}");
        }
    }

    #[test]
    fn a_masked_value_that_comes_back_leaves_the_value_as_it_is() {
        let before = Map::from_iter([("Authorization".to_owned(), json!("Bearer x"))]);
        let given = |value: &str| Map::from_iter([("Authorization".to_owned(), json!(value))]);
        assert_eq!(unmasked(given(MASK), &before), before);
        assert_eq!(unmasked(given("Bearer y"), &before), given("Bearer y"));
    }
}
