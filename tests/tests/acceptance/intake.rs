//! Another backend publishes straight to the broker: same validation, same idempotency, same durability.

use std::time::{Duration, Instant};

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Value, json};
use testkit::{HttpSink, Stack, amqp::Backend, api::SOON, check, eventually};

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
async fn once_users_are_mapped_answers_go_to_queues_of_their_own_publisher_only() -> Result<()> {
    let stack = Stack::start().await?;
    stack.cli(&["tenant", "map-amqp-user", "guest", "--tenant", "acme"])?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let channel = backend.channel().await?;
    for queue in ["billing.replies", "guest.replies"] {
        let exclusive = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
        channel.queue_declare(queue.into(), exclusive, FieldTable::default()).await?;
    }
    let asking = |id: &str, queue: &'static str| -> Result<lapin::BasicProperties> {
        Ok(Backend::properties(id)?.with_user_id("guest".into()).with_reply_to(queue.into()))
    };
    let take = |queue: &'static str| channel.basic_get(queue.into(), lapin::options::BasicGetOptions { no_ack: true });
    backend.publish("acme.in_app.normal", asking("foreign", "billing.replies")?, &body("m")).await?;
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await?;
    backend.publish("acme.in_app.normal", asking("own", "guest.replies")?, &body("m")).await?;
    let reply = eventually("a reply", SOON, || async { take("guest.replies").await.ok()? }).await?;
    assert!(serde_json::from_slice::<Value>(&reply.data)?["id"].is_string());
    assert!(take("billing.replies").await?.is_none(), "a queue of another user got an answer");
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
    // Once a user is mapped, a message without the property belongs to no tenant.
    backend.publish("acme.in_app.normal", Backend::properties("nameless")?, &body("m")).await?;
    stack.until_count("SELECT count(*) FROM dead_letters WHERE reason = 'tenant' AND tenant_id IS NULL", 3).await?;
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await?;
    // A fault in a key is nothing of a tenant that its publisher may not speak for.
    backend.publish("acme.fax.normal", by_guest("foreign-fax")?, &body("m")).await?;
    stack.until_count("SELECT count(*) FROM dead_letters WHERE reason = 'tenant' AND tenant_id IS NULL", 4).await?;

    // An unroutable message is reported to the tenant only if its publisher may publish for it.
    backend.publish("globex.in_app.soon", Backend::properties("stray")?, &body("m")).await?;
    backend.publish("globex.in_app.soon", by_guest("own-stray")?, &body("m")).await?;
    stack.until_count("SELECT count(*) FROM dead_letters WHERE reason = 'unroutable'", 2).await?;
    let owned = "SELECT count(*) FROM dead_letters WHERE reason = 'unroutable' AND amqp_id = 'own-stray' AND tenant_id IS NOT NULL";
    assert_eq!(stack.count(owned).await?, 1);
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters WHERE tenant_id IS NOT NULL").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_replay_has_a_proof_and_is_judged_by_who_published_it_first() -> Result<()> {
    let stack = Stack::start().await?;
    stack.cli(&["tenant", "create", "globex"])?;
    stack.cli(&["tenant", "map-amqp-user", "guest", "--tenant", "globex"])?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    // A header alone is nothing, whichever way it comes.
    let forged = |id: &str| -> Result<lapin::BasicProperties> {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("x-posthaste-replay", "0191d8a0-0000-7000-8000-000000000001"),
            ("x-posthaste-replay-proof", "AAAA"),
            ("x-posthaste-routing-key", "globex.in_app.high"),
            ("x-posthaste-user-id", "guest"),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
        Ok(Backend::properties(id)?.with_headers(headers))
    };
    backend.publish_to("", "posthaste.intake.std", forged("direct")?, &body("m")).await?;
    backend.publish("globex.in_app.high", forged("ingress")?, &body("m")).await?;
    // So is what a stranger publishes for another tenant.
    backend.publish("globex.in_app.normal", Backend::properties("stranger")?, &body("m")).await?;
    let refused = "SELECT count(*) FROM dead_letters WHERE reason = 'tenant' AND status = 'open'";
    stack.until_count(refused, 3).await?;

    // A replay of everything leaves them; asked for, they are judged again by their publisher, and stay what they are.
    let dry = stack.cli_json(&["dead", "replay", "--all", "--dry-run"])?;
    assert_eq!(dry["matched"], 0, "{dry}");
    let dry = stack.cli_json(&["dead", "replay", "--all", "--despite-tenant", "--dry-run"])?;
    assert_eq!(dry["matched"], 3, "{dry}");
    stack.cli(&["dead", "replay", "--all", "--despite-tenant", "--note", "try again"])?;
    // Each letter is opened anew when its message is refused again.
    let again = format!("{refused} AND created_at > (SELECT max(created_at) FROM replays)");
    stack.until_count(&again, 3).await?;
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 0);

    // Its own publisher may be replayed, with a body that was mended meanwhile: here by a schema that takes it.
    let own = Backend::properties("own")?.with_user_id("guest".into());
    backend.publish("globex.in_app.normal", own, b"{\"message\": 1}").await?;
    stack.until_count("SELECT count(*) FROM dead_letters WHERE reason = 'schema' AND amqp_user = 'guest'", 1).await?;
    let mended = "UPDATE dead_letters SET body = $1 WHERE reason = 'schema'";
    stack.sql().await?.execute(mended, &[&body("mended")]).await?;
    stack.cli(&["dead", "replay", "--reason", "schema", "--note", "mended"])?;
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await
}

