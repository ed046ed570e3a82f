//! Text messages through Amazon SNS (Publish to a phone number).

use std::sync::Arc;

use domain::{
    Channel, Fault, Outcome, ProviderName,
    contract::{
        Order, Provider,
        provider::{Checking, Sending},
    },
};
use reqwest::Method;
use runtime::config::Config;
use url::form_urlencoded;

use super::super::{
    aws::{self, Aws},
    vendor::{self, FORM, SetupError, VendorResponse},
};

const NAME: &str = "sns";
const VERSION: &str = "2010-03-31";
/// The category that SNS may send as promotional: cheaper and less reliable.
const MARKETING: &str = "marketing";

/// Amazon SNS, with one key.
pub struct Sns {
    aws: Aws,
    sender: Option<String>,
}

impl Sns {
    /// Creates the provider from the settings. It opens no connection.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let aws = Aws::new(config, (ProviderName::Sns, Channel::Sms), ("sns", "sns"))?;
        Ok(Self { aws, sender: config.sms.sns_sender_id.clone() })
    }

    async fn publish(&self, order: &Order) -> Outcome {
        match self.aws.send(NAME, order, "", FORM, self.form(order).into_bytes()).await {
            Ok(response) => classify(&response),
            Err(outcome) => outcome,
        }
    }

    fn form(&self, order: &Order) -> String {
        let is_marketing = order.content.category.as_deref() == Some(MARKETING);
        let kind = if is_marketing { "Promotional" } else { "Transactional" };
        let sender = self.sender.as_deref().map(|sender| ("AWS.SNS.SMS.SenderID", sender));
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", "Publish")
            .append_pair("Version", VERSION)
            .append_pair("PhoneNumber", order.recipient.reveal())
            .append_pair("Message", order.content.message.as_deref().unwrap_or_default());
        for (index, (name, value)) in [("AWS.SNS.SMS.SMSType", kind)].into_iter().chain(sender).enumerate() {
            let entry = format!("MessageAttributes.entry.{}", index + 1);
            form.append_pair(&format!("{entry}.Name"), name)
                .append_pair(&format!("{entry}.Value.DataType"), "String")
                .append_pair(&format!("{entry}.Value.StringValue"), value);
        }
        form.finish()
    }
}

impl Provider for Sns {
    fn name(&self) -> ProviderName {
        ProviderName::Sns
    }

    fn breaker_key(&self, _order: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.aws.breaker))
    }

    fn check(&self) -> Checking<'_> {
        let form = format!("Action=GetSMSAttributes&Version={VERSION}");
        Box::pin(self.aws.check(NAME, Method::POST, "", FORM, form.into_bytes()))
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.publish(order))
    }
}

fn classify(response: &VendorResponse) -> Outcome {
    if response.status.is_success()
        && let Some(id) = aws::element(response, "MessageId").and_then(|id| vendor::reference(&id))
    {
        return vendor::sent(response, Some(id));
    }
    match aws::error_code(response).as_deref() {
        Some("OptedOut" | "OptedOutException") => {
            let detail = "sns answered OptedOut: the recipient has opted out";
            Outcome::AddressDead(Fault::new("OptedOut", detail))
        }
        _ => aws::classify(NAME, response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, order};

    #[test]
    fn the_kind_of_message_and_the_sender_are_told() {
        let key = [("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let form = |content: &str, sender: Option<&'static str>| {
            let settings = key.into_iter().chain(sender.map(|sender| ("SNS_SENDER_ID", sender)));
            let sns = Sns::new(&config(settings.map(|(name, value)| (name, value.to_owned())))).unwrap();
            let form = sns.form(&order(Channel::Sms, "+4915112345678", content));
            let pairs: Vec<(String, String)> = form_urlencoded::parse(form.as_bytes()).into_owned().collect();
            pairs
                .into_iter()
                .filter(|(name, _)| !name.ends_with("DataType"))
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        let start = ["Publish", VERSION, "+4915112345678", "m", "AWS.SNS.SMS.SMSType"];
        let with = |more: &[&'static str]| [&start[..], more].concat();
        assert_eq!(form(r#"{"message": "m"}"#, None), with(&["Transactional"]));
        assert_eq!(form(r#"{"message": "m", "category": "marketing"}"#, None), with(&["Promotional"]));
        let sender = ["Transactional", "AWS.SNS.SMS.SenderID", "NEXUS"];
        assert_eq!(form(r#"{"message": "m", "title": "unseen"}"#, Some("NEXUS")), with(&sender));
    }
}
