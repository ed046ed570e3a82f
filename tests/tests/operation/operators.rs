//! The work of operators and admins: dead letters, replays, commands, health.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{HttpSink, Reply, Role, Stack, TestServers, amqp::Backend, api::SOON, check, eventually};
use tokio_postgres::NoTls;

/// `count` webhooks that died because the receiver always answered 500.
async fn dead(stack: &Stack, sink: &HttpSink, count: usize) -> Result<Vec<String>> {
    sink.reply_by_default(Reply::status(500));
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(
            stack
                .producer()
                .send(&json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": n}}))
                .await?,
        );
    }
    for id in &ids {
        stack.producer().wait_status(id, "dead").await?;
    }
    Ok(ids)
}

async fn finished(stack: &Stack, replay: &Value) -> Result<Value> {
    let path = format!("/api/admin/replays/{}", replay["replay_id"].as_str().unwrap());
    eventually("the replay ends", SOON, || async {
        let state = stack.admin().get(&path).await.ok()?.ok().ok()?;
        (state["status"] != "running").then_some(state)
    })
    .await
}

#[tokio::test]
async fn a_dead_letter_is_seen_previewed_and_replayed_as_a_new_run_of_the_same_delivery() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[("WEBHOOK_MAX_RETRIES", "1")]).await?, HttpSink::start_local().await?);
    let ids = dead(&stack, &sink, 3).await?;
    let admin = stack.admin();
    let list = admin.get("/api/admin/dead-letters?status=open&channel=webhook").await?.ok()?;
    assert_eq!(list["dead_letters"].as_array().unwrap().len(), 3);
    let letter = &list["dead_letters"][0];
    assert_eq!((&letter["reason"], &letter["origin"]), (&json!("attempts_exhausted"), &json!("delivery")));
    let shown = admin.get(&format!("/api/admin/dead-letters/{}", letter["id"].as_str().unwrap())).await?.ok()?;
    assert_eq!(shown["id"], letter["id"]);

    let replay = |body: Value| {
        let admin = admin.clone();
        async move { admin.post("/api/admin/dead-letters/replay", &body).await }
    };
    assert_eq!(replay(json!({"filter": {}, "reason": "r"})).await?.status.as_u16(), 400, "an empty filter");
    assert_eq!(replay(json!({"filter": {"channel": "webhook"}})).await?.status.as_u16(), 400, "no reason");
    assert_eq!(
        replay(json!({"filter": {"colour": "red"}, "reason": "r"})).await?.status.as_u16(),
        400,
        "an unknown filter"
    );
    let preview = replay(json!({"filter": {"channel": "webhook"}, "dry_run": true, "reason": "r"})).await?;
    assert_eq!((preview.status.as_u16(), &preview.body["matched"]), (200, &json!(3)));
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters WHERE status = 'open'").await?, 3);

    sink.reply_by_default(Reply::ok());
    let started = replay(json!({"filter": {"message_id": ids[0]}, "reason": "receiver is back"})).await?;
    assert_eq!((started.status.as_u16(), &started.body["matched"]), (202, &json!(1)));
    let state = finished(&stack, &started.body).await?;
    assert_eq!((&state["replayed"], &state["skipped"]), (&json!(1), &json!(0)));
    stack.producer().wait_status(&ids[0], "delivered").await?;
    let timeline = stack.producer().timeline(&ids[0]).await?;
    let kinds: Vec<_> =
        timeline["events"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["accepted", "retrying", "dead", "replayed", "delivered"], "history is kept");
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters WHERE status = 'replayed'").await?, 1);

    admin
        .post("/api/admin/dead-letters/drop", &json!({"filter": {"message_id": ids[1]}, "reason": "not wanted"}))
        .await?
        .ok()?;
    eventually("it is dropped", SOON, || async {
        (stack.count("SELECT count(*) FROM dead_letters WHERE status = 'dropped'").await.ok()? == 1).then_some(())
    })
    .await?;
    check::ledger(&stack, &sink, &ids, SOON).await?.hold()
}

#[tokio::test]
async fn row_25_two_replays_at_once_move_each_letter_once() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[("WEBHOOK_MAX_RETRIES", "0")]).await?, HttpSink::start_local().await?);
    let ids = dead(&stack, &sink, 60).await?;
    sink.clear();
    sink.reply_by_default(Reply::ok());
    let admin = stack.admin();
    let body = json!({"filter": {"reason": "attempts_exhausted"}, "reason": "twice"});
    let (one, two) = tokio::try_join!(
        admin.post("/api/admin/dead-letters/replay", &body),
        admin.post("/api/admin/dead-letters/replay", &body)
    )?;
    let (one, two) = (finished(&stack, &one.ok()?).await?, finished(&stack, &two.ok()?).await?);
    assert_eq!(one["replayed"].as_i64().unwrap() + two["replayed"].as_i64().unwrap(), 60, "{one} {two}");
    for id in &ids {
        stack.producer().wait_status(id, "delivered").await?;
    }
    assert_eq!(sink.requests().len(), 60);
    // A delivered message is no dead letter any more: a third replay finds nothing.
    let third = admin.post("/api/admin/dead-letters/replay", &body).await?.ok()?;
    assert_eq!(third["matched"], 0);
    Ok(())
}

#[tokio::test]
async fn a_refused_publish_is_replayed_once_its_tenant_exists() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let body = json!({"channel": "in_app", "recipient": "ada", "message": "m"}).to_string();
    backend.publish("late.in_app.normal", Backend::properties("early")?, body.as_bytes()).await?;
    eventually("it is refused", SOON, || async {
        (stack.count("SELECT count(*) FROM dead_letters").await.ok()? == 1).then_some(())
    })
    .await?;
    stack.cli(&["tenant", "create", "late"])?;
    stack.cli(&["dead", "replay", "--reason", "tenant", "--note", "the tenant exists now"])?;
    eventually("it is delivered", SOON, || async {
        (stack.count("SELECT count(*) FROM deliveries WHERE state = 'delivered'").await.ok()? == 1).then_some(())
    })
    .await?;
    // The message may be through before its letter is closed.
    stack.until_count("SELECT count(*) FROM dead_letters WHERE status = 'replayed'", 1).await
}

