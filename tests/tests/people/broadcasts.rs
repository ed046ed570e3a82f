//! Broadcasts: each person of the target gets one message, whichever process dies; steering; counts.

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{Api, Role, Stack, api::SOON, check, eventually, patient::LONG};

const BROADCAST: &str = "/api/admin/notifications/broadcast";

/// People of tenant 1, from `u000000` on: every third of them premium, every second with an address; and one of whom only
/// preferences are known.
async fn people(stack: &Stack, count: i64) -> Result<()> {
    let sql = "INSERT INTO users (tenant_id, user_id, profile, locale, attributes)
        SELECT 1, 'u' || lpad(n::text, 6, '0'),
               convert_to(CASE n % 2 WHEN 0 THEN '{\"email\": \"u' || n || '@example.com\"}' ELSE '{}' END, 'UTF8'),
               CASE n % 2 WHEN 0 THEN 'de-AT' ELSE 'en' END,
               jsonb_build_object('tier', CASE n % 3 WHEN 0 THEN 'premium' ELSE 'free' END, 'age', n)
        FROM generate_series(0, $1::int8 - 1) n";
    let client = stack.sql().await?;
    client.execute(sql, &[&count]).await?;
    client.execute("INSERT INTO users (tenant_id, user_id, preferences) VALUES (1, 'u0-unknown', '{}')", &[]).await?;
    client.batch_execute("ANALYZE users").await?;
    Ok(())
}

fn body(target: Value, channels: &[&str]) -> Value {
    json!({"notification_type": "announcement", "title": "New", "message": "Check it out.", "target": target, "channels": channels})
}

async fn begin(admin: &Api, body: &Value) -> Result<String> {
    let answer = admin.post(BROADCAST, body).await?;
    anyhow::ensure!(answer.status.as_u16() == 202, "{} {}", answer.status, answer.body);
    answer.body["id"].as_str().map(str::to_owned).context("a 202 carries the id")
}

async fn show(admin: &Api, id: &str) -> Result<Value> {
    admin.get(&format!("{BROADCAST}s/{id}")).await?.ok()
}

async fn steer(admin: &Api, id: &str, word: &str) -> Result<u16> {
    Ok(admin.post(&format!("{BROADCAST}s/{id}/{word}"), &json!({})).await?.status.as_u16())
}

/// Waits until a broadcast is as wanted.
async fn until(admin: &Api, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let found = eventually(what, LONG, || async { show(admin, id).await.ok().filter(|shown| wanted(shown)) }).await;
    match found {
        Ok(shown) => Ok(shown),
        Err(late) => Err(late.context(format!("it stands at {:?}", show(admin, id).await))),
    }
}

async fn until_over(admin: &Api, id: &str) -> Result<Value> {
    until(admin, id, "the broadcast is over", |shown| shown["status"] == "completed" && shown["waiting"] == 0).await
}

fn numbers(shown: &Value, names: &[&str]) -> Vec<i64> {
    names.iter().map(|name| shown[*name].as_i64().unwrap_or(-1)).collect()
}

/// The template of the type writes each channel, for each person where it names them.
async fn check_templates(stack: &Stack, admin: &Api) -> Result<()> {
    for (name, text) in [("shared", "Again: {{message}}"), ("personal", "{{username}}: {{message}}")] {
        let template = json!({"name": name, "category": "news", "subject": "{{title}}!", "body": text});
        admin.post("/api/notifications/templates", &template).await?.ok()?;
        let mut asked = body(json!({"type": "users", "ids": ["u000007", "u000008"]}), &["in_app"]);
        asked["notification_type"] = json!(name);
        until_over(admin, &begin(admin, &asked).await?).await?;
        let item = stack.producer().get("/api/notifications/user/u000007").await?.ok()?["notifications"][0].clone();
        let wanted = if name == "shared" { "Again: Check it out." } else { "u000007: Check it out." };
        assert_eq!((&item["title"], &item["message"]), (&json!("New!"), &json!(wanted)), "{item}");
        let shares = "SELECT count(*) FROM messages WHERE content IS NOT NULL";
        assert_eq!(stack.count(shares).await?, if name == "shared" { 0 } else { 2 }, "what all hear is stored once");
    }
    let news = admin.get("/api/notifications/analytics/delivery?template=personal&category=news").await?.ok()?;
    assert_eq!(news["totals"]["delivered"], 2, "{news}");
    Ok(())
}

