//! scratch
#![allow(clippy::all, clippy::unwrap_used, clippy::indexing_slicing, clippy::as_conversions, clippy::expect_used, missing_docs, clippy::allow_attributes)]
use std::time::{Duration, Instant};
use shared::{amqp::*, config::Config, contract::*, db::{Store, letters::*, accept::*}, domain::*, dispatch::Dispatcher};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn ev(d: Uuid, run: i32, kind: EventKind, state: State) -> Event {
    Event { tenant: TenantId(1), delivery: DeliveryId(d), run, channel: Channel::Webhook, kind, at: shared::clock::now(),
        attempt: Some(AttemptRecord { provider: ProviderName::Http, outcome: OutcomeClass::Sent, code: Some("200".into()), detail: None, duration_ms: 5, provider_ref: None }),
        state, delay_ms: None, dead: None, spent: true, crash: false }
}
fn new(n: usize) -> Vec<Acceptance> {
    (0..n).map(|_| Acceptance { tenant: TenantId(1), source: "http", request_id: None, traceparent: None, key: None, bulk: None,
        messages: vec![NewMessage { id: MessageId::generate(), user_id: None, category: None, priority: "normal", content: Some(b"{}".to_vec()), scheduled_at: None, expires_at: None,
            deliveries: vec![NewDelivery { id: DeliveryId::generate(), route: Route { channel: Channel::Webhook, lane: Lane::Normal }, recipient: Address::new("http://x") }] }] }).collect()
}

