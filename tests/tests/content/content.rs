//! A tenant's content neither delays nor misleads other tenants: slow templates, texts that look encrypted, encrypted values in
//! another place.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use deliveries::{Deliveries, breakers::host_key};
use domain::{TenantId, seal};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use store::Store;
use testkit::{
    Role, Stack, TestServers,
    api::SOON,
    eventually, patient,
    rules::{event, rule, template, until_inbox_within},
};

const KEY: &str = "POSTHASTE_ENCRYPTION_KEY";

/// A text that takes all the time that a text may take: it loops over the list at the path `xs`.
fn slow(xs: &str) -> String {
    let each = |up: &str| format!("{{{{#each {up}{xs}}}}}");
    format!("{}{}{}x{{{{/each}}}}{{{{/each}}}}{{{{/each}}}}", each(""), each("../"), each("../../"))
}

/// The variables of a slow text.
fn much() -> Value {
    json!({"xs": (0..200).collect::<Vec<u32>>()})
}

/// Another tenant is answered within this time. The one HTTP thread would need twice as long for the hostile requests.
const IN_TIME: Duration = Duration::from_secs(8);
/// Events at once, each of which renders for half a second.
const HOSTILE_EVENTS: usize = 32;
/// Windows that are due together. One after the other they would take fifty seconds.
const HOSTILE_WINDOWS: usize = 100;
/// Another tenant's window closes within this time.
const CLOSES_IN: Duration = Duration::from_secs(30);

/// Makes another tenant; the key of its admin, who may also send.
fn other_tenant(stack: &Stack) -> Result<String> {
    stack.cli(&["tenant", "create", "beta"])?;
    stack.create_key("beta", "admin")
}

