//! People: stored and changed, their devices, messages without an address, import, export and erasure.

use std::{collections::BTreeSet, fmt::Write};

use anyhow::{Context, Result};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};
use testkit::{Api, Stack, amqp::Backend, api::Answer, api::SOON, eventually, patient, push::Services};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn put(api: &Api, path: &str, body: &Value) -> Result<Answer> {
    api.request(Method::PUT, path, &[], Some(serde_json::to_vec(body)?)).await
}

async fn delete(api: &Api, path: &str) -> Result<Answer> {
    api.request(Method::DELETE, path, &[], None).await
}

fn user_of(stack: &Stack, tenant: &str, sub: &str) -> Result<Api> {
    Ok(stack.api(stack.cli(&["token", "--tenant", tenant, "--sub", sub, "--role", "user"])?.trim()))
}

fn ids(list: &Value) -> Vec<&str> {
    list["users"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap()).collect()
}

/// The audit log outlives people and does not name them.
async fn check_audit(stack: &Stack) -> Result<()> {
    let audit = stack.admin().get("/api/admin/audit").await?.ok()?;
    // As a word: the ids in it are hexadecimal, and so is this name.
    let shown = audit.to_string();
    let mut words = shown.split(|c: char| !c.is_alphanumeric());
    assert!(words.all(|word| !word.eq_ignore_ascii_case("ada")), "the audit log outlives people: {audit}");
    Ok(())
}

#[tokio::test]
async fn a_person_is_made_changed_and_listed_within_its_tenant() -> Result<()> {
    let stack = Stack::start().await?;
    let api = stack.producer();
    let all = json!({"email": "ada@example.com", "phone": "+43123456789", "name": "Ada", "locale": "de-AT", "time_zone": "Europe/Vienna",
        "quiet_hours": {"start": "22:00", "end": "08:00"}, "attributes": {"tier": "gold", "age": 36}});
    let made = put(&api, "/api/users/ada", &all).await?;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    for (name, value) in all.as_object().unwrap() {
        assert_eq!(&made.body[name], value, "{name}");
    }
    assert_eq!(api.get("/api/users/ada").await?.ok()?, made.body);

    let changed =
        put(&api, "/api/users/ada", &json!({"phone": null, "attributes": {"tier": null, "vip": true}})).await?;
    assert_eq!(changed.status.as_u16(), 200);
    assert_eq!((&changed.body["phone"], &changed.body["email"]), (&json!(null), &json!("ada@example.com")));
    assert_eq!(changed.body["attributes"], json!({"age": 36, "vip": true}));

    // A person with preferences alone is unknown here, until there is other data.
    let sql = stack.sql().await?;
    sql.batch_execute("INSERT INTO users (tenant_id, user_id, preferences) VALUES (1, 'eve', '{}')").await?;
    for unknown in ["/api/users/eve", "/api/users/nobody"] {
        assert_eq!(api.get(unknown).await?.status.as_u16(), 404, "{unknown}");
    }
    assert_eq!(put(&api, "/api/users/eve", &json!({})).await?.status.as_u16(), 201);
    assert_eq!(stack.count("SELECT count(*) FROM users WHERE user_id = 'eve' AND preferences IS NOT NULL").await?, 1);

    let ada = user_of(&stack, "acme", "ada")?;
    assert_eq!(put(&ada, "/api/users/ada", &json!({"name": "Ada L."})).await?.ok()?["name"], "Ada L.");
    for (method, path) in [
        (Method::GET, "/api/users/eve"),
        (Method::PUT, "/api/users/eve"),
        (Method::GET, "/api/users"),
        (Method::GET, "/api/users/eve/export"),
    ] {
        let body = (method == Method::PUT).then(|| b"{}".to_vec());
        assert_eq!(ada.request(method.clone(), path, &[], body).await?.status.as_u16(), 403, "{method} {path}");
    }
    stack.cli(&["tenant", "create", "beta"])?;
    let foreign = stack.api(&stack.create_key("beta", "admin")?);
    assert_eq!(foreign.get("/api/users/ada").await?.status.as_u16(), 404);
    assert_eq!(ids(&foreign.get("/api/users").await?.ok()?), Vec::<&str>::new());

    let odd = "/api/users/a%2Fb%20%C3%BC";
    assert_eq!(put(&api, odd, &json!({"attributes": {"tier": "gold", "age": "36"}})).await?.ok()?["id"], "a/b ü");
    let page = api.get("/api/users?limit=2").await?.ok()?;
    let rest =
        api.get(&format!("/api/users?limit=2&cursor={}", page["next_cursor"].as_str().context("more")?)).await?.ok()?;
    assert_eq!([ids(&page), ids(&rest)].concat(), ["a/b ü", "eve", "ada"]);
    assert_eq!(rest["next_cursor"], json!(null));
    for (filter, wanted) in [
        ("attribute=age:36", vec!["a/b ü", "ada"]),
        ("attribute=tier:gold", vec!["a/b ü"]),
        ("locale=de-AT&time_zone=Europe/Vienna", vec!["ada"]),
        ("locale=fr", vec![]),
    ] {
        assert_eq!(ids(&api.get(&format!("/api/users?{filter}")).await?.ok()?), wanted, "{filter}");
    }
    for bad in ["attribute=tier", "cursor=x", "limit=0", "colour=red"] {
        assert_eq!(api.get(&format!("/api/users?{bad}")).await?.status.as_u16(), 400, "{bad}");
    }
    check_audit(&stack).await
}

