//! Sending through WhatsApp sessions: a WAHA that behaves as documented, and every way it may fail.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Reply, Role, Stack, TestServers, Waha,
    amqp::Backend,
    api::Answer,
    eventually,
    patient::{PATIENT, SHORT_LEASES},
    waha::{IdShape, SendFault, Sent},
};

const KEY: &str = "waha-key";
/// The session id printed in the examples: here it is the name of a session.
const PRINTED: &str = "a1b2c3d4-e5f6-7890-1234-567890abcdef";
const SOON: Duration = Duration::from_secs(60);
/// A message whose slot was lost, to a machine that stood still for a second, waits for one of the next minutes.
const LATE: Duration = Duration::from_secs(300);
/// The settings of every stack here, after those of [`PATIENT`].
const SETTINGS: &[(&str, &str)] = &[("WHATSAPP_BACKEND", "waha"), ("RETRY_BASE_MS", "200")];

/// A Posthaste, its WAHA, and a session that works.
struct Scene {
    stack: Stack,
    waha: Waha,
    session: String,
}

impl Scene {
    async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        Self::with(settings, 1000).await
    }

    async fn with(settings: &[(&str, &str)], rate: u32) -> Result<Self> {
        let stack = Stack::start_with(&[PATIENT, SETTINGS, settings].concat()).await?;
        Self::on(stack, rate).await
    }

    /// One ingest, one scheduler and `workers` workers.
    async fn apart(workers: usize, settings: &[(&str, &str)], rate: u32) -> Result<Self> {
        let port = servers::private::ports::find_free()?.to_string();
        let url = format!("http://127.0.0.1:{port}");
        let settings = [PATIENT, SETTINGS, settings, &[("PUBLIC_URL", url.as_str())]].concat();
        let mut stack = Stack::prepare(TestServers::shared()?, &settings).await?;
        stack.launch("ingest", Role::Ingest, &[("PORT", &port)]).await?;
        stack.launch("scheduler", Role::Scheduler, &[]).await?;
        for n in 0..workers {
            stack.launch(&format!("worker{n}"), Role::Worker, &[]).await?;
        }
        Self::on(stack, rate).await
    }

    async fn on(stack: Stack, rate: u32) -> Result<Self> {
        let waha = Waha::start(KEY).await?;
        let session = make_session(&stack, &waha, PRINTED, rate).await?;
        Ok(Self { stack, waha, session })
    }

    fn api(&self) -> Api {
        self.stack.producer()
    }

    /// `POST /messages/send` that must be accepted; the message's id.
    async fn send(&self, body: &Value) -> Result<String> {
        let answer = ask(&self.api(), body).await?;
        anyhow::ensure!(answer.status == StatusCode::ACCEPTED, "{} {}", answer.status, answer.body);
        answer.body["id"].as_str().map(str::to_owned).context("a 202 carries the id")
    }

    async fn text(&self, body: &str) -> Result<String> {
        self.send(&json!({"sessionId": self.session, "to": "+4915112345678", "body": body})).await
    }

    async fn shown(&self, id: &str) -> Result<Value> {
        self.api().get(&format!("/messages/{id}")).await?.ok()
    }

    /// Waits until `GET /messages/{id}` satisfies `fits`.
    async fn until(&self, id: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let found =
            eventually(what, SOON, || async { self.shown(id).await.ok().filter(|message| fits(message)) }).await;
        match found {
            Ok(message) => Ok(message),
            Err(late) => Err(late.context(format!("{:?} {:?}", self.shown(id).await, self.api().timeline(id).await))),
        }
    }

    async fn working(&self) -> Result<()> {
        wait_state(&self.stack, &self.session, "WORKING").await
    }
}

/// `POST /messages/send` under a key of its own. A database that stood still for a while is a 503, which careful clients repeat.
async fn ask(api: &Api, body: &Value) -> Result<Answer> {
    let (key, body) = (format!("test-{}", uuid::Uuid::now_v7()), serde_json::to_vec(body)?);
    eventually("the message is taken or refused", SOON, || async {
        let key = [("Idempotency-Key", key.as_str())];
        let answer = api.request(Method::POST, "/messages/send", &key, Some(body.clone())).await;
        let is_late = answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE);
        (!is_late).then_some(answer)
    })
    .await?
}

async fn make_session(stack: &Stack, waha: &Waha, name: &str, rate: u32) -> Result<String> {
    let body = json!({"name": name, "base_url": waha.url(), "api_key": KEY, "webhook_secret": "hook-secret",
        "rate_per_minute": rate});
    let made = stack.admin().post("/sessions", &body).await?.ok()?;
    let id = made["id"].as_str().context("a session has an id")?.to_owned();
    stack.admin().post(&format!("/sessions/{id}/start"), &json!({})).await?.ok()?;
    wait_state(stack, &id, "WORKING").await?;
    Ok(id)
}

async fn wait_state(stack: &Stack, id: &str, state: &str) -> Result<()> {
    eventually(&format!("the session is {state}"), SOON, || async {
        let session = stack.admin().get(&format!("/sessions/{id}")).await.ok()?;
        (session.body["status"] == state).then_some(())
    })
    .await
}

fn attempts(timeline: &Value) -> Vec<&str> {
    timeline["attempts"].as_array().into_iter().flatten().filter_map(|attempt| attempt["outcome"].as_str()).collect()
}

