//! Rights and limits: tokens, keys, limits, the audit log, and what the logs do not show.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use records::Records;
use reqwest::Method;
use runtime::config::DatabaseConfig;
use serde_json::{Value, json};
use store::Store;
use testkit::{
    Api, HttpSink, Reply, Role, Stack, TestServers,
    api::{Answer, SOON},
    eventually,
};

/// Within this every replica has noticed that a key was revoked.
const REVOKED_WITHIN: Duration = Duration::from_secs(30);

const ENTRIES: &str = "SELECT count(*) FROM audit_entries";

async fn delete(api: &Api, path: &str) -> Result<u16> {
    Ok(api.request(Method::DELETE, path, &[], None).await?.status.as_u16())
}

async fn put(api: &Api, path: &str, body: &Value) -> Result<Answer> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(body)?)).await
}

async fn refresh(stack: &Stack, token: &Value) -> Result<Answer> {
    stack.api("").post("/api/auth/refresh", &json!({ "refresh_token": token })).await
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn entries(list: &Value) -> &Vec<Value> {
    list["entries"].as_array().unwrap()
}

/// A second tenant, its admin key, and a key of an operator.
fn others(stack: &Stack) -> Result<(Api, Api)> {
    stack.cli(&["tenant", "create", "globex"])?;
    Ok((stack.api(&stack.create_key("globex", "admin")?), stack.api(&stack.create_key("acme", "operator")?)))
}

#[tokio::test]
async fn a_key_gives_tokens_and_each_refresh_token_works_once() -> Result<()> {
    let stack = Stack::start_with(&[("JWT_EXPIRES_IN", "10m")]).await?;
    let answer = stack.producer().post("/api/auth/token", &json!({"sub": "ada", "role": "user"})).await?;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let first = answer.ok()?;
    assert_eq!((&first["token_type"], &first["expires_in"]), (&json!("Bearer"), &json!(600)));
    let ada = stack.api(text(&first, "access_token"));
    ada.get("/api/notifications").await?.ok()?;
    assert_eq!(ada.get("/api/messages").await?.status.as_u16(), 403, "the token is a user's, not the producer's");

    let second = refresh(&stack, &first["refresh_token"]).await?.ok()?;
    stack.api(text(&second, "access_token")).get("/api/notifications").await?.ok()?;
    let third = refresh(&stack, &second["refresh_token"]).await?.ok()?;
    assert_eq!(stack.count("SELECT count(*) FROM token_families").await?, 1);

    assert_eq!(refresh(&stack, &first["refresh_token"]).await?.status.as_u16(), 401, "an old one comes back");
    for token in [&first, &second, &third] {
        assert_eq!(refresh(&stack, &token["refresh_token"]).await?.status.as_u16(), 401, "and ends the family");
    }
    let other = stack.producer().post("/api/auth/token", &json!({})).await?.ok()?;
    assert_eq!(refresh(&stack, &other["refresh_token"]).await?.status.as_u16(), 200, "another family goes on");
    let stored = stack.sql().await?.query("SELECT encode(hash, 'base64') FROM token_families", &[]).await?;
    assert!(stored.iter().all(|row| !text(&other, "refresh_token").contains(row.get::<_, &str>(0))));
    Ok(())
}

#[tokio::test]
async fn of_two_refreshes_at_once_one_wins_and_the_family_ends() -> Result<()> {
    let stack = Stack::start().await?;
    for _ in 0..5 {
        let first = stack.producer().post("/api/auth/token", &json!({})).await?.ok()?;
        let token = &first["refresh_token"];
        let (one, two) = tokio::try_join!(refresh(&stack, token), refresh(&stack, token))?;
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401]);
        let winner = if one.status.is_success() { one } else { two };
        assert_eq!(refresh(&stack, &winner.body["refresh_token"]).await?.status.as_u16(), 401);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_refresh_token_or_asks_for_more_than_the_key_is_refused() -> Result<()> {
    // No scheduler, which forgets what has expired as well.
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    for bad in [json!("phr_x"), json!(""), json!(stack.producer_key)] {
        let refused = refresh(&stack, &bad).await?;
        assert_eq!((refused.status.as_u16(), &refused.body["code"]), (401, &json!("unauthenticated")), "{bad}");
    }
    assert_eq!(refresh(&stack, &json!(7)).await?.status.as_u16(), 400);
    for (body, status) in [
        (json!({"role": "admin"}), 403),
        (json!({"role": "root"}), 400),
        (json!({"ttl": 999_999}), 400),
        (json!({"scope": "all"}), 400),
    ] {
        assert_eq!(stack.producer().post("/api/auth/token", &body).await?.status.as_u16(), status, "{body}");
    }
    assert_eq!(stack.api("").post("/api/auth/token", &json!({})).await?.status.as_u16(), 401);
    let tokens = stack.producer().post("/api/auth/token", &json!({})).await?.ok()?;
    let again = stack.api(text(&tokens, "access_token")).post("/api/auth/token", &json!({})).await?;
    assert_eq!(again.status.as_u16(), 403, "a token makes no tokens");
    stack.sql().await?.batch_execute("UPDATE token_families SET expires_at = now() - interval '1 s'").await?;
    assert_eq!(refresh(&stack, &tokens["refresh_token"]).await?.status.as_u16(), 401, "expired");
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 1)?;
    stack.producer().post("/api/auth/token", &json!({})).await?.ok()?;
    assert_eq!(
        (store.refresh_tokens().prune(10).await?, store.refresh_tokens().prune(10).await?),
        (1, 0),
        "the other one holds"
    );
    Ok(())
}

