//! WhatsApp sessions and the events of WAHA: signatures, duplicates, acknowledgements, restarts, messages from people.

use std::time::Duration;

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Role, Stack, TestServers,
    api::{Answer, SOON},
    eventually,
    patient::PATIENT,
    waha::Waha,
};

const API_KEY: &str = "canary-api-key-4711";
const SECRET: &str = "canary-webhook-secret-0815";
/// How long may pass until what WAHA forgot is back.
const BACK: Duration = Duration::from_secs(120);

fn hex(algorithm: hmac::Algorithm, key: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(algorithm, key.as_bytes()), body);
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha512(key: &str, body: &[u8]) -> String {
    hex(hmac::HMAC_SHA512, key, body)
}

fn sha256(key: &str, body: &[u8]) -> String {
    format!("sha256={}", hex(hmac::HMAC_SHA256, key, body))
}

async fn post(api: &Api, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    api.request(Method::POST, "/webhooks/waha", headers, Some(body.to_vec())).await
}

/// Sends an event as WAHA does.
async fn tell(api: &Api, key: &str, event: &Value) -> Result<Answer> {
    tell_at(api, "/webhooks/waha", key, event).await
}

async fn tell_at(api: &Api, path: &str, key: &str, event: &Value) -> Result<Answer> {
    let body = event.to_string();
    let mac = sha512(key, body.as_bytes());
    let headers = [("x-webhook-hmac", mac.as_str()), ("x-webhook-hmac-algorithm", "sha512")];
    api.request(Method::POST, path, &headers, Some(body.into_bytes())).await
}

fn session_body(name: &str, base_url: &str) -> Value {
    json!({"name": name, "base_url": base_url, "api_key": API_KEY, "webhook_secret": SECRET})
}

/// Makes a session; its id.
async fn session(stack: &Stack, name: &str, base_url: &str) -> Result<String> {
    let made = stack.admin().post("/sessions", &session_body(name, base_url)).await?;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    made.body["id"].as_str().map(str::to_owned).context("a session has an id")
}

async fn status(stack: &Stack, name: &str, wanted: &str, limit: Duration) -> Result<Value> {
    eventually(&format!("session {name} is {wanted}"), limit, || async {
        let shown = stack.producer().get(&format!("/sessions/{name}")).await.ok()?.body;
        (shown["status"] == wanted).then_some(shown)
    })
    .await
}

/// A stand-in, and a session there that works.
async fn working(stack: &Stack, name: &str) -> Result<(Waha, String)> {
    let waha = Waha::start(API_KEY).await?;
    let id = session(stack, name, &waha.url()).await?;
    let started = stack.admin().post(&format!("/sessions/{name}/start"), &json!({})).await?;
    assert_eq!(started.status.as_u16(), 200, "{}", started.body);
    status(stack, name, "WORKING", SOON).await?;
    Ok((waha, id))
}

async fn until_count(stack: &Stack, query: &str, count: i64, limit: Duration) -> Result<()> {
    let sql = stack.sql().await?;
    eventually(&format!("{query} = {count}"), limit, || async {
        let found: i64 = sql.query_one(query, &[]).await.ok()?.get(0);
        (found == count).then_some(())
    })
    .await
}

async fn configuration(stack: &Stack, sink: &HttpSink) -> Result<(String, String)> {
    let body = json!({"name": "CRM", "url": sink.url("/crm"), "events": ["message.received"],
        "headers": {"X-Source": "posthaste", "X-Api-Key": "canary-header"}});
    let made = stack.admin().post("/api/webhooks/configurations", &body).await?;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    let text = |name: &str| made.body[name].as_str().map(str::to_owned).context("a configuration has it");
    Ok((text("id")?, text("secret")?))
}

#[tokio::test]
async fn the_printed_webhook_is_kept_once_and_handed_on_signed() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let id = session(&stack, "main-session", "http://127.0.0.1:9").await?;
    let (_, secret) = configuration(&stack, &sink).await?;
    let body = json!({"event": "message.text", "session": "main-session", "payload": {"id": "waha_msg_123456", "from": "+1234567890",
        "to": "+0987654321", "body": "Hello, this is a test message", "timestamp": 1_642_248_600_000_i64, "type": "text"}})
    .to_string();
    let signature = sha256(SECRET, body.as_bytes());
    let public = stack.api("");
    for duplicate in [false, true, true] {
        let answer = post(&public, &[("X-Waha-Signature", &signature)], body.as_bytes()).await?;
        assert_eq!((answer.status.as_u16(), answer.body), (200, json!({"received": true, "duplicate": duplicate})));
    }
    let request = sink.wait_for(1, SOON).await?.first().context("it is handed on")?.clone();
    let told = request.json()?;
    assert_eq!(told["type"], "message.received");
    let data = &told["data"];
    assert_eq!(
        (&data["from"], &data["to"], &data["type"]),
        (&json!("+1234567890"), &json!("+0987654321"), &json!("text"))
    );
    assert_eq!((&data["body"], &data["session_id"]), (&json!("Hello, this is a test message"), &json!(id)));
    assert_eq!(data["timestamp"], "2022-01-15T12:10:00.000Z");
    assert_eq!((request.header("x-source"), request.header("x-api-key")), (Some("posthaste"), Some("canary-header")));
    // Standard Webhooks, with the configuration's own secret.
    let key = STANDARD.decode(secret.trim_start_matches("whsec_"))?;
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    let signed = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), request.text());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes());
    assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(tag.as_ref())));
    assert_eq!(stack.count("SELECT count(*) FROM wa_inbound").await?, 1);
    // It is marked once all that it leads to is written.
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'done'", 1, SOON).await
}

