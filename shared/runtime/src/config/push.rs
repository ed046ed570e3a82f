//! The rules between the settings of push notifications.

use std::path::PathBuf;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::ProviderName;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{reader::Reader, setting::Setting, table};

/// The backends of push notifications.
#[derive(Clone, Debug)]
pub struct PushConfig {
    /// The backends in order; each serves its own kind of device. Empty if push is not configured.
    pub backends: Vec<ProviderName>,
    /// Firebase Cloud Messaging; always set if `backends` names fcm.
    pub fcm: Option<FcmConfig>,
    /// Apple's push service; always set if `backends` names apns.
    pub apns: Option<ApnsConfig>,
    /// Web Push; always set if `backends` names webpush.
    pub webpush: Option<VapidConfig>,
}

/// Firebase Cloud Messaging.
#[derive(Clone, Debug)]
pub struct FcmConfig {
    /// The file of the service account.
    pub credentials_path: PathBuf,
    /// The project, if it differs from that of the file.
    pub project_id: Option<String>,
    /// Where the API is; ends in a slash.
    pub base_url: Url,
}

/// Apple's push service.
#[derive(Clone, Debug)]
pub struct ApnsConfig {
    /// A token key (`.p8`) if `signer` is set, else a certificate and its key.
    pub certificate_path: PathBuf,
    /// The owner of the token key; `None`: we identify ourselves with a certificate.
    pub signer: Option<ApnsSigner>,
    /// The app's bundle id.
    pub topic: String,
    /// The address of the service; it ends in a slash.
    pub base_url: Url,
}

/// Names the key that signs tokens for Apple.
#[derive(Clone, Debug)]
pub struct ApnsSigner {
    /// The key's id.
    pub key_id: String,
    /// The team's id.
    pub team_id: String,
}

/// The keys that identify us to browsers' push services (RFC 8292).
#[derive(Clone, Debug)]
pub struct VapidConfig {
    /// An uncompressed point on P-256, in base64url.
    pub public_key: String,
    /// Its scalar, in base64url.
    pub private_key: SecretString,
    /// The contact for a push service: a mailto: or https: URL.
    pub subject: String,
}

pub(super) fn read(reader: &mut Reader) -> Option<PushConfig> {
    let backends = reader.get(&table::PUSH_BACKEND).unwrap_or_default();
    let fcm = fcm(reader);
    let apns = apns(reader);
    let webpush = webpush(reader);
    if backends.contains(&ProviderName::Fcm) {
        need(reader, &table::FCM_CREDENTIALS_PATH, "fcm");
    }
    if backends.contains(&ProviderName::Apns) {
        need(reader, &table::APNS_CERTIFICATE_PATH, "apns");
        need(reader, &table::APNS_TOPIC, "apns");
    }
    if backends.contains(&ProviderName::Webpush) {
        need(reader, &table::PUSH_VAPID_PUBLIC_KEY, "webpush");
        need(reader, &table::PUSH_VAPID_PRIVATE_KEY, "webpush");
        need(reader, &table::PUSH_VAPID_SUBJECT, "webpush");
    }
    Some(PushConfig { backends, fcm, apns, webpush })
}

fn need<T>(reader: &mut Reader, setting: &'static Setting<T>, backend: &str) {
    if !reader.is_set(setting) {
        reader.missing(setting, &format!("is missing, and PUSH_BACKEND names {backend}"));
    }
}

fn fcm(reader: &mut Reader) -> Option<FcmConfig> {
    let credentials_path = reader.get(&table::FCM_CREDENTIALS_PATH);
    let project_id = reader.get(&table::FCM_PROJECT_ID);
    let base_url = reader.get(&table::FCM_BASE_URL);
    Some(FcmConfig { credentials_path: credentials_path?.into(), project_id, base_url: base_url? })
}

fn apns(reader: &mut Reader) -> Option<ApnsConfig> {
    let certificate_path = reader.get(&table::APNS_CERTIFICATE_PATH);
    let (key_id, team_id) = (reader.get(&table::APNS_KEY_ID), reader.get(&table::APNS_TEAM_ID));
    let topic = reader.get(&table::APNS_TOPIC);
    let base_url = reader.get(&table::APNS_BASE_URL);
    match (reader.is_set(&table::APNS_KEY_ID), reader.is_set(&table::APNS_TEAM_ID)) {
        (true, false) => reader.missing(&table::APNS_TEAM_ID, "is missing, and APNS_KEY_ID is set"),
        (false, true) => reader.missing(&table::APNS_KEY_ID, "is missing, and APNS_TEAM_ID is set"),
        _ => {}
    }
    let signer = key_id.zip(team_id).map(|(key_id, team_id)| ApnsSigner { key_id, team_id });
    Some(ApnsConfig { certificate_path: certificate_path?.into(), signer, topic: topic?, base_url: base_url? })
}

fn webpush(reader: &mut Reader) -> Option<VapidConfig> {
    let public_key = reader.get(&table::PUSH_VAPID_PUBLIC_KEY);
    let private_key = reader.get(&table::PUSH_VAPID_PRIVATE_KEY);
    let subject = reader.get(&table::PUSH_VAPID_SUBJECT);
    let (public_key, private_key) = (public_key?, private_key?);
    let keys = VapidConfig { public_key, private_key, subject: subject.unwrap_or_default() };
    if keys.key_pair().is_none() {
        let problem = "is not the private key of PUSH_VAPID_PUBLIC_KEY: take both from one pair";
        reader.unfit(&table::PUSH_VAPID_PRIVATE_KEY, problem);
    }
    Some(keys).filter(|keys| !keys.subject.is_empty())
}

impl VapidConfig {
    /// The pair that signs; `None` if the two keys do not match.
    pub fn key_pair(&self) -> Option<EcdsaKeyPair> {
        let private = URL_SAFE_NO_PAD.decode(self.private_key.expose_secret()).ok()?;
        let public = URL_SAFE_NO_PAD.decode(&self.public_key).ok()?;
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &private, &public).ok()
    }
}