/// The list has eight broadcasts, without the names of people.
async fn check_list(stack: &Stack, admin: &Api) -> Result<()> {
    let shown = admin.get("/__mozaiks/admin/notifications/broadcasts?limit=2").await?.ok()?;
    assert_eq!(shown["broadcasts"][0]["target"], json!({"type": "users", "count": 2}), "{shown}");
    let next = shown["next_cursor"].as_str().context("there is more")?;
    let rest = admin.get(&format!("{BROADCAST}s?cursor={next}")).await?.ok()?;
    assert_eq!((rest["broadcasts"].as_array().map(Vec::len), &rest["next_cursor"]), (Some(6), &Value::Null), "{rest}");
    let named =
        "SELECT count(*) FROM broadcasts WHERE convert_from(definition, 'UTF8') LIKE '%nobody%' OR after_user <> ''";
    assert_eq!(stack.count(named).await?, 0, "the names are deleted once their messages are accepted");
    Ok(())
}

#[tokio::test]
async fn everybody_whom_a_target_means_is_told_once() -> Result<()> {
    let stack = Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let (admin, sql) = (stack.admin(), stack.sql().await?);
    people(&stack, 1200).await?;

    let all = begin(&admin, &body(json!({"type": "all"}), &["in_app"])).await?;
    let shown = until_over(&admin, &all).await?;
    assert_eq!(numbers(&shown, &["total", "told", "accepted", "delivered", "failed"]), [1200, 1200, 1200, 1200, 0]);
    let told = "SELECT count(*), count(DISTINCT user_id) FROM inbox WHERE tenant_id = 1";
    let row = sql.query_one(told, &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1200, 1200));
    let item = stack.producer().get("/api/notifications/user/u000007").await?.ok()?;
    assert_eq!(
        (&item["notifications"][0]["title"], &item["notifications"][0]["message"]),
        (&json!("New"), &json!("Check it out."))
    );

    // The printed request, under the printed prefix; those without an address fail alone.
    let printed = json!({"notification_type": "premium_feature", "title": "Premium Feature Unlocked", "message": "As a premium user, you now have access to...",
        "target": {"type": "subscription", "tier": "premium"}, "channels": ["in_app", "email"]});
    let answer = admin.post("/__mozaiks/admin/notifications/broadcast", &printed).await?;
    assert_eq!((answer.status.as_u16(), &answer.body["status"]), (202, &json!("running")), "{}", answer.body);
    let id = answer.body["id"].as_str().context("an id")?.to_owned();
    let shown = until_over(&admin, &id).await?;
    assert_eq!(
        numbers(&shown, &["total", "accepted", "delivered", "sent", "failed"]),
        [400, 800, 400, 200, 200],
        "{shown}"
    );
    let reasons = "SELECT count(*) FROM deliveries WHERE state = 'failed' AND reason = 'no_address'";
    assert_eq!(stack.count(reasons).await?, 200);

    for (target, total) in [
        (json!({"type": "attribute", "name": "age", "value": 17}), 1),
        (json!({"type": "attribute", "name": "age", "value": "17"}), 0),
        (
            json!({"type": "query", "conditions": [{"field": "locale", "op": "eq", "value": "de-AT"}, {"field": "attributes.age", "op": "lt", "value": 100}]}),
            50,
        ),
        (json!({"type": "users", "ids": ["u000003", "nobody", "u000003"]}), 2),
    ] {
        let id = begin(&admin, &body(target.clone(), &["in_app"])).await?;
        let shown = until_over(&admin, &id).await?;
        assert_eq!(numbers(&shown, &["total", "told", "delivered"]), [total; 3], "{target}");
    }
    check_templates(&stack, &admin).await?;
    check_list(&stack, &admin).await?;
    eventually("the counts are the log's", SOON, || async {
        (check::wrong_daily_counts(&stack).await.ok()? == 0).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_broadcast_is_asked_for_once_by_an_admin_and_says_what_is_wrong() -> Result<()> {
    let stack = Stack::start().await?;
    let admin = stack.admin();
    people(&stack, 3).await?;
    let asked = serde_json::to_vec(&body(json!({"type": "all"}), &["in_app"]))?;
    let post =
        async |body: Vec<u8>| admin.request(Method::POST, BROADCAST, &[("Idempotency-Key", "b1")], Some(body)).await;
    let (first, again) = (post(asked.clone()).await?, post(asked).await?);
    assert_eq!((first.status.as_u16(), &first.body), (again.status.as_u16(), &again.body));
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), (None, Some("true")));
    let other = post(serde_json::to_vec(&body(json!({"type": "all"}), &["push"]))?).await?;
    assert_eq!(other.status.as_u16(), 422, "{}", other.body);
    assert_eq!(stack.count("SELECT count(*) FROM broadcasts").await?, 1);
    // An answer waits for its entry, but not for ever.
    let audit = eventually("it is recorded", SOON, || async {
        let audit = admin.get("/api/admin/audit?action=POST%20/api/admin/notifications").await.ok()?.ok().ok()?;
        (audit["entries"] != json!([])).then_some(audit)
    })
    .await?;
    assert_eq!(audit["entries"].as_array().map(Vec::len), Some(1), "{audit}");
    assert_eq!(audit["entries"][0]["target"], first.body["id"]);

    for (change, field) in [
        (json!({"target": {"type": "everybody"}}), "target.type"),
        (json!({"target": {"type": "users", "ids": []}}), "target.ids"),
        (
            json!({"target": {"type": "query", "conditions": [{"field": "email", "op": "exists"}]}}),
            "target.conditions[0].field",
        ),
        (json!({"channels": ["fax"]}), "channels"),
        (json!({"channels": []}), "channels"),
        (json!({"channels": ["webhook"]}), "channels"),
        (json!({"title": null, "message": null}), "message"),
        (json!({"notification_type": null}), "notification_type"),
        (json!({"target": null}), "target"),
        (json!({"priority": "soon"}), "priority"),
        (json!({"scheduled_at": "tomorrow"}), "scheduled_at"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let mut asked = body(json!({"type": "all"}), &["in_app"]);
        asked.as_object_mut().context("an object")?.extend(change.as_object().cloned().unwrap_or_default());
        let answer = admin.post(BROADCAST, &asked).await?;
        assert_eq!(
            (answer.status.as_u16(), answer.fields()),
            (400, vec![field.to_owned()]),
            "{change}: {}",
            answer.body
        );
    }
    let id = first.body["id"].as_str().context("an id")?;
    assert_eq!(
        stack.producer().post(BROADCAST, &body(json!({"type": "all"}), &["in_app"])).await?.status.as_u16(),
        403
    );
    stack.cli(&["tenant", "create", "other"])?;
    let other = stack.api(&stack.create_key("other", "admin")?);
    assert_eq!(other.get(&format!("{BROADCAST}s/{id}")).await?.status.as_u16(), 404);
    assert_eq!(steer(&other, id, "cancel").await?, 404);
    assert_eq!(other.get(&format!("{BROADCAST}s")).await?.ok()?["broadcasts"], json!([]));
    let channels = admin.get("/__mozaiks/admin/notifications/channels").await?.ok()?;
    assert!(channels["channels"].is_array(), "{channels}");

    // A WhatsApp message needs a session to carry it.
    let mut real = Stack::prepare(stack.servers.clone(), &[("WHATSAPP_BACKEND", "waha")]).await?;
    real.launch("ingest", Role::Ingest, &[]).await?;
    let answer = real.admin().post(BROADCAST, &body(json!({"type": "all"}), &["whatsapp"])).await?;
    assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec!["channels".to_owned()]), "{}", answer.body);
    Ok(())
}

