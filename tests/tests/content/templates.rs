//! Templates and types of notifications: managed, previewed, and sent as what they said when the request was accepted.

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{Api, SmtpSink, Stack, api::SOON, eventually};

const TEMPLATES: &str = "/api/notifications/templates";
const TYPES: &str = "/api/notification-types";

fn text(value: &Value, name: &str) -> Result<String> {
    value[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {value}"))
}

async fn put(api: &Api, path: &str, body: &Value) -> Result<testkit::api::Answer> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(body)?)).await
}

/// Makes a template; its path.
async fn make(api: &Api, body: &Value) -> Result<String> {
    let made = api.post(TEMPLATES, body).await?;
    anyhow::ensure!(made.status == StatusCode::CREATED, "{} {}", made.status, made.body);
    Ok(format!("{TEMPLATES}/{}", text(&made.body, "id")?))
}

/// The fields that a request is refused for, and all that is said about them.
async fn refused(api: &Api, path: &str, body: &Value) -> Result<(Vec<String>, String)> {
    let answer = api.post(path, body).await?;
    anyhow::ensure!(answer.status == StatusCode::BAD_REQUEST, "{} {}", answer.status, answer.body);
    Ok((answer.fields(), answer.body["errors"].to_string()))
}

async fn with_mail() -> Result<(Stack, SmtpSink)> {
    let mail = SmtpSink::start_local().await?;
    let port = mail.address().port().to_string();
    let settings = [
        ("EMAIL_BACKEND", "smtp"),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &port),
        ("SMTP_USE_TLS", "false"),
        ("EMAIL_FROM", "shop@example.com"),
    ];
    Ok((Stack::patient(&settings).await?, mail))
}

/// The stored content of a message.
async fn content(stack: &Stack, id: &str) -> Result<Value> {
    let row = stack
        .sql()
        .await?
        .query_one(&format!("SELECT convert_from(content, 'UTF8') FROM messages WHERE id = '{id}'"), &[])
        .await?;
    Ok(serde_json::from_str(row.get(0))?)
}

/// As S3 prints it.
fn order_confirmation() -> Value {
    json!({
        "name": "order_confirmation",
        "category": "transactional",
        "subject": "Order #{{ order_id }} Confirmed",
        "body": "Hello {{ customer_name }},\n\nYour order #{{ order_id }} for ${{ amount }} has been confirmed!",
        "html_body": "<h1>Order Confirmed</h1><p>Hello {{ customer_name }},</p><p>Your order #{{ order_id }} for ${{ amount }} has been confirmed!</p>",
        "variables": ["customer_name", "order_id", "amount"]
    })
}

fn send_printed() -> Value {
    json!({
        "user_id": "user123",
        "channel": "email",
        "recipient": "user@example.com",
        "template_name": "order_confirmation",
        "template_vars": {"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}
    })
}

#[tokio::test]
async fn what_a_template_says_is_pinned_when_it_is_accepted_and_arrives_as_printed() -> Result<()> {
    let (stack, mail) = with_mail().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    let template = make(&admin, &order_confirmation()).await?;
    let send = |key: &'static str, body: Value| {
        let producer = producer.clone();
        async move {
            let body = serde_json::to_vec(&body)?;
            producer
                .request(Method::POST, "/api/notifications/send-template", &[("Idempotency-Key", key)], Some(body))
                .await
        }
    };
    let first = send("k1", send_printed()).await?;
    assert_eq!((first.status, &first.body["status"]), (StatusCode::ACCEPTED, &json!("queued")), "{}", first.body);
    let id = text(&first.body, "id")?;
    producer.wait_status(&id, "sent").await?;
    let arrived = mail.mails_to("user@example.com").pop().context("no mail")?;
    assert_eq!(arrived.header("Subject").as_deref(), Some("Order #12345 Confirmed"));
    for part in [
        "Hello John Doe,",
        "Your order #12345 for $99.99 has been confirmed!",
        "<h1>Order Confirmed</h1><p>Hello John Doe,</p>",
    ] {
        assert!(arrived.text().contains(part), "{part} is missing in\n{}", arrived.text());
    }
    let stored = content(&stack, &id).await?;
    assert_eq!(
        (&stored["template"], &stored["category"]),
        (&json!({"name": "order_confirmation", "version": 1}), &json!("transactional"))
    );
    assert_eq!(
        stack
            .count(
                "SELECT count(*) FROM deliveries WHERE template = 'order_confirmation' AND category = 'transactional'"
            )
            .await?,
        1
    );

    // A waiting message keeps the version it was accepted with.
    let mut later = send_printed();
    later["scheduled_at"] = json!((domain::clock::now() + chrono::TimeDelta::days(1)).to_rfc3339());
    let later = text(&send("k2", later).await?.ok()?, "id")?;
    let changed = put(&admin, &template, &json!({"subject": "New {{ order_id }}"})).await?.ok()?;
    assert_eq!((&changed["version"], &changed["body"]), (&json!(2), &order_confirmation()["body"]));
    assert_eq!(content(&stack, &later).await?["title"], "Order #12345 Confirmed");
    let newer = text(&send("k3", send_printed()).await?.ok()?, "id")?;
    let newer = content(&stack, &newer).await?;
    assert_eq!((&newer["title"], &newer["template"]["version"]), (&json!("New 12345"), &json!(2)));

    // A key gives the first answer again, also when the template is gone.
    let gone = admin.request(Method::DELETE, &template, &[], None).await?;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let again = send("k1", send_printed()).await?;
    assert_eq!((again.header("Idempotent-Replayed"), &again.body), (Some("true"), &first.body));
    let mut changed = send_printed();
    changed["template_vars"]["amount"] = json!("1");
    assert_eq!(send("k1", changed).await?.status, StatusCode::BAD_REQUEST, "the template is gone");
    Ok(())
}

