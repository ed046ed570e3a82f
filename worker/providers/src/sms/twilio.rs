//! Text messages through Twilio (Messages, 2010-04-01).

use std::sync::Arc;

use domain::{
    Channel, Fault, Outcome, ProviderName,
    contract::{
        Order, Provider,
        provider::{Checking, Sending},
    },
};
use reqwest::{Client, Url, header::CONTENT_TYPE};
use runtime::config::Config;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::form_urlencoded;

use super::super::vendor::{self, FORM, SetupError, VendorResponse};

const NAME: &str = "twilio";

/// Twilio, with one account.
pub struct Twilio {
    client: Client,
    account: String,
    token: SecretString,
    from: String,
    account_url: Url,
    messages_url: Url,
    /// Twilio sends its reports here. The delivery's id is added, so that a report also resolves a call whose response was lost.
    reports_url: Url,
    breaker: Arc<str>,
}

impl Twilio {
    /// Creates the provider from the settings. It opens no connection.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let twilio = &config.sms.twilio;
        let account = twilio.account_sid.clone().ok_or(SetupError::Incomplete("TWILIO_ACCOUNT_SID"))?;
        let token = twilio.auth_token.clone().ok_or(SetupError::Incomplete("TWILIO_AUTH_TOKEN"))?;
        let from = twilio.from.clone().ok_or(SetupError::Incomplete("TWILIO_FROM_NUMBER"))?;
        let url = |last: &[&str]| {
            let mut url = twilio.base_url.clone();
            let unusable = || SetupError::Unusable("TWILIO_BASE_URL");
            url.path_segments_mut().map_err(|()| unusable())?.pop_if_empty().extend(last);
            Ok::<_, SetupError>(url)
        };
        let accounts = ["2010-04-01", "Accounts"];
        let reports = config.http.public_url.join("webhooks/twilio");
        let secret = format!("{account}:{}", token.expose_secret());
        Ok(Self {
            client: vendor::client(config.call_timeout(Channel::Sms)).build().map_err(SetupError::Client)?,
            account_url: url(&[&accounts[..], &[&format!("{account}.json")]].concat())?,
            messages_url: url(&[&accounts[..], &[&account, "Messages.json"]].concat())?,
            reports_url: reports.map_err(|_| SetupError::Unusable("PUBLIC_URL"))?,
            breaker: vendor::breaker_key(ProviderName::Twilio, &secret),
            account,
            token,
            from,
        })
    }

    async fn post(&self, order: &Order) -> Outcome {
        let request = self.client.post(self.messages_url.clone());
        let request = request.basic_auth(&self.account, Some(self.token.expose_secret()));
        let request = request.header(CONTENT_TYPE, FORM).body(self.form(order)).timeout(order.timeout);
        match vendor::call(NAME, request).await {
            Ok(response) => classify(&response),
            Err(outcome) => outcome,
        }
    }

    fn form(&self, order: &Order) -> String {
        let sender = if is_messaging_service(&self.from) { "MessagingServiceSid" } else { "From" };
        let mut report_to = self.reports_url.clone();
        report_to.query_pairs_mut().append_pair("delivery", &order.delivery.to_string());
        form_urlencoded::Serializer::new(String::new())
            .append_pair("To", order.recipient.reveal())
            .append_pair(sender, &self.from)
            .append_pair("Body", order.content.message.as_deref().unwrap_or_default())
            .append_pair("StatusCallback", report_to.as_str())
            .finish()
    }
}

impl Provider for Twilio {
    fn name(&self) -> ProviderName {
        ProviderName::Twilio
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.breaker))
    }

    fn check(&self) -> Checking<'_> {
        let request = self.client.get(self.account_url.clone());
        Box::pin(vendor::check(NAME, request.basic_auth(&self.account, Some(self.token.expose_secret()))))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.post(order))
    }
}

/// True for the id of a messaging service: only its length tells it from a name or a number.
fn is_messaging_service(from: &str) -> bool {
    from.len() == 34 && from.starts_with("MG")
}

#[derive(Deserialize)]
struct Accepted {
    sid: String,
}

