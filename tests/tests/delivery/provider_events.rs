//! Events of providers: states, engagement, addresses and their signatures; tracked mails.

use std::time::Duration;

use anyhow::{Context, Result};
use aws_lc_rs::{
    encoding::AsDer,
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Reply, SmtpSink, Stack,
    api::{Answer, SOON},
    eventually,
};

const SIGNATURE: &str = "x-twilio-email-event-webhook-signature";
const TIMESTAMP: &str = "x-twilio-email-event-webhook-timestamp";

/// The part of SendGrid that sends events.
struct Sendgrid(EcdsaKeyPair);

impl Sendgrid {
    fn new() -> Result<Self> {
        Ok(Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?))
    }

    fn public_key(&self) -> Result<String> {
        Ok(STANDARD.encode(self.0.public_key().as_der()?.as_ref()))
    }

    fn sign(&self, timestamp: &str, body: &[u8]) -> Result<String> {
        let signature = self.0.sign(&SystemRandom::new(), &[timestamp.as_bytes(), body].concat())?;
        Ok(STANDARD.encode(signature.as_ref()))
    }

    async fn post(&self, api: &Api, body: &[u8]) -> Result<Answer> {
        let now = domain::clock::now().timestamp().to_string();
        let signature = self.sign(&now, body)?;
        let headers = [(SIGNATURE, signature.as_str()), (TIMESTAMP, now.as_str())];
        api.request(Method::POST, "/api/notifications/webhook/sendgrid", &headers, Some(body.to_vec())).await
    }

    /// A stack that sends by this vendor and takes its events.
    async fn stack(&self, vendor: &HttpSink) -> Result<Stack> {
        let (url, key) = (vendor.url(""), self.public_key()?);
        let settings = [
            ("EMAIL_BACKEND", "sendgrid"),
            ("SENDGRID_API_KEY", "SG.x"),
            ("SENDGRID_BASE_URL", url.as_str()),
            ("EMAIL_FROM", "us@example.com"),
            ("SENDGRID_WEBHOOK_PUBLIC_KEY", key.as_str()),
        ];
        Stack::patient(&settings).await
    }

    /// Sends events, which must be taken.
    async fn tell(&self, stack: &Stack, events: &Value) -> Result<Value> {
        // The line end is part of what is signed.
        self.post(&stack.api(""), format!("{events}\r\n").as_bytes()).await?.ok()
    }
}

async fn send(api: &Api, recipient: &str, category: &str) -> Result<(String, String)> {
    let body =
        json!({"channel": "email", "recipient": recipient, "subject": "Hi", "message": "Hello", "category": category});
    sent(api, &body).await
}

/// Sends, and waits until it is sent; the ids of message and delivery.
async fn sent(api: &Api, body: &Value) -> Result<(String, String)> {
    let id = api.send(body).await?;
    let message = api.wait_status(&id, "sent").await?;
    let delivery = message["deliveries"][0]["id"].as_str().context("a delivery has an id")?.to_owned();
    Ok((id, delivery))
}

fn event(name: &str, delivery: &str) -> Value {
    json!({"event": name, "email": "ada@example.com", "sg_event_id": uuid::Uuid::now_v7().to_string(), "posthaste_delivery": delivery,
        "timestamp": domain::clock::now().timestamp(), "sg_message_id": "unknown.filter-1"})
}

async fn until_engaged(api: &Api, id: &str, word: &str) -> Result<()> {
    eventually(&format!("{id} is {word}"), SOON, || async {
        let engagement = api.message(id).await.ok()?["deliveries"][0]["engagement"].clone();
        engagement.as_array()?.iter().any(|one| one == word).then_some(())
    })
    .await
}

async fn until(stack: &Stack, query: &str) -> Result<()> {
    eventually(query, SOON, || async { (stack.count(query).await.ok()? > 0).then_some(()) }).await
}

