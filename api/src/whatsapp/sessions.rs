//! WhatsApp sessions: the address of their WAHA, their pace, and starting and stopping them.

use std::{
    future::{Future, Ready, ready},
    net::IpAddr,
    time::Duration,
};

use actix_web::{FromRequest, HttpRequest, HttpResponse, ResponseError, dev::Payload, web::Data};
use chrono::{DateTime, Utc};
use connectors::{
    egress::same_origin,
    waha::{Host, NamedBy, Qr, WahaError, hook},
};
use domain::{OnLimit, SignatureRule, TenantId, contract::submission::FieldError};
use ipnet::IpNet;
use records::{
    Records,
    counts::Counted,
    wa_sessions::{Pace, Removed, SaveError, Session, Settings},
};
use runtime::config::WahaConfig;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use store::Store;
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    audit,
    auth::{Admin, Reader},
    body::JsonBody,
    params::{self, Page, Params},
    problem::{Code, Problem},
};

use super::state::Sessions;
use crate::quota::require_quota;

/// The most messages a minute; WhatsApp bans numbers long before.
const RATE_MAX: i32 = 1000;
const DAILY_CAP_MAX: i32 = 1_000_000;
/// Longest session name.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest pause between two messages.
const PAUSE_MS_MAX: i32 = 600_000;
const SECRET_BYTES_MAX: usize = 500;
const URL_BYTES_MAX: usize = 2048;
const ALLOW_IPS_MAX: usize = 100;

/// The `{id}` of a path: a session's id or name.
#[derive(Clone, Debug)]
pub struct SessionRef(String);

impl FromRequest for SessionRef {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let text = request.match_info().get("id").filter(|text| !text.is_empty() && text.len() <= NAME_BYTES_MAX);
        let text = text.filter(|text| !text.chars().any(char::is_control));
        ready(text.map(|text| Self(text.to_owned())).ok_or_else(unknown))
    }
}

fn unknown() -> Problem {
    Problem::not_found("session")
}

/// The settings of a session. A PUT changes the given fields.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SessionSettings)]
pub struct SessionBody {
    /// Its name at WAHA: letters, digits, `.`, `_` and `-`. Required to create one.
    #[schema(max_length = 64, example = "main-session")]
    name: Option<String>,
    /// The address of WAHA. Required to create one.
    #[schema(example = "https://waha.example.com")]
    base_url: Option<String>,
    /// The API key of that WAHA. Never returned. Required to create one.
    api_key: Option<String>,
    /// Signs WAHA's webhooks. Never returned; a replaced one stays valid for 24 hours. Required to create one.
    webhook_secret: Option<String>,
    /// Messages in any 60 seconds; default 20.
    #[schema(minimum = 1, maximum = 1000)]
    rate_per_minute: Option<i32>,
    /// Messages in a UTC day; `null`: no limit.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i32>, minimum = 1, maximum = 1_000_000)]
    daily_cap: Option<Option<i32>>,
    /// The treatment of a message over the pace: `queue` (it waits) or `reject` (429).
    #[schema(value_type = Option<String>, example = "queue")]
    on_limit: Option<OnLimit>,
    /// The accepted signatures of its webhooks: `waha` (`X-Webhook-Hmac`), `seed` (`X-Waha-Signature`) or `both`.
    #[schema(value_type = Option<String>, example = "both")]
    signature: Option<SignatureRule>,
    /// Networks or addresses that its webhooks may come from; empty: any.
    #[schema(max_items = 100, example = json!(["10.0.0.0/8"]))]
    allow_ips: Option<Vec<String>>,
    /// The shortest pause between two messages, in milliseconds.
    #[schema(minimum = 0, maximum = 600_000)]
    gap_ms: Option<i32>,
    /// A random addition to each pause, up to this, in milliseconds.
    #[schema(minimum = 0, maximum = 600_000)]
    jitter_ms: Option<i32>,
}