/// The request: its headers and the body.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, String);

/// A session of the usual kind, one for callers from elsewhere, one for callers from here, and one that signs as the seed.
async fn make_sessions(stack: &Stack) -> Result<()> {
    session(stack, "s", "http://127.0.0.1:9").await?;
    let elsewhere = json!({"name": "guarded", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": SECRET, "allow_ips": ["10.9.8.7"]});
    stack.admin().post("/sessions", &elsewhere).await?.ok()?;
    let near = json!({"name": "near", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": SECRET, "allow_ips": ["127.0.0.1"]});
    stack.admin().post("/sessions", &near).await?.ok()?;
    let seed = json!({"name": "seed", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": SECRET, "signature": "seed"});
    stack.admin().post("/sessions", &seed).await?.ok()?;
    Ok(())
}

/// Bodies that cannot be read or are too long.
async fn check_unreadable(public: &Api) -> Result<()> {
    for (what, bytes, status) in [
        ("no JSON", b"{\"event\":".to_vec(), 400),
        ("no UTF-8", b"{\"event\":\"message\",\"session\":\"s\",\"payload\":{\"body\":\"\xff\"}}".to_vec(), 400),
        ("no session", b"{\"event\":\"message\"}".to_vec(), 400),
        ("10 MB", vec![b' '; 10_000_000], 413),
        ("just too long", vec![b' '; 1024 * 1024 + 1], 413),
    ] {
        let mac = sha512(SECRET, &bytes);
        let answer = post(public, &[("x-webhook-hmac", &mac), ("x-webhook-hmac-algorithm", "sha512")], &bytes).await?;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.body);
    }
    Ok(())
}

#[tokio::test]
async fn whatever_does_not_verify_gets_one_answer_and_leaves_nothing() -> Result<()> {
    let stack = Stack::patient(&[("TRUSTED_PROXIES", "127.0.0.0/8")]).await?;
    make_sessions(&stack).await?;
    let body = |session: &str| {
        json!({"event": "message", "session": session, "payload": {"id": "1", "from": "49151@c.us"}}).to_string()
    };
    let good = body("s");
    let (mac, signature) = (sha512(SECRET, good.as_bytes()), sha256(SECRET, good.as_bytes()));
    let (other_mac, other_signature) = (sha512("other", good.as_bytes()), sha256("other", good.as_bytes()));
    let doubled = format!("{mac}{mac}");
    let (hmac, algorithm) = ("x-webhook-hmac", ("x-webhook-hmac-algorithm", "sha512"));
    let public = stack.api("");
    let cases: Vec<Case<'_>> = vec![
        ("missing", vec![], good.clone()),
        ("no algorithm", vec![(hmac, &mac)], good.clone()),
        ("unknown algorithm", vec![(hmac, &mac), ("x-webhook-hmac-algorithm", "md5")], good.clone()),
        ("another algorithm", vec![(hmac, &mac), ("x-webhook-hmac-algorithm", "sha256")], good.clone()),
        ("truncated", vec![(hmac, &mac[..64]), algorithm], good.clone()),
        ("doubled value", vec![(hmac, &doubled), algorithm], good.clone()),
        ("doubled header", vec![(hmac, &mac), (hmac, &mac), algorithm], good.clone()),
        ("wrong", vec![(hmac, &other_mac), algorithm], good.clone()),
        ("wrong printed form", vec![("x-waha-signature", &other_signature)], good.clone()),
        ("one of both is wrong", vec![(hmac, &mac), algorithm, ("x-waha-signature", &other_signature)], good.clone()),
        ("not hexadecimal", vec![("x-waha-signature", "sha256=zz")], good.clone()),
        ("changed body", vec![(hmac, &mac), algorithm], good.replace("49151", "49152")),
        ("unknown session", vec![(hmac, &mac), algorithm], body("nobody")),
        ("session with a NUL", vec![(hmac, &mac), algorithm], body("s\u{0}")),
    ];
    let mut said = Vec::new();
    for (what, headers, body) in &cases {
        let answer = post(&public, headers, body.as_bytes()).await?;
        assert_eq!(answer.status.as_u16(), 401, "{what}: {}", answer.body);
        said.push(answer.body);
    }
    let guarded = tell(&public, SECRET, &serde_json::from_str(&body("guarded"))?).await?;
    let seed = tell(&public, SECRET, &serde_json::from_str(&body("seed"))?).await?;
    // With both headers a caller does not pass as the proxy.
    let near = body("near");
    let near_signature = sha256(SECRET, near.as_bytes());
    let by_proxy = [
        ("x-waha-signature", near_signature.as_str()),
        ("X-Forwarded-For", "192.0.2.1"),
        ("Forwarded", "for=192.0.2.1"),
    ];
    let both_headers = post(&public, &by_proxy, near.as_bytes()).await?;
    said.extend([guarded.body, seed.body, both_headers.body]);
    assert!(said.iter().all(|body| *body == said[0] && body["code"] == "unauthenticated"), "no hint: {said:?}");
    check_unreadable(&public).await?;
    assert_eq!(stack.count("SELECT count(*) FROM waha_events").await?, 0);
    // And what is genuine is taken, in every form.
    let both = [(hmac, mac.as_str()), algorithm, ("x-waha-signature", signature.as_str())];
    assert_eq!(post(&public, &both, good.as_bytes()).await?.body, json!({"received": true, "duplicate": false}));
    assert_eq!(post(&public, &both[2..], good.as_bytes()).await?.body, json!({"received": true, "duplicate": true}));
    assert_eq!(post(&public, &by_proxy[..1], near.as_bytes()).await?.body["received"], true, "from the proxy itself");
    Ok(())
}

#[tokio::test]
async fn the_documented_vector_of_waha_verifies() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let body =
        json!({"name": "default", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": "my-secret-key"});
    stack.admin().post("/sessions", &body).await?.ok()?;
    let body = br#"{"event":"message","session":"default","engine":"WEBJS"}"#;
    let mac = "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1631777076153fa89";
    let headers = [("x-webhook-hmac", mac), ("x-webhook-hmac-algorithm", "sha512")];
    assert_eq!(post(&stack.api(""), &headers, body).await?.status.as_u16(), 200);
    let changed = [("x-webhook-hmac", &*mac.replacen('2', "3", 1)), ("x-webhook-hmac-algorithm", "sha512")];
    assert_eq!(post(&stack.api(""), &changed, body).await?.status.as_u16(), 401);
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'ignored'", 1, SOON).await
}

#[tokio::test]
async fn two_secrets_verify_while_one_replaces_the_other() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    session(&stack, "s", "http://127.0.0.1:9").await?;
    let public = stack.api("");
    let event = |id: &str| json!({"event": "message", "session": "s", "payload": {"id": id, "from": "49151@c.us"}});
    assert_eq!(tell(&public, SECRET, &event("1")).await?.status.as_u16(), 200);
    stack
        .admin()
        .request(Method::PUT, "/sessions/s", &[], Some(br#"{"webhook_secret":"new-secret"}"#.to_vec()))
        .await?
        .ok()?;
    assert_eq!(tell(&public, "new-secret", &event("2")).await?.status.as_u16(), 200);
    assert_eq!(tell(&public, SECRET, &event("3")).await?.status.as_u16(), 200, "the former one holds 24 hours more");
    assert_eq!(tell(&public, "another", &event("4")).await?.status.as_u16(), 401);
    let left: i64 = stack.count("SELECT extract(epoch FROM previous_until - now())::bigint FROM wa_sessions").await?;
    assert!((86_000..=86_400).contains(&left), "{left} s");
    stack.sql().await?.execute("UPDATE wa_sessions SET previous_until = now()", &[]).await?;
    eventually("the former secret no longer verifies", SOON, || async {
        (tell(&public, SECRET, &event("5")).await.ok()?.status.as_u16() == 401).then_some(())
    })
    .await?;
    assert_eq!(tell(&public, "new-secret", &event("6")).await?.status.as_u16(), 200);
    Ok(())
}

#[tokio::test]
async fn the_signature_decides_between_tenants_and_their_things_stay_theirs() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    stack.cli(&["tenant", "create", "globex"])?;
    let other = stack.api(&stack.create_key("globex", "admin")?);
    let id = session(&stack, "shared-name", "http://127.0.0.1:9").await?;
    let theirs = json!({"name": "shared-name", "base_url": "http://127.0.0.1:9", "api_key": "k", "webhook_secret": "their-secret"});
    let theirs = other.post("/sessions", &theirs).await?.ok()?;
    let event =
        |id: &str| json!({"event": "message", "session": "shared-name", "payload": {"id": id, "from": "49151@c.us"}});
    assert_eq!(tell(&stack.api(""), SECRET, &event("1")).await?.status.as_u16(), 200);
    assert_eq!(tell(&stack.api(""), "their-secret", &event("1")).await?.body["duplicate"], false);
    assert_eq!(stack.count("SELECT count(*) FROM wa_sessions WHERE is_operators").await?, 1, "the first tenant's");
    let sql = stack.sql().await?;
    eventually("each has one message", SOON, || async {
        let rows =
            sql.query("SELECT tenant_id, session_id::text FROM wa_inbound ORDER BY tenant_id", &[]).await.ok()?;
        let sessions: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
        (sessions == [id.clone(), theirs["id"].as_str()?.to_owned()]).then_some(())
    })
    .await?;
    for (method, path) in [
        (Method::GET, ""),
        (Method::PUT, ""),
        (Method::DELETE, ""),
        (Method::POST, "/start"),
        (Method::POST, "/stop"),
        (Method::POST, "/restart"),
        (Method::POST, "/logout"),
        (Method::GET, "/qr"),
    ] {
        let path = format!("/sessions/{id}{path}");
        let answer = other.request(method.clone(), &path, &[], (method == Method::PUT).then(|| b"{}".to_vec())).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (404, &json!("not_found")), "{method} {path}");
    }
    assert_eq!(other.get("/sessions").await?.body["sessions"].as_array().map(Vec::len), Some(1));
    let sink = HttpSink::start_local().await?;
    let (configuration, _) = configuration(&stack, &sink).await?;
    let path = format!("/api/webhooks/configurations/{configuration}");
    assert_eq!(other.get(&path).await?.status.as_u16(), 404);
    assert_eq!(other.request(Method::DELETE, &path, &[], None).await?.status.as_u16(), 404);
    assert_eq!(stack.admin().get(&path).await?.status.as_u16(), 200);
    Ok(())
}

#[tokio::test]
async fn sessions_are_checked_kept_and_changed_and_their_secrets_never_shown() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let admin = stack.admin();
    let id = session(&stack, "main", "http://127.0.0.1:9").await?;
    let refused = |body: Value| {
        let admin = admin.clone();
        async move { admin.post("/sessions", &body).await }
    };
    assert_eq!(refused(session_body("main", "http://127.0.0.1:9")).await?.status.as_u16(), 409);
    let inside = refused(session_body("x", "http://10.0.0.1:3000")).await?;
    assert_eq!((inside.status.as_u16(), &inside.body["code"]), (400, &json!("target_not_allowed")));
    let bad = json!({"name": "a b", "base_url": "ftp://x", "api_key": "", "webhook_secret": "s\n", "rate_per_minute": 0, "daily_cap": 0,
        "gap_ms": -1, "allow_ips": ["10.0.0.0/99"]});
    let mut fields = refused(bad).await?.fields();
    fields.sort();
    assert_eq!(
        fields,
        ["allow_ips", "api_key", "base_url", "daily_cap", "gap_ms", "name", "rate_per_minute", "webhook_secret"]
    );
    assert_eq!(refused(json!({})).await?.fields(), ["name", "base_url", "api_key", "webhook_secret"]);
    let unknown = refused(json!({"name": "x", "colour": "red"})).await?;
    assert_eq!((unknown.status.as_u16(), unknown.fields()), (400, vec!["colour".to_owned()]));
    assert_eq!(refused(json!({"name": "x", "on_limit": "explode"})).await?.status.as_u16(), 400);
    assert_eq!(
        stack.producer().post("/sessions", &session_body("x", "http://127.0.0.1:9")).await?.status.as_u16(),
        403
    );

    let change = json!({"rate_per_minute": 5, "daily_cap": 100, "on_limit": "reject", "jitter_ms": 250}).to_string();
    let changed = admin.request(Method::PUT, &format!("/sessions/{id}"), &[], Some(change.into_bytes())).await?.ok()?;
    assert_eq!(
        (&changed["rate_per_minute"], &changed["daily_cap"], &changed["on_limit"]),
        (&json!(5), &json!(100), &json!("reject"))
    );
    let uncapped =
        admin.request(Method::PUT, "/sessions/main", &[], Some(b"{\"daily_cap\":null}".to_vec())).await?.ok()?;
    assert_eq!(
        (&uncapped["rate_per_minute"], &uncapped["daily_cap"], &uncapped["name"]),
        (&json!(5), &Value::Null, &json!("main"))
    );
    let line =
        "SELECT rate::bigint FROM lines l JOIN wa_sessions s ON s.id = l.id WHERE l.kind = 'session' AND NOT l.is_open";
    assert_eq!(stack.count(line).await?, 5);
    // Its secrets do not move to another host, where a stranger may listen.
    let put =
        async |body: Value| admin.request(Method::PUT, "/sessions/main", &[], Some(serde_json::to_vec(&body)?)).await;
    let moved = put(json!({"base_url": "http://127.0.0.1:10"})).await?;
    assert_eq!((moved.status.as_u16(), &moved.body["code"]), (422, &json!("secrets_required")));
    assert_eq!(moved.fields(), ["api_key", "webhook_secret"]);
    put(json!({"base_url": "http://127.0.0.1:9/waha"})).await?.ok()?;
    put(json!({"base_url": "http://127.0.0.1:10", "api_key": "k", "webhook_secret": SECRET})).await?.ok()?;
    put(session_body("main", "http://127.0.0.1:9")).await?.ok()?;
    let shown = stack.producer().get("/sessions/main").await?.ok()?;
    let list = stack.producer().get("/sessions").await?.ok()?;
    assert_eq!(list["sessions"][0], shown);
    assert_eq!((&shown["status"], &shown["signature"]), (&json!("STOPPED"), &json!("both")));
    for answer in [&changed, &uncapped, &shown] {
        assert!(!answer.to_string().contains("canary"), "{answer}");
    }
    assert_eq!(admin.request(Method::DELETE, "/sessions/main", &[], None).await?.status.as_u16(), 204);
    assert_eq!(admin.get("/sessions/main").await?.status.as_u16(), 404);
    assert_eq!(stack.count("SELECT count(*) FROM lines WHERE kind = 'session'").await?, 0);
    assert!(!stack.logs()?.contains("canary"));
    Ok(())
}

#[tokio::test]
async fn a_session_is_started_scanned_stopped_and_unlinked_at_waha() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let waha = Waha::start(API_KEY).await?;
    waha.link_at_start(false);
    let id = session(&stack, "main", &waha.url()).await?;
    let admin = stack.admin();
    let early = admin.get("/sessions/main/qr").await?;
    assert_eq!((early.status.as_u16(), &early.body["code"]), (409, &json!("state_conflict")));
    admin.post("/sessions/main/start", &json!({})).await?.ok()?;
    status(&stack, "main", "SCAN_QR_CODE", SOON).await?;
    let hook = &waha.config("main").context("it is there")?["webhooks"][0];
    let port = stack.port("all")?;
    assert_eq!(hook["url"], format!("http://127.0.0.1:{port}/webhooks/waha/{id}"));
    assert_eq!((&hook["events"], &hook["hmac"]["key"]), (&json!(["*"]), &json!(SECRET)));
    assert_eq!(admin.get("/sessions/main/qr").await?.ok()?["mimetype"], "image/png");
    assert_eq!(stack.producer().get("/sessions/main/qr").await?.status.as_u16(), 403, "who scans it has the account");
    assert_eq!(stack.count("SELECT count(*) FROM lines WHERE kind = 'session' AND is_open").await?, 0);
    waha.scan("main");
    status(&stack, "main", "WORKING", SOON).await?;
    assert_eq!(stack.count("SELECT count(*) FROM lines WHERE kind = 'session' AND is_open").await?, 1);
    admin.post("/sessions/main/start", &json!({})).await?.ok()?;
    assert_eq!(waha.status("main").as_deref(), Some("WORKING"), "starting what runs changes nothing");
    admin.post("/sessions/main/restart", &json!({})).await?.ok()?;
    status(&stack, "main", "WORKING", SOON).await?;
    let stopped = admin.post("/sessions/main/stop", &json!({})).await?.ok()?;
    assert_eq!((&stopped["status"], &stopped["started"]), (&json!("STOPPED"), &json!(false)));
    // WAHA's event of the restart may come after the answer; its event of the stop overrules it.
    until_count(&stack, "SELECT count(*) FROM lines WHERE kind = 'session' AND is_open", 0, SOON).await?;
    admin.post("/sessions/main/logout", &json!({})).await?.ok()?;
    let health = admin.get("/health").await?;
    assert_eq!(health.body["parts"]["waha"]["status"], "ok", "{}", health.body);
    Ok(())
}

#[tokio::test]
async fn a_waha_that_is_away_or_refuses_is_told_in_words() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let waha = Waha::start("another-key").await?;
    session(&stack, "main", &waha.url()).await?;
    let refused = stack.admin().post("/sessions/main/start", &json!({})).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (502, &json!("waha_refused")));
    waha.go_down();
    let away = stack.admin().post("/sessions/main/start", &json!({})).await?;
    assert_eq!((away.status.as_u16(), &away.body["code"]), (503, &json!("waha_unavailable")));
    assert!(
        away.header("retry-after").is_some()
            && away.body["detail"].as_str().is_some_and(|text| text.contains("base_url"))
    );
    eventually("health shows it", SOON, || async {
        let health = stack.admin().get("/health").await.ok()?;
        (health.status.as_u16() == 200 && health.body["parts"]["waha"]["status"] == "degraded").then_some(())
    })
    .await?;
    assert!(!stack.logs()?.contains("canary"));
    Ok(())
}

