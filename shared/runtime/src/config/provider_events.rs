//! The keys that verify the events of providers, and the selection of tracked mails.

use domain::p256::PublicKey;

use super::{categories::Categories, reader::Reader, table};

/// The keys that verify the events of providers. Twilio's token is in [`super::TwilioConfig`].
#[derive(Clone, Debug)]
pub struct ProviderEventsConfig {
    /// The key of SendGrid's event webhook. Without a key its events are refused.
    pub sendgrid_key: Option<PublicKey>,
    /// Our topics of SNS. Without a topic all messages of SNS are refused.
    pub sns_topics: Vec<String>,
    /// The file of the certificate that is trusted instead of those that SNS names.
    pub sns_cert_path: Option<String>,
    /// Whether SHA-1 signatures of SNS are refused.
    pub sns_requires_sha256: bool,
}

/// Which mails are tracked.
#[derive(Clone, Debug, Default)]
pub struct TrackConfig {
    /// Those whose opening is recorded.
    pub opens: Categories,
    /// The mails whose clicks are recorded.
    pub clicks: Categories,
}

impl TrackConfig {
    /// Whether any mail is tracked at all.
    pub fn is_on(&self) -> bool {
        self.opens != Categories::None || self.clicks != Categories::None
    }
}

pub(super) fn read(reader: &mut Reader) -> ProviderEventsConfig {
    ProviderEventsConfig {
        sendgrid_key: reader.get(&table::SENDGRID_WEBHOOK_PUBLIC_KEY),
        sns_topics: reader.get(&table::SNS_TOPIC_ARNS).unwrap_or_default(),
        sns_cert_path: reader.get(&table::SNS_SIGNING_CERT_PATH),
        sns_requires_sha256: reader.get(&table::SNS_REQUIRE_SHA256).unwrap_or_default(),
    }
}

pub(super) fn tracking(reader: &mut Reader) -> TrackConfig {
    TrackConfig {
        opens: reader.get(&table::TRACK_OPENS).unwrap_or_default(),
        clicks: reader.get(&table::TRACK_CLICKS).unwrap_or_default(),
    }
}
