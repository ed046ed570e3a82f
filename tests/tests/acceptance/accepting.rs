//! Submissions: the accepted ones, the refused ones, and their callers.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Role, Stack, TestServers,
    api::{Answer, SOON},
    check,
    patient::PATIENT,
};

fn note(text: &str) -> Value {
    json!({"channel": "in_app", "recipient": "ada", "message": text})
}

/// Sends under a key, again and again while the database is too slow for an answer in time; how often it was sent.
async fn repeated(api: &Api, key: &str, body: &Value) -> Result<(Answer, u32)> {
    let begun = Instant::now();
    let mut times = 0;
    loop {
        times += 1;
        let answer = api.send_keyed(key, body).await?;
        if answer.body["code"] != "unavailable" || begun.elapsed() >= SOON {
            return Ok((answer, times));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn invariant_k_a_hundred_requests_under_one_key_at_two_ingests_make_one_message() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.launch("one", Role::All, &[]).await?;
    stack.launch("two", Role::Ingest, &[]).await?;
    let (one, two) = (stack.api_of("one")?, stack.api_of("two")?);
    let body = note("once");
    let answers = try_join_all((0..100).map(|n| repeated(if n % 2 == 0 { &one } else { &two }, "k-1", &body))).await?;
    let is_whole = answers.iter().all(|(_, times)| *times == 1);
    let answers: Vec<Answer> = answers.into_iter().map(|(answer, _)| answer).collect();
    let first = &answers[0].body;
    assert!(answers.iter().all(|answer| answer.status.as_u16() == 202 && answer.body == *first));
    // It may have been accepted by a request whose own answer came too late.
    let new = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).count();
    assert!(new == 1 || (new == 0 && !is_whole), "{new} answers are not the first one again");
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 1);

    let reordered = json!({"message": "once", "recipient": "ada", "channel": "in_app"});
    assert_eq!(one.send_keyed("k-1", &reordered).await?.body, *first);
    let other = one.send_keyed("k-1", &note("twice")).await?;
    assert_eq!(other.status.as_u16(), 422, "{}", other.body);
    let refused = one.send_keyed("k-2", &json!({"channel": "in_app"})).await?;
    assert_eq!(refused.status.as_u16(), 400);
    assert_eq!(one.send_keyed("k-2", &body).await?.status.as_u16(), 202, "a refused request used its key up");
    let too_long = one.send_keyed(&"k".repeat(201), &body).await?;
    assert_eq!(too_long.status.as_u16(), 400);
    Ok(())
}

