//! Analytics: what deliveries came to, each counted once for each state it ever reached.

use anyhow::{Context, Result};
use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{Api, HttpSink, Reply, Stack, api::SOON, check, eventually};

const ANALYTICS: &str = "/api/notifications/analytics/delivery";

async fn tell(stack: &Stack, key: &EcdsaKeyPair, events: &Value) -> Result<()> {
    let (body, now) = (events.to_string().into_bytes(), domain::clock::now().timestamp().to_string());
    let signature = key.sign(&SystemRandom::new(), &[now.as_bytes(), &body].concat())?;
    let signature = STANDARD.encode(signature.as_ref());
    let headers = [
        ("x-twilio-email-event-webhook-signature", signature.as_str()),
        ("x-twilio-email-event-webhook-timestamp", now.as_str()),
    ];
    stack.api("").request(Method::POST, "/webhooks/sendgrid", &headers, Some(body)).await?.ok().map(drop)
}

fn event(name: &str, delivery: &str) -> Value {
    json!({"event": name, "email": "ada@example.com", "sg_event_id": uuid::Uuid::now_v7().to_string(), "posthaste_delivery": delivery,
        "timestamp": domain::clock::now().timestamp(), "sg_message_id": "unknown.filter-1"})
}

/// Sends, and waits for its status; its delivery.
async fn send(api: &Api, body: &Value, status: &str) -> Result<String> {
    let id = api.send(body).await?;
    let message = api.wait_status(&id, status).await?;
    Ok(message["deliveries"][0]["id"].as_str().context("a delivery has an id")?.to_owned())
}

/// Replays every open letter, and waits for the delivery's next end: in a later run, since each replay begins one.
async fn replay(stack: &Stack, delivery: &str) -> Result<()> {
    let run = stack.count(&format!("SELECT run::int8 FROM deliveries WHERE id = '{delivery}'")).await?;
    let body = json!({"filter": {"reason": "attempts_exhausted"}, "reason": "once more"});
    stack.admin().post("/api/admin/dead-letters/replay", &body).await?.ok()?;
    let ended = format!(
        "SELECT count(*) FROM deliveries WHERE id = '{delivery}' AND state IN ('dead', 'delivered') AND run > {run}"
    );
    eventually("the replay has ended", SOON, || async { (stack.count(&ended).await.ok()? > 0).then_some(()) }).await
}

async fn until_kind(stack: &Stack, kind: &str, count: i64) -> Result<()> {
    let query = format!("SELECT count(*) FROM delivery_events WHERE kind = '{kind}'");
    eventually(&query, SOON, || async { (stack.count(&query).await.ok()? == count).then_some(()) }).await
}

fn nonzero(totals: &Value) -> Vec<(String, i64)> {
    let totals = totals.as_object().into_iter().flatten();
    totals.filter_map(|(kind, n)| Some((kind.clone(), n.as_i64().filter(|n| *n != 0)?))).collect()
}

/// A stack that takes the events of one SendGrid, and a receiver of webhooks.
struct Scene {
    stack: Stack,
    sink: HttpSink,
    key: EcdsaKeyPair,
    admin: Api,
    producer: Api,
}

impl Scene {
    async fn start() -> Result<Self> {
        let (sink, key) = (HttpSink::start_local().await?, EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?);
        sink.reply_to("/bad", Reply::status(400));
        sink.reply_to("/down", Reply::status(500));
        let public = STANDARD.encode(key.public_key().as_der()?.as_ref());
        let stack = Stack::patient(&[
            ("EMAIL_BACKEND", "sandbox"),
            ("SENDGRID_WEBHOOK_PUBLIC_KEY", &public),
            ("WEBHOOK_MAX_RETRIES", "1"),
        ])
        .await?;
        let (admin, producer) = (stack.admin(), stack.producer());
        Ok(Self { stack, sink, key, admin, producer })
    }

    async fn analytics(&self, query: &str) -> Result<Value> {
        self.admin.get(&format!("{ANALYTICS}{query}")).await?.ok()
    }

    fn hook(&self, path: &str) -> Value {
        json!({"channel": "webhook", "recipient": self.sink.url(path), "data": {"a": 1}, "category": "orders"})
    }