#[tokio::test]
async fn a_bad_change_of_a_person_is_refused_by_its_fields() -> Result<()> {
    let stack = Stack::start().await?;
    let api = stack.producer();
    put(&api, "/api/users/ada", &json!({"email": "ada@example.com"})).await?.ok()?;
    let bad = json!({"email": "nobody", "phone": "0123", "time_zone": "Mars/Olympus", "quiet_hours": {"start": "25:00", "end": "08:00"},
        "attributes": {"a": "x".repeat(9000)}, "colour": "red"});
    let refused = put(&api, "/api/users/ada", &bad).await?;
    let fields: BTreeSet<String> = refused.fields().into_iter().collect();
    let wanted = ["attributes", "colour", "email", "phone", "quiet_hours.start", "time_zone"].map(str::to_owned);
    assert_eq!((refused.status.as_u16(), fields), (400, BTreeSet::from(wanted)));
    for body in
        [json!({"quiet_hours": {"start": "08:00", "end": "08:00"}}), json!([]), json!({"attributes": {"a": "\u{0}"}})]
    {
        assert_eq!(put(&api, "/api/users/ada", &body).await?.status.as_u16(), 400, "{body}");
    }
    assert_eq!(api.get("/api/users/ada").await?.ok()?["email"], "ada@example.com", "a refused change changes nothing");
    check_audit(&stack).await
}

#[tokio::test]
async fn two_who_make_the_same_person_at_once_both_have_their_say() -> Result<()> {
    let stack = Stack::start().await?;
    let api = stack.producer();
    for round in 0..10 {
        let path = format!("/api/users/u{round}");
        let (email, name) = (json!({"email": "a@example.com"}), json!({"name": "A"}));
        let (one, other) = tokio::join!(put(&api, &path, &email), put(&api, &path, &name));
        let mut statuses = [one?.status.as_u16(), other?.status.as_u16()];
        statuses.sort_unstable();
        let user = api.get(&path).await?.ok()?;
        assert_eq!((&user["email"], &user["name"]), (&json!("a@example.com"), &json!("A")));
        assert_eq!(statuses, [200, 201], "one made it");
    }
    Ok(())
}

