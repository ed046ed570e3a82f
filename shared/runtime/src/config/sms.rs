//! The rules between the settings of text messages.

use domain::ProviderName;
use secrecy::SecretString;
use url::Url;

use super::{aws, reader::Reader, table};

/// The backends and the sender of text messages.
#[derive(Clone, Debug)]
pub struct SmsConfig {
    /// The backends in order; empty if text messages are not configured.
    pub backends: Vec<ProviderName>,
    /// Twilio.
    pub twilio: TwilioConfig,
    /// The sender's name through Amazon SNS.
    pub sns_sender_id: Option<String>,
}

/// Twilio. Account, token and sender are set if `SMS_BACKEND` names it.
#[derive(Clone, Debug)]
pub struct TwilioConfig {
    /// The account.
    pub account_sid: Option<String>,
    /// Its token, which also signs Twilio's reports.
    pub auth_token: Option<SecretString>,
    /// A phone number, a name, or the id of a messaging service (`MG…`).
    pub from: Option<String>,
    /// Where it is; ends in a slash.
    pub base_url: Url,
}

pub(super) fn read(reader: &mut Reader) -> Option<SmsConfig> {
    let named = reader.get(&table::SMS_BACKEND);
    let account_sid = reader.get(&table::TWILIO_ACCOUNT_SID);
    let auth_token = reader.get(&table::TWILIO_AUTH_TOKEN);
    let from = reader.get(&table::TWILIO_FROM_NUMBER);
    let base_url = reader.get(&table::TWILIO_BASE_URL);
    let sns_sender_id = reader.get(&table::SNS_SENDER_ID);
    let by_account = || if reader.is_set(&table::TWILIO_ACCOUNT_SID) { vec![ProviderName::Twilio] } else { Vec::new() };
    let backends = if reader.is_set(&table::SMS_BACKEND) { named? } else { by_account() };
    if backends.contains(&ProviderName::Twilio) {
        check_twilio(reader);
    }
    if backends.contains(&ProviderName::Sns) {
        aws::check(reader, "SMS_BACKEND names sns");
    }
    let twilio = TwilioConfig { account_sid, auth_token, from, base_url: base_url? };
    Some(SmsConfig { backends, twilio, sns_sender_id })
}

fn check_twilio(reader: &mut Reader) {
    const WHY: &str = "is missing, and text messages go out by twilio";
    for setting in [&table::TWILIO_ACCOUNT_SID, &table::TWILIO_FROM_NUMBER] {
        if !reader.is_set(setting) {
            reader.missing(setting, WHY);
        }
    }
    if !reader.is_set(&table::TWILIO_AUTH_TOKEN) {
        reader.missing(&table::TWILIO_AUTH_TOKEN, WHY);
    }
}