#[tokio::test]
async fn the_command_line_does_what_an_operator_needs_at_night() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[("WEBHOOK_MAX_RETRIES", "0")]).await?, HttpSink::start_local().await?);
    let ids = dead(&stack, &sink, 2).await?;
    let list = stack.cli_json(&["dead", "list", "--channel", "webhook"])?;
    assert!(list.to_string().contains(&ids[0]), "{list}");
    let dry = stack.cli_json(&["dead", "replay", "--channel", "webhook", "--dry-run", "--note", "look first"])?;
    assert_eq!(dry["matched"], 2, "{dry}");
    sink.reply_by_default(Reply::ok());
    stack.cli(&["dead", "replay", "--channel", "webhook", "--note", "receiver is back"])?;
    for id in &ids {
        stack.producer().wait_status(id, "delivered").await?;
    }
    assert!(stack.cli(&["dead", "replay", "--note", "no filter"]).is_err());
    for command in [
        &["doctor"][..],
        &["topology", "check"],
        &["topology", "print"],
        &["config", "check"],
        &["migrate", "--check"],
        &["tenant", "list"],
        &["key", "list"],
    ] {
        let printed = stack.cli(command)?;
        assert!(!printed.is_empty(), "{command:?}");
        assert!(!printed.contains("0123456789abcdef0123456789abcdef"), "{command:?} shows a secret");
    }
    let key = stack.cli_json(&["key", "create", "--tenant", "acme", "--role", "producer"])?;
    let (id, key) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    assert_eq!(stack.api(key).get("/api/messages").await?.status.as_u16(), 200);
    stack.cli(&["key", "revoke", id])?;
    eventually("the revoked key is refused", std::time::Duration::from_secs(120), || async {
        (stack.api(key).get("/api/messages").await.ok()?.status.as_u16() == 401).then_some(())
    })
    .await
}

#[tokio::test]
async fn readiness_proves_consumption() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.launch("worker", Role::Worker, &[]).await?;
    let url = format!("http://127.0.0.1:{}/health/ready", stack.port("worker")?);
    assert_eq!(reqwest::get(&url).await?.status().as_u16(), 200);
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("worker")?)).await?.text().await?;
    assert!(metrics.contains("posthaste_consumer_registered"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn an_admin_sees_what_waits_in_each_queue_and_whether_it_is_consumed() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let (admin, sink) = (stack.admin(), HttpSink::start_local().await?);
    let id = stack.producer().send(&json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {}})).await?;
    let queue = async || -> Result<Value> {
        let list = admin.get("/api/admin/queues").await?.ok()?;
        let mut queues = list["queues"].as_array().into_iter().flatten();
        Ok(queues.find(|queue| queue["name"] == "posthaste.work.webhook.normal").cloned().unwrap_or_default())
    };
    eventually("the delivery waits", SOON, || async {
        let queue = queue().await.ok()?;
        (queue["messages_ready"] == 1 && queue["consumers"] == 0).then_some(())
    })
    .await?;
    for (key, status) in [(stack.producer_key.as_str(), 403), ("", 401)] {
        assert_eq!(stack.api(key).get("/api/admin/queues").await?.status.as_u16(), status);
    }
    stack.launch("worker", Role::Worker, &[]).await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    stack.producer().wait_status(&id, "delivered").await?;
    let consumed = queue().await?;
    assert!(consumed["messages_ready"] == 0 && consumed["consumers"].as_u64() > Some(0), "{consumed}");
    Ok(())
}

#[tokio::test]
async fn a_provider_can_ask_whether_its_webhooks_are_taken() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let nobody = stack.api("");
    assert_eq!(nobody.get("/webhooks/health").await?.ok()?, json!({"status": "ok"}));
    let database: String = stack.sql().await?.query_one("SELECT current_database()", &[]).await?.get(0);
    let elsewhere = stack.database_url.replace(&database, "postgres");
    let (sql, connection) = tokio_postgres::connect(&elsewhere, NoTls).await?;
    tokio::spawn(connection);
    sql.batch_execute(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await?;
    sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&database]).await?;
    let refused = nobody.request(Method::GET, "/webhooks/health", &[], None).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (503, &json!("unavailable")), "{}", refused.body);
    sql.batch_execute(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true")).await?;
    eventually("they are taken again", SOON, || async { nobody.get("/webhooks/health").await.ok()?.ok().ok() }).await?;
    Ok(())
}

#[tokio::test]
async fn a_service_refuses_to_start_on_a_schema_that_is_behind() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.sql().await?.batch_execute("DELETE FROM __diesel_schema_migrations").await?;
    for role in [Role::All, Role::Worker] {
        stack.spawn("behind", role, &[])?;
        assert!(!stack.ended("behind", SOON).await?.success());
        assert!(stack.logs()?.contains("posthaste migrate"), "it says what to do");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_setting_stops_the_start_and_is_named() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.spawn("bad", Role::All, &[("PORT", "eighty"), ("POSTHASTE_COLOUR", "red"), ("JWT_SECRET", "short")])?;
    assert!(!stack.ended("bad", SOON).await?.success());
    let log = stack.logs()?;
    for name in ["PORT", "POSTHASTE_COLOUR", "JWT_SECRET"] {
        assert!(log.contains(name), "{name} is not named in\n{log}");
    }
    Ok(())
}