#[tokio::test]
async fn a_request_by_a_template_names_its_missing_variables_and_wrong_fields() -> Result<()> {
    let (stack, _mail) = with_mail().await?;
    let producer = stack.producer();
    make(&stack.admin(), &order_confirmation()).await?;
    // Missing variables are named: the declared ones and the used ones.
    let mut less = send_printed();
    less["template_vars"] = json!({"order_id": "1"});
    let (fields, said) = refused(&producer, "/api/notifications/send-template", &less).await?;
    assert_eq!(fields, ["template_vars.customer_name", "template_vars.amount"]);
    assert!(said.contains("variable `amount` is missing"), "{said}");
    let mut other = send_printed();
    other["template_name"] = json!("nobody");
    assert_eq!(refused(&producer, "/api/notifications/send-template", &other).await?.0, ["template_name"]);
    let mut own = send_printed();
    own["message"] = json!("m");
    assert_eq!(refused(&producer, "/api/notifications/send-template", &own).await?.0, ["message"]);
    let mut nowhere = send_printed();
    nowhere["channel"] = json!("fax");
    assert_eq!(refused(&producer, "/api/notifications/send-template", &nowhere).await?.0, ["channel"]);
    Ok(())
}

/// A template with a text for each channel.
fn per_channel() -> Value {
    json!({"name": "task", "in_app": {"title": "{{title}}", "body": "{{message}}"},
        "email": {"subject": "⏰ {{title}}", "text_body": "Hi {{username}},\n\n{{message}}", "html_body": "<b>{{title}}</b>"},
        "push": {"title": "{{title}}", "body": "{{message}}"}, "sms": {"body": "{{message}}"}})
}

/// Previews in the words of the body.
async fn check_previews(admin: &Api, order: &str, task: &str) -> Result<()> {
    let vars = json!({"template_vars": {"customer_name": "A & <B>", "order_id": 7.0, "amount": "99.99"}});
    let said = admin.post(&format!("{order}/preview"), &vars).await?.ok()?;
    assert_eq!(said["body"], "Hello A & <B>,\n\nYour order #7 for $99.99 has been confirmed!");
    assert_eq!(said["subject"], "Order #7 Confirmed");
    assert!(text(&said, "html_body")?.contains("Hello A &amp; &lt;B&gt;,"), "{said}");
    let vars = json!({"title": "T & T", "message": "m", "username": "ada"});
    let said = admin.post(&format!("{task}/preview"), &json!({"template_vars": vars})).await?.ok()?;
    assert_eq!(
        said["email"],
        json!({"subject": "⏰ T & T", "text_body": "Hi ada,\n\nm", "html_body": "<b>T &amp; T</b>"})
    );
    assert_eq!((&said["sms"], &said["push"]["title"]), (&json!({"body": "m"}), &json!("T & T")));
    let said = admin.post(&format!("{task}/preview"), &json!({"template_vars": vars, "channel": "sms"})).await?.ok()?;
    assert_eq!(said, json!({"sms": {"body": "m"}}));
    assert_eq!(
        refused(admin, &format!("{task}/preview"), &json!({"template_vars": vars, "channel": "webhook"})).await?.0,
        ["channel"]
    );
    let (fields, said) =
        refused(admin, &format!("{order}/preview"), &json!({"template_vars": {"order_id": 1, "amount": 1}})).await?;
    assert_eq!(fields, ["template_vars.customer_name"]);
    assert!(said.contains("customer_name"), "{said}");
    Ok(())
}

