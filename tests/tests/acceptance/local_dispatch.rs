//! The short way of a process that both accepts and sends: what it can send at once is claimed with its acceptance.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    HttpSink, Reply, Role, Stack, TestServers,
    api::SOON,
    check, eventually,
    patient::{PATIENT, SHORT_LEASES},
    proxy::{self, Line, Proxy},
};

const LATER: Duration = Duration::from_secs(180);

/// The audit looks at deliveries that were claimed with their acceptance when their lease ends, and at others after ten minutes.
fn short_leases() -> Vec<(&'static str, &'static str)> {
    [SHORT_LEASES, &[("AUDIT_AFTER_MS", "600000")]].concat()
}

fn webhook(sink: &HttpSink) -> Value {
    json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": 1}})
}

#[tokio::test]
async fn a_process_that_accepts_and_sends_needs_no_broker_in_between() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let settings = [("WEBHOOK_TIMEOUT", "120000"), ("SMS_BACKEND", "sandbox")];
    let mut stack = Stack::prepare(TestServers::shared()?, &settings).await?;
    let line = Proxy::start(proxy::address_of(&stack.amqp_url)?).await?;
    stack.amqp_url = proxy::through(&stack.amqp_url, &line)?;
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let first = api.send(&webhook(&sink)).await?;
    api.wait_status(&first, "delivered").await?;

    // Nothing comes from the broker and no outcome gets through, and no process has noticed yet.
    line.set(Line::Frozen);
    // Without a key, since such batches have a statement of their own; what a 503 leaves open is counted below.
    let second = eventually("a message without a key is accepted", SOON, || async {
        let answer = api.post("/api/notifications/send", &webhook(&sink)).await.ok()?;
        answer.body["id"].as_str().map(str::to_owned)
    })
    .await?;
    let third = api.send(&webhook(&sink)).await?;
    sink.wait_for(3, SOON).await?;
    for id in [&second, &third] {
        assert_ne!(api.message(id).await?["status"], "delivered", "its outcome waits for the broker");
    }
    // Where doubt would hold a message back, it goes through the queue: a process that dies leaves it there untouched.
    let text = api.send(&json!({"channel": "sms", "recipient": "+15005550006", "message": "hello"})).await?;
    assert_eq!(stack.count("SELECT count(*) FROM deliveries WHERE channel = 'sms' AND state = 'queued'").await?, 1);
    line.set(Line::Open);
    for (id, status) in [(&second, "delivered"), (&third, "delivered"), (&text, "sent")] {
        api.wait_status(id, status).await?;
        assert_eq!(api.timeline(id).await?["attempts"].as_array().map(Vec::len), Some(1));
    }
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    let last = stack.producer().send(&webhook(&sink)).await?;
    stack.producer().wait_status(&last, "delivered").await?;
    let accepted = stack.count("SELECT count(*) FROM deliveries WHERE channel = 'webhook'").await?;
    assert_eq!(i64::try_from(sink.requests().len())?, accepted, "nothing was sent again");
    Ok(())
}

#[tokio::test]
async fn what_a_dead_process_was_sending_is_doubted_when_its_lease_ends_and_goes_out_again() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::Hang);
    let mut stack = Stack::start_with(&short_leases()).await?;
    let id = stack.producer().send(&webhook(&sink)).await?;
    sink.wait_for(1, SOON).await?;
    stack.kill9("all")?;
    sink.reply_by_default(Reply::ok());
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let delivered = eventually("it arrives", LATER, || async {
        api.message(&id).await.ok().filter(|message| message["status"] == "delivered")
    })
    .await;
    let timeline = api.timeline(&id).await?;
    delivered.map_err(|error| error.context(timeline.to_string()))?;
    let kinds: Vec<&str> = timeline["events"].as_array().unwrap().iter().filter_map(|e| e["kind"].as_str()).collect();
    assert!(kinds.contains(&"ambiguous"), "the doubt is written down: {kinds:?}");
    assert_eq!(sink.requests().len(), 2);
    Ok(())
}

#[tokio::test]
async fn rows_1_and_2_invariant_l_k_d_a_a_process_that_accepts_and_sends_may_die_at_any_point() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::start_with(&short_leases()).await?;
    let (mut accepted, mut doubled) = (Vec::new(), 0);
    for point in ["before_commit", "after_commit", "after_claim", "after_provider", "after_event"] {
        // No wait until it is ready: with the work that the one before it left, it may die before that.
        stack.spawn("doomed", Role::All, &[("POSTHASTE_ABORT_AT", &format!("{point}:3"))])?;
        let mut keys = Vec::new();
        let start = Instant::now();
        while stack.ended("doomed", Duration::from_millis(20)).await.is_err() {
            anyhow::ensure!(start.elapsed() < LATER, "{point} was never passed");
            let key = format!("{point}-{}", keys.len());
            let answer = stack.api_of("doomed")?.send_keyed(&key, &webhook(&sink)).await;
            let id = answer.ok().and_then(|answer| answer.body["id"].as_str().map(str::to_owned));
            keys.push((key, id));
        }
        for (key, first) in keys {
            // As a careful client does: under the same key, until there is an answer.
            let body =
                json!({"idempotency_key": key, "channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": 1}});
            let id = stack.producer().send(&body).await?;
            doubled += usize::from(first.is_some_and(|first| first != id));
            accepted.push(id);
        }
    }
    assert_eq!(doubled, 0, "answers that changed");
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, i64::try_from(accepted.len())?);
    check::ledger(&stack, &sink, &accepted, LATER).await?.hold()
}

#[tokio::test]
async fn row_26_invariant_l_d_an_orderly_end_finishes_what_was_claimed() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::ok().after(Duration::from_millis(300)));
    let mut stack = Stack::start_with(PATIENT).await?;
    let mut accepted = Vec::new();
    for _ in 0..3 {
        for _ in 0..40 {
            accepted.push(stack.producer().send(&webhook(&sink)).await?);
        }
        stack.signal("all", Signal::SIGTERM)?;
        let status = stack.ended("all", LATER).await?;
        assert!(status.success(), "it ended with {status}");
        stack.launch("all", Role::All, &[]).await?;
    }
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!((ledger.repeats, ledger.ambiguous), (0, 0), "what was begun was finished");
    Ok(())
}