/// Distinguishes `null` from an absent field.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl SessionBody {
    /// Another WAHA needs new secrets: the next call would hand the old ones to that server.
    fn require_secrets(&self, before: &Settings) -> Result<(), Problem> {
        if self.base_url.as_ref().is_none_or(|url| same_origin(url, &before.base_url)) {
            return Ok(());
        }
        let missing = [
            ("api_key", before.api_key.is_some() && self.api_key.is_none()),
            ("webhook_secret", before.webhook_secret.is_some() && self.webhook_secret.is_none()),
        ];
        let missing = missing.iter().filter(|(_, is_missing)| *is_missing);
        let faults: Vec<_> = missing
            .map(|(field, _)| FieldError::new(*field, "is required where base_url leads to another host"))
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(Problem::secrets_required(faults)) }
    }

    /// The settings after the change, or every fault.
    fn apply(self, sessions: &Sessions, before: Option<&Settings>, named_by: NamedBy) -> Result<Settings, Problem> {
        let faults = self.faults(sessions, before.is_none(), named_by);
        if !faults.is_empty() {
            return Err(Problem::validation(faults));
        }
        before.map_or(Ok(()), |before| self.require_secrets(before))?;
        let pace = before.map(|before| before.pace.clone()).unwrap_or_default();
        let kept = |of: fn(&Settings) -> &String| before.map(of).cloned().unwrap_or_default();
        Ok(Settings {
            name: self.name.unwrap_or_else(|| kept(|before| &before.name)),
            base_url: self.base_url.unwrap_or_else(|| kept(|before| &before.base_url)),
            api_key: self.api_key.map(Into::into).or_else(|| before?.api_key.clone()),
            webhook_secret: self.webhook_secret.map(Into::into).or_else(|| before?.webhook_secret.clone()),
            signature: self.signature.or(before.map(|before| before.signature)).unwrap_or_default(),
            allow_ips: self.allow_ips.or_else(|| Some(before?.allow_ips.clone())).unwrap_or_default(),
            on_limit: self.on_limit.or(before.map(|before| before.on_limit)).unwrap_or_default(),
            pace: Pace {
                rate: self.rate_per_minute.unwrap_or(pace.rate),
                daily_cap: self.daily_cap.unwrap_or(pace.daily_cap),
                gap_ms: self.gap_ms.unwrap_or(pace.gap_ms),
                jitter_ms: self.jitter_ms.unwrap_or(pace.jitter_ms),
            },
        })
    }

    fn faults(&self, sessions: &Sessions, is_new: bool, named_by: NamedBy) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: &str| faults.push(FieldError::new(field, message));
        for (field, is_given) in [
            ("name", self.name.is_some()),
            ("base_url", self.base_url.is_some()),
            ("api_key", self.api_key.is_some()),
            ("webhook_secret", self.webhook_secret.is_some()),
        ] {
            if is_new && !is_given {
                fault(field, "is required");
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_name = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain);
        if self.name.as_ref().is_some_and(|name| !is_name(name)) {
            fault("name", "must have 1 to 64 letters, digits, `.`, `_` and `-`");
        }
        if let Some(url) = &self.base_url {
            match sessions.waha.check_base_url(url, named_by) {
                Err(refusal) => fault("base_url", &refusal.to_string()),
                Ok(()) if url.len() > URL_BYTES_MAX || url.contains(['?', '#']) => {
                    fault("base_url", "must have at most 2048 bytes, no query and no fragment");
                }
                Ok(()) => {}
            }
        }
        let is_secret = |text: &String| {
            (1..=SECRET_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        };
        for (field, secret) in [("api_key", &self.api_key), ("webhook_secret", &self.webhook_secret)] {
            if secret.as_ref().is_some_and(|secret| !is_secret(secret)) {
                fault(field, "must have 1 to 500 printable ASCII characters");
            }
        }
        let cap = self.daily_cap.flatten();
        for (field, number, min, max) in [
            ("rate_per_minute", self.rate_per_minute, 1, RATE_MAX),
            ("daily_cap", cap, 1, DAILY_CAP_MAX),
            ("gap_ms", self.gap_ms, 0, PAUSE_MS_MAX),
            ("jitter_ms", self.jitter_ms, 0, PAUSE_MS_MAX),
        ] {
            if number.is_some_and(|number| !(min..=max).contains(&number)) {
                fault(field, &format!("must be from {min} to {max}"));
            }
        }
        let nets = self.allow_ips.as_deref().unwrap_or_default();
        if nets.len() > ALLOW_IPS_MAX || nets.iter().any(|net| parse_net(net).is_none()) {
            fault("allow_ips", "must be at most 100 networks or addresses such as 10.0.0.0/8");
        }
        faults
    }
}

