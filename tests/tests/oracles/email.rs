//! E-mail.

use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use testkit::{
    HttpSink, Reply, Stack,
    api::SOON,
    eventually,
    oracle::{Server, interpreter, python, scripts},
};

use super::PATIENT;

fn mail() -> Value {
    json!({
        "channel": "email", "recipient": "ada@example.org", "title": "Grüße, eine lange Zeile für den Betreff, die gefaltet wird",
        "message": "first \t line \r\n.\r\n.dot\r\n\r\n", "html": "<p>Grüße</p>",
        "attachments": [{"filename": "räte.csv", "content_type": "text/csv; charset=utf-8", "content": "YTtiCg=="}],
    })
}

/// The body is the one that SendGrid's own client would have made.
#[tokio::test]
async fn a_mail_to_sendgrid_is_what_sendgrids_own_client_would_send() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::status(202).with_header("X-Message-Id", "14c5d75ce93.dfd.64b469"));
    let stack = Stack::start_with(&[
        ("EMAIL_BACKEND", "sendgrid"),
        ("EMAIL_FROM", "Posthaste Tests <noreply@example.com>"),
        ("SENDGRID_API_KEY", "SG.a.key"),
        ("SENDGRID_BASE_URL", &sink.url("")),
    ])
    .await?;
    let id = stack.producer().send(&mail()).await?;
    let message = stack.producer().wait_status(&id, "sent").await?;
    let delivery = message["deliveries"][0]["id"].as_str().context("no delivery")?;
    let requests = sink.wait_for(1, SOON).await?;
    assert_eq!((requests[0].method.as_str(), requests[0].target.as_str()), ("POST", "/v3/mail/send"));
    assert_eq!(requests[0].header("authorization"), Some("Bearer SG.a.key"));

    let body = requests[0].json()?;
    let leave = &body["headers"]["List-Unsubscribe"];
    assert!(leave.as_str().is_some_and(|url| url.contains("/api/notifications/unsubscribe/")), "{body}");
    let mail = mail();
    let mut asked = json!({
        "from": ["noreply@example.com", "Posthaste Tests"], "to": "ada@example.org", "subject": mail["title"],
        "text": mail["message"], "html": mail["html"], "files": [["räte.csv", "text/csv", "YTtiCg=="]],
        "headers": {
            "Message-ID": format!("<{delivery}@example.com>"),
            "X-Posthaste-Message-Id": id,
            "X-Posthaste-Delivery-Id": delivery,
            "List-Unsubscribe": leave,
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        },
        "custom_args": {"posthaste_delivery": delivery},
    });
    assert_eq!(requests[0].json()?, python("sendgrid_body.py", &asked)?);
    asked["subject"] = json!("another");
    assert_ne!(requests[0].json()?, python("sendgrid_body.py", &asked)?);
    Ok(())
}