/// Makes a template and another that includes it; their paths.
async fn make_including(admin: &Api) -> Result<(String, String)> {
    let foot = make(admin, &json!({"name": "foot", "body": "Bye, {{n}}"})).await?;
    let page = make(admin, &json!({"name": "page", "body": "Hi. {{> foot}}"})).await?;
    Ok((foot, page))
}

#[tokio::test]
async fn templates_are_versioned_previewed_and_refused_by_place_and_line() -> Result<()> {
    let stack = Stack::start().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    let order = make(&admin, &order_confirmation()).await?;
    assert_eq!(admin.post(TEMPLATES, &order_confirmation()).await?.status, StatusCode::CONFLICT);
    let per_channel = per_channel();
    let task = make(&admin, &per_channel).await?;
    let shown = producer.get(&task).await?.ok()?;
    for channel in ["in_app", "email", "push", "sms"] {
        assert_eq!(shown[channel], per_channel[channel]);
    }

    check_previews(&admin, &order, &task).await?;

    // Versions.
    put(&admin, &order, &json!({"body": "Short {{ order_id }}", "html_body": null, "variables": []})).await?.ok()?;
    let versions = producer.get(&format!("{order}/versions")).await?.ok()?;
    let bodies: Vec<_> =
        versions["versions"].as_array().context("no list")?.iter().map(|one| (&one["version"], &one["body"])).collect();
    assert_eq!(bodies, [(&json!(2), &json!("Short {{ order_id }}")), (&json!(1), &order_confirmation()["body"])]);
    let old = json!({"template_vars": {"customer_name": "A", "order_id": 1, "amount": 1}, "version": 1});
    assert!(text(&admin.post(&format!("{order}/preview"), &old).await?.ok()?, "body")?.starts_with("Hello A,"));
    let now = json!({"template_vars": {"order_id": 1}});
    assert_eq!(
        admin.post(&format!("{order}/preview"), &now).await?.ok()?,
        json!({"subject": "Order #1 Confirmed", "body": "Short 1"})
    );

    // Invalid templates are refused with the place of the error.
    let broken = [
        (json!({"name": "x", "subject": "s", "html_body": "a\n{{#if b}}"}), "html_body", "never closed"),
        (json!({"name": "x", "body": "a\nb {{c"}), "body", "line 2"),
        (json!({"name": "x", "email": {"text_body": "{{> nobody}}"}}), "email.text_body", "nobody"),
        (json!({"name": "x", "body": "{{> x}}"}), "body", "circle"),
        (json!({"name": "x", "body": "{{shout a}}"}), "body", "shout"),
        (json!({"name": "x", "body": "y".repeat(256 * 1024 + 1)}), "body", "256 KiB"),
        (json!({"name": "x"}), "body", "required"),
        (json!({"body": "x"}), "name", "required"),
        (json!({"name": "x", "body": "x", "fax": {}}), "fax", "unknown field"),
    ];
    for (body, field, says) in broken {
        let (fields, said) = refused(&admin, TEMPLATES, &body).await?;
        assert_eq!(fields, [field], "{said}");
        assert!(said.contains(says), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn an_included_template_stays_and_closes_no_circle() -> Result<()> {
    let stack = Stack::start().await?;
    let admin = stack.admin();
    make(&admin, &per_channel()).await?;
    let (foot, page) = make_including(&admin).await?;
    assert_eq!(
        admin.post(&format!("{page}/preview"), &json!({"template_vars": {"n": "B&B"}})).await?.ok()?["body"],
        "Hi. Bye, B&B"
    );
    let circle = put(&admin, &foot, &json!({"body": "{{> page}}"})).await?;
    assert_eq!((circle.status, circle.fields()), (StatusCode::BAD_REQUEST, vec!["body".to_owned()]), "{}", circle.body);
    assert!(circle.body.to_string().contains("circle"), "{}", circle.body);
    assert_eq!(admin.request(Method::DELETE, &foot, &[], None).await?.status, StatusCode::CONFLICT);
    assert_eq!(put(&admin, &foot, &json!({"name": "shoe"})).await?.status, StatusCode::CONFLICT);
    assert_eq!(put(&admin, &foot, &json!({"active": false})).await?.status, StatusCode::CONFLICT);
    assert_eq!(put(&admin, &page, &json!({"name": "task"})).await?.status, StatusCode::CONFLICT);

    // A test goes to its caller.
    let sent = admin.post(&format!("{page}/test"), &json!({"template_vars": {"n": "you"}})).await?;
    assert_eq!(sent.status, StatusCode::ACCEPTED, "{}", sent.body);
    admin.wait_status(&text(&sent.body, "id")?, "delivered").await?;
    let inbox = admin.get("/api/notifications").await?.ok()?;
    assert_eq!(inbox["notifications"][0]["message"], "Hi. Bye, you", "{inbox}");
    Ok(())
}

#[tokio::test]
async fn a_test_message_has_the_class_of_its_type() -> Result<()> {
    let stack = Stack::start().await?;
    let admin = stack.admin();
    let of_tests =
        json!({"id": "test", "label": "Test", "class": "marketing", "channels": ["in_app"], "default_enabled": true});
    admin.post(TYPES, &of_tests).await?.ok()?;
    make(&admin, &per_channel()).await?;
    let (_, page) = make_including(&admin).await?;
    admin.post(&format!("{page}/test"), &json!({"template_vars": {"n": "you"}})).await?.ok()?;
    admin.post("/api/notifications/test", &json!({})).await?.ok()?;
    let marketing =
        "SELECT count(*) FROM messages WHERE convert_from(content, 'UTF8')::jsonb ->> 'class' = 'marketing'";
    assert_eq!(stack.count(marketing).await?, 2);
    Ok(())
}

#[tokio::test]
async fn templates_belong_to_the_admins_of_their_tenant() -> Result<()> {
    let stack = Stack::start().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    make(&admin, &order_confirmation()).await?;
    make(&admin, &per_channel()).await?;
    let (_, page) = make_including(&admin).await?;
    assert_eq!(producer.post(TEMPLATES, &json!({"name": "y", "body": "b"})).await?.status, StatusCode::FORBIDDEN);
    let listed = producer.get(TEMPLATES).await?.ok()?;
    let names: Vec<_> =
        listed["templates"].as_array().context("no list")?.iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["page", "foot", "task", "order_confirmation"]);
    stack.cli(&["tenant", "create", "globex"])?;
    let other = stack.api(&stack.create_key("globex", "admin")?);
    for (method, path) in [
        (Method::GET, page.clone()),
        (Method::PUT, page.clone()),
        (Method::DELETE, page.clone()),
        (Method::GET, format!("{page}/versions")),
    ] {
        let body = (method == Method::PUT).then(|| b"{\"body\":\"x\"}".to_vec());
        assert_eq!(other.request(method, &path, &[], body).await?.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(other.post(&format!("{page}/preview"), &json!({})).await?.status, StatusCode::NOT_FOUND);
    let theirs =
        json!({"channel": "sms", "recipient": "+1234567890", "template_name": "page", "template_vars": {"n": 1}});
    assert_eq!(refused(&other, "/api/notifications/send-template", &theirs).await?.0, ["template_name"]);
    assert_eq!(other.get(TEMPLATES).await?.ok()?["templates"], json!([]));
    assert_eq!(admin.get(&format!("{TEMPLATES}/nonsense")).await?.status, StatusCode::NOT_FOUND);
    Ok(())
}

/// As S2 prints them.
fn types_printed() -> Value {
    json!({
        "categories": [{"id": "system", "name": "System Notifications", "types": [
            {"id": "welcome", "label": "Welcome Message", "default_enabled": true, "channels": ["in_app", "email"]}]}],
        "plugins": {"task_manager": {"display_name": "Task Manager", "notifications": [
            {"id": "task_reminder", "label": "Task Reminders", "description": "Get reminded about upcoming tasks",
             "default_enabled": true, "channels": ["in_app", "push"]},
            {"id": "task_assigned", "label": "Task Assignments", "description": "When someone assigns you a task",
             "default_enabled": true, "channels": ["in_app", "email"]}]}}
    })
}

fn templates_printed() -> Value {
    json!({"templates": {"task_reminder": {
        "in_app": {"title": "{{title}}", "body": "{{message}}"},
        "email": {"subject": "⏰ {{title}}", "text_body": "Hi {{username}},\n\n{{message}}\n\nBest,\nYour App"},
        "push": {"title": "{{title}}", "body": "{{message}}"}
    }}})
}

fn digest() -> Value {
    json!({"id": "digest", "label": "Digest", "category": "news", "class": "marketing", "channels": ["email"], "default_enabled": false})
}

/// Makes a type for advertising that is off unless a person wants it, and an essential category.
async fn make_classes(admin: &Api) -> Result<()> {
    admin.post(TYPES, &digest()).await?.ok()?;
    admin.post(TYPES, &json!({"categories": [{"id": "billing", "class": "essential"}]})).await?.ok()?;
    Ok(())
}

#[tokio::test]
async fn types_are_imported_as_printed_or_not_at_all() -> Result<()> {
    let stack = Stack::start().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    let made = admin.post(TYPES, &types_printed()).await?;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.body["types"]["created"], json!(["task_assigned", "task_reminder", "welcome"]));
    assert_eq!(made.body["categories"]["created"], json!(["system", "task_manager"]));
    let made = admin.post(TYPES, &templates_printed()).await?.ok()?;
    assert_eq!(made["templates"]["created"], json!(["task_reminder"]));
    for body in [types_printed(), templates_printed()] {
        let again = admin.post(TYPES, &body).await?;
        assert_eq!(again.status, StatusCode::OK);
        for sort in ["types", "categories", "templates"] {
            assert_eq!(
                (&again.body[sort]["created"], &again.body[sort]["changed"]),
                (&json!([]), &json!([])),
                "{}",
                again.body
            );
        }
    }
    make_classes(&admin).await?;
    let listed = producer.get(TYPES).await?.ok()?;
    let types: Vec<_> = listed["types"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|one| (one["id"].clone(), one["class"].clone()))
        .collect();
    let wanted = [
        ("digest", "marketing"),
        ("task_assigned", "transactional"),
        ("task_reminder", "transactional"),
        ("welcome", "essential"),
    ];
    assert_eq!(types, wanted.map(|(id, class)| (json!(id), json!(class))));

    // One fault, and nothing is imported.
    let faulty = json!({"types": [{"id": "fine"}, {"id": "bad", "channels": ["fax"]}], "templates": {"t": {"email": {"subject": "{{#if"}}}});
    assert_eq!(refused(&admin, TYPES, &faulty).await?.0, ["types[1].channels[0]"]);
    let faulty = json!({"types": [{"id": "fine"}], "templates": {"t": {"email": {"subject": "{{#if"}}}});
    assert_eq!(refused(&admin, TYPES, &faulty).await?.0, ["templates.t.email.subject"]);
    assert!(!producer.get(TYPES).await?.ok()?["types"].to_string().contains("fine"));
    assert_eq!(producer.post(TYPES, &digest()).await?.status, StatusCode::FORBIDDEN);

    assert_eq!(
        admin.request(Method::DELETE, &format!("{TYPES}/digest"), &[], None).await?.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        admin.request(Method::DELETE, &format!("{TYPES}/digest"), &[], None).await?.status,
        StatusCode::NOT_FOUND
    );
    Ok(())
}

#[tokio::test]
async fn a_type_decides_where_a_notification_goes_and_what_it_says() -> Result<()> {
    let (stack, mail) = with_mail().await?;
    let (admin, producer) = (stack.admin(), stack.producer());
    for body in [types_printed(), templates_printed()] {
        admin.post(TYPES, &body).await?.ok()?;
    }
    let sql = stack.sql().await?;
    sql.batch_execute(
        r#"INSERT INTO users (tenant_id, user_id, profile) VALUES (1, 'user_123', '{"email": "ada@example.com", "name": "Ada"}')"#,
    )
    .await?;
    let body = json!({"user_id": "user_123", "notification_type": "task_reminder", "title": "Task Due Soon!", "message": "Your task 'Review PR' is due in 1 hour",
        "channels": ["in_app", "email"], "metadata": {"task_id": 7, "priority": "high"}});
    let keyed = |body: &Value| {
        let (producer, body) = (producer.clone(), serde_json::to_vec(body));
        async move { producer.request(Method::POST, "/api/notifications", &[("Idempotency-Key", "s2")], Some(body?)).await }
    };
    let accepted = keyed(&body).await?;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
    let channels: Vec<_> = accepted.body["deliveries"]
        .as_array()
        .context("no deliveries")?
        .iter()
        .map(|one| one["channel"].clone())
        .collect();
    assert_eq!(channels, ["in_app", "email"]);
    let again = keyed(&body).await?;
    assert_eq!((again.header("Idempotent-Replayed"), &again.body), (Some("true"), &accepted.body));
    let mut other = body.clone();
    other["title"] = json!("x");
    assert_eq!(keyed(&other).await?.status, StatusCode::UNPROCESSABLE_ENTITY);
    let id = text(&accepted.body, "id")?;
    let arrived = eventually("the mail arrives", SOON, || async { mail.mails_to("ada@example.com").pop() }).await?;
    assert!(arrived.text().contains("Hi Ada,"), "{}", arrived.text());
    let inbox = eventually("the inbox has it", SOON, || async {
        let inbox = producer.get("/api/notifications/user/user_123").await.ok()?.body;
        inbox["notifications"].get(0).cloned()
    })
    .await?;
    assert_eq!(
        (&inbox["title"], &inbox["message"]),
        (&body["title"], &body["message"]),
        "nothing is escaped in a text"
    );
    assert_eq!((&inbox["type"], &inbox["category"]), (&json!("task_reminder"), &json!("task_manager")));
    let stored = content(&stack, &id).await?;
    assert_eq!(stored["parts"]["email"]["title"], "⏰ Task Due Soon!");
    assert_eq!(stored["template"], json!({"name": "task_reminder", "version": 1}));
    let message = producer.message(&id).await?;
    assert_eq!((&message["priority"], &message["category"]), (&json!("high"), &json!("task_manager")));

    // An unknown type, and wrong bodies.
    let unknown = json!({"user_id": "user_123", "notification_type": "my_plugin_alert", "title": "Action Complete",
        "message": "Your request has been processed successfully.", "metadata": {"item_id": "abc123", "action": "created"}});
    let accepted = producer.post("/api/notifications", &unknown).await?.ok()?;
    assert_eq!(
        accepted["deliveries"].as_array().map(|all| (all.len(), all[0]["channel"].clone())),
        Some((1, json!("in_app")))
    );
    let empty = json!({"user_id": "user_123", "channels": ["fax"]});
    assert_eq!(
        refused(&producer, "/api/notifications", &empty).await?.0,
        ["notification_type", "title", "message", "channels[0]"]
    );
    Ok(())
}

#[tokio::test]
async fn a_type_or_category_of_other_submissions_is_completed_and_pinned() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let producer = stack.producer();
    make_classes(&stack.admin()).await?;
    let of_type =
        producer.send(&json!({"channel": "in_app", "recipient": "ada", "message": "m", "type": "digest"})).await?;
    let stored = content(&stack, &of_type).await?;
    assert_eq!(
        (&stored["category"], &stored["class"], &stored["opt_in"]),
        (&json!("news"), &json!("marketing"), &json!(true))
    );
    let of_category =
        producer.send(&json!({"channel": "in_app", "recipient": "ada", "message": "m", "category": "billing"})).await?;
    assert_eq!(content(&stack, &of_category).await?["class"], "essential");
    let plain =
        producer.send(&json!({"channel": "in_app", "recipient": "ada", "message": "m", "category": "other"})).await?;
    assert_eq!(content(&stack, &plain).await?.get("class"), None);
    Ok(())
}