/// A WhatsApp session. Its secrets are never shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionView {
    /// Its id.
    pub id: Uuid,
    /// Its name at WAHA.
    #[schema(example = "main-session")]
    pub name: String,
    /// Where WAHA is.
    pub base_url: String,
    /// Its state in WAHA's words: `STOPPED`, `STARTING`, `SCAN_QR_CODE`, `WORKING`, `FAILED`.
    #[schema(example = "WORKING")]
    pub status: String,
    /// Since when.
    pub status_since: DateTime<Utc>,
    /// Whether it was started and not stopped. Then a configuration that WAHA loses is restored.
    pub started: bool,
    /// Messages in any 60 seconds.
    pub rate_per_minute: i32,
    /// Messages in a UTC day.
    pub daily_cap: Option<i32>,
    /// The treatment of a message over the pace.
    #[schema(value_type = String, example = "queue")]
    pub on_limit: OnLimit,
    /// The accepted signatures of its webhooks.
    #[schema(value_type = String, example = "both")]
    pub signature: SignatureRule,
    /// The networks that its webhooks may come from; empty: any.
    pub allow_ips: Vec<String>,
    /// The shortest pause between two messages, in milliseconds.
    pub gap_ms: i32,
    /// A random addition to each pause, up to this.
    pub jitter_ms: i32,
    /// The URL of its webhooks.
    #[schema(example = "https://notify.example.com/webhooks/waha/0191d8a0-0000-7000-8000-000000000001")]
    pub webhook_url: String,
    /// When a webhook of it came last.
    pub last_event_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

impl SessionView {
    fn of(sessions: &Sessions, session: Session) -> Self {
        let settings = session.settings;
        Self {
            id: session.id,
            name: settings.name,
            base_url: settings.base_url,
            status: session.state,
            status_since: session.state_at,
            started: session.is_wanted,
            rate_per_minute: settings.pace.rate,
            daily_cap: settings.pace.daily_cap,
            on_limit: settings.on_limit,
            signature: settings.signature,
            allow_ips: settings.allow_ips,
            gap_ms: settings.pace.gap_ms,
            jitter_ms: settings.pace.jitter_ms,
            webhook_url: hook::url(&sessions.web.public_url, session.id),
            last_event_at: session.last_event_at,
            created_at: session.created_at,
            updated_at: session.updated_at,
        }
    }
}

/// Sessions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionList {
    /// The sessions.
    pub sessions: Vec<SessionView>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// The tenant's WhatsApp sessions.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/sessions", tag = "whatsapp", params(Page),
    responses((status = 200, description = "The sessions", body = SessionList)))]
pub async fn list(reader: Reader, page: Params<Page>, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = reader.0.tenant;
    let found = sessions
        .web
        .queries
        .run(async move |store| store.whatsapp_sessions().list(tenant, before, limit + 1).await)
        .await?;
    let (found, next_cursor) = params::page_of(found, limit, |session| session.id);
    let sessions = found.into_iter().map(|session| SessionView::of(&sessions, session)).collect();
    Ok(HttpResponse::Ok().json(SessionList { sessions, next_cursor }))
}

