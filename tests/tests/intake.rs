//! Another backend publishes straight to the broker: same validation, same idempotency, same durability.

use anyhow::Result;
use harness::{HttpSink, Stack, amqp::Backend, api::SOON, check, eventually};
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Value, json};

async fn letters(stack: &Stack) -> Vec<Value> {
    let found = stack.admin().get("/api/admin/dead-letters?limit=100").await.ok().and_then(|answer| answer.ok().ok());
    found.and_then(|body| body["dead_letters"].as_array().cloned()).unwrap_or_default()
}

fn body(text: &str) -> Vec<u8> {
    json!({"channel": "in_app", "recipient": "ada", "message": text}).to_string().into_bytes()
}

#[tokio::test]
async fn a_publish_becomes_a_message_once_per_message_id_and_shares_keys_with_http() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    for _ in 0..3 {
        backend.publish("acme.in_app.high", Backend::properties("order-1")?, &body("hi")).await?;
    }
    let id = eventually("the message is stored", SOON, || async {
        let list = stack.producer().get("/api/messages").await.ok()?.body;
        list["messages"][0]["id"].as_str().map(str::to_owned)
    })
    .await?;
    stack.producer().wait_status(&id, "delivered").await?;
    let again = stack.producer().send_keyed("order-1", &serde_json::from_slice(&body("hi"))?).await?;
    assert_eq!((again.status.as_u16(), &again.body["id"]), (202, &json!(id)));
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 1);
    assert_eq!(stack.count("SELECT count(*) FROM deliveries WHERE lane = 'high'").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_becomes_a_dead_letter_with_its_reason_and_the_consumer_lives_on() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let named = Backend::properties;
    let nul = json!({"channel": "in_app", "recipient": "a\u{0}b", "message": "m"}).to_string().into_bytes();
    let unknown =
        json!({"channel": "in_app", "recipient": "ada", "message": "m", "colour": "red"}).to_string().into_bytes();
    let big = json!({"channel": "in_app", "recipient": "ada", "message": "m".repeat(1 << 20)}).to_string().into_bytes();
    let no_id = lapin::BasicProperties::default().with_content_type("application/json".into());
    let cases: Vec<(&str, lapin::BasicProperties, Vec<u8>, &str)> = vec![
        ("acme.in_app.normal", named("bad-json")?, b"{".to_vec(), "schema"),
        ("acme.in_app.normal", named("bad-utf8")?, b"\xff\xfe".to_vec(), "schema"),
        ("acme.in_app.normal", named("unknown-field")?, unknown, "schema"),
        ("acme.in_app.normal", no_id, body("no id"), "schema"),
        ("acme.in_app.normal", named(&"i".repeat(230))?, body("long id"), "schema"),
        ("acme.in_app.normal", named("nul")?, nul, "schema"),
        ("acme.in_app.normal", named("big")?, big, "too_large"),
        ("acme.email.normal", named("disagrees")?, body("other channel"), "schema"),
        ("nobody.in_app.normal", named("stranger")?, body("m"), "tenant"),
        ("acme.in_app.soon", named("unroutable")?, body("m"), "unroutable"),
    ];
    for (key, properties, body, _) in &cases {
        backend.publish(key, properties.clone(), body).await?;
    }
    backend.publish("acme.in_app.normal", named("fine")?, &body("still alive")).await?;
    let count = "SELECT count(*) FROM dead_letters";
    let all = i64::try_from(cases.len())?;
    eventually("every bad one is a dead letter", SOON, || async {
        (stack.count(count).await.ok()? == all).then_some(())
    })
    .await?;
    for (.., reason) in &cases {
        let expected = cases.iter().filter(|case| case.3 == *reason).count();
        assert_eq!(
            stack.count(&format!("{count} WHERE reason = '{reason}'")).await?,
            i64::try_from(expected)?,
            "{reason}"
        );
    }
    let seen = letters(&stack).await;
    let letter = |id: &str| {
        seen.iter()
            .find(|letter| {
                letter["detail"].as_str().is_some_and(|detail| detail.contains(id)) || letter["amqp_id"] == id
            })
            .cloned()
    };
    let unknown = letter("unknown-field").expect("a letter names its AMQP id");
    assert_eq!((&unknown["origin"], &unknown["status"]), (&json!("intake"), &json!("open")));
    assert!(unknown["detail"].as_str().unwrap().contains("colour"), "{unknown}");
    eventually("the good one arrives", SOON, || async {
        (stack.count("SELECT count(*) FROM deliveries WHERE state = 'delivered'").await.ok()? == 1).then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_valid_message_with_old_death_headers_is_delivered() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString(LongString::from("posthaste.intake.std")));
    death.insert("reason".into(), AMQPValue::LongString(LongString::from("rejected")));
    death.insert("count".into(), AMQPValue::LongLongInt(3));
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])));
    headers.insert("x-first-death-reason".into(), AMQPValue::LongString(LongString::from("rejected")));
    backend.publish("acme.in_app.bulk", Backend::properties("old")?.with_headers(headers), &body("m")).await?;
    eventually("it is delivered", SOON, || async {
        (stack.count("SELECT count(*) FROM deliveries WHERE state = 'delivered'").await.ok()? == 1).then_some(())
    })
    .await
}

