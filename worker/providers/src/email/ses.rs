//! E-mail through Amazon SES (v2 SendEmail).

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{
    Channel, Fault, Outcome, ProviderName,
    contract::{
        Order, Provider,
        provider::{Checking, DELIVERY_TAG, Sending},
    },
};
use lettre::message::Mailbox;
use reqwest::Method;
use runtime::config::Config;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        aws::{self, Aws},
        vendor::{self, SetupError, VendorResponse},
    },
    compose::{self, ComposeError, non_empty},
};

const NAME: &str = "ses";
const JSON: &str = "application/json";

/// Amazon SES, with one key.
pub struct Ses {
    aws: Aws,
    from: Mailbox,
    configuration_set: Option<String>,
}

impl Ses {
    /// Creates the provider from the settings. It opens no connection.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let aws = Aws::new(config, (ProviderName::Ses, Channel::Email), ("email", "ses"))?;
        let from = config.email.from.as_deref().ok_or(SetupError::Incomplete("EMAIL_FROM"))?;
        let from = from.parse().map_err(SetupError::From)?;
        Ok(Self { aws, from, configuration_set: config.email.ses_configuration_set.clone() })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let body = match self.body(order).await {
            Ok(body) => body,
            Err(error) => return error.into_outcome(),
        };
        match self.aws.send(NAME, order, "v2/email/outbound-emails", JSON, body).await {
            Ok(response) => classify(&response),
            Err(outcome) => outcome,
        }
    }

    async fn body(&self, order: &Order) -> Result<Vec<u8>, ComposeError> {
        let content = if order.content.attachments.is_empty() {
            simple(order)
        } else {
            let from = self.from.clone();
            let mail = compose::compose_blocking(order, move |order| compose::compose(&from, order)).await?;
            json!({"Raw": {"Data": STANDARD.encode(mail.bytes)}})
        };
        let mut body = json!({
            "FromEmailAddress": sender(&self.from),
            "Destination": {"ToAddresses": [order.recipient.reveal()]},
            "Content": content,
            "EmailTags": [{"Name": DELIVERY_TAG, "Value": order.delivery.to_string()}],
        });
        if let (Some(set), Some(fields)) = (&self.configuration_set, body.as_object_mut()) {
            fields.insert("ConfigurationSetName".to_owned(), json!(set));
        }
        Ok(body.to_string().into_bytes())
    }
}

impl Provider for Ses {
    fn name(&self) -> ProviderName {
        ProviderName::Ses
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.aws.breaker))
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(self.aws.check(NAME, Method::GET, "v2/email/account", JSON, Vec::new()))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

fn simple(order: &Order) -> Value {
    let content = &order.content;
    let text = |text: &str| json!({"Data": text, "Charset": "UTF-8"});
    let mut body = serde_json::Map::new();
    for (name, part) in [("Text", non_empty(&content.message)), ("Html", non_empty(&content.html))] {
        body.extend(part.map(|part| (name.to_owned(), text(part))));
    }
    if body.is_empty() {
        body.insert("Text".to_owned(), text(""));
    }
    let headers = compose::extra_headers(order).into_iter().map(|(name, value)| json!({"Name": name, "Value": value}));
    json!({"Simple": {
        "Subject": text(non_empty(&content.title).unwrap_or(compose::SUBJECT_DEFAULT)),
        "Body": body,
        "Headers": headers.collect::<Vec<_>>(),
    }})
}

/// The sender in header form: SES expects a name beyond ASCII to be encoded (RFC 2047).
fn sender(from: &Mailbox) -> String {
    match from.name.as_deref().filter(|name| !name.is_ascii()) {
        Some(name) => format!("=?utf-8?b?{}?= <{}>", STANDARD.encode(name), from.email),
        None => from.to_string(),
    }
}

#[derive(Deserialize)]
struct Accepted {
    #[serde(rename = "MessageId")]
    message_id: String,
}

/// SES gives the reason only as text. The text quotes addresses, so it is read and never stored.
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(alias = "Message")]
    message: String,
}

fn classify(response: &VendorResponse) -> Outcome {
    if response.status.is_success()
        && let Some(accepted) = response.json::<Accepted>()
        && let Some(id) = vendor::reference(&accepted.message_id)
    {
        return vendor::sent(response, Some(id));
    }
    let code = aws::error_code(response).unwrap_or_default();
    let misconfigured =
        |why: &str| Outcome::Misconfigured(Fault::new(&*code, format!("{NAME} answered {code}: {why}")));
    let unverified = || response.json::<ErrorBody>().is_some_and(|body| body.message.contains("not verified"));
    match &*code {
        "AccountSuspendedException" | "SendingPausedException" => misconfigured("the account may not send"),
        "MailFromDomainNotVerifiedException" => misconfigured("the sender's MAIL FROM domain is not verified"),
        "NotFoundException" => misconfigured("SES_CONFIGURATION_SET is not known there"),
        "MessageRejected" if unverified() => misconfigured("an address is not verified"),
        _ => aws::classify(NAME, response),
    }
}