#[tokio::test]
async fn a_revoked_key_ends_everywhere_within_half_a_minute_and_its_refresh_tokens_at_once() -> Result<()> {
    let mut stack = Stack::start().await?;
    stack.launch("replica", Role::Ingest, &[]).await?;
    let made = stack.admin().post("/api/admin/keys", &json!({"role": "producer", "name": "shop"})).await?;
    assert_eq!(made.status.as_u16(), 201);
    let (id, key) = (text(&made.body, "id"), text(&made.body, "key"));
    let replica = Api::new(&format!("http://127.0.0.1:{}", stack.port("replica")?), key);
    let here = stack.api(key);
    here.get("/api/messages").await?.ok()?;
    replica.get("/api/messages").await?.ok()?;
    let tokens = here.post("/api/auth/token", &json!({})).await?.ok()?;

    assert_eq!(delete(&stack.admin(), &format!("/api/admin/keys/{id}")).await?, 204);
    let revoked = Instant::now();
    assert_eq!(refresh(&stack, &tokens["refresh_token"]).await?.status.as_u16(), 401);
    assert_eq!(
        replica.post("/api/auth/token", &json!({})).await?.status.as_u16(),
        401,
        "though it knows the key still"
    );
    assert_eq!(here.get("/api/messages").await?.status.as_u16(), 401, "where it was revoked, at once");
    // However long an answer takes: no request that begins later may get through. Only where the database does not answer,
    // a look-up fails, and for two seconds others go by what was known.
    let mut within = REVOKED_WITHIN;
    loop {
        let since = revoked.elapsed();
        match replica.request(Method::GET, "/api/messages", &[], None).await?.status.as_u16() {
            401 => break,
            503 => within += Duration::from_secs(3),
            status => assert!(since < within, "{status} after {since:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(delete(&stack.admin(), &format!("/api/admin/keys/{id}")).await?, 404, "it holds no longer");
    Ok(())
}

#[tokio::test]
async fn every_route_of_management_has_its_roles() -> Result<()> {
    let stack = Stack::start().await?;
    let (_, operator) = others(&stack)?;
    let as_role = |role: &str| Ok::<_, anyhow::Error>(stack.api(&stack.create_key("acme", role)?));
    let nobodies = [stack.producer(), as_role("agent")?, as_role("user")?];
    let reads = ["/api/admin/keys", "/api/admin/limits", "/api/admin/audit", "/api/admin/tenants"];
    for path in reads {
        for api in &nobodies {
            assert_eq!(api.get(path).await?.status.as_u16(), 403, "{path}");
        }
        assert_eq!(stack.api("").get(path).await?.status.as_u16(), 401, "{path}");
        operator.get(path).await?.ok()?;
        let of_admin = stack.admin().get(path).await?.status.as_u16();
        assert_eq!(of_admin, if path.ends_with("tenants") { 403 } else { 200 }, "{path}");
    }
    for api in &nobodies {
        assert_eq!(api.post("/api/admin/keys", &json!({"role": "user"})).await?.status.as_u16(), 403);
        assert_eq!(put(api, "/api/admin/limits", &json!({})).await?.status.as_u16(), 403);
        assert_eq!(delete(api, "/api/admin/keys/0191d8a0-0000-7000-8000-000000000001").await?, 403);
    }
    assert_eq!(stack.admin().post("/api/admin/tenants", &json!({"slug": "mine"})).await?.status.as_u16(), 403);
    let promoted = stack.admin().post("/api/admin/keys", &json!({"role": "operator"})).await?;
    assert_eq!(promoted.status.as_u16(), 403, "no admin makes operators");
    Ok(())
}

#[tokio::test]
async fn an_operator_manages_tenants_and_an_admin_sees_its_own_alone() -> Result<()> {
    let stack = Stack::start().await?;
    let (globex, operator) = others(&stack)?;
    let made = operator.post("/api/admin/tenants", &json!({"slug": "initech"})).await?;
    assert_eq!(made.status.as_u16(), 201);
    assert!(text(&made.body, "webhook_secret").starts_with("whsec_"));
    assert_eq!(operator.post("/api/admin/tenants", &json!({"slug": "initech"})).await?.status.as_u16(), 409);
    let bad = operator.post("/api/admin/tenants", &json!({"slug": "No Way"})).await?;
    assert_eq!((bad.status.as_u16(), bad.fields()), (400, vec!["slug".to_owned()]));
    let page = operator.get("/api/admin/tenants?limit=2").await?.ok()?;
    assert_eq!((&page["tenants"][0]["slug"], &page["tenants"][1]["slug"]), (&json!("initech"), &json!("globex")));
    let rest = operator.get(&format!("/api/admin/tenants?cursor={}", text(&page, "next_cursor"))).await?.ok()?;
    assert_eq!((&rest["tenants"][0]["slug"], &rest["next_cursor"]), (&json!("acme"), &Value::Null));

    let key = operator.post("/api/admin/keys?tenant=initech", &json!({"role": "admin"})).await?.ok()?;
    let initech = stack.api(text(&key, "key"));
    let listed = initech.get("/api/admin/keys").await?.ok()?;
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1);
    assert!(listed["keys"][0].get("key").is_none() && !listed.to_string().contains(text(&key, "key")));
    assert_eq!(operator.get("/api/admin/keys?tenant=globex").await?.ok()?["keys"].as_array().unwrap().len(), 1);
    assert_eq!(operator.get("/api/admin/keys").await?.ok()?["keys"].as_array().unwrap().len(), 5);

    let theirs = format!("/api/admin/keys/{}", text(&key, "id"));
    assert_eq!(delete(&globex, &theirs).await?, 404, "another tenant's key");
    for path in ["/api/admin/keys?tenant=initech", "/api/admin/limits?tenant=initech", "/api/admin/keys?tenant=nobody"]
    {
        assert_eq!(globex.get(path).await?.status.as_u16(), 404, "{path}");
    }
    assert_eq!(globex.post("/api/admin/keys?tenant=initech", &json!({"role": "user"})).await?.status.as_u16(), 404);
    assert_eq!(put(&globex, "/api/admin/limits?tenant=initech", &json!({})).await?.status.as_u16(), 404);
    initech.get("/api/admin/keys").await?.ok()?;
    assert_eq!(delete(&operator, &theirs).await?, 204);
    assert_eq!(initech.get("/api/admin/keys").await?.status.as_u16(), 401);
    Ok(())
}

#[tokio::test]
async fn a_limit_is_each_credentials_own_and_answers_say_what_is_left() -> Result<()> {
    // A bucket gets one request back every 4.8 hours: none while this looks on.
    let settings = [("RATE_LIMIT_MAX_REQUESTS", "5"), ("RATE_LIMIT_WINDOW_MS", "86400000")];
    let stack = Stack::start_with(&settings).await?;
    let producer = stack.producer();
    for left in ["4", "3", "2", "1", "0"] {
        let answer = producer.get("/api/messages").await?;
        assert_eq!((answer.status.as_u16(), answer.header("ratelimit-remaining")), (200, Some(left)));
        assert_eq!(answer.header("ratelimit-limit"), Some("5"));
    }
    let refused = producer.get("/api/messages").await?;
    assert_eq!((refused.status.as_u16(), &refused.body["code"]), (429, &json!("rate_limited")));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.header("x-request-id").is_some());
    let seconds = |name: &str| refused.header(name).unwrap().parse::<u64>().unwrap();
    assert!((16_000..=17_280).contains(&seconds("retry-after")), "a fifth of a day: {refused:?}");
    assert!((80_000..=86_400).contains(&seconds("ratelimit-reset")), "until it is full again: {refused:?}");
    assert_eq!(refused.header("ratelimit-remaining"), Some("0"));
    assert_eq!(stack.admin().get("/api/messages").await?.status.as_u16(), 200, "another key");

    // Invented keys, tokens that do not hold and no credential count for the address, five of them as well.
    let mut statuses = Vec::new();
    for credential in ["ph_invented", "", "ph_another", "a.b.c", "", "", "ph_third"] {
        statuses.push(stack.api(credential).get("/api/messages").await?.status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429]);
    assert_eq!(stack.admin().get("/api/messages").await?.status.as_u16(), 200, "a key that holds is not locked out");
    for path in ["/health", "/health/ready", "/metrics", "/docs/", "/openapi.json", "/asyncapi.yaml"] {
        let answer = stack.api("").get(path).await?;
        assert_eq!((answer.status.as_u16(), answer.header("ratelimit-limit")), (200, None), "{path}");
    }
    let webhook = stack.api("").post("/webhooks/nobody", &json!({})).await?;
    assert_ne!(webhook.status.as_u16(), 429);
    assert_eq!(webhook.header("ratelimit-limit"), Some("50"), "webhooks have a limit of their own");
    Ok(())
}

#[tokio::test]
async fn a_tenants_own_limit_wins_over_the_settings() -> Result<()> {
    let stack = Stack::start_with(&[("RATE_LIMIT_MAX_REQUESTS", "1000")]).await?;
    let (globex, operator) = others(&stack)?;
    let nothing = json!({"http_requests_per_minute": null, "whatsapp_per_minute": null});
    assert_eq!(globex.get("/api/admin/limits").await?.ok()?, nothing);
    let set = put(&operator, "/api/admin/limits?tenant=globex", &json!({"http_requests_per_minute": 3})).await?.ok()?;
    assert_eq!(set, json!({"http_requests_per_minute": 3, "whatsapp_per_minute": null}));
    let full = Instant::now();
    let limited = globex.get("/api/admin/limits").await?;
    assert_eq!((limited.header("ratelimit-limit"), limited.header("ratelimit-remaining")), (Some("3"), Some("2")));
    assert_eq!(stack.admin().get("/api/messages").await?.header("ratelimit-limit"), Some("1000"));
    // Three at once, and one more for each third of a minute that passes meanwhile.
    let mut taken = 1;
    let refused = loop {
        match globex.get("/api/messages").await?.status.as_u16() {
            200 => taken += 1,
            status => break status,
        }
        assert!(taken <= 3 + full.elapsed().as_secs() / 20, "{taken} after {:?}", full.elapsed());
    };
    assert_eq!((refused, taken >= 3), (429, true), "{taken}");

    let admin = stack.admin();
    let own =
        put(&admin, "/api/admin/limits", &json!({"http_requests_per_minute": 1000, "whatsapp_per_minute": 60})).await?;
    assert_eq!(own.ok()?["whatsapp_per_minute"], 60);
    let line = "SELECT rate::bigint FROM lines WHERE kind = 'tenant'";
    assert_eq!(stack.count(line).await?, 60, "the line that all its sessions share");
    for bad in [
        json!({"http_requests_per_minute": 1001}),
        json!({"http_requests_per_minute": 0}),
        json!({"whatsapp_per_minute": -1}),
    ] {
        assert_eq!(put(&admin, "/api/admin/limits", &bad).await?.status.as_u16(), 400, "{bad}");
    }
    assert_eq!(put(&admin, "/api/admin/limits", &json!({"sms_per_minute": 1})).await?.status.as_u16(), 400);
    let taken_back = put(&admin, "/api/admin/limits", &json!({"http_requests_per_minute": null})).await?.ok()?;
    assert_eq!(taken_back, json!({"http_requests_per_minute": null, "whatsapp_per_minute": 60}));
    Ok(())
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_of_its_tenant_and_nothing_else_is() -> Result<()> {
    let (stack, sink) = (Stack::start().await?, HttpSink::start_local().await?);
    let (globex, operator) = others(&stack)?;
    let admin = stack.admin();
    // An answer waits for its entry, but not for ever; entries are in the order in which they were written.
    let before = stack.count(ENTRIES).await?;
    let headers = [("X-Request-Id", "req-7")];
    let body = serde_json::to_vec(&json!({"role": "producer"}))?;
    let key = admin.request(Method::POST, "/api/admin/keys", &headers, Some(body)).await?.ok()?;
    stack.until_count(ENTRIES, before + 1).await?;
    delete(&admin, &format!("/api/admin/keys/{}", text(&key, "id"))).await?;
    stack.until_count(ENTRIES, before + 2).await?;
    put(&admin, "/api/admin/limits", &json!({"whatsapp_per_minute": 9})).await?.ok()?;
    stack.until_count(ENTRIES, before + 3).await?;
    put(&operator, "/api/admin/limits?tenant=globex", &json!({"whatsapp_per_minute": 9})).await?.ok()?;
    stack.until_count(ENTRIES, before + 4).await?;
    // None of these changes anything that is to be recorded.
    stack.producer().send(&json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {}})).await?;
    let drop = |dry_run: bool| json!({"filter": {"channel": "sms"}, "reason": "a test", "dry_run": dry_run});
    admin.post("/api/admin/dead-letters/drop", &drop(true)).await?.ok()?;
    assert_eq!(admin.post("/api/admin/keys", &json!({"role": "root"})).await?.status.as_u16(), 400);
    assert_eq!(stack.producer().post("/api/admin/keys", &json!({"role": "user"})).await?.status.as_u16(), 403);
    admin.get("/api/admin/audit").await?.ok()?;
    let dropped = admin.post("/api/admin/dead-letters/drop", &drop(false)).await?.ok()?;
    stack.until_count(ENTRIES, before + 5).await?;

    let list = admin.get("/api/admin/audit").await?.ok()?;
    let by_http: Vec<&Value> = entries(&list).iter().filter(|entry| !text(entry, "actor").starts_with("cli")).collect();
    let seen: Vec<(&str, &str)> = by_http.iter().map(|entry| (text(entry, "action"), text(entry, "target"))).collect();
    let key_id = text(&key, "id");
    let wanted = [
        ("POST /api/admin/dead-letters/drop", text(&dropped, "replay_id")),
        ("PUT /api/admin/limits", ""),
        ("DELETE /api/admin/keys/{id}", key_id),
        ("POST /api/admin/keys", key_id),
    ];
    assert_eq!(seen, wanted);
    let made = by_http[3];
    assert_eq!((&made["request_id"], &made["tenant"]), (&json!("req-7"), &json!("acme")));
    assert!(text(made, "actor").starts_with("admin:") && made.get("hash").is_none(), "{made}");

    let theirs = globex.get("/api/admin/audit?action=PUT").await?.ok()?;
    assert_eq!(entries(&theirs).len(), 1, "what an operator did to globex is globex's");
    assert!(text(&entries(&theirs)[0], "actor").starts_with("operator:"));
    let all = operator.get("/api/admin/audit?limit=200").await?.ok()?;
    assert_eq!(i64::try_from(entries(&all).len())?, stack.count(ENTRIES).await?);

    let only = |query: String| {
        let admin = admin.clone();
        async move { Ok::<_, anyhow::Error>(entries(&admin.get(&format!("/api/admin/audit?{query}")).await?.ok()?).len()) }
    };
    let actor = text(made, "actor");
    assert_eq!(only(format!("actor={actor}")).await?, 4);
    assert_eq!(only(format!("actor={actor}&action=DELETE%20/api/admin/keys")).await?, 1);
    assert_eq!(only(format!("since={}&actor={actor}", text(by_http[1], "at"))).await?, 2);
    assert_eq!(only(format!("until={}&actor={actor}", text(by_http[1], "at"))).await?, 2);
    for bad in ["limit=0", "cursor=x", "since=soon", "colour=red"] {
        assert_eq!(admin.get(&format!("/api/admin/audit?{bad}")).await?.status.as_u16(), 400, "{bad}");
    }
    let (mut walked, mut path) = (Vec::new(), "/api/admin/audit?limit=3".to_owned());
    loop {
        let page = admin.get(&path).await?.ok()?;
        walked.extend(entries(&page).clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("/api/admin/audit?limit=3&cursor={next}");
    }
    assert_eq!(&walked, entries(&list));
    Ok(())
}

#[tokio::test]
async fn a_call_that_may_have_changed_something_is_in_the_audit_log_with_how_it_ended() -> Result<()> {
    let (stack, waha) = (Stack::start().await?, HttpSink::start_local().await?);
    let admin = stack.admin();
    let before = stack.count(ENTRIES).await?;
    let session = json!({"name": "main", "base_url": waha.url(""), "api_key": "k", "webhook_secret": "s"});
    let id = text(&admin.post("/sessions", &session).await?.ok()?, "id").to_owned();
    stack.until_count(ENTRIES, before + 1).await?;
    // That it shall run is noted, whatever WAHA answers.
    waha.reply_by_default(Reply::status(401));
    assert_eq!(admin.post(&format!("/sessions/{id}/start"), &json!({})).await?.status.as_u16(), 502);
    stack.until_count(ENTRIES, before + 2).await?;
    waha.reply_by_default(Reply::status(404));
    assert_eq!(admin.post(&format!("/sessions/{id}/restart"), &json!({})).await?.status.as_u16(), 409);
    stack.until_count(ENTRIES, before + 3).await?;
    // WAHA unlinks the phone and does not know the session afterwards.
    waha.reply_to("/api/sessions/main/logout", Reply::ok());
    assert_eq!(admin.post(&format!("/sessions/{id}/logout"), &json!({})).await?.status.as_u16(), 409);
    assert_eq!(waha.requests_to("/api/sessions/main/logout").len(), 1);
    stack.until_count(ENTRIES, before + 4).await?;
    let list = admin.get("/api/admin/audit?action=POST%20/sessions").await?.ok()?;
    let seen: Vec<(&str, &str)> =
        entries(&list).iter().map(|entry| (text(entry, "action"), text(entry, "target"))).collect();
    let in_part = |status: u16| format!("{id} (in part: answered {status})");
    let (unknown, refused) = (in_part(409), in_part(502));
    let wanted = [
        ("POST /sessions/{id}/logout", unknown.as_str()),
        ("POST /sessions/{id}/restart", unknown.as_str()),
        ("POST /sessions/{id}/start", refused.as_str()),
        ("POST /sessions", ""),
    ];
    assert_eq!(seen, wanted);

    // An import that is refused has stored what came before the fault.
    let file = format!("user_id,name\nada,Ada\nbob,\"{}", "x".repeat(1_000_000));
    let url = format!("http://127.0.0.1:{}/api/users/import", stack.port("all")?);
    let import = reqwest::Client::new().post(url).bearer_auth(&stack.admin_key);
    let import = import.header("content-type", "text/csv").body(file).send().await?;
    assert_eq!(import.status().as_u16(), 400);
    stack.until_count(ENTRIES, before + 5).await?;
    let list = admin.get("/api/admin/audit?action=POST%20/api/users/import").await?.ok()?;
    assert!(text(&entries(&list)[0], "target").ends_with(" (in part: answered 400)"), "{list}");
    Ok(())
}

#[tokio::test]
async fn changes_made_at_once_by_two_processes_are_one_whole_chain_and_tampering_shows() -> Result<()> {
    let mut stack = Stack::start().await?;
    stack.launch("replica", Role::Ingest, &[]).await?;
    let replica = Api::new(&format!("http://127.0.0.1:{}", stack.port("replica")?), &stack.admin_key);
    let (admin, body) = (stack.admin(), json!({"role": "user"}));
    let before = stack.count(ENTRIES).await?;
    for _ in 0..10 {
        tokio::try_join!(
            admin.post("/api/admin/keys", &body),
            replica.post("/api/admin/keys", &body),
            replica.post("/api/admin/keys", &body)
        )?;
    }
    stack.until_count(ENTRIES, before + 30).await?;
    let verified = stack.cli_json(&["audit", "verify"])?;
    assert_eq!((&verified["holds"], &verified["entries"]), (&json!(true), &json!(before + 30)));
    let tamper = "ALTER TABLE audit_entries DISABLE TRIGGER ALL; UPDATE audit_entries SET target = '' WHERE id = 5; \
        ALTER TABLE audit_entries ENABLE TRIGGER ALL";
    assert!(stack.sql().await?.batch_execute("DELETE FROM audit_entries").await.is_err(), "it only grows");
    stack.sql().await?.batch_execute(tamper).await?;
    let broken = stack.cli(&["audit", "verify"]).unwrap_err().to_string();
    assert!(broken.contains("entry 5 is broken") && broken.contains("exit status: 1"), "{broken}");
    Ok(())
}

#[tokio::test]
async fn a_change_that_cannot_be_recorded_yet_stands_and_is_recorded_later() -> Result<()> {
    let stack = Stack::start().await?;
    let (globex, _) = others(&stack)?;
    globex.get("/api/messages").await?.ok()?;
    let before = stack.count(ENTRIES).await?;
    let sql = stack.sql().await?;
    sql.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(hashtext('posthaste.audit'))").await?;
    let admin = stack.admin();
    let made = admin.post("/api/admin/keys", &json!({"role": "user"})).await?;
    assert_eq!(made.status.as_u16(), 201, "the key exists, and is shown");
    // Many entries wait in one connection, and the others are left for questions.
    let reads = join_all((0..50).map(|_| admin.get("/api/webhooks/signing-secret")));
    let questions = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let asked = Instant::now();
            assert_eq!(globex.get("/api/messages").await?.status.as_u16(), 200);
            assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        }
        Ok::<_, anyhow::Error>(())
    };
    let (reads, answered) = tokio::join!(reads, questions);
    answered?;
    for read in reads {
        read?.ok()?;
    }
    assert_eq!(stack.count(ENTRIES).await?, before);
    // The first try runs into its lock timeout, is said to have failed, and is made again.
    eventually("the failure is said", SOON, || async {
        stack.logs().ok()?.contains("an audit entry could not be written").then_some(())
    })
    .await?;
    sql.batch_execute("ROLLBACK").await?;
    stack.until_count(ENTRIES, before + 51).await?;
    stack.cli(&["audit", "verify"])?;
    Ok(())
}

