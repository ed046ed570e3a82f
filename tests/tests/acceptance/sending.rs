//! A posted message is delivered and logged: each channel, each kind of answer, each thing a producer may ask.

use std::time::Duration;

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use testkit::{
    HttpSink, Reply, SmtpSink, Stack,
    api::SOON,
    check, eventually,
    patient::{LONG, PATIENT},
    smtp,
};

fn webhook(sink: &HttpSink, path: &str) -> Value {
    json!({"channel": "webhook", "recipient": sink.url(path), "data": {"order": 42, "note": "ü"}})
}

fn events(timeline: &Value) -> Vec<&str> {
    timeline["events"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_webhook_arrives_signed_and_its_timeline_tells_what_happened() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let api = stack.producer();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("X-Request-Id", "req-1"), ("traceparent", trace)];
    let body = serde_json::to_vec(&webhook(&sink, "/hook"))?;
    let answer = api.request(reqwest::Method::POST, "/api/notifications/send", &headers, Some(body)).await?;
    assert_eq!((answer.status.as_u16(), answer.header("x-request-id")), (202, Some("req-1")));
    let (id, delivery) = (answer.body["id"].as_str().unwrap(), answer.body["deliveries"][0]["id"].as_str().unwrap());

    let message = api.wait_status(id, "delivered").await?;
    assert_eq!(message["deliveries"][0]["provider"], "http");
    let requests = sink.requests();
    let [request] = requests.as_slice() else { panic!("one request, not {}", requests.len()) };
    assert_eq!(request.json()?, json!({"order": 42, "note": "ü"}));
    assert_eq!(request.header("webhook-id"), Some(delivery));
    assert_eq!(request.header("x-request-id"), Some("req-1"));
    assert!(request.header("traceparent").unwrap().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert!(is_signed(request, &stack.webhook_secret));
    assert!(!is_signed(request, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), "the check itself can fail");

    let timeline = api.timeline(id).await?;
    assert_eq!(events(&timeline), ["accepted", "delivered"]);
    let attempt = &timeline["attempts"][0];
    assert_eq!(
        (&attempt["provider"], &attempt["outcome"], &attempt["code"]),
        (&json!("http"), &json!("sent"), &json!("200"))
    );
    check::ledger(&stack, &sink, &[id.to_owned()], SOON).await?.hold()
}

/// The scheme of Standard Webhooks, written down once more so that the signer does not check itself.
fn is_signed(request: &servers::sinks::http::Request, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let header = |name| request.header(name).unwrap().to_owned();
    let mut content = format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).into_bytes();
    content.extend_from_slice(&request.body);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    header("webhook-signature").split(' ').any(|signature| {
        let mac = signature.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        aws_lc_rs::hmac::verify(&key, &content, &mac).is_ok()
    })
}

#[tokio::test]
async fn a_mail_arrives_with_text_html_and_attachment_under_a_stable_message_id() -> Result<()> {
    let mail = SmtpSink::start_local().await?;
    let port = mail.address().port().to_string();
    let stack = Stack::patient(&[
        ("EMAIL_BACKEND", "smtp"),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &port),
        ("SMTP_USE_TLS", "false"),
        ("EMAIL_FROM", "shop@example.com"),
    ])
    .await?;
    let api = stack.producer();
    mail.reply_to_content(smtp::Reply::Sequence(vec![
        smtp::Reply::Code(451, "try later".to_owned()),
        smtp::Reply::Code(250, "ok".to_owned()),
    ]));
    let id = api
        .send(&json!({"channel": "email", "to": "ada@example.com", "subject": "Grüße", "text": "plain part", "html": "<p>html part</p>",
            "attachments": [{"filename": "bill.txt", "content_type": "text/plain", "content": STANDARD.encode("the bill")}]}))
        .await?;
    api.wait_status(&id, "sent").await?;
    let mails: Vec<_> = mail.mails_to("ada@example.com").into_iter().filter(|mail| mail.accepted).collect();
    let [arrived] = mails.as_slice() else { panic!("one mail, not {}", mails.len()) };
    let text = arrived.text();
    for part in ["plain part", "<p>html part</p>", "bill.txt", "multipart/alternative"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let delivery = api.message(&id).await?["deliveries"][0]["id"].as_str().unwrap().to_owned();
    assert!(arrived.header("Message-ID").unwrap().contains(&delivery));
    assert_eq!(events(&api.timeline(&id).await?), ["accepted", "retrying", "sent"]);
    Ok(())
}