fn kinds(timeline: &Value) -> Vec<&str> {
    timeline["events"].as_array().into_iter().flatten().filter_map(|event| event["kind"].as_str()).collect()
}

fn fields(answer: &Value) -> Vec<&str> {
    answer["errors"].as_array().into_iter().flatten().filter_map(|error| error["field"].as_str()).collect()
}

#[tokio::test]
async fn of_thirty_at_once_for_twenty_slots_twenty_are_accepted_and_ten_are_refused() -> Result<()> {
    let stack = Stack::patient(SETTINGS).await?;
    let scene = Scene::on(stack, 20).await?;
    let sends = (0..30).map(|n| {
        let (api, session) = (scene.api(), scene.session.clone());
        async move {
            let body =
                json!({"sessionId": session, "to": "+4915112345678", "body": format!("m{n}"), "on_limit": "reject"});
            ask(&api, &body).await
        }
    });
    let mut accepted = Vec::new();
    for answer in futures_util::future::join_all(sends).await {
        let answer = answer?;
        match answer.status {
            StatusCode::ACCEPTED => accepted.push(answer.body["id"].as_str().context("an id")?.to_owned()),
            StatusCode::TOO_MANY_REQUESTS => {
                assert_eq!(answer.body["code"], "session_limit_reached");
                assert!(answer.header("retry-after").is_some());
            }
            other => anyhow::bail!("{other} {}", answer.body),
        }
    }
    assert_eq!(accepted.len(), 20);
    scene.waha.wait_sent(20, LATE).await?;
    assert_eq!(scene.stack.count("SELECT count(*) FROM messages").await?, 20, "what is refused leaves nothing");
    Ok(())
}

#[tokio::test]
async fn the_printed_examples_work_as_printed() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let api = scene.api();
    let id = scene
        .send(&json!({"sessionId": "a1b2c3d4-e5f6-7890-1234-567890abcdef", "to": "+1234567890",
            "body": "Hello, this is a test message", "priority": "normal", "metadata": {"campaignId": "campaign-123"}}))
        .await?;
    // Acknowledgements may come in any order.
    let is_read = |message: &Value| message["read"] == true && message["status"] == "DELIVERED";
    let message = scene.until(&id, "it is read", is_read).await?;
    assert_eq!((&message["status"], &message["direction"]), (&json!("DELIVERED"), &json!("outbound")));
    assert_eq!(message["metadata"], json!({"campaignId": "campaign-123"}));
    assert_eq!((&message["sessionId"], &message["session"]), (&json!(scene.session), &json!(PRINTED)));
    let sent = scene.waha.wait_sent(1, SOON).await?;
    assert_eq!((sent[0].chat_id.as_str(), sent[0].text.as_str()), ("1234567890@c.us", "Hello, this is a test message"));
    let bulk = api
        .post(
            "/messages/bulk",
            &json!({"sessionId": "a1b2c3d4-e5f6-7890-1234-567890abcdef", "recipients": ["+1234567890", "+0987654321"],
                "body": "Hello, this is a bulk message", "batchSize": 10, "priority": "normal"}),
        )
        .await?;
    assert_eq!((bulk.status, &bulk.body["sent"], &bulk.body["failed"]), (StatusCode::ACCEPTED, &json!(2), &json!(0)));
    assert_eq!(bulk.body["results"][1]["status"], "QUEUED");
    scene.waha.wait_sent(3, SOON).await?;
    let of_nobody = api.get("/messages?sessionId=abc&direction=outbound&status=sent&page=1&limit=20").await?.ok()?;
    assert_eq!(of_nobody["messages"], json!([]));
    let stats = api.get("/messages/stats?fromDate=2024-01-01T00:00:00Z&toDate=2024-01-31T23:59:59Z").await?.ok()?;
    assert_eq!(stats["total"], 0);
    let stats = api.get("/messages/stats").await?.ok()?;
    assert_eq!(stats["outbound"], 3);
    assert_eq!((&stats["by_type"]["text"], &stats["by_session"][&scene.session]), (&json!(3), &json!(3)));
    assert_eq!((&stats["by_country_prefix"]["+1"], &stats["by_country_prefix"]["+098"]), (&json!(2), &json!(1)));
    Ok(())
}