/// An event about an unknown delivery waits for a while and is then dropped.
async fn check_unknown(stack: &Stack, sendgrid: &Sendgrid) -> Result<()> {
    let unknown = json!([event("delivered", &uuid::Uuid::now_v7().to_string())]);
    sendgrid.tell(stack, &unknown).await?;
    until(stack, "SELECT count(*) FROM provider_events WHERE status = 'pending' AND tries > 0").await?;
    let aged = "UPDATE provider_events SET created_at = now() - interval '11 minutes', due_at = now() WHERE status = 'pending'";
    stack.sql().await?.execute(aged, &[]).await?;
    until(stack, "SELECT count(*) FROM provider_events WHERE status = 'ignored' AND body = '' HAVING count(*) = 2")
        .await
}

#[tokio::test]
async fn events_of_sendgrid_move_deliveries_and_suppress_addresses() -> Result<()> {
    let (vendor, sendgrid) = (HttpSink::start_local().await?, Sendgrid::new()?);
    vendor.reply_by_default(Reply::status(202).with_header("X-Message-Id", "ref1"));
    let stack = sendgrid.stack(&vendor).await?;
    let api = stack.producer();

    // An event overtakes the outcome of its own call, and is found by the vendor's id.
    let early = json!([{"event": "delivered", "sg_event_id": "early", "sg_message_id": "ref1.filter-9.0"}]);
    assert_eq!(sendgrid.tell(&stack, &early).await?, json!({"received": true, "duplicate": false}));
    assert_eq!(sendgrid.tell(&stack, &early).await?, json!({"received": true, "duplicate": true}));
    let body = json!({"channel": "email", "recipient": "ada@example.com", "subject": "Hi", "message": "Hello"});
    let first = api.send(&body).await?;
    api.wait_status(&first, "delivered").await?;
    let delivery = api.message(&first).await?["deliveries"][0]["id"].as_str().unwrap_or_default().to_owned();

    // Engagement stands beside the status; a bounce outranks a delivery, and nothing goes back.
    let events = json!([event("open", &delivery), event("click", &delivery), event("processed", &delivery)]);
    sendgrid.tell(&stack, &events).await?;
    until_engaged(&api, &first, "opened").await?;
    until_engaged(&api, &first, "clicked").await?;
    let bounce = json!({"type": "bounce", "status": "5.1.1", "reason": "550 no ada@example.com here",
        "sg_message_id": "ref1.filter-9.0"});
    let mut bounced = event("bounce", &delivery);
    bounced.as_object_mut().context("an object")?.extend(bounce.as_object().cloned().unwrap_or_default());
    sendgrid.tell(&stack, &json!([bounced])).await?;
    api.wait_status(&first, "bounced").await?;
    sendgrid.tell(&stack, &json!([event("delivered", &delivery)])).await?;
    until(&stack, "SELECT count(*) FROM provider_events WHERE status = 'done' HAVING count(*) = 5").await?;
    assert_eq!(api.message(&first).await?["status"], "bounced");
    let timeline = api.timeline(&first).await?.to_string();
    assert!(timeline.contains("the address does not take mail (5.1.1)") && !timeline.contains("550 no"), "{timeline}");
    assert_eq!(api.timeline(&first).await?["attempts"].as_array().map(Vec::len), Some(1), "{timeline}");

    // The address is dead from now on, for this tenant.
    let found = stack.admin().get("/api/suppressions?recipient=ada@example.com").await?.body;
    assert_eq!(found["suppressions"][0]["reason"], "hard_bounce", "{found}");
    let again = api.send(&body).await?;
    api.wait_status(&again, "suppressed").await?;
    stack.cli(&["tenant", "create", "other"])?;
    let other = stack.api(&stack.create_key("other", "producer")?);
    vendor.reply_by_default(Reply::status(202).with_header("X-Message-Id", "ref2"));
    let (theirs, their_delivery) = sent(&other, &body).await?;
    sendgrid.tell(&stack, &json!([event("delivered", &their_delivery)])).await?;
    other.wait_status(&theirs, "delivered").await?;
    assert!(api.message(&theirs).await.is_err(), "another tenant's message");

    // A bounce of a mail that another call superseded ends nothing.
    let mut stale = event("bounce", &their_delivery);
    stale["sg_message_id"] = json!("another.filter-9.0");
    sendgrid.tell(&stack, &json!([stale])).await?;
    until(&stack, "SELECT count(*) FROM provider_events WHERE status = 'done' HAVING count(*) = 7").await?;
    assert_eq!(other.message(&theirs).await?["status"], "delivered");

    check_unknown(&stack, &sendgrid).await?;
    assert_eq!(stack.count("SELECT count(*) FROM provider_events WHERE status = 'done' AND body <> ''").await?, 0);
    assert!(!stack.logs()?.contains("ada@example.com"), "an address in the logs");
    Ok(())
}

