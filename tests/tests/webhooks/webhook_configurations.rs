//! Webhook configurations: what Posthaste reports itself, once and signed; logs; switching off, holding and replaying.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aws_lc_rs::{
    hmac,
    signature::{ED25519, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use servers::sinks::http::Request;
use testkit::{
    Api, HttpSink, Reply, Stack,
    api::{Answer, SOON},
    eventually,
};

const CONFIGURATIONS: &str = "/api/webhooks/configurations";

fn text(value: &Value, name: &str) -> Result<String> {
    value[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {value}"))
}

/// Makes a configuration; its path, and what was answered.
async fn configure(api: &Api, body: Value) -> Result<(String, Value)> {
    let made = api.post(CONFIGURATIONS, &body).await?.ok()?;
    Ok((format!("{CONFIGURATIONS}/{}", text(&made, "id")?), made))
}

async fn put(api: &Api, path: &str, body: Value) -> Result<Value> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(&body)?)).await?.ok()
}

/// The events that arrived at a path: type and data.
fn events(sink: &HttpSink, path: &str) -> Vec<(String, Value)> {
    let event = |request: &std::sync::Arc<Request>| {
        let body = request.json().ok()?;
        Some((body["type"].as_str()?.to_owned(), body["data"].clone()))
    };
    sink.requests_to(path).iter().filter_map(event).collect()
}

fn counts(sink: &HttpSink, path: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (kind, _) in events(sink, path) {
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

async fn until_counts(sink: &HttpSink, path: &str, wanted: &[(&str, usize)]) -> Result<()> {
    let wanted: BTreeMap<String, usize> = wanted.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
    let arrived =
        eventually("the events arrive", SOON, || async { (counts(sink, path) == wanted).then_some(()) }).await;
    arrived.with_context(|| format!("{path}: wanted {wanted:?}, got {:?}", counts(sink, path)))
}

fn signed(request: &Request) -> Vec<u8> {
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), request.text()).into_bytes()
}

/// Whether one of a request's signatures is that of `secret`.
fn is_signed(request: &Request, secret: &str) -> bool {
    let Ok(key) = STANDARD.decode(secret.trim_start_matches("whsec_")) else { return false };
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed(request));
    let wanted = format!("v1,{}", STANDARD.encode(tag.as_ref()));
    request.header("webhook-signature").is_some_and(|all| all.split(' ').any(|one| one == wanted))
}

fn is_signed_by_key(request: &Request, public: &str, signed: &[u8]) -> bool {
    let Ok(public) = STANDARD.decode(public.trim_start_matches("whpk_")) else { return false };
    let all = request.header("webhook-signature").unwrap_or_default().to_owned();
    all.split(' ')
        .filter_map(|one| STANDARD.decode(one.strip_prefix("v1a,")?).ok())
        .any(|signature| UnparsedPublicKey::new(&ED25519, &public).verify(signed, &signature).is_ok())
}

/// Waits until no event and no delivery is on its way any more.
async fn until_quiet(stack: &Stack) -> Result<()> {
    let busy = "SELECT (SELECT count(*) FROM webhook_events WHERE pending)
        + (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'sending', 'retrying'))";
    eventually("all is over", SOON, || async { (stack.count(busy).await.ok()? == 0).then_some(()) }).await
}

/// A tenant with two configurations, and another tenant with one of its own.
struct Scene {
    stack: Stack,
    sink: HttpSink,
    admin: Api,
    producer: Api,
    /// The admin of the other tenant.
    other: Api,
    /// The path of the configuration that wants failures only.
    some: String,
    /// The answer that made it.
    made: Value,
}

/// Messages by the status that they ended with.
struct Ended {
    delivered: String,
    failed: String,
    dead: String,
}

