//! The live inbox, followed by a WebSocket client of other people.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Stack, api::SOON, eventually, oracle::python};

fn token(stack: &Stack, user: &str) -> Result<String> {
    Ok(stack.cli(&["token", "--tenant", "acme", "--sub", user, "--role", "user"])?.trim().to_owned())
}

async fn send(stack: &Stack, title: &str) -> Result<()> {
    let id = stack
        .producer()
        .send(&json!({"channel": "in_app", "recipient": "ada", "title": title, "message": "Grüße ✓"}))
        .await?;
    stack.producer().wait_status(&id, "delivered").await?;
    Ok(())
}

fn titles(answer: &Value) -> Vec<&str> {
    let shown = answer["shown"].as_array().into_iter().flatten();
    shown.filter(|message| message["type"] == "notification").filter_map(|m| m["data"]["title"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_other_people_is_shown_what_comes_and_what_it_missed_and_refused_with_a_wrong_token() -> Result<()>
{
    let stack = Stack::start().await?;
    let ada = token(&stack, "ada")?;
    let socket = format!("ws://127.0.0.1:{}/ws/notifications/ada", stack.port("all")?);

    let live = json!({"url": format!("{socket}?token={ada}"), "count": 1});
    let following = tokio::task::spawn_blocking(move || python("live.py", &live));
    eventually("the client follows", SOON, || async {
        let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("all").ok()?)).await.ok()?;
        metrics.text().await.ok()?.contains("posthaste_ws_connections 1").then_some(())
    })
    .await?;
    send(&stack, "first").await?;
    let answer = following.await??;
    assert_eq!(titles(&answer), ["first"], "{answer}");
    assert_eq!((&answer["ponged"], &answer["code"]), (&json!(true), &json!(1000)), "{answer}");
    let first = answer["shown"][0]["data"]["id"].as_str().unwrap_or_default().to_owned();

    send(&stack, "second").await?;
    send(&stack, "third").await?;
    let resumed = json!({"url": format!("{socket}?since={first}"), "count": 2,
        "headers": {"Authorization": format!("Bearer {ada}")}});
    assert_eq!(titles(&python("live.py", &resumed)?), ["second", "third"]);
    let unknown =
        json!({"url": format!("{socket}?token={ada}&since=0191d8a0-0000-7000-8000-000000000001"), "count": 3});
    assert_eq!(titles(&python("live.py", &unknown)?), ["first", "second", "third"]);

    let (signed, signature) = ada.rsplit_once('.').unwrap_or_default();
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    let eve = token(&stack, "eve")?;
    for (token, status) in [(forged.as_str(), 401), ("", 401), (eve.as_str(), 403)] {
        let wrong = json!({"url": format!("{socket}?token={token}"), "count": 0});
        assert_eq!(python("live.py", &wrong)?, json!({"refused": status}));
    }
    Ok(())
}
