//! Preferences are checked at the moment of sending: preferences, opt-outs, quiet hours,
//! send windows, unsubscribing.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Timelike, Utc};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use servers::sinks::smtp::Mail;
use testkit::{
    Api, SmtpSink, Stack,
    api::{Answer, SOON},
    eventually,
};

const PREFERENCES: &str = "/api/notifications/preferences";

async fn put(api: &Api, path: &str, body: &Value) -> Result<Answer> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(body)?)).await
}

async fn delete(api: &Api, path: &str) -> Result<Answer> {
    api.request(Method::DELETE, path, &[], None).await
}

fn person(stack: &Stack, id: &str) -> Result<Api> {
    Ok(stack.api(stack.cli(&["token", "--tenant", "acme", "--sub", id, "--role", "user"])?.trim()))
}

fn mail(to: &str, user: Option<&str>, category: Option<&str>) -> Value {
    json!({"channel": "email", "recipient": to, "user_id": user, "category": category, "subject": "Hi", "message": "Hello"})
}

/// Sends, and says how it ended and why.
async fn ended(api: &Api, body: &Value) -> Result<(String, Value)> {
    let id = api.send(body).await?;
    let message = eventually("the message ends", SOON, || async {
        let message = api.message(&id).await.ok()?;
        (!["queued", "sending", "retrying"].iter().any(|word| message["status"] == *word)).then_some(message)
    })
    .await?;
    let status = message["status"].as_str().context("a status")?.to_owned();
    Ok((status, message["deliveries"][0]["reason"].clone()))
}

async fn is_sent(api: &Api, body: &Value) -> Result<()> {
    let (status, reason) = ended(api, body).await?;
    anyhow::ensure!(status == "sent" || status == "delivered", "{status} {reason} {body}");
    Ok(())
}

async fn is_suppressed(api: &Api, body: &Value, reason: &str) -> Result<()> {
    let ended = ended(api, body).await?;
    anyhow::ensure!(ended == ("suppressed".to_owned(), json!(reason)), "{ended:?} {body}");
    Ok(())
}

async fn sandbox() -> Result<Stack> {
    Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await
}

/// Opt-outs from one category, and from all that is not essential.
async fn check_opt_outs(producer: &Api, ada: &Api) -> Result<()> {
    let out = ada.post("/api/notifications/opt-out/marketing", &json!({})).await?.ok()?;
    assert_eq!((&out["marketing_enabled"], &out["types"]["marketing"]["enabled"]), (&json!(false), &json!(false)));
    let advertising =
        json!({"channel": "push", "recipient": "token-1", "user_id": "ada", "category": "marketing", "title": "T"});
    is_suppressed(producer, &advertising, "preference").await?;
    is_sent(producer, &mail("ada@example.com", Some("ada"), Some("billing"))).await?;
    let out = ada.post("/api/notifications/opt-out/all-non-essential", &json!({})).await?.ok()?;
    assert_eq!(out["non_essential_enabled"], json!(false));
    is_suppressed(producer, &mail("ada@example.com", Some("ada"), Some("billing")), "preference").await?;
    is_sent(producer, &mail("ada@example.com", Some("ada"), Some("system"))).await?;
    put(ada, PREFERENCES, &json!({"non_essential_enabled": true})).await?.ok()?;
    is_sent(producer, &mail("ada@example.com", Some("ada"), Some("billing"))).await
}

/// Another person's preferences are closed, another tenant's are its own, and a wrong name is refused.
async fn check_rights(stack: &Stack, ada: &Api) -> Result<()> {
    let bob = person(stack, "bob")?;
    assert_eq!(bob.get(&format!("{PREFERENCES}/ada")).await?.status.as_u16(), 403);
    assert_eq!(put(&bob, &format!("{PREFERENCES}?user_id=ada"), &json!({})).await?.status.as_u16(), 403);
    stack.cli(&["tenant", "create", "other"])?;
    let foreign = stack.api(&stack.create_key("other", "admin")?);
    assert_eq!(foreign.get(&format!("{PREFERENCES}/ada")).await?.ok()?["marketing_enabled"], json!(true));
    let wrong = put(ada, PREFERENCES, &json!({"emial_enabled": false, "promo": {"chanels": []}})).await?;
    assert_eq!((wrong.status.as_u16(), wrong.fields()), (400, vec!["emial_enabled".to_owned(), "promo".to_owned()]));
    Ok(())
}