impl Scene {
    async fn start() -> Result<Self> {
        let stack = Stack::patient(&[("WEBHOOK_MAX_RETRIES", "1")]).await?;
        let (sink, admin, producer) = (HttpSink::start_local().await?, stack.admin(), stack.producer());
        sink.reply_to("/bad", Reply::status(400));
        sink.reply_to("/down", Reply::status(500));
        // Without a configuration there is no event.
        let early = producer.send(&json!({"channel": "in_app", "recipient": "ada", "message": "m"})).await?;
        producer.wait_status(&early, "delivered").await?;
        assert_eq!(stack.count("SELECT count(*) FROM webhook_events").await?, 0);
        configure(&admin, json!({"name": "all", "url": sink.url("/all")})).await?;
        let some = json!({"name": "some", "url": sink.url("/some"), "events": ["message.failed", "dead_letter.created", "message.retrying"],
            "headers": {"X-Api-Key": "canary-key", "X-Source": "posthaste"}, "asymmetric": true});
        let (some, made) = configure(&admin, some).await?;
        stack.cli(&["tenant", "create", "globex"])?;
        let other = stack.api(&stack.create_key("globex", "admin")?);
        configure(&other, json!({"name": "theirs", "url": sink.url("/theirs")})).await?;
        Ok(Self { stack, sink, admin, producer, other, some, made })
    }

    /// Sends a message for each status and waits until both configurations have their events.
    async fn send(&self) -> Result<Ended> {
        let note = json!({"channel": "in_app", "recipient": "canary-person", "user_id": "eve", "message": "canary-content", "metadata": {"order": 7}});
        let delivered = self.producer.send(&note).await?;
        let hook = |path: &str| json!({"channel": "webhook", "recipient": self.sink.url(path), "data": {"content": "canary-content"}});
        let (failed, dead) = (self.producer.send(&hook("/bad")).await?, self.producer.send(&hook("/down")).await?);
        let next_week = domain::clock::now() + chrono::TimeDelta::days(7);
        let later =
            json!({"channel": "in_app", "recipient": "ada", "message": "m", "scheduled_at": next_week.to_rfc3339()});
        let cancelled = self.producer.send(&later).await?;
        self.producer.post(&format!("/api/messages/{cancelled}/cancel"), &json!({})).await?.ok()?;
        for (id, status) in [(&delivered, "delivered"), (&failed, "failed"), (&dead, "dead"), (&cancelled, "cancelled")]
        {
            self.producer.wait_status(id, status).await?;
        }
        let all = [
            ("message.delivered", 1),
            ("message.failed", 1),
            ("message.dead", 1),
            ("message.cancelled", 1),
            ("dead_letter.created", 1),
        ];
        let some = [("message.failed", 1), ("dead_letter.created", 1), ("message.retrying", 1)];
        until_counts(&self.sink, "/all", &all).await?;
        until_counts(&self.sink, "/some", &some).await?;
        until_quiet(&self.stack).await?;
        until_counts(&self.sink, "/all", &all).await?;
        assert!(self.sink.requests_to("/theirs").is_empty(), "another tenant's");
        let events = self.stack.count("SELECT count(*) FROM webhook_events").await?;
        assert_eq!(events, 8, "no event about the deliveries that carry events");
        Ok(Ended { delivered, failed, dead })
    }

    /// An event has enough to find its message, and neither a recipient nor a content.
    async fn check_events(&self, ended: &Ended) -> Result<()> {
        let reported: BTreeMap<String, Value> = events(&self.sink, "/all").into_iter().collect();
        let data = &reported["message.delivered"];
        assert_eq!((&data["message_id"], &data["channel"]), (&json!(ended.delivered), &json!("in_app")));
        assert_eq!((&data["status"], &data["provider"]), (&json!("delivered"), &json!("inbox")));
        assert_eq!((&data["attempt"], &data["metadata"]), (&json!(1), &json!({"order": 7})));
        let data = &reported["message.failed"];
        assert_eq!((&data["message_id"], &data["code"]), (&json!(ended.failed), &json!("400")));
        let data = &reported["dead_letter.created"];
        assert_eq!((&data["message_id"], &data["reason"]), (&json!(ended.dead), &json!("attempts_exhausted")));
        let letter = self.admin.get(&format!("/api/admin/dead-letters/{}", text(data, "id")?)).await?.ok()?;
        assert_eq!(letter["message_id"], json!(ended.dead));
        for request in ["/all", "/some"].iter().flat_map(|path| self.sink.requests_to(path)) {
            assert!(!request.text().contains("canary"), "{}", request.text());
            assert!(request.json()?["timestamp"].is_string());
        }
        Ok(())
    }