#[tokio::test]
async fn devices_are_registered_moved_and_taken_away_and_a_push_reaches_each() -> Result<()> {
    let services = Services::start().await?;
    let stack = Stack::patient(&services.settings(&[])).await?;
    let (api, sink) = (stack.producer(), &services.sink);
    let register = async |api: &Api, body: Value| api.post("/api/notifications/register-device", &body).await;

    let first = register(&api, json!({"user_id": "ada", "device_token": "cXy:APA91b"})).await?;
    assert_eq!((first.status.as_u16(), &first.body["user_id"]), (201, &json!("ada")), "{}", first.body);
    let phone =
        register(&api, json!({"user_id": "ada", "device_token": "short-token", "platform": "ios"})).await?.ok()?;
    let user = api.get("/api/users/ada").await?.ok()?;
    assert_eq!((&user["devices"][1]["id"], &user["devices"][1]["platform"]), (&phone["id"], &json!("ios")));
    assert!(!user.to_string().contains("short-token"));

    let push = json!({"channel": "push", "user_id": "ada", "title": "Shipped", "message": "m"});
    let sent = api.post("/api/notifications/send", &push).await?.ok()?;
    assert_eq!(sent["deliveries"].as_array().unwrap().len(), 2);
    api.wait_status(sent["id"].as_str().unwrap(), "sent").await?;
    assert_eq!(sink.requests_to("/3/device/short-token").len(), 1, "the platform is no part of the token");
    let fcm = sink.requests_to("/v1/projects/shop/messages:send");
    assert_eq!((fcm.len(), &fcm[0].json()?["message"]["token"]), (1, &json!("cXy:APA91b")));

    // The phone has a new owner. A user who knows its token cannot take it; the backend moves it.
    let bob = user_of(&stack, "acme", "bob")?;
    let taken = register(&bob, json!({"device_token": "short-token"})).await?;
    assert_eq!((taken.status.as_u16(), &taken.body["code"]), (409, &json!("state_conflict")));
    assert_eq!(api.get("/api/users/ada").await?.ok()?["devices"].as_array().unwrap().len(), 2);
    let moved = register(&api, json!({"user_id": "bob", "device_token": "short-token"})).await?;
    let again = register(&bob, json!({"device_token": "short-token"})).await?;
    assert_eq!((again.status.as_u16(), &again.body["id"]), (200, &phone["id"]), "the user's own device");
    assert_eq!((moved.status.as_u16(), &moved.body["id"], &moved.body["platform"]), (200, &phone["id"], &json!("ios")));
    assert_eq!(register(&bob, json!({"user_id": "ada", "device_token": "x"})).await?.status.as_u16(), 403);
    assert_eq!(api.get("/api/users/ada").await?.ok()?["devices"].as_array().unwrap().len(), 1);
    for (body, field) in [
        (json!({"user_id": "ada"}), "device_token"),
        (json!({"device_token": "x"}), "user_id"),
        (json!({"user_id": "ada", "device_token": "x", "platform": "fax"}), "platform"),
        (
            json!({"user_id": "ada", "subscription": {"endpoint": "https://10.0.0.1/x", "keys": {"p256dh": "x", "auth": "y"}}}),
            "subscription",
        ),
    ] {
        let refused = register(&api, body).await?;
        assert_eq!((refused.status.as_u16(), refused.fields()), (400, vec![field.to_owned()]));
    }

    let path = format!("/api/users/bob/devices/{}", phone["id"].as_str().unwrap());
    assert_eq!(delete(&user_of(&stack, "acme", "ada")?, &path).await?.status.as_u16(), 403);
    assert_eq!(delete(&api, &path.replace("bob", "ada")).await?.status.as_u16(), 404);
    assert_eq!(delete(&bob, &path).await?.status.as_u16(), 204);
    assert_eq!(delete(&bob, &path).await?.status.as_u16(), 404);

    for n in 0..50 {
        register(&api, json!({"user_id": "ada", "device_token": format!("token-{n}")})).await?.ok()?;
    }
    let user = api.get("/api/users/ada").await?.ok()?;
    let devices = user["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 50);
    assert!(devices.iter().all(|device| device["id"] != first.body["id"]), "the oldest went");
    Ok(())
}

#[tokio::test]
async fn a_message_to_a_person_takes_what_is_known_of_them() -> Result<()> {
    let stack = Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let api = stack.producer();
    put(&api, "/api/users/ada", &json!({"email": "ada@example.com", "phone": "+43123456789"})).await?.ok()?;
    put(&api, "/api/users/bob", &json!({"name": "Bob"})).await?.ok()?;
    let to = |channel: &str, user: &str| json!({"channel": channel, "user_id": user, "message": "m"});
    for (channel, recipient) in [("email", "ada@example.com"), ("sms", "+43123456789"), ("whatsapp", "+43123456789")] {
        let message = api.wait_status(&api.send(&to(channel, "ada")).await?, "sent").await?;
        assert_eq!((&message["deliveries"][0]["recipient"], &message["user_id"]), (&json!(recipient), &json!("ada")));
    }
    for (channel, user) in [("email", "bob"), ("email", "nobody"), ("push", "ada")] {
        let answer = api.post("/api/notifications/send", &to(channel, user)).await?;
        assert_eq!(answer.status.as_u16(), 202);
        let message = api.wait_status(answer.body["id"].as_str().unwrap(), "failed").await?;
        assert_eq!(message["deliveries"][0]["reason"], "no_address", "{message}");
    }
    let refused = api.post("/api/notifications/send", &to("webhook", "ada")).await?;
    assert_eq!((refused.status.as_u16(), refused.fields()), (400, vec!["recipient".to_owned(),]));

    let backend = Backend::connect(&stack.amqp_url).await?;
    let body = json!({"user_id": "ada", "message": "from a backend"}).to_string();
    backend.publish("acme.email.normal", Backend::properties("order-1")?, body.as_bytes()).await?;
    let again = eventually("it is accepted", SOON, || async {
        let list = api.get("/api/messages?user_id=ada&q=backend").await.ok()?.body;
        list["messages"][0]["id"].as_str().map(str::to_owned)
    });
    let message = api.wait_status(&again.await?, "sent").await?;
    assert_eq!(message["deliveries"][0]["recipient"], "ada@example.com");

    // A device with a dead token stays known, and nothing is sent to it, under no platform.
    let device = json!({"user_id": "bob", "device_token": "fail-dead-1", "platform": "android"});
    api.post("/api/notifications/register-device", &device).await?.ok()?;
    api.wait_status(&api.send(&to("push", "bob")).await?, "failed").await?;
    let named = json!({"channel": "push", "recipient": "fail-dead-1", "message": "m"});
    api.wait_status(&api.send(&named).await?, "suppressed").await?;
    api.wait_status(&api.send(&to("push", "bob")).await?, "suppressed").await?;

    let bulk = json!({"user_ids": ["ada", "bob", "nobody", "ada"], "channel": "email", "title": "T", "message": "M"});
    let answer = api.post("/api/notifications/send-bulk", &bulk).await?.ok()?;
    let reasons: Vec<_> = answer["results"].as_array().unwrap().iter().map(|one| one["reason"].as_str()).collect();
    assert_eq!(reasons, [None, Some("no_address"), Some("no_address"), Some("duplicate")]);
    api.wait_status(answer["results"][0]["id"].as_str().unwrap(), "sent").await?;
    Ok(())
}

/// A call with a body that is no JSON.
async fn import(stack: &Stack, media_type: &str, body: String) -> Result<(u16, Value)> {
    let url = format!("http://127.0.0.1:{}/api/users/import", stack.port("all")?);
    let request = reqwest::Client::new().post(url).bearer_auth(&stack.producer_key).header(CONTENT_TYPE, media_type);
    let answer = request.body(body).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

#[tokio::test]
async fn files_of_people_are_taken_row_by_row_and_a_bulk_to_all_of_them_is_accepted_at_once() -> Result<()> {
    let stack = Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let api = stack.producer();
    let mut file = "user_id,email,name,time_zone,quiet_start,quiet_end,tier\n".to_owned();
    for n in 0..10_000 {
        writeln!(file, "u{n},u{n}@example.com,\"Doe, {n}\",Europe/Vienna,22:00,08:00,gold")?;
    }
    file.push_str("bad1,canary-secret,,,,,\n,x@example.com,,,,,\nbad3,,,,22:00,,\nu0,,,,,,silver\nbad4,a\n");
    let (status, answer) = import(&stack, "text/csv; charset=utf-8", file).await?;
    assert_eq!(
        (status, &answer["rows"], &answer["imported"], &answer["failed"]),
        (200, &json!(10_005), &json!(10_001), &json!(4)),
        "{answer}"
    );
    let faults: Vec<_> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["line"].as_i64().unwrap(), one["field"].as_str().unwrap()))
        .collect();
    assert_eq!(faults, [(10_002, "email"), (10_003, "user_id"), (10_004, "quiet_end"), (10_006, "row")]);
    assert!(!answer.to_string().contains("canary-secret"));
    let view = api.get(&format!("/api/users/imports/{}", answer["import_id"].as_str().unwrap())).await?.ok()?;
    assert_eq!(
        (&view["status"], &view["rows"], &view["errors"]),
        (&json!("completed"), &json!(10_005), &answer["errors"])
    );
    let user = api.get("/api/users/u0").await?.ok()?;
    assert_eq!(
        (&user["name"], &user["attributes"]["tier"]),
        (&json!("Doe, 0"), &json!("silver")),
        "a later row changes an earlier one"
    );
    assert_eq!(user["quiet_hours"], json!({"start": "22:00", "end": "08:00"}));

    let all: Vec<String> = (0..10_000).map(|n| format!("u{n}")).collect();
    let bulk = json!({"user_ids": all, "channel": "email", "title": "T", "message": "M"});
    let answer = api.post("/api/notifications/send-bulk", &bulk).await?.ok()?;
    assert_eq!((&answer["sent"], &answer["failed"]), (&json!(10_000), &json!(0)));

    let lines = "{\"id\": \"n1\", \"attributes\": {\"age\": 36}}\n\n{\"user_id\": \"n2\", \"colour\": 1}\nnonsense\n{\"user_id\": \"u1\", \"name\": null}";
    let (status, answer) = import(&stack, "application/x-ndjson", lines.to_owned()).await?;
    assert_eq!((status, &answer["imported"], &answer["failed"]), (200, &json!(2), &json!(2)));
    assert_eq!(answer["errors"][0], json!({"line": 3, "field": "colour", "message": "is unknown"}));
    let user = api.get("/api/users/u1").await?.ok()?;
    assert_eq!((&user["name"], &user["email"]), (&json!(null), &json!("u1@example.com")));

    for (media_type, body, wanted) in
        [("text/csv", "email\na@example.com\n", 400), ("text/csv", "", 400), ("application/json", "{}", 415)]
    {
        assert_eq!(import(&stack, media_type, body.to_owned()).await?.0, wanted, "{media_type} {body}");
    }
    stack.cli(&["tenant", "create", "beta"])?;
    let foreign = stack.api(&stack.create_key("beta", "admin")?);
    let path = format!("/api/users/imports/{}", view["import_id"].as_str().unwrap());
    assert_eq!(foreign.get(&path).await?.status.as_u16(), 404);

    let file = stack.temporary("more.csv", "user_id,email\nc1,c1@example.com\nc2,c2@example.com\n")?;
    let told = stack.cli_json(&["users", "import", &file, "--tenant", "acme"])?;
    assert_eq!((&told["rows"], &told["imported"], &told["errors"]), (&json!(2), &json!(2), &json!([])));
    let file = stack.temporary("bad.ndjson", "{\"id\": \"c3\"}\n{}\n")?;
    let failed = stack.cli(&["users", "import", &file, "--tenant", "acme"]).unwrap_err().to_string();
    assert!(failed.contains("imported 1 of 2 rows; 1 were refused") && failed.contains("user_id"), "{failed}");
    Ok(())
}