#[tokio::test]
async fn a_broadcast_stops_goes_on_and_ends_as_its_admin_says() -> Result<()> {
    // No worker runs: accepted messages wait, and paging stays a little ahead of them.
    let stack = Stack::start_apart(0, &[]).await?;
    let admin = stack.admin();
    people(&stack, 30_000).await?;
    let id = begin(&admin, &body(json!({"type": "all"}), &["in_app"])).await?;
    let ahead = until(&admin, &id, "enough waits", |shown| shown["told"].as_i64() >= Some(10_000)).await?;
    assert_eq!((&ahead["status"], &ahead["total"]), (&json!("running"), &json!(30_000)), "{ahead}");
    assert_eq!(steer(&admin, &id, "resume").await?, 409);
    assert_eq!(steer(&admin, &id, "pause").await?, 200);
    assert_eq!(steer(&admin, &id, "pause").await?, 409);
    let paused = show(&admin, &id).await?;
    assert!(paused["status"] == "paused" && paused["told"].as_i64() < Some(15_000), "{paused}");
    assert_eq!(steer(&admin, &id, "resume").await?, 200);
    assert_eq!(show(&admin, &id).await?["status"], "running");
    assert_eq!(steer(&admin, &id, "cancel").await?, 200);
    let words = ["pause", "resume", "cancel"];
    for word in words {
        assert_eq!(steer(&admin, &id, word).await?, 409, "{word}");
    }
    let over = until(&admin, &id, "the waiting messages are cancelled", |shown| shown["waiting"] == 0).await?;
    assert_eq!((&over["status"], &over["cancelled"]), (&json!("cancelled"), &over["accepted"]), "{over}");
    assert!(over["told"].as_i64() < Some(15_000), "no further message is accepted: {over}");
    assert_eq!(check::wrong_daily_counts(&stack).await?, 0);

    let soon = (domain::clock::now() + chrono::TimeDelta::hours(1)).to_rfc3339();
    let mut later = body(json!({"type": "users", "ids": ["u000001", "u000002"]}), &["in_app"]);
    later["scheduled_at"] = json!(soon);
    let id = begin(&admin, &later).await?;
    let shown = show(&admin, &id).await?;
    assert_eq!((&shown["status"], &shown["told"]), (&json!("scheduled"), &json!(0)), "{shown}");
    assert_eq!((steer(&admin, &id, "pause").await?, steer(&admin, &id, "resume").await?), (200, 200));
    // A person who is erased is forgotten here too.
    let erased = admin.request(Method::DELETE, "/api/users/u000002", &[], None).await?;
    assert!(erased.status.is_success(), "{}", erased.body);
    stack.until_count("SELECT count(*) FROM erasures", 0).await?;
    stack.sql().await?.execute("UPDATE broadcasts SET scheduled_at = now() WHERE status = 'scheduled'", &[]).await?;
    let shown = until(&admin, &id, "its time has come", |shown| shown["status"] == "completed").await?;
    assert_eq!(numbers(&shown, &["total", "told", "accepted"]), [1, 1, 1], "{shown}");
    Ok(())
}