/// Creates a WhatsApp session.
///
/// Nothing happens at WAHA before it is started. Names are unique within a tenant.
///
/// Roles: admin.
#[utoipa::path(post, path = "/sessions", tag = "whatsapp",
    request_body(content = SessionBody, example = json!({"name": "main-session", "base_url": "https://waha.example.com", "api_key": "…",
        "webhook_secret": "…", "rate_per_minute": 20, "daily_cap": 1000, "on_limit": "queue"})),
    responses((status = 201, description = "Created", body = SessionView), (status = 409, description = "The name is taken")))]
pub async fn create(admin: Admin, sessions: Data<Sessions>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let (tenant, body) = (admin.0.tenant, body.parse::<SessionBody>().await?);
    let is_first = sessions.web.queries.run(async move |store| store.tenants().is_first(tenant).await).await?;
    let settings = body.apply(&sessions, None, NamedBy::operator(is_first))?;
    let public_url = sessions.web.public_url.clone();
    require_quota(&sessions.web, tenant, Counted::Sessions).await?;
    let saving = async move |store: Store| match store.whatsapp_sessions().create(tenant, &settings).await {
        Ok(id) => {
            store.whatsapp_sessions().set_hook(id, &hook::url(&public_url, id)).await?;
            Ok(Ok(store.whatsapp_sessions().find(id).await?))
        }
        Err(SaveError::Taken) => Ok(Err(name_taken())),
        Err(SaveError::Database(error)) => Err(error),
    };
    let session = sessions.web.queries.run(saving).await??.ok_or_else(Problem::internal)?;
    sessions.changed(session.id, &session.settings.name);
    sessions.show_health();
    Ok(HttpResponse::Created().json(SessionView::of(&sessions, session)))
}

fn name_taken() -> Problem {
    Problem::new(Code::StateConflict, "Choose another name: this tenant has a session of that name.")
}

async fn find(sessions: &Sessions, tenant: TenantId, id: SessionRef) -> Result<Session, Problem> {
    let found =
        sessions.web.queries.run(async move |store| store.whatsapp_sessions().session_of(tenant, &id.0).await).await?;
    found.ok_or_else(unknown)
}

/// A WhatsApp session, by its id or name.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/sessions/{id}", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "The session", body = SessionView)))]
pub async fn show(reader: Reader, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    let session = find(&sessions, reader.0.tenant, id).await?;
    Ok(HttpResponse::Ok().json(SessionView::of(&sessions, session)))
}

/// Changes a WhatsApp session.
///
/// An absent field stays; but if `base_url` leads to another host, `api_key` and `webhook_secret` must be given again.
/// A replaced webhook secret stays valid for 24 hours; if the session was started, WAHA gets the new one automatically.
///
/// Roles: admin.
#[utoipa::path(put, path = "/sessions/{id}", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    request_body(content = SessionBody, example = json!({"rate_per_minute": 10})),
    responses((status = 200, description = "Changed", body = SessionView), (status = 409, description = "The name is taken"),
        (status = 422, description = "`base_url` leads to another host, and the secrets for it are not given")))]
pub async fn update(
    admin: Admin,
    id: SessionRef,
    sessions: Data<Sessions>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let body: SessionBody = body.parse().await?;
    let before = find(&sessions, admin.0.tenant, id).await?;
    let settings = body.apply(&sessions, Some(&before.settings), NamedBy::operator(before.is_operators))?;
    let (id, names) = (before.id, [before.settings.name.clone(), settings.name.clone()]);
    let saving = async move |store: Store| match store.whatsapp_sessions().update(&before, &settings).await {
        Ok(()) => Ok(Ok(store.whatsapp_sessions().find(id).await?)),
        Err(SaveError::Taken) => Ok(Err(name_taken())),
        Err(SaveError::Database(error)) => Err(error),
    };
    let session = sessions.web.queries.run(saving).await??.ok_or_else(unknown)?;
    names.iter().for_each(|name| sessions.changed(session.id, name));
    Ok(HttpResponse::Ok().json(SessionView::of(&sessions, session)))
}