#[tokio::test]
async fn bad_input_is_refused_with_the_field_that_is_wrong() -> Result<()> {
    // Networks that webhooks may reach are still closed to media.
    let scene = Scene::start(&[("MEDIA_ALLOW_NETS", "")]).await?;
    let session = scene.session.as_str();
    let to = "+4915112345678";
    let long = "x".repeat(4097);
    for (body, field) in [
        (json!({"sessionId": session, "to": "4915112345678", "body": "x"}), "to"),
        (json!({"sessionId": session, "to": "015112345678", "body": "x"}), "to"),
        (json!({"sessionId": session, "to": "+123456", "body": "x"}), "to"),
        (json!({"sessionId": session, "to": "+1234567890123456", "body": "x"}), "to"),
        (json!({"sessionId": session, "body": "x"}), "to"),
        (json!({"sessionId": session, "to": to}), "body"),
        (json!({"sessionId": session, "to": to, "body": long}), "body"),
        (json!({"to": to, "body": "x"}), "sessionId"),
        (json!({"sessionId": session, "to": to, "body": "x", "priority": "soon"}), "priority"),
        (json!({"sessionId": session, "to": to, "body": "x", "on_limit": "panic"}), "on_limit"),
        (json!({"sessionId": session, "to": to, "body": "x", "colour": "red"}), "colour"),
        (json!({"sessionId": session, "to": to, "media": {"mimetype": "image/png"}}), "media"),
        (json!({"sessionId": session, "to": to, "media": {"mimetype": "image/png", "data": "?"}}), "media.data"),
        (
            json!({"sessionId": session, "to": to, "media": {"mimetype": "image/png", "url": "http://10.0.0.1/"}}),
            "media.url",
        ),
        (
            json!({"sessionId": session, "to": to, "media": {"mimetype": "image/png", "url": "http://127.0.0.1/"}}),
            "media.url",
        ),
    ] {
        let answer = scene.api().post("/messages/send", &body).await?;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(fields(&answer.body), [field], "{body}");
    }
    let fits = "ü".repeat(4096);
    scene.send(&json!({"sessionId": session, "to": to, "body": fits})).await?;
    for path in
        ["/messages?status=lost", "/messages?direction=up", "/messages?cursor=x", "/messages?limit=0", "/messages?x=1"]
    {
        assert_eq!(scene.api().get(path).await?.status, StatusCode::BAD_REQUEST, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn in_a_bulk_a_bad_number_is_refused_alone_and_a_doubled_one_gets_one_message() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let numbers = ["+4915112345678", "12345", "+4915112345678", "+4915112345679"];
    let body = json!({"sessionId": scene.session, "recipients": numbers, "body": "hello"});
    let answer = scene.api().post("/messages/bulk", &body).await?;
    assert_eq!((&answer.body["sent"], &answer.body["failed"]), (&json!(2), &json!(2)), "{}", answer.body);
    let mut chats: Vec<_> = scene.waha.wait_sent(2, SOON).await?.into_iter().map(|sent| sent.chat_id).collect();
    chats.sort();
    assert_eq!(chats, ["4915112345678@c.us", "4915112345679@c.us"]);
    for body in [
        json!({"sessionId": scene.session, "recipients": [], "body": "x"}),
        json!({"sessionId": scene.session, "recipients": ["+4915112345678"], "body": "x", "batchSize": 0}),
    ] {
        assert_eq!(scene.api().post("/messages/bulk", &body).await?.status, StatusCode::BAD_REQUEST, "{body}");
    }
    Ok(())
}

#[tokio::test]
async fn another_tenants_or_an_unknown_session_is_not_found() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.stack.cli(&["tenant", "create", "other"])?;
    let other = scene.stack.api(&scene.stack.create_key("other", "producer")?);
    for session in [scene.session.as_str(), PRINTED, "nobody"] {
        let body = json!({"sessionId": session, "to": "+4915112345678", "body": "x"});
        assert_eq!(other.post("/messages/send", &body).await?.status, StatusCode::NOT_FOUND, "{session}");
    }
    let id = scene.text("hello").await?;
    scene.waha.wait_sent(1, SOON).await?;
    assert_eq!(other.get(&format!("/messages/{id}")).await?.status, StatusCode::NOT_FOUND);
    assert_eq!(other.get("/messages").await?.ok()?["messages"], json!([]));
    assert_eq!(other.get("/messages/stats").await?.ok()?["total"], 0);
    let generic = json!({"channel": "whatsapp", "recipient": "+4915112345678", "message": "x"});
    let answer = other.post("/api/notifications/send", &generic).await?;
    assert_eq!((answer.status, fields(&answer.body)), (StatusCode::BAD_REQUEST, vec!["session_id"]));
    Ok(())
}

#[tokio::test]
async fn the_generic_route_takes_the_only_session_and_files_go_out_as_what_they_are() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.waha.id_shape(IdShape::Key);
    let api = scene.api();
    let id = api.send(&json!({"channel": "whatsapp", "recipient": "+4915112345678", "message": "generic"})).await?;
    api.wait_status(&id, "delivered").await?;
    let file = json!({"mimetype": "image/png", "filename": "a.png", "data": "iVBORw0KGgo="});
    let id =
        scene.send(&json!({"sessionId": PRINTED, "to": "+4915112345678", "body": "caption", "media": file})).await?;
    let message = scene.until(&id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    assert_eq!((&message["type"], &message["body"]), (&json!("image"), &json!("caption")));
    let sent = scene.waha.sent();
    assert_eq!(
        (sent[1].path.as_str(), &sent[1].body["file"], &sent[1].body["caption"]),
        ("sendImage", &file, &json!("caption"))
    );

    // A file that is named by URL goes to WAHA as its bytes: WAHA would fetch it past the address guard.
    let files = HttpSink::start_local().await?;
    files.reply_to("/a.png", Reply::Status(200, Vec::new(), b"\x89PNG\r\n\x1a\n".to_vec()));
    let media = |path: &str| json!({"mimetype": "image/png", "filename": "a.png", "url": files.url(path)});
    scene.send(&json!({"sessionId": PRINTED, "to": "+4915112345678", "media": media("/a.png")})).await?;
    let sent = scene.waha.wait_sent(3, SOON).await?;
    assert_eq!((sent[2].path.as_str(), &sent[2].body["file"]), ("sendImage", &file));
    files.reply_to("/inward", Reply::status(302).with_header("Location", "http://10.1.2.3/latest/meta-data"));
    let id = scene.send(&json!({"sessionId": PRINTED, "to": "+4915112345678", "media": media("/inward")})).await?;
    scene.until(&id, "it is refused", |message| message["status"] == "FAILED").await?;
    assert_eq!(scene.api().timeline(&id).await?["attempts"][0]["code"], "target_not_allowed");
    assert_eq!(scene.waha.sent().len(), 3, "WAHA heard nothing of it");
    Ok(())
}

#[tokio::test]
async fn only_brazilian_mobiles_are_looked_up_and_go_where_waha_says() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.waha.number("5511987654321", Some("551187654321@c.us"));
    scene.waha.number("5511900000000", None);
    let send = |to: &'static str| json!({"sessionId": scene.session, "to": to, "body": "oi"});
    scene.send(&send("+5511987654321")).await?;
    assert_eq!(scene.waha.wait_sent(1, SOON).await?[0].chat_id, "551187654321@c.us");
    let nobody = scene.send(&send("+5511900000000")).await?;
    scene.until(&nobody, "it fails", |message| message["status"] == "FAILED").await?;
    scene.send(&send("+4915112345678")).await?;
    scene.waha.wait_sent(2, SOON).await?;
    assert_eq!(scene.waha.checks(), ["5511987654321", "5511900000000"]);
    Ok(())
}