    async fn check_nothing(&self) -> Result<()> {
        let nothing = self.analytics("").await?;
        assert_eq!(
            (nonzero(&nothing["totals"]), &nothing["rates"]["delivery_rate"]),
            (vec![], &json!(0.0)),
            "{nothing}"
        );
        assert_eq!(nothing["by_day"], json!([]));
        Ok(())
    }

    /// Three webhooks arrive and one is refused. One dies, dies again when it is replayed, and arrives at last.
    async fn send_webhooks(&self) -> Result<()> {
        for _ in 0..3 {
            send(&self.producer, &self.hook("/ok"), "delivered").await?;
        }
        send(&self.producer, &self.hook("/bad"), "failed").await?;
        let doomed = send(&self.producer, &self.hook("/down"), "dead").await?;
        replay(&self.stack, &doomed).await?;
        self.sink.reply_to("/down", Reply::ok());
        replay(&self.stack, &doomed).await?;
        until_kind(&self.stack, "dead", 2).await
    }

    async fn cancel_one(&self) -> Result<()> {
        let tomorrow = (domain::clock::now() + chrono::TimeDelta::days(1)).to_rfc3339();
        let later = json!({"channel": "sms", "recipient": "+4915112345678", "message": "m", "scheduled_at": tomorrow});
        let taken_back = self.producer.send(&later).await?;
        self.producer.post(&format!("/api/messages/{taken_back}/cancel"), &json!({})).await?.ok()?;
        Ok(())
    }

    /// Four mails are sent: one is delivered, opened and clicked, one is delivered, one bounces, and nothing is known of one.
    async fn send_mails(&self) -> Result<()> {
        let stack = &self.stack;
        let mail = |to: &str| json!({"channel": "email", "recipient": to, "subject": "Hi", "message": "Hello", "category": "news"});
        let mut mails = Vec::new();
        for n in 0..4 {
            mails.push(send(&self.producer, &mail(&format!("m{n}@example.com")), "sent").await?);
        }
        let [read, arrived, lost, _] = mails.as_slice() else { panic!("{mails:?}") };
        let told = json!([
            event("delivered", read),
            event("open", read),
            event("open", read),
            event("click", read),
            event("delivered", arrived),
            event("bounce", lost)
        ]);
        tell(stack, &self.key, &told).await?;
        tell(stack, &self.key, &json!([event("click", read), event("delivered", read)])).await?;
        until_kind(stack, "bounced", 1).await?;
        until_kind(stack, "clicked", 1).await?;
        let done = "SELECT count(*) FROM provider_events WHERE status = 'pending'";
        eventually("every event is through", SOON, || async { (stack.count(done).await.ok()? == 0).then_some(()) })
            .await
    }

    /// A webhook of another tenant arrives; the admin of that tenant.
    async fn send_elsewhere(&self) -> Result<Api> {
        self.stack.cli(&["tenant", "create", "other"])?;
        let other = self.stack.api(&self.stack.create_key("other", "admin")?);
        send(&other, &self.hook("/ok"), "delivered").await?;
        Ok(other)
    }

    async fn check_totals(&self, first_day: chrono::NaiveDate) -> Result<()> {
        let all = self.analytics("").await?;
        let wanted = [
            ("bounced", 1),
            ("cancelled", 1),
            ("clicked", 1),
            ("dead", 1),
            ("delivered", 7),
            ("failed", 1),
            ("opened", 1),
            ("sent", 9),
        ];
        assert_eq!(nonzero(&all["totals"]), wanted.map(|(kind, n)| (kind.to_owned(), n)), "{all}");
        // Midnight may have come meanwhile.
        let (first_day, today) = (first_day.to_string(), domain::clock::now().date_naive().to_string());
        let days = all["by_day"].as_array().context("days")?;
        assert!(days.iter().all(|one| one["day"] == json!(first_day) || one["day"] == json!(today)), "{all}");
        assert_eq!(days.iter().filter_map(|one| one["sent"].as_i64()).sum::<i64>(), 9, "{all}");
        assert!(first_day != today || days.len() == 1, "{all}");
        let categories = all["by_category"].as_array().into_iter().flatten();
        let categories: Vec<_> = categories.map(|one| &one["category"]).collect();
        assert_eq!(categories, [&Value::Null, &json!("news"), &json!("orders")], "{all}");
        Ok(())
    }