/// Removes a WhatsApp session.
///
/// A started session is stopped at WAHA, if WAHA can be reached; its account there stays linked. While messages wait
/// for it, it cannot be removed: cancel them first.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 204, description = "Removed"), (status = 409, description = "Messages wait for it")))]
pub async fn remove(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    let tenant = admin.0.tenant;
    let session = find(&sessions, tenant, id).await?;
    let id = session.id;
    match sessions.web.queries.run(async move |store| store.whatsapp_sessions().remove(tenant, id).await).await? {
        Removed::Unknown => return Err(unknown()),
        Removed::Busy(waiting) => {
            let detail = format!("Cancel the messages that wait for this session first: there are {waiting}.");
            return Err(Problem::new(Code::StateConflict, detail));
        }
        Removed::Yes => {}
    }
    sessions.changed(session.id, &session.settings.name);
    if session.is_wanted
        && let Ok(host) = host(&sessions, &session)
    {
        let name = session.settings.name.clone();
        // The result does not matter: the session is removed here.
        let _ = sessions.web.run_detached(async move { host.stop_session(&name).await }).await;
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Starts a session at WAHA.
///
/// Creates it there if it does not exist, and sets the URL and the secret of its webhooks. If WAHA loses the
/// configuration in a restart, it is restored until the session is stopped here. A new session then waits until its QR
/// code is scanned.
///
/// Roles: admin.
#[utoipa::path(post, path = "/sessions/{id}/start", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "Started", body = SessionView), (status = 502, description = "WAHA refused"),
        (status = 503, description = "WAHA cannot be reached")))]
pub async fn start(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    let public_url = sessions.web.public_url.clone();
    control_session(&sessions, admin.0.tenant, id, Some(true), async move |host: Host, session: Session| {
        let (name, secret) = (session.settings.name.as_str(), session.settings.webhook_secret.as_ref());
        let url = hook::url(&public_url, session.id);
        let with_webhook = |config| hook::with_webhook(config, &url, secret, session.previous_secret.as_ref());
        let found = match host.session(name).await {
            Err(WahaError::NotFound) => {
                return host.create_session(name, &with_webhook(None), true).await.map(|made| made.status);
            }
            found => found?,
        };
        if hook::lack(found.config.as_ref(), &url, secret) != hook::Lack::Nothing {
            host.update_session(name, &with_webhook(found.config)).await?;
        }
        if matches!(found.status.as_str(), "STOPPED" | "FAILED") {
            host.start_session(name).await?;
        }
        host.session(name).await.map(|session| session.status)
    })
    .await
}

/// Stops a session at WAHA; it stays linked to its phone. Messages for it wait, or are refused.
///
/// Roles: admin.
#[utoipa::path(post, path = "/sessions/{id}/stop", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "Stopped", body = SessionView), (status = 502, description = "WAHA refused"),
        (status = 503, description = "WAHA cannot be reached")))]
pub async fn stop(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    control_session(&sessions, admin.0.tenant, id, Some(false), async |host: Host, session: Session| {
        let name = session.settings.name.as_str();
        match host.stop_session(name).await {
            // WAHA does not know it, so nothing runs.
            Err(WahaError::NotFound) => return Ok("STOPPED".to_owned()),
            stopped => stopped?,
        }
        status(&host, name).await
    })
    .await
}

/// Stops and starts a session at WAHA.
///
/// Roles: admin.
#[utoipa::path(post, path = "/sessions/{id}/restart", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "Restarted", body = SessionView), (status = 409, description = "It was never started"),
        (status = 502, description = "WAHA refused"), (status = 503, description = "WAHA cannot be reached")))]
pub async fn restart(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    control_session(&sessions, admin.0.tenant, id, Some(true), async |host: Host, session: Session| {
        let name = session.settings.name.as_str();
        host.restart_session(name).await?;
        status(&host, name).await
    })
    .await
}

/// Unlinks a session from its phone; its QR code must be scanned again.
///
/// Roles: admin.
#[utoipa::path(post, path = "/sessions/{id}/logout", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "Unlinked", body = SessionView), (status = 409, description = "It was never started"),
        (status = 502, description = "WAHA refused"), (status = 503, description = "WAHA cannot be reached")))]
