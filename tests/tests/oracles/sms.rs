//! Text messages.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use testkit::{HttpSink, Reply, Stack, api::SOON, oracle::python};

const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn fields(form: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(form).into_owned().collect()
}

fn golden(form: &Value) -> BTreeMap<String, String> {
    let fields = form.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The request is the one that Twilio's own client would have made.
#[tokio::test]
async fn a_text_message_to_twilio_is_what_twilios_own_client_would_send() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::json(201, &json!({"sid": "SM90c6fc909d8504d45ecdb3a3d5b3556e"})));
    let stack = Stack::start_with(&[
        ("SMS_BACKEND", "twilio"),
        ("TWILIO_ACCOUNT_SID", ACCOUNT),
        ("TWILIO_AUTH_TOKEN", TOKEN),
        ("TWILIO_FROM_NUMBER", "+15005550006"),
        ("TWILIO_BASE_URL", &sink.url("")),
        ("PUBLIC_URL", "https://notify.example.com/base"),
    ])
    .await?;
    let text = "Kod: 42 & more ✓ +1";
    let body = json!({"channel": "sms", "recipient": "+4915112345678", "title": "unseen", "message": text});
    let id = stack.producer().send(&body).await?;
    let message = stack.producer().wait_status(&id, "sent").await?;
    let delivery = message["deliveries"][0]["id"].as_str().context("no delivery")?;
    let requests = sink.wait_for(1, SOON).await?;

    let callback = format!("https://notify.example.com/base/webhooks/twilio?delivery={delivery}");
    let mut asked = json!({
        "account": ACCOUNT, "token": TOKEN, "to": "+4915112345678", "from": "+15005550006",
        "body": text, "callback": callback,
    });
    let theirs = python("twilio_request.py", &asked)?;
    assert_eq!(theirs["method"], requests[0].method);
    assert_eq!(theirs["url"], format!("https://api.twilio.com{}", requests[0].target));
    assert_eq!(theirs["headers"]["Content-Type"].as_str(), requests[0].header("content-type"));
    assert_eq!(fields(&requests[0].body), golden(&theirs["form"]));
    let login = format!("Basic {}", STANDARD.encode(format!("{ACCOUNT}:{TOKEN}")));
    assert_eq!(theirs["auth"], json!([ACCOUNT, TOKEN]));
    assert_eq!(requests[0].header("authorization"), Some(login.as_str()));

    asked["body"] = json!("another text");
    assert_ne!(fields(&requests[0].body), golden(&python("twilio_request.py", &asked)?["form"]));
    Ok(())
}