#[tokio::test]
async fn a_session_that_does_not_work_is_refused_or_waited_for() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.waha.set_status(PRINTED, "SCAN_QR_CODE");
    wait_state(&scene.stack, &scene.session, "SCAN_QR_CODE").await?;
    let body = json!({"sessionId": scene.session, "to": "+4915112345678", "body": "wait"});
    let refused = scene.api().post("/messages/send", &body).await?;
    assert_eq!((refused.status, &refused.body["code"]), (StatusCode::BAD_REQUEST, &json!("session_not_working")));
    let mut waiting = body;
    waiting["queue_when_offline"] = json!(true);
    let id = scene.send(&waiting).await?;
    assert_eq!(scene.shown(&id).await?["status"], "QUEUED");
    // An expired message ends while the session is still away.
    waiting["expires_at"] = json!((domain::clock::now() + Duration::from_secs(2)).to_rfc3339());
    let short = scene.send(&waiting).await?;
    scene.api().wait_status(&short, "expired").await?;
    assert_eq!(kinds(&scene.api().timeline(&short).await?).last(), Some(&"expired"));
    assert_eq!(scene.shown(&id).await?["status"], "QUEUED");
    scene.waha.scan(PRINTED);
    scene.until(&id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    assert_eq!(scene.waha.sent().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_session_that_stopped_unnoticed_spends_no_attempt_and_goes_on_when_it_works() -> Result<()> {
    let scene = Scene::start(&[("RETRY_MAX_ATTEMPTS", "1")]).await?;
    scene.waha.set_status_silently(PRINTED, "STARTING");
    // It may be noticed between the two.
    let text = |body: &'static str| json!({"sessionId": scene.session, "to": "+4915112345678", "body": body, "queue_when_offline": true});
    let (one, two) = (scene.send(&text("one")).await?, scene.send(&text("two")).await?);
    wait_state(&scene.stack, &scene.session, "STARTING").await?;
    eventually("both wait in the line", SOON, || async {
        let waiting = scene.stack.count("SELECT count(*) FROM parked").await.ok()?;
        (waiting == 2).then_some(())
    })
    .await?;
    scene.waha.set_status(PRINTED, "WORKING");
    for id in [&one, &two] {
        scene.until(id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    }
    assert_eq!(scene.waha.sent().len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_the_engine_cannot_do_fails_and_a_bad_key_is_a_dead_letter() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.waha.next_sends([SendFault::NotImplemented, SendFault::Status(401, None)]);
    let one = scene.text("one").await?;
    scene.until(&one, "it fails", |message| message["status"] == "FAILED").await?;
    assert_eq!(attempts(&scene.api().timeline(&one).await?), ["rejected"]);
    let two = scene.text("two").await?;
    scene.api().wait_status(&two, "dead").await?;
    assert_eq!(attempts(&scene.api().timeline(&two).await?), ["misconfigured"]);
    Ok(())
}

#[tokio::test]
async fn a_429_keeps_the_whole_line_still_as_long_as_it_says() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    scene.waha.next_sends([SendFault::Status(429, Some(3))]);
    let asked = std::time::Instant::now();
    let one = scene.text("one").await?;
    eventually("the line stands still", SOON, || async {
        // The row stays after the pause, so a late look finds it too.
        let blocked = scene.stack.count("SELECT count(*) FROM lines WHERE isfinite(blocked_until)").await.ok()?;
        (blocked == 1).then_some(())
    })
    .await?;
    let two = scene.text("two").await?;
    for id in [&one, &two] {
        scene.until(id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    }
    let first = scene.waha.sent().iter().map(|sent| sent.at).min().context("something was sent")?;
    assert!(first.duration_since(asked) >= Duration::from_secs(3), "{:?}", first.duration_since(asked));
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_the_echo_without_a_second_message() -> Result<()> {
    let scene = Scene::start(&[("PROVIDER_TIMEOUT_MS", "1000"), ("AMBIGUOUS_HOLD_MS", "600000")]).await?;
    scene.waha.next_sends([SendFault::HangAfterSending, SendFault::CloseAfterSending]);
    let (one, two) = (scene.text("one").await?, scene.text("two").await?);
    for id in [&one, &two] {
        scene
            .until(id, "it is settled", |message| message["status"] == "DELIVERED" || message["status"] == "SENT")
            .await?;
        // The echo overtakes the end of the call, which is in the log once the call was given up.
        let api = scene.api();
        let timeline = eventually("the call is in the log", SOON, || async {
            api.timeline(id).await.ok().filter(|timeline| !attempts(timeline).is_empty())
        })
        .await?;
        assert_eq!(attempts(&timeline), ["unknown"], "{timeline}");
        assert!(kinds(&timeline).contains(&"ambiguous"), "{timeline}");
    }
    assert_eq!(scene.waha.sent().len(), 2);
    eventually("nothing is held any more", SOON, || async {
        (scene.stack.count("SELECT count(*) FROM holds").await.ok()? == 0).then_some(())
    })
    .await
}

#[tokio::test]
async fn an_echo_that_hides_the_number_settles_the_one_call_of_its_words_and_no_other() -> Result<()> {
    let scene = Scene::start(&[("PROVIDER_TIMEOUT_MS", "1000"), ("AMBIGUOUS_HOLD_MS", "600000")]).await?;
    scene.waha.hides_numbers(true);
    scene.waha.next_sends([SendFault::HangAfterSending]);
    let one = scene.text("only one says this").await?;
    scene
        .until(&one, "it is settled", |message| message["status"] == "DELIVERED" || message["status"] == "SENT")
        .await?;
    // Two calls with the same text: an echo could belong to either.
    scene.waha.echoes(false, &[]);
    scene.waha.next_sends([SendFault::HangAfterSending, SendFault::HangAfterSending]);
    let both = [scene.text("both say this").await?, scene.text("both say this").await?];
    // Held by an unknown end: one that only came too late to its slot is being retried as well.
    let held = "SELECT count(*) FROM deliveries d WHERE state = 'retrying'
        AND EXISTS (SELECT FROM delivery_events e WHERE e.delivery_id = d.id AND e.kind = 'ambiguous')";
    eventually("both are held", SOON, || async { (scene.stack.count(held).await.ok()? == 2).then_some(()) }).await?;
    let echo = json!({"id": "true_900000@lid_X", "timestamp": 1_800_000_000, "from": "4900000000@c.us", "fromMe": true, "source": "api",
        "to": "900000@lid", "body": "both say this", "hasMedia": false, "ack": 0, "ackName": "PENDING"});
    scene.waha.inject(PRINTED, "message.any", echo);
    // The first one's, and this.
    let seen = "SELECT count(*) FROM waha_events WHERE event = 'message.any' AND status <> 'pending'";
    eventually("the echo was looked at", SOON, || async { (scene.stack.count(seen).await.ok()? >= 2).then_some(()) })
        .await?;
    assert_eq!(scene.stack.count(held).await?, 2);
    for id in &both {
        assert!(kinds(&scene.api().timeline(id).await?).contains(&"ambiguous"));
    }
    assert_eq!(scene.waha.sent().len(), 3);
    Ok(())
}

#[tokio::test]
async fn without_an_echo_it_is_sent_again_after_the_window_and_called_a_possible_duplicate() -> Result<()> {
    let scene = Scene::start(&[("AMBIGUOUS_HOLD_MS", "2500")]).await?;
    scene.waha.next_sends([SendFault::CloseWithoutSending]);
    let asked = std::time::Instant::now();
    let id = scene.text("again").await?;
    scene.until(&id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    let sent = scene.waha.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].at.duration_since(asked) >= Duration::from_millis(2500));
    // The echo overtakes the end of the call.
    let timeline = eventually("both calls are in the log", SOON, || async {
        scene.api().timeline(&id).await.ok().filter(|timeline| attempts(timeline).len() >= 2)
    })
    .await?;
    assert_eq!(attempts(&timeline), ["unknown", "sent"], "{timeline}");
    assert!(timeline["attempts"][1]["detail"].as_str().unwrap_or_default().contains("duplicate"), "{timeline}");
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_in_mid_send_does_not_send_twice() -> Result<()> {
    let settings = [SHORT_LEASES, &[("AMBIGUOUS_HOLD_MS", "600000")]].concat();
    let mut scene = Scene::apart(1, &settings, 1000).await?;
    scene.waha.next_sends([SendFault::Slow(Duration::from_secs(20))]);
    let id = scene.text("once").await?;
    scene.waha.wait_sent(1, SOON).await?;
    scene.stack.kill9("worker0")?;
    scene.stack.launch("worker1", Role::Worker, &[]).await?;
    scene
        .until(&id, "it is settled", |message| message["status"] == "DELIVERED" || message["status"] == "SENT")
        .await?;
    scene.text("another").await?;
    let sent = scene.waha.wait_sent(2, SOON).await?;
    let texts: Vec<_> = sent.iter().map(|sent| sent.text.as_str()).collect();
    assert_eq!(texts, ["once", "another"]);
    Ok(())
}

#[tokio::test]
async fn an_open_breaker_keeps_the_line_still_and_one_probe_goes_out() -> Result<()> {
    let settings = [("BREAKER_FAILURES", "3"), ("BREAKER_OPEN_MS", "2500"), ("RETRY_MAX_ATTEMPTS", "1000")];
    let scene = Scene::start(&settings).await?;
    scene.waha.all_sends(Some(SendFault::Status(500, None)));
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(scene.text(&format!("message {n}")).await?);
    }
    let state = || async {
        let channels = scene.stack.admin().get("/api/admin/notifications/channels").await.ok()?.ok().ok()?;
        let whatsapp =
            channels["channels"].as_array()?.iter().find(|channel| channel["channel"] == "whatsapp")?.clone();
        Some(whatsapp["providers"][0]["state"].clone())
    };
    eventually("the breaker is open", SOON, || async { state().await.filter(|state| state == "open") }).await?;
    // It opens again after each probe: any of these moments will do.
    let opened = "SELECT coalesce((extract(epoch FROM min(since)) * 1000)::int8, 0) FROM breakers WHERE state = 'open'";
    let opened = eventually("it is open at a moment", SOON, || async {
        scene.stack.count(opened).await.ok().filter(|at| *at > 0)
    })
    .await?;
    // When WAHA hears of a call is the machine's affair; the worker wrote down when it made it, and makes none later than a
    // second after its claim: what was claimed before the breaker opened is over by then.
    let probes = format!(
        "SELECT at FROM (SELECT (extract(epoch FROM at) * 1000)::int8 - duration_ms AS at FROM delivery_events
         WHERE provider = 'waha') calls WHERE at > {opened} + 1200 ORDER BY at LIMIT 2"
    );
    let sql = scene.stack.sql().await?;
    let probes = eventually("two probes went out", SOON, || async {
        let rows = sql.query(&probes, &[]).await.ok()?;
        Some(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>()).filter(|probes| probes.len() == 2)
    })
    .await?;
    scene.waha.all_sends(None);
    let (first, second) = (probes[0] - opened, probes[1] - probes[0]);
    assert!(first >= 2400, "an open breaker lets nothing through, but {first} ms after it opened");
    assert!(second >= 2400, "one probe and no more, but another {second} ms after it");
    for id in &ids {
        scene.until(id, "it arrives", |message| message["status"] == "DELIVERED").await?;
    }
    assert_eq!(scene.waha.sent().len(), 8);
    eventually("the breaker is closed", SOON, || async { state().await.filter(|state| state == "closed") }).await?;
    Ok(())
}

#[tokio::test]
async fn over_the_pace_a_message_waits_or_is_refused_as_asked() -> Result<()> {
    let scene = Scene::with(&[], 2).await?;
    let body = |on_limit: &str, n: u8| json!({"sessionId": scene.session, "to": "+4915112345678", "body": format!("{n}"), "on_limit": on_limit});
    for n in 0..2 {
        scene.send(&body("reject", n)).await?;
    }
    let taken = "SELECT cardinality(slots)::int8 FROM lines WHERE kind = 'session'";
    eventually("both slots are taken", SOON, || async { (scene.stack.count(taken).await.ok()? == 2).then_some(()) })
        .await?;
    // Until the first one is over, in whole seconds.
    let left =
        "SELECT floor(extract(epoch FROM slots[1] + slot_window() - now()))::int8 FROM lines WHERE kind = 'session'";
    let before = scene.stack.count(left).await?;
    let refused = scene.api().post("/messages/send", &body("reject", 3)).await?;
    let after = scene.stack.count(left).await?;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("session_limit_reached"))
    );
    let wait: i64 = refused.headers["retry-after"].to_str()?.parse()?;
    assert!((after..=before + 1).contains(&wait) && wait <= 62, "{wait}: {after} to {before}");
    let id = scene.send(&body("queue", 4)).await?;
    assert_eq!(scene.shown(&id).await?["status"], "QUEUED");
    Ok(())
}

#[tokio::test]
async fn a_repeated_key_gives_the_first_answer_even_when_the_session_has_gone_away() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let body = json!({"sessionId": scene.session, "to": "+4915112345678", "body": "once", "idempotency_key": "k1"});
    let first = scene.api().post("/messages/send", &body).await?;
    scene.waha.wait_sent(1, SOON).await?;
    // A state that only a person can end; a session that is merely stopped is started again.
    scene.waha.set_status(PRINTED, "SCAN_QR_CODE");
    wait_state(&scene.stack, &scene.session, "SCAN_QR_CODE").await?;
    let again = scene.api().post("/messages/send", &body).await?;
    assert_eq!((again.status, &again.body), (StatusCode::ACCEPTED, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    Ok(())
}

#[tokio::test]
async fn a_publish_under_a_used_key_is_no_dead_letter_although_its_session_is_gone() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let body = json!({"channel": "whatsapp", "recipient": "+4915112345678", "message": "once", "session_id": PRINTED});
    let first = scene.api().send_keyed("k1", &body).await?;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{}", first.body);
    scene.waha.wait_sent(1, SOON).await?;
    eventually("the session is removed", SOON, || async {
        let path = format!("/sessions/{}", scene.session);
        let answer = scene.stack.admin().request(Method::DELETE, &path, &[], None).await.ok()?;
        (answer.status == StatusCode::NO_CONTENT).then_some(())
    })
    .await?;
    let backend = Backend::connect(&scene.stack.amqp_url).await?;
    let bytes = body.to_string().into_bytes();
    backend.publish("acme.whatsapp.normal", Backend::properties("k1")?, &bytes).await?;
    backend.publish("acme.whatsapp.normal", Backend::properties("k2")?, &bytes).await?;
    let letters = eventually("the other key is refused", SOON, || async {
        let found = scene.stack.admin().get("/api/admin/dead-letters").await.ok()?.body;
        found["dead_letters"].as_array().filter(|letters| !letters.is_empty()).cloned()
    })
    .await?;
    let ids: Vec<_> = letters.iter().map(|letter| letter["amqp_id"].clone()).collect();
    assert_eq!(ids, ["k2"]);
    Ok(())
}

#[tokio::test]
async fn a_list_shows_both_directions_and_its_filters_hold() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let (api, mut ids) = (scene.api(), Vec::new());
    for n in 0..3 {
        let id = scene.text(&format!("outgoing {n}")).await?;
        scene.until(&id, "it arrives", |message| message["status"] == "DELIVERED").await?;
        ids.push(id);
    }
    scene.waha.receive(PRINTED, "4915199999999@c.us", "incoming word");
    let list = |query: &'static str| {
        let api = &api;
        async move {
            let list = api.get(&format!("/messages{query}")).await?.ok()?;
            anyhow::Ok(list["messages"].as_array().cloned().unwrap_or_default())
        }
    };
    eventually("the person's message is there", SOON, || async {
        list("?direction=inbound").await.ok().filter(|messages| messages.len() == 1)
    })
    .await?;
    assert_eq!(list("").await?.len(), 4);
    assert_eq!(list("?status=received").await?.len(), 1);
    assert_eq!(list("?status=DELIVERED&direction=outbound").await?.len(), 3);
    assert_eq!(list("?status=FAILED").await?.len(), 0);
    assert_eq!(list("?search=OUTGOING%201").await?[0]["id"], json!(ids[1]));
    assert_eq!(list("?search=151999").await?[0]["direction"], "inbound");
    assert_eq!(list("?limit=2&page=2").await?.len(), 2);
    assert!(list("?toDate=2024-01-01").await.is_err());
    assert_eq!(list("?toDate=2024-01-01T00:00:00Z").await?.len(), 0);
    let first = api.get("/messages?limit=3").await?.ok()?;
    let cursor = first["next_cursor"].as_str().context("there is another page")?;
    let second = api.get(&format!("/messages?limit=3&cursor={cursor}")).await?.ok()?;
    assert_eq!(second["messages"].as_array().map(Vec::len), Some(1));
    assert_eq!(second["messages"][0]["id"], json!(ids[0]));
    Ok(())
}

