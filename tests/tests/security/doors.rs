//! Requests that the HTTP API refuses: paths spelt otherwise, people who change what is not theirs, bodies that are too large, made-up
//! credentials, and more of anything than a tenant may have.

use std::time::Duration;

use anyhow::{Context, Result};
use domain::token;
use futures_util::future::join_all;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use testkit::{
    Api, Role, Stack, TestServers,
    api::{Answer, SOON},
    eventually, patient,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MIB: usize = 1024 * 1024;

async fn ingest(settings: &[(&str, &str)]) -> Result<Stack> {
    let mut stack = Stack::prepare(TestServers::shared()?, settings).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    Ok(stack)
}

async fn put(api: &Api, path: &str, body: &Value) -> Result<Answer> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(body)?)).await
}

async fn status(api: &Api, method: Method, path: &str) -> Result<u16> {
    Ok(api.request(method, path, &[], None).await?.status.as_u16())
}

/// A token that a key makes.
async fn minted(stack: &Stack, key: &Api, sub: &str, role: &str) -> Result<Api> {
    let tokens = key.post("/api/auth/token", &json!({"sub": sub, "role": role})).await?.ok()?;
    Ok(stack.api(tokens["access_token"].as_str().context("a token")?))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// The newest entry of the audit log, without those of commands, once there is one for `action`.
async fn entry(admin: &Api, action: &str) -> Result<Value> {
    eventually(action, SOON, || async {
        let list = admin.get("/api/admin/audit?limit=1").await.ok()?.body;
        list["entries"].get(0).filter(|entry| text(entry, "action") == action).cloned()
    })
    .await
}

#[tokio::test]
async fn a_path_spelt_otherwise_is_in_the_audit_log_and_so_are_reads_of_secrets() -> Result<()> {
    let stack = ingest(&[]).await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    let made = admin.post("/api/admin/%6Beys", &json!({"role": "user"})).await?;
    assert_eq!(made.status.as_u16(), 201);
    assert_eq!(text(&entry(&admin, "POST /api/admin/keys").await?, "target"), text(&made.body, "id"));

    let odd = "/api/users/a%2Bb%26c";
    put(&producer, odd, &json!({"name": "A"})).await?.ok()?;
    let about = text(&entry(&admin, "PUT /api/users/{user_id}").await?, "target").to_owned();
    assert_eq!(producer.get(odd).await?.ok()?["id"], "a+b&c");
    let exported = admin.get("/api/users/%61%2Bb&c/e%78port").await?.ok()?;
    assert_eq!(exported["user"]["id"], "a+b&c");
    let read = entry(&admin, "GET /api/users/{user_id}/export").await?;
    assert_eq!(text(&read, "target"), about, "the same person, however it is spelt");
    assert_eq!(status(&admin, Method::DELETE, "/api/%75sers/a+b%26c").await?, 200);
    assert_eq!(text(&entry(&admin, "DELETE /api/users/{user_id}").await?, "target"), about);
    admin.get("/api/webhooks/signing%2Dsecret").await?.ok()?;
    entry(&admin, "GET /api/webhooks/signing-secret").await?;

    let ada = minted(&stack, &producer, "ada", "user").await?;
    ada.get("/api/notifications/export").await?.ok()?;
    let read = entry(&admin, "GET /api/notifications/export").await?;
    assert!(text(&read, "actor").starts_with("user:person:") && text(&read, "actor").contains(" via key:"), "{read}");
    assert!(text(&read, "target").starts_with("person:"), "{read}");
    Ok(())
}

const INBOUND: &str = "
INSERT INTO wa_inbound (id, tenant_id, session_id, waha_id, chat_hash, sender, recipient, kind, content, sent_at, raw_sent_at)
VALUES (gen_random_uuid(), 1, gen_random_uuid(), 'w1', sha256(convert_to('1:1+43123456789', 'UTF8')), '+43123456789', '+43', 'text',
    convert_to('{\"body\": \"words of the number\"}', 'UTF8'), now(), 'now');
INSERT INTO dead_letters (id, tenant_id, origin, reason, body)
VALUES (gen_random_uuid(), 1, 'intake', 'schema', convert_to('{\"recipient\": \"+43123456789\"}', 'UTF8'))";

#[tokio::test]
async fn a_person_changes_little_of_itself_and_reaches_nothing_by_an_address() -> Result<()> {
    let stack = ingest(&[]).await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    let own = stack.api(stack.cli(&["token", "--tenant", "acme", "--sub", "mallory", "--role", "user"])?.trim());
    let path = "/api/users/mallory";
    let mine = json!({"name": "M", "locale": "de", "time_zone": "Europe/Vienna", "quiet_hours": {"start": "22:00", "end": "08:00"}});
    assert_eq!(put(&own, path, &mine).await?.status.as_u16(), 201);
    let address =
        json!({"email": "ada@example.com", "phone": "+43123456789", "attributes": {"tier": "gold"}, "name": "N"});
    let refused = put(&own, path, &address).await?;
    let mut fields = refused.fields();
    fields.sort();
    assert_eq!((refused.status.as_u16(), fields.join(" ").as_str()), (403, "attributes email phone"));
    assert_eq!(put(&own, path, &json!({"phone": null})).await?.status.as_u16(), 403);
    assert_eq!(own.get(path).await?.ok()?["name"], "M", "nothing of it was taken");

    // An address that the tenant gives leads an admin to what it was used for, and the person only to what names the person.
    put(&producer, path, &address).await?.ok()?;
    stack.sql().await?.batch_execute(INBOUND).await?;
    let export = format!("{path}/export");
    assert_eq!(admin.get(&export).await?.ok()?["whatsapp_received"].as_array().map(Vec::len), Some(1));
    for (key, wanted) in [(&producer, 403), (&admin, 200)] {
        let token = minted(&stack, key, "mallory", "user").await?;
        let answer = token.get(&export).await?;
        assert_eq!(answer.status.as_u16(), wanted, "a producer does not become the person");
        if wanted == 200 {
            assert_eq!((&answer.body["whatsapp_received"], &answer.body["suppressions"]), (&json!([]), &json!([])));
        } else {
            assert_eq!(status(&token, Method::DELETE, path).await?, 403);
        }
    }
    // A renewed token is of the same key.
    let tokens = producer.post("/api/auth/token", &json!({"sub": "mallory", "role": "user"})).await?.ok()?;
    let renewed =
        stack.api("").post("/api/auth/refresh", &json!({"refresh_token": tokens["refresh_token"]})).await?.ok()?;
    assert_eq!(status(&stack.api(text(&renewed, "access_token")), Method::DELETE, path).await?, 403);

    let by_number =
        "SELECT (SELECT count(*) FROM wa_inbound) + (SELECT count(*) FROM dead_letters WHERE body IS NOT NULL)";
    assert_eq!(patient::erase(&own, "mallory").await?["contact"], 1);
    assert_eq!(stack.count(by_number).await?, 2, "the number is not the person's to erase");
    put(&producer, path, &address).await?.ok()?;
    patient::erase(&admin, "mallory").await?;
    assert_eq!(stack.count(by_number).await?, 0);
    Ok(())
}

/// A request whose body is promised and sent up to its last byte.
async fn unfinished(stack: &Stack, path: &str, header: &str, length: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", stack.port("ingest")?)).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&vec![b' '; length - 1]).await?;
    Ok(stream)
}

fn bearer(stack: &Stack) -> String {
    format!("Authorization: Bearer {}", stack.producer_key)
}

/// A signature of WAHA that has the right shape.
const SIGNATURE: (&str, &str) =
    ("x-waha-signature", "sha256=0000000000000000000000000000000000000000000000000000000000000000");

/// The most memory that a process ever held, in bytes.
fn peak(stack: &Stack) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", stack.pid("ingest")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}

#[tokio::test]
async fn bodies_have_a_limit_for_each_route_and_one_for_all_requests_together() -> Result<()> {
    let stack = ingest(&[("BODY_BYTES_IN_FLIGHT", "4194304")]).await?;
    let (admin, producer, nobody) = (stack.admin(), stack.producer(), stack.api(""));
    let small = json!({"channel": "in_app", "user_id": "ada", "message": "m"});
    producer.send(&small).await?;
    let filled = |bytes: usize| json!({"x": "x".repeat(bytes)});
    for (api, method, path, bytes) in [
        (&nobody, Method::POST, "/api/auth/refresh", 8 * 1024),
        (&producer, Method::PUT, "/api/users/ada", 64 * 1024),
        (&producer, Method::POST, "/api/auth/token", 64 * 1024),
        (&producer, Method::POST, "/api/notifications/test", 64 * 1024),
        (&admin, Method::POST, "/api/rules", 64 * 1024),
        (&admin, Method::POST, "/api/webhooks/configurations", 64 * 1024),
        (&admin, Method::POST, "/api/notifications/templates", MIB),
        (&producer, Method::POST, "/api/notifications/send", 30 * MIB),
    ] {
        let large = serde_json::to_vec(&filled(bytes))?;
        let refused = api.request(method.clone(), path, &[], Some(large)).await?;
        assert_eq!((refused.status.as_u16(), &refused.body["code"]), (413, &json!("payload_too_large")), "{path}");
        let fits = serde_json::to_vec(&filled(bytes.min(MIB) - 100))?;
        assert_ne!(api.request(method, path, &[], Some(fits)).await?.status.as_u16(), 413, "{path}");
    }
    let (unknown, signature) = ("/webhooks/waha/00000000-0000-0000-0000-000000000000", [SIGNATURE]);
    for (path, headers, wanted) in [
        ("/webhooks/nobody", &[][..], 404),
        ("/webhooks/sendgrid", &[], 401),
        ("/webhooks/twilio", &[], 401),
        ("/webhooks/waha", &[], 401),
        (unknown, &signature, 401),
    ] {
        let refused = nobody.request(Method::POST, path, headers, Some(vec![b' '; 2 * MIB])).await?;
        assert_eq!(refused.status.as_u16(), wanted, "{path}: nothing vouches for it, so it is not read");
    }

    // Eight strangers with 29 MB each.
    let before = peak(&stack)?;
    let flood = (0..8).map(|_| nobody.request(Method::POST, "/api/auth/refresh", &[], Some(vec![b' '; 29 * MIB])));
    for answer in join_all(flood).await {
        assert_eq!(answer?.status.as_u16(), 413);
    }
    let grown = peak(&stack)?.saturating_sub(before);
    assert!(grown < 100 * MIB, "{grown} bytes for bodies without a credential");

    // One that is not finished holds three of the four megabytes; two more do not fit, and small ones do.
    let held = unfinished(&stack, "/api/notifications/send", &bearer(&stack), 3 * MIB).await?;
    let send = || async { producer.post("/api/notifications/send", &filled(2 * MIB)).await };
    let refused = eventually("the budget is used up", SOON, || async {
        send().await.ok().filter(|answer| answer.status.as_u16() == 503)
    })
    .await?;
    assert_eq!((&refused.body["code"], refused.header("retry-after")), (&json!("overloaded"), Some("1")));
    assert_eq!(producer.post("/api/notifications/send", &small).await?.status.as_u16(), 202);
    drop(held);
    eventually("it has come back", SOON, || async { send().await.ok().filter(|answer| answer.status.as_u16() == 400) })
        .await?;
    Ok(())
}

#[tokio::test]
async fn no_tenant_and_no_address_holds_the_whole_budget() -> Result<()> {
    let stack = ingest(&[("BODY_BYTES_IN_FLIGHT", "134217728"), ("TRUSTED_PROXIES", "127.0.0.0/8")]).await?;
    stack.cli(&["tenant", "create", "beta"])?;
    let (own, other) = (stack.producer(), stack.api(&stack.create_key("beta", "producer")?));
    // A tenant has a quarter of 128 MiB. Bodies that are not finished hold thirty of its 32.
    let large = json!({"x": "x".repeat(4 * MIB)});
    let send = async |api: &Api| api.post("/api/notifications/send", &large).await.ok().map(|it| it.status.as_u16());
    eventually("a tenant is refused and another one is not", SOON, || async {
        let begin = || async { unfinished(&stack, "/api/notifications/send", &bearer(&stack), 15 * MIB).await.ok() };
        let held = (begin().await?, begin().await?);
        let statuses = (send(&own).await?, send(&other).await?);
        drop(held);
        (statuses == (503, 400)).then_some(())
    })
    .await?;

    // An address has a sixteenth: 34 webhooks of 256 KiB, whose first 8 KiB each are free.
    let public = stack.api("");
    let event = json!({"event": "message", "session": "s", "payload": {"x": "x".repeat(200_000)}}).to_string();
    let tell = async |address: &str| {
        let headers = [SIGNATURE, ("X-Forwarded-For", address)];
        let body = Some(event.clone().into_bytes());
        public.request(Method::POST, "/webhooks/waha", &headers, body).await.ok().map(|it| it.status.as_u16())
    };
    let headers = format!("{}: {}\r\nX-Forwarded-For: 192.0.2.1", SIGNATURE.0, SIGNATURE.1);
    eventually("an address is refused and another one is not", SOON, || async {
        let mut held = Vec::new();
        for _ in 0..36 {
            held.push(unfinished(&stack, "/webhooks/waha", &headers, 256 * 1024).await.ok()?);
        }
        let statuses = (tell("192.0.2.1").await?, tell("192.0.2.2").await?);
        drop(held);
        (statuses == (503, 401)).then_some(())
    })
    .await
}

#[tokio::test]
async fn made_up_keys_ask_the_database_little_or_nothing_and_real_ones_go_on() -> Result<()> {
    let stack = ingest(&[]).await?;
    let admin = stack.admin();
    admin.get("/api/messages").await?.ok()?;
    // Each look-up of a key waits from here on.
    let sql = stack.sql().await?;
    sql.batch_execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await?;
    let wrong = format!("{}x", &stack.admin_key[..stack.admin_key.len() - 1]);
    let wrong = if wrong == stack.admin_key { wrong.replace('x', "y") } else { wrong };
    for key in ["ph_x", "ph_", &wrong] {
        assert_eq!(status(&stack.api(key), Method::GET, "/api/messages").await?, 401, "{key}");
    }
    let old = |n: usize| format!("ph_{n:043}");
    let guesses = (0..60).map(|n| {
        let stack = &stack;
        async move { status(&stack.api(&old(n)), Method::GET, "/api/messages").await }
    });
    let real = async {
        for _ in 0..5 {
            assert_eq!(status(&admin, Method::GET, "/api/messages").await?, 200, "connections are left for it");
        }
        Ok::<_, anyhow::Error>(())
    };
    let (guessed, real) = tokio::join!(join_all(guesses), real);
    real?;
    let guessed = guessed.into_iter().collect::<Result<Vec<u16>>>()?;
    assert!(guessed.iter().all(|status| [503, 429].contains(status)), "{guessed:?}");
    sql.batch_execute("ROLLBACK").await?;
    eventually("an unknown key is refused", SOON, || async {
        (status(&stack.api(&old(1)), Method::GET, "/api/messages").await.ok()? == 401).then_some(())
    })
    .await?;

    // A key as it was made before checksums holds.
    let hash = "INSERT INTO api_keys (id, tenant_id, role, name, hash) VALUES (gen_random_uuid(), 1, 'admin', 'old', sha256(convert_to($1, 'UTF8')))";
    sql.execute(hash, &[&old(777)]).await?;
    assert_eq!(status(&stack.api(&old(777)), Method::GET, "/api/messages").await?, 200);
    Ok(())
}

#[tokio::test]
async fn a_trusted_proxy_tells_who_asks_and_refreshing_is_nobody_elses_bucket() -> Result<()> {
    const SECRET: &str = "a secret of this test that is long enough";
    let settings = [
        ("JWT_SECRET", SECRET),
        ("RATE_LIMIT_MAX_REQUESTS", "5"),
        ("RATE_LIMIT_WINDOW_MS", "86400000"),
        ("TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let stack = ingest(&settings).await?;
    let tokens = stack.producer().post("/api/auth/token", &json!({})).await?.ok()?;
    let ask = async |client: &str| {
        let headers = [("X-Forwarded-For", client)];
        stack.api("").request(Method::GET, "/api/messages", &headers, None).await
    };
    for wanted in [401, 401, 401, 401, 401, 429] {
        assert_eq!(ask("198.51.100.1, 192.0.2.1").await?.status.as_u16(), wanted);
    }
    assert_eq!(ask("192.0.2.1").await?.status.as_u16(), 429, "what a caller writes before it changes nothing");
    assert_eq!(ask("192.0.2.2").await?.status.as_u16(), 401, "another caller behind the same proxy");
    for wanted in [401, 401, 401, 401, 401, 429] {
        assert_eq!(stack.api("").get("/api/messages").await?.status.as_u16(), wanted);
    }
    let renewed = stack.api("").post("/api/auth/refresh", &json!({"refresh_token": tokens["refresh_token"]})).await?;
    assert_eq!(renewed.status.as_u16(), 200, "an address that is used up keeps no token from being renewed");

    // Keys that do not exist, with the right checksum, are looked up a hundred times. That shuts nothing else out.
    let headers = [("X-Forwarded-For", "192.0.2.7")];
    let mut statuses = Vec::new();
    for _ in 0..102 {
        let key = token::ApiKey::generate()?;
        let api = stack.api(key.text.expose_secret());
        statuses.push(api.request(Method::GET, "/api/messages", &headers, None).await?.status.as_u16());
    }
    assert!(statuses.iter().take(100).all(|status| *status == 401) && statuses[100..] == [429, 429], "{statuses:?}");
    assert_eq!(ask("192.0.2.7").await?.status.as_u16(), 401, "its other requests have a bucket of their own");
    stack.cli(&["tenant", "create", "beta"])?;
    let real = stack.api(&stack.create_key("beta", "admin")?);
    let behind_it = real.request(Method::GET, "/api/messages", &headers, None).await?;
    assert_eq!(
        behind_it.status.as_u16(),
        200,
        "a real key that is not known yet is looked up where that can be done at once"
    );
    let page = stack.api("").request(Method::GET, "/api/notifications/unsubscribe/x", &headers, None).await?;
    assert_ne!(page.status.as_u16(), 429);

    // Ever new subjects have the tenant's bucket together: ten times that of one.
    let mut taken = 0;
    for n in 0..60 {
        let token = token::encode(&SECRET.into(), &format!("s{n}"), "acme", token::Role::User, SOON)?;
        let answer = stack.api(&token).get("/api/notifications/unread-count").await?;
        taken += usize::from(answer.status.is_success());
    }
    assert_eq!(taken, 49, "one of the fifty made the tokens");
    Ok(())
}

#[tokio::test]
async fn a_tenant_has_one_import_at_a_time_and_bounded_numbers_of_other_things() -> Result<()> {
    let stack = ingest(&[]).await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    stack.cli(&["tenant", "create", "beta"])?;
    let foreign = stack.api(&stack.create_key("beta", "producer")?);
    let mut held = TcpStream::connect(("127.0.0.1", stack.port("ingest")?)).await?;
    let head = format!(
        "POST /api/users/import HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: text/csv\r\n\
         Content-Length: 10\r\n\r\nuser_id",
        stack.producer_key
    );
    held.write_all(head.as_bytes()).await?;
    stack.until_count("SELECT count(*) FROM imports", 1).await?;
    let import = async |api: &Api| {
        let headers = [("Content-Type", "text/csv")];
        api.request(Method::POST, "/api/users/import", &headers, None).await
    };
    let busy = import(&producer).await?;
    assert_eq!((busy.status.as_u16(), &busy.body["code"]), (503, &json!("overloaded")));
    assert_ne!(import(&foreign).await?.status.as_u16(), 503, "another tenant's is its own");
    held.write_all(b"\na\n").await?;
    let mut answer = String::new();
    held.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let sql = stack.sql().await?;
    sql.batch_execute(
        "INSERT INTO rules (id, tenant_id, name, event_type, definition, is_active)
            SELECT gen_random_uuid(), 1, 'r' || n, 'x', '{}', false FROM generate_series(1, 1000) n;
         INSERT INTO api_keys (id, tenant_id, role, name, hash)
            SELECT gen_random_uuid(), 1, 'user', '', sha256(int4send(n)) FROM generate_series(1, 1000) n;
         INSERT INTO webhook_configurations (id, tenant_id, name, url, events, headers, is_active, secret)
            SELECT gen_random_uuid(), 1, 'c' || n, 'https://example.com', '{}', '', false, '' FROM generate_series(1, 100) n;
         INSERT INTO wa_sessions (id, tenant_id, name, base_url, signature, allow_ips, on_limit)
            SELECT gen_random_uuid(), 1, 's' || n, 'https://example.com', 'both', '{}', 'queue' FROM generate_series(1, 100) n",
    )
    .await?;
    let rule = json!({"name": "R", "event_type": "x", "template_name": "t", "channels": ["in_app"], "active": false});
    for (path, body) in [
        ("/api/rules", rule),
        ("/api/admin/keys", json!({"role": "user"})),
        ("/api/webhooks/configurations", json!({"name": "C", "url": "https://example.com/hook"})),
        (
            "/sessions",
            json!({"name": "more", "base_url": "https://example.com", "api_key": "k", "webhook_secret": "s".repeat(32)}),
        ),
    ] {
        let refused = admin.post(path, &body).await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["code"]),
            (409, &json!("state_conflict")),
            "{path} {refused:?}"
        );
        assert!(text(&refused.body, "detail").contains("at most"), "{path}");
    }

    // The page where credentials are typed in is not framed, and keeps none.
    for path in ["/docs/", "/docs/problems"] {
        let page = admin.get(path).await?;
        assert_eq!(page.header("x-frame-options"), Some("DENY"), "{path}");
        assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("frame-ancestors 'none'")));
    }
    let url = format!("http://127.0.0.1:{}/docs/swagger-initializer.js", stack.port("ingest")?);
    let script =
        reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?.get(url).send().await?.text().await?;
    assert!(script.contains("/openapi.json") && !script.contains("\"persistAuthorization\": true"), "{script}");
    Ok(())
}

