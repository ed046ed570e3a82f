//! Faults: processes and servers killed for real, at named points and under load. Afterwards the ledger must hold.
//! Numbers in the names are the rows of the fault table in docs/reliability.md.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    HttpSink, Reply, Role, Stack, TestServers,
    api::SOON,
    check, eventually,
    patient::{PATIENT, SHORT_LEASES},
    proxy::{self, Line, Proxy},
};

const LATER: Duration = Duration::from_secs(180);

fn webhook(sink: &HttpSink) -> Value {
    json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": 1}})
}

/// Posts under a key until it is accepted, as a careful client does; returns the id.
async fn insist(stack: &Stack, ingest: &str, key: &str, body: &Value) -> Result<String> {
    eventually("the request is accepted", LATER, || async {
        let answer = stack.api_of(ingest).ok()?.send_keyed(key, body).await.ok()?;
        (answer.status.as_u16() == 202).then(|| answer.body["id"].as_str().map(str::to_owned))?
    })
    .await
}

#[tokio::test]
async fn row_1_invariant_l_k_an_ingest_that_dies_at_any_point_loses_and_doubles_nothing() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(1, PATIENT).await?;
    let mut accepted = Vec::new();
    for point in ["before_commit", "after_commit", "before_publish", "after_publish"] {
        stack.launch("doomed", Role::Ingest, &[("POSTHASTE_ABORT_AT", &format!("{point}:3"))]).await?;
        let doomed = stack.api_of("doomed")?;
        let mut keys = Vec::new();
        let start = Instant::now();
        // Many messages may share a commit or a publication, so that it takes more of them to pass a point three times.
        for n in 0.. {
            if n >= 20 && stack.ended("doomed", Duration::from_millis(50)).await.is_ok() {
                break;
            }
            anyhow::ensure!(start.elapsed() < LATER, "{point} was never passed");
            let key = format!("{point}-{n}");
            let answer = doomed.send_keyed(&key, &webhook(&sink)).await;
            keys.push((
                key,
                answer
                    .ok()
                    .filter(|answer| answer.status.as_u16() == 202)
                    .and_then(|answer| answer.body["id"].as_str().map(str::to_owned)),
            ));
        }
        for (key, first) in keys {
            let id = insist(&stack, "ingest", &key, &webhook(&sink)).await?;
            assert!(first.is_none_or(|first| first == id), "{key} changed its answer");
            accepted.push(id);
        }
    }
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, i64::try_from(accepted.len())?);
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!(ledger.ambiguous, 0, "no provider call was interrupted");
    Ok(())
}

#[tokio::test]
async fn row_2_invariant_l_d_a_a_worker_that_dies_at_any_point_leaves_no_hole_and_no_silent_double() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(1, SHORT_LEASES).await?;
    let mut accepted = Vec::new();
    for point in ["after_claim", "after_provider", "after_event"] {
        // No wait until it is ready: with the work that the one before it left, it may die before that.
        stack.spawn("doomed", Role::Worker, &[("POSTHASTE_ABORT_AT", &format!("{point}:5"))])?;
        let start = Instant::now();
        while stack.ended("doomed", Duration::from_millis(20)).await.is_err() {
            anyhow::ensure!(start.elapsed() < LATER, "{point} was never passed");
            accepted.push(stack.api_of("ingest")?.send(&webhook(&sink)).await?);
        }
    }
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test]
async fn row_3_invariant_l_a_a_scheduler_that_dies_at_any_point_is_replaced_without_a_trace() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(1, &[]).await?;
    sink.reply_by_default(Reply::with({
        let seen = std::sync::Mutex::new(std::collections::HashSet::new());
        move |request| {
            let first = seen.lock().unwrap().insert(request.header("webhook-id").unwrap().to_owned());
            if first { Reply::status(503) } else { Reply::ok() }
        }
    }));
    let mut accepted = Vec::new();
    stack.kill9("scheduler")?;
    for point in ["after_release", "after_record", "before_publish", "after_publish"] {
        stack.spawn("doomed", Role::Scheduler, &[("POSTHASTE_ABORT_AT", &format!("{point}:2"))])?;
        let start = Instant::now();
        while stack.ended("doomed", Duration::from_millis(50)).await.is_err() {
            anyhow::ensure!(start.elapsed() < LATER, "{point} was never passed");
            accepted.push(stack.api_of("ingest")?.send(&webhook(&sink)).await?);
        }
    }
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    stack.launch("second", Role::Scheduler, &[]).await?;
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test(flavor = "multi_thread")]
async fn row_4_invariant_l_the_broker_dies_under_load_and_acceptance_goes_on() -> Result<()> {
    let servers = TestServers::private("broker")?;
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(servers.clone(), &[]).await?;
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let mut accepted = Vec::new();
    for n in 0..300 {
        match n {
            100 => servers.own().rabbitmq.kill9()?,
            250 => tokio::task::block_in_place(|| servers.own().rabbitmq.start())?,
            _ => {}
        }
        accepted.push(api.send(&webhook(&sink)).await?);
    }
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

/// How long it takes until a request is refused while the database is away: the shortest of several times if the machine
/// stands still in the first ones. Every answer must be a 503 that says when to come again.
async fn refused(stack: &Stack, sink: &HttpSink, promised: Duration) -> Result<Duration> {
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let answer = stack.producer().post("/api/notifications/send", &webhook(sink)).await?;
        quickest = quickest.min(start.elapsed());
        anyhow::ensure!(answer.status.as_u16() == 503, "{} {}", answer.status, answer.body);
        anyhow::ensure!(answer.header("retry-after").is_some(), "{}", answer.body);
        if quickest < promised {
            break;
        }
    }
    Ok(quickest)
}