#[tokio::test]
async fn slow_templates_of_one_tenant_freeze_nobody() -> Result<()> {
    let stack = Stack::patient(&[("HTTP_WORKERS", "1")]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    let beta = stack.api(&other_tenant(&stack)?);
    template(&stack, "slow", &slow("xs")).await?;
    template(&stack, "slow_digest", &slow("items.0.xs")).await?;
    let body = json!({"name": "quick", "body": "{{count}}: {{n}}"});
    beta.post("/api/notifications/templates", &body).await?.ok()?;
    let digest = json!({"name": "digest", "body": "{{count}} events"});
    beta.post("/api/notifications/templates", &digest).await?.ok()?;

    // Events: a hundred rules, many requests at once; health and another tenant's event are answered meanwhile.
    for n in 0..100 {
        let body =
            json!({"name": format!("r{n}"), "event_type": "slow", "template_name": "slow", "channels": ["in_app"]});
        rule(&admin, &body).await?;
    }
    let quick = json!({"name": "q", "event_type": "quick", "template_name": "quick", "channels": ["in_app"]});
    rule(&beta, &quick).await?;
    let hostile = (0..HOSTILE_EVENTS).map(|_| event(&api, "slow", "eve", much()));
    let hostile = futures_util::future::try_join_all(hostile);
    let others = async {
        for n in 0..5 {
            let asked = async {
                stack.api("").get("/health/live").await?.ok()?;
                event(&beta, "quick", "ada", json!({"n": n})).await
            };
            tokio::time::timeout(IN_TIME, asked).await.context("another tenant waits for slow templates")??;
        }
        anyhow::Ok(())
    };
    let (slow, others) = tokio::join!(hostile, others);
    others?;
    for answer in slow? {
        let errors = answer["errors"].as_array().context("errors")?;
        assert_eq!((answer["matched_rules"].as_array().map(Vec::len), errors.len()), (Some(100), 100), "{answer}");
        let of = |field: &str| errors.iter().filter(|error| error["field"] == field).count();
        assert_eq!((of("template_name"), of("event_type")), (50, 50), "{errors:?}");
    }
    let dry = json!({"type": "slow", "user_id": "eve", "data": much()});
    let dry = tokio::time::timeout(IN_TIME, api.post("/api/events/dry-run", &dry)).await.context("a dry run")??.ok()?;
    assert_eq!(dry["matched_rules"].as_array().map(Vec::len), Some(100));

    // Digests: the windows of the slow rule are due first, and another tenant's closes all the same.
    let gathering = |template: &str| {
        json!({"name": "d", "event_type": "gathered", "template_name": template, "channels": ["in_app", "sms", "push"],
            "digest": {"window_seconds": 86400}})
    };
    rule(&admin, &gathering("slow_digest")).await?;
    rule(&beta, &gathering("digest")).await?;
    let users: Vec<String> = (0..HOSTILE_WINDOWS).map(|n| format!("eve{n}")).collect();
    for users in users.chunks(10) {
        let events = users.iter().map(|user| event(&api, "gathered", user, much()));
        futures_util::future::try_join_all(events).await?;
    }
    event(&beta, "gathered", "bea", json!({})).await?;
    let due = "UPDATE digests SET closes_at = now() - CASE tenant_id WHEN 1 THEN interval '1 minute' ELSE interval '1 second' END";
    stack.sql().await?.batch_execute(due).await?;
    until_inbox_within(&beta, "bea", &["1 events"], CLOSES_IN).await?;
    assert_eq!(stack.count("SELECT count(*) FROM digests WHERE tenant_id = 1 AND state = 'closed'").await?, 0);
    Ok(())
}

/// A text with the form of an encrypted value of an unknown key.
const LOOKS_SEALED: &str = "phs1:AHBoAUFBQUE";

#[tokio::test]
async fn a_text_that_looks_encrypted_is_no_address_and_harmless_where_it_is_stored() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[patient::PATIENT, &[]].concat()).await?;
    stack.launch("all", Role::All, &[]).await?;
    let api = stack.producer();
    let device = json!({"user_id": "mallory", "device_token": LOOKS_SEALED});
    let answer = api.post("/api/notifications/register-device", &device).await?;
    assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec!["device_token".to_owned()]));
    for (field, body) in [
        ("recipient", json!({"channel": "in_app", "recipient": LOOKS_SEALED, "message": "m"})),
        ("recipient", json!({"channel": "push", "recipient": LOOKS_SEALED, "message": "m"})),
        ("user_id", json!({"channel": "in_app", "user_id": LOOKS_SEALED, "recipient": "x", "message": "m"})),
    ] {
        let answer = api.post("/api/notifications/send", &body).await?;
        assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec![field.to_owned()]), "{body}");
    }

    // It is allowed as a text. A former version also stored it as an address, in the clear.
    let told = json!({"channel": "in_app", "recipient": "mallory", "user_id": "mallory", "title": LOOKS_SEALED, "message": "phs0:x"});
    let id = api.send(&told).await?;
    api.wait_status(&id, "delivered").await?;
    let device = json!({"user_id": "mallory", "device_token": "t"});
    api.post("/api/notifications/register-device", &device).await?.ok()?;
    let sql = stack.sql().await?;
    let print = seal::Sealer::default().fingerprint("1", LOOKS_SEALED).to_vec();
    sql.execute("UPDATE devices SET token = $1, token_hash = $2", &[&LOOKS_SEALED, &print]).await?;
    sql.execute("UPDATE deliveries SET recipient = $1", &[&LOOKS_SEALED]).await?;
    let shown = async |stack: &Stack| -> Result<()> {
        let (admin, api) = (stack.admin(), stack.producer());
        let list = api.get("/api/messages").await?.ok()?;
        assert_eq!(list["messages"][0]["deliveries"][0]["recipient"], LOOKS_SEALED, "{list}");
        let person = api.get("/api/users/mallory").await?.ok()?;
        assert_eq!(person["devices"].as_array().map(Vec::len), Some(1), "{person}");
        let file = admin.get("/api/users/mallory/export").await?.ok()?;
        assert_eq!(file["devices"][0]["token"], LOOKS_SEALED, "{file}");
        let inbox = api.get("/api/notifications/user/mallory").await?.ok()?;
        assert_eq!(inbox["notifications"][0]["title"], LOOKS_SEALED);
        api.post("/api/events", &json!({"type": "x", "user_id": "mallory", "data": {}})).await?.ok()?;
        Ok(())
    };
    shown(&stack).await?;

    // A key that comes later finds nothing that it could not write anew.
    let key = STANDARD.encode([7; 32]);
    stack.set(KEY, Some(&key));
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    let said = stack.cli(&["rotate-keys"])?;
    assert!(said.contains("is needed no more"), "{said}");
    shown(&stack).await?;
    assert_eq!(stack.count("SELECT count(*) FROM devices WHERE token ~ '^phs1:AHBoA[g-v]'").await?, 1);

    // From now on nothing plain is believed: who can write to the database puts no value of their own in its place.
    stack.set("POSTHASTE_ENCRYPTION_REQUIRED", Some("true"));
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    shown(&stack).await?;
    sql.execute("UPDATE deliveries SET recipient = 'eve'", &[]).await?;
    let list = stack.producer().get("/api/messages").await?.ok()?;
    assert_eq!(list["messages"][0]["deliveries"][0]["recipient"], "", "{list}");
    Ok(())
}