#[tokio::test]
async fn the_settings_make_the_session_default_of_the_first_tenant() -> Result<()> {
    let waha = Waha::start(API_KEY).await?;
    let url = waha.url();
    let settings = [("WAHA_BASE_URL", url.as_str()), ("WAHA_API_KEY", API_KEY), ("WAHA_WEBHOOK_SECRET", SECRET)];
    let mut stack = Stack::patient(&settings).await?;
    let shown = status(&stack, "default", "WORKING", BACK).await?;
    eventually("health shows it", SOON, || async {
        let health = stack.admin().get("/health").await.ok()?;
        (health.body["parts"]["waha"]["status"] == "ok").then_some(())
    })
    .await?;
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[("WAHA_WEBHOOK_SECRET", "changed-secret")]).await?;
    eventually("WAHA signs with the changed secret", BACK, || async {
        let config = waha.config("default")?;
        (config["webhooks"].as_array()?.len() == 1 && config["webhooks"][0]["hmac"]["key"] == "changed-secret")
            .then_some(())
    })
    .await?;
    assert_eq!(stack.producer().get("/sessions/default").await?.body["id"], shown["id"], "it is the same session");
    assert_eq!(stack.count("SELECT count(*) FROM wa_sessions").await?, 1);
    Ok(())
}