/// When the workers made their calls, by number: in milliseconds, as they wrote it down. What a killed one made is missing.
async fn calls(stack: &Stack) -> Result<HashMap<String, Vec<i64>>> {
    let query = "SELECT d.recipient, (extract(epoch FROM e.at) * 1000)::int8 - e.duration_ms
        FROM delivery_events e JOIN deliveries d ON d.id = e.delivery_id
        WHERE e.provider = 'waha' AND e.code IS DISTINCT FROM 'worker_lost'";
    let mut calls: HashMap<String, Vec<i64>> = HashMap::new();
    for row in stack.sql().await?.query(query, &[]).await? {
        calls.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(calls)
}

/// Invariant R on the moments of the sends. A call is made within a second of its slot, but on a machine that stands still WAHA
/// may hear of it seconds later, and then less than a minute before the next ones: what counts is when the worker made it.
async fn hold_pace(stack: &Stack, sent: &[Sent], rate: usize) -> Result<()> {
    let number = |sent: &Sent| format!("+{}", sent.chat_id.trim_end_matches("@c.us"));
    // Of calls whose worker was killed half-way only WAHA knows; they are not waited for any longer.
    let _ = eventually("every call is in the log", Duration::from_secs(10), || async {
        let calls = calls(stack).await.ok()?;
        sent.iter().all(|sent| calls.contains_key(&number(sent))).then_some(())
    })
    .await;
    let calls = calls(stack).await?;
    let mut at = Vec::new();
    for sent in sent {
        let heard = i64::try_from(sent.at_clock.duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
        let made = calls.get(&number(sent)).into_iter().flatten().copied().filter(|made| *made <= heard).max();
        at.push(made.unwrap_or(heard));
    }
    at.sort_unstable();
    for window in at.windows(rate + 1) {
        let took = window[rate] - window[0];
        assert!(took >= 60_000, "{} messages within {took} ms", rate + 1);
    }
    Ok(())
}

/// Writes down what leaves the lines, release by release: when it began, and what it took.
const NOTE_RELEASES: &str = "
CREATE TABLE noted_releases (seq bigserial PRIMARY KEY, release text NOT NULL, began timestamptz NOT NULL, delivery_id uuid NOT NULL);
CREATE FUNCTION note_release() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO noted_releases (release, began, delivery_id) SELECT pg_current_xact_id()::text, now(), delivery_id FROM rows;
    RETURN NULL;
END
$$;
CREATE TRIGGER parked_noted AFTER DELETE ON parked REFERENCING OLD TABLE AS rows FOR EACH STATEMENT EXECUTE FUNCTION note_release()";

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("+4915112{n:06}")).collect()
}