#[tokio::test]
async fn an_address_the_mail_server_refuses_for_good_fails_and_is_not_tried_again() -> Result<()> {
    let mail = SmtpSink::start_local().await?;
    let port = mail.address().port().to_string();
    let stack = Stack::patient(&[
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &port),
        ("SMTP_USE_TLS", "false"),
        ("EMAIL_FROM", "shop@example.com"),
    ])
    .await?;
    mail.reply_to_recipients(smtp::Reply::Code(550, "5.1.1 no such user".to_owned()));
    let api = stack.producer();
    let id = api.send(&json!({"channel": "email", "recipient": "gone@example.com", "message": "m"})).await?;
    api.wait_status(&id, "failed").await?;
    let timeline = api.timeline(&id).await?;
    assert_eq!(timeline["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(timeline["attempts"][0]["outcome"], "address_dead");
    Ok(())
}

#[tokio::test]
async fn an_in_app_notification_stands_in_the_inbox_unread() -> Result<()> {
    let stack = Stack::start().await?;
    let id = stack
        .producer()
        .send(&json!({"user_id": "user123", "channel": "in_app", "recipient": "user123", "title": "Task Completed",
            "message": "Your export has finished processing", "category": "system", "data": {"action_url": "/downloads/export-123.csv"}}))
        .await?;
    stack.producer().wait_status(&id, "delivered").await?;
    let token = stack.cli(&["token", "--tenant", "acme", "--sub", "user123", "--role", "user"])?;
    let user = stack.api(token.trim());
    let inbox = user.get("/api/notifications").await?.ok()?;
    assert_eq!(inbox["unread_count"], 1);
    assert_eq!(inbox["notifications"][0]["title"], "Task Completed");
    assert_eq!(user.get("/api/notifications/unread-count").await?.ok()?["unread_count"], 1);
    user.post("/api/notifications/mark-as-read", &json!({"ids": [inbox["notifications"][0]["id"]]})).await?.ok()?;
    assert_eq!(user.get("/api/notifications/unread-count").await?.ok()?["unread_count"], 0);
    let other = stack.cli(&["token", "--tenant", "acme", "--sub", "somebody", "--role", "user"])?;
    assert_eq!(stack.api(other.trim()).get("/api/notifications").await?.ok()?["notifications"], json!([]));
    Ok(())
}

#[tokio::test]
async fn each_answer_of_a_receiver_leads_where_it_should() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[("WEBHOOK_MAX_RETRIES", "2")]).await?, HttpSink::start_local().await?);
    let api = stack.producer();
    let redirect = Reply::status(302).with_header("location", &sink.url("/elsewhere"));
    let cases = [
        ("/later", Reply::Sequence(vec![Reply::status(503), Reply::status(500), Reply::ok()]), "delivered", 3, "sent"),
        ("/never", Reply::status(500), "dead", 3, "transient"),
        ("/bad", Reply::status(400), "failed", 1, "rejected"),
        ("/gone", Reply::status(410), "failed", 1, "rejected"),
        ("/moved", redirect, "dead", 3, "transient"),
        ("/drop", Reply::Sequence(vec![Reply::CloseAfterBody, Reply::ok()]), "delivered", 2, "sent"),
        ("/garbage", Reply::Sequence(vec![Reply::Garbage, Reply::ok()]), "delivered", 2, "sent"),
        (
            "/busy",
            Reply::Sequence(vec![
                Reply::status(429),
                Reply::status(429),
                Reply::status(429),
                Reply::status(429),
                Reply::ok(),
            ]),
            "delivered",
            5,
            "sent",
        ),
    ];
    let mut accepted = Vec::new();
    for (path, reply, ..) in &cases {
        sink.reply_to(path, reply.clone());
        accepted.push(api.send(&webhook(&sink, path)).await?);
    }
    for ((path, _, status, attempts, outcome), id) in cases.iter().zip(&accepted) {
        api.wait_status(id, status).await?;
        let timeline = api.timeline(id).await?;
        let made = timeline["attempts"].as_array().unwrap();
        assert_eq!(made.len(), *attempts, "{path}: {timeline}");
        assert_eq!(made.last().unwrap()["outcome"], *outcome, "{path}: {timeline}");
        assert_eq!(sink.requests_to(path).len(), *attempts, "{path}");
    }
    assert!(sink.requests_to("/elsewhere").is_empty(), "a redirect was followed");
    check::ledger(&stack, &sink, &accepted, SOON).await?.hold()
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_asked_again_and_given_up() -> Result<()> {
    // Only here a call ends by its timeout, and only the call: a claim must not end before it.
    let settings = [PATIENT, &[("WEBHOOK_MAX_RETRIES", "2"), ("WEBHOOK_TIMEOUT", "4000")]].concat();
    let (stack, sink) = (Stack::start_with(&settings).await?, HttpSink::start_local().await?);
    sink.reply_by_default(Reply::Hang);
    let api = stack.producer();
    let id = api.send(&webhook(&sink, "/hang")).await?;
    api.wait_status(&id, "dead").await?;
    let timeline = api.timeline(&id).await?;
    let made = timeline["attempts"].as_array().unwrap();
    assert_eq!(made.len(), 3, "{timeline}");
    assert!(made.iter().all(|attempt| attempt["outcome"] == "unknown"), "{timeline}");
    assert!(events(&timeline).contains(&"ambiguous"), "{timeline}");
    assert_eq!(sink.wait_for(3, SOON).await?.len(), 3);
    check::ledger(&stack, &sink, &[id], SOON).await?.hold()
}

