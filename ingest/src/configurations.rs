//! Where a tenant wants to hear of events: webhook configurations.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::{
    contract::submission::FieldError,
    db::configurations::{Configuration, ConfigurationSettings},
    domain::{EventKind, State},
    token,
};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    app::App,
    auth::Admin,
    body::JsonBody,
    params::{self, Id, Params},
    problem::Problem,
    sessions::Page,
};

const NAME_BYTES_MAX: usize = 200;
const URL_BYTES_MAX: usize = 2048;
const HEADERS_MAX: usize = 20;
const HEADER_BYTES_MAX: usize = 2048;
/// What stands for the value of a secret header; sent back, it leaves the value as it is.
const MASK: &str = "***";
/// Events beside those of messages.
const OTHER_EVENTS: &[&str] =
    &["message.received", "dead_letter.created", "endpoint.disabled", "breaker.opened", "breaker.closed"];
/// Headers that say how the request is read, and our own.
const RESERVED_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "idempotency-key",
    "x-request-id",
    "traceparent",
];
/// Parts of the names of headers whose values are nobody else's business.
const SECRET_HEADERS: &[&str] = &["auth", "cookie", "key", "token", "secret", "signature", "password"];

/// A webhook configuration to make. A PUT changes what it gives.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WebhookConfigurationSettings)]
pub struct ConfigurationBody {
    /// Its name. Needed to create one.
    #[schema(max_length = 200, example = "CRM")]
    name: Option<String>,
    /// Where events go. Needed to create one.
    #[schema(max_length = 2048, example = "https://example.com/hook")]
    url: Option<String>,
    /// Which events; none: all.
    #[schema(example = json!(["message.received", "message.failed"]))]
    events: Option<Vec<String>>,
    /// Further headers.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>, example = json!({"X-Source": "posthaste"}))]
    headers: Option<Map<String, Value>>,
    /// Whether events go there at present.
    active: Option<bool>,
}

impl ConfigurationBody {
    fn apply(self, app: &App, before: Option<ConfigurationSettings>) -> Result<ConfigurationSettings, Problem> {
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
            match app.rules().guard.check_url(url) {
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
            // An empty list means what no list means.
            events: self.events.or(before.events).filter(|events| !events.is_empty()),
            headers: self.headers.map_or(before.headers.clone(), |headers| unmasked(headers, &before.headers)),
            is_active: self.active.unwrap_or(before.is_active),
        })
    }
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// `message.<status>`, engagement included, or one of the others.
fn is_event(name: &str) -> bool {
    let of_message = name.strip_prefix("message.");
    let is_status = |word: &str| word.parse::<State>().is_ok() || word.parse::<EventKind>().is_ok();
    of_message.is_some_and(is_status) || OTHER_EVENTS.contains(&name)
}

fn is_header(name: &str, value: &Value) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = !name.is_empty() && name.bytes().all(is_token);
    let is_ours = RESERVED_HEADERS.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
    let is_text = |text: &str| text.len() <= HEADER_BYTES_MAX && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    is_name && !is_ours && value.as_str().is_some_and(is_text)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_HEADERS.iter().any(|part| name.contains(part))
}

/// A masked value that comes back means the value that was masked.
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
    /// Whether events go there at present.
    pub active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// Signs what goes there (Standard Webhooks). Answered once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: Option<String>,
}

impl From<Configuration> for ConfigurationView {
    fn from(found: Configuration) -> Self {
        let Configuration { id, settings, created_at, updated_at, .. } = found;
        let shown = |(name, value): (String, Value)| {
            let value = if is_secret(&name) { MASK.into() } else { value };
            (name, value)
        };
        Self {
            id,
            name: settings.name,
            url: settings.url,
            events: settings.events,
            headers: settings.headers.into_iter().map(shown).collect(),
            active: settings.is_active,
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
pub async fn list(admin: Admin, page: Params<Page>, app: Data<App>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = admin.0.tenant;
    let found = app.db.run(async move |store| store.list_configurations(tenant, before, limit + 1).await).await?;
    let (found, next_cursor) = params::page_of(found, limit, |configuration| configuration.id);
    let configurations = found.into_iter().map(ConfigurationView::from).collect();
    Ok(HttpResponse::Ok().json(ConfigurationList { configurations, next_cursor }))
}

/// Has events sent to a URL.
///
/// Each event is a durable webhook `{type, timestamp, data}`, signed as Standard Webhooks with the configuration's own secret,
/// which is answered here and never again.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/webhooks/configurations", tag = "managing",
    request_body(content = ConfigurationBody, example = json!({"name": "CRM", "url": "https://example.com/hook", "events": ["message.received"]})),
    responses((status = 201, description = "Made", body = ConfigurationView)))]
pub async fn create(admin: Admin, app: Data<App>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let settings = body.parse::<ConfigurationBody>().await?.apply(&app, None)?;
    let (tenant, secret) = (admin.0.tenant, token::webhook_secret().map_err(|_| Problem::internal())?);
    let shown = secret.expose_secret().to_owned();
    let saving = async move |store: shared::db::Store| {
        let id = store.create_configuration(tenant, &settings, &secret).await?;
        store.configuration(tenant, id).await
    };
    let made = app.db.run(saving).await?.ok_or_else(Problem::internal)?;
    Ok(HttpResponse::Created().json(ConfigurationView { secret: Some(shown), ..ConfigurationView::from(made) }))
}

fn unknown() -> Problem {
    Problem::not_found("webhook configuration")
}

/// A webhook configuration.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    responses((status = 200, description = "The configuration", body = ConfigurationView)))]
pub async fn show(admin: Admin, id: Id, app: Data<App>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let found = app.db.run(async move |store| store.configuration(tenant, id).await).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(ConfigurationView::from(found)))
}

/// Changes a webhook configuration. What is not given stays.
///
/// Roles: admin.
#[utoipa::path(put, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    request_body(content = ConfigurationBody, example = json!({"active": false})),
    responses((status = 200, description = "Changed", body = ConfigurationView)))]
pub async fn update(admin: Admin, id: Id, app: Data<App>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let body: ConfigurationBody = body.parse().await?;
    let (tenant, id) = (admin.0.tenant, id.0);
    let before = app.db.run(async move |store| store.configuration(tenant, id).await).await?.ok_or_else(unknown)?;
    let settings = body.apply(&app, Some(before.settings))?;
    let saving = async move |store: shared::db::Store| {
        store.update_configuration(tenant, id, &settings).await?;
        store.configuration(tenant, id).await
    };
    let changed = app.db.run(saving).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(ConfigurationView::from(changed)))
}

/// Removes a webhook configuration. What was accepted for it is still sent, signed with the tenant's own secret.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/webhooks/configurations/{id}", tag = "managing", params(("id" = Uuid, Path, description = "The configuration")),
    responses((status = 204, description = "Removed")))]
pub async fn remove(admin: Admin, id: Id, app: Data<App>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let was_there = app.db.run(async move |store| store.remove_configuration(tenant, id).await).await?;
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_those_of_messages_and_a_few_more() {
        for good in ["message.sent", "message.read", "message.received", "dead_letter.created"] {
            assert!(is_event(good), "{good}");
        }
        for bad in ["", "message", "message.", "message.eaten", "sent", "*"] {
            assert!(!is_event(bad), "{bad}");
        }
    }

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
        assert!(is_secret("X-Api-Key") && is_secret("Authorization") && !is_secret("X-Source"));
    }
}