    async fn check_mails(&self) -> Result<()> {
        let mails = self.analytics("?channel=email&group_by=channel,provider").await?;
        let rates = json!({"delivery_rate": 50.0, "open_rate": 50.0, "click_rate": 50.0, "bounce_rate": 25.0, "failure_rate": 25.0});
        assert_eq!(mails["rates"], rates, "{mails}");
        assert_eq!(mails["by_channel"][0]["channel"], "email");
        assert_eq!(
            (&mails["by_provider"][0]["provider"], &mails["by_provider"][0]["opened"]),
            (&json!("sandbox"), &json!(1)),
            "{mails}"
        );
        assert!(
            mails.get("by_day").is_none() && mails["by_provider"].as_array().is_some_and(|all| all.len() == 1),
            "{mails}"
        );
        Ok(())
    }

    /// By category, provider, days and tenant.
    async fn check_filters(&self, other: &Api) -> Result<()> {
        let query = "?category=orders&start_date=2024-01-01T00:00:00&end_date=2099-01-31T23:59:59";
        let orders = self.analytics(query).await?;
        assert_eq!((&orders["totals"]["sent"], &orders["totals"]["delivered"]), (&json!(4), &json!(4)), "{orders}");
        // Two of five went wrong, one of them only for a while.
        assert_eq!(orders["rates"]["failure_rate"], 40.0, "{orders}");
        assert_eq!(orders["by_category"].as_array().map(Vec::len), Some(1), "{orders}");
        assert_eq!(nonzero(&self.analytics("?provider=smtp").await?["totals"]), []);
        let nothing = self.analytics("?end_date=2024-01-31&start_date=2024-01-01").await?;
        assert_eq!(nonzero(&nothing["totals"]), []);
        let theirs = other.get(ANALYTICS).await?.ok()?;
        assert_eq!((&theirs["totals"]["delivered"], &theirs["totals"]["failed"]), (&json!(1), &json!(0)), "{theirs}");
        Ok(())
    }

    /// The same as a table of comma-separated values.
    async fn check_table(&self) -> Result<()> {
        let port = self.stack.port("all")?;
        let table = reqwest::Client::new().get(format!("http://127.0.0.1:{port}{ANALYTICS}?group_by=channel"));
        let table = table.bearer_auth(&self.stack.admin_key).header("accept", "text/csv").send().await?;
        assert!(table.headers()["content-type"].to_str()?.starts_with("text/csv"));
        let text = table.text().await?;
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("channel,sent,delivered,failed,bounced,dead,") && lines.len() == 5, "{text}");
        assert!(lines[1].starts_with("email,4,2,0,1,0,"), "{text}");
        assert!(lines[1].ends_with(",50.00,50.00,50.00,25.00,25.00"), "{text}");
        Ok(())
    }
}

#[tokio::test]
async fn invariant_a_each_delivery_counts_once_for_each_state_it_ever_reached() -> Result<()> {
    let scene = Scene::start().await?;
    let first_day = domain::clock::now().date_naive();
    scene.check_nothing().await?;
    scene.send_webhooks().await?;
    scene.cancel_one().await?;
    scene.send_mails().await?;
    let note = json!({"channel": "in_app", "recipient": "ada", "message": "m"});
    send(&scene.producer, &note, "delivered").await?;
    let other = scene.send_elsewhere().await?;
    eventually("the counts are the log's", SOON, || async {
        (check::wrong_daily_counts(&scene.stack).await.ok()? == 0).then_some(())
    })
    .await?;
    scene.check_totals(first_day).await?;
    scene.check_mails().await?;
    scene.check_filters(&other).await?;
    scene.check_table().await
}

#[tokio::test]
async fn a_wrong_question_and_a_producer_get_no_analytics() -> Result<()> {
    let stack = Stack::start().await?;
    let admin = stack.admin();
    for bad in [
        "start_date=yesterday",
        "end_date=2024-02-30",
        "start_date=2024-02-01&end_date=2024-01-01",
        "channel=fax",
        "group_by=x",
        "format=xml",
        "colour=red",
    ] {
        assert_eq!(admin.get(&format!("{ANALYTICS}?{bad}")).await?.status.as_u16(), 400, "{bad}");
    }
    assert_eq!(stack.producer().get(ANALYTICS).await?.status.as_u16(), 403, "analytics are the admin's");
    Ok(())
}
