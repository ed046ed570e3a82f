//! E-mail through SendGrid (v3 Mail Send).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::DateTime;
use domain::{
    Channel, Fault, Outcome, ProviderName, clock,
    contract::{
        Order, Provider,
        provider::{Checking, DELIVERY_TAG, Sending},
        submission::Attachment,
    },
};
use lettre::message::Mailbox;
use reqwest::{Client, Url};
use runtime::config::Config;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{
    super::vendor::{self, SetupError, VendorResponse},
    compose::{self, non_empty},
};

const NAME: &str = "sendgrid";
/// The content type of an attachment without a valid one.
const UNKNOWN_BYTES: &str = "application/octet-stream";

/// SendGrid, with one key.
pub struct Sendgrid {
    client: Client,
    key: SecretString,
    from: Mailbox,
    send_url: Url,
    scopes_url: Url,
    breaker: Arc<str>,
}

impl Sendgrid {
    /// Creates the provider from the settings. It opens no connection.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let email = &config.email;
        let key = email.sendgrid.api_key.clone().ok_or(SetupError::Incomplete("SENDGRID_API_KEY"))?;
        let from = email.from.as_deref().ok_or(SetupError::Incomplete("EMAIL_FROM"))?;
        let url = |path| email.sendgrid.base_url.join(path).map_err(|_| SetupError::Unusable("SENDGRID_BASE_URL"));
        let timeout = config.call_timeout(Channel::Email);
        Ok(Self {
            client: vendor::client(timeout).build().map_err(SetupError::Client)?,
            from: from.parse().map_err(SetupError::From)?,
            send_url: url("v3/mail/send")?,
            scopes_url: url("v3/scopes")?,
            breaker: vendor::breaker_key(ProviderName::Sendgrid, key.expose_secret()),
            key,
        })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let request = self.client.post(self.send_url.clone()).bearer_auth(self.key.expose_secret());
        match vendor::call(NAME, request.json(&mail(&self.from, order)).timeout(order.timeout)).await {
            Ok(response) => classify(&response),
            Err(outcome) => outcome,
        }
    }
}

impl Provider for Sendgrid {
    fn name(&self) -> ProviderName {
        ProviderName::Sendgrid
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.breaker))
    }

    fn check(&self) -> Checking<'_> {
        let request = self.client.get(self.scopes_url.clone()).bearer_auth(self.key.expose_secret());
        Box::pin(vendor::check(NAME, request))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

#[derive(Serialize)]
struct Mail<'a> {
    personalizations: [Personalization<'a>; 1],
    from: Person<'a>,
    subject: &'a str,
    content: Vec<Part<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<File<'a>>,
    headers: BTreeMap<&'static str, String>,
    /// Comes back with every event about this mail.
    custom_args: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Personalization<'a> {
    to: [Person<'a>; 1],
}

#[derive(Serialize)]
struct Person<'a> {
    email: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    value: &'a str,
}

#[derive(Serialize)]
struct File<'a> {
    content: &'a str,
    filename: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    disposition: &'static str,
}

fn mail<'a>(from: &'a Mailbox, order: &'a Order) -> Mail<'a> {
    let content = &order.content;
    let mut headers = BTreeMap::from_iter(compose::extra_headers(order));
    headers.insert("Message-ID", compose::message_id(from, order));
    let parts = [("text/plain", non_empty(&content.message)), ("text/html", non_empty(&content.html))];
    let mut parts: Vec<_> = parts.into_iter().filter_map(|(kind, text)| Some(Part { kind, value: text? })).collect();
    if parts.is_empty() {
        // SendGrid wants a part, and a part of at least one character.
        parts.push(Part { kind: "text/plain", value: " " });
    }
    Mail {
        personalizations: [Personalization { to: [Person { email: order.recipient.reveal(), name: None }] }],
        from: Person { email: from.email.as_ref(), name: from.name.as_deref() },
        subject: non_empty(&content.title).unwrap_or(compose::SUBJECT_DEFAULT),
        content: parts,
        attachments: content.attachments.iter().map(file).collect(),
        headers,
        custom_args: BTreeMap::from([(DELIVERY_TAG, order.delivery.to_string())]),
    }
}

/// SendGrid refuses a type with parameters.
fn file(file: &Attachment) -> File<'_> {
    let kind = file.content_type.split(';').next().map(str::trim).filter(|kind| kind.contains('/'));
    File {
        content: &file.content,
        filename: &file.filename,
        kind: kind.unwrap_or(UNKNOWN_BYTES),
        disposition: "attachment",
    }
}

fn classify(response: &VendorResponse) -> Outcome {
    let status = response.status.as_u16();
    let fault = |detail: &str| Fault::new(response.status.as_str(), format!("{NAME} answered {status}: {detail}"));
    match status {
        // SendGrid answers 200 only in sandbox mode, which Posthaste does not use.
        202 => vendor::sent(response, response.header("x-message-id").and_then(vendor::reference)),
        400 | 403 if is_about_the_sender(response) => {
            Outcome::Misconfigured(fault("the sender (EMAIL_FROM) is refused"))
        }
        404 | 405 => Outcome::Misconfigured(fault("SENDGRID_BASE_URL is not the address of its API")),
        429 => Outcome::Throttled(fault("too much at once"), response.retry_after().or_else(|| reset(response))),
        _ => response.classify(NAME, None),
    }
}

/// SendGrid's error body. Its messages can quote the mail, so they are not read.
#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<FieldError>,
}

#[derive(Deserialize)]
struct FieldError {
    field: Option<String>,
}

fn is_about_the_sender(response: &VendorResponse) -> bool {
    let fields = response.json::<ErrorBody>().into_iter().flat_map(|body| body.errors).filter_map(|error| error.field);
    fields.into_iter().any(|field| field == "from" || field.starts_with("from."))
}

/// The time until SendGrid's rate limit resets.
fn reset(response: &VendorResponse) -> Option<Duration> {
    let at = DateTime::from_timestamp(response.header("x-ratelimit-reset")?.parse().ok()?, 0)?;
    (at - clock::now()).to_std().ok()
}