#[tokio::test]
async fn nothing_passes_that_sendgrid_did_not_sign_just_now() -> Result<()> {
    let (sendgrid, other) = (Sendgrid::new()?, Sendgrid::new()?);
    let key = sendgrid.public_key()?;
    let stack = Stack::start_with(&[("SENDGRID_WEBHOOK_PUBLIC_KEY", key.as_str())]).await?;
    let (api, body) = (stack.api(""), b"[{\"event\":\"open\",\"sg_event_id\":\"1\"}]\r\n".to_vec());
    let now = domain::clock::now().timestamp();
    let (fresh, old, ahead) = (now.to_string(), (now - 26 * 3600).to_string(), (now + 3600).to_string());
    let good = sendgrid.sign(&fresh, &body)?;
    let mut flipped = body.clone();
    flipped[5] ^= 1;
    for (what, headers, body) in [
        ("no headers", vec![], body.clone()),
        ("no time", vec![(SIGNATURE, good.clone())], body.clone()),
        ("another key", vec![(SIGNATURE, other.sign(&fresh, &body)?), (TIMESTAMP, fresh.clone())], body.clone()),
        ("a flipped byte", vec![(SIGNATURE, good.clone()), (TIMESTAMP, fresh.clone())], flipped),
        ("an old time", vec![(SIGNATURE, sendgrid.sign(&old, &body)?), (TIMESTAMP, old)], body.clone()),
        ("a time to come", vec![(SIGNATURE, sendgrid.sign(&ahead, &body)?), (TIMESTAMP, ahead)], body.clone()),
        ("another time", vec![(SIGNATURE, good.clone()), (TIMESTAMP, (now - 1).to_string())], body.clone()),
        ("garbage", vec![(SIGNATURE, "%".to_owned()), (TIMESTAMP, fresh.clone())], body.clone()),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for path in ["/api/notifications/webhook/sendgrid", "/webhooks/sendgrid"] {
            let answer = api.request(Method::POST, path, &headers, Some(body.clone())).await?;
            assert_eq!((answer.status.as_u16(), &answer.body["code"]), (401, &json!("unauthenticated")), "{what}");
        }
    }
    assert_eq!(sendgrid.post(&api, b"{\"event\":\"open\"}").await?.status.as_u16(), 400, "no array");
    assert_eq!(sendgrid.post(&api, &vec![b' '; 1024 * 1024 + 1]).await?.status.as_u16(), 413);
    assert_eq!(sendgrid.post(&api, b"[]").await?.ok()?, json!({"received": true, "duplicate": false}));
    // A provider that is not set up is refused, an unknown one is not found.
    for (path, status) in
        [("twilio", 401), ("ses", 401), ("sns", 401), ("mailgun", 404), ("tracking", 404), ("posthaste", 404)]
    {
        for prefix in ["/webhooks", "/api/notifications/webhook"] {
            let answer = api.post(&format!("{prefix}/{path}"), &json!({"a": 1})).await?;
            assert_eq!(answer.status.as_u16(), status, "{prefix}/{path}");
        }
    }
    assert_eq!(stack.count("SELECT count(*) FROM provider_events").await?, 0);
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("all")?)).await?.text().await?;
    assert!(metrics.contains("posthaste_signature_failures_total{source=\"sendgrid\"} 16"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn five_soft_bounces_in_a_row_and_complaints_keep_mails_from_an_address() -> Result<()> {
    let sendgrid = Sendgrid::new()?;
    let key = sendgrid.public_key()?;
    let settings = [("EMAIL_BACKEND", "sandbox"), ("SENDGRID_WEBHOOK_PUBLIC_KEY", key.as_str())];
    let stack = Stack::patient(&settings).await?;
    let api = stack.producer();
    let blocked = |delivery: &str| {
        let mut event = event("bounce", delivery);
        event["type"] = json!("blocked");
        event
    };
    // Four, then one that arrives, then four: not in a row.
    for round in 0..2 {
        for _ in 0..4 {
            let (id, delivery) = send(&api, "grace@example.com", "news").await?;
            let event = blocked(&delivery);
            // A repeat under another name is another event of the same delivery; a true repeat counts once.
            sendgrid.tell(&stack, &json!([event, event])).await?;
            api.wait_status(&id, "bounced").await?;
        }
        until(&stack, "SELECT count(*) FROM soft_bounces HAVING count(*) = 4").await?;
        if round == 0 {
            let (id, delivery) = send(&api, "grace@example.com", "news").await?;
            sendgrid.tell(&stack, &json!([event("delivered", &delivery)])).await?;
            api.wait_status(&id, "delivered").await?;
            until(&stack, "SELECT 1 - count(*) FROM (SELECT FROM soft_bounces LIMIT 1) x").await?;
        }
    }
    assert_eq!(stack.count("SELECT count(*) FROM suppressions").await?, 0);
    let (id, delivery) = send(&api, "Grace@Example.com", "news").await?;
    sendgrid.tell(&stack, &json!([blocked(&delivery)])).await?;
    api.wait_status(&id, "bounced").await?;
    until(&stack, "SELECT count(*) FROM suppressions WHERE reason = 'soft_bounces' AND scope = 'all'").await?;

    let (id, delivery) = send(&api, "ada@example.com", "marketing").await?;
    sendgrid.tell(&stack, &json!([event("spamreport", &delivery)])).await?;
    until_engaged(&api, &id, "complained").await?;
    until(&stack, "SELECT count(*) FROM suppressions WHERE reason = 'complaint' AND scope = 'marketing'").await?;
    let body = json!({"channel": "email", "recipient": "ada@example.com", "subject": "Hi", "message": "Hello", "category": "marketing"});
    let unwanted = api.send(&body).await?;
    api.wait_status(&unwanted, "suppressed").await?;
    send(&api, "ada@example.com", "billing").await?;

    // The database refuses the bounce of one address: the one beside it is counted, and its own tries are.
    let (id, delivery) = send(&api, "stuck@example.com", "news").await?;
    sendgrid.tell(&stack, &json!([blocked(&delivery)])).await?;
    api.wait_status(&id, "bounced").await?;
    let (counted, sql) = ("SELECT count(*) FROM soft_bounces", stack.sql().await?);
    let newest = "SELECT count(*) FROM soft_bounces WHERE event_id = (SELECT max(id::text)::uuid FROM provider_events)";
    stack.until_count(newest, 1).await?;
    sql.batch_execute(
        "CREATE TABLE stuck AS SELECT address_hash FROM soft_bounces WHERE event_id = (SELECT max(id::text)::uuid FROM provider_events);
         GRANT SELECT ON stuck TO posthaste_services;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.address_hash IN (SELECT address_hash FROM stuck) THEN RAISE SQLSTATE '22003'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON soft_bounces FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await?;
    let before = stack.count(counted).await?;
    let (_, stuck) = send(&api, "stuck@example.com", "news").await?;
    let (_, fine) = send(&api, "fine@example.com", "news").await?;
    sendgrid.tell(&stack, &json!([blocked(&stuck), blocked(&fine)])).await?;
    stack.until_count(counted, before + 1).await?;
    stack.until_count("SELECT count(*) FROM provider_events WHERE status = 'pending' AND tries >= 2", 1).await?;
    sql.batch_execute("DROP TRIGGER refuse ON soft_bounces").await?;
    stack.until_count(counted, before + 2).await
}

/// A status callback, signed for where others reach us.
async fn call_back(stack: &Stack, token: &str, base: &str, delivery: &str, params: &[(&str, &str)]) -> Result<Answer> {
    let path = format!("/webhooks/twilio?delivery={delivery}");
    let mut sorted = params.to_vec();
    sorted.sort_unstable();
    let joined: String = sorted.iter().flat_map(|(name, value)| [*name, *value]).collect();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
    let tag = hmac::sign(&key, format!("{base}{path}{joined}").as_bytes());
    let url = format!("http://127.0.0.1:{}{path}", stack.port("all")?);
    let form: Vec<String> =
        params.iter().map(|(name, value)| format!("{name}={}", value.replace('+', "%2B"))).collect();
    let request = reqwest::Client::new().post(url).header("X-Twilio-Signature", STANDARD.encode(tag.as_ref()));
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(form.join("&"));
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, body: response.json().await.unwrap_or_default() })
}

#[tokio::test]
async fn callbacks_of_twilio_move_deliveries_and_settle_doubt() -> Result<()> {
    const TOKEN: &str = "canary-twilio-token";
    const BASE: &str = "https://notify.example.com/posthaste";
    let settings = [("TWILIO_AUTH_TOKEN", TOKEN), ("PUBLIC_URL", BASE), ("AMBIGUOUS_HOLD_MS", "600000")];
    let stack = Stack::patient(&settings).await?;
    let api = stack.producer();
    let sms = |to: &str| json!({"channel": "sms", "recipient": to, "message": "Hello"});
    let call = async |delivery: &str, status: &str, code: &str| {
        let params = [("MessageSid", "SM1"), ("MessageStatus", status), ("ErrorCode", code), ("To", "+4915112345678")];
        call_back(&stack, TOKEN, BASE, delivery, &params).await
    };
    let (id, delivery) = sent(&api, &sms("+4915112345678")).await?;
    for (token, base) in [("another", BASE), (TOKEN, "https://notify.example.com"), (TOKEN, "http://127.0.0.1:8080")] {
        let params = [("MessageSid", "SM1"), ("MessageStatus", "delivered")];
        let answer = call_back(&stack, token, base, &delivery, &params).await?;
        assert_eq!(answer.status.as_u16(), 401, "{base}");
    }
    assert_eq!(call(&delivery, "delivered", "").await?.ok()?, json!({"received": true, "duplicate": false}));
    assert_eq!(call(&delivery, "delivered", "").await?.ok()?, json!({"received": true, "duplicate": true}));
    api.wait_status(&id, "delivered").await?;
    assert_eq!(call(&delivery, "sent", "").await?.status.as_u16(), 200);
    let params = [("AccountSid", "AC1")];
    assert_eq!(call_back(&stack, TOKEN, BASE, &delivery, &params).await?.status.as_u16(), 400, "no status");

    // A number that said STOP gets nothing more.
    let (id, delivery) = sent(&api, &sms("+4915112345679")).await?;
    assert_eq!(call(&delivery, "undelivered", "21610").await?.status.as_u16(), 200);
    api.wait_status(&id, "failed").await?;
    until(&stack, "SELECT count(*) FROM suppressions WHERE channel = 'sms' AND reason = 'address_dead'").await?;
    let again = api.send(&sms("+4915112345679")).await?;
    api.wait_status(&again, "suppressed").await?;

    // Whether these were sent is unknown until Twilio reports it.
    for (status, wanted) in [("queued", "sent"), ("delivered", "delivered"), ("failed", "failed")] {
        let id = api.send(&sms("+15550000408")).await?;
        let held = api.wait_status(&id, "retrying").await?;
        let delivery = held["deliveries"][0]["id"].as_str().context("an id")?;
        assert_eq!(call(delivery, status, "").await?.status.as_u16(), 200);
        api.wait_status(&id, wanted).await?;
        let timeline = api.timeline(&id).await?;
        assert_eq!(timeline["attempts"].as_array().map(Vec::len), Some(1), "it was not sent again: {timeline}");
        assert!(timeline["events"].as_array().is_some_and(|events| events.iter().any(|e| e["kind"] == "ambiguous")));
    }
    assert!(!stack.logs()?.contains("4915112345678"), "a number in the logs");
    Ok(())
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u16::try_from(body.len()).unwrap_or_default().to_be_bytes();
    [&[tag, 0x82], length.as_slice(), &body].concat()
}

/// A certificate of a key; its signature is not checked.
fn certificate(key: &KeyPair) -> Result<String> {
    let spki = key.public_key().as_der()?;
    let algorithm = der(0x30, &[&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b, 5, 0]]);
    let name = der(0x30, &[&der(0x31, &[&der(0x30, &[&[6, 3, 0x55, 4, 3], &der(0x0c, &[b"sns.amazonaws.com"])])])]);
    let validity = der(0x30, &[&der(0x17, &[b"200101000000Z"]), &der(0x17, &[b"490101000000Z"])]);
    let version: &[u8] = &[0xa0, 3, 2, 1, 2];
    let serial: &[u8] = &[2, 1, 1];
    let body = der(0x30, &[version, serial, &algorithm, &name, &validity, &name, spki.as_ref()]);
    let whole = der(0x30, &[&body, &algorithm, &der(3, &[&[0, 1]])]);
    Ok(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(whole)))
}

