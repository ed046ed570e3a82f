//! Help for tests of events: templates, people, rules and inboxes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{Api, Stack, api::Answer, api::SOON, eventually};

/// Makes a template that says one text on every channel.
pub async fn template(stack: &Stack, name: &str, text: &str) -> Result<()> {
    let parts = json!({"default": {"title": name, "message": text}}).to_string();
    let sql = stack.sql().await?;
    let query = "INSERT INTO templates (id, tenant_id, name, parts) VALUES (gen_random_uuid(), 1, $1, $2::text::jsonb)";
    sql.execute(query, &[&name, &parts]).await?;
    Ok(())
}

/// Makes a person known, or changes one.
pub async fn person(stack: &Stack, id: &str, body: &Value) -> Result<()> {
    let profile = serde_json::to_vec(&json!({"email": body["email"], "phone": body["phone"], "name": body["name"]}))?;
    let zone = body["time_zone"].as_str();
    let attributes = body.get("attributes").cloned().unwrap_or_else(|| json!({})).to_string();
    let query = "INSERT INTO users (tenant_id, user_id, profile, time_zone, attributes) VALUES (1, $1, $2, $3, $4::text::jsonb)
        ON CONFLICT (tenant_id, user_id) DO UPDATE SET profile = excluded.profile, time_zone = excluded.time_zone, attributes = excluded.attributes";
    stack.sql().await?.execute(query, &[&id, &profile, &zone, &attributes]).await?;
    Ok(())
}

/// Makes a rule; its id.
pub async fn rule(admin: &Api, body: &Value) -> Result<String> {
    let made = admin.post("/api/rules", body).await?.ok()?;
    made["id"].as_str().map(str::to_owned).context("a rule has an id")
}

/// Changes a rule.
pub async fn change(admin: &Api, id: &str, body: &Value) -> Result<Value> {
    admin.request(Method::PUT, &format!("/api/rules/{id}"), &[], Some(serde_json::to_vec(body)?)).await?.ok()
}

/// Sends an event that must be accepted; the answer.
pub async fn event(api: &Api, event_type: &str, user: &str, data: Value) -> Result<Value> {
    let body = json!({"event_type": event_type, "user_id": user, "data": data});
    keyed_event(api, &format!("event-{}", uuid::Uuid::now_v7()), &body).await?.ok()
}

/// Sends an event under a key, and again where the database was too slow, as a careful client does: whether it was accepted is
/// unknown, and its key makes sure that it is accepted once.
pub async fn keyed_event(api: &Api, key: &str, body: &Value) -> Result<Answer> {
    let (begun, text) = (Instant::now(), serde_json::to_vec(body)?);
    loop {
        let key = [("Idempotency-Key", key)];
        let answer = api.request(Method::POST, "/api/events", &key, Some(text.clone())).await?;
        let is_late = answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.body["code"] == "unavailable";
        if !is_late || begun.elapsed() >= SOON {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The texts in a person's inbox, the oldest first.
pub async fn inbox(api: &Api, user: &str) -> Result<Vec<String>> {
    let (mut texts, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/notifications/user/{user}?limit=200{cursor}")).await?.ok()?;
        let items = page["notifications"].as_array().cloned().unwrap_or_default();
        texts.extend(items.iter().filter_map(|item| item["message"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    texts.reverse();
    Ok(texts)
}

/// Waits until a person's inbox holds these texts, in any order.
pub async fn until_inbox(api: &Api, user: &str, wanted: &[&str]) -> Result<()> {
    until_inbox_within(api, user, wanted, SOON).await
}

/// As [`until_inbox`], within another time.
pub async fn until_inbox_within(api: &Api, user: &str, wanted: &[&str], limit: Duration) -> Result<()> {
    let mut wanted: Vec<&str> = wanted.to_vec();
    wanted.sort_unstable();
    let arrived = eventually("the texts arrive", limit, || async {
        let mut texts = inbox(api, user).await.ok()?;
        texts.sort_unstable();
        (texts == wanted).then_some(())
    });
    arrived.await.with_context(|| format!("{user}: wanted {wanted:?}"))
}