#[tokio::test]
async fn bad_input_gets_a_problem_that_names_the_field() -> Result<()> {
    let stack = Stack::start().await?;
    let api = stack.producer();
    for (body, field) in [
        (json!({"recipient": "x", "message": "m"}), "channel"),
        (json!({"channel": "fax", "recipient": "x", "message": "m"}), "channel"),
        (json!({"channel": "email", "recipient": "nobody", "message": "m"}), "recipient"),
        (json!({"channel": "email", "recipient": "a@b.example\r\nBcc: c@d.example", "message": "m"}), "recipient"),
        (json!({"channel": "sms", "recipient": "0123", "message": "m"}), "recipient"),
        (json!({"channel": "webhook", "recipient": "ftp://example.com", "data": {}}), "recipient"),
        (json!({"channel": "in_app", "recipient": "ada", "message": "m", "colour": "red"}), "colour"),
        (json!({"channel": "in_app", "recipient": "ada", "message": "m", "priority": "now"}), "priority"),
        (json!({"channel": "in_app", "recipient": "ada", "message": "m", "scheduled_at": "soon"}), "scheduled_at"),
        (
            json!({"channel": "in_app", "recipient": "ada", "message": "m", "expires_at": "2020-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (json!({"channel": "in_app", "recipient": "a\u{0}da", "message": "m"}), "recipient"),
    ] {
        let answer = api.post("/api/notifications/send", &body).await?;
        assert_eq!(answer.status.as_u16(), 400, "{body}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{body}");
        assert!(answer.fields().iter().any(|name| name == field), "{body}: {}", answer.body);
    }
    for (raw, status) in [(&b"{"[..], 400), (b"", 400), (b"\xff\xfe", 400), (b"[]", 400), (b"null", 400)] {
        let answer = api.request(reqwest::Method::POST, "/api/notifications/send", &[], Some(raw.to_vec())).await?;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        assert!(answer.body["code"].is_string(), "{}", answer.body);
    }
    // A NUL inside the content is the producer's business, and nothing of it is lost.
    let id = api.send(&json!({"channel": "in_app", "recipient": "ada", "message": "a\u{0}b"})).await?;
    api.wait_status(&id, "delivered").await?;
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 1);
    Ok(())
}

#[tokio::test]
async fn every_route_asks_who_is_there_and_what_he_may() -> Result<()> {
    let stack = Stack::start().await?;
    let token = |role: &str| stack.cli(&["token", "--tenant", "acme", "--sub", "ada", "--role", role]);
    for credential in ["", "ph_wrong", "not.a.token"] {
        let answer = stack.api(credential).post("/api/notifications/send", &note("m")).await?;
        assert_eq!(answer.status.as_u16(), 401, "{credential}");
    }
    let forged = format!("{}x", token("admin")?.trim());
    assert_eq!(stack.api(&forged).get("/api/messages").await?.status.as_u16(), 401);
    assert_eq!(
        stack.api(token("user")?.trim()).post("/api/notifications/send", &note("m")).await?.status.as_u16(),
        403
    );
    assert_eq!(stack.producer().get("/api/admin/dead-letters").await?.status.as_u16(), 403);
    assert_eq!(
        stack.api(token("producer")?.trim()).post("/api/notifications/send", &note("m")).await?.status.as_u16(),
        202
    );
    for open in ["/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/asyncapi.yaml"] {
        assert_eq!(stack.api("").get(open).await?.status.as_u16(), 200, "{open}");
    }
    assert_eq!(stack.api("").get("/docs/").await?.status.as_u16(), 200);
    let lost = stack.producer().get("/api/no-such-route").await?;
    assert_eq!((lost.status.as_u16(), lost.body["status"].clone()), (404, json!(404)));
    Ok(())
}

#[tokio::test]
async fn another_tenants_message_does_not_exist() -> Result<()> {
    let stack = Stack::start().await?;
    stack.cli(&["tenant", "create", "globex"])?;
    let other: Api = stack.api(&stack.create_key("globex", "admin")?);
    let id = stack.producer().send(&note("m")).await?;
    for path in [format!("/api/messages/{id}"), format!("/api/messages/{id}/timeline")] {
        assert_eq!(other.get(&path).await?.status.as_u16(), 404, "{path}");
    }
    assert_eq!(other.post(&format!("/api/messages/{id}/cancel"), &json!({})).await?.status.as_u16(), 404);
    assert_eq!(other.get("/api/messages").await?.ok()?["messages"], json!([]));
    Ok(())
}

#[tokio::test]
async fn lists_filter_and_page_and_refuse_what_they_do_not_know() -> Result<()> {
    let stack = Stack::start().await?;
    let api = stack.producer();
    for n in 0..5 {
        let id = api.send(&json!({"channel": "in_app", "recipient": format!("user{n}"), "user_id": format!("user{n}"), "message": format!("text {n}")})).await?;
        api.wait_status(&id, "delivered").await?;
    }
    let first = api.get("/api/messages?limit=2&status=DELIVERED&channel=in-app").await?.ok()?;
    assert_eq!(first["messages"].as_array().unwrap().len(), 2);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = api.get(&format!("/api/messages?limit=10&cursor={cursor}")).await?.ok()?;
    assert_eq!(second["messages"].as_array().unwrap().len(), 3);
    assert!(second["next_cursor"].is_null());
    assert_eq!(api.get("/api/messages?user_id=user3").await?.ok()?["messages"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("/api/messages?q=text%204").await?.ok()?["messages"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("/api/messages?status=failed").await?.ok()?["messages"], json!([]));
    for bad in ["status=odd", "channel=fax", "limit=0", "limit=x", "cursor=%25%25", "from=never"] {
        let answer = api.get(&format!("/api/messages?{bad}")).await?;
        assert_eq!(answer.status.as_u16(), 400, "{bad}: {}", answer.body);
    }
    assert_eq!(api.get("/api/messages/not-an-id").await?.status.as_u16() / 100, 4);
    Ok(())
}

#[tokio::test]
async fn invariant_p_nothing_personal_is_in_logs_metrics_or_the_broker() -> Result<()> {
    let mut stack = Stack::prepare(
        TestServers::shared()?,
        &[PATIENT, &[("RUST_LOG", "debug"), ("EMAIL_BACKEND", "sandbox")]].concat(),
    )
    .await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    // Its relay publishes what ingest accepts before its own connection to the broker stands.
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    let canaries = ["canary-address", "canary-content", "canary-title", "canary-secret"];
    let api = stack.producer();
    let id = api
        .send(&json!({"channel": "email", "recipient": "canary-address+fail-once@example.com", "title": "canary-title", "message": "canary-content", "metadata": {"token": "canary-secret"}}))
        .await?;
    // No worker runs, so the messages in the broker can be read.
    let backend = testkit::amqp::Backend::connect(&stack.amqp_url).await?;
    let channel = backend.channel().await?;
    let waiting = testkit::eventually("the work arrives", SOON, || async {
        channel
            .basic_get("posthaste.work.email.normal".into(), lapin::options::BasicGetOptions { no_ack: false })
            .await
            .ok()?
    })
    .await?;
    let on_the_wire = format!("{:?} {}", waiting.properties, String::from_utf8_lossy(&waiting.data));
    stack.launch("worker", Role::Worker, &[]).await?;
    drop((waiting, channel, backend));
    api.wait_status(&id, "sent").await?;
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("worker")?)).await?.text().await?;
    let everything = format!("{on_the_wire}\n{}\n{metrics}", stack.logs()?);
    for canary in canaries {
        assert!(
            !everything.contains(canary),
            "{canary} leaked: {}",
            everything.lines().find(|line| line.contains(canary)).unwrap_or_default()
        );
    }
    assert!(everything.contains(&id) || metrics.contains("posthaste_"), "there was something to search");
    Ok(())
}

#[tokio::test]
async fn a_hundred_thousand_byte_webhook_body_arrives_byte_for_byte() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let data = format!(r#"{{"big": "{}",  "number": 1.10, "dup": 1, "dup": 2}}"#, "ä".repeat(50_000));
    let body = format!(r#"{{"channel":"webhook","recipient":"{}","data":{data}}}"#, sink.url("/big"));
    let answer = stack
        .producer()
        .request(reqwest::Method::POST, "/api/notifications/send", &[], Some(body.into_bytes()))
        .await?;
    let id = answer.ok()?["id"].as_str().unwrap().to_owned();
    stack.producer().wait_status(&id, "delivered").await?;
    assert_eq!(sink.requests()[0].text(), data);
    check::ledger(&stack, &sink, &[id], SOON).await?.hold()
}
