//! Credentials of the kinds that Google and Apple give out, made up for a test.

use std::{path::PathBuf, sync::LazyLock};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256,
        UnparsedPublicKey, VerificationAlgorithm,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use domain::ProviderName;
use serde_json::{Value, json};

/// A project of Firebase.
pub const PROJECT: &str = "project-1";
/// Where the messages of that project go.
pub const MESSAGES: &str = "/v1/projects/project-1/messages:send";
/// The end of the URL of the token endpoint.
pub const TOKEN: &str = "/token";

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
static APPLE: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let key = || EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    [key().as_ref().to_vec(), key().as_ref().to_vec()]
});

/// Two sets of credentials of a service that is at `base`; the words `canary` and `another` in a value tell them apart.
pub fn settings(service: ProviderName, base: &str) -> Vec<(&'static str, String)> {
    let path = |name: &str| written(&format!("{name}-{}", base.replace(['/', ':'], "-"))).display().to_string();
    let all = match service {
        ProviderName::Fcm => {
            for word in ["canary", "another"] {
                std::fs::write(path(word), service_account(base, word)).unwrap();
            }
            vec![("FCM_CREDENTIALS_PATH", path("canary")), ("FCM_BASE_URL", base.to_owned())]
        }
        ProviderName::Apns => {
            for (word, key) in ["canary", "another"].iter().zip(&*APPLE) {
                std::fs::write(path(word), pem("PRIVATE KEY", key)).unwrap();
            }
            vec![
                ("APNS_CERTIFICATE_PATH", path("canary")),
                ("APNS_KEY_ID", "ABC123DEFG".to_owned()),
                ("APNS_TEAM_ID", "DEF123GHIJ".to_owned()),
                ("APNS_TOPIC", "com.example.app".to_owned()),
                ("APNS_BASE_URL", base.to_owned()),
            ]
        }
        _ => panic!("{service} has no file"),
    };
    [vec![("PUSH_BACKEND", service.to_string())], all].concat()
}

/// The path of a file of this test process; files of the same name have the same content.
pub fn written(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("posthaste-push-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

/// Lines of base64 between two marks.
pub fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

fn service_account(base: &str, word: &str) -> String {
    let key: Pkcs8V1Der<'_> = RSA.as_der().unwrap();
    json!({"type": "service_account", "project_id": PROJECT, "private_key_id": format!("key-{word}"),
        "private_key": pem("PRIVATE KEY", key.as_ref()), "client_email": "push@project-1.iam.gserviceaccount.com",
        "token_uri": format!("{}{TOKEN}", base.trim_end_matches('/'))})
    .to_string()
}

/// The claims of what was signed by the service account; `None`: it was not.
pub fn by_google(token: &str) -> Option<(Value, Value)> {
    let key: PublicKeyX509Der<'_> = RSA.public_key().as_der().unwrap();
    verified(token, &RSA_PKCS1_2048_8192_SHA256, key.as_ref())
}

/// The claims of what was signed by Apple's key; `None`: it was not.
pub fn by_apple(token: &str) -> Option<(Value, Value)> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &APPLE[0]).unwrap();
    verified(token, &ECDSA_P256_SHA256_FIXED, key.public_key().as_ref())
}

/// Header and claims, if `key` signed them.
pub fn verified(token: &str, algorithm: &'static dyn VerificationAlgorithm, key: &[u8]) -> Option<(Value, Value)> {
    let (text, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    UnparsedPublicKey::new(algorithm, key).verify(text.as_bytes(), &signature).ok()?;
    let part = |text: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
    let (header, claims) = text.split_once('.')?;
    Some((part(header), part(claims)))
}