#[tokio::test]
async fn the_printed_prefix_shows_and_steers_a_broadcast_too() -> Result<()> {
    let mut stack = Stack::prepare(testkit::TestServers::shared()?, &[]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let admin = stack.admin();
    let mut later = body(json!({"type": "users", "ids": ["ada"]}), &["in_app"]);
    later["scheduled_at"] = json!((domain::clock::now() + chrono::TimeDelta::hours(1)).to_rfc3339());
    let id = begin(&admin, &later).await?;
    let page = format!("/__mozaiks/admin/notifications/broadcasts/{id}");
    assert_eq!(admin.get(&page).await?.ok()?, show(&admin, &id).await?);
    stack.cli(&["tenant", "create", "other"])?;
    let strangers = [(stack.producer(), 403), (stack.api(&stack.create_key("other", "admin")?), 404)];
    let steps = [
        (format!("{page}/pause"), "paused"),
        (format!("{page}/resume"), "scheduled"),
        (format!("{page}/cancel"), "cancelled"),
    ];
    for (path, status) in steps {
        for (stranger, refused) in &strangers {
            assert_eq!(stranger.post(&path, &json!({})).await?.status.as_u16(), *refused, "{path}");
        }
        admin.post(&path, &json!({})).await?.ok()?;
        assert_eq!(
            (&show(&admin, &id).await?["status"], admin.post(&path, &json!({})).await?.status.as_u16()),
            (&json!(status), 409),
            "{path}"
        );
    }
    for (stranger, refused) in &strangers {
        assert_eq!(stranger.get(&page).await?.status.as_u16(), *refused);
    }
    Ok(())
}

#[tokio::test]
async fn invariant_l_d_a_scheduler_that_dies_in_mid_broadcast_leaves_nobody_out_and_tells_nobody_twice() -> Result<()> {
    let mut stack = Stack::patient_apart(1).await?;
    let admin = stack.admin();
    people(&stack, 3000).await?;
    stack.kill9("scheduler")?;
    let mut ids = Vec::new();
    for point in ["within_page:2", "after_page:2", "within_page:1"] {
        ids.push(begin(&admin, &body(json!({"type": "all"}), &["in_app"])).await?);
        stack.spawn("doomed", Role::Scheduler, &[("POSTHASTE_ABORT_AT", point)])?;
        stack.ended("doomed", LONG).await?;
    }
    assert!(stack.count("SELECT count(*) FROM messages").await? > 0, "it died in the middle");
    assert_eq!(stack.count("SELECT count(*) FROM broadcasts WHERE status = 'completed'").await?, 0);
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    stack.launch("second", Role::Scheduler, &[]).await?;
    for id in &ids {
        let shown = until_over(&admin, id).await?;
        assert_eq!(numbers(&shown, &["total", "told", "accepted", "delivered"]), [3000; 4], "{shown}");
        let told = format!("SELECT count(*), count(DISTINCT user_id) FROM messages WHERE bulk_id = '{id}'");
        let row = stack.sql().await?.query_one(&told, &[]).await?;
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3000, 3000));
    }
    assert_eq!(stack.count("SELECT count(*) FROM inbox").await?, 9000);
    eventually("the counts are the log's", SOON, || async {
        (check::wrong_daily_counts(&stack).await.ok()? == 0).then_some(())
    })
    .await
}
