//! The inbox, listed and live: what comes into it is shown on open sockets, each item once and in one order, whatever fails.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use lapin::{
    options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{Api, Live, Opening, Role, Stack, TestServers, amqp::Backend, api::SOON, eventually, live::Followed};
use tokio_tungstenite::tungstenite::Message;

/// The fields of an item, in lists and on sockets.
const FIELDS: [&str; 11] =
    ["action_url", "category", "created_at", "data", "id", "message", "metadata", "read", "read_at", "title", "type"];
/// How long what needs a while may take on a machine that is slow.
const LATER: Duration = Duration::from_secs(180);
/// A moment in which something would have come if it came at all.
const MOMENT: Duration = Duration::from_millis(300);

fn token(stack: &Stack, tenant: &str, user: &str, ttl: &str) -> Result<String> {
    let token = stack.cli(&["token", "--tenant", tenant, "--sub", user, "--role", "user", "--ttl", ttl])?;
    Ok(token.trim().to_owned())
}

fn note(user: &str, title: &str) -> Value {
    json!({"channel": "in_app", "recipient": user, "title": title, "message": "m", "type": "task", "category": "work",
        "data": {"n": 1}, "metadata": {"k": "v"}, "actionUrl": "/tasks/1"})
}

/// Every id of an inbox, newest first, page by page.
async fn listed(api: &Api, query: &str) -> Result<Vec<String>> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/notifications?limit=7&cursor={cursor}{query}")).await?.ok()?;
        let items = page["notifications"].as_array().context("a list")?;
        ids.extend(items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return Ok(ids),
        }
    }
}

/// Sends `count` notifications to a person, many at once, and waits until all stand in the inbox.
async fn flood(stack: &Stack, user: &str, count: usize) -> Result<()> {
    let bodies: Vec<Value> = (0..count).map(|n| note(user, &format!("{n}"))).collect();
    for part in bodies.chunks(50) {
        let api = stack.producer();
        try_join_all(part.iter().map(|body| api.send(body))).await?;
    }
    Ok(())
}

async fn standing(stack: &Stack, user: &str, count: usize) -> Result<()> {
    let query = format!("SELECT count(*) FROM inbox WHERE user_id = '{user}'");
    let all = i64::try_from(count)?;
    eventually("all stand in the inbox", LATER, || async { (stack.count(&query).await.ok()? >= all).then_some(()) })
        .await
}

async fn metric(stack: &Stack, line: &str) -> Result<f64> {
    let text = reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("all")?)).await?.text().await?;
    let found = text.lines().find_map(|have| have.strip_prefix(line)).unwrap_or("0");
    Ok(found.trim().parse()?)
}

