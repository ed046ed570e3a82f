//! Push notifications.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use testkit::{
    Stack,
    oracle::{Server, interpreter, python, scripts},
    push::{Browser, Services},
};

use super::{PATIENT, first_attempt};

const IPHONE: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";

fn push(recipient: &Value) -> Value {
    json!({"channel": "push", "recipient": recipient, "title": "Grüße", "message": "It is on its way ✓",
        "expires_at": "2100-01-01T00:00:00Z", "data": {"badge": 5, "order": {"id": 7}}})
}

fn signed(token: &str, key: &str, algorithm: &str, audience: Option<&str>, require: &[&str]) -> Result<Value> {
    let asked = json!({"token": token, "key": key, "algorithm": algorithm, "audience": audience, "require": require});
    python("signed.py", &asked)
}

/// The encryption by `http_ece`, the sender's signature by PyJWT.
#[tokio::test]
async fn a_browser_of_another_project_opens_what_is_sent_and_knows_the_sender() -> Result<()> {
    let services = Services::start().await?;
    let stack = Stack::start_with(&services.settings(&[])).await?;
    let browser = Browser::at(&services.sink.url("/wp/1"))?;
    let id = stack.producer().send(&push(&browser.subscription()?)).await?;
    stack.producer().wait_status(&id, "sent").await?;
    let [request] = &*services.sink.requests_to("/wp/1") else { panic!("one request") };

    let open = |private: &str, auth: &str, body: &[u8]| {
        python("web_push.py", &json!({"private": private, "auth": auth, "body": STANDARD.encode(body)}))
    };
    let (private, auth) = browser.secrets()?;
    let opened = open(&private, &auth, &request.body)?;
    let payload: Value = serde_json::from_str(opened["plain"].as_str().with_context(|| opened.to_string())?)?;
    let expected = json!({"title": "Grüße", "body": "It is on its way ✓", "data": {"badge": 5, "order": {"id": 7}}});
    assert_eq!(payload, expected);
    let mut flipped = request.body.clone();
    *flipped.last_mut().context("an empty body")? ^= 1;
    let (other, other_auth) = Browser::at("x")?.secrets()?;
    for (private, auth, body) in
        [(&private, &auth, &flipped), (&other, &auth, &request.body), (&private, &other_auth, &request.body)]
    {
        assert!(open(private, auth, body)?["error"].is_string());
    }

    let vapid = request.header("authorization").and_then(|text| text.strip_prefix("vapid t=")).context("no VAPID")?;
    let (token, _) = vapid.split_once(", k=").context("no key")?;
    let here = services.sink.url("");
    let said = signed(token, &services.vapid, "ES256", Some(&here), &["aud", "exp", "sub"])?;
    assert_eq!((&said["claims"]["sub"], &said["header"]["alg"]), (&json!("mailto:ops@example.com"), &json!("ES256")));
    assert!(signed(token, &services.apple, "ES256", Some(&here), &[])?["error"].is_string(), "another key");
    let elsewhere = signed(token, &services.vapid, "ES256", Some("https://push.example.com"), &[])?;
    assert!(elsewhere["error"].is_string(), "another service");
    Ok(())
}

/// The body by the schema that Google publishes, the service account's signature by PyJWT.
#[tokio::test]
async fn what_goes_to_fcm_fits_googles_schema_and_is_signed() -> Result<()> {
    let services = Services::start().await?;
    let stack = Stack::start_with(&services.settings(&[])).await?;
    let id = stack.producer().send(&push(&json!("a-token-of-fcm"))).await?;
    stack.producer().wait_status(&id, "sent").await?;

    let body = services.sink.requests_to("/v1/projects/shop/messages:send")[0].json()?;
    assert_eq!(python("fcm_body.py", &body)?["faults"], json!([]), "{body}");
    for (pointer, wrong) in [
        ("/message/data/badge", json!(5)),
        ("/message/notification", json!({"tilte": "T"})),
        ("/message/android/ttl", json!(600)),
    ] {
        let mut body = body.clone();
        *body.pointer_mut(pointer).context("the body has it")? = wrong;
        assert_ne!(python("fcm_body.py", &body)?["faults"], json!([]), "{pointer}");
    }

    let asked = services.sink.requests_to("/token")[0].text();
    let (_, assertion) = asked.split_once("&assertion=").context("no assertion")?;
    let audience = services.sink.url("/token");
    let said = signed(assertion, &services.google, "RS256", Some(&audience), &["iss", "aud", "iat", "exp"])?;
    assert_eq!(said["claims"]["iss"], "push@shop.iam.gserviceaccount.com", "{said}");
    assert_eq!(said["header"]["kid"], "k1");
    let mut flipped = assertion.replace('.', "..");
    flipped.truncate(assertion.len());
    for (token, audience) in [(flipped.as_str(), audience.as_str()), (assertion, "https://oauth2.googleapis.com/token")]
    {
        assert!(signed(token, &services.google, "RS256", Some(audience), &[])?["error"].is_string());
    }
    Ok(())
}