#[tokio::test]
async fn an_import_shows_how_far_it_got_and_one_that_breaks_off_keeps_what_came() -> Result<()> {
    let stack = Stack::start().await?;
    let mut stream = TcpStream::connect(("127.0.0.1", stack.port("all")?)).await?;
    let head = format!(
        "POST /api/users/import HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n",
        stack.producer_key
    );
    stream.write_all(head.as_bytes()).await?;
    let rows = |from: u32| -> String { (from..from + 1500).map(|n| format!("u{n},u{n}@example.com\n")).collect() };
    let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    stream.write_all(piece("user_id,email\n").as_bytes()).await?;
    stream.write_all(piece(&rows(0)).as_bytes()).await?;
    let seen = eventually("the first thousand is there", SOON, || async {
        let row =
            stack.sql().await.ok()?.query_opt("SELECT id::text FROM imports WHERE rows = 1000", &[]).await.ok()??;
        Some(row.get::<_, String>(0))
    });
    let path = format!("/api/users/imports/{}", seen.await?);
    let view = stack.producer().get(&path).await?.ok()?;
    assert_eq!((&view["status"], &view["imported"]), (&json!("running"), &json!(1000)));
    assert!(view["bytes"].as_i64().unwrap() > 10_000);
    assert_eq!(stack.count("SELECT count(*) FROM users").await?, 1000, "they are there before the file has ended");

    stream.write_all(piece(&rows(1500)).as_bytes()).await?;
    // Rows that are still on their way when the connection ends may be lost.
    stack.until_count("SELECT count(*) FROM imports WHERE rows >= 2000", 1).await?;
    drop(stream);
    eventually("it has ended", SOON, || async {
        let view = stack.producer().get(&path).await.ok()?.ok().ok()?;
        (view["status"] == "failed" && view["imported"].as_i64()? >= 2000).then_some(())
    })
    .await?;

    // Whole, it is answered.
    let mut stream = TcpStream::connect(("127.0.0.1", stack.port("all")?)).await?;
    let end = format!("{}{}0\r\n\r\n", piece("user_id,email\n"), piece(&rows(0)));
    stream.write_all(head.replace("Host: x", "Host: x\r\nConnection: close").as_bytes()).await?;
    stream.write_all(end.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"imported\":1500"), "{answer}");
    Ok(())
}