#[tokio::test]
async fn preferences_are_taken_in_three_forms_and_decide_what_is_sent() -> Result<()> {
    let stack = sandbox().await?;
    let (producer, ada) = (stack.producer(), person(&stack, "ada")?);
    stack
        .sql()
        .await?
        .batch_execute(
            "INSERT INTO notification_types (tenant_id, name, category, channels, default_enabled)
             VALUES (1, 'task_reminder', 'tasks', '{in_app,push}', true), (1, 'weekly', 'news', '{email}', false)",
        )
        .await?;
    let silent = ada.get(PREFERENCES).await?.ok()?;
    assert_eq!((&silent["email_enabled"], &silent["user_id"]), (&json!(true), &json!("ada")));
    assert_eq!(silent["types"]["task_reminder"], json!({"enabled": true, "channels": ["in_app", "push"]}));
    assert_eq!(silent["types"]["weekly"], json!({"enabled": false}));

    // By type, as a map.
    let map = json!({"task_reminder": {"enabled": true, "channels": ["in_app"]}, "promo": {"enabled": false}});
    let now = put(&ada, PREFERENCES, &map).await?.ok()?;
    assert_eq!(now["types"]["task_reminder"], json!({"enabled": true, "channels": ["in_app"]}));
    assert_eq!(now["types"]["promo"], json!({"enabled": false}));
    is_suppressed(&producer, &mail("ada@example.com", Some("ada"), Some("promo")), "preference").await?;
    is_sent(&producer, &mail("ada@example.com", None, Some("promo"))).await?;
    is_sent(&producer, &mail("ada@example.com", Some("bob"), Some("promo"))).await?;
    let push =
        json!({"channel": "push", "recipient": "token-1", "user_id": "ada", "type": "task_reminder", "title": "T"});
    is_suppressed(&producer, &push, "preference").await?;
    let inbox = json!({"channel": "in_app", "recipient": "ada", "type": "task_reminder", "title": "T"});
    is_sent(&producer, &inbox).await?;

    // A row, from the program that serves the person.
    let row = json!({"category": "marketing", "channel": "email", "enabled": false});
    put(&producer, &format!("{PREFERENCES}/ada"), &row).await?.ok()?;
    is_suppressed(&producer, &mail("ada@example.com", Some("ada"), Some("marketing")), "preference").await?;
    is_sent(&producer, &json!({"channel": "in_app", "recipient": "ada", "category": "marketing", "title": "T"}))
        .await?;

    // Switches, and what is essential passes them.
    put(&ada, "/api/notifications", &json!({"in_app_enabled": false, "sms_enabled": false})).await?.ok()?;
    is_suppressed(&producer, &inbox, "preference").await?;
    let sms = |category: &str| json!({"channel": "sms", "recipient": "+15551234567", "user_id": "ada", "message": "m", "category": category});
    is_suppressed(&producer, &sms("tasks"), "preference").await?;
    is_sent(&producer, &sms("security")).await?;
    let shown = producer.get(&format!("{PREFERENCES}?user_id=ada")).await?.ok()?;
    assert_eq!((&shown["in_app_enabled"], &shown["push_enabled"]), (&json!(false), &json!(true)));
    assert_eq!(shown["types"]["promo"]["enabled"], json!(false), "what was said before stays");
    assert_eq!(put(&ada, PREFERENCES, &shown).await?.ok()?, shown, "what is shown can be sent back");

    check_opt_outs(&producer, &ada).await?;
    check_rights(&stack, &ada).await
}

