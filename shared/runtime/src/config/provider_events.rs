//! What vouches for the events of providers, and which mails are tracked.

use domain::p256::PublicKey;

use super::{categories::Categories, reader::Reader, table};

/// What vouches for the events of providers. Twilio's token is in [`super::TwilioConfig`].
#[derive(Clone, Debug)]
pub struct ProviderEventsConfig {
    /// The key of SendGrid's event webhook; without one its events are refused.
    pub sendgrid_key: Option<PublicKey>,
    /// The topics of SNS that are ours; without one everything SNS sends is refused.
    pub sns_topics: Vec<String>,
    /// The file of the certificate to trust instead of fetching those of SNS.
    pub sns_cert_path: Option<String>,
    /// Signatures of SNS by SHA-1 are refused.
    pub sns_requires_sha256: bool,
}

/// Which mails are tracked.
#[derive(Clone, Debug, Default)]
pub struct TrackConfig {
    /// Those whose opening is recorded.
    pub opens: Categories,
    /// Those whose followed links are recorded.
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
