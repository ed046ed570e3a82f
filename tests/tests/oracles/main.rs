//! The outgoing requests and mails of Posthaste, checked by third-party programs. Each test has a negative twin.

mod browser;
mod email;
mod live;
mod provider_events;
mod push;
mod sms;
mod templates;
mod tls;
mod webhook;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{
    Stack,
    api::SOON,
    eventually,
    oracle::{Server, interpreter, python},
};

/// The outcomes of a message's attempts, once there is one.
async fn first_attempt(stack: &Stack, id: &str) -> Result<Value> {
    eventually("an attempt is in the timeline", 3 * SOON, || async {
        let timeline = stack.producer().timeline(id).await.ok()?;
        timeline["attempts"].get(0).cloned()
    })
    .await
}

/// A stand-in for Amazon that checks signatures, and a stack that is to use it.
struct Amazon {
    url: String,
    key: String,
    secret: String,
    _server: Server,
}

/// Servers in Python load half of what they need with the first request, which takes a busy machine seconds; and what an
/// attempt came to is judged here, so that none may end because of the time.
const PATIENT: [(&str, &str); 2] = [("PROVIDER_TIMEOUT_MS", "120000"), ("LEASE_MARGIN_MS", "120000")];

const REGION: &str = "eu-central-1";
const SENDER: &str = "noreply@example.com";

impl Amazon {
    async fn start() -> Result<Self> {
        let server = Server::start(|port| {
            let mut command = interpreter()?;
            command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
            Ok(command)
        })
        .await?;
        let url = format!("http://127.0.0.1:{}", server.port);
        let key = python("moto_ready.py", &json!({"url": url, "region": REGION, "sender": SENDER}))?;
        let text = |name: &str| key[name].as_str().map(str::to_owned).context("moto gave no key");
        Ok(Self { url, key: text("id")?, secret: text("secret")?, _server: server })
    }

    async fn stack(&self, secret: &str) -> Result<Stack> {
        let [timeout, margin] = PATIENT;
        Stack::start_with(&[
            timeout,
            margin,
            ("EMAIL_BACKEND", "ses"),
            ("EMAIL_FROM", SENDER),
            ("SMS_BACKEND", "sns"),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", &self.key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_ENDPOINT_URL", &self.url),
        ])
        .await
    }

    /// The requests that it took, by service.
    async fn taken(&self) -> Result<Value> {
        Ok(reqwest::get(format!("{}/moto-api/data.json", self.url)).await?.error_for_status()?.text().await?.parse()?)
    }
}

/// Signature Version 4 of both services; a wrong secret is refused and reported as such.
#[tokio::test]
async fn amazon_ses_and_sns_take_what_is_signed_by_the_right_secret_only() -> Result<()> {
    let amazon = Amazon::start().await?;
    let mail = json!({"channel": "email", "recipient": "ada@example.org", "title": "Grüße", "message": "Hallo, Ada"});
    let mut with_file = mail.clone();
    with_file["attachments"] = json!([{"filename": "a.txt", "content_type": "text/plain", "content": "aGVsbG8="}]);
    let sms = json!({"channel": "sms", "recipient": "+4915112345678", "message": "Kod: 42 ✓"});

    let stack = amazon.stack(&amazon.secret).await?;
    let mut ids = Vec::new();
    for body in [&mail, &with_file, &sms] {
        let id = stack.producer().send(body).await?;
        stack.producer().wait_status_within(&id, "sent", 3 * SOON).await?;
        let attempt = first_attempt(&stack, &id).await?;
        assert_eq!(attempt["outcome"], "sent", "{attempt}");
        ids.push(attempt["provider_message_id"].as_str().context("no id of the provider")?.to_owned());
    }
    let taken = amazon.taken().await?;
    let message = &taken["ses"]["Message"][0];
    assert_eq!((&message["subject"], &message["body"]), (&json!("Grüße"), &json!("Hallo, Ada")));
    assert_eq!(message["destinations"]["ToAddresses"], json!(["ada@example.org"]));
    assert_eq!(message["id"], json!(ids[0]));
    let raw = taken["ses"]["RawMessage"][0]["raw_data"].as_str().context("no raw mail")?;
    assert!(raw.contains("aGVsbG8=") && raw.contains("To: ada@example.org"), "{raw}");
    let text = &taken["sns"]["SMS"][0];
    assert_eq!((&text["message"], &text["phone_number"]), (&json!("Kod: 42 ✓"), &json!("+4915112345678")));
    assert_eq!(text["message_id"], json!(ids[2]));
    drop(stack);

    let stack = amazon.stack("not-the-secret").await?;
    for body in [&mail, &sms] {
        let id = stack.producer().send(body).await?;
        let attempt = first_attempt(&stack, &id).await?;
        assert_eq!(
            (&attempt["outcome"], &attempt["code"]),
            (&json!("misconfigured"), &json!("SignatureDoesNotMatch")),
            "{attempt}"
        );
    }
    let after = amazon.taken().await?;
    assert_eq!((&after["ses"]["Message"], &after["sns"]["SMS"]), (&taken["ses"]["Message"], &taken["sns"]["SMS"]));
    Ok(())
}
