//! Push notifications through the whole of it, each to the service that its device belongs to.

use anyhow::Result;
use aws_lc_rs::{
    agreement::{ECDH_P256, PrivateKey},
    encoding::{AsBigEndian, AsDer, EcPrivateKeyBin, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use harness::{HttpSink, Reply, Stack, api::SOON};
use serde_json::{Value, json};

const IPHONE: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";

/// Google, Apple and a browser's push service in one place, and the settings that lead there.
struct Services {
    sink: HttpSink,
    settings: Vec<(&'static str, String)>,
    dir: std::path::PathBuf,
}

impl Services {
    async fn start() -> Result<Self> {
        let sink = HttpSink::start_local().await?;
        sink.reply_to("/token", Reply::json(200, &json!({"access_token": "t1", "expires_in": 3599})));
        sink.reply_to("/v1/*", Reply::json(200, &json!({"name": "projects/shop/messages/0:1"})));
        sink.reply_to("/3/device/*", Reply::ok().with_header("apns-id", "EC1BF194-B3B2-424A-9E79-84C1B7ED6DCF"));
        sink.reply_to("/wp/*", Reply::status(201));
        let dir = std::env::temp_dir().join(format!("posthaste-push-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&dir)?;
        let pem =
            |der: &[u8]| format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
        let rsa = KeyPair::generate(KeySize::Rsa2048)?;
        let rsa: Pkcs8V1Der = rsa.as_der()?;
        let account = json!({"type": "service_account", "project_id": "shop", "private_key_id": "k1",
            "private_key": pem(rsa.as_ref()), "client_email": "push@shop.iam.gserviceaccount.com", "token_uri": sink.url("/token")});
        std::fs::write(dir.join("fcm.json"), account.to_string())?;
        let apple = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
        std::fs::write(dir.join("apns.p8"), pem(apple.as_ref()))?;
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
        Ok(Self { sink, settings, dir })
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Left over, it disturbs nobody.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn subscription(endpoint: &str) -> Result<Value> {
    let key = PrivateKey::generate(&ECDH_P256)?.compute_public_key()?;
    Ok(json!({"endpoint": endpoint, "expirationTime": null,
        "keys": {"p256dh": URL_SAFE_NO_PAD.encode(key), "auth": URL_SAFE_NO_PAD.encode([7; 16])}}))
}

fn push(recipient: &Value) -> Value {
    json!({"channel": "push", "recipient": recipient, "title": "Shipped", "message": "It is on its way", "data": {"badge": 5}})
}

#[tokio::test]
async fn each_device_is_reached_through_its_own_service_and_a_dead_one_is_not_tried_again() -> Result<()> {
    let services = Services::start().await?;
    let stack = Stack::start_with(&services.settings()).await?;
    let (api, sink) = (stack.producer(), &services.sink);

    let browser = subscription(&sink.url("/wp/browser-1"))?;
    for (recipient, provider, path) in [
        (json!("device-token-here"), "fcm", "/v1/projects/shop/messages:send".to_owned()),
        (json!(IPHONE), "apns", format!("/3/device/{IPHONE}")),
        (browser.clone(), "webpush", "/wp/browser-1".to_owned()),
        (json!(subscription(&sink.url("/wp/browser-2"))?.to_string()), "webpush", "/wp/browser-2".to_owned()),
    ] {
        let id = api.send(&push(&recipient)).await?;
        let message = api.wait_status(&id, "sent").await?;
        assert_eq!(message["deliveries"][0]["provider"], provider);
        assert_eq!(sink.requests_to(&path).len(), 1, "{path}");
    }
    let fcm = sink.requests_to("/v1/projects/shop/messages:send")[0].json()?;
    assert_eq!(fcm["message"]["notification"], json!({"title": "Shipped", "body": "It is on its way"}));
    assert_eq!(fcm["message"]["data"], json!({"badge": "5"}));
    let apple = sink.requests_to(&format!("/3/device/{IPHONE}"))[0].json()?;
    assert_eq!(apple["aps"], json!({"alert": {"title": "Shipped", "body": "It is on its way"}, "badge": 5}));

    // The platform that the producer names wins over the shape of the token.
    let mut named = push(&json!("a-short-token"));
    named["data"]["platform"] = json!("ios");
    api.wait_status(&api.send(&named).await?, "sent").await?;
    assert_eq!(sink.requests_to("/3/device/a-short-token").len(), 1);

    sink.reply_to("/wp/browser-1", Reply::status(410));
    let id = api.send(&push(&browser)).await?;
    api.wait_status(&id, "failed").await?;
    assert_eq!(api.timeline(&id).await?["attempts"][0]["outcome"], "address_dead");
    let id = api.send(&push(&json!(browser.to_string()))).await?;
    api.wait_status_within(&id, "suppressed", SOON).await?;
    assert_eq!(sink.requests_to("/wp/browser-1").len(), 2, "the suppressed one was not sent");

    let refused = api.post("/api/notifications/send", &push(&subscription("https://10.0.0.1/push")?)).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (400, &json!("target_not_allowed")));
    let refused = api.post("/api/notifications/send", &push(&json!({"endpoint": sink.url("/wp/x")}))).await?;
    assert_eq!((refused.status.as_u16(), refused.fields()), (400, vec!["recipient".to_owned()]));

    let many = json!({"channel": "push", "title": "Sale", "recipients": [subscription(&sink.url("/wp/browser-3"))?, "android-2", {}]});
    let bulk = api.post("/api/notifications/send-bulk", &many).await?.ok()?;
    assert_eq!((&bulk["sent"], &bulk["failed"]), (&json!(2), &json!(1)));
    for result in &bulk["results"].as_array().unwrap()[..2] {
        api.wait_status(result["id"].as_str().unwrap(), "sent").await?;
    }
    let logs = stack.logs()?;
    for secret in ["device-token-here", IPHONE, "browser-1", "It is on its way", "t1\""] {
        assert!(!logs.contains(secret), "{secret} was logged");
    }
    Ok(())
}