#[tokio::test]
async fn message_and_message_any_of_one_message_are_one_message() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    configuration(&stack, &sink).await?;
    let (waha, _) = working(&stack, "main").await?;
    for n in 0..5 {
        waha.receive("main", "4915112345678@c.us", &format!("hello {n}"));
    }
    sink.wait_for(5, SOON).await?;
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'done' AND event LIKE 'message%'", 10, SOON)
        .await?;
    assert_eq!(stack.count("SELECT count(*) FROM wa_inbound WHERE country = '+49'").await?, 5);
    until_count(&stack, "SELECT count(*) FROM wa_inbound WHERE NOT is_forwarded", 0, SOON).await?;
    assert_eq!(sink.requests().len(), 5);
    Ok(())
}

#[tokio::test]
async fn moments_in_seconds_milliseconds_and_fractions_are_one_moment() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    session(&stack, "s", "http://127.0.0.1:9").await?;
    for (id, raw) in [
        ("1", json!(1_642_248_600)),
        ("2", json!(1_642_248_600_000_i64)),
        ("3", json!(1_642_248_600.0)),
        ("4", json!("1642248600")),
    ] {
        let event =
            json!({"event": "message", "session": "s", "payload": {"id": id, "from": "49151@c.us", "timestamp": raw}});
        assert_eq!(tell(&stack.api(""), SECRET, &event).await?.status.as_u16(), 200);
    }
    until_count(&stack, "SELECT count(*) FROM wa_inbound WHERE sent_at = '2022-01-15T12:10:00Z'", 4, SOON).await?;
    assert_eq!(stack.count("SELECT count(DISTINCT raw_sent_at) FROM wa_inbound").await?, 4, "as written");
    Ok(())
}