/// The page of the API, its script, its style and the document: each answers, and the page loads nothing from another server.
#[tokio::test]
async fn the_page_of_the_api_needs_no_other_server() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let base = format!("http://127.0.0.1:{}", stack.port("all")?);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    for (path, kind, is_gzip) in [
        ("/docs/", "text/html", false),
        ("/docs/index.html", "text/html", false),
        ("/docs/swagger-initializer.js", "text/javascript", false),
        ("/docs/swagger-ui-bundle.js", "text/javascript", true),
        ("/docs/swagger-ui.css", "text/css", true),
        ("/docs/favicon-32x32.png", "image/png", false),
        ("/openapi.json", "application/json", false),
    ] {
        let answer = client.get(format!("{base}{path}")).send().await?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        assert!(header("content-type").starts_with(kind), "{path} {}", header("content-type"));
        assert_eq!(header("content-encoding") == "gzip", is_gzip, "{path}");
        if path.starts_with("/docs/") {
            let policy = header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path} {policy}");
            assert!(!policy.contains("http"), "{path} {policy}");
        }
        if path.starts_with("/docs/") && kind != "image/png" && !is_gzip {
            let text = answer.text().await?;
            assert!(!text.contains("//cdn") && !text.contains("://"), "{path} {text}");
        }
    }
    let unknown = client.get(format!("{base}/docs/nothing.js")).send().await?;
    assert_eq!(unknown.status().as_u16(), 404);
    Ok(())
}