/// The message beside the code quotes the phone number, so it is not read.
#[derive(Deserialize)]
struct ErrorBody {
    code: u32,
}

fn classify(response: &VendorResponse) -> Outcome {
    if response.status.is_success() {
        let sid = response.json::<Accepted>().and_then(|accepted| vendor::reference(&accepted.sid));
        return match sid {
            Some(sid) => vendor::sent(response, Some(sid)),
            None => response.classify(NAME, None),
        };
    }
    let Some(ErrorBody { code }) = response.json() else { return classify_status(response, None) };
    let fault = |why: &str| Fault::new(code.to_string(), format!("{NAME} answered {code}: {why}"));
    match code {
        21211 => Outcome::AddressDead(fault("this is no phone number")),
        21610 => Outcome::AddressDead(fault("the recipient has opted out")),
        21614 | 21635 => Outcome::AddressDead(fault("the number takes no text messages")),
        20003 | 20005 | 20008 => Outcome::Misconfigured(fault("the account or its token is refused")),
        20404 => Outcome::Misconfigured(fault("there is no such account")),
        21606 | 21212 | 21603 | 21659 | 21660 | 21703 | 21705 => {
            Outcome::Misconfigured(fault("the sender (TWILIO_FROM_NUMBER) is refused"))
        }
        21608 => Outcome::Misconfigured(fault("a trial account writes to numbers that it verified only")),
        21609 => Outcome::Misconfigured(fault("PUBLIC_URL cannot be reached from outside")),
        21408 => Outcome::Misconfigured(fault("the account may not send to this country")),
        20429 | 21611 => Outcome::Throttled(fault("too much at once"), response.retry_after()),
        _ => classify_status(response, Some(code)),
    }
}

fn classify_status(response: &VendorResponse, code: Option<u32>) -> Outcome {
    match response.status.as_u16() {
        404 | 405 => {
            let detail =
                format!("{NAME} answered {}: TWILIO_BASE_URL is not the address of its API", response.status.as_u16());
            Outcome::Misconfigured(Fault::new(response.status.as_str(), detail))
        }
        _ => response.classify(NAME, code.map(|code| code.to_string()).as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, order};

    fn form(from: &str, public_url: &str) -> Vec<(String, String)> {
        let settings = [
            ("TWILIO_ACCOUNT_SID", "AC1"),
            ("TWILIO_AUTH_TOKEN", "t"),
            ("TWILIO_FROM_NUMBER", from),
            ("PUBLIC_URL", public_url),
        ];
        let twilio = Twilio::new(&config(settings.map(|(name, value)| (name, value.to_owned())))).unwrap();
        let order = order(Channel::Sms, "+4915112345678", r#"{"title": "unseen", "message": "a & b"}"#);
        form_urlencoded::parse(twilio.form(&order).as_bytes()).into_owned().collect()
    }

    fn value(form: &[(String, String)], name: &str) -> Option<String> {
        form.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_sender_is_a_number_a_name_or_a_messaging_service() {
        for (from, field) in [
            ("+15005550006", "From"),
            ("Posthaste", "From"),
            ("MG0123456789abcdef0123456789abcdef", "MessagingServiceSid"),
        ] {
            let form = form(from, "https://n.example");
            assert_eq!(value(&form, field).as_deref(), Some(from));
            let names: Vec<_> = form.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["To", field, "Body", "StatusCallback"]);
            assert_eq!(value(&form, "Body").as_deref(), Some("a & b"));
        }
    }

    #[test]
    fn reports_come_to_the_public_address_and_name_the_delivery() {
        for (public, start) in [
            ("https://n.example", "https://n.example/webhooks/twilio?delivery="),
            ("https://n.example/base/", "https://n.example/base/webhooks/twilio?delivery="),
        ] {
            let callback = value(&form("+15005550006", public), "StatusCallback").unwrap();
            let id = callback.strip_prefix(start).unwrap_or_else(|| panic!("{callback}"));
            assert!(id.parse::<uuid::Uuid>().is_ok(), "{callback}");
        }
    }
}
