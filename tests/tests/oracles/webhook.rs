//! Webhooks, read by the libraries that receivers use.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use servers::sinks::http::Request;
use testkit::{
    HttpSink, Stack,
    api::SOON,
    oracle::{node, python},
};

const HEADERS: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

/// A request as the scripts want it.
fn question(request: &Request, secret: &str) -> Value {
    let headers = HEADERS.map(|name| (name.to_owned(), json!(request.header(name))));
    json!({"body": STANDARD.encode(&request.body), "headers": serde_json::Map::from_iter(headers), "secret": secret})
}

/// Each library's answer.
fn answers(question: &Value) -> Result<[Value; 2]> {
    Ok([python("webhook.py", question)?, node("webhook.cjs", question)?])
}

#[tokio::test]
async fn the_libraries_of_two_languages_read_what_is_signed_and_refuse_everything_else() -> Result<()> {
    let (stack, sink) = (Stack::start().await?, HttpSink::start_local().await?);
    let body = json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"invoice": "ä✓", "paid": true}});
    stack.producer().send(&body).await?;
    let request = sink.wait_for(1, SOON).await?.remove(0);
    let good = question(&request, &stack.webhook_secret);
    for answer in answers(&good)? {
        assert_eq!(answer["read"], body["data"], "{answer}");
    }

    let mut other_secret = good.clone();
    other_secret["secret"] = json!("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let mut flipped = good.clone();
    flipped["body"] = json!(STANDARD.encode(request.text().replace("true", "frue")));
    let mut other_id = good.clone();
    other_id["headers"]["webhook-id"] = json!("msg_1");
    // Five minutes are what the libraries allow.
    let mut stale = good.clone();
    let at: i64 = request.header("webhook-timestamp").context("no timestamp")?.parse()?;
    stale["headers"]["webhook-timestamp"] = json!((at - 301).to_string());
    for wrong in [other_secret, flipped, other_id, stale] {
        for answer in answers(&wrong)? {
            assert!(answer["refused"].is_string(), "{answer} to {wrong}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn while_a_secret_is_replaced_both_hold_and_a_public_key_verifies_too() -> Result<()> {
    let (stack, sink) = (Stack::start().await?, HttpSink::start_local().await?);
    let admin = stack.admin();
    let settings = json!({"name": "CRM", "url": sink.url("/crm"), "events": ["message.delivered"], "asymmetric": true});
    let made = admin.post("/api/webhooks/configurations", &settings).await?.ok()?;
    let path = format!("/api/webhooks/configurations/{}", made["id"].as_str().context("no id")?);
    let renewed = admin.post(&format!("{path}/regenerate-secret"), &json!({})).await?.ok()?;
    let shown = admin.get(&path).await?.ok()?;
    admin.post(&format!("{path}/test"), &json!({})).await?.ok()?;
    let request = sink.wait_for(1, SOON).await?.remove(0);
    for secret in [&made["secret"], &renewed["secret"]] {
        for answer in answers(&question(&request, secret.as_str().context("no secret")?))? {
            assert_eq!(answer["read"]["type"], "test", "{answer}");
        }
    }
    let mut by_key = question(&request, "");
    by_key["public_key"] = shown["public_key"].clone();
    assert_eq!(python("webhook.py", &by_key)?["read"]["type"], "test", "{shown}");
    by_key["body"] = json!(STANDARD.encode(r#"{"type":"other"}"#));
    assert!(python("webhook.py", &by_key)?["refused"].is_string());
    Ok(())
}