#[tokio::test]
async fn changes_at_the_same_time_are_all_kept_and_count_for_what_waits_already() -> Result<()> {
    let stack = sandbox().await?;
    let (producer, ada) = (stack.producer(), person(&stack, "ada")?);
    let bodies: Vec<Value> = (0..24).map(|n| json!({(format!("type{n}")): {"enabled": false}})).collect();
    for answer in try_join_all(bodies.iter().map(|body| put(&ada, PREFERENCES, body))).await? {
        answer.ok()?;
    }
    let types = ada.get(PREFERENCES).await?.ok()?["types"].clone();
    assert_eq!(types.as_object().context("types")?.len(), 24, "{types}");

    let mut waiting = mail("ada@example.com", Some("ada"), Some("news"));
    waiting["scheduled_at"] = json!((domain::clock::now() + TimeDelta::hours(1)).to_rfc3339());
    let id = producer.send(&waiting).await?;
    put(&ada, PREFERENCES, &json!({"news": {"enabled": false}})).await?.ok()?;
    due_now(&stack).await?;
    let message = producer.wait_status(&id, "suppressed").await?;
    assert_eq!(message["deliveries"][0]["reason"], json!("preference"));
    assert_eq!(producer.timeline(&id).await?["attempts"], json!([]));
    Ok(())
}

/// Makes it quiet for a person between these moments, in a zone of quarter hours; `None`: never again.
async fn quiet(stack: &Stack, user: &str, window: Option<(DateTime<Utc>, DateTime<Utc>)>) -> Result<()> {
    let zone = TimeDelta::minutes(5 * 60 + 45);
    let minute = |at: DateTime<Utc>| ((at + zone).hour() * 60 + (at + zone).minute()).to_string();
    let (start, end) = window.map_or((None, None), |(start, end)| (Some(minute(start)), Some(minute(end))));
    stack
        .sql()
        .await?
        .execute(
            "INSERT INTO users (tenant_id, user_id, time_zone, quiet_start, quiet_end)
             VALUES (1, $1, 'Asia/Kathmandu', $2::text::smallint, $3::text::smallint)
             ON CONFLICT (tenant_id, user_id) DO UPDATE SET quiet_start = excluded.quiet_start, quiet_end = excluded.quiet_end",
            &[&user, &start, &end],
        )
        .await?;
    Ok(())
}

/// Lets the moment come for which everything waits.
async fn due_now(stack: &Stack) -> Result<()> {
    stack.sql().await?.execute("UPDATE due SET due_at = now() WHERE why = 'scheduled'", &[]).await?;
    Ok(())
}

fn held_until(message: &Value, reason: &str) -> Option<DateTime<Utc>> {
    let delivery = &message["deliveries"][0];
    let is_held = delivery["status"] == "scheduled" && delivery["reason"] == reason;
    delivery["scheduled_at"].as_str().filter(|_| is_held)?.parse().ok()
}

async fn until_held(api: &Api, id: &str, until: DateTime<Utc>) -> Result<()> {
    until_held_for(api, id, until, "quiet_hours").await
}

async fn until_held_for(api: &Api, id: &str, until: DateTime<Utc>, reason: &str) -> Result<()> {
    let held = eventually("it is held", SOON, || async {
        held_until(&api.message(id).await.ok()?, reason).filter(|at| *at == until)
    });
    match held.await {
        Ok(_) => Ok(()),
        Err(late) => Err(late.context(format!("{id} until {until}: {:?}", api.message(id).await))),
    }
}

