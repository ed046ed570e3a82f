use shared::{
    amqp::*,
    config::Config,
    contract::*,
    db::{Store, accept::*},
    dispatch::Dispatcher,
    domain::{channel::Route, *},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use xtask::{
    progress::Progress,
    servers::*,
    sinks::{
        http::{HttpSink, Reply},
        smtp::SmtpSink,
    },
};

fn cfg(vars: &[(&str, String)]) -> Arc<Config> {
    Arc::new(Config::from_env_map(vars.iter().map(|(a, b)| (*a, b.clone()))).map_err(|e| e.to_string()).unwrap())
}

async fn accept(
    store: &Store,
    dispatcher: &Dispatcher,
    tenant: TenantId,
    n: usize,
    channel: Channel,
    to: &dyn Fn(usize) -> String,
    content: &str,
) -> Vec<DeliveryId> {
    let mut ids = vec![];
    let mut at = 0;
    while at < n {
        let m = (n - at).min(64);
        let batch: Vec<Acceptance> = (0..m)
            .map(|i| {
                let d = DeliveryId::generate();
                ids.push(d);
                Acceptance {
                    tenant,
                    source: "http",
                    request_id: Some("r".into()),
                    traceparent: None,
                    key: None,
                    bulk: None,
                    messages: vec![NewMessage {
                        id: MessageId::generate(),
                        user_id: None,
                        category: None,
                        priority: "normal",
                        content: Some(content.as_bytes().to_vec()),
                        scheduled_at: None,
                        expires_at: None,
                        deliveries: vec![NewDelivery {
                            id: d,
                            route: Route { channel, lane: Lane::Normal },
                            recipient: Address::new(to(at + i)),
                        }],
                    }],
                }
            })
            .collect();
        let (_, row) = store.accept(&batch, 5000).await.unwrap();
        assert!(dispatcher.publish(row.unwrap()).await);
        at += m;
    }
    ids
}

struct Log {
    seen: Mutex<HashMap<DeliveryId, Vec<Event>>>,
    count: AtomicUsize,
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let n: usize = args.get(1).and_then(|a| a.parse().ok()).unwrap_or(5000);
    let dir = std::env::temp_dir().join("posthaste-worker-scratch");
    let config = ServersConfig { management: false, ..ServersConfig::below(&dir) };
    let servers =
        tokio::task::spawn_blocking(move || Servers::start(&config, &Progress::silent()).unwrap()).await.unwrap();
    let (db, amqp) = (servers.database_url(), servers.amqp_url());
    eprintln!("servers: {db} {amqp}");
    shared::telemetry::init("scratch", &std::env::var("RUST_LOG").unwrap_or("warn".into()));
    let metrics = shared::telemetry::install_metrics();
    shared::db::migrate::migrate(&db.clone().into()).await.unwrap();
    let store = Store::open(&db.clone().into(), 8).unwrap();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into();
    let slug = format!("t{}", uuid::Uuid::now_v7().simple());
    let tenant = store.create_tenant(&slug[..20], &secret).await.unwrap().id;
    let stop_all = CancellationToken::new();
    let broker = Broker::start(&amqp.clone().into(), "scratch", stop_all.clone());
    broker.usable().await.unwrap();
    let publisher = Publisher::start(&broker);
    let dispatcher = Dispatcher::start(publisher.clone(), store.clone(), 120_000);
    // log reader
    let log = Arc::new(Log { seen: Mutex::default(), count: AtomicUsize::new(0) });
    let lstop = CancellationToken::new();
    let reading = tokio::spawn({
        let (broker, log, store, lstop) = (broker.clone(), log.clone(), store.clone(), lstop.clone());
        async move {
            let mut consumer = Consumer::open(&broker, "posthaste.events.log", 64, &lstop);
            let acker = consumer.acker();
            while let Some(batch) = consumer.next_batch(16, Duration::ZERO).await {
                let mut all = vec![];
                for d in &batch {
                    let b: EventBatch = serde_json::from_slice(&d.body).unwrap();
                    all.extend(b.events);
                }
                log.count.fetch_add(all.len(), Ordering::Relaxed);
                for e in &all {
                    log.seen.lock().unwrap().entry(e.delivery).or_default().push(e.clone());
                }
                store.record(all).await.unwrap();
                acker.done_all(batch.iter().map(|d| d.tag));
            }
            consumer.cancel().await;
        }
    });
    let http = HttpSink::start_local().await.unwrap();
    let smtp = SmtpSink::start_local().await.unwrap();
    let vars = vec![
        ("DATABASE_URL", db.clone()),
        ("AMQP_URL", amqp.clone()),
        ("WEBHOOK_ALLOW_NETS", "127.0.0.0/8".into()),
        ("SMTP_HOST", "127.0.0.1".into()),
        ("SMTP_PORT", smtp.address().port().to_string()),
        ("SMTP_USE_TLS", "none".into()),
        ("EMAIL_FROM", "a@example.com".into()),
        ("SMS_BACKEND", "sandbox".into()),
        ("LEASE_MARGIN_MS", "500".into()),
        ("WORKER_CONCURRENCY", std::env::var("CONC").unwrap_or("64".into())),
        ("WEBHOOK_TIMEOUT", "2000".into()),
    ];
    let config = cfg(&vars);
    let wait = |target: usize| {
        let log = log.clone();
        async move {
            let t = Instant::now();
            while log.count.load(Ordering::Relaxed) < target {
                assert!(t.elapsed() < Duration::from_secs(60), "{} of {target}", log.count.load(Ordering::Relaxed));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };

    if std::env::var("PROC").is_ok() {
        let url = http.url("/hook");
        let before = log.count.load(Ordering::Relaxed);
        let spawn = |port: u16, extra: &[(&str, &str)]| {
            let mut c = std::process::Command::new("target/release/posthaste-worker");
            c.env_clear()
                .env("PATH", std::env::var("PATH").unwrap())
                .env("PORT", port.to_string())
                .env("RUST_LOG", std::env::var("WLOG").unwrap_or("info".into()));
            for (k, v) in &vars {
                c.env(k, v);
            }
            for (k, v) in extra {
                c.env(k, v);
            }
            c.stderr(std::fs::File::create(format!("/tmp/scratch-worker-{port}.log")).unwrap());
            c.spawn().unwrap()
        };
        let ticks = |pid: u32| {
            let t = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let f: Vec<&str> = t.rsplit_once(')').unwrap().1.split_whitespace().collect();
            f[11].parse::<u64>().unwrap() + f[12].parse::<u64>().unwrap()
        };
        // warm
        let mut child = spawn(28080, &[]);
        accept(&store, &dispatcher, tenant, 500, Channel::Webhook, &|_| url.clone(), r#"{"data":{"a":1}}"#).await;
        wait(before + 500).await;
        for _ in 0..2 {
            let before = log.count.load(Ordering::Relaxed);
            let stop_it = nix_stop(child.id(), "STOP");
            accept(&store, &dispatcher, tenant, n, Channel::Webhook, &|_| url.clone(), r#"{"data":{"a":1}}"#).await;
            let c0 = ticks(child.id());
            let t = Instant::now();
            nix_stop(child.id(), "CONT");
            let _ = stop_it;
            wait(before + n).await;
            let cpu = (ticks(child.id()) - c0) as f64 * 10_000.0;
            eprintln!(
                "proc: {n} in {:?} = {:.0}/s, worker cpu {:.1} us each",
                t.elapsed(),
                n as f64 / t.elapsed().as_secs_f64(),
                cpu / n as f64
            );
        }
        let t = Instant::now();
        nix_stop(child.id(), "TERM");
        eprintln!("proc: exit {:?} after {:?}", child.wait().unwrap(), t.elapsed());
        // crash points
        for (k, point) in ["after_claim:7", "after_provider:7", "after_event:7"].iter().enumerate() {
            http.clear();
            let before = log.count.load(Ordering::Relaxed);
            let ids =
                accept(&store, &dispatcher, tenant, 50, Channel::Webhook, &|_| url.clone(), r#"{"data":{"a":1}}"#)
                    .await;
            let mut child = spawn(28081 + k as u16, &[("POSTHASTE_ABORT_AT", point)]);
            eprintln!("{point}: {:?}", child.wait().unwrap());
            let mut child = spawn(28091 + k as u16, &[]);
            let t = Instant::now();
            // watches: those claimed and not reported
            let mut watched = 0;
            while t.elapsed() < Duration::from_secs(6) {
                for c in store.crashed(100, 60_000).await.unwrap() {
                    watched += 1;
                    let _ = c;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let seen = log.seen.lock().unwrap();
            let reported = ids.iter().filter(|id| seen.contains_key(id)).count();
            let mut per: HashMap<String, usize> = HashMap::new();
            for r in http.requests() {
                *per.entry(r.header("webhook-id").unwrap().to_owned()).or_default() += 1;
            }
            eprintln!(
                "{point}: reported {reported} watched {watched} (sum 50?) calls {} max per delivery {:?} events {}",
                http.requests().len(),
                per.values().max(),
                log.count.load(Ordering::Relaxed) - before
            );
            drop(seen);
            nix_stop(child.id(), "TERM");
            child.wait().unwrap();
        }
        std::process::exit(0);
    }
    // 1: throughput
    let url = http.url("/hook");
    let ids = accept(&store, &dispatcher, tenant, n, Channel::Webhook, &|_| url.clone(), r#"{"data":{"a":1}}"#).await;
    let stop = CancellationToken::new();
    let t = Instant::now();
    let running = tokio::spawn(worker::run(config.clone(), shared::probe::Parts::new(), stop.clone()));
    wait(n).await;
    eprintln!("1: {n} webhooks in {:?} = {:.0}/s", t.elapsed(), n as f64 / t.elapsed().as_secs_f64());
    assert_eq!(http.requests().len(), n);
    let got: HashSet<String> = http.requests().iter().map(|r| r.header("webhook-id").unwrap().to_owned()).collect();
    assert!(ids.iter().all(|id| got.contains(&id.to_string())));

    // 2: other channels, poison, no backend
    let before = log.count.load(Ordering::Relaxed);
    accept(
        &store,
        &dispatcher,
        tenant,
        20,
        Channel::Email,
        &|i| format!("p{i}@example.org"),
        r#"{"title":"t","message":"m"}"#,
    )
    .await;
    accept(
        &store,
        &dispatcher,
        tenant,
        20,
        Channel::InApp,
        &|i| format!("user{}", i % 2),
        r#"{"title":"t","message":"m"}"#,
    )
    .await;
    let sms =
        accept(&store, &dispatcher, tenant, 1, Channel::Sms, &|_| "+15550000400".into(), r#"{"message":"m"}"#).await;
    let push = accept(&store, &dispatcher, tenant, 1, Channel::Push, &|_| "tok".into(), r#"{"message":"m"}"#).await;
    publisher
        .publish_one(Outgoing {
            body: b"{nonsense".to_vec(),
            ..Outgoing::json("posthaste.work", "webhook.normal", "poison", &WorkItem::new(ids[0], 0)).unwrap()
        })
        .await
        .unwrap();
    wait(before + 42).await;
    assert_eq!(smtp.mails().len(), 20);
    assert_eq!(store.inbox_unread(tenant, "user0").await.unwrap(), 10);
    let list = store.inbox_list(tenant, "user0", None, 4).await.unwrap();
    assert_eq!(list.len(), 4);
    let next = store.inbox_list(tenant, "user0", Some(list[3].id), 100).await.unwrap();
    assert_eq!(next.len(), 6);
    assert!(next[0].id < list[3].id);
    assert_eq!(store.inbox_mark_read(tenant, "user1", vec![list[0].id]).await.unwrap(), 0);
    assert_eq!(store.inbox_mark_read(tenant, "user0", vec![list[0].id]).await.unwrap(), 1);
    assert_eq!(store.inbox_mark_read(TenantId(99), "user0", vec![list[1].id]).await.unwrap(), 0);
    assert_eq!(store.inbox_unread(tenant, "user0").await.unwrap(), 9);
    assert_eq!(store.inbox_delete(tenant, "user1", vec![list[1].id]).await.unwrap(), 0);
    assert_eq!(store.inbox_delete(tenant, "user0", vec![list[1].id]).await.unwrap(), 1);
    assert_eq!(store.inbox_mark_all_read(tenant, "user0").await.unwrap(), 8);
    {
        let seen = log.seen.lock().unwrap();
        eprintln!("2: sms {:?}\n   push {:?}", seen[&sms[0]], seen[&push[0]]);
    }
    let mut dlq = Consumer::open(&broker, DLQ, 10, &lstop);
    let letter = dlq.next_batch(1, Duration::ZERO).await.unwrap();
    eprintln!("2: dlq {:?} {:?}", letter[0].properties.header(REASON), letter[0].properties.header(DETAIL));
    dlq.acker().done(letter[0].tag);
    dlq.acker().flush().await;

    // 3: stop in the middle, start again, nothing lost, nothing repeated
    http.clear();
    http.reply_by_default(Reply::ok().after(Duration::from_millis(20)));
    let before = log.count.load(Ordering::Relaxed);
    let ids = accept(&store, &dispatcher, tenant, n, Channel::Webhook, &|_| url.clone(), r#"{"data":{"a":1}}"#).await;
    wait(before + 200).await;
    let t = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    let took = t.elapsed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (done, called) = (log.count.load(Ordering::Relaxed) - before, http.requests().len());
    eprintln!("3: drained in {took:?}: {done} events, {called} calls");
    assert_eq!(done, called);
    for round in 0..3 {
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker::run(config.clone(), shared::probe::Parts::new(), stop.clone()));
        let target = if round < 2 { (log.count.load(Ordering::Relaxed) + 300).min(before + n) } else { before + n };
        wait(target).await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    eprintln!(
        "3: after restarts {} events, {} calls of {n}",
        log.count.load(Ordering::Relaxed) - before,
        http.requests().len()
    );
    let mut per: HashMap<String, usize> = HashMap::new();
    for r in http.requests() {
        *per.entry(r.header("webhook-id").unwrap().to_owned()).or_default() += 1;
    }
    assert!(ids.iter().all(|id| per.get(&id.to_string()) == Some(&1)));
    for line in metrics.render().lines().filter(|l| {
        !l.starts_with('#')
            && !l.contains("bucket")
            && (l.contains("claims")
                || l.contains("attempts")
                || l.contains("in_flight")
                || l.contains("end_to_end")
                || l.contains("stale"))
    }) {
        eprintln!("   {line}");
    }
    let t = Instant::now();
    lstop.cancel();
    reading.await.unwrap();
    eprintln!("read {:?}", t.elapsed());
    stop_all.cancel();
    broker.closed().await;
    eprintln!("closed {:?}", t.elapsed());
    tokio::task::spawn_blocking(move || servers.stop().unwrap()).await.unwrap();
    eprintln!("stopped {:?}", t.elapsed());
}

fn nix_stop(pid: u32, sig: &str) {
    std::process::Command::new("kill").arg(format!("-{sig}")).arg(pid.to_string()).status().unwrap();
}
