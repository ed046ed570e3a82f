//! A claim is not doubted while its outcome may still arrive: frozen nodes, and deliveries that kill their workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Reply, Role, Stack, TestServers,
    api::SOON,
    check, eventually,
    patient::SHORT_LEASES,
    proxy::{self, Line, Proxy},
};
use tokio::task::JoinHandle;

const LATER: Duration = Duration::from_secs(180);

fn webhook(sink: &HttpSink, path: &str) -> Value {
    json!({"channel": "webhook", "recipient": sink.url(path), "data": {"n": 1}})
}

/// How many claims counted as those of a lost worker. Calls that time out on a machine that stands still are ambiguous too, and not
/// counted here.
async fn doubted(stack: &Stack) -> Result<i64> {
    stack.count("SELECT count(*) FROM delivery_events WHERE kind = 'ambiguous' AND code = 'worker_lost'").await
}

/// A client that sends one message after the other until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<Vec<String>>>,
}

impl Load {
    fn start(api: Api, body: Value) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopping = Arc::clone(&stop);
        let client = tokio::spawn(async move {
            let mut accepted = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                accepted.push(api.send(&body).await?);
            }
            Ok(accepted)
        });
        Self { stop, client }
    }

    async fn accepted(self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.client.await?
    }
}

#[tokio::test]
async fn a_process_that_freezes_makes_nobody_doubt_what_others_have_sent() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(TestServers::shared()?, SHORT_LEASES).await?;
    stack.launch("healthy", Role::All, &[]).await?;
    // It writes outcomes down, and sends no webhook itself: whatever is sent twice was sent by the healthy one.
    stack.launch("frozen", Role::All, &[("WORKER_CHANNELS", "email")]).await?;
    let load = Load::start(stack.api_of("healthy")?, webhook(&sink, "/hook"));
    sink.wait_for(20, SOON).await?;
    stack.signal("frozen", Signal::SIGSTOP)?;
    // Longer than a claim and the grace for its outcome.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let accepted = load.accepted().await?;
    stack.signal("frozen", Signal::SIGCONT)?;
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!(doubted(&stack).await?, 0, "{ledger:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_without_a_database_gives_back_what_it_holds_and_makes_nobody_doubt() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(TestServers::shared()?, SHORT_LEASES).await?;
    stack.launch("healthy", Role::All, &[]).await?;
    let line = Proxy::start(proxy::address_of(&stack.database_url)?).await?;
    let through = proxy::through(&stack.database_url, &line)?;
    stack.launch("cut_off", Role::Scheduler, &[("DATABASE_URL", &through)]).await?;
    let load = Load::start(stack.api_of("healthy")?, webhook(&sink, "/hook"));
    sink.wait_for(20, SOON).await?;
    // A question fails at once on a broken line, and hangs on a frozen one.
    for (fault, unknown) in [(Line::Cut, "posthaste_doubt_held NaN"), (Line::Frozen, "")] {
        stack.until_measured("cut_off", &["posthaste_consumer_registered{queue=\"posthaste.events.log\"} 1"]).await?;
        line.set(fault);
        // Longer than a claim and the grace for its outcome.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let shown = ["posthaste_consumer_registered{queue=\"posthaste.events.log\"} 0", unknown];
        stack.until_measured("cut_off", &shown).await?;
        line.set(Line::Open);
    }
    let accepted = load.accepted().await?;
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!(doubted(&stack).await?, 0, "{ledger:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_nothing_stops_the_sending_and_makes_nobody_doubt() -> Result<()> {
    let servers = TestServers::private("alarm")?;
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(servers.clone(), SHORT_LEASES).await?;
    stack.launch("all", Role::All, &[]).await?;
    let load = Load::start(stack.producer(), webhook(&sink, "/hook"));
    sink.wait_for(20, SOON).await?;
    let alarm = |mark: &str| servers.own().rabbitmqctl(&["set_vm_memory_high_watermark", mark]);
    alarm("0.00001")?;
    stack.until_measured("all", &["posthaste_broker_blocked{connection=\"posthaste worker publishing\"} 1"]).await?;
    let before = sink.requests().len();
    // Longer than a claim and the grace for its outcome.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let meanwhile = sink.requests().len() - before;
    alarm("0.7")?;
    let accepted = load.accepted().await?;
    assert!(meanwhile <= 16, "{meanwhile} of {} were sent although no outcome could be reported", accepted.len());
    let ledger = check::ledger(&stack, &sink, &accepted, LATER).await?;
    ledger.hold()?;
    assert_eq!(doubted(&stack).await?, 0, "{ledger:?}");
    stack.until_measured("all", &["posthaste_doubt_suspended 0", "posthaste_doubt_held 0"]).await
}

#[tokio::test]
async fn what_dies_with_a_delivery_that_kills_workers_is_not_taken_out_with_it() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    // Its neighbours are under way when it strikes.
    sink.reply_by_default(Reply::ok().after(Duration::from_millis(300)));
    sink.reply_to("/poison", Reply::Hang);
    let mut stack = Stack::start_apart(0, SHORT_LEASES).await?;
    let mut neighbours = Vec::new();
    for _ in 0..15 {
        neighbours.push(stack.producer().send(&webhook(&sink, "/hook")).await?);
    }
    let poison = stack.producer().send(&webhook(&sink, "/poison")).await?;
    for _ in 0..15 {
        neighbours.push(stack.producer().send(&webhook(&sink, "/hook")).await?);
    }
    for crash in 1..=3 {
        stack.launch("worker", Role::Worker, &[]).await?;
        eventually("the poison is sent", LATER, || async {
            (sink.requests_to("/poison").len() >= crash).then_some(())
        })
        .await?;
        stack.kill9("worker")?;
    }
    stack.launch("worker", Role::Worker, &[]).await?;
    stack.producer().wait_status_within(&poison, "dead", LATER).await?;
    for id in &neighbours {
        stack.producer().wait_status_within(id, "delivered", LATER).await?;
    }
    let crashes = stack.count("SELECT max(crashes)::int8 FROM deliveries WHERE state = 'delivered'").await?;
    assert!(crashes <= 2, "a neighbour met it {crashes} times");
    Ok(())
}