#[tokio::test]
async fn quiet_hours_hold_what_disturbs_and_everything_is_checked_again_afterwards() -> Result<()> {
    let stack = sandbox().await?;
    let api = stack.producer();
    let now = domain::clock::now().with_second(0).and_then(|at| at.with_nanosecond(0)).context("a minute")?;
    let (begun, end) = (now - TimeDelta::hours(1), now + TimeDelta::hours(2));
    for user in ["ada", "bob", "eve"] {
        quiet(&stack, user, Some((begun, end))).await?;
    }
    let held = mail("ada@example.com", Some("ada"), Some("news"));
    let id = api.send(&held).await?;
    until_held(&api, &id, end).await?;
    assert_eq!(api.message(&id).await?["status"], json!("scheduled"));
    let timeline = api.timeline(&id).await?;
    assert_eq!(
        (&timeline["attempts"], &timeline["events"][1]["kind"]),
        (&json!([]), &json!("scheduled")),
        "{timeline}"
    );
    let sms =
        json!({"channel": "sms", "recipient": "+15551234567", "user_id": "bob", "message": "m", "category": "news"});
    let (text, doomed) = (api.send(&sms).await?, api.send(&mail("eve@example.com", Some("eve"), Some("news"))).await?);
    until_held(&api, &text, end).await?;
    until_held(&api, &doomed, end).await?;

    // A channel that does not disturb, an essential category, an unknown person.
    is_sent(&api, &json!({"channel": "in_app", "recipient": "ada", "title": "T"})).await?;
    is_sent(&api, &mail("ada@example.com", Some("ada"), Some("security"))).await?;
    is_sent(&api, &mail("ada@example.com", None, Some("news"))).await?;
    let mut brief = held.clone();
    brief["expires_at"] = json!((now + TimeDelta::hours(1)).to_rfc3339());
    assert_eq!(ended(&api, &brief).await?, ("expired".to_owned(), json!("quiet_hours")));
    let taken_back = api.send(&held).await?;
    until_held(&api, &taken_back, end).await?;
    api.post(&format!("/api/messages/{taken_back}/cancel"), &json!({})).await?.ok()?;
    api.wait_status(&taken_back, "cancelled").await?;

    // One is quiet for longer now, one no more, one has had enough of it altogether.
    let later = end + TimeDelta::hours(1);
    quiet(&stack, "ada", Some((begun, later))).await?;
    quiet(&stack, "bob", None).await?;
    put(&api, &format!("{PREFERENCES}/eve"), &json!({"news": {"enabled": false}})).await?.ok()?;
    due_now(&stack).await?;
    until_held(&api, &id, later).await?;
    api.wait_status(&text, "sent").await?;
    let refused = api.wait_status(&doomed, "suppressed").await?;
    assert_eq!(refused["deliveries"][0]["reason"], json!("preference"));
    quiet(&stack, "ada", None).await?;
    due_now(&stack).await?;
    let sent = api.wait_status(&id, "sent").await?;
    let delivery = &sent["deliveries"][0];
    assert_eq!(
        (&delivery["attempts"], &delivery["reason"], &delivery["scheduled_at"]),
        (&json!(1), &Value::Null, &Value::Null)
    );
    let waits = "SELECT sum(deferrals)::int8 FROM deliveries WHERE state = 'sent'";
    assert_eq!(stack.count(waits).await?, 0, "waiting for the morning is no failure");
    Ok(())
}

/// Makes a type with a send window, and again; a wrong window is refused by its fields.
async fn make_type(stack: &Stack, letter: &Value) -> Result<()> {
    let admin = stack.admin();
    let types = "/api/notification-types";
    assert_eq!(admin.post(types, letter).await?.ok()?["types"]["created"], json!(["letter"]));
    assert_eq!(admin.post(types, letter).await?.ok()?["types"]["unchanged"], json!(["letter"]));
    assert_eq!(stack.producer().get(types).await?.ok()?["types"][0]["send_window"], letter["send_window"]);
    let wrong = json!({"id": "x", "send_window": {"days": ["someday"], "from": "9:00", "to": "17:00"}});
    assert_eq!(admin.post(types, &wrong).await?.fields(), ["send_window.days[0]", "send_window.from"]);
    Ok(())
}

fn letter_to(user: Option<&str>) -> Value {
    json!({"channel": "email", "recipient": "ada@example.com", "user_id": user, "type": "letter", "message": "Hello"})
}

/// An essential message and one with a window that is open all day do not wait; one that expires before the opening ends.
async fn check_exceptions(api: &Api, now: DateTime<Utc>) -> Result<()> {
    let mut code = letter_to(Some("ada"));
    code["category"] = json!("security");
    is_sent(api, &code).await?;
    let mut any = letter_to(Some("ada"));
    any["send_window"] = json!({"from": "00:00", "to": "24:00"});
    is_sent(api, &any).await?;
    let mut brief = letter_to(Some("ada"));
    brief["expires_at"] = json!((now + TimeDelta::minutes(50)).to_rfc3339());
    assert_eq!(ended(api, &brief).await?, ("expired".to_owned(), json!("send_window")));
    Ok(())
}

