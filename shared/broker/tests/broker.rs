//! The broker layer against a real RabbitMQ. Every test works in a virtual host of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::Engine;
use broker::{
    self, Acker, Broker, BrokerState, Consumer, DLQ, Delivery, EVENTS_LOG, INTAKE_HIGH, INTAKE_STD, Outgoing,
    PublishError, Publisher, Topology, TopologyError,
    declare::{Fault, check, declare, depths},
    topology::{DLX, EVENTS, INGRESS, WORK, topology},
    work_key, work_queue,
};
use domain::{Channel, DeadReason, DeliveryId, Lane, Route, contract::wire::WorkItem};
use futures_util::future::join_all;
use lapin::{
    BasicProperties, Connection,
    options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NO_LINGER: Duration = Duration::ZERO;

#[expect(clippy::disallowed_methods, reason = "the test runner says where its broker is")]
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask test`, which starts a RabbitMQ"))
}

/// A virtual host that goes away with the test.
struct Vhost {
    name: String,
    management: url::Url,
    stop: CancellationToken,
}

impl Vhost {
    fn new() -> Self {
        let management = setting("POSTHASTE_TEST_MANAGEMENT_URL").parse().unwrap();
        let vhost = Self { name: format!("test-{}", uuid::Uuid::now_v7()), management, stop: CancellationToken::new() };
        vhost.request("PUT", &format!("/api/vhosts/{}", vhost.name), &json!({}));
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.request("PUT", &format!("/api/permissions/{}/{}", vhost.name, vhost.amqp().username()), &all);
        vhost
    }

    fn amqp(&self) -> url::Url {
        let mut url: url::Url = setting("POSTHASTE_TEST_AMQP_URL").parse().unwrap();
        url.set_path(&self.name);
        url
    }

    fn url(&self) -> SecretString {
        String::from(self.amqp()).into()
    }

    async fn connect(&self) -> Connection {
        broker::connect(&self.url(), "test").await.unwrap()
    }

    fn broker(&self, name: &str) -> Broker {
        Broker::start(&self.url(), name, self.stop.clone())
    }

    async fn ready_broker(&self, name: &str) -> Broker {
        let broker = self.broker(name);
        tokio::time::timeout(PATIENCE, broker.usable()).await.unwrap().unwrap();
        broker
    }

    fn consumer(&self, broker: &Broker, queue: &str, prefetch: u16) -> Consumer {
        Consumer::open(broker, queue, prefetch, &self.stop)
    }

    fn try_request(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (host, port) = (self.management.host_str().unwrap(), self.management.port().unwrap());
        let user = format!("{}:{}", self.management.username(), self.management.password().unwrap());
        let user = base64::engine::general_purpose::STANDARD.encode(user);
        let body = body.to_string();
        let mut stream = TcpStream::connect((host, port)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Basic {user}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_request(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Lets the broker close every connection of this virtual host that it lists.
    fn close_connections(&self) {
        let listed = self.request("GET", &format!("/api/vhosts/{}/connections", self.name), &json!({}));
        let names: Vec<_> = listed.as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
        for name in names {
            let name: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            self.try_request("DELETE", &format!("/api/connections/{name}"), &json!({}));
        }
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        self.stop.cancel();
        self.try_request("DELETE", &format!("/api/vhosts/{}", self.name), &json!({}));
    }
}

/// Asks again and again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn next(consumer: &mut Consumer, max: usize) -> Vec<Delivery> {
    tokio::time::timeout(PATIENCE, consumer.next_batch(max, NO_LINGER)).await.expect("a batch in time").unwrap()
}

async fn exactly(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(next(consumer, count - all.len()).await);
    }
    all
}

/// Waits until that many messages are in the queue. A busy broker says 0 for a moment where it should have counted.
async fn until_depth(connection: &Connection, queue: &str, wanted: usize) {
    let is_so = async || usize::try_from(depth(connection, queue).await).unwrap() == wanted;
    until(&format!("{wanted} messages are in {queue}"), is_so).await;
}

async fn depth(connection: &Connection, queue: &str) -> u32 {
    depths(connection).await.unwrap().into_iter().find(|it| it.name == queue).unwrap().messages_ready
}

fn route() -> Route {
    Route { channel: Channel::Email, lane: Lane::Normal }
}

fn work(id: impl Into<String>) -> Outgoing {
    Outgoing::json(WORK, work_key(route()), id, &WorkItem::new(DeliveryId::generate(), 1)).unwrap()
}

fn many(count: usize) -> Vec<Outgoing> {
    (0..count).map(|index| work(index.to_string())).collect()
}

async fn publish(publisher: &Publisher, messages: Vec<Outgoing>) {
    for result in publisher.publish_all(messages).await {
        result.unwrap();
    }
}

fn ids(batch: &[Delivery]) -> Vec<&str> {
    batch.iter().map(|delivery| delivery.properties.message_id().unwrap()).collect()
}

fn finish(acker: &Acker, batch: &[Delivery]) {
    acker.done_all(batch.iter().map(|delivery| delivery.tag));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_can_be_declared_any_number_of_times() {
    let vhost = Vhost::new();
    let connection = vhost.connect().await;
    declare(&connection).await.unwrap();
    declare(&connection).await.unwrap();
    check(&connection).await.unwrap();
    let names: BTreeSet<_> = depths(&connection).await.unwrap().into_iter().map(|depth| depth.name).collect();
    let Topology { queues, .. } = topology();
    assert_eq!(names, queues.into_iter().map(|queue| queue.name).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_all_that_is_missing_or_different_and_creates_nothing() {
    let vhost = Vhost::new();
    let connection = vhost.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.queue_declare(DLQ.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    for _ in 0..2 {
        let Err(TopologyError::Problems(problems)) = check(&connection).await else { panic!("no problem found") };
        let Topology { exchanges, queues, .. } = topology();
        assert_eq!(problems.len(), exchanges.len() + queues.len(), "{problems:?}");
        let (different, missing): (Vec<_>, Vec<_>) =
            problems.into_iter().partition(|problem| problem.fault == Fault::Inequivalent);
        assert_eq!(different.len(), 1);
        assert!(different[0].to_string().contains("queue `posthaste.dlq`"), "{}", different[0]);
        assert!(missing.iter().all(|problem| problem.fault == Fault::Missing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_arrives_as_it_was_sent() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    let item = WorkItem::new(DeliveryId::generate(), 7);
    let headers = vec![("traceparent".into(), "00-1".to_owned()), ("x-death".into(), "no".to_owned())];
    publisher.publish(WORK, work_key(route()), "the id", headers, &item).await.unwrap();

    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 10);
    let delivery = next(&mut consumer, 10).await.pop().unwrap();
    assert_eq!(serde_json::from_slice::<WorkItem>(&delivery.body).unwrap(), item);
    assert_eq!((delivery.exchange.as_str(), delivery.routing_key.as_str()), (WORK, "email.normal"));
    let properties = &delivery.properties;
    assert_eq!(properties.message_id(), Some("the id"));
    assert_eq!(properties.kind(), Some("work.v1"));
    assert_eq!(properties.content_type(), Some("application/json"));
    assert_eq!(properties.header("traceparent"), Some("00-1"));
    assert!(!properties.headers().contains_key("x-death"));
    assert!(!delivery.redelivered);
    assert_eq!(properties.delivery_count(), 0);
    assert!(consumer.health().is_consuming() && consumer.health().last_delivery().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_unroutable_messages_among_many_are_reported_as_such() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    let lost = [0, 137, 138, 500, 999];
    let batches = (0..4).map(|_| {
        let mut messages = many(1000);
        for index in lost {
            messages[index].routing_key = "nobody.home".into();
        }
        publisher.publish_all(messages)
    });
    for results in join_all(batches).await {
        for (index, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => assert!(!lost.contains(&index), "{index} was lost in silence"),
                Err(error) => {
                    assert!(lost.contains(&index), "{index}: {error}");
                    assert!(matches!(error, PublishError::Unroutable { exchange: WORK, .. }), "{error}");
                }
            }
        }
    }
    let connection = broker.connection().unwrap();
    until_depth(&connection, &work_queue(route()), 4 * 995).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_what_it_confirmed_is_in_it() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    let policy = json!({"pattern": ".*email.*", "definition": {"max-length": 10}, "apply-to": "queues"});
    vhost.request("PUT", &format!("/api/policies/{}/short", vhost.name), &policy);
    let mut confirmed = 0;
    until("the queue refuses", async || {
        let results = publisher.publish_all(many(20)).await;
        confirmed += results.iter().filter(|result| result.is_ok()).count();
        results.contains(&Err(PublishError::Refused))
    })
    .await;
    let connection = broker.connection().unwrap();
    until_depth(&connection, &work_queue(route()), confirmed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_amqp_cannot_carry_is_refused_alone() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    let mut messages = many(3);
    messages[1].message_id = "x".repeat(300);
    let results = publisher.publish_all(messages).await;
    assert!(matches!(results[..], [Ok(()), Err(PublishError::Invalid(_)), Ok(())]), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_a_publish_fails_at_once() {
    let nowhere = SecretString::from("amqp://guest:guest@127.0.0.1:1/%2f");
    let stop = CancellationToken::new();
    let broker = Broker::start(&nowhere, "publish", stop.clone());
    let publisher = Publisher::start(&broker);
    // The machine may stand still in one of them, but not in each.
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(publisher.publish_one(work("1")).await, Err(PublishError::Disconnected));
        quickest = quickest.min(started.elapsed());
    }
    assert!(quickest < Duration::from_secs(2), "{quickest:?}");
    assert!(!broker.is_connected());
    stop.cancel();
    broker.closed().await;
    assert_eq!(broker.state(), BrokerState::Stopped);
    assert_eq!(publisher.publish_one(work("1")).await, Err(PublishError::Disconnected));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_key_of_another_shape_or_lane_ends_in_the_dead_letter_queue() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    let keys = BTreeMap::from([
        ("acme.email.high", INTAKE_HIGH),
        ("acme.email.normal", INTAKE_STD),
        ("acme.fax.bulk", INTAKE_STD),
        ("acme.email.urgent", DLQ),
        ("acme.email", DLQ),
        ("acme.a.email.high", DLQ),
        ("", DLQ),
    ]);
    for (&key, &queue) in &keys {
        publisher.publish_one(Outgoing { exchange: INGRESS, routing_key: key.into(), ..work(queue) }).await.unwrap();
    }
    for queue in [INTAKE_HIGH, INTAKE_STD, DLQ] {
        let expected: BTreeSet<&str> = keys.iter().filter(|(_, to)| **to == queue).map(|(key, _)| *key).collect();
        let mut consumer = vhost.consumer(&broker, queue, 10);
        let found = exactly(&mut consumer, expected.len()).await;
        assert_eq!(found.iter().map(|delivery| delivery.routing_key.as_str()).collect::<BTreeSet<_>>(), expected);
        assert!(found.iter().all(|delivery| delivery.exchange == INGRESS));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_finished_in_any_order_is_gone_and_the_rest_comes_back() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(200)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 200);
    let acker = consumer.acker();
    let batch = exactly(&mut consumer, 200).await;
    assert_eq!(ids(&batch), (0..200).map(|index| index.to_string()).collect::<Vec<_>>());
    let kept = [0, 77, 199];
    for index in (0..200).rev().filter(|index| !kept.contains(index)) {
        acker.done(batch[index].tag);
    }
    assert_eq!(acker.in_hand(), 3);
    consumer.cancel().await;
    acker.flush().await;
    assert_eq!(consumer.next_batch(1, NO_LINGER).await.map(|batch| batch.len()), None);
    drop((consumer, acker));

    let mut again = vhost.consumer(&broker, &work_queue(route()), 10);
    let rest = exactly(&mut again, 3).await;
    assert_eq!(ids(&rest).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["0", "77", "199"]));
    assert!(rest.iter().all(|delivery| delivery.redelivered && delivery.properties.delivery_count() == 1));
    finish(&again.acker(), &rest);
    again.acker().flush().await;
    drop(again);
    let connection = broker.connection().unwrap();
    until("the queue is empty", async || depth(&connection, &work_queue(route())).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_are_written_without_being_asked_for() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(100)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 10);
    let acker = consumer.acker();
    let mut seen = 0;
    while seen < 100 {
        let batch = next(&mut consumer, 3).await;
        seen += batch.len();
        finish(&acker, &batch);
    }
    let unacked = format!("/api/queues/{}/{}", vhost.name, work_queue(route()));
    until("nothing is unacknowledged", async || vhost.request("GET", &unacked, &json!({}))["messages"] == json!(0))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stuck_delivery_does_not_starve_the_others() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(400)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 8);
    let acker = consumer.acker();
    let stuck = exactly(&mut consumer, 1).await.pop().unwrap();
    let mut seen = 1;
    while seen < 400 {
        let batch = next(&mut consumer, 8).await;
        seen += batch.len();
        finish(&acker, &batch);
    }
    assert_eq!(acker.in_hand(), 1);
    acker.done(stuck.tag);
    consumer.cancel().await;
    acker.flush().await;
    assert_eq!(depth(&broker.connection().unwrap(), &work_queue(route())).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_handed_out_is_given_back_on_cancel() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(50)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 50);
    let acker = consumer.acker();
    let batch = exactly(&mut consumer, 5).await;
    consumer.cancel().await;
    assert!(!consumer.health().is_consuming());
    let connection = broker.connection().unwrap();
    until("45 are back", async || depth(&connection, &work_queue(route())).await == 45).await;
    finish(&acker, &batch);
    acker.flush().await;
    drop((consumer, acker));
    until("the five are gone", async || depth(&connection, &work_queue(route())).await == 45).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_half_filled_batch_loses_nothing() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(3)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 10);
    let long = Duration::from_secs(3600);
    let mut moment = Duration::from_millis(500);
    until("all three were taken", async || {
        // In the end long enough for a registration: one that is dropped half-way begins again.
        let _ = tokio::time::timeout(moment, consumer.next_batch(10, long)).await;
        moment = (2 * moment).min(PATIENCE / 8);
        consumer.acker().in_hand() == 3
    })
    .await;
    assert_eq!(ids(&next(&mut consumer, 10).await), ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lingering_batch_gathers_what_comes_meanwhile() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    let publisher = Publisher::start(&broker);
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 10);
    publish(&publisher, many(1)).await;
    let (batch, ()) = tokio::join!(consumer.next_batch(3, PATIENCE), async {
        publish(&publisher, many(1)).await;
        publish(&publisher, many(1)).await;
    });
    assert_eq!(batch.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_broker_closes_every_connection_under_load() {
    const MESSAGES: usize = 3000;
    let vhost = Vhost::new();
    let publishing = vhost.ready_broker("publish").await;
    let consuming = vhost.ready_broker("consume").await;
    let publisher = Publisher::start(&publishing);
    let received = Arc::new(Mutex::new(BTreeSet::new()));

    let mut consumer = vhost.consumer(&consuming, &work_queue(route()), 64);
    let seen = Arc::clone(&received);
    let taking = tokio::spawn(async move {
        let acker = consumer.acker();
        while let Some(batch) = consumer.next_batch(32, NO_LINGER).await {
            seen.lock().unwrap().extend(ids(&batch).into_iter().map(str::to_owned));
            finish(&acker, &batch);
        }
        consumer.cancel().await;
        acker.flush().await;
    });
    let sending = tokio::spawn(async move {
        let mut waiting = many(MESSAGES);
        let mut failures = 0;
        while !waiting.is_empty() {
            let batch: Vec<_> = waiting.drain(..waiting.len().min(10)).collect();
            let results = publisher.publish_all(batch.clone()).await;
            let failed = batch.into_iter().zip(results).filter(|(_, result)| result.is_err());
            let before = waiting.len();
            waiting.extend(failed.map(|(message, _)| message));
            failures += waiting.len() - before;
            tokio::time::sleep(Duration::from_millis(if waiting.len() > before { 20 } else { 2 })).await;
        }
        failures
    });

    for _ in 0..2 {
        let generations = [publishing.generation(), consuming.generation()];
        let are_new = || publishing.generation() > generations[0] && consuming.generation() > generations[1];
        // The broker's list is a moment old: what is not in it yet is closed the next time.
        until("both connections were closed and are new", async || {
            if !are_new() {
                vhost.close_connections();
            }
            are_new()
        })
        .await;
        until("both are back", async || publishing.is_usable() && consuming.is_usable()).await;
    }
    println!("{} publishes failed and were repeated", sending.await.unwrap());
    until("everything arrived", async || received.lock().unwrap().len() == MESSAGES).await;
    assert!(publishing.generation() >= 3 && consuming.generation() >= 3);
    let connection = vhost.connect().await;
    vhost.stop.cancel();
    taking.await.unwrap();
    until("every ack was taken", async || depth(&connection, &work_queue(route())).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_under_its_consumer_is_restored_and_consumed_again() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    let publisher = Publisher::start(&broker);
    publish(&publisher, many(2)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 10);
    let acker = consumer.acker();
    let old = exactly(&mut consumer, 2).await;

    let other = vhost.connect().await;
    let channel = other.create_channel().await.unwrap();
    channel.queue_delete(work_queue(route()).as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    assert!(matches!(publisher.publish_one(work("lost")).await, Err(PublishError::Unroutable { .. })));
    let health = consumer.health();
    let taking = tokio::spawn(async move { (next(&mut consumer, 10).await, consumer) });
    until("a message can be published again", async || publisher.publish_one(work("new")).await.is_ok()).await;
    let (batch, consumer) = taking.await.unwrap();
    assert_eq!(ids(&batch), ["new"]);
    assert!(health.is_consuming());

    // The numbers of the old channel mean other messages on the new one.
    finish(&acker, &old);
    assert_eq!(acker.in_hand(), 1);
    finish(&acker, &batch);
    acker.flush().await;
    drop((consumer, acker));
    until("the queue is empty", async || depth(&other, &work_queue(route())).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_deleted_under_the_publisher_is_restored() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("publish").await;
    let publisher = Publisher::start(&broker);
    publish(&publisher, many(1)).await;
    let channel = vhost.connect().await.create_channel().await.unwrap();
    channel.exchange_delete(WORK.into(), Default::default()).await.unwrap();
    until("publishing works again", async || publisher.publish_one(work("1")).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_carries_its_reason_and_origin_but_no_death_header() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    let publisher = Publisher::start(&broker);

    // As another backend might publish it: with a death of its own, extra recipients and an id of the greatest length.
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::default()));
    headers.insert("x-first-death-queue".into(), AMQPValue::LongString("posthaste.dlq".into()));
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("acme.email.none".into())].into()));
    headers.insert("x-posthaste-reason".into(), AMQPValue::LongString("forged".into()));
    headers.insert("app".into(), AMQPValue::LongInt(3));
    let id = "i".repeat(255);
    let user = vhost.amqp().username().to_owned();
    let properties = BasicProperties::default()
        .with_message_id(id.as_str().into())
        .with_user_id(user.as_str().into())
        .with_type("notify.v1".into())
        .with_headers(headers);
    let foreign = vhost.connect().await;
    let channel = foreign.create_channel().await.unwrap();
    let (key, options) = ("acme.email.high", BasicPublishOptions::default());
    #[expect(clippy::disallowed_methods, reason = "plays a foreign publisher, which does not have ours")]
    channel.basic_publish(INGRESS.into(), key.into(), options, b"no json", properties).await.unwrap();

    let mut intake = vhost.consumer(&broker, INTAKE_HIGH, 1);
    let delivery = exactly(&mut intake, 1).await.pop().unwrap();
    assert_eq!(delivery.properties.user_id(), Some(user.as_str()));
    let detail = "ñ".repeat(2000);
    broker::dead_letter(&publisher, INTAKE_HIGH, &delivery, DeadReason::Schema, &detail).await.unwrap();
    intake.acker().done(delivery.tag);

    let mut dlq = vhost.consumer(&broker, DLQ, 10);
    let letters = exactly(&mut dlq, 1).await;
    let letter = letters.iter().find(|letter| letter.exchange == DLX).unwrap();
    assert_eq!(letter.body, b"no json");
    assert_eq!(letter.properties.message_id(), Some(id.as_str()));
    assert_eq!(letter.properties.kind(), Some("notify.v1"));
    let mut headers = letter.properties.headers();
    assert_eq!(headers.remove(broker::DETAIL), Some(json!("ñ".repeat(1024))));
    let expected = json!({
        broker::REASON: "schema", broker::QUEUE: INTAKE_HIGH, broker::EXCHANGE: INGRESS, broker::ROUTING_KEY: key,
        broker::USER_ID: user, "app": "3",
    });
    assert_eq!(json!(headers), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_returned_too_often_is_dead_lettered_by_the_broker() {
    let vhost = Vhost::new();
    let broker = vhost.ready_broker("consume").await;
    publish(&Publisher::start(&broker), many(1)).await;
    let mut consumer = vhost.consumer(&broker, &work_queue(route()), 1);
    let mut dlq = vhost.consumer(&broker, DLQ, 1);
    let returning = async {
        while let Some(batch) = consumer.next_batch(1, NO_LINGER).await {
            consumer.acker().requeue(batch[0].tag);
        }
    };
    let dead = tokio::select! {
        dead = exactly(&mut dlq, 1) => dead,
        () = returning => panic!("stopped"),
    };
    assert_eq!(dead[0].properties.header("x-first-death-reason"), Some("delivery_limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_printed() {
    const MESSAGES: usize = 20_000;
    let vhost = Vhost::new();
    let publishing = vhost.ready_broker("publish").await;
    let consuming = vhost.ready_broker("consume").await;
    let publisher = Publisher::start(&publishing);
    let rate = |count: usize, since: Instant| f64::from(u32::try_from(count).unwrap()) / since.elapsed().as_secs_f64();

    publish(&publisher, many(1000)).await;
    let messages = many(MESSAGES);
    let started = Instant::now();
    publish(&publisher, messages).await;
    println!("one call for {MESSAGES} messages: {:.0} published and confirmed per second", rate(MESSAGES, started));

    let started = Instant::now();
    join_all((0..64).map(|_| async {
        for message in many(50) {
            publisher.publish_one(message).await.unwrap();
        }
    }))
    .await;
    println!("64 callers with one message each: {:.0} per second", rate(64 * 50, started));

    let started = Instant::now();
    for message in many(200) {
        publisher.publish_one(message).await.unwrap();
    }
    println!("one caller with one message at a time: {:?} each", started.elapsed() / 200);

    let total = 1000 + MESSAGES + 64 * 50 + 200;
    let mut consumer = vhost.consumer(&consuming, &work_queue(route()), 512);
    let acker = consumer.acker();
    let started = Instant::now();
    let (mut seen, mut batches) = (0, 0);
    while seen < total {
        let batch = next(&mut consumer, 64).await;
        (seen, batches) = (seen + batch.len(), batches + 1);
        finish(&acker, &batch);
    }
    acker.flush().await;
    println!("consumed and acked: {:.0} per second in {batches} batches", rate(total, started));

    let mut events = vhost.consumer(&consuming, EVENTS_LOG, 64);
    let started = Instant::now();
    let batch =
        (0..200).map(|index| Outgoing { exchange: EVENTS, body: vec![b' '; 20_000], ..work(index.to_string()) });
    publish(&publisher, batch.collect()).await;
    println!("bodies of 20 kB: {:.0} per second", rate(200, started));
    exactly(&mut events, 64).await;
}
