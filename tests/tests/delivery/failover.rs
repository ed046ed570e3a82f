//! Providers that fail, and addresses that died.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use reqwest::StatusCode;
use serde_json::json;
use servers::sinks::smtp::SmtpSink;
use testkit::{Stack, TestServers, api::SOON, eventually};
use tokio::net::TcpSocket;

/// An address without a listener: connections are refused, and no other process gets the port while this lives. A listener of the test
/// can still take it over.
fn unserved() -> Result<(TcpSocket, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// A mail server that is gone, with the sandbox behind it.
async fn without_a_mail_server(more: &[(&str, &str)]) -> Result<(Stack, TcpSocket)> {
    let (gone, address) = unserved()?;
    let port = address.port().to_string();
    let settings = [
        ("EMAIL_BACKEND", "smtp,sandbox"),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", port.as_str()),
        ("EMAIL_FROM", "us@example.com"),
        ("RETRY_BASE_MS", "60000"),
    ];
    Ok((Stack::patient(&[settings.as_slice(), more].concat()).await?, gone))
}

#[tokio::test]
async fn a_dead_provider_gives_way_at_once_and_after_a_few_failures_is_not_even_asked() -> Result<()> {
    let (stack, _gone) = without_a_mail_server(&[("BREAKER_FAILURES", "3"), ("BREAKER_OPEN_MS", "600000")]).await?;
    let api = stack.producer();
    let mail = json!({"channel": "email", "recipient": "ada@example.com", "subject": "Hi", "message": "Hello"});
    let first = api.send(&mail).await?;
    api.wait_status(&first, "sent").await?;
    let timeline = api.timeline(&first).await?;
    let asked: Vec<_> =
        timeline["attempts"].as_array().into_iter().flatten().map(|a| (&a["provider"], &a["outcome"])).collect();
    assert_eq!(asked, [(&json!("smtp"), &json!("transient")), (&json!("sandbox"), &json!("sent"))], "{timeline}");

    for _ in 0..2 {
        let id = api.send(&mail).await?;
        api.wait_status(&id, "sent").await?;
    }
    let state = async || -> Option<serde_json::Value> {
        let channels = stack.admin().get("/api/admin/notifications/channels").await.ok()?.body;
        let email = channels["channels"].as_array()?.iter().find(|channel| channel["channel"] == "email")?.clone();
        Some(email["providers"][0].clone())
    };
    eventually("the breaker is open", SOON, || async { (state().await?["state"] == "open").then_some(()) }).await?;
    let later = api.send(&mail).await?;
    api.wait_status(&later, "sent").await?;
    let timeline = api.timeline(&later).await?;
    assert_eq!(timeline["attempts"].as_array().map(Vec::len), Some(1), "an open breaker costs no attempt: {timeline}");
    assert_eq!(timeline["attempts"][0]["provider"], "sandbox");
    assert!(timeline["attempts"][0]["detail"].as_str().is_some_and(|text| text.contains("instead of smtp")));
    Ok(())
}

#[tokio::test]
async fn invariant_l_a_provider_that_dies_under_load_loses_nothing_and_the_next_one_takes_over() -> Result<()> {
    let sink = SmtpSink::start_local().await?;
    let port = sink.address().port().to_string();
    let settings = [
        ("EMAIL_BACKEND", "smtp,sandbox"),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", port.as_str()),
        ("EMAIL_FROM", "us@example.com"),
        ("BREAKER_OPEN_MS", "600000"),
    ];
    let stack = Stack::patient(&settings).await?;
    let api = stack.producer();
    let people: Vec<String> = (0..600).map(|n| format!("person{n}@example.com")).collect();
    let body = json!({"channel": "email", "recipients": people, "subject": "Hi", "message": "Hello"});
    let bulk = api.post("/api/notifications/send-bulk", &body).await?.ok()?;
    let before = sink.wait_for(50, SOON).await?.len();
    drop(sink);
    let unfinished = "SELECT count(*) FROM deliveries WHERE state <> 'sent'";
    eventually("every mail is sent", Duration::from_secs(150), || async {
        (stack.count(unfinished).await.ok()? == 0).then_some(())
    })
    .await?;
    assert_eq!(bulk["sent"], 600);
    let by_next = stack.count("SELECT count(*) FROM deliveries WHERE provider = 'sandbox'").await?;
    assert!(
        by_next > 0 && by_next <= 600 - i64::try_from(before)? + 64,
        "{by_next} went by the next one after {before}"
    );
    let calls = "SELECT count(*) - count(DISTINCT (delivery_id, run)) FROM delivery_events WHERE provider IS NOT NULL";
    assert_eq!(stack.count(calls).await?, 0, "one call for each run");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_providers_says_which_one_cannot_be_used_and_sends_nothing() -> Result<()> {
    let sink = SmtpSink::start_local().await?;
    let port = sink.address().port().to_string();
    let settings = [("SMTP_HOST", "127.0.0.1"), ("SMTP_PORT", port.as_str()), ("EMAIL_FROM", "us@example.com")];
    let mut stack = Stack::prepare(TestServers::shared()?, &settings).await?;
    let found = stack.cli_json(&["provider", "check"])?;
    let of = |name: &str| found.as_array().into_iter().flatten().find(|row| row["provider"] == name).cloned();
    assert_eq!(of("smtp").map(|row| row["ok"].clone()), Some(json!(true)), "{found}");
    assert!(of("http").is_some() && of("inbox").is_some(), "{found}");
    assert!(sink.mails().is_empty());
    let (_gone, address) = unserved()?;
    stack.set("SMTP_PORT", Some(&address.port().to_string()));
    let error = stack.cli(&["provider", "check", "--channel", "email"]).unwrap_err().to_string();
    assert!(error.contains("FAILED") && error.contains("smtp") && !error.contains("inbox"), "{error}");
    Ok(())
}

#[tokio::test]
async fn behind_an_open_breaker_deliveries_wait_without_attempts_and_a_probe_finds_the_provider_back() -> Result<()> {
    let (_gone, address) = unserved()?;
    let port = address.port().to_string();
    let settings = [
        ("EMAIL_BACKEND", "smtp"),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", port.as_str()),
        ("EMAIL_FROM", "us@example.com"),
        ("RETRY_BASE_MS", "100"),
        ("RETRY_MAX_MS", "200"),
        ("BREAKER_FAILURES", "3"),
        ("BREAKER_OPEN_MS", "3000"),
        // As many probes as a slow machine makes before the server is back.
        ("RETRY_MAX_ATTEMPTS", "1000"),
    ];
    let stack = Stack::patient(&settings).await?;
    let api = stack.producer();
    let mail = json!({"channel": "email", "recipient": "ada@example.com", "subject": "Hi", "message": "Hello"});
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(api.send(&mail).await?);
    }
    let open = "SELECT count(*) FROM breakers WHERE state = 'open'";
    eventually("the breaker is open", SOON, || async { (stack.count(open).await.ok()? == 1).then_some(()) }).await?;
    let attempts = "SELECT count(*) FROM delivery_events WHERE provider IS NOT NULL";
    let begun = std::time::Instant::now();
    let before = stack.count(attempts).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let spent = stack.count(attempts).await? - before;
    let probes = i64::try_from(begun.elapsed().as_secs())? / 3 + 1;
    assert!(spent <= 20 + probes, "a call of each that was under way, and probes, at most: {spent}");

    let back = SmtpSink::start(address).await?;
    for id in &ids {
        api.wait_status_within(id, "sent", Duration::from_secs(100)).await?;
    }
    assert_eq!(back.mails().len(), 20, "each once");
    Ok(())
}

#[tokio::test]
async fn an_address_that_died_is_suppressed_until_it_is_lifted() -> Result<()> {
    let stack = Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let api = stack.producer();
    let mail = |to: &str| json!({"channel": "email", "recipient": to, "subject": "Hi", "message": "Hello"});
    let dead = api.send(&mail("fail-dead@example.com")).await?;
    api.wait_status(&dead, "failed").await?;
    let list = "/api/suppressions?recipient=Fail-Dead@Example.com";
    let found = stack.admin().get(list).await?.body;
    let entry = found["suppressions"][0].clone();
    assert_eq!((&entry["channel"], &entry["reason"]), (&json!("email"), &json!("address_dead")), "{found}");
    assert_eq!(entry["recipient"], "fail-dead@example.com");

    let later = api.send(&mail("FAIL-dead@example.com")).await?;
    api.wait_status(&later, "suppressed").await?;
    let timeline = api.timeline(&later).await?;
    assert_eq!(timeline["attempts"], json!([]), "no provider was called");

    stack.cli(&["tenant", "create", "other"])?;
    let other = stack.api(&stack.create_key("other", "admin")?);
    assert_eq!(other.get(list).await?.body["suppressions"], json!([]));
    let path = format!("/api/suppressions/{}", entry["id"].as_str().unwrap_or_default());
    assert_eq!(other.request(reqwest::Method::DELETE, &path, &[], None).await?.status, StatusCode::NOT_FOUND);
    let lifted = stack.admin().request(reqwest::Method::DELETE, &path, &[], None).await?;
    assert_eq!(lifted.status, StatusCode::NO_CONTENT);
    let again = api.send(&mail("fail-dead@example.com")).await?;
    api.wait_status(&again, "failed").await?;
    Ok(())
}