/// A letter to Ada in the app is delivered, and the one by mail waits.
async fn check_both_channels(api: &Api) -> Result<()> {
    let note = json!({"user_id": "ada", "notification_type": "letter", "title": "T", "message": "m"});
    let both = api.post("/api/notifications", &note).await?.ok()?["id"].as_str().context("an id")?.to_owned();
    eventually("one is delivered and one waits", SOON, || async {
        let message = api.message(&both).await.ok()?;
        let stands = |channel: &str| {
            let deliveries = message["deliveries"].as_array()?;
            deliveries.iter().find(|one| one["channel"] == channel).map(|one| one["status"].clone())
        };
        (stands("in_app")? == "delivered" && stands("email")? == "scheduled").then_some(())
    })
    .await
}

/// Makes a rule that sends a letter, and lets its event happen to Ada; the message. The dry run says until when it waits.
async fn send_by_rule(stack: &Stack, opening: DateTime<Utc>) -> Result<String> {
    let (api, admin) = (stack.producer(), stack.admin());
    let words = json!({"name": "paid", "subject": "Paid", "body": "Paid"});
    admin.post("/api/notifications/templates", &words).await?.ok()?;
    let rule = json!({"name": "Paid", "event_type": "order.paid", "notification_type": "letter", "template_name": "paid", "channels": ["email"]});
    admin.post("/api/rules", &rule).await?.ok()?;
    let happened = json!({"type": "order.paid", "user_id": "ada", "data": {}});
    let dry = api.post("/api/events/dry-run", &happened).await?.ok()?["rules"][0]["channels"][0].clone();
    assert_eq!((&dry["waits_for"], &dry["quiet_until"]), (&json!("send_window"), &Value::Null), "{dry}");
    assert_eq!(dry["waits_until"].as_str().and_then(|at| at.parse().ok()), Some(opening));
    let told = api.post("/api/events", &happened).await?.ok()?["messages"][0].clone();
    Ok(told.as_str().or(told["id"].as_str()).context("an id")?.to_owned())
}