pub async fn logout(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    control_session(&sessions, admin.0.tenant, id, None, async |host: Host, session: Session| {
        let name = session.settings.name.as_str();
        host.logout_session(name).await?;
        status(&host, name).await
    })
    .await
}

async fn status(host: &Host, name: &str) -> Result<String, WahaError> {
    host.session(name).await.map(|session| session.status)
}

/// Calls WAHA about a session, stores the state that WAHA returns, and answers with the session. `is_wanted`: whether
/// it should run from now on, even if WAHA cannot be reached now.
async fn control_session<F, Fut>(
    sessions: &Data<Sessions>,
    tenant: TenantId,
    id: SessionRef,
    is_wanted: Option<bool>,
    act: F,
) -> Result<HttpResponse, Problem>
where
    F: FnOnce(Host, Session) -> Fut + Send + 'static,
    Fut: Future<Output = Result<String, WahaError>> + Send + 'static,
{
    let session = find(sessions, tenant, id).await?;
    let (id, host) = (session.id, host(sessions, &session)?);
    if let Some(is_wanted) = is_wanted {
        let url = hook::url(&sessions.web.public_url, id);
        let noting = async move |store: Store| {
            store.whatsapp_sessions().set_hook(id, &url).await?;
            store.whatsapp_sessions().want(id, is_wanted).await
        };
        sessions.web.queries.run(noting).await?;
    }
    let state = match sessions.web.run_detached(act(host, session)).await? {
        Ok(state) => state,
        // Whether it should run is stored, and an earlier call to WAHA may have been carried out.
        Err(error) => return Ok(audit::in_part(refused(&error).error_response())),
    };
    let noting = async move |store: Store| {
        store.whatsapp_sessions().set_state(id, &state, None).await?;
        store.whatsapp_sessions().find(id).await
    };
    match sessions.web.queries.run(noting).await? {
        Some(session) => Ok(HttpResponse::Ok().json(SessionView::of(sessions, session))),
        // It was removed meanwhile, and WAHA has carried out the call.
        None => Ok(audit::in_part(unknown().error_response())),
    }
}

/// The QR code that links a session to a phone, as a picture in base64.
///
/// Roles: admin.
#[utoipa::path(get, path = "/sessions/{id}/qr", tag = "whatsapp", params(("id" = String, Path, description = "The session's id or name")),
    responses((status = 200, description = "The code", body = QrView), (status = 409, description = "It needs no code at present"),
        (status = 502, description = "WAHA refused"), (status = 503, description = "WAHA cannot be reached")))]
pub async fn qr(admin: Admin, id: SessionRef, sessions: Data<Sessions>) -> Result<HttpResponse, Problem> {
    let session = find(&sessions, admin.0.tenant, id).await?;
    let (host, name) = (host(&sessions, &session)?, session.settings.name);
    let code =
        sessions.web.run_detached(async move { host.qr(&name).await }).await?.map_err(|error| refused(&error))?;
    Ok(HttpResponse::Ok().json(QrView::from(code)))
}

/// A QR code.
#[derive(Serialize, ToSchema)]
#[schema(as = Qr)]
pub struct QrView {
    /// The picture's media type.
    #[schema(example = "image/png")]
    pub mimetype: String,
    /// The picture in base64.
    pub data: String,
}

impl From<Qr> for QrView {
    fn from(code: Qr) -> Self {
        Self { mimetype: code.mimetype, data: code.data }
    }
}

fn host(sessions: &Sessions, session: &Session) -> Result<Host, Problem> {
    sessions.waha.host_of(session, sessions.timeout).map_err(|error| refused(&error))
}

/// The name of the session in the settings.
const DEFAULT: &str = "default";
/// The pause between two checks for the first tenant.
const TENANT_PAUSE: Duration = Duration::from_secs(5);