/// A WhatsApp message that WAHA has taken under this id.
async fn sent(stack: &Stack, session: &str, waha_id: &str) -> Result<String> {
    let working = json!({"id": waha_id, "event": "session.status", "session": "s", "payload": {"status": "WORKING"}});
    tell(&stack.api(""), SECRET, &working).await?.ok()?;
    status(stack, "s", "WORKING", SOON).await?;
    let body = json!({"channel": "whatsapp", "recipient": "+4915112345678", "message": "hi"});
    let id = stack.producer().send(&body).await?;
    stack.producer().wait_status(&id, "sent").await?;
    let query = "INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
        SELECT 'waha', $1, d.id, d.tenant_id FROM deliveries d WHERE d.message_id = $2::text::uuid";
    stack.sql().await?.execute(query, &[&format!("{session}/{waha_id}"), &id]).await?;
    Ok(id)
}

fn ack(id: &str, ack: i64) -> Value {
    json!({"event": "message.ack", "session": "s", "payload": {"id": format!("true_4915112345678@c.us_{id}"), "ack": ack}})
}

#[tokio::test]
async fn acknowledgements_in_any_order_never_move_a_status_back() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let session = session(&stack, "s", "http://127.0.0.1:9").await?;
    let (id, public) = (sent(&stack, &session, "AAA").await?, stack.api(""));
    for level in [3, 1, 2, 0, -1, 4, 3] {
        assert_eq!(tell(&public, SECRET, &ack("AAA", level)).await?.status.as_u16(), 200);
    }
    stack.producer().wait_status(&id, "delivered").await?;
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'done' AND event = 'message.ack'", 6, SOON)
        .await?;
    let kinds = |timeline: &Value| -> Vec<String> {
        let events = timeline["events"].as_array().cloned().unwrap_or_default();
        events.iter().filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect()
    };
    eventually("all of it is in the timeline", SOON, || async {
        let kinds = kinds(&stack.producer().timeline(&id).await.ok()?);
        ["sent", "delivered", "read", "played"].iter().all(|kind| kinds.iter().any(|found| found == kind)).then_some(())
    })
    .await?;
    assert_eq!(stack.producer().message(&id).await?["status"], "delivered");

    let failed = sent(&stack, &session, "BBB").await?;
    tell(&public, SECRET, &ack("BBB", -1)).await?;
    stack.producer().wait_status(&failed, "failed").await?;
    Ok(())
}