#[tokio::test]
async fn outside_its_send_window_a_type_waits_for_the_clock_of_its_person() -> Result<()> {
    let stack = sandbox().await?;
    let api = stack.producer();
    let now = domain::clock::now().with_second(0).and_then(|at| at.with_nanosecond(0)).context("a minute")?;
    // Opens in an hour where Ada lives, for two hours, on that day of the week.
    let zone = TimeDelta::minutes(5 * 60 + 45);
    let (opening, closing) = (now + TimeDelta::hours(1), now + TimeDelta::hours(3));
    let wall = |at: DateTime<Utc>| (at + zone).format("%H:%M").to_string();
    let day = (opening + zone).format("%a").to_string().to_lowercase();
    let window = json!({"days": [day], "from": wall(opening), "to": wall(closing)});
    let letter = json!({"id": "letter", "category": "news", "channels": ["in_app", "email"], "send_window": window});
    make_type(&stack, &letter).await?;
    let profile = json!({"email": "ada@example.com", "time_zone": "Asia/Kathmandu"});
    put(&api, "/api/users/ada", &profile).await?.ok()?;

    let id = api.send(&letter_to(Some("ada"))).await?;
    until_held_for(&api, &id, opening, "send_window").await?;
    let timeline = api.timeline(&id).await?;
    assert_eq!(
        (&timeline["attempts"], &timeline["events"][1]["kind"], &timeline["events"][1]["detail"]),
        (&json!([]), &json!("scheduled"), &json!("send_window: it is sent when the window opens")),
        "{timeline}"
    );
    // Without a known clock it is UTC, and the window opens later by the difference.
    let unknown = api.send(&letter_to(None)).await?;
    until_held_for(&api, &unknown, opening + zone, "send_window").await?;

    // By type in the app and by mail, from a rule, and in the words of a request.
    check_both_channels(&api).await?;
    let told = send_by_rule(&stack, opening).await?;
    until_held_for(&api, &told, opening, "send_window").await?;
    let mut own = mail("ada@example.com", Some("ada"), None);
    own["send_window"] = json!({"from": wall(opening), "to": wall(closing)});
    let requested = api.send(&own).await?;
    until_held_for(&api, &requested, opening, "send_window").await?;
    own["send_window"] = json!({"days": ["mon"], "from": "09:00"});
    assert_eq!(api.post("/api/notifications/send", &own).await?.fields(), ["send_window.to"]);
    check_exceptions(&api, now).await?;

    // With quiet hours the first moment that both allow, or none.
    let later = now + TimeDelta::hours(2);
    quiet(&stack, "bob", Some((now - TimeDelta::hours(1), later))).await?;
    quiet(&stack, "eve", Some((now - TimeDelta::hours(1), closing))).await?;
    let quieter = api.send(&letter_to(Some("bob"))).await?;
    until_held_for(&api, &quieter, later, "quiet_hours").await?;
    is_suppressed(&api, &letter_to(Some("eve")), "send_window").await?;

    // At the opening all is checked again: one person has moved to where it is open, one has opted out.
    put(&api, "/api/users/ada", &json!({"time_zone": "Asia/Jakarta"})).await?.ok()?;
    put(&api, &format!("{PREFERENCES}/bob"), &json!({"news": {"enabled": false}})).await?.ok()?;
    due_now(&stack).await?;
    for id in [&id, &told, &requested] {
        let sent = api.wait_status(id, "sent").await?;
        let delivery = &sent["deliveries"][0];
        assert_eq!((&delivery["attempts"], &delivery["reason"]), (&json!(1), &Value::Null));
    }
    assert_eq!(api.wait_status(&quieter, "suppressed").await?["deliveries"][0]["reason"], json!("preference"));
    until_held_for(&api, &unknown, opening + zone, "send_window").await
}

/// A stack whose mails go to a sink, and whose links lead to itself.
struct Post {
    stack: Stack,
    sink: SmtpSink,
}

impl Post {
    async fn open() -> Result<Self> {
        let sink = SmtpSink::start_local().await?;
        let port = sink.address().port().to_string();
        let mut stack = Stack::prepare(
            testkit::TestServers::shared()?,
            &[
                testkit::patient::PATIENT,
                &[
                    ("EMAIL_BACKEND", "smtp"),
                    ("SMTP_HOST", "127.0.0.1"),
                    ("SMTP_PORT", port.as_str()),
                    ("EMAIL_FROM", "us@example.com"),
                ],
            ]
            .concat(),
        )
        .await?;
        let port = servers::private::ports::find_free()?.to_string();
        stack.set("PUBLIC_URL", Some(&format!("http://127.0.0.1:{port}")));
        stack.launch("all", testkit::Role::All, &[("PORT", &port)]).await?;
        Ok(Self { stack, sink })
    }

    /// Sends a mail that must go out; what arrived.
    async fn mail(&self, body: &Value) -> Result<std::sync::Arc<Mail>> {
        self.sink.clear();
        is_sent(&self.stack.producer(), body).await?;
        Ok(self.sink.wait_for(1, SOON).await?.remove(0))
    }

    /// The same; where its header leads.
    async fn link(&self, body: &Value) -> Result<String> {
        let mail = self.mail(body).await?;
        assert_eq!(mail.header("List-Unsubscribe-Post").as_deref(), Some("List-Unsubscribe=One-Click"));
        let header = mail.header("List-Unsubscribe").context("no List-Unsubscribe")?;
        let url = header.strip_prefix('<').and_then(|url| url.strip_suffix('>')).context("no brackets")?;
        Ok(url.to_owned())
    }
}

/// The POST of a mail program (RFC 8058, section 3.2): no cookie, no credential, and no redirect is followed.
async fn one_click(url: &str) -> Result<u16> {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let body = "--b\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--b--\r\n";
    let request = client.post(url).header("content-type", "multipart/form-data; boundary=b").body(body);
    Ok(request.send().await?.status().as_u16())
}