#[tokio::test(flavor = "multi_thread")]
async fn row_5_invariant_l_without_the_database_the_answer_is_503_within_two_seconds() -> Result<()> {
    let servers = TestServers::private("database")?;
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(servers.clone(), &[]).await?;
    stack.launch("all", Role::All, &[]).await?;
    let mut accepted = vec![stack.producer().send(&webhook(&sink)).await?];
    servers.own().postgres.stop_immediate()?;
    let quickest = refused(&stack, &sink, Duration::from_secs(2)).await?;
    assert!(quickest < Duration::from_secs(2), "{quickest:?}");
    servers.own().postgres.start()?;
    accepted.push(insist(&stack, "all", "after", &webhook(&sink)).await?);

    servers.own().postgres.pause();
    let quickest = refused(&stack, &sink, Duration::from_millis(2500)).await;
    servers.own().postgres.resume();
    let quickest = quickest?;
    assert!(quickest < Duration::from_millis(2500), "{quickest:?}");
    accepted.push(insist(&stack, "all", "resumed", &webhook(&sink)).await?);
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test]
async fn row_10_invariant_d_every_work_message_three_times_and_out_of_order_is_one_send() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(TestServers::shared()?, PATIENT).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let mut accepted = Vec::new();
    for _ in 0..50 {
        accepted.push(stack.producer().send(&webhook(&sink)).await?);
    }
    let backend = testkit::amqp::Backend::connect(&stack.amqp_url).await?;
    let channel = backend.channel().await?;
    let mut bodies = Vec::new();
    while bodies.len() < accepted.len() {
        let got = eventually("the work arrives", SOON, || async {
            channel
                .basic_get("posthaste.work.webhook.normal".into(), lapin::options::BasicGetOptions { no_ack: true })
                .await
                .ok()?
        })
        .await?;
        bodies.push(got.data.clone());
    }
    for body in bodies.iter().rev().chain(&bodies).chain(bodies.iter().rev()) {
        backend
            .publish_to("posthaste.work", "webhook.normal", testkit::amqp::Backend::properties("again")?, body)
            .await?;
    }
    stack.launch("worker0", Role::Worker, &[]).await?;
    stack.launch("worker1", Role::Worker, &[]).await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!((ledger.repeats, sink.requests().len()), (0, 50));
    Ok(())
}