    /// Both signatures hold; a flipped byte, another secret and another key do not.
    fn check_signatures(&self) -> Result<()> {
        let (secret, public) = (text(&self.made, "secret")?, text(&self.made, "public_key")?);
        for request in self.sink.requests_to("/some") {
            assert!(is_signed(&request, &secret) && !is_signed(&request, &self.stack.webhook_secret));
            let mut message = signed(&request);
            assert!(is_signed_by_key(&request, &public, &message));
            message[0] ^= 1;
            assert!(!is_signed_by_key(&request, &public, &message));
            assert_eq!(request.header("x-api-key"), Some("canary-key"));
        }
        assert!(self.sink.requests_to("/all").iter().all(|request| {
            request.header("webhook-signature").is_some_and(|all| all.starts_with("v1,") && !all.contains(' '))
        }));
        Ok(())
    }

    /// A producer's webhook to the URL of a configuration cannot pass for an event: it has neither the configuration's signature nor
    /// its headers.
    async fn check_forgery(&self) -> Result<()> {
        let url = self.sink.url("/some?forged");
        let at = json!({"name": "at", "url": url, "events": ["message.read"], "headers": {"X-Api-Key": "canary-key"}});
        let (_, at) = configure(&self.admin, at).await?;
        let forged = json!({"channel": "webhook", "recipient": url, "data": {"type": "message.failed"}});
        self.producer.wait_status(&self.producer.send(&forged).await?, "delivered").await?;
        let request = self.sink.requests().into_iter().find(|request| request.target == "/some?forged");
        let request = request.context("it came")?;
        assert!(is_signed(&request, &self.stack.webhook_secret) && !is_signed(&request, &text(&at, "secret")?));
        assert_eq!(request.header("x-api-key"), None);
        Ok(())
    }

    /// The log of calls, masked, page by page.
    async fn check_log(&self) -> Result<()> {
        let (admin, some) = (&self.admin, &self.some);
        let logged = eventually("every call is in the log", SOON, || async {
            let logs = admin.get(&format!("{some}/logs")).await.ok()?.ok().ok()?;
            (logs["logs"].as_array()?.len() == 3).then_some(logs)
        })
        .await?;
        assert!(!logged.to_string().contains("canary"), "{logged}");
        let entry = &logged["logs"][0];
        assert_eq!((&entry["response_status"], &entry["attempt"]), (&json!(200), &json!(1)));
        assert_eq!(entry["request"]["headers"]["x-api-key"], "***");
        assert_eq!(entry["request"]["headers"]["x-source"], "***", "any header may be a secret");
        assert_eq!(entry["request"]["headers"]["webhook-id"], entry["webhook_id"]);
        assert!(entry["duration_ms"].is_number() && entry["at"].is_string() && entry["event"].is_string());
        let times: Vec<&str> =
            logged["logs"].as_array().context("logs")?.iter().filter_map(|log| log["at"].as_str()).collect();
        assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
        let page = admin.get(&format!("{some}/logs?limit=2")).await?.ok()?;
        let rest = admin.get(&format!("{some}/logs?limit=2&cursor={}", text(&page, "next_cursor")?)).await?.ok()?;
        assert_eq!((page["logs"].as_array().map(Vec::len), rest["logs"].as_array().map(Vec::len)), (Some(2), Some(1)));
        Ok(())
    }

