//! Google, Apple and the push service of a browser, as far as a test needs them, and a browser that subscribed.

use std::path::PathBuf;

use anyhow::Result;
use aws_lc_rs::{
    agreement::{ECDH_P256, PrivateKey},
    encoding::{AsBigEndian, AsDer, EcPrivateKeyBin, Pkcs8V1Der, PublicKeyX509Der},
    rand,
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use crate::{HttpSink, Reply};

/// The services in one place, and the settings that lead there.
pub struct Services {
    /// Takes what is sent: FCM below `/v1/`, APNs below `/3/device/`, Web Push below `/wp/`.
    pub sink: HttpSink,
    /// The public key of the service account: SPKI in base64.
    pub google: String,
    /// The public key of the tokens for Apple: SPKI in base64.
    pub apple: String,
    /// The public key of the VAPID pair: SPKI in base64.
    pub vapid: String,
    /// Where the files of the settings are, until this is dropped.
    pub dir: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Services {
    /// Starts them; they take everything.
    pub async fn start() -> Result<Self> {
        let sink = sink().await?;
        let dir = std::env::temp_dir().join(format!("posthaste-push-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&dir)?;
        let rsa = KeyPair::generate(KeySize::Rsa2048)?;
        let private: Pkcs8V1Der = rsa.as_der()?;
        let account = json!({"type": "service_account", "project_id": "shop", "private_key_id": "k1",
            "private_key": pem("PRIVATE KEY", private.as_ref()), "client_email": "push@shop.iam.gserviceaccount.com",
            "token_uri": sink.url("/token")});
        std::fs::write(dir.join("fcm.json"), account.to_string())?;
        let google: PublicKeyX509Der = rsa.public_key().as_der()?;
        let apple = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        std::fs::write(dir.join("apns.p8"), pem("PRIVATE KEY", apple.to_pkcs8v1()?.as_ref()))?;
        let vapid = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let private: EcPrivateKeyBin = vapid.private_key().as_be_bytes()?;
        let settings = vec![
            ("PUSH_BACKEND", "fcm,apns,webpush".to_owned()),
            ("FCM_CREDENTIALS_PATH", dir.join("fcm.json").display().to_string()),
            ("FCM_BASE_URL", sink.url("/")),
            ("APNS_CERTIFICATE_PATH", dir.join("apns.p8").display().to_string()),
            ("APNS_KEY_ID", "ABC123DEFG".to_owned()),
            ("APNS_TEAM_ID", "DEF123GHIJ".to_owned()),
            ("APNS_TOPIC", "com.example.shop".to_owned()),
            ("APNS_BASE_URL", sink.url("/")),
            ("PUSH_VAPID_PUBLIC_KEY", URL_SAFE_NO_PAD.encode(vapid.public_key())),
            ("PUSH_VAPID_PRIVATE_KEY", URL_SAFE_NO_PAD.encode(private.as_ref())),
            ("PUSH_VAPID_SUBJECT", "mailto:ops@example.com".to_owned()),
        ];
        let google = STANDARD.encode(google.as_ref());
        Ok(Self { sink, google, apple: spki(&apple)?, vapid: spki(&vapid)?, dir, settings })
    }

    /// The settings that lead there, some of them replaced; an empty one is unset.
    pub fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        own.chain(more.iter().copied()).collect()
    }
}

/// A sink that answers as the services do.
async fn sink() -> Result<HttpSink> {
    let sink = HttpSink::start_local().await?;
    sink.reply_to("/token", Reply::json(200, &json!({"access_token": "t1", "expires_in": 3599})));
    sink.reply_to("/v1/*", Reply::json(200, &json!({"name": "projects/shop/messages/0:1"})));
    sink.reply_to("/3/device/*", Reply::ok().with_header("apns-id", "EC1BF194-B3B2-424A-9E79-84C1B7ED6DCF"));
    sink.reply_to("/wp/*", Reply::status(201));
    Ok(sink)
}

impl Drop for Services {
    fn drop(&mut self) {
        // A folder that is left over does no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A browser that subscribed.
pub struct Browser {
    key: PrivateKey,
    auth: [u8; 16],
    endpoint: String,
}

impl Browser {
    /// One whose push service takes messages at `endpoint`.
    pub fn at(endpoint: &str) -> Result<Self> {
        let mut auth = [0; 16];
        rand::fill(&mut auth)?;
        Ok(Self { key: PrivateKey::generate(&ECDH_P256)?, auth, endpoint: endpoint.to_owned() })
    }

    /// The result of `PushSubscription.toJSON()`.
    pub fn subscription(&self) -> Result<Value> {
        let public = URL_SAFE_NO_PAD.encode(self.key.compute_public_key()?);
        Ok(json!({"endpoint": self.endpoint, "expirationTime": null,
            "keys": {"p256dh": public, "auth": URL_SAFE_NO_PAD.encode(self.auth)}}))
    }

    /// The keys that decrypt messages, in base64: the private key and the secret.
    pub fn secrets(&self) -> Result<(String, String)> {
        let private: EcPrivateKeyBin = self.key.as_be_bytes()?;
        Ok((STANDARD.encode(private.as_ref()), STANDARD.encode(self.auth)))
    }
}

/// Lines of base64 between two marks.
pub fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

fn spki(key: &EcdsaKeyPair) -> Result<String> {
    let public: PublicKeyX509Der = key.public_key().as_der()?;
    Ok(STANDARD.encode(public.as_ref()))
}