/// The data that rules keep of a person: an event, an open digest with an item, and a throttle.
fn of_rules(user: &str) -> String {
    format!(
        "INSERT INTO event_log (id, tenant_id, event_type, user_id, data, matched) VALUES (gen_random_uuid(), 1, 'order.paid', '{user}', '{{\"n\": 1}}', '{{}}');
         WITH d AS (INSERT INTO digests (id, tenant_id, rule_id, user_id, state, max_items, event_type, opened_at, closes_at, latest_at)
             VALUES (gen_random_uuid(), 1, gen_random_uuid(), '{user}', 'open', 10, 'order.paid', now(), now() + interval '1 hour', now() + interval '1 hour') RETURNING id)
         INSERT INTO digest_items (digest_id, event_id, tenant_id, data) SELECT id, gen_random_uuid(), 1, '{{\"gathered\": 2}}' FROM d;
         INSERT INTO throttles (rule_id, tenant_id, user_id, taken, most, seconds, taker, until)
             VALUES (gen_random_uuid(), 1, '{user}', '{{}}', 1, 60, gen_random_uuid(), now() + interval '1 hour');"
    )
}

#[tokio::test]
async fn what_is_kept_of_a_person_is_written_out_and_erased_but_not_that_they_want_no_advertising() -> Result<()> {
    let stack = Stack::patient(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let (api, admin) = (stack.producer(), stack.admin());
    put(
        &api,
        "/api/users/ada",
        &json!({"email": "ada@example.com", "phone": "+43123456789", "attributes": {"tier": "gold"}}),
    )
    .await?
    .ok()?;
    put(&api, "/api/users/bob", &json!({"email": "bob@example.com"})).await?.ok()?;
    api.post("/api/notifications/register-device", &json!({"user_id": "ada", "device_token": "token-of-ada"}))
        .await?
        .ok()?;
    let mail = api.send(&json!({"channel": "email", "user_id": "ada", "message": "words"})).await?;
    let item = api.send(&json!({"channel": "in_app", "user_id": "ada", "message": "inbox words"})).await?;
    for (id, status) in [(&mail, "sent"), (&item, "delivered")] {
        api.wait_status(id, status).await?;
    }
    let sql = stack.sql().await?;
    sql.batch_execute(&format!("{}{}", of_rules("ada"), of_rules("bob"))).await?;
    sql.batch_execute("UPDATE users SET preferences = '{\"no_marketing\": true}' WHERE user_id = 'ada'").await?;

    let file = user_of(&stack, "acme", "ada")?.get("/api/users/ada/export").await?.ok()?;
    assert_eq!(
        (&file["user"]["email"], &file["devices"][0]["token"]),
        (&json!("ada@example.com"), &json!("token-of-ada"))
    );
    assert_eq!(
        (&file["preferences"]["no_marketing"], &file["inbox"][0]["content"]["message"]),
        (&json!(true), &json!("inbox words"))
    );
    let messages = file["messages"].as_array().context("messages")?;
    assert_eq!(
        (messages.len(), &messages[1]["content"]["message"], &messages[1]["deliveries"][0]["recipient"]),
        (2, &json!("words"), &json!("ada@example.com"))
    );
    assert_eq!(messages[1]["events"][0]["kind"], "sent");
    assert_eq!(
        (&file["events"][0]["data"], &file["digests"][0]["items"]),
        (&json!({"n": 1}), &json!([{"gathered": 2}]))
    );
    assert_eq!(file["suppressions"], json!([]));
    let printed: Value = serde_json::from_str(&stack.cli(&["users", "export", "ada", "--tenant", "acme"])?)?;
    assert_eq!(printed["messages"], file["messages"]);
    let nobody = admin.get("/api/users/nobody/export").await?.ok()?;
    assert_eq!((&nobody["user"], &nobody["messages"]), (&json!(null), &json!([])));

    let erased = patient::erase(&admin, "ada").await?;
    assert_eq!((&erased["contact"], &erased["events"]), (&json!(2), &json!(2)));
    assert_eq!(api.get("/api/users/ada").await?.status.as_u16(), 404);
    for table in ["users", "devices", "event_log", "digests", "throttles"] {
        assert_eq!(stack.count(&format!("SELECT count(*) FROM {table} WHERE user_id = 'ada'")).await?, 0, "{table}");
    }
    assert_eq!(stack.count("SELECT count(*) FROM digest_items").await?, 1, "bob's is untouched");
    assert_eq!(stack.count("SELECT count(*) FROM suppressions WHERE address IS NOT NULL").await?, 0);
    let to_ada = |category: &str| json!({"channel": "email", "recipient": "Ada@example.com", "category": category, "message": "m"});
    api.wait_status(&api.send(&to_ada("marketing")).await?, "suppressed").await?;
    api.wait_status(&api.send(&to_ada("orders")).await?, "sent").await?;

    let erased = stack.cli_json(&["users", "erase", "bob", "--tenant", "acme"])?;
    assert_eq!((&erased["erased"]["contact"], &erased["pending"]), (&json!(1), &json!(false)));
    assert_eq!(stack.count("SELECT count(*) FROM users").await?, 0);
    Ok(())
}