#[tokio::test]
async fn a_mail_can_be_unsubscribed_from_by_its_own_header() -> Result<()> {
    let post = Post::open().await?;
    let (api, ada) = (post.stack.producer(), person(&post.stack, "ada")?);

    // Without a person the address is silenced, for that category alone.
    let news = mail("eve@example.com", None, Some("news"));
    let url = post.link(&news).await?;
    assert_eq!(post.link(&news).await?, url, "the same mail has the same link");
    let page = reqwest::Client::new().get(&url).header("accept", "text/html").send().await?;
    assert_eq!(page.status().as_u16(), 200);
    assert!(page.headers()["content-security-policy"].to_str()?.contains("default-src 'none'"));
    let html = page.text().await?;
    assert!(html.contains("<form method=\"post\">") && html.contains("<strong>news</strong>"), "{html}");
    let path = format!("/api/notifications/unsubscribe/{}", url.rsplit('/').next().context("a token")?);
    assert_eq!(post.stack.api("").request(Method::HEAD, &path, &[], None).await?.status.as_u16(), 200);
    post.mail(&news).await.context("looking at the page changes nothing")?;
    for _ in 0..2 {
        assert_eq!(one_click(&url).await?, 200);
    }
    is_suppressed(&api, &mail("Eve@Example.com", None, Some("news")), "unsubscribed").await?;
    is_suppressed(
        &api,
        &json!({"channel": "email", "recipient": "eve@example.com", "type": "news", "message": "m"}),
        "unsubscribed",
    )
    .await?;
    post.mail(&mail("eve@example.com", None, Some("marketing"))).await?;
    post.mail(&mail("bob@example.com", None, Some("news"))).await?;
    let list = api.get("/api/suppressions?recipient=eve@example.com").await?.ok()?;
    assert_eq!(list["suppressions"][0]["scope"], json!("category:news"), "{list}");

    // With a person, the person too; what says nothing of its category is taken for advertising.
    let url = post.link(&mail("ada@example.com", Some("ada"), None)).await?;
    let path = format!("/api/notifications/unsubscribe/{}", url.rsplit('/').next().context("a token")?);
    let empty = post.stack.api("").request(Method::POST, &path, &[], None).await?.ok()?;
    assert_eq!(empty, json!({"unsubscribed": true, "category": "marketing", "channel": "email"}));
    is_suppressed(&api, &mail("ada@example.com", None, Some("marketing")), "unsubscribed").await?;
    is_suppressed(&api, &mail("ada@another.example", Some("ada"), Some("marketing")), "preference").await?;
    is_sent(&api, &json!({"channel": "in_app", "recipient": "ada", "category": "marketing", "title": "T"})).await?;
    let channels = ada.get(PREFERENCES).await?.ok()?["types"]["marketing"]["channels"].clone();
    assert!(!channels.as_array().context("channels")?.contains(&json!("email")), "{channels}");

    // Essential mails have no link to unsubscribe.
    let code = post.mail(&mail("ada@example.com", Some("ada"), Some("security"))).await?;
    assert_eq!((code.header("List-Unsubscribe"), code.header("List-Unsubscribe-Post")), (None, None));

    // Links for others' mails.
    let path = "/api/notifications/unsubscribe-url/ada?category=promo";
    let made = ada.get(path).await?.ok()?["url"].as_str().context("a url")?.to_owned();
    assert_eq!(person(&post.stack, "bob")?.get(path).await?.status.as_u16(), 403);
    assert_eq!(one_click(&made).await?, 200);
    is_suppressed(&api, &mail("ada@example.com", Some("ada"), Some("promo")), "preference").await?;

    // Tokens that we did not make.
    let at = url.len() - 10;
    let other = if url[at..].starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{}{other}{}", &url[..at], &url[at + 1..]);
    let root = url.rsplit_once('/').context("a path")?.0;
    for wrong in [forged, format!("{root}/AAAA"), format!("{url}AAAA")] {
        assert_eq!(one_click(&wrong).await?, 404, "{wrong}");
        for accept in ["text/html", "*/*"] {
            let answer = reqwest::Client::new().get(&wrong).header("accept", accept).send().await?;
            assert_eq!(answer.status().as_u16(), 404, "{wrong}");
        }
    }
    assert!(!post.stack.logs()?.contains(root.rsplit_once("//").context("a host")?.1), "no link in a log");
    Ok(())
}