#[tokio::test]
async fn whoever_asks_for_a_reply_gets_the_id_or_the_error() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let channel = backend.channel().await?;
    let exclusive = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let replies = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone();
    let asking = |id: &str| -> Result<lapin::BasicProperties> {
        Ok(Backend::properties(id)?
            .with_reply_to(replies.clone())
            .with_correlation_id(ShortString::try_new(format!("about-{id}"))?))
    };
    backend.publish("acme.in_app.normal", asking("good")?, &body("m")).await?;
    backend.publish("acme.in_app.normal", asking("bad")?, b"{}").await?;
    let mut answers = std::collections::HashMap::new();
    while answers.len() < 2 {
        let reply = eventually("a reply", SOON, || async {
            channel.basic_get(replies.clone(), lapin::options::BasicGetOptions { no_ack: true }).await.ok()?
        })
        .await?;
        let about = reply.properties.correlation_id().clone().unwrap().to_string();
        answers.insert(about, serde_json::from_slice::<Value>(&reply.data)?);
    }
    assert!(answers["about-good"]["id"].is_string(), "{answers:?}");
    assert!(!answers["about-bad"]["error"].is_null(), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn a_broker_user_that_is_mapped_to_a_tenant_speaks_for_no_other() -> Result<()> {
    let stack = Stack::start().await?;
    stack.cli(&["tenant", "create", "globex"])?;
    stack.cli(&["tenant", "map-amqp-user", "guest", "--tenant", "globex"])?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let by_guest =
        |id: &str| -> Result<lapin::BasicProperties> { Ok(Backend::properties(id)?.with_user_id("guest".into())) };
    backend.publish("globex.in_app.normal", by_guest("own")?, &body("m")).await?;
    backend.publish("globex.in_app.normal", Backend::properties("anonymous")?, &body("m")).await?;
    backend.publish("acme.in_app.normal", by_guest("foreign")?, &body("m")).await?;
    eventually("two are refused", SOON, || async {
        (stack.count("SELECT count(*) FROM dead_letters WHERE reason = 'tenant'").await.ok()? == 2).then_some(())
    })
    .await?;
    eventually("one is delivered", SOON, || async {
        (stack.count("SELECT count(*) FROM deliveries WHERE state = 'delivered'").await.ok()? == 1).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_publish_to_a_webhook_reaches_the_receiver() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let backend = Backend::connect(&stack.amqp_url).await?;
    for n in 0..200 {
        let body = json!({"channel": "webhook", "recipient": sink.url("/amqp"), "data": {"n": n}}).to_string();
        backend.publish("acme.webhook.normal", Backend::properties(&format!("m-{n}"))?, body.as_bytes()).await?;
    }
    sink.wait_for(200, SOON).await?;
    check::ledger(&stack, &sink, &[], SOON).await?.hold()
}