#[tokio::test]
async fn an_acknowledgement_that_comes_before_its_message_is_known_waits_for_it() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let session = session(&stack, "s", "http://127.0.0.1:9").await?;
    tell(&stack.api(""), SECRET, &ack("CCC", 2)).await?;
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'pending' AND tries > 0", 1, SOON).await?;
    let id = sent(&stack, &session, "CCC").await?;
    stack.producer().wait_status(&id, "delivered").await?;
    // One whose message never comes is let go.
    tell(&stack.api(""), SECRET, &ack("DDD", 2)).await?;
    stack.sql().await?.execute("UPDATE waha_events SET created_at = now() - interval '11 minutes', due_at = now() WHERE status = 'pending'", &[]).await?;
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'ignored'", 1, SOON).await
}

#[tokio::test]
async fn what_waha_forgets_is_back_and_what_was_missed_is_fetched_once() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    configuration(&stack, &sink).await?;
    let (waha, _) = working(&stack, "main").await?;
    waha.receive("main", "4915112345678@c.us", "before");
    sink.wait_for(1, SOON).await?;
    waha.go_down();
    waha.receive_silently("main", "4915112345678@c.us", "missed one");
    waha.receive_silently("main", "4915187654321@c.us", "missed two");
    waha.come_back(true).await?;
    eventually("the configuration is back", BACK, || async {
        (waha.config("main")?["webhooks"][0]["hmac"]["key"] == SECRET).then_some(())
    })
    .await?;
    status(&stack, "main", "WORKING", BACK).await?;
    let told = sink.wait_for(3, BACK).await?;
    let mut bodies: Vec<String> =
        told.iter().filter_map(|request| Some(request.json().ok()?["data"]["body"].as_str()?.to_owned())).collect();
    bodies.sort();
    assert_eq!(bodies, ["before", "missed one", "missed two"]);
    waha.receive("main", "4915112345678@c.us", "after");
    sink.wait_for(4, SOON).await?;
    assert_eq!(stack.count("SELECT count(*) FROM wa_inbound").await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_session_that_says_it_works_and_does_not_is_found_out() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (waha, _) = working(&stack, "main").await?;
    waha.set_status_silently("main", "SCAN_QR_CODE");
    // The next comparison is due.
    stack.sql().await?.execute("UPDATE wa_sessions SET checked_at = now() - interval '1 minute'", &[]).await?;
    status(&stack, "main", "SCAN_QR_CODE", SOON).await?;
    assert_eq!(stack.count("SELECT count(*) FROM lines WHERE kind = 'session' AND is_open").await?, 0);
    // And what runs no more is started again.
    waha.set_status_silently("main", "FAILED");
    status(&stack, "main", "WORKING", BACK).await?;
    Ok(())
}

#[tokio::test]
async fn messages_that_came_while_nobody_listened_are_fetched() -> Result<()> {
    let mut stack = Stack::patient(&[]).await?;
    let (waha, _) = working(&stack, "main").await?;
    let port = stack.port("all")?.to_string();
    stack.kill9("all")?;
    waha.receive_silently("main", "4915112345678@c.us", "anybody there?");
    // A session's clock starts with it: six seconds later it is old enough for something to have been missed.
    stack
        .sql()
        .await?
        .execute("UPDATE wa_sessions SET fetched_until = fetched_until - interval '10 seconds'", &[])
        .await?;
    stack.launch("all", Role::All, &[("PORT", &port)]).await?;
    until_count(&stack, "SELECT count(*) FROM wa_inbound", 1, BACK).await
}

