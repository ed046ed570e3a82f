//! Pages, in a real browser.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Role, Stack, TestServers, oracle::node};

/// The button works by keyboard and without scripts, the page loads nothing else, and a forged link has no effect.
#[tokio::test]
async fn a_reader_unsubscribes_with_one_button_in_a_browser() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[("EMAIL_BACKEND", "sandbox")]).await?;
    let port = servers::private::ports::find_free()?.to_string();
    stack.set("PUBLIC_URL", Some(&format!("http://127.0.0.1:{port}")));
    stack.launch("all", Role::All, &[("PORT", &port)]).await?;
    let api = stack.producer();
    let made = api.get("/api/notifications/unsubscribe-url/ada?category=Tips%20%3Cb%3E%26%20tricks").await?.ok()?;
    let url = made["url"].as_str().context("no url")?;
    let wanted = async || -> Result<Value> {
        let view = api.get("/api/notifications/preferences/ada").await?.ok()?;
        Ok(view["types"]["Tips <b>& tricks"].clone())
    };

    let looked = node("browser.cjs", &json!({"url": url}))?;
    assert_eq!(looked["before"]["status"], json!(200), "{looked}");
    assert_eq!(wanted().await?, Value::Null, "looking changes nothing");
    for scripts in [true, false] {
        let seen = node("browser.cjs", &json!({"url": url, "press": "Unsubscribe", "scripts": scripts}))?;
        let (before, after) = (&seen["before"], &seen["after"]);
        assert_eq!((&before["heading"], &before["language"]), (&json!("Unsubscribe"), &json!("en")), "{seen}");
        assert_eq!(before["buttons"], json!(["Unsubscribe"]), "{seen}");
        assert!(before["text"].as_str().is_some_and(|text| text.contains("Tips <b>& tricks")), "{seen}");
        assert_eq!((&after["status"], &after["url"]), (&json!(200), &json!(url)), "no redirect: {seen}");
        assert_eq!((&after["heading"], &after["buttons"]), (&json!("You are unsubscribed"), &json!([])), "{seen}");
        let asked = seen["requests"].as_array().context("requests")?;
        assert!(asked.iter().all(|request| request[1] == *url || request[1].as_str().is_some_and(is_icon)), "{seen}");
        assert_eq!(asked.iter().filter(|request| request[0] == "POST").count(), 1, "{seen}");
        assert!(wanted().await?["channels"].as_array().is_some_and(|by| !by.contains(&json!("email"))));
    }

    let middle = url.len() - 20;
    let other = if url.as_bytes().get(middle) == Some(&b'A') { "B" } else { "A" };
    let forged = format!("{}{other}{}", &url[..middle], &url[middle + 1..]);
    let refused = node("browser.cjs", &json!({"url": forged}))?;
    assert_eq!((&refused["before"]["status"], &refused["before"]["buttons"]), (&json!(404), &json!([])), "{refused}");
    Ok(())
}

/// Browsers look for it by themselves.
fn is_icon(url: &str) -> bool {
    url.ends_with("/favicon.ico")
}