#[tokio::test]
async fn a_toast_arrives_in_the_printed_form_and_only_at_who_may_see_it() -> Result<()> {
    let stack = Stack::start_with(&[("RUST_LOG", "debug,actix_http=trace,actix_web=trace,actix_server=trace")]).await?;
    let port = stack.port("all")?;
    let (ada, eve) = (token(&stack, "acme", "ada", "1h")?, token(&stack, "acme", "eve", "1h")?);
    let other_tenant = stack.cli_json(&["tenant", "create", "other"])?;
    assert!(other_tenant.is_object());
    let other = stack.create_key("other", "producer")?;

    let mut refused = Opening::new(port, "ada", "x.y.z");
    assert_eq!(refused.try_open().await?.err(), Some(401), "a bad token");
    refused.token = None;
    assert_eq!(refused.try_open().await?.err(), Some(401), "no token");
    refused.token = Some(&stack.producer_key);
    assert_eq!(refused.try_open().await?.err(), Some(401), "an API key is not taken in a query");
    assert_eq!(Opening::new(port, "ada", &eve).try_open().await?.err(), Some(403), "another person's token");
    let plain = stack.api(&ada).get("/ws/notifications/ada").await?;
    assert_eq!((plain.status, plain.header("upgrade")), (StatusCode::UPGRADE_REQUIRED, Some("websocket")));
    assert_eq!(stack.api("").get("/ws/notifications/ada").await?.status, StatusCode::UNAUTHORIZED);

    let by_header = Opening { token: None, bearer: Some(&stack.producer_key), ..Opening::new(port, "ada", "") };
    let mut sockets = [
        Opening::new(port, "ada", &ada).open().await?,
        by_header.open().await?,
        Opening::new(port, "ada", &stack.admin_key).open().await?,
    ];
    let mut strangers =
        [Opening::new(port, "eve", &eve).open().await?, Opening::new(port, "ada", &other).open().await?];
    stack.producer().send(&note("ada", "Hello")).await?;
    for socket in &mut sockets {
        let message = socket.message().await?;
        assert_eq!(message["type"], "notification");
        let item = &message["data"];
        let names: Vec<&str> = item.as_object().context("an object")?.keys().map(String::as_str).collect();
        assert_eq!(names.iter().copied().collect::<BTreeSet<_>>(), FIELDS.into_iter().collect(), "{item}");
        assert_eq!((&item["title"], &item["message"], &item["read"]), (&json!("Hello"), &json!("m"), &json!(false)));
        let list = stack.api(&ada).get("/api/notifications").await?.ok()?;
        assert_eq!(&list["notifications"][0], item, "the same as in the list");
    }
    for socket in &mut strangers {
        assert!(socket.is_quiet(MOMENT).await);
    }
    // Messages from a client are ignored, and nothing breaks.
    let [first, ..] = &mut sockets;
    first.say(Message::text("{\"type\":\"hello\"}")).await?;
    first.say(Message::Ping("x".into())).await?;
    stack.producer().send(&note("ada", "Again")).await?;
    assert_eq!(first.notification().await?["title"], "Again");
    eventually("five sockets are counted", SOON, || async {
        (metric(&stack, "posthaste_ws_connections ").await.ok()? == 5.0).then_some(())
    })
    .await?;

    let logs = stack.logs()?;
    assert!(logs.contains("/ws/notifications") || logs.len() > 1000, "the logs are there");
    for secret in [&ada, &eve, &other, &stack.admin_key] {
        let piece = secret.get(secret.len() - 20..).context("long enough")?;
        assert!(!logs.contains(piece), "a credential stands in the log");
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_ends_with_its_credential_and_at_the_end_of_the_process() -> Result<()> {
    let mut stack = Stack::start().await?;
    let port = stack.port("all")?;
    let key = stack.admin().post("/api/admin/keys", &json!({"role": "producer", "name": "short"})).await?.ok()?;
    let text = key["key"].as_str().context("a key")?.to_owned();
    let mut by_key = Opening::new(port, "ada", &text).open().await?;
    let mut expiring = expiring(&stack, port).await?;
    let path = format!("/api/admin/keys/{}", key["id"].as_str().context("an id")?);
    let expiry_and_revocation = async {
        assert_eq!(expiring.rest(LATER).await?.1, 4401, "the token has ended");
        stack.admin().request(Method::DELETE, &path, &[], None).await?.ok()
    };
    // Read all the while: a socket that answers no ping is given up for another reason.
    let (revoked, _) = tokio::try_join!(by_key.rest(2 * LATER), expiry_and_revocation)?;
    assert_eq!(revoked.1, 4401, "the key is revoked");

    let long = token(&stack, "acme", "ada", "1h")?;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(Opening::new(port, "ada", &long).open().await?);
    }
    let leaving = try_join_all(open.iter_mut().map(|socket| socket.rest(LATER)));
    let (ends, ()) = tokio::try_join!(leaving, async { stack.signal("all", Signal::SIGTERM) })?;
    assert!(ends.iter().all(|(_, code)| *code == 1001), "{ends:?}");
    assert!(stack.ended("all", SOON).await?.success());
    Ok(())
}

/// A socket whose token ends soon, but not before the socket was opened.
async fn expiring(stack: &Stack, port: u16) -> Result<Live> {
    for ttl in ["2s", "10s", "60s"] {
        let short = token(stack, "acme", "ada", ttl)?;
        match Opening::new(port, "ada", &short).try_open().await? {
            Ok(socket) => return Ok(socket),
            Err(status) => anyhow::ensure!(status == 401, "refused with {status}"),
        }
    }
    anyhow::bail!("every token ended before it could be used")
}

#[tokio::test]
async fn a_person_has_so_many_sockets_and_no_more() -> Result<()> {
    let stack = Stack::start().await?;
    let (port, ada) = (stack.port("all")?, token(&stack, "acme", "ada", "1h")?);
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(Opening::new(port, "ada", &ada).open().await?);
    }
    assert_eq!(Opening::new(port, "ada", &ada).try_open().await?.err(), Some(429));
    drop(open.pop());
    eventually("a closed socket makes room", SOON, || async {
        Opening::new(port, "ada", &ada).try_open().await.ok()?.ok()
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_inbox_is_filtered_put_away_and_marked_both_ways() -> Result<()> {
    let stack = Stack::start().await?;
    let ada = stack.api(&token(&stack, "acme", "ada", "1h")?);
    let mut other = note("ada", "other");
    (other["type"], other["category"]) = (json!("news"), json!("fun"));
    let mut messages = Vec::new();
    for body in [note("ada", "1"), note("ada", "2"), other] {
        let id = stack.producer().send(&body).await?;
        stack.producer().wait_status(&id, "delivered").await?;
        messages.push(id);
    }
    let all = listed(&ada, "").await?;
    let [news, second, first] = all.as_slice() else { anyhow::bail!("three items, not {all:?}") };
    let count = async || -> Result<Value> {
        Ok(ada.get("/api/notifications/unread-count").await?.ok()?["unread_count"].clone())
    };

    let changed = ada.post(&format!("/api/notifications/{first}/read"), &json!({})).await?.ok()?;
    assert_eq!(changed, json!({"updated": 1, "unread_count": 2}));
    assert_eq!(listed(&ada, "&unread=true").await?, [news.clone(), second.clone()]);
    assert_eq!(listed(&ada, "&unread=false").await?, std::slice::from_ref(first));
    assert_eq!(listed(&ada, "&type=news").await?, std::slice::from_ref(news));
    assert_eq!(listed(&ada, "&category=work&unread=true").await?, std::slice::from_ref(second));
    assert_eq!(ada.get("/api/notifications?unread=maybe").await?.status, StatusCode::BAD_REQUEST);

    ada.post(&format!("/api/notifications/{news}/archive"), &json!({})).await?.ok()?;
    assert_eq!(listed(&ada, "").await?, [second.clone(), first.clone()]);
    assert_eq!(listed(&ada, "&archived=true").await?, std::slice::from_ref(news));
    assert_eq!(count().await?, 1, "what is put away does not count");
    ada.post(&format!("/api/notifications/{news}/unarchive"), &json!({})).await?.ok()?;
    assert_eq!(listed(&ada, "").await?, all, "it is back where it was");
    let many = ada.post("/api/notifications/archive", &json!({"ids": [news, first]})).await?.ok()?;
    assert_eq!(many, json!({"updated": 2, "unread_count": 1}));
    ada.post("/api/notifications/unarchive", &json!({"ids": [news, first]})).await?.ok()?;

    // The log knows that it was read, once.
    eventually("the delivery is read", SOON, || async {
        let message = stack.producer().message(&messages[0]).await.ok()?;
        (message["deliveries"][0]["engagement"] == json!(["read"])).then_some(())
    })
    .await?;
    assert_eq!(stack.producer().message(&messages[1]).await?["deliveries"][0]["engagement"], json!([]));
    ada.post(&format!("/api/notifications/{first}/unread"), &json!({})).await?.ok()?;
    assert_eq!(count().await?, 3);
    let eve = stack.api(&token(&stack, "acme", "eve", "1h")?);
    for word in ["read", "unread", "archive", "unarchive"] {
        let answer = eve.post(&format!("/api/notifications/{first}/{word}"), &json!({})).await?;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{word}");
    }
    assert_eq!(listed(&ada, "").await?, all);
    Ok(())
}

#[tokio::test]
async fn an_inbox_is_read_at_once_and_its_entries_are_deleted_by_its_owner() -> Result<()> {
    let stack = Stack::start().await?;
    let (producer, ada) = (stack.producer(), stack.api(&token(&stack, "acme", "ada", "1h")?));
    let eve = stack.api(&token(&stack, "acme", "eve", "1h")?);
    for title in ["1", "2", "3"] {
        producer.wait_status(&producer.send(&note("ada", title)).await?, "delivered").await?;
    }
    let all = listed(&ada, "").await?;
    let [newest, second, first] = all.as_slice() else { anyhow::bail!("three items, not {all:?}") };
    let count = "/api/notifications/user/ada/unread-count";
    assert_eq!(producer.get(count).await?.ok()?, json!({"unread_count": 3}));
    assert_eq!(ada.get(count).await?.ok()?, json!({"unread_count": 3}));
    assert_eq!(eve.get(count).await?.status, StatusCode::FORBIDDEN);
    stack.cli(&["tenant", "create", "globex"])?;
    let other = stack.api(&stack.create_key("globex", "producer")?);
    assert_eq!(
        other.get(count).await?.ok()?,
        json!({"unread_count": 0}),
        "another tenant's ada has an inbox of its own"
    );

    // All but an archived entry; a producer does it for a person, another person does not.
    ada.post(&format!("/api/notifications/{newest}/archive"), &json!({})).await?.ok()?;
    let changed = ada.post("/api/notifications/mark-all-as-read", &json!({})).await?.ok()?;
    assert_eq!(changed, json!({"updated": 2, "unread_count": 0}));
    ada.post(&format!("/api/notifications/{newest}/unarchive"), &json!({})).await?.ok()?;
    assert_eq!(listed(&ada, "&unread=true").await?, std::slice::from_ref(newest));
    let for_ada = "/api/notifications/read-all?user_id=ada";
    assert_eq!(eve.post(for_ada, &json!({})).await?.status, StatusCode::FORBIDDEN);
    assert_eq!(producer.post(for_ada, &json!({})).await?.ok()?, json!({"updated": 1, "unread_count": 0}));
    assert_eq!(listed(&ada, "&unread=false").await?, all);

    let (one, many) = (format!("/api/notifications/{newest}"), json!({"ids": [first, second]}));
    assert_eq!(eve.request(Method::DELETE, &one, &[], None).await?.status, StatusCode::NOT_FOUND);
    assert_eq!(eve.post("/api/notifications/delete", &many).await?.ok()?["updated"], 0);
    assert_eq!(listed(&ada, "").await?, all);
    let changed = ada.request(Method::DELETE, &one, &[], None).await?.ok()?;
    assert_eq!(changed, json!({"updated": 1, "unread_count": 0}));
    assert_eq!(ada.request(Method::DELETE, &one, &[], None).await?.status, StatusCode::NOT_FOUND);
    assert_eq!(listed(&ada, "").await?, [second.clone(), first.clone()]);
    let changed = ada.post("/api/notifications/delete", &many).await?.ok()?;
    assert_eq!((changed, listed(&ada, "").await?), (json!({"updated": 2, "unread_count": 0}), Vec::new()));
    Ok(())
}

/// Follows an inbox over connections that are lost again and again, at one process and the other.
async fn follow(ports: &[u16], user: &str, token: &str, count: usize) -> Result<Vec<String>> {
    let mut seen: Vec<String> = Vec::new();
    let mut turn = 0;
    while seen.len() < count {
        let port = ports[turn % ports.len()];
        let since = seen.last().cloned();
        let mut opening = Opening::new(port, user, token);
        opening.since = Some(since.as_deref().unwrap_or("0191d8a0-0000-7000-8000-000000000001"));
        let mut socket = opening.open().await?;
        let part = (turn * 7 % 60 + 1).min(count - seen.len());
        seen.extend(socket.ids(part).await.with_context(|| format!("after {} of {count}", seen.len()))?);
        turn += 1;
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_show_everything_once_and_in_one_order_while_it_pours_in() -> Result<()> {
    const COUNT: usize = 600;
    let mut stack = Stack::start_apart(2, &[]).await?;
    stack.launch("ingest2", Role::Ingest, &[]).await?;
    let ports = [stack.port("ingest")?, stack.port("ingest2")?];
    let ada = token(&stack, "acme", "ada", "1h")?;
    let mut steady =
        [Opening::new(ports[0], "ada", &ada).open().await?, Opening::new(ports[1], "ada", &ada).open().await?];
    let [first, second] = &mut steady;
    let (sent, one, two, dropped) = tokio::try_join!(
        flood(&stack, "ada", COUNT),
        first.ids(COUNT),
        second.ids(COUNT),
        follow(&ports, "ada", &ada, COUNT),
    )?;
    let () = sent;
    let mut newest_first = listed(&stack.api(&ada), "").await?;
    newest_first.reverse();
    assert_eq!(newest_first.len(), COUNT);
    assert_eq!(one, newest_first, "a socket shows the order of the list");
    assert_eq!(two, newest_first, "at the other process as well");
    assert_eq!(dropped, newest_first, "losses leave no gap and no double");
    assert!(first.is_quiet(MOMENT).await && second.is_quiet(MOMENT).await);

    // A client with an unknown position gets the newest hundred, and goes on from there.
    let mut unknown = Opening::new(ports[0], "ada", &ada).since("nothing-of-ours").open().await?;
    assert_eq!(unknown.ids(100).await?, newest_first[COUNT - 100..]);
    stack.producer().send(&note("ada", "last")).await?;
    assert_eq!(unknown.notification().await?["title"], "last");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_of_the_broker_open_sockets_have_everything() -> Result<()> {
    let servers = TestServers::private("live")?;
    let mut stack = Stack::prepare(servers.clone(), &[]).await?;
    stack.launch("all", Role::All, &[]).await?;
    let (port, ada) = (stack.port("all")?, token(&stack, "acme", "ada", "1h")?);
    let mut socket = Opening::new(port, "ada", &ada).open().await?.follow();
    flood(&stack, "ada", 20).await?;
    let mut seen = socket.ids(20, SOON).await?;
    servers.own().rabbitmq.kill9()?;
    flood(&stack, "ada", 20).await?;
    tokio::task::block_in_place(|| servers.own().rabbitmq.start())?;
    flood(&stack, "ada", 20).await?;
    seen.extend(socket.ids(40, LATER).await?);
    let mut newest_first = listed(&stack.api(&ada), "").await?;
    newest_first.reverse();
    assert_eq!(seen, newest_first);

    // A hint that never came: the rows are there, and the end of the outage alone makes the socket look.
    // Sooner than it would have looked by itself, the first time unless the machine stands still in it.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        quickest = quickest.min(time_to_mend(&stack, &mut socket).await?);
        if quickest < Duration::from_secs(30) {
            return Ok(());
        }
    }
    anyhow::bail!("it was shown {quickest:?} after the end of the outage")
}

/// Puts a notification into the inbox during an outage of the broker; how long after its end it is shown.
async fn time_to_mend(stack: &Stack, socket: &mut Followed) -> Result<Duration> {
    let rabbitmq = &stack.servers.own().rabbitmq;
    rabbitmq.kill9()?;
    let copied = "INSERT INTO inbox (id, tenant_id, user_id, content, seq)
        SELECT fresh, tenant_id, user_id, content, seq + 1000 FROM inbox, gen_random_uuid() AS fresh
        ORDER BY seq DESC LIMIT 1 RETURNING id::text";
    let sql = stack.sql().await?;
    let mut unseen = None;
    // Once in a minute the socket looks by itself. If that was just now, the next one is not seen for a while.
    for _ in 0..3 {
        let id: String = sql.query_one(copied, &[]).await?.get(0);
        match socket.next(MOMENT).await? {
            Some(seen) => assert_eq!(seen, id),
            None => {
                unseen = Some(id);
                break;
            }
        }
    }
    let unseen = unseen.context("it was shown without a hint, again and again")?;
    tokio::task::block_in_place(|| rabbitmq.start())?;
    let mended = Instant::now();
    assert_eq!(socket.ids(1, LATER).await?, [unseen]);
    Ok(mended.elapsed())
}

#[tokio::test]
async fn invariant_p_what_tells_sockets_to_look_names_nobody() -> Result<()> {
    let stack = Stack::start().await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let channel = backend.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("heard".into(), options, FieldTable::default()).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind("heard".into(), "posthaste.live".into(), "#".into(), bind, FieldTable::default()).await?;
    stack.producer().send(&note("canary-person", "canary-title")).await?;
    let heard = eventually("a hint is published", SOON, || async {
        channel.basic_get("heard".into(), BasicGetOptions { no_ack: true }).await.ok()?
    })
    .await?;
    let hint: Value = serde_json::from_slice(&heard.data)?;
    let names: Vec<&String> = hint.as_object().context("an object")?.keys().collect();
    assert_eq!(names, ["p", "v"], "{hint}");
    let person = hint["p"][0].as_str().context("a name")?;
    assert!(person.len() == 16 && person.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hint}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_closed_and_comes_back_without_a_gap() -> Result<()> {
    const COUNT: usize = 80;
    let stack = Stack::start().await?;
    let (port, ada) = (stack.port("all")?, token(&stack, "acme", "ada", "1h")?);
    let slow = Opening { buffer: Some(4096), ..Opening::new(port, "ada", &ada) };
    let mut slow = slow.open().await?;
    let mut quick = Opening::new(port, "ada", &ada).open().await?;
    let long = "x".repeat(120_000);
    let api = stack.producer();
    let sending = async {
        let body = json!({"channel": "in_app", "recipient": "ada", "title": "t", "message": long});
        // Several at once: unread messages must pile up before the slow client counts as dead.
        for _ in 0..COUNT / 10 {
            try_join_all((0..10).map(|_| api.send(&body))).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    // The reason of the close is sent for a short time only, so the client reads right after it.
    let given_up = async {
        let slow_ones = "posthaste_ws_closed_total{reason=\"slow\"} ";
        eventually("the slow reader is disconnected", LATER, || async {
            (metric(&stack, slow_ones).await.ok()? >= 1.0).then_some(())
        })
        .await?;
        slow.rest(SOON).await
    };
    // The quick one reads while they are sent, or it would be a slow one too.
    let (all, (mut seen, code), ()) = tokio::try_join!(quick.ids(COUNT), given_up, sending)?;
    standing(&stack, "ada", COUNT).await?;
    assert_eq!(code, 4408, "it learns why as soon as it reads");
    assert!(seen.len() < COUNT, "it was not waited for");
    assert_eq!(seen, all[..seen.len()]);
    let last = seen.last().cloned().unwrap_or_default();
    let mut back = Opening::new(port, "ada", &ada).since(&last).open().await?;
    seen.extend(back.ids(COUNT - seen.len()).await?);
    assert_eq!(seen, all);
    Ok(())
}