#[tokio::test]
async fn two_schedulers_work_through_events_without_doing_any_twice() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, PATIENT).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    stack.launch("worker", Role::Worker, &[]).await?;
    let sink = HttpSink::start_local().await?;
    configuration(&stack, &sink).await?;
    session(&stack, "s", "http://127.0.0.1:9").await?;
    let public = stack.api("");
    let tells = (0..200).map(|n| {
        let public = public.clone();
        async move {
            let event = json!({"event": "message", "session": "s", "payload": {"id": format!("m{n}"), "from": "4915112345678@c.us", "body": "x"}});
            tell(&public, SECRET, &event).await
        }
    });
    for answer in futures_util::future::join_all(tells).await {
        assert_eq!(answer?.body["duplicate"], false);
    }
    stack.spawn("one", Role::Scheduler, &[])?;
    stack.spawn("two", Role::Scheduler, &[])?;
    stack.ready("one").await?;
    stack.ready("two").await?;
    sink.wait_for(200, BACK).await?;
    until_count(&stack, "SELECT count(*) FROM waha_events WHERE status = 'done'", 200, SOON).await?;
    assert_eq!(stack.count("SELECT count(*) FROM wa_inbound").await?, 200);
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 200);
    assert_eq!(sink.requests().len(), 200);
    Ok(())
}

#[tokio::test]
async fn with_a_key_nothing_of_a_message_or_secret_can_be_read_in_the_database_or_the_logs() -> Result<()> {
    let key = STANDARD.encode([7; 32]);
    let (stack, sink) =
        (Stack::patient(&[("POSTHASTE_ENCRYPTION_KEY", key.as_str())]).await?, HttpSink::start_local().await?);
    configuration(&stack, &sink).await?;
    session(&stack, "s", "http://127.0.0.1:9").await?;
    let event = json!({"event": "message", "session": "s", "payload": {"id": "false_4915199988877@c.us_AAA", "from": "4915199988877@c.us",
        "to": "4915111122233@c.us", "body": "canary-content"}});
    tell(&stack.api(""), SECRET, &event).await?.ok()?;
    let request = sink.wait_for(1, SOON).await?.first().context("it is handed on")?.clone();
    assert_eq!(request.json()?["data"]["body"], "canary-content");
    let sql = stack.sql().await?;
    for table in [
        "wa_sessions",
        "waha_events",
        "wa_inbound",
        "webhook_configurations",
        "messages",
        "deliveries",
        "delivery_events",
        "provider_refs",
        "outbox",
    ] {
        let rows = sql.query(&format!("SELECT t::text FROM {table} t"), &[]).await?;
        for row in rows {
            let row: String = row.get(0);
            for text in ["canary", "4915199988877", "4915111122233", &STANDARD.encode("canary")] {
                assert!(!row.contains(text), "{table}: {row}");
            }
            // A bytea shows as hexadecimal.
            let hex: String = b"canary".iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!row.contains(&hex), "{table}: {row}");
        }
    }
    let logs = stack.logs()?;
    for text in ["canary", "4915199988877"] {
        assert!(!logs.contains(text), "{text} is in the logs");
    }
    Ok(())
}

#[tokio::test]
async fn configurations_are_checked_and_their_secret_is_shown_once() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let (id, secret) = configuration(&stack, &sink).await?;
    let (admin, path) = (stack.admin(), format!("/api/webhooks/configurations/{id}"));
    assert!(secret.starts_with("whsec_"));
    let shown = admin.get(&path).await?.ok()?;
    assert_eq!((&shown["headers"]["X-Source"], &shown["headers"]["X-Api-Key"]), (&json!("***"), &json!("***")));
    assert_eq!((shown.get("secret"), &shown["active"]), (None, &json!(true)));
    assert_eq!(admin.get("/api/webhooks/configurations").await?.ok()?["configurations"], json!([shown]));
    let bad = admin
        .post("/api/webhooks/configurations", &json!({"url": "http://10.0.0.1/", "events": ["message.eaten"]}))
        .await?;
    assert_eq!(
        (bad.status.as_u16(), bad.fields()),
        (400, vec!["name".to_owned(), "url".to_owned(), "events".to_owned()])
    );
    assert_eq!(stack.producer().get(&path).await?.status.as_u16(), 403);
    session(&stack, "s", "http://127.0.0.1:9").await?;
    let event =
        |id: &str| json!({"event": "message", "session": "s", "payload": {"id": id, "from": "49151@c.us", "body": id}});
    let put = |body: &'static [u8]| admin.request(Method::PUT, &path, &[], Some(body.to_vec()));
    assert_eq!(put(b"{\"active\":false}").await?.ok()?["active"], false);
    tell(&stack.api(""), SECRET, &event("unheard")).await?.ok()?;
    // Wait until it is held: a pending event would be sent as soon as its configuration is on again.
    until_count(&stack, "SELECT count(*) FROM webhook_events WHERE NOT pending AND carrier IS NULL", 1, SOON).await?;
    put(b"{\"active\":true}").await?.ok()?;
    tell(&stack.api(""), SECRET, &event("heard")).await?.ok()?;
    let request = sink.wait_for(1, SOON).await?.first().context("it is handed on")?.clone();
    assert_eq!(request.json()?["data"]["body"], "heard");
    assert_eq!(admin.request(Method::DELETE, &path, &[], None).await?.status.as_u16(), 204);
    assert_eq!(admin.get(&path).await?.status.as_u16(), 404);
    Ok(())
}