#[tokio::test]
async fn invariant_r_no_minute_of_a_session_holds_more_than_its_limit_while_workers_come_and_go() -> Result<()> {
    const RATE: usize = 20;
    let mut scene = Scene::apart(1, &[], u32::try_from(RATE)?).await?;
    let sql = scene.stack.sql().await?;
    sql.batch_execute(NOTE_RELEASES).await?;
    let body = json!({"sessionId": scene.session, "recipients": numbers(10_000), "body": "paced"});
    scene.api().post("/messages/bulk", &body).await?.ok()?;
    scene.waha.wait_sent(RATE / 2, LATE).await?;
    for n in 1..8 {
        scene.stack.launch(&format!("worker{n}"), Role::Worker, &[]).await?;
    }
    for n in 0..6 {
        scene.stack.kill9(&format!("worker{n}"))?;
    }
    let urgent = json!({"sessionId": scene.session, "to": "+4915199999999", "body": "urgent", "priority": "high"});
    let urgent = scene.send(&urgent).await?;
    let accepted: String = sql.query_one("SELECT clock_timestamp()::text", &[]).await?.get(0);
    // A slot whose worker was killed is lost: at least the rest comes after the first minute.
    let sent = eventually("what is urgent is sent, and more than a minute's worth", LATE, || async {
        let sent = scene.waha.sent();
        (sent.len() >= RATE + 6 && sent.iter().any(|sent| sent.text == "urgent")).then_some(sent)
    })
    .await
    .with_context(|| format!("{} were sent", scene.waha.sent().len()))?;
    hold_pace(&scene.stack, &sent, RATE).await?;
    // All that one release takes has a slot and goes out side by side, so its order at WAHA is unknown, and what was
    // released before may be with a worker. But whatever release begins once the urgent one is accepted takes it first: no
    // such release comes before its own.
    let before = format!(
        "WITH own AS (
             SELECT seq, release FROM noted_releases WHERE delivery_id IN (SELECT id FROM deliveries WHERE message_id = '{urgent}')
             ORDER BY seq LIMIT 1)
         SELECT CASE WHEN EXISTS (SELECT FROM own) THEN (
             SELECT count(*) FROM noted_releases n, own
             WHERE n.seq < own.seq AND n.release <> own.release AND n.began >= '{accepted}') ELSE -1 END"
    );
    assert_eq!(scene.stack.count(&before).await?, 0, "released after the urgent one was accepted, and before it");
    let parked = scene.stack.count("SELECT count(*) FROM parked").await?;
    assert!(parked > 9000, "it overtook thousands, but only {parked} still wait");
    scene.working().await
}