#[tokio::test]
async fn an_encrypted_value_opens_in_its_column_and_tenant_only_once_no_former_version_reads_any_more() -> Result<()> {
    let key = STANDARD.encode([7; 32]);
    let mut stack = Stack::prepare(TestServers::shared()?, &[patient::PATIENT, &[(KEY, &key)]].concat()).await?;
    // A database that a former version wrote: its check of the key is of the former format.
    let former = seal::Sealer::new([&SecretString::from(key.clone())])?;
    let check = former.seal(seal::Column("any").of_nobody(), b"posthaste")?;
    let sql = stack.sql().await?;
    sql.execute("UPDATE seal_check SET sealed = $1", &[&check]).await?;
    stack.launch("all", Role::All, &[]).await?;
    let format = |id: &str| format!("SELECT get_byte(content, 3)::int8 FROM messages WHERE id = '{id}'");
    let note =
        |text: &str| json!({"channel": "in_app", "recipient": "ada", "message": "m", "metadata": {"words": text}});
    let beta = other_tenant(&stack)?;
    let old = stack.producer().send(&note("before")).await?;
    stack.producer().wait_status(&old, "delivered").await?;
    assert_eq!(stack.count(&format(&old)).await?, 1, "what a former version beside this one can read");
    let former = former.requiring(seal::Required::Bound);
    let plain = runtime::config::DatabaseConfig::plain(&stack.database_url.parse()?);
    let bound = Store::open(&runtime::config::DatabaseConfig { sealer: former, ..plain }, 1)?;
    let refused = bound.check_keys().await.unwrap_err().to_string();
    assert!(refused.contains("run `posthaste rotate-keys`"), "{refused}");

    stack.cli(&["rotate-keys"])?;
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    let (api, beta) = (stack.producer(), stack.api(&beta));
    let (ours, theirs) = (api.send(&note("ours")).await?, beta.send(&note("canary of theirs")).await?);
    assert_eq!((stack.count(&format(&old)).await?, stack.count(&format(&ours)).await?), (2, 2));
    assert_eq!(api.message(&old).await?["metadata"]["words"], "before");
    api.wait_status(&ours, "delivered").await?;
    let moved = format!(
        "UPDATE messages SET content = (SELECT content FROM messages WHERE id = '{theirs}') WHERE id = '{ours}'"
    );
    sql.batch_execute(&moved).await?;
    let shown = api.message(&ours).await?;
    assert!(shown["metadata"].is_null() && !shown.to_string().contains("canary"), "{shown}");
    eventually("the log says so", SOON, || async {
        stack.logs().ok().filter(|logs| logs.contains("a stored value is left out"))
    })
    .await?;
    // The list does not end at it.
    let list = api.request(Method::GET, "/api/messages", &[], None).await?.ok()?;
    assert_eq!(list["messages"].as_array().map(Vec::len), Some(2), "{list}");
    let store = Store::open(&runtime::config::DatabaseConfig::plain(&stack.database_url.parse()?), 1)?;
    assert!(store.check_keys().await.is_err(), "without the key nothing starts");

    // A WAHA host that fails for one tenant, whose session may be wrong, stays open to others.
    let host = "http://127.0.0.1:9";
    let session = json!({"name": "s", "base_url": host, "api_key": "k", "webhook_secret": "a-secret-of-this-session"});
    for admin in [stack.admin(), beta] {
        admin.post("/sessions", &session).await?.ok()?;
    }
    store.breakers().record_failure(&host_key(TenantId(1), host), 1, 600_000).await?;
    let blocked =
        "SELECT sum(s.tenant_id)::int8 FROM lines l JOIN wa_sessions s USING (id) WHERE l.blocked_until > now()";
    assert_eq!(stack.count(blocked).await?, 1, "the line of the first tenant");
    Ok(())
}