#[tokio::test]
async fn a_crowded_name_costs_few_tries_and_each_session_is_verified_at_its_own_url() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let id = session(&stack, "default", "http://127.0.0.1:9").await?;
    let crowd = "INSERT INTO tenants (slug, webhook_secret) SELECT 'crowd-' || n, webhook_secret FROM tenants, generate_series(1, 30) n;
        INSERT INTO wa_sessions (id, tenant_id, name, base_url, api_key, webhook_secret, signature, allow_ips, on_limit, last_event_at)
        SELECT gen_random_uuid(), t.id, s.name, s.base_url, s.api_key, convert_to('crowd', 'UTF8'), s.signature, s.allow_ips, s.on_limit, now()
        FROM wa_sessions s, tenants t WHERE t.slug LIKE 'crowd-%'";
    stack.sql().await?.batch_execute(crowd).await?;
    let event =
        |id: &str| json!({"event": "message", "session": "default", "payload": {"id": id, "from": "49151@c.us"}});
    let (public, own) = (stack.api(""), format!("/webhooks/waha/{id}"));
    let status = async |path: &str, key: &str, event: &Value| -> Result<u16> {
        Ok(tell_at(&public, path, key, event).await?.status.as_u16())
    };
    assert_eq!(
        status("/webhooks/waha", "crowd", &event("1")).await?,
        200,
        "one of the sessions with the latest events"
    );
    assert_eq!(status("/webhooks/waha", SECRET, &event("2")).await?, 401, "its key is not among those that are tried");
    assert_eq!(status(&own, SECRET, &event("2")).await?, 200);
    assert_eq!(status(&own, "crowd", &event("3")).await?, 401, "a key of another session");
    let other = json!({"event": "message", "session": "other", "payload": {"id": "4", "from": "49151@c.us"}});
    assert_eq!(status(&own, SECRET, &other).await?, 401, "an event of another session");
    for unknown in [format!("/webhooks/waha/{}", uuid::Uuid::nil()), "/webhooks/waha/default".to_owned()] {
        assert_eq!(status(&unknown, SECRET, &event("5")).await?, 401, "{unknown}");
    }
    let long = json!({"event": "message", "session": "default", "payload": {"id": "6", "from": "49151@c.us", "x": "x".repeat(300_000)}});
    assert_eq!(status("/webhooks/waha", SECRET, &long).await?, 413, "not where several keys are tried");
    assert_eq!(status(&own, SECRET, &long).await?, 200);
    until_count(&stack, "SELECT count(*) FROM wa_inbound WHERE tenant_id = 1", 2, SOON).await
}

/// A WAHA that never answers below `/hang`, and with a second chat that never answers.
async fn half_dead_waha() -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer_half_dead(socket));
        }
    });
    Ok(url)
}

async fn answer_half_dead(mut socket: tokio::net::TcpStream) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = socket.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..read]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let message = json!({"id": "false_111@c.us_A", "from": "4915112345678@c.us", "fromMe": false, "body": "hello",
        "timestamp": domain::clock::now().timestamp()});
    let body = match path {
        path if path.contains("/hang/") || path.contains("222") => std::future::pending().await,
        path if path.contains("111") => json!([message]),
        path if path.contains("/chats?") => json!([{"id": "111@c.us"}, {"id": "222@c.us"}]),
        _ => json!({"name": "main", "status": "WORKING", "config": {"webhooks": []}}),
    };
    let body = body.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    socket.write_all(answer.as_bytes()).await
}

#[tokio::test]
async fn hosts_of_one_tenant_that_hang_hold_up_no_other_and_what_was_fetched_is_kept() -> Result<()> {
    let mut stack = Stack::patient(&[]).await?;
    stack.cli(&["tenant", "create", "globex"])?;
    let waha = half_dead_waha().await?;
    session(&stack, "main", &waha).await?;
    stack.kill9("all")?;
    // All of it comes with one look of the scheduler.
    let hanging = "UPDATE wa_sessions SET is_wanted = true, needs_fetch = true, checked_at = NULL, fetched_until = now() - interval '1 hour';
        INSERT INTO wa_sessions (id, tenant_id, name, base_url, api_key, webhook_secret, signature, allow_ips, on_limit, is_wanted)
        SELECT gen_random_uuid(), t.id, 'hang-' || n, s.base_url || '/hang/' || n, s.api_key, s.webhook_secret, s.signature, s.allow_ips, s.on_limit, true
        FROM wa_sessions s, tenants t, generate_series(1, 240) n WHERE t.slug = 'globex'";
    stack.sql().await?.batch_execute(hanging).await?;
    stack.launch("all", Role::All, &[("PROVIDER_TIMEOUT_MS", "3000")]).await?;
    // Sixteen at a time, 240 calls of three seconds would take 45 s. The second chat, which hangs, ends the fetch of the first.
    until_count(&stack, "SELECT count(*) FROM wa_inbound WHERE tenant_id = 1", 1, Duration::from_secs(30)).await?;
    assert_eq!(stack.count("SELECT count(*) FROM wa_sessions WHERE name = 'main' AND state = 'WORKING'").await?, 1);
    Ok(())
}
