//! The rules between the settings of Amazon Web Services, which Amazon SES and SNS share.

use secrecy::SecretString;
use url::Url;

use super::{reader::Reader, table};

/// Amazon Web Services. Region, key and secret are set if a backend needs them.
#[derive(Clone, Debug)]
pub struct AwsConfig {
    /// The region.
    pub region: Option<String>,
    /// The name of the key.
    pub access_key_id: Option<String>,
    /// The key.
    pub secret_access_key: Option<SecretString>,
    /// The session token of a temporary key.
    pub session_token: Option<SecretString>,
    /// The address of the services, if it is not Amazon's own; it ends in a slash.
    pub endpoint_url: Option<Url>,
}

pub(super) fn read(reader: &mut Reader) -> AwsConfig {
    AwsConfig {
        region: reader.get(&table::AWS_REGION),
        access_key_id: reader.get(&table::AWS_ACCESS_KEY_ID),
        secret_access_key: reader.get(&table::AWS_SECRET_ACCESS_KEY),
        session_token: reader.get(&table::AWS_SESSION_TOKEN),
        endpoint_url: reader.get(&table::AWS_ENDPOINT_URL),
    }
}

/// Reports the settings that a backend lacks; `asked` names it, such as `SMS_BACKEND names sns`.
pub(super) fn check(reader: &mut Reader, asked: &str) {
    let why = format!("is missing, and {asked}");
    for setting in [&table::AWS_REGION, &table::AWS_ACCESS_KEY_ID] {
        if !reader.is_set(setting) && !reader.is_missing(setting) {
            reader.missing(setting, &why);
        }
    }
    if !reader.is_set(&table::AWS_SECRET_ACCESS_KEY) && !reader.is_missing(&table::AWS_SECRET_ACCESS_KEY) {
        reader.missing(&table::AWS_SECRET_ACCESS_KEY, &why);
    }
}
