//! Events become messages by rules: matched, rendered, throttled, delayed; each event once.

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    Api, Role, Stack, eventually,
    rules::{change, event, inbox, keyed_event, person, rule, template, until_inbox},
};

fn in_app(event_type: &str, template: &str) -> Value {
    json!({"name": format!("{event_type} by {template}"), "event_type": event_type, "template_name": template, "channels": ["in_app"]})
}

fn with(mut body: Value, more: Value) -> Value {
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The event of the seed, as printed.
fn printed() -> Value {
    json!({"eventType": "subscription.payment_failed", "userId": "user-123",
        "data": {"subscriptionId": "sub-123", "failureReason": "insufficient_funds"}})
}

/// Rules by what they have to do with the event of the seed, and the person that it is about.
struct Scene {
    stack: Stack,
    admin: Api,
    producer: Api,
    exact: String,
    below: String,
    /// For people of a tier.
    gold: String,
    /// Its condition does not hold.
    unmet: String,
    /// Its template wants more than the event has.
    broken: String,
    off: String,
    /// By mail too, an hour later.
    mailed: String,
}

impl Scene {
    async fn start() -> Result<Self> {
        let stack = Stack::patient(&[]).await?;
        let (admin, producer) = (stack.admin(), stack.producer());
        template(&stack, "failed", "{{user.name}}: {{failureReason}} ({{event.type}})").await?;
        template(&stack, "plain", "something happened to {{user.id}}").await?;
        template(&stack, "broken", "{{not_there}}").await?;
        person(&stack, "user-123", &json!({"name": "Ada", "attributes": {"tier": "gold"}})).await?;
        let exact = rule(&admin, &in_app("subscription.payment_failed", "failed")).await?;
        let below = rule(&admin, &in_app("subscription.*", "plain")).await?;
        let gold = with(
            in_app("*", "plain"),
            json!({"conditions": [{"field": "user.attributes.tier", "op": "eq", "value": "gold"}]}),
        );
        let gold = rule(&admin, &gold).await?;
        let unmet =
            with(in_app("*", "plain"), json!({"conditions": [{"field": "data.amount", "op": "gt", "value": 1}]}));
        let unmet = rule(&admin, &unmet).await?;
        let broken = rule(&admin, &in_app("subscription.payment_failed", "broken")).await?;
        let off = rule(&admin, &with(in_app("*", "plain"), json!({"active": false}))).await?;
        let mailed = with(
            in_app("subscription.payment_failed", "plain"),
            json!({"channels": ["email", "in_app"], "delay_seconds": 3600}),
        );
        let mailed = rule(&admin, &mailed).await?;
        Ok(Self { stack, admin, producer, exact, below, gold, unmet, broken, off, mailed })
    }

    /// The event of the seed is answered with its messages, and they arrive.
    async fn check_event(&self) -> Result<()> {
        let Self { stack, producer, exact, below, gold, broken, mailed, .. } = self;
        let answer = producer.post("/api/events", &printed()).await?;
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
        assert_eq!(ids(&answer.body["matched_rules"]), [exact, below, gold, broken, mailed]);
        let messages = answer.body["messages"].as_array().context("messages")?.clone();
        let by: Vec<&str> = messages.iter().filter_map(|message| message["rule_id"].as_str()).collect();
        assert_eq!(by, [exact, below, gold, mailed]);
        assert_eq!(answer.body["errors"], json!([{"rule_id": broken, "field": "not_there", "message": "is missing"}]));
        let statuses: Vec<&Value> = messages.iter().map(|message| &message["status"]).collect();
        assert_eq!(statuses, ["queued", "queued", "queued", "scheduled"]);
        assert_eq!(messages[3]["deliveries"].as_array().map(Vec::len), Some(2));
        until_inbox(
            producer,
            "user-123",
            &[
                "Ada: insufficient_funds (subscription.payment_failed)",
                "something happened to user-123",
                "something happened to user-123",
            ],
        )
        .await?;
        let id = messages[0]["id"].as_str().context("id")?;
        let message = producer.wait_status(id, "delivered").await?;
        assert_eq!(
            (&message["metadata"]["rule_id"], &message["deliveries"][0]["id"]),
            (&json!(exact), &messages[0]["deliveries"][0]["id"])
        );
        let waiting = producer.message(messages[3]["id"].as_str().context("id")?).await?;
        assert!(waiting["status"] == "scheduled" && waiting["scheduled_at"].is_string(), "{waiting}");
        let logged = "SELECT count(*) FROM event_log WHERE user_id = 'user-123' AND cardinality(matched) = 5";
        assert_eq!(stack.count(logged).await?, 1);
        Ok(())
    }

    /// The dry run shows what would happen, and why, and stores nothing.
    async fn check_dry_run(&self) -> Result<()> {
        let Self { stack, producer, exact, below, gold, unmet, broken, off, mailed, .. } = self;
        let dry = producer.post("/api/events/dry-run", &printed()).await?.ok()?;
        assert_eq!(ids(&dry["matched_rules"]), [exact, below, gold, broken, mailed]);
        let view = |id: &str| {
            dry["rules"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|rule| rule["rule_id"] == id)
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(view(unmet)["condition"], json!({"index": 0, "field": "data.amount", "op": "gt", "value": 1}));
        assert_eq!((&view(unmet)["because"], &view(off)["because"]), (&json!("condition"), &json!("inactive")));
        assert_eq!(view(broken)["error"]["field"], "not_there");
        let mail = &view(mailed)["channels"][0];
        assert_eq!(
            (&mail["channel"], &mail["addresses"], &mail["allowed"]),
            (&json!("email"), &json!(0), &json!(true))
        );
        assert!(view(mailed)["scheduled_at"].is_string());
        assert_eq!(view(below)["channels"][0]["content"]["message"], "something happened to user-123");
        assert_eq!(stack.count("SELECT count(*) FROM event_log").await?, 1);
        assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 4);
        Ok(())
    }

    async fn check_metrics(&self) -> Result<()> {
        let metrics =
            reqwest::get(format!("http://127.0.0.1:{}/metrics", self.stack.port("all")?)).await?.text().await?;
        for name in ["posthaste_events_total", "posthaste_rules_matched_total", "posthaste_rule_errors_total 1"] {
            assert!(metrics.contains(name), "{name}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_event_becomes_a_message_by_every_rule_that_matches() -> Result<()> {
    let scene = Scene::start().await?;
    scene.check_event().await?;
    scene.check_dry_run().await?;
    scene.check_metrics().await
}

#[tokio::test]
async fn an_event_without_a_rule_is_stored_and_a_stranger_gets_what_needs_no_address() -> Result<()> {
    let Scene { stack, admin, producer, .. } = Scene::start().await?;
    let quiet = rule(&admin, &in_app("order.paid", "plain")).await?;
    let heard = event(&producer, "order.paid", "stranger", json!({})).await?;
    assert_eq!(ids(&heard["matched_rules"]), [&quiet]);
    until_inbox(&producer, "stranger", &["something happened to stranger"]).await?;
    let unheard = event(&producer, "nothing", "stranger", json!({"amount": "2"})).await?;
    assert_eq!((&unheard["matched_rules"], &unheard["messages"]), (&json!([]), &json!([])));
    let mail = with(in_app("mail.only", "plain"), json!({"channels": ["email"]}));
    rule(&admin, &mail).await?;
    let mail = event(&producer, "mail.only", "stranger", json!({})).await?;
    let failed = producer.wait_status(mail["messages"][0]["id"].as_str().context("id")?, "failed").await?;
    assert_eq!(failed["deliveries"][0]["reason"], "no_address");
    assert_eq!(stack.count("SELECT count(*) FROM event_log WHERE user_id = 'stranger'").await?, 3);
    Ok(())
}

#[tokio::test]
async fn rules_are_changed_listed_and_deleted_by_admins_of_their_tenant_only() -> Result<()> {
    let Scene { stack, admin, producer, exact, below, gold, mailed, .. } = Scene::start().await?;
    let quiet = rule(&admin, &in_app("order.paid", "plain")).await?;
    let heard = event(&producer, "order.paid", "stranger", json!({})).await?;
    assert_eq!(ids(&heard["matched_rules"]), [&quiet]);

    // A change holds for the next event; a list, a page, and what is not given stays.
    let changed = change(&admin, &quiet, &json!({"active": false})).await?;
    assert_eq!((&changed["active"], &changed["template_name"]), (&json!(false), &json!("plain")));
    assert_eq!(event(&producer, "order.paid", "stranger", json!({})).await?["matched_rules"], json!([]));
    let page = producer.get("/api/rules?limit=2").await?.ok()?;
    assert_eq!(page["rules"].as_array().map(Vec::len), Some(2));
    assert!(page["next_cursor"].is_string());
    let shown = producer.get(&format!("/api/rules/{mailed}")).await?.ok()?;
    assert_eq!((&shown["delay_seconds"], &shown["channels"]), (&json!(3600), &json!(["email", "in_app"])));
    let gone = admin.request(Method::DELETE, &format!("/api/rules/{gold}"), &[], None).await?;
    assert_eq!(gone.status.as_u16(), 204);
    assert_eq!(admin.get(&format!("/api/rules/{gold}")).await?.status.as_u16(), 404);
    assert_eq!(ids(&event(&producer, "subscription.renewed", "user-123", json!({})).await?["matched_rules"]), [&below]);

    // Rules belong to their tenant.
    stack.cli(&["tenant", "create", "globex"])?;
    let other = stack.api(&stack.create_key("globex", "admin")?);
    assert_eq!(other.get(&format!("/api/rules/{exact}")).await?.status.as_u16(), 404);
    assert_eq!(other.get("/api/rules").await?.ok()?["rules"], json!([]));
    assert_eq!(other.post("/api/events", &printed()).await?.ok()?["matched_rules"], json!([]));
    for (method, path) in [(Method::POST, "/api/rules".to_owned()), (Method::DELETE, format!("/api/rules/{exact}"))] {
        assert_eq!(producer.request(method, &path, &[], Some(b"{}".to_vec())).await?.status.as_u16(), 403);
    }
    Ok(())
}

#[tokio::test]
async fn faults_of_rules_and_events_are_named_and_an_event_that_is_refused_is_not_stored() -> Result<()> {
    let stack = Stack::start().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    template(&stack, "plain", "something happened to {{user.id}}").await?;
    let unknown = admin.post("/api/rules", &in_app("x", "nobody_wrote_it")).await?;
    assert_eq!((unknown.status.as_u16(), unknown.fields()), (400, vec!["template_name".to_owned()]));
    let empty = admin.post("/api/rules", &json!({})).await?;
    assert_eq!(empty.fields(), ["name", "event_type", "template_name", "channels"]);
    let bad = with(
        in_app("x", "plain"),
        json!({"digest": {"cron": "0 25 * * *"}, "throttle": {"limit": 0, "window_seconds": 1}}),
    );
    assert_eq!(admin.post("/api/rules", &bad).await?.fields(), ["digest.cron", "throttle.limit"]);
    assert_eq!(admin.post("/api/rules", &json!({"colour": 1})).await?.fields(), ["colour"]);
    let events = stack.count("SELECT count(*) FROM event_log").await?;
    for (body, fields) in [
        (json!({"eventType": "x"}), &["user_id"][..]),
        (json!({"eventType": "x", "userId": "a", "data": 1}), &["data"]),
    ] {
        let refused = producer.post("/api/events", &body).await?;
        assert_eq!(
            (refused.status.as_u16(), refused.fields()),
            (400, fields.iter().map(ToString::to_string).collect())
        );
    }
    assert_eq!(stack.count("SELECT count(*) FROM event_log").await?, events);
    Ok(())
}

#[tokio::test]
async fn invariant_k_an_event_under_a_key_happens_once() -> Result<()> {
    let mut stack = Stack::patient_apart(1).await?;
    stack.launch("second", Role::Ingest, &[]).await?;
    let (admin, one, other) = (stack.admin(), stack.api_of("ingest")?, stack.api_of("second")?);
    template(&stack, "plain", "{{n}}").await?;
    rule(&admin, &in_app("x", "plain")).await?;
    rule(&admin, &with(in_app("x", "plain"), json!({"digest": {"window_seconds": 86400}}))).await?;
    let limited = with(in_app("x", "plain"), json!({"throttle": {"limit": 2, "window_seconds": 3600}}));
    rule(&admin, &limited).await?;
    // The other process has made up its mind about rules a moment ago, and must have noticed by now.
    eventually("both know the rules", testkit::api::SOON, || async {
        let dry =
            other.post("/api/events/dry-run", &json!({"type": "x", "user_id": "a", "data": {"n": 1}})).await.ok()?;
        (ids(&dry.ok().ok()?["matched_rules"]).len() == 3).then_some(())
    })
    .await?;
    let body = json!({"type": "x", "user_id": "ada", "data": {"n": 1}});
    let mut first: Option<Value> = None;
    for round in 0..5 {
        let (left, right) = tokio::join!(keyed_event(&one, "k", &body), keyed_event(&other, "k", &body));
        for answer in [left?, right?] {
            assert_eq!(answer.status.as_u16(), 202, "{round}: {}", answer.body);
            assert_eq!(*first.get_or_insert_with(|| answer.body.clone()), answer.body);
        }
    }
    assert_eq!(keyed_event(&one, "k", &json!({"type": "x", "user_id": "eve"})).await?.status.as_u16(), 422);
    assert_eq!(stack.count("SELECT count(*) FROM event_log").await?, 1);
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 2);
    assert_eq!(stack.count("SELECT count(*) FROM digest_items").await?, 1);
    assert_eq!(stack.count("SELECT sum(cardinality(taken))::int8 FROM throttles").await?, 1, "repeats take no place");
    Ok(())
}

#[tokio::test]
async fn a_throttle_holds_for_each_person_across_replicas_and_what_is_over_it_is_suppressed() -> Result<()> {
    let mut stack = Stack::patient_apart(1).await?;
    stack.launch("second", Role::Ingest, &[]).await?;
    let (admin, one, other) = (stack.admin(), stack.api_of("ingest")?, stack.api_of("second")?);
    template(&stack, "plain", "{{n}}").await?;
    let limited =
        rule(&admin, &with(in_app("x", "plain"), json!({"throttle": {"limit": 3, "window_seconds": 3600}}))).await?;
    let dry = json!({"type": "x", "user_id": "ada", "data": {"n": 1}});
    eventually("both know the rule", testkit::api::SOON, || async {
        let dry = other.post("/api/events/dry-run", &dry).await.ok()?.ok().ok()?;
        (dry["rules"][0]["throttle"]["left"] == 3).then_some(())
    })
    .await?;
    let at_once = (0..20).map(|n| event(if n % 2 == 0 { &one } else { &other }, "x", "ada", json!({"n": n})));
    let answers = futures_util::future::try_join_all(at_once).await?;
    let mut told = 0;
    for answer in &answers {
        assert_eq!(ids(&answer["matched_rules"]), [&limited], "a rule that is throttled has matched all the same");
        let message = &answer["messages"][0];
        let id = message["id"].as_str().context("id")?;
        if message["reason"] == "throttled" {
            let ended = one.wait_status(id, "suppressed").await?;
            assert_eq!(ended["deliveries"][0]["reason"], "throttled");
        } else {
            one.wait_status(id, "delivered").await?;
            told += 1;
        }
    }
    assert_eq!((told, inbox(&one, "ada").await?.len()), (3, 3));
    let dry = one.post("/api/events/dry-run", &dry).await?.ok()?;
    assert_eq!(dry["rules"][0]["throttle"], json!({"limit": 3, "window_seconds": 3600, "left": 0}));
    event(&other, "x", "eve", json!({"n": 1})).await?;
    until_inbox(&one, "eve", &["1"]).await?;
    // The window slides: with the oldest moment out of it there is one place.
    let older = "UPDATE throttles SET taken[1] = now() - interval '3601 seconds' WHERE user_id = 'ada'";
    assert_eq!(stack.sql().await?.execute(older, &[]).await?, 1);
    assert_eq!(event(&one, "x", "ada", json!({"n": 1})).await?["messages"][0]["reason"], Value::Null);
    assert_eq!(event(&one, "x", "ada", json!({"n": 1})).await?["messages"][0]["reason"], "throttled");
    Ok(())
}