/// The mail server, the parser and the verifier are all third-party programs.
#[tokio::test]
async fn a_signed_mail_over_smtp_is_read_and_verified_by_others() -> Result<()> {
    let files = std::env::temp_dir().join(format!("oracle-{}", uuid::Uuid::now_v7().simple()));
    std::fs::create_dir_all(&files)?;
    for kind in ["rsa", "rsa-pkcs1", "ed25519"] {
        let (key, taken) = (files.join(format!("{kind}.pem")), files.join(format!("{kind}.json")));
        let record = python("dkim_key.py", &json!({"kind": kind, "path": key}))?["record"].clone();
        let raw = sent_over_smtp(&key, &taken).await?;
        let held = |raw: &[u8], record: &Value| {
            let question = json!({"raw": STANDARD.encode(raw), "dns": {"s1._domainkey.example.com": record}});
            python("read_mail.py", &question)
        };
        let read = held(&raw, &record)?;
        assert_eq!((&read["dkim"], &read["defects"]), (&json!(true), &json!([])), "{kind}: {read}");
        assert_eq!(contents(&read), expected(), "{kind}");

        let at = raw.windows(5).position(|window| window == b"first").context("no text")?;
        let mut flipped = raw.clone();
        flipped[at] ^= 1;
        assert_eq!(held(&flipped, &record)?["dkim"], json!(false), "{kind}: a changed text");
        let other = String::from_utf8_lossy(&raw).replacen("From: ", "From: x", 1);
        assert_eq!(held(other.as_bytes(), &record)?["dkim"], json!(false), "{kind}: a changed sender");
        let url = String::from_utf8_lossy(&raw).replacen("/unsubscribe/", "/unsubscribe/x", 1);
        assert_eq!(held(url.as_bytes(), &record)?["dkim"], json!(false), "{kind}: another way out");
        let promise = String::from_utf8_lossy(&raw).replacen("=One-Click", "=Two-Clicks", 1);
        assert_eq!(held(promise.as_bytes(), &record)?["dkim"], json!(false), "{kind}: another promise");
        let added = [b"From: eve@example.net\r\n", &raw[..]].concat();
        assert_eq!(held(&added, &record)?["dkim"], json!(false), "{kind}: a second sender");
        let wrong = python("dkim_key.py", &json!({"kind": kind, "path": key}))?["record"].clone();
        assert_eq!(held(&raw, &wrong)?["dkim"], json!(false), "{kind}: another key");
    }
    std::fs::remove_dir_all(&files)?;
    Ok(())
}

/// The mail as the server got it, byte for byte.
async fn sent_over_smtp(key: &Path, taken: &Path) -> Result<Vec<u8>> {
    let server = Server::start(|port| {
        let mut command = interpreter()?;
        command.arg(scripts().join("smtp_server.py")).arg(port.to_string()).arg(taken);
        Ok(command)
    })
    .await?;
    let [timeout, margin] = PATIENT;
    let stack = Stack::start_with(&[
        timeout,
        margin,
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &server.port.to_string()),
        ("EMAIL_FROM", "Posthaste Tests <noreply@example.com>"),
        ("DKIM_DOMAIN", "example.com"),
        ("DKIM_SELECTOR", "s1"),
        ("DKIM_PRIVATE_KEY_PATH", &key.to_string_lossy()),
    ])
    .await?;
    let id = stack.producer().send(&mail()).await?;
    let message = stack.producer().wait_status(&id, "sent").await?;
    assert_eq!(message["deliveries"][0]["provider"], "smtp");
    let line = eventually("the mail server has it", SOON, || async {
        // The file is there before its line is.
        std::fs::read_to_string(taken).ok().filter(|text| text.ends_with('\n'))
    })
    .await?;
    let seen: Value = serde_json::from_str(line.trim())?;
    assert_eq!((&seen["sender"], &seen["recipients"]), (&json!("noreply@example.com"), &json!(["ada@example.org"])));
    Ok(STANDARD.decode(seen["raw"].as_str().context("no mail")?)?)
}

fn contents(read: &Value) -> (Value, Vec<(Value, Value, String)>) {
    let text = |part: &Value| {
        let bytes = STANDARD.decode(part["content"].as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    };
    let headers = read["headers"].as_array().unwrap();
    let subject = headers.iter().find(|header| header[0] == "Subject").unwrap()[1].clone();
    let parts = read["parts"].as_array().unwrap();
    (subject, parts.iter().map(|part| (part["type"].clone(), part["filename"].clone(), text(part))).collect())
}

fn expected() -> (Value, Vec<(Value, Value, String)>) {
    let mail = mail();
    let parts = vec![
        (json!("text/plain"), Value::Null, "first \t line \r\n.\r\n.dot".to_owned()),
        (json!("text/html"), Value::Null, "<p>Grüße</p>".to_owned()),
        (json!("text/csv"), json!("räte.csv"), "a;b".to_owned()),
    ];
    (mail["title"].clone(), parts)
}