#[tokio::test]
async fn row_11_invariant_l_a_deleted_queue_is_declared_again_and_what_was_in_it_is_sent() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(0, &[]).await?;
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(stack.producer().send(&webhook(&sink)).await?);
    }
    let published = "SELECT count(*) FROM outbox WHERE published_at IS NULL";
    eventually("all is with the broker", SOON, || async { (stack.count(published).await.ok()? == 0).then_some(()) })
        .await?;
    stack.launch("worker0", Role::Worker, &[("WORKER_CHANNELS", "email")]).await?;
    let backend = testkit::amqp::Backend::connect(&stack.amqp_url).await?;
    backend.channel().await?.queue_delete("posthaste.work.webhook.normal".into(), Default::default()).await?;
    accepted.push(stack.producer().send(&webhook(&sink)).await?);
    stack.launch("worker1", Role::Worker, &[]).await?;
    // A server that deletes the queue under a consumer cancels it; the consumer must come back by itself.
    backend.channel().await?.queue_delete("posthaste.work.webhook.normal".into(), Default::default()).await?;
    accepted.push(stack.producer().send(&webhook(&sink)).await?);
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test]
async fn row_12_a_delivery_that_kills_workers_is_taken_out_and_its_neighbours_arrive() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(0, SHORT_LEASES).await?;
    let poison = stack.producer().send(&webhook(&sink)).await?;
    for n in 0.. {
        let state = stack.producer().message(&poison).await?["status"].as_str().unwrap().to_owned();
        if state == "dead" {
            break;
        }
        assert!(n < 6, "still {state} after {n} crashes");
        stack.spawn("doomed", Role::Worker, &[("POSTHASTE_ABORT_AT", "after_claim:1")])?;
        stack.ended("doomed", LATER).await?;
        eventually("the crash is noticed", LATER, || async {
            let status = stack.producer().message(&poison).await.ok()?["status"].as_str()?.to_owned();
            (status != "sending").then_some(())
        })
        .await?;
    }
    let letters = stack.admin().get("/api/admin/dead-letters?reason=expired_crashes").await?.ok()?;
    assert_eq!(letters["dead_letters"][0]["message_id"], poison);
    let neighbour = stack.producer().send(&webhook(&sink)).await?;
    stack.launch("worker0", Role::Worker, &[]).await?;
    stack.producer().wait_status(&neighbour, "delivered").await?;
    Ok(())
}

#[tokio::test]
async fn row_6_invariant_l_a_broker_line_that_freezes_is_noticed_and_rebuilt() -> Result<()> {
    let servers = TestServers::shared()?;
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(servers, &[]).await?;
    let line = Proxy::start(proxy::address_of(&stack.amqp_url)?).await?;
    let through = proxy::through(&stack.amqp_url, &line)?;
    stack.launch("all", Role::All, &[("AMQP_URL", &through)]).await?;
    let mut accepted = Vec::new();
    for _ in 0..3 {
        for _ in 0..20 {
            accepted.push(stack.producer().send(&webhook(&sink)).await?);
        }
        line.set(Line::Cut);
        accepted.push(stack.producer().send(&webhook(&sink)).await?);
        line.set(Line::Open);
    }
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test]
async fn row_20_two_schedulers_release_what_is_due_at_one_second_once() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(2, PATIENT).await?;
    stack.launch("second", Role::Scheduler, &[]).await?;
    let at = (chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::seconds(4))
        .to_rfc3339();
    let users: Vec<String> = (0..5_000).map(|n| format!("user{n}")).collect();
    let bulk = json!({"user_ids": users, "channel": "in_app", "message": "m", "scheduled_at": at});
    let (bulk, key) = (serde_json::to_vec(&bulk)?, [("Idempotency-Key", "bulk")]);
    // Five thousand rows can take longer than a caller is kept waiting; the key makes it safe to ask again.
    eventually("the bulk is accepted", LATER, || async {
        let path = "/api/notifications/send-bulk";
        stack.producer().request(Method::POST, path, &key, Some(bulk.clone())).await.ok()?.ok().ok()
    })
    .await?;
    let one = json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {}, "scheduled_at": at});
    let accepted = vec![stack.producer().send(&one).await?];
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!(stack.count("SELECT count(*) FROM delivery_events WHERE kind = 'delivered'").await?, 5_001);
    assert_eq!(stack.count("SELECT count(*) FROM inbox").await?, 5_000);
    Ok(())
}

#[tokio::test]
async fn row_26_invariant_l_d_a_rolling_restart_under_load_repeats_nothing() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_apart(2, PATIENT).await?;
    let mut accepted = Vec::new();
    for round in 0..4 {
        for _ in 0..50 {
            accepted.push(stack.producer().send(&webhook(&sink)).await?);
        }
        let name = if round % 2 == 0 { "worker0" } else { "worker1" };
        stack.signal(name, Signal::SIGTERM)?;
        for _ in 0..50 {
            accepted.push(stack.producer().send(&webhook(&sink)).await?);
        }
        let status = stack.ended(name, LATER).await?;
        assert!(status.success(), "{name} ended with {status}");
        stack.launch(name, Role::Worker, &[]).await?;
    }
    for (name, role) in [("scheduler", Role::Scheduler), ("ingest", Role::Ingest)] {
        stack.signal(name, Signal::SIGTERM)?;
        assert!(stack.ended(name, LATER).await?.success(), "{name}");
        stack.launch(name, role, &[]).await?;
    }
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!((ledger.repeats, ledger.ambiguous), (0, 0), "a drained worker repeats nothing");
    Ok(())
}