#[tokio::main]
async fn main() {
    let config = Config::from_env().unwrap();
    shared::telemetry::init("scratch", "warn");
    let store = Store::open(&config.database.url, 8).unwrap();
    let args: Vec<String> = std::env::args().collect();
    let n: usize = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(1000);
    let stop = CancellationToken::new();
    match args[1].as_str() {
        "migrate" => { println!("{:?}", shared::db::migrate::migrate(&config.database.url).await); }
        "accept" => { // n deliveries, prints dispatch ids
            for _ in 0..n.div_ceil(256) { let (_, d) = store.accept(&new(256), 3_600_000).await.unwrap(); drop(d); }
        }
        "record" => { // deliveries are in state sending run 1 (set by psql), ids from stdin
            let ids: Vec<Uuid> = std::io::stdin().lines().map(|l| l.unwrap().trim().parse().unwrap()).collect();
            for kind in ["first", "again"] {
                let mut times = vec![];
                for part in ids.chunks(1000) {
                    let evs: Vec<_> = part.iter().map(|d| ev(*d, 1, EventKind::Delivered, State::Delivered)).collect();
                    let t = Instant::now(); let r = store.record(evs).await.unwrap(); times.push(t.elapsed().as_millis());
                    if times.len() == 1 { println!("{r:?}"); }
                }
                println!("{kind}: {times:?}");
            }
        }
        "events" => { // publish delivered events of ids on stdin in batches of 64
            let broker = Broker::start(&config.broker.url, "scratch", stop.clone());
            let publisher = Publisher::start(&broker);
            broker.usable().await.unwrap();
            let ids: Vec<Uuid> = std::io::stdin().lines().map(|l| l.unwrap().trim().parse().unwrap()).collect();
            let size: usize = args.get(3).and_then(|n| n.parse().ok()).unwrap_or(64);
            let out: Vec<_> = ids.chunks(size).map(|p| Outgoing::json(topology::EVENTS, "events.x", Uuid::now_v7().to_string(),
                &EventBatch::new(p.iter().map(|d| ev(*d, 1, EventKind::Delivered, State::Delivered)).collect())).unwrap()).collect();
            let t = Instant::now(); let bad = publisher.publish_all(out).await.into_iter().filter(|r| r.is_err()).count();
            println!("published {} events in {:?}, bad {bad}", ids.len(), t.elapsed());
        }
        "poison" => { // one good id from stdin (sending, run 1), a bad one, garbage
            let broker = Broker::start(&config.broker.url, "scratch", stop.clone());
            let publisher = Publisher::start(&broker);
            broker.usable().await.unwrap();
            let ids: Vec<Uuid> = std::io::stdin().lines().map(|l| l.unwrap().trim().parse().unwrap()).collect();
            let mut evs: Vec<_> = ids.iter().map(|d| { let mut e = ev(*d, 1, EventKind::Delivered, State::Delivered); e.attempt.as_mut().unwrap().detail = Some("nul\0nul".into()); e }).collect();
            evs.insert(evs.len() / 2, ev(Uuid::from_u128(1), 1, EventKind::Delivered, State::Delivered));
            publisher.publish(topology::EVENTS, "events.x", "bad", Headers::new(), &EventBatch::new(evs)).await.unwrap();
            let mut raw = Outgoing::json(topology::EVENTS, "events.x", "raw", &EventBatch::new(vec![])).unwrap(); raw.body = b"{garbage".to_vec();
            publisher.publish_one(raw.clone()).await.unwrap();
            raw.exchange = topology::INGRESS; raw.routing_key = "acme.sms.soon".into(); raw.message_id = "unrouted".into();
            println!("{:?}", publisher.publish_one(raw.clone()).await);
            raw.exchange = ""; raw.routing_key = DLQ.into(); raw.message_id = "stray".into();
            println!("{:?}", publisher.publish_one(raw).await);
        }
        "spin" => { // queued delivery ids on stdin at run 0: publish work items and requeue until given up
            let broker = Broker::start(&config.broker.url, "scratch", stop.clone());
            let publisher = Publisher::start(&broker);
            broker.usable().await.unwrap();
            for id in std::io::stdin().lines().map(|l| l.unwrap().trim().parse::<Uuid>().unwrap()) {
                publisher.publish(topology::WORK, "webhook.high", id.to_string(), Headers::new(), &WorkItem::new(DeliveryId(id), 0)).await.unwrap();
            }
            let mut sub = Outgoing::json(topology::INGRESS, "acme.sms.high", "order-9", &WorkItem::new(DeliveryId::generate(), 0)).unwrap(); sub.body = b"{\"channel\":\"sms\"}".to_vec();
            publisher.publish_one(sub).await.unwrap();
            let mut a = Consumer::open(&broker, "posthaste.work.webhook.high", 10, &stop);
            let mut b = Consumer::open(&broker, INTAKE_HIGH, 10, &stop);
            let end = tokio::time::sleep(Duration::from_secs(4)); tokio::pin!(end);
            let (aa, ba) = (a.acker(), b.acker()); let mut count = 0;
            loop { tokio::select! { _ = &mut end => break,
                Some(x) = a.next_batch(10, Duration::ZERO) => for d in x { count += 1; aa.requeue(d.tag) },
                Some(x) = b.next_batch(10, Duration::ZERO) => for d in x { count += 1; ba.requeue(d.tag) } } }
            println!("requeued {count}");
        }
        "cancel" => { // one message is in intake.high: drop next_batch every few ms until it comes
            let broker = Broker::start(&config.broker.url, "scratch", stop.clone());
            broker.usable().await.unwrap();
            let mut b = Consumer::open(&broker, INTAKE_HIGH, 10, &stop);
            let t = Instant::now();
            let mut got = None;
            for _ in 0..n { if let Ok(Some(x)) = tokio::time::timeout(Duration::from_micros(700), b.next_batch(10, Duration::ZERO)).await { got = Some(x.len()); break } }
            println!("dropping: {got:?} after {:?}", t.elapsed());
            if got.is_none() { println!("then waiting: {:?} after {:?}", tokio::time::timeout(Duration::from_secs(5), b.next_batch(10, Duration::ZERO)).await.map(|x| x.map(|x| x.len())), t.elapsed()); }
        }
        "replay" => { // action filter rate
            let action = if args[2] == "drop" { LetterAction::Drop } else { LetterAction::Replay };
            let filter: LetterFilter = serde_json::from_str(&args[3]).unwrap();
            let rate = args.get(4).and_then(|r| r.parse().ok());
            println!("match {}", store.letters_match(None, &filter).await.unwrap());
            let t = Instant::now();
            let (id, matched) = store.start_replay(None, action, &filter, rate, "note", "me").await.unwrap();
            println!("{id} {matched} started in {:?}", t.elapsed());
            loop { let r = store.replay(None, id).await.unwrap().unwrap(); 
                if r.status != "running" { println!("{} {} matched {} replayed {} skipped {} in {:?}", r.status, r.action, r.matched, r.replayed, r.skipped, t.elapsed()); break }
                tokio::time::sleep(Duration::from_millis(50)).await; }
        }
        "list" => { let filter: LetterFilter = serde_json::from_str(&args[2]).unwrap();
            let t = Instant::now(); let l = store.letters_list(None, &filter, None, 3).await.unwrap(); println!("{:?} {}", t.elapsed(), serde_json::to_string_pretty(&l).unwrap());
            if let Some(last) = l.last() { let t = Instant::now(); let l2 = store.letters_list(Some(TenantId(1)), &filter, Some(last.id), 3).await.unwrap(); println!("page 2 {:?} {:?}", t.elapsed(), l2.iter().map(|x| x.id).collect::<Vec<_>>());
              println!("{:?}", store.letter(Some(TenantId(999)), last.id).await.unwrap().is_none()); } }
        "release" => { for limit in [500, 1000, 5000, 5000, 5000, 5000] { let t = Instant::now(); let d = store.release_due(limit, 15000).await.unwrap(); println!("{limit}: {:?} {}", t.elapsed(), d.map_or(0, |d| d.items.len())); }
            let t = Instant::now(); for _ in 0..100 { store.due_in_seconds().await.unwrap(); } println!("due_in {:?}", t.elapsed() / 100); }
        "publish" => { let broker = Broker::start(&config.broker.url, "scratch", stop.clone()); let publisher = Publisher::start(&broker); broker.usable().await.unwrap();
            let dispatcher = Dispatcher::start(publisher, store.clone(), 60000);
            let rows = store.take_unpublished(n as i64, 30000).await.unwrap(); let items: usize = rows.iter().map(|r| r.items.len()).sum();
            let t = Instant::now(); let done = futures_util::future::join_all(rows.into_iter().map(|r| dispatcher.publish(r))).await; println!("{items} in {:?} ok {}", t.elapsed(), done.iter().filter(|d| **d).count()); }
        other => panic!("{other}"),
    }
}
