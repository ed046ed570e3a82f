//! Events of providers, signed by the providers' own libraries.

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{Stack, api::Answer, oracle::python};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const BASE: &str = "https://notify.example.com:8443/base";
const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:ses-events";

fn text(value: &Value, name: &str) -> Result<String> {
    value[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {value}"))
}

async fn form(stack: &Stack, path: &str, signature: &str, params: &[(&str, &str)]) -> Result<u16> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
    let request = reqwest::Client::new().post(format!("http://127.0.0.1:{}{path}", stack.port("all")?));
    let request = request.header("X-Twilio-Signature", signature);
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
    Ok(request.send().await?.status().as_u16())
}

async fn post(stack: &Stack, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    stack.api("").request(Method::POST, path, headers, Some(body.as_bytes().to_vec())).await
}

#[tokio::test]
async fn what_the_libraries_of_providers_sign_is_taken_and_nothing_else() -> Result<()> {
    let file = std::env::temp_dir().join(format!("oracle-sns-{}.pem", uuid::Uuid::now_v7().simple()));
    let sns_key = text(&python("sign_events.py", &json!({"do": "sns_key", "path": file}))?, "key")?;
    let sendgrid = python("sign_events.py", &json!({"do": "sendgrid_key"}))?;
    let stack = Stack::start_with(&[
        ("TWILIO_AUTH_TOKEN", TOKEN),
        ("PUBLIC_URL", BASE),
        ("SENDGRID_WEBHOOK_PUBLIC_KEY", &text(&sendgrid, "public")?),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_PATH", file.to_str().context("a path")?),
    ])
    .await?;

    let path = "/webhooks/twilio?delivery=0191d8a0-0000-7000-8000-000000000001";
    let params = [
        ("MessageSid", "SM1"),
        ("MessageStatus", "delivered"),
        ("To", "+4915112345678"),
        ("Body", "ä & b ✓"),
        ("Empty", ""),
    ];
    let named: serde_json::Map<String, Value> =
        params.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    for base in [BASE, "https://notify.example.com/base"] {
        let asked = json!({"do": "twilio", "token": TOKEN, "url": format!("{base}{path}"), "params": named});
        let signature = text(&python("sign_events.py", &asked)?, "signature")?;
        assert_eq!(form(&stack, path, &signature, &params).await?, 200, "{base}");
        assert_eq!(form(&stack, path, &signature, &params[1..]).await?, 401, "a parameter is missing");
    }
    for (token, url) in [("another", format!("{BASE}{path}")), (TOKEN, format!("https://example.com/base{path}"))] {
        let asked = json!({"do": "twilio", "token": token, "url": url, "params": named});
        let signature = text(&python("sign_events.py", &asked)?, "signature")?;
        assert_eq!(form(&stack, path, &signature, &params).await?, 401, "{token} {url}");
    }

    let now = domain::clock::now();
    let at = now.timestamp().to_string();
    let body = "[{\"event\":\"delivered\",\"sg_event_id\":\"ä\"}]\r\n";
    let mut asked = json!({"do": "sendgrid", "body": body, "timestamp": at});
    for name in ["key", "public"] {
        asked[name] = sendgrid[name].clone();
    }
    let signed = python("sign_events.py", &asked)?;
    assert_eq!(signed["verified"], true, "SendGrid's own verifier takes it");
    let signature = text(&signed, "signature")?;
    let headers = [
        ("X-Twilio-Email-Event-Webhook-Signature", signature.as_str()),
        ("X-Twilio-Email-Event-Webhook-Timestamp", at.as_str()),
    ];
    assert_eq!(post(&stack, "/webhooks/sendgrid", &headers, body).await?.status.as_u16(), 200);
    assert_eq!(post(&stack, "/webhooks/sendgrid", &headers, body.trim_end()).await?.status.as_u16(), 401);

    for (version, subject) in [("1", None), ("2", None), ("1", Some("Grüße")), ("2", Some("Grüße"))] {
        let mut message = json!({"Type": "Notification", "MessageId": uuid::Uuid::now_v7().to_string(), "TopicArn": TOPIC,
            "Message": "{\"eventType\":\"Send\",\"ä\":\"\\\"\\n\"}", "Timestamp": now.to_rfc3339(), "SignatureVersion": version,
            "SigningCertURL": "https://sns.eu-central-1.amazonaws.com/a.pem"});
        if let Some(subject) = subject {
            message["Subject"] = json!(subject);
        }
        let signed = python("sign_events.py", &json!({"do": "sns", "key": sns_key, "message": message}))?;
        message["Signature"] = signed["signature"].clone();
        let answer = post(&stack, "/webhooks/ses", &[], &message.to_string()).await?;
        assert_eq!(answer.status.as_u16(), 200, "{version} {subject:?}");
        message["SignatureVersion"] = json!(if version == "1" { "2" } else { "1" });
        let answer = post(&stack, "/webhooks/ses", &[], &message.to_string()).await?;
        assert_eq!(answer.status.as_u16(), 401, "the other version");
    }
    std::fs::remove_file(&file)?;
    Ok(())
}
