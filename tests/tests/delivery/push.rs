//! Push notifications through the whole of it, each to the service that its device belongs to.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Reply, Stack,
    api::SOON,
    patient::PATIENT,
    push::{Browser, Services},
};

const IPHONE: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";

fn push(recipient: &Value) -> Value {
    json!({"channel": "push", "recipient": recipient, "title": "Shipped", "message": "It is on its way", "data": {"badge": 5}})
}

/// The path of messages to FCM.
const FCM: &str = "/v1/projects/shop/messages:send";

async fn check_services(api: &Api, sink: &HttpSink, browser: &Value) -> Result<()> {
    for (recipient, provider, path) in [
        (json!("device-token-here"), "fcm", FCM.to_owned()),
        (json!(IPHONE), "apns", format!("/3/device/{IPHONE}")),
        (browser.clone(), "webpush", "/wp/browser-1".to_owned()),
        (
            json!(Browser::at(&sink.url("/wp/browser-2"))?.subscription()?.to_string()),
            "webpush",
            "/wp/browser-2".to_owned(),
        ),
    ] {
        let id = api.send(&push(&recipient)).await?;
        let message = api.wait_status(&id, "sent").await?;
        assert_eq!(message["deliveries"][0]["provider"], provider);
        assert_eq!(sink.requests_to(&path).len(), 1, "{path}");
    }
    let fcm = sink.requests_to(FCM)[0].json()?;
    assert_eq!(fcm["message"]["notification"], json!({"title": "Shipped", "body": "It is on its way"}));
    assert_eq!(fcm["message"]["data"], json!({"badge": "5"}));
    let apple = sink.requests_to(&format!("/3/device/{IPHONE}"))[0].json()?;
    assert_eq!(apple["aps"], json!({"alert": {"title": "Shipped", "body": "It is on its way"}, "badge": 5}));

    // The platform that the producer names wins over the shape of the token.
    let mut named = push(&json!("a-short-token"));
    named["data"]["platform"] = json!("ios");
    api.wait_status(&api.send(&named).await?, "sent").await?;
    assert_eq!(sink.requests_to("/3/device/a-short-token").len(), 1);
    Ok(())
}

async fn check_dead_address(api: &Api, sink: &HttpSink, browser: &Value) -> Result<()> {
    sink.reply_to("/wp/browser-1", Reply::status(410));
    let id = api.send(&push(browser)).await?;
    api.wait_status(&id, "failed").await?;
    assert_eq!(api.timeline(&id).await?["attempts"][0]["outcome"], "address_dead");
    let id = api.send(&push(&json!(browser.to_string()))).await?;
    api.wait_status_within(&id, "suppressed", SOON).await?;
    assert_eq!(sink.requests_to("/wp/browser-1").len(), 2, "the suppressed one was not sent");
    Ok(())
}

async fn check_refusals(api: &Api, sink: &HttpSink) -> Result<()> {
    let inside = push(&Browser::at("https://10.0.0.1/push")?.subscription()?);
    let refused = api.post("/api/notifications/send", &inside).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (400, &json!("target_not_allowed")));
    let refused = api.post("/api/notifications/send", &push(&json!({"endpoint": sink.url("/wp/x")}))).await?;
    assert_eq!((refused.status.as_u16(), refused.fields()), (400, vec!["recipient".to_owned()]));

    let browser = Browser::at(&sink.url("/wp/browser-3"))?.subscription()?;
    let many = json!({"channel": "push", "title": "Sale", "recipients": [browser, "android-2", {}]});
    let bulk = api.post("/api/notifications/send-bulk", &many).await?.ok()?;
    assert_eq!((&bulk["sent"], &bulk["failed"]), (&json!(2), &json!(1)));
    for result in &bulk["results"].as_array().unwrap()[..2] {
        api.wait_status(result["id"].as_str().unwrap(), "sent").await?;
    }
    Ok(())
}

/// A limit of FCM may be one of a single device, so it holds back the tenant that met it and no other.
async fn check_limit(stack: &Stack, sink: &HttpSink) -> Result<()> {
    stack.cli(&["tenant", "create", "beta"])?;
    let (api, beta) = (stack.producer(), stack.api(&stack.create_key("beta", "producer")?));
    sink.reply_to("/v1/*", Reply::status(429).with_header("Retry-After", "600"));
    api.wait_status(&api.send(&push(&json!("hammered-device"))).await?, "retrying").await?;
    stack.until_count("SELECT count(*) FROM breakers WHERE paused_until > now()", 1).await?;
    sink.reply_to("/v1/*", Reply::json(200, &json!({"name": "projects/shop/messages/0:2"})));
    let before = sink.requests_to(FCM).len();
    api.wait_status(&api.send(&push(&json!("another-device"))).await?, "retrying").await?;
    beta.wait_status(&beta.send(&push(&json!("their-device"))).await?, "sent").await?;
    assert_eq!(sink.requests_to(FCM).len(), before + 1, "the call of the other tenant");
    Ok(())
}

#[tokio::test]
async fn each_device_is_reached_through_its_own_service_and_a_dead_one_is_not_tried_again() -> Result<()> {
    let services = Services::start().await?;
    let stack = Stack::start_with(&services.settings(PATIENT)).await?;
    let (api, sink) = (stack.producer(), &services.sink);
    let browser = Browser::at(&sink.url("/wp/browser-1"))?.subscription()?;
    check_services(&api, sink, &browser).await?;
    check_dead_address(&api, sink, &browser).await?;
    check_refusals(&api, sink).await?;
    check_limit(&stack, sink).await?;
    let logs = stack.logs()?;
    for secret in ["device-token-here", IPHONE, "browser-1", "It is on its way", "t1\""] {
        assert!(!logs.contains(secret), "{secret} was logged");
    }
    Ok(())
}