/// A server on the HTTP/2 of another project, which knows tokens of one key.
async fn apple(dir: &Path, key: &str, more: &[&str]) -> Result<Server> {
    fs::write(dir.join("key.pem"), format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n"))?;
    Server::start(|port| {
        let mut command = interpreter()?;
        command.arg(scripts().join("apns_server.py")).arg(port.to_string());
        command.arg(dir.join("taken")).arg(dir.join("key.pem")).args(more.iter().map(|file| dir.join(file)));
        Ok(command)
    })
    .await
}

fn taken(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("taken")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn another_http2_takes_notifications_with_a_token_of_the_right_key_only() -> Result<()> {
    let services = Services::start().await?;
    let server = apple(&services.dir, &services.apple, &[]).await?;
    let url = format!("http://127.0.0.1:{}", server.port);
    let stack = Stack::start_with(&services.settings(&[PATIENT[0], PATIENT[1], ("APNS_BASE_URL", &url)])).await?;
    let id = stack.producer().send(&push(&json!(IPHONE))).await?;
    let message = stack.producer().wait_status(&id, "sent").await?;
    let seen = taken(&services.dir);
    let [request] = seen.as_slice() else { panic!("one notification, not {seen:?}") };
    assert_eq!(request["headers"][":path"], format!("/3/device/{IPHONE}"));
    assert_eq!(request["headers"]["apns-id"], message["deliveries"][0]["id"]);
    assert_eq!(request["body"]["aps"]["alert"], json!({"title": "Grüße", "body": "It is on its way ✓"}));
    let attempt = first_attempt(&stack, &id).await?;
    assert_eq!(attempt["provider_message_id"], message["deliveries"][0]["id"]);
    drop((stack, server));

    let server = apple(&services.dir, &services.vapid, &[]).await?;
    let url = format!("http://127.0.0.1:{}", server.port);
    let stack = Stack::start_with(&services.settings(&[PATIENT[0], PATIENT[1], ("APNS_BASE_URL", &url)])).await?;
    let id = stack.producer().send(&push(&json!(IPHONE))).await?;
    let attempt = first_attempt(&stack, &id).await?;
    assert_eq!((&attempt["outcome"], &attempt["code"]), (&json!("misconfigured"), &json!("InvalidProviderToken")));
    assert_eq!(taken(&services.dir).len(), 1);
    Ok(())
}

#[tokio::test]
async fn another_tls_takes_notifications_with_a_certificate_of_the_right_authority_only() -> Result<()> {
    let services = Services::start().await?;
    let dir = &services.dir;
    python("certificates.py", &json!({"folder": dir.display().to_string()}))?;
    let server = apple(dir, &services.apple, &["server.pem", "ca.pem"]).await?;
    let (url, roots) = (format!("https://127.0.0.1:{}", server.port), dir.join("ca.pem").display().to_string());
    for (file, is_taken) in [("client.pem", true), ("stranger.pem", false)] {
        let file = dir.join(file).display().to_string();
        let more = [
            PATIENT[0],
            PATIENT[1],
            ("APNS_BASE_URL", url.as_str()),
            ("APNS_CERTIFICATE_PATH", &file),
            ("APNS_KEY_ID", ""),
            ("APNS_TEAM_ID", ""),
            ("SSL_CERT_FILE", &roots),
        ];
        let stack = Stack::start_with(&services.settings(&more)).await?;
        let id = stack.producer().send(&push(&json!(IPHONE))).await?;
        let attempt = first_attempt(&stack, &id).await?;
        assert_eq!(attempt["outcome"] == "sent", is_taken, "{attempt}");
    }
    let seen = taken(dir);
    let [request] = seen.as_slice() else { panic!("one notification, not {seen:?}") };
    assert_eq!(request["headers"]["authorization"], Value::Null);
    assert_eq!(request["headers"]["apns-topic"], "com.example.shop");
    Ok(())
}