async fn knows(stack: &Stack, user: &str, email: &str) -> Result<()> {
    let profile = json!({"email": email}).to_string().into_bytes();
    let sql = "INSERT INTO users (tenant_id, user_id, profile) VALUES (1, $1, $2)";
    stack.sql().await?.execute(sql, &[&user, &profile]).await.map(drop).map_err(Into::into)
}

#[tokio::test]
async fn who_turned_advertising_down_stays_so_when_all_else_is_forgotten() -> Result<()> {
    let stack = sandbox().await?;
    let (api, admin, ada) = (stack.producer(), stack.admin(), person(&stack, "ada")?);
    let bought = |to: &str| mail(to, None, Some("marketing"));
    for (user, email) in [("ada", "ada@example.com"), ("bob", "bob@example.com"), ("cyd", "cyd@example.com")] {
        knows(&stack, user, email).await?;
    }

    // At the address too, with or without a user id.
    ada.post("/api/notifications/opt-out/marketing", &json!({})).await?.ok()?;
    is_suppressed(&api, &bought("ada@example.com"), "unsubscribed").await?;
    let export = ada.get("/api/notifications/export").await?.ok()?;
    assert_eq!(
        (&export["stored"]["no_marketing"], &export["opt_outs"][0]["scope"]),
        (&json!(true), &json!("marketing")),
        "{export}"
    );
    // A person who opts in again gets it again.
    put(&ada, PREFERENCES, &json!({"marketing": {"enabled": true}})).await?.ok()?;
    is_sent(&api, &bought("ada@example.com")).await?;
    ada.post("/api/notifications/opt-out/marketing", &json!({})).await?.ok()?;

    // Preferences are forgotten; the inbox and the opt-out are not.
    is_sent(&api, &json!({"channel": "in_app", "recipient": "ada", "title": "T"})).await?;
    put(&ada, PREFERENCES, &json!({"email_enabled": false})).await?.ok()?;
    is_suppressed(&api, &mail("ada@work.example", Some("ada"), Some("news")), "preference").await?;
    assert_eq!(delete(&ada, "/api/notifications").await?.status.as_u16(), 204);
    let view = ada.get(PREFERENCES).await?.ok()?;
    assert_eq!((&view["email_enabled"], &view["types"]), (&json!(true), &json!({})));
    assert_eq!(ada.get("/api/notifications").await?.ok()?["unread_count"], json!(1));
    is_suppressed(&api, &bought("ada@example.com"), "unsubscribed").await?;
    is_suppressed(&api, &bought("ada@work.example"), "unsubscribed").await?;
    is_sent(&api, &mail("ada@example.com", Some("ada"), Some("news"))).await?;

    // A person who said it in their preferences only is forgotten.
    put(&api, &format!("{PREFERENCES}/bob"), &json!({"marketing": {"enabled": false}})).await?.ok()?;
    delete(&admin, "/api/users/bob").await?.ok()?;
    is_suppressed(&api, &bought("bob@example.com"), "unsubscribed").await?;
    delete(&admin, "/api/users/cyd").await?.ok()?;
    is_sent(&api, &bought("cyd@example.com")).await?;
    let shown = stack.count("SELECT count(*) FROM suppressions WHERE address LIKE '%bob%'").await?;
    assert_eq!(shown, 0, "by fingerprint alone");

    // Of whom nothing else is known, nothing stays.
    let eve = person(&stack, "eve")?;
    put(&eve, PREFERENCES, &json!({"email_enabled": false})).await?.ok()?;
    delete(&eve, "/api/notifications").await?;
    assert_eq!(stack.count("SELECT count(*) FROM users WHERE user_id = 'eve'").await?, 0);
    Ok(())
}