    /// Bad bodies, and callers without the right.
    async fn check_refusals(&self) -> Result<()> {
        let Self { sink, admin, other, some, .. } = self;
        for (field, body) in [
            ("events", json!({"name": "x", "url": sink.url("/x"), "events": ["message.eaten"]})),
            ("headers", json!({"name": "x", "url": sink.url("/x"), "headers": {"Transfer-Encoding": "chunked"}})),
            ("headers", json!({"name": "x", "url": sink.url("/x"), "headers": {"Webhook-Id": "1"}})),
        ] {
            let answer = admin.post(CONFIGURATIONS, &body).await?;
            assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec![field.to_owned()]), "{body}");
        }
        // The headers hold a secret, so they do not move to another host, where a stranger may listen.
        let elsewhere = "http://127.0.0.1:9/elsewhere";
        for body in [json!({"url": elsewhere}), json!({"url": elsewhere, "headers": {"X-Api-Key": "***"}})] {
            let moved = admin.request(Method::PUT, some, &[], Some(serde_json::to_vec(&body)?)).await?;
            assert_eq!((moved.status.as_u16(), moved.fields()), (422, vec!["headers".to_owned()]), "{body}");
        }
        for (method, path) in [(Method::GET, "/logs"), (Method::POST, "/test"), (Method::POST, "/regenerate-secret")] {
            let answer = other.request(method, &format!("{some}{path}"), &[], None).await?;
            assert_eq!(answer.status.as_u16(), 404, "{path}: {}", answer.body);
        }
        let replay = json!({"since": "2026-01-01T00:00:00Z"});
        assert_eq!(other.post(&format!("{some}/replay"), &replay).await?.status.as_u16(), 404);
        assert_eq!(self.producer.get(CONFIGURATIONS).await?.status.as_u16(), 403);
        Ok(())
    }

    /// The erasure of a person erases the log of calls about them too.
    async fn check_erasure(&self, ended: &Ended) -> Result<()> {
        let (stack, delivered) = (&self.stack, &ended.delivered);
        let left = |table: &str, column: &str| {
            format!("SELECT count(*) FROM {table} WHERE convert_from({column}, 'UTF8') LIKE '%{delivered}%'")
        };
        assert_eq!(stack.count(&left("messages", "content")).await?, 1);
        // Calls are logged beside the work, each receiver's in its own time.
        stack.until_count(&left("webhook_logs", "request"), 1).await?;
        self.admin.request(Method::DELETE, "/api/users/eve", &[], None).await?.ok()?;
        stack.until_count(&left("messages", "content"), 0).await?;
        stack.until_count(&left("webhook_logs", "request"), 0).await
    }
}

#[tokio::test]
async fn what_happens_is_reported_once_to_whoever_wants_it_and_nothing_is_reported_about_reports() -> Result<()> {
    let scene = Scene::start().await?;
    let ended = scene.send().await?;
    scene.check_events(&ended).await?;
    scene.check_signatures()?;
    scene.check_forgery().await?;
    scene.check_log().await?;
    scene.check_refusals().await?;
    scene.check_erasure(&ended).await
}

/// Counts events that are held.
const HELD: &str = "SELECT count(*) FROM webhook_events WHERE NOT pending AND carrier IS NULL";

/// A configuration whose receiver is gone at the second call, and one that is told of it.
struct Gone {
    stack: Stack,
    sink: HttpSink,
    admin: Api,
    producer: Api,
    /// The path of the configuration.
    path: String,
    /// The answer that made it.
    made: Value,
}

impl Gone {
    async fn start() -> Result<Self> {
        let stack = Stack::patient(&[("WEBHOOK_DISABLE_AFTER_MS", "1500")]).await?;
        let (sink, admin, producer) = (HttpSink::start_local().await?, stack.admin(), stack.producer());
        sink.reply_to("/gone", Reply::Sequence(vec![Reply::ok(), Reply::status(410), Reply::ok()]));
        let gone = json!({"name": "gone", "url": sink.url("/gone"), "events": ["message.delivered"]});
        let (path, made) = configure(&admin, gone).await?;
        configure(&admin, json!({"name": "watch", "url": sink.url("/watch"), "events": ["endpoint.disabled"]})).await?;
        Ok(Self { stack, sink, admin, producer, path, made })
    }

    /// Causes an event; the id of its message.
    async fn send(&self) -> Result<String> {
        let id = self.producer.send(&json!({"channel": "in_app", "recipient": "ada", "message": "m"})).await?;
        self.producer.wait_status(&id, "delivered").await.map(|_| id)
    }