#[tokio::test]
async fn retry_after_is_never_undercut() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    sink.reply_to("/busy", Reply::Sequence(vec![Reply::status(429).with_header("retry-after", "2"), Reply::ok()]));
    let api = stack.producer();
    let id = api.send(&webhook(&sink, "/busy")).await?;
    api.wait_status(&id, "delivered").await?;
    let requests = sink.requests();
    assert!(requests[1].received_at - requests[0].received_at >= Duration::from_secs(2));
    Ok(())
}

#[tokio::test]
async fn a_scheduled_message_waits_and_can_be_taken_back() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[]).await?, HttpSink::start_local().await?);
    let api = stack.producer();
    let at = |seconds: i64| {
        (chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::seconds(seconds))
            .to_rfc3339()
    };
    let scheduled = |seconds| json!({"channel": "webhook", "recipient": sink.url("/later"), "data": {}, "scheduled_at": at(seconds)});
    let soon_due = at(2);
    let soon = api
        .send(&json!({"channel": "webhook", "recipient": sink.url("/soon"), "data": {}, "scheduled_at": soon_due}))
        .await?;
    let taken_back = api.send(&scheduled(3600)).await?;
    assert_eq!(api.message(&taken_back).await?["status"], "scheduled");
    let cancelled = api.post(&format!("/api/messages/{taken_back}/cancel"), &json!({})).await?.ok()?;
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(api.post(&format!("/api/messages/{taken_back}/cancel"), &json!({})).await?.status.as_u16(), 409);
    api.wait_status(&soon, "delivered").await?;
    let arrived = chrono::DateTime::<chrono::Utc>::from(sink.requests_to("/soon")[0].received_at_clock);
    assert!(arrived >= chrono::DateTime::parse_from_rfc3339(&soon_due)?, "sent before its time");
    assert!(sink.requests_to("/later").is_empty());
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_no_longer_worth_sending_expires() -> Result<()> {
    let (stack, sink) = (
        Stack::patient(&[("WEBHOOK_RETRY_DELAY", "3600000"), ("RETRY_MAX_MS", "3600000")]).await?,
        HttpSink::start_local().await?,
    );
    sink.reply_by_default(Reply::status(500));
    let api = stack.producer();
    let soon = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::minutes(30);
    let id = api
        .send(&json!({"channel": "webhook", "recipient": sink.url("/x"), "data": {}, "expires_at": soon.to_rfc3339()}))
        .await?;
    api.wait_status(&id, "expired").await?;
    assert_eq!(sink.requests().len(), 1);
    Ok(())
}