/// Creates or changes the first tenant's session `default` according to the settings, once there is a tenant.
pub async fn keep_default(sessions: &Sessions, config: &WahaConfig, store: &Store) {
    let Some(url) = &config.base_url else { return };
    if config.api_key.is_none() {
        tracing::warn!(
            "WAHA_BASE_URL is set without WAHA_API_KEY: whoever reaches that WAHA may send as every session there"
        );
    }
    let session = loop {
        match ensure_default(url, config, store).await {
            Ok(session) => break session,
            Err(Some(error)) => tracing::warn!(%error, "the session `default` could not be set up yet"),
            Err(None) => tracing::debug!("the session `default` waits for the first tenant"),
        }
        tokio::time::sleep(TENANT_PAUSE).await;
    };
    sessions.changed(session, DEFAULT);
    // It was created after this process had stored its public URL.
    if let Err(error) = store.whatsapp_sessions().begin_hooks(&hook::base(&sessions.web.public_url)).await {
        tracing::warn!(%error, "the session `default` does not know yet where its webhooks go");
    }
}

/// The error is `None` while there is no tenant.
async fn ensure_default(url: &Url, config: &WahaConfig, store: &Store) -> Result<Uuid, Option<SaveError>> {
    let tenants = store.tenants().list().await.map_err(SaveError::Database)?;
    let tenant = tenants.first().ok_or(None)?.id;
    let before = store.whatsapp_sessions().session_of(tenant, DEFAULT).await.map_err(SaveError::Database)?;
    let Some(before) = before else {
        let settings = Settings {
            name: DEFAULT.to_owned(),
            base_url: url.to_string(),
            api_key: config.api_key.clone(),
            webhook_secret: config.webhook_secret.clone(),
            signature: SignatureRule::default(),
            allow_ips: Vec::new(),
            on_limit: OnLimit::default(),
            pace: Pace::default(),
        };
        let id = store.whatsapp_sessions().create(tenant, &settings).await?;
        store.whatsapp_sessions().want(id, true).await.map_err(SaveError::Database)?;
        return Ok(id);
    };
    let plain = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
    let secrets = |settings: &Settings| (plain(&settings.api_key), plain(&settings.webhook_secret));
    let settings = Settings {
        base_url: url.to_string(),
        api_key: config.api_key.clone().or_else(|| before.settings.api_key.clone()),
        webhook_secret: config.webhook_secret.clone().or_else(|| before.settings.webhook_secret.clone()),
        ..before.settings.clone()
    };
    let is_same = settings.base_url == before.settings.base_url && secrets(&settings) == secrets(&before.settings);
    if !is_same {
        store.whatsapp_sessions().update(&before, &settings).await?;
    }
    Ok(before.id)
}

/// The problem for the caller of a failed call to WAHA.
fn refused(error: &WahaError) -> Problem {
    let problem = |code, detail: &'static str| Problem::new(code, detail);
    match error {
        WahaError::Unreachable(_) | WahaError::Unanswered(_) => problem(
            Code::WahaUnavailable,
            "Check that WAHA runs at the session's base_url and can be reached from here, then repeat the request.",
        ),
        WahaError::TooMany(_) | WahaError::Failed(..) => problem(
            Code::WahaUnavailable,
            "WAHA cannot do this at the moment; look into its log, or repeat the request later.",
        ),
        WahaError::BadKey => problem(Code::WahaRefused, "Correct the session's api_key: WAHA does not take it."),
        WahaError::NotFound => problem(Code::StateConflict, "Start the session first: WAHA does not know it."),
        WahaError::SessionStatus { status } => Problem::new(
            Code::StateConflict,
            format!("WAHA does not do this while the session is {status}; start it, or wait until it has changed."),
        ),
        WahaError::NotImplemented => {
            problem(Code::WahaRefused, "Use another engine or edition of WAHA: this one cannot do it.")
        }
        WahaError::Refused(_) | WahaError::Unreadable => {
            problem(Code::WahaRefused, "Check that base_url leads to WAHA itself and that its version is current.")
        }
    }
}

/// Parses a network or a single address.
pub fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