    /// Causes an event; the request that reports it, which is the `count`-th.
    async fn report(&self, count: usize) -> Result<std::sync::Arc<Request>> {
        self.send().await?;
        until_counts(&self.sink, "/gone", &[("message.delivered", count), ("test", 1)]).await?;
        self.sink.requests_to("/gone").last().cloned().context("one came")
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.admin.post(&format!("{}/{path}", self.path), body).await
    }

    async fn until_held(&self, count: i64) -> Result<()> {
        let what = format!("{count} events are held");
        eventually(&what, SOON, || async { (self.stack.count(HELD).await.ok()? == count).then_some(()) }).await
    }

    /// The receiver goes with the second event; the id of the first message.
    async fn is_switched_off(&self) -> Result<String> {
        let Self { stack, sink, admin, .. } = self;
        let first = self.send().await?;
        until_counts(sink, "/gone", &[("message.delivered", 1)]).await?;
        self.send().await?;
        until_counts(sink, "/watch", &[("endpoint.disabled", 1)]).await?;
        let told = &events(sink, "/watch")[0].1;
        assert_eq!((&told["configuration_id"], &told["reason"]), (&self.made["id"], &json!("gone")));
        let shown = admin.get(&self.path).await?.ok()?;
        assert_eq!((&shown["active"], &shown["disabled_reason"]), (&json!(false), &json!("gone")));
        assert!(shown["disabled_at"].is_string() && shown["secret"].is_null(), "{shown}");
        eventually("the log says so", SOON, || async {
            stack.logs().ok().filter(|logs| logs.contains("a webhook configuration was switched off"))
        })
        .await?;
        Ok(first)
    }

    /// An event is held, not sent, until it is replayed; a test goes through all the same.
    async fn holds_and_replays(&self, replay: &Value) -> Result<()> {
        let Self { sink, admin, .. } = self;
        let held = self.send().await?;
        self.until_held(1).await?;
        let answer = self.post("test", &json!({})).await?;
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
        self.producer.wait_status(&text(&answer.body, "id")?, "delivered").await?;
        until_counts(sink, "/gone", &[("message.delivered", 2), ("test", 1)]).await?;
        assert_eq!(self.post("replay", replay).await?.status.as_u16(), 409, "it is off");

        assert_eq!(put(admin, &self.path, json!({"active": true})).await?["disabled_at"], Value::Null);
        let answer = self.post("replay", replay).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["matched"]), (202, &json!(1)), "{}", answer.body);
        until_counts(sink, "/gone", &[("message.delivered", 3), ("test", 1)]).await?;
        let last = sink.requests_to("/gone").last().context("it was replayed")?.json()?;
        assert_eq!(last["data"]["message_id"], json!(held));
        Ok(())
    }

    /// One event by its webhook, those that failed, and all of them.
    async fn replays_by_filter(&self, first: &str) -> Result<()> {
        let Self { stack, sink, .. } = self;
        let first_webhook = sink.requests_to("/gone")[0].header("webhook-id").unwrap_or_default().to_owned();
        for (body, matched) in [
            (json!({"ids": [first_webhook]}), 1),
            (json!({"since": "2026-01-01T00:00:00Z", "status": "failed"}), 1),
            (json!({"since": "2026-01-01T00:00:00Z"}), 3),
            (json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}), 0),
        ] {
            let answer = self.post("replay", &body).await?.ok()?;
            assert_eq!(answer["matched"], json!(matched), "{body}");
            until_quiet(stack).await?;
        }
        until_counts(sink, "/gone", &[("message.delivered", 8), ("test", 1)]).await?;
        let ids: Vec<Value> = events(sink, "/gone").into_iter().map(|(_, data)| data["message_id"].clone()).collect();
        assert_eq!(ids.iter().filter(|id| **id == json!(first)).count(), 3, "sent, replayed alone, replayed with all");
        let lost = json!({"since": "2026-01-01T00:00:00Z", "status": "lost"});
        for (field, body) in [("since", json!({})), ("status", lost)] {
            assert_eq!(self.post("replay", &body).await?.fields(), [field]);
        }
        Ok(())
    }

    /// Another secret: at once, beside the former one unless that is unwanted.
    async fn takes_another_secret(&self) -> Result<()> {
        let former = text(&self.made, "secret")?;
        let regenerate = async |body: Value| text(&self.post("regenerate-secret", &body).await?.ok()?, "secret");
        let second = regenerate(json!({})).await?;
        let request = self.report(9).await?;
        assert!(second != former && is_signed(&request, &second) && is_signed(&request, &former));
        let third = regenerate(json!({"grace_period_seconds": 0})).await?;
        let request = self.report(10).await?;
        assert!(is_signed(&request, &third) && !is_signed(&request, &second) && !is_signed(&request, &former));
        let bad = self.post("regenerate-secret", &json!({"grace_period_seconds": -1})).await?;
        assert_eq!(bad.fields(), ["grace_period_seconds"]);
        Ok(())
    }

    /// Nothing but failures, for too long: waiting events are taken back and held.
    async fn is_switched_off_for_failing(&self, replay: &Value) -> Result<()> {
        let Self { stack, sink, admin, .. } = self;
        sink.reply_to("/gone", Reply::status(503));
        self.send().await?;
        until_counts(sink, "/watch", &[("endpoint.disabled", 2)]).await?;
        assert_eq!(events(sink, "/watch")[1].1["reason"], "failing");
        self.until_held(1).await?;
        let cancelled = "SELECT count(*) FROM deliveries WHERE state = 'cancelled'";
        eventually("it is taken back", SOON, || async { (stack.count(cancelled).await.ok()? == 1).then_some(()) })
            .await?;
        sink.reply_to("/gone", Reply::ok());
        put(admin, &self.path, json!({"active": true})).await?;
        self.post("replay", replay).await?.ok()?;
        // A replay begins a moment after it was asked for.
        self.until_held(0).await?;
        until_quiet(stack).await?;
        assert_eq!(stack.count(HELD).await?, 0, "sent after all");
        Ok(())
    }
}