#[tokio::test]
async fn invariant_r_and_d_workers_that_were_stopped_for_longer_than_their_leases_do_not_catch_up() -> Result<()> {
    const RATE: usize = 20;
    let short = [("PROVIDER_TIMEOUT_MS", "3000"), ("LEASE_MARGIN_MS", "2000")];
    let scene = &mut Scene::apart(2, &short, u32::try_from(RATE)?).await?;
    let body = json!({"sessionId": scene.session, "recipients": numbers(100), "body": "paced"});
    scene.api().post("/messages/bulk", &body).await?.ok()?;
    scene.waha.wait_sent(3, SOON).await?;
    for worker in ["worker0", "worker1"] {
        scene.stack.signal(worker, Signal::SIGSTOP)?;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for worker in ["worker0", "worker1"] {
        scene.stack.signal(worker, Signal::SIGCONT)?;
    }
    // Slots that were taken at that moment may be lost: at least those of the second minute come.
    let sent = scene.waha.wait_sent(RATE + 1, LATE).await?;
    hold_pace(&scene.stack, &sent, RATE).await?;
    let mut chats: Vec<_> = sent.iter().map(|sent| &sent.chat_id).collect();
    chats.sort();
    chats.dedup();
    assert_eq!(chats.len(), sent.len(), "each message goes out once");
    scene.working().await
}

#[tokio::test]
async fn a_session_with_unfinished_messages_stays_and_what_lost_its_session_ends_as_a_dead_letter() -> Result<()> {
    let scene = Scene::start(&[]).await?;
    let sql = scene.stack.sql().await?;
    let later = "SELECT to_char(now() + interval '1 hour', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let later: String = sql.query_one(later, &[]).await?.get(0);
    let body = json!({"sessionId": scene.session, "to": "+4915112345678", "body": "later", "scheduled_at": later});
    let id = scene.send(&body).await?;
    let path = format!("/sessions/{}", scene.session);
    let refused = scene.stack.admin().request(reqwest::Method::DELETE, &path, &[], None).await?;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.body);

    sql.batch_execute("DELETE FROM lines; DELETE FROM wa_sessions; UPDATE due SET due_at = now()").await?;
    scene.api().wait_status(&id, "dead").await?;
    assert_eq!(scene.stack.count("SELECT count(*) FROM parked").await?, 0);

    let nowhere =
        "INSERT INTO parked (delivery_id, line, run, rank) VALUES (gen_random_uuid(), gen_random_uuid(), 0, 1)";
    let error = sql.batch_execute(nowhere).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("40001"), "nothing can be parked in a line that is gone");
    Ok(())
}