/// Lets the database refuse every write, or no more; all connections begin anew.
async fn set_read_only(stack: &Stack, is_read_only: bool) -> Result<()> {
    let sql = stack.sql().await?;
    sql.batch_execute("SET default_transaction_read_only = off").await?;
    let database: String = sql.query_one("SELECT current_database()", &[]).await?.get(0);
    sql.batch_execute(&format!("ALTER DATABASE {database} SET default_transaction_read_only = {is_read_only}")).await?;
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sql.batch_execute(others).await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_refuses_is_a_wait_without_loss() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let publish = async |from: usize, to: usize| -> Result<()> {
        for n in from..to {
            backend.publish("acme.in_app.normal", Backend::properties(&format!("m-{n}"))?, &body("m")).await?;
        }
        Ok(())
    };
    let held = "posthaste_intake_held_total{queue=\"posthaste.intake.std\"}";
    set_read_only(&stack, true).await?;
    publish(0, 200).await?;
    stack.until_counted("all", held).await?;
    let asked = Instant::now();
    let answer = stack.producer().send_keyed("http", &serde_json::from_slice(&body("m"))?).await?;
    assert_eq!(answer.status.as_u16(), 503, "{}", answer.body);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    set_read_only(&stack, false).await?;
    stack.until_count("SELECT count(*) FROM messages", 200).await?;

    // So is a day whose partition is missing, as for an ingest whose clock is days ahead.
    let sql = stack.sql().await?;
    let today: String = sql.query_one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')", &[]).await?.get(0);
    sql.batch_execute(&format!("ALTER TABLE messages_{today} RENAME TO messages_elsewhere")).await?;
    publish(200, 220).await?;
    eventually("it is asked for", SOON, || async {
        stack.logs().ok()?.contains(&format!("messages_{today}")).then_some(())
    })
    .await?;
    sql.batch_execute(&format!("ALTER TABLE messages_elsewhere RENAME TO messages_{today}")).await?;
    stack.until_count("SELECT count(*) FROM messages", 220).await?;
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_message_that_cannot_be_judged_holds_up_no_other() -> Result<()> {
    let stack = Stack::start_with(&[("POSTHASTE_ENCRYPTION_KEY", &STANDARD.encode([1; 32]))]).await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let sql = stack.sql().await?;
    // People cannot be looked up, which only a message without a recipient needs.
    sql.batch_execute("REVOKE SELECT ON users FROM posthaste_services").await?;
    let lost = json!({"user_id": "ada", "title": "t", "message": "m"}).to_string();
    backend.publish("acme.email.normal", Backend::properties("lost")?, lost.as_bytes()).await?;
    stack.until_counted("all", "posthaste_intake_held_total{queue=\"posthaste.intake.std\"}").await?;
    for n in 0..20 {
        backend.publish("acme.in_app.normal", Backend::properties(&format!("m-{n}"))?, &body("m")).await?;
    }
    stack.until_count("SELECT count(*) FROM messages", 20).await?;
    sql.batch_execute("GRANT SELECT ON users TO posthaste_services").await?;
    stack.until_count("SELECT count(*) FROM messages", 21).await?;

    // Nor does a tenant whose secret cannot be decrypted: a submission does not need it.
    stack.cli(&["tenant", "create", "beta"])?;
    sql.batch_execute("UPDATE tenants SET webhook_secret = left(webhook_secret, -4) WHERE slug = 'beta'").await?;
    backend.publish("beta.in_app.normal", Backend::properties("beta")?, &body("m")).await?;
    stack.until_count("SELECT count(*) FROM messages", 22).await?;
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters").await?, 0);
    Ok(())
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