#[tokio::test]
async fn whoever_is_gone_is_switched_off_and_what_happens_meanwhile_is_held_until_it_is_replayed() -> Result<()> {
    let gone = Gone::start().await?;
    let first = gone.is_switched_off().await?;
    let replay = json!({"since": "2026-01-01T00:00:00Z", "status": "held"});
    gone.holds_and_replays(&replay).await?;
    gone.replays_by_filter(&first).await?;
    gone.takes_another_secret().await?;
    gone.is_switched_off_for_failing(&replay).await
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_no_other() -> Result<()> {
    // Far longer than the whole test: a call that hangs never ends.
    let settings = [("WEBHOOK_TIMEOUT", "600000"), ("WORKER_CONCURRENCY", "16")];
    let (stack, sink, hanging) =
        (Stack::patient(&settings).await?, HttpSink::start_local().await?, HttpSink::start_local().await?);
    hanging.reply_by_default(Reply::Hang);
    let producer = stack.producer();
    let recipients: Vec<String> = (0..99).map(|n| hanging.url(&format!("/{n}"))).collect();
    let body = json!({"recipients": recipients, "channel": "webhook", "title": "t", "message": "m"});
    producer.post("/api/notifications/send-bulk", &body).await?.ok()?;
    // As many calls as the receiver may have hang. All other deliveries were claimed and wait.
    let untouched = "SELECT count(*) FROM deliveries WHERE run = 0";
    eventually("each was taken up once", SOON, || async { (stack.count(untouched).await.ok()? == 0).then_some(()) })
        .await?;
    eventually("the receiver hangs", SOON, || async { (!hanging.requests().is_empty()).then_some(()) }).await?;
    for n in 0..20 {
        producer.send(&json!({"channel": "webhook", "recipient": sink.url(&format!("/{n}")), "data": n})).await?;
    }
    // A delivery that needed one of the hanging places would wait for ten minutes.
    sink.wait_for(20, SOON).await?;
    assert!(hanging.requests().len() <= 12, "never more than three quarters of the places");
    Ok(())
}