#[tokio::test]
async fn nothing_that_is_logged_shows_a_person() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[("RUST_LOG", "debug")]).await?;
    stack.launch("all", Role::All, &[]).await?;
    // An id of the caller's own making is in every log line about a message: here one that no caller should use.
    let planted = ["canary.person@example.com", "+4915112345678", "4111111111111111", "DE89370400440532013000"];
    for request_id in planted {
        let headers = [("X-Request-Id", request_id)];
        let body = json!({"channel": "webhook", "recipient": "http://127.0.0.1:9/refused", "data": {}});
        let producer = stack.producer();
        let sent =
            producer.request(Method::POST, "/api/notifications/send", &headers, Some(serde_json::to_vec(&body)?));
        let id = text(&sent.await?.ok()?, "id").to_owned();
        eventually("it was tried", SOON, || async {
            let timeline = producer.timeline(&id).await.ok()?;
            (!timeline["attempts"].as_array()?.is_empty()).then_some(())
        })
        .await?;
        let headers = [("X-Request-Id", request_id)];
        let body = serde_json::to_vec(&json!({"role": "user"}))?;
        stack.sql().await?.batch_execute("ALTER TABLE audit_head RENAME TO hidden").await?;
        stack.admin().request(Method::POST, "/api/admin/keys", &headers, Some(body)).await?.ok()?;
        stack.sql().await?.batch_execute("ALTER TABLE hidden RENAME TO audit_head").await?;
    }
    // Lines are written a moment after they are said.
    let masked = ["***@***", "+***", "[card]", "[iban]"];
    let logs = eventually(&format!("all of {masked:?} is said"), SOON, || async {
        let logs = stack.logs().ok()?;
        let lines: Vec<Value> = logs.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let said: Vec<&str> = lines.iter().filter_map(|line| line["request_id"].as_str()).collect();
        masked.iter().all(|one| said.contains(one)).then_some(logs)
    })
    .await?;
    for canary in planted {
        assert!(!logs.contains(canary), "{canary}");
    }
    Ok(())
}