#[tokio::test]
async fn the_sandbox_plays_every_outcome_by_recipient() -> Result<()> {
    let stack = Stack::patient(&[
        ("EMAIL_BACKEND", "sandbox"),
        ("RETRY_MAX_ATTEMPTS", "3"),
        ("AMBIGUOUS_POLICY_SMS", "resend"),
    ])
    .await?;
    let api = stack.producer();
    for (channel, recipient, status) in [
        ("email", "ok@example.com", "sent"),
        ("email", "fail-once@example.com", "sent"),
        ("email", "fail-reject@example.com", "failed"),
        ("email", "fail-500@example.com", "dead"),
        ("email", "fail-misconfigured@example.com", "dead"),
        ("sms", "+4915112340408", "dead"),
        ("sms", "+4915112340001", "sent"),
        ("push", "device-fail-dead", "failed"),
        ("whatsapp", "+1234567890", "sent"),
    ] {
        let id = api.send(&json!({"channel": channel, "recipient": recipient, "message": "m"})).await?;
        api.wait_status(&id, status).await.map_err(|error| error.context(recipient))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_bulk_reports_each_recipient_and_counts_live() -> Result<()> {
    let (stack, api) = (Stack::patient(&[]).await?, ());
    let () = api;
    let producer = stack.producer();
    let body = json!({"user_ids": ["user1", "user2", "user3", "user2"], "channel": "in_app", "title": "Important", "message": "m", "category": "announcement"});
    let answer = producer.post("/api/notifications/send-bulk", &body).await?;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
    assert_eq!((&answer.body["sent"], &answer.body["failed"]), (&json!(3), &json!(1)));
    for result in answer.body["results"].as_array().unwrap().iter().filter(|result| result["id"].is_string()) {
        producer.wait_status(result["id"].as_str().unwrap(), "delivered").await?;
    }
    let bulk = format!("/api/bulk/{}", answer.body["bulk_id"].as_str().unwrap());
    let counts = producer.get(&bulk).await?.ok()?;
    assert_eq!((&counts["accepted"], &counts["delivered"]), (&json!(3), &json!(3)));

    let many: Vec<String> = (0..10_000).map(|n| format!("user{n}")).collect();
    let answer = producer
        .post("/api/notifications/send-bulk", &json!({"user_ids": many, "channel": "in_app", "message": "m"}))
        .await?
        .ok()?;
    assert_eq!(answer["sent"], 10_000);
    let bulk = format!("/api/bulk/{}", answer["bulk_id"].as_str().unwrap());
    eventually("10,000 delivered", LONG, || async {
        (producer.get(&bulk).await.ok()?.body["delivered"] == 10_000).then_some(())
    })
    .await?;
    for bad in [json!([]), json!((0..10_001).map(|n| n.to_string()).collect::<Vec<_>>())] {
        let answer = producer
            .post("/api/notifications/send-bulk", &json!({"user_ids": bad, "channel": "in_app", "message": "m"}))
            .await?;
        assert_eq!(answer.status.as_u16(), 400);
    }
    Ok(())
}