#[tokio::test]
async fn events_of_ses_come_through_our_topics_and_no_others() -> Result<()> {
    const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:ses-events";
    let (key, other) = (KeyPair::generate(KeySize::Rsa2048)?, KeyPair::generate(KeySize::Rsa2048)?);
    let file = std::env::temp_dir().join(format!("sns-{}.pem", uuid::Uuid::now_v7()));
    std::fs::write(&file, certificate(&key)?)?;
    let path = file.to_str().context("a path")?;
    let settings = [("EMAIL_BACKEND", "sandbox"), ("SNS_TOPIC_ARNS", TOPIC), ("SNS_SIGNING_CERT_PATH", path)];
    let stack = Stack::patient(&settings).await?;
    std::fs::remove_file(&file)?;
    let api = stack.producer();
    let message = |key: &KeyPair, topic: &str, at: chrono::DateTime<chrono::Utc>, says: &Value| -> Result<Value> {
        let mut value = json!({"Type": "Notification", "MessageId": uuid::Uuid::now_v7().to_string(), "TopicArn": topic,
            "Message": says.to_string(), "Timestamp": at.to_rfc3339(), "SignatureVersion": "2",
            "SigningCertURL": "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem"});
        let lines = ["Message", "MessageId", "Timestamp", "TopicArn", "Type"];
        let text: String =
            lines.iter().map(|name| format!("{name}\n{}\n", value[*name].as_str().unwrap_or_default())).collect();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)?;
        value["Signature"] = json!(STANDARD.encode(signature));
        Ok(value)
    };
    let public = stack.api("");
    let now = domain::clock::now();
    let (id, delivery) = send(&api, "ada@example.com", "news").await?;
    let says =
        json!({"eventType": "Delivery", "mail": {"messageId": "0100", "tags": {"posthaste_delivery": [delivery]}}});
    let good = message(&key, TOPIC, now, &says)?;
    let mut flipped = good.clone();
    flipped["Message"] = json!(says.to_string().replace("Delivery", "Delivers"));
    let mut unsigned = good.clone();
    unsigned.as_object_mut().context("an object")?.remove("Signature");
    for (what, body) in [
        ("another key", message(&other, TOPIC, now, &says)?),
        ("another topic", message(&key, "arn:aws:sns:eu-central-1:999999999999:theirs", now, &says)?),
        ("a message of long ago", message(&key, TOPIC, now - chrono::TimeDelta::hours(26), &says)?),
        ("a changed message", flipped),
        ("no signature", unsigned),
        ("no message", json!({})),
    ] {
        assert_eq!(public.post("/webhooks/ses", &body).await?.status.as_u16(), 401, "{what}");
    }
    let garbage = public.request(Method::POST, "/webhooks/sns", &[], Some(b"garbage".to_vec())).await?;
    assert_eq!(garbage.status.as_u16(), 400);
    assert_eq!(stack.count("SELECT count(*) FROM provider_events").await?, 0);
    for (path, duplicate) in
        [("/webhooks/ses", false), ("/webhooks/sns", true), ("/api/notifications/webhook/ses", true)]
    {
        assert_eq!(public.post(path, &good).await?.ok()?, json!({"received": true, "duplicate": duplicate}), "{path}");
    }
    api.wait_status(&id, "delivered").await?;
    let bounce = json!({"notificationType": "Bounce", "mail": {"messageId": "0100", "headers": [{"name": "X-Posthaste-Delivery-Id", "value": delivery}]},
        "bounce": {"bounceType": "Permanent", "bouncedRecipients": [{"emailAddress": "ada@example.com", "status": "5.1.1"}]}});
    public.post("/webhooks/ses", &message(&key, TOPIC, now, &bounce)?).await?.ok()?;
    api.wait_status(&id, "bounced").await?;
    until(&stack, "SELECT count(*) FROM suppressions WHERE reason = 'hard_bounce'").await
}

