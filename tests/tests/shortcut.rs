//! The short way of a hint within a process that both accepts and sends.

use std::time::Duration;

use anyhow::Result;
use harness::{
    HttpSink, Reply, Role, Stack, TestServers,
    api::SOON,
    eventually,
    proxy::{self, Line, Proxy},
};
use serde_json::{Value, json};

fn webhook(sink: &HttpSink) -> Value {
    json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": 1}})
}

#[tokio::test]
async fn a_process_that_accepts_and_sends_does_not_wait_for_its_own_hint() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(TestServers::shared()?, &[("WEBHOOK_TIMEOUT", "120000")]).await?;
    let line = Proxy::start(proxy::address_of(&stack.amqp_url)?).await?;
    stack.amqp_url = proxy::through(&stack.amqp_url, &line)?;
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let first = api.send(&webhook(&sink)).await?;
    api.wait_status(&first, "delivered").await?;

    // No hint comes back, and no outcome gets through; nobody has noticed that yet.
    line.set(Line::Frozen);
    let second = api.send(&webhook(&sink)).await?;
    sink.wait_for(2, SOON).await?;
    assert_ne!(api.message(&second).await?["status"], "delivered", "its outcome waits for the broker");
    line.set(Line::Open);
    api.wait_status(&second, "delivered").await?;
    for id in [&first, &second] {
        assert_eq!(api.timeline(id).await?["attempts"].as_array().map(Vec::len), Some(1));
    }
    // The broker's copies came after the end, or were kept for it: nothing is left of them.
    eventually("the outbox is empty", SOON, || async {
        (stack.count("SELECT count(*) FROM outbox").await.ok()? == 0).then_some(())
    })
    .await?;
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    let third = stack.producer().send(&webhook(&sink)).await?;
    stack.producer().wait_status(&third, "delivered").await?;
    assert_eq!(sink.requests().len(), 3, "nothing was sent again");
    Ok(())
}

#[tokio::test]
async fn what_went_the_short_way_is_brought_back_by_the_broker_when_its_process_dies() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::Hang);
    // The audit would bring it back as well, but not that soon.
    let settings = [("AUDIT_AFTER_MS", "600000"), ("WEBHOOK_TIMEOUT", "5000"), ("LEASE_MARGIN_MS", "1000")];
    let mut stack = Stack::start_with(&settings).await?;
    let id = stack.producer().send(&webhook(&sink)).await?;
    sink.wait_for(1, SOON).await?;
    stack.kill9("all")?;
    sink.reply_by_default(Reply::ok());
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let delivered = eventually("it arrives", Duration::from_secs(120), || async {
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