/// The HTML of a mail, decoded.
fn html_of(mail: &str) -> Result<String> {
    let part = mail.split("text/html").nth(1).context("an HTML part")?;
    let (head, body) = part.split_once("\r\n\r\n").context("a head")?;
    let body = body.split("\r\n--").next().unwrap_or_default();
    let text = match head.to_ascii_lowercase() {
        head if head.contains("base64") => {
            String::from_utf8(STANDARD.decode(body.split_whitespace().collect::<String>())?)?
        }
        head if head.contains("quoted-printable") => body.replace("=\r\n", "").replace("=3D", "="),
        _ => body.to_owned(),
    };
    Ok(text.trim_end().to_owned())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(found, _)| found)
}

const HTML: &str = "<html><body><a href=\"https://shop.example/a?b=1&amp;c=2\">x</a> <a href=\"mailto:us@example.com\">y</a> \
    <a href=\"https://shop.example/unsubscribe?u=1\">z</a></body></html>";

/// A stack that tracks mails of two categories, its mails, and the start of its links.
struct Tracking {
    stack: Stack,
    sink: SmtpSink,
    base: String,
    client: reqwest::Client,
}

impl Tracking {
    async fn start() -> Result<Self> {
        let sink = SmtpSink::start_local().await?;
        let port = sink.address().port().to_string();
        let base = format!("http://127.0.0.1:{}", servers::private::ports::find_free()?);
        let settings = [
            ("EMAIL_BACKEND", "smtp"),
            ("SMTP_HOST", "127.0.0.1"),
            ("SMTP_PORT", port.as_str()),
            ("EMAIL_FROM", "us@example.com"),
            ("TRACK_OPENS", "marketing"),
            ("TRACK_CLICKS", "marketing, news"),
            ("PUBLIC_URL", base.as_str()),
        ];
        let stack = Stack::patient(&settings).await?;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { stack, sink, base, client })
    }

    /// Sends a mail; the id of the message, and the mail.
    async fn mail(&self, category: &str) -> Result<(String, String)> {
        let to = format!("{category}@example.com");
        let body = json!({"channel": "email", "recipient": to, "subject": "Hi", "category": category,
            "message": "See https://shop.example/a", "html": HTML});
        let (id, _) = sent(&self.stack.producer(), &body).await?;
        Ok((id, self.sink.mails_to(&to).last().context("a mail")?.text()))
    }

    /// PUBLIC_URL may be a proxy; here the tokens are tried at the process itself.
    fn at(&self, url: &str) -> String {
        url.replace(&self.base, &format!("http://127.0.0.1:{}", self.stack.port("all").unwrap_or_default()))
    }

    async fn check_heads(&self, click: &str, pixel: &str) -> Result<()> {
        let (port, token) =
            (self.stack.port("all")?, |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned());
        let click = format!("http://127.0.0.1:{port}/t/c/{}", token(click));
        let pixel = format!("http://127.0.0.1:{port}/t/o/{}", token(pixel));
        for (url, status) in [(&click, 302), (&pixel, 200)] {
            assert_eq!(self.client.head(url).send().await?.status().as_u16(), status, "{url}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let count = self.stack.count("SELECT count(*) FROM provider_events").await?;
        assert_eq!(count, 0, "a scanner's HEAD counts for nothing");
        Ok(())
    }

    /// The reader clicks twice and opens once; each counts once.
    async fn check_reader(&self, id: &str, click: &str, pixel: &str) -> Result<()> {
        let api = self.stack.producer();
        for _ in 0..2 {
            let answer = self.client.get(self.at(click)).send().await?;
            assert_eq!(answer.status().as_u16(), 302);
            assert_eq!(answer.headers()["location"], "https://shop.example/a?b=1&c=2");
        }
        until_engaged(&api, id, "clicked").await?;
        // A click shows that the mail was delivered.
        api.wait_status(id, "delivered").await?;
        let answer = self.client.get(self.at(pixel)).send().await?;
        assert_eq!(answer.headers()["content-type"], "image/gif");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert!(answer.bytes().await?.starts_with(b"GIF89a"));
        until_engaged(&api, id, "opened").await?;
        assert_eq!(self.stack.count("SELECT count(*) FROM provider_events").await?, 2, "each once");
        Ok(())
    }

    /// A link that we did not write leads nowhere.
    async fn check_forged(&self, click: &str, pixel: &str) -> Result<()> {
        let token = click.rsplit('/').next().context("a token")?;
        let (head, tail) = token.split_at(30);
        let forged = format!("{head}{}{}", if tail.starts_with('A') { 'B' } else { 'A' }, &tail[1..]);
        let pixel_token = pixel.rsplit('/').next().context("a token")?;
        for path in
            [format!("/t/c/{forged}"), format!("/t/c/{pixel_token}"), format!("/t/o/{token}"), "/t/c/x".to_owned()]
        {
            let answer = self.stack.api("").get(&path).await?;
            assert_eq!(answer.status.as_u16(), 404, "{path}");
        }
        assert!(!self.stack.logs()?.contains(token), "a token in the logs");
        Ok(())
    }

    /// The database goes away: readers notice nothing, and what they did is written down when it is back.
    async fn check_without_database(&self) -> Result<()> {
        let (id, mail) = self.mail("marketing").await?;
        let body = html_of(&mail)?;
        let click = between(&body, "<a href=\"", "\"").context("a link")?.to_owned();
        let sql = self.stack.sql().await?;
        sql.batch_execute("BEGIN; LOCK TABLE provider_events").await?;
        // A reader that waited for the table would wait for ever.
        let reader = self.client.get(self.at(&click)).send();
        let answer = tokio::time::timeout(SOON, reader).await.context("the reader waits")??;
        assert_eq!(answer.status().as_u16(), 302);
        sql.batch_execute("ROLLBACK").await?;
        until_engaged(&self.stack.producer(), &id, "clicked").await
    }
}

#[tokio::test]
async fn tracked_mails_tell_of_opening_and_clicks_and_others_go_out_as_they_are() -> Result<()> {
    let tracking = Tracking::start().await?;
    let (tracked, marketing) = tracking.mail("marketing").await?;
    let (_, billing) = tracking.mail("billing").await?;
    assert_eq!(html_of(&billing)?, HTML, "untracked mails are left alone");
    assert!(marketing.contains("See https://shop.example/a"), "the text part stays: {marketing}");
    let body = html_of(&marketing)?;
    assert!(body.contains("mailto:us@example.com") && body.contains("https://shop.example/unsubscribe?u=1"), "{body}");
    let click = between(&body, "<a href=\"", "\"").context("a link")?.to_owned();
    let pixel = between(&body, "<img src=\"", "\"").context("a pixel")?.to_owned();
    let base = &tracking.base;
    assert!(click.starts_with(&format!("{base}/t/c/")) && pixel.starts_with(&format!("{base}/t/o/")), "{body}");
    tracking.check_heads(&click, &pixel).await?;
    tracking.check_reader(&tracked, &click, &pixel).await?;
    tracking.check_forged(&click, &pixel).await?;

    // Clicks alone, for a category that asks for no more.
    let (_, news) = tracking.mail("news").await?;
    let news = html_of(&news)?;
    assert!(news.contains("/t/c/") && !news.contains("/t/o/"), "{news}");
    tracking.check_without_database().await
}
