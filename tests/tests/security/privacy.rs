//! Privacy: tenants kept apart by the database itself, encryption at rest, rotation, retention, erasure.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    Api, HttpSink, Reply, Role, Stack, TestServers, amqp::Backend, api::Answer, api::SOON, eventually, patient,
};

const KEY: &str = "POSTHASTE_ENCRYPTION_KEY";
const PREVIOUS: &str = "POSTHASTE_ENCRYPTION_KEY_PREVIOUS";

fn key(byte: u8) -> String {
    STANDARD.encode([byte; 32])
}

async fn delete(stack: &Stack, credential: &str, path: &str) -> Result<Answer> {
    stack.api(credential).request(Method::DELETE, path, &[], None).await
}

// ---- tenants ----

#[tokio::test]
async fn invariant_t_every_table_of_tenants_is_under_forced_row_level_security() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let sql = stack.sql().await?;
    let open = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
          AND (c.relname = 'tenants' OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))";
    let names = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get(0)).collect::<Vec<String>>();
    assert_eq!(names(sql.query(open, &[]).await?), Vec::<String>::new());
    // A partition that comes later, made by the services' role, and a table of a later migration.
    let services = "SET ROLE posthaste_services; SET posthaste.tenant = '*'; SELECT ensure_partitions(30); RESET ROLE";
    sql.batch_execute(services).await?;
    assert_eq!(names(sql.query(open, &[]).await?), Vec::<String>::new());
    sql.batch_execute("CREATE TABLE late (tenant_id integer)").await?;
    assert_eq!(names(sql.query(open, &[]).await?), ["late"]);
    assert!(stack.cli(&["doctor"]).is_err(), "the doctor sees it");
    stack.cli(&["migrate"])?;
    assert_eq!(names(sql.query(open, &[]).await?), Vec::<String>::new());
    let role = "SELECT count(*) FROM pg_roles WHERE rolname = 'posthaste_services' AND NOT (rolsuper OR rolbypassrls OR rolcanlogin)";
    assert_eq!(stack.count(role).await?, 1);
    Ok(())
}

#[tokio::test]
async fn invariant_t_raw_sql_as_the_services_role_sees_one_tenant_or_is_refused() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.cli(&["tenant", "create", "beta"])?;
    let sql = stack.sql().await?;
    let of = |tenant: i32| {
        format!(
            "INSERT INTO inbox (id, tenant_id, user_id, content) VALUES (gen_random_uuid(), {tenant}, 'ada', '{{}}')"
        )
    };
    let letter = "INSERT INTO dead_letters (id, origin, reason) VALUES (gen_random_uuid(), 'intake', 'tenant')";
    sql.batch_execute(&format!("{};{};{letter}; SET ROLE posthaste_services", of(1), of(2))).await?;
    let count = async |table: &str| -> Result<i64> {
        Ok(sql.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0))
    };
    // An error, and not an empty table, which a session without the setting would take for "nothing left to do".
    for table in ["inbox", "tenants", "api_keys", "dead_letters"] {
        assert!(count(table).await.is_err(), "without a tenant {table} is closed");
    }
    for nonsense in ["", "0", "1 OR true", "-1", "99999999999999999999"] {
        sql.execute("SELECT set_config('posthaste.tenant', $1, false)", &[&nonsense]).await?;
        assert!(count("inbox").await.is_err(), "{nonsense}");
    }
    sql.batch_execute("SET posthaste.tenant = '1'").await?;
    let tenants: Vec<i32> = sql.query("SELECT tenant_id FROM inbox", &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!((tenants, count("tenants").await?, count("dead_letters").await?), (vec![1], 1, 0));
    sql.batch_execute(&of(1)).await?;
    let refused = sql.batch_execute(&of(2)).await.unwrap_err();
    assert!(format!("{refused:?}").contains("row-level security"), "{refused:?}");
    assert_eq!(sql.execute("UPDATE inbox SET user_id = 'eve' WHERE tenant_id = 2", &[]).await?, 0);
    assert!(sql.execute("UPDATE inbox SET tenant_id = 2", &[]).await.is_err(), "a row cannot be given away");
    assert_eq!(sql.execute("DELETE FROM inbox WHERE tenant_id = 2", &[]).await?, 0);
    assert!(sql.batch_execute("ALTER TABLE inbox DISABLE ROW LEVEL SECURITY").await.is_err());
    sql.batch_execute("SET posthaste.tenant = '*'").await?;
    assert_eq!((count("inbox").await?, count("dead_letters").await?), (3, 1));
    Ok(())
}

/// The routes with an id in their path, from the document itself, so that a new one is tested without being named.
async fn routes_with_ids(stack: &Stack) -> Result<Vec<(Method, String)>> {
    let document = stack.api("").get("/openapi.json").await?.ok()?;
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().context("paths")? {
        for method in item.as_object().context("methods")?.keys().filter(|_| path.contains('{')) {
            if let Ok(method) = method.to_uppercase().parse::<Method>() {
                routes.push((method, path.clone()));
            }
        }
    }
    Ok(routes)
}

/// A message in the inbox, a dead letter, a bulk and a replay: the id of the message, and the ids of all.
async fn make_one_of_each(a: &Api, sink: &HttpSink) -> Result<(String, Vec<String>)> {
    sink.reply_to("/dead", Reply::status(500));
    let in_app = json!({"channel": "in_app", "recipient": "ada", "user_id": "ada", "message": "canary of a"});
    let message = a.send(&in_app).await?;
    let delivered = a.wait_status(&message, "delivered").await?;
    let dead =
        a.send(&json!({"channel": "webhook", "recipient": sink.url("/dead"), "data": {"x": "canary of a"}})).await?;
    a.wait_status(&dead, "dead").await?;
    let body = json!({"recipients": ["x"], "channel": "in_app", "message": "m"});
    let bulk = a.post("/api/notifications/send-bulk", &body).await?.ok()?;
    let letters = a.get("/api/admin/dead-letters").await?.ok()?;
    let drop = json!({"filter": {"channel": "sms"}, "reason": "none"});
    let replay = a.post("/api/admin/dead-letters/drop", &drop).await?.ok()?;
    let ids: Vec<String> = [
        &delivered["id"],
        &delivered["deliveries"][0]["id"],
        &bulk["bulk_id"],
        &letters["dead_letters"][0]["id"],
        &replay["replay_id"],
        &json!("ada"),
    ]
    .iter()
    .filter_map(|id| id.as_str().map(str::to_owned))
    .collect();
    assert_eq!(ids.len(), 6);
    Ok((message, ids))
}

#[tokio::test]
async fn invariant_t_another_tenants_ids_are_not_found_on_any_route() -> Result<()> {
    let (stack, sink) = (Stack::patient(&[("WEBHOOK_MAX_RETRIES", "0")]).await?, HttpSink::start_local().await?);
    let a = stack.admin();
    let (message, ids) = make_one_of_each(&a, &sink).await?;
    stack.cli(&["tenant", "create", "beta"])?;
    let b = stack.create_key("beta", "admin")?;
    let routes = routes_with_ids(&stack).await?;
    assert!(routes.len() >= 9, "{routes:?}");
    let snapshot = async || -> Result<String> {
        let message = a.message(&message).await?;
        let inbox = a.get("/api/notifications/user/ada").await?.ok()?;
        Ok(format!("{message}{inbox}{}", a.get("/api/admin/dead-letters").await?.ok()?))
    };
    let before = snapshot().await?;
    let mut found = BTreeSet::new();
    for (method, path) in &routes {
        for id in &ids {
            let filled: String = path
                .split('/')
                .map(|part| if part.starts_with('{') { id.as_str() } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let body = (*method != Method::GET && *method != Method::DELETE).then(|| b"{}".to_vec());
            let answer = stack.api(&b).request(method.clone(), &filled, &[], body).await?;
            let said = answer.body.to_string();
            assert!(!said.contains("canary of a") && answer.status.as_u16() != 500, "{method} {filled}: {said}");
            // A person's id is no secret of a tenant: another tenant may have a person of that name, with an empty inbox.
            if !path.contains("{user_id}") {
                assert!(answer.status.is_client_error(), "{method} {filled}: {} {said}", answer.status);
                if answer.status.as_u16() == 404 {
                    found.insert((method.to_string(), path.clone()));
                }
            }
        }
    }
    for known in [
        "/api/messages/{id}",
        "/api/messages/{id}/timeline",
        "/api/bulk/{id}",
        "/api/admin/dead-letters/{id}",
        "/api/admin/replays/{id}",
    ] {
        assert!(found.contains(&("GET".to_owned(), known.to_owned())), "{known} is not 404: {found:?}");
    }
    assert_eq!(snapshot().await?, before, "nothing of the other tenant changed");
    for list in ["/api/messages", "/api/admin/dead-letters", "/api/notifications/user/ada"] {
        assert!(!stack.api(&b).get(list).await?.ok()?.to_string().contains(&message), "{list}");
    }
    Ok(())
}

#[tokio::test]
async fn a_login_that_cannot_take_the_role_gets_told_what_to_do() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let name = format!("nobody_{}", uuid::Uuid::now_v7().simple());
    let sql = stack.sql().await?;
    sql.batch_execute(&format!("CREATE ROLE {name} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
        .await?;
    let mut url = url_of(&stack.database_url, &name)?;
    std::mem::swap(&mut url, &mut stack.database_url);
    stack.spawn("worker", Role::Worker, &[])?;
    assert!(!stack.ended("worker", SOON).await?.success());
    assert!(stack.logs()?.contains("GRANT posthaste_services"), "{}", stack.logs()?);
    stack.database_url = url;
    sql.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await?;
    Ok(())
}

/// The URL with another user.
fn url_of(url: &str, user: &str) -> Result<String> {
    let (scheme, rest) = url.split_once("://").context("a URL")?;
    let (_, host) = rest.split_once('@').context("a user")?;
    Ok(format!("{scheme}://{user}@{host}"))
}

// ---- encryption ----

/// Everything that the database would give to a thief.
fn dump(stack: &Stack) -> Result<String> {
    let output = Command::new("pg_dump").args(["--inserts", "--dbname", &stack.database_url]).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The messages in all queues of the stack, read and put back.
async fn broker_bodies(stack: &Stack) -> Result<String> {
    let (client, vhost) = (reqwest::Client::new(), stack.amqp_url.rsplit_once('/').context("vhost")?.1.to_owned());
    let base = format!("{}/api/queues/{vhost}", stack.servers.management_url);
    let queues: Value = client.get(&base).send().await?.json().await?;
    let mut bodies = String::new();
    for queue in queues.as_array().context("queues")? {
        let name = queue["name"].as_str().context("name")?;
        let ask = json!({"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"});
        bodies.push_str(&client.post(format!("{base}/{name}/get")).json(&ask).send().await?.text().await?);
    }
    Ok(bodies)
}

/// Where a canary stands in a text, as it is, in hexadecimal or in base64.
fn sightings(canaries: &[&str], text: &str) -> Vec<String> {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut seen = Vec::new();
    for canary in canaries {
        let base64 = STANDARD.encode(canary);
        for form in [(*canary).to_owned(), hex(canary), hex(&base64), base64.clone()] {
            if let Some(line) = text.lines().find(|line| line.contains(&form)) {
                seen.push(format!("{canary} as {form} in {:.300}", line));
            }
        }
    }
    seen
}

const CANARIES: &[&str] = &[
    "canary-title",
    "canary-content",
    "canary-html",
    "canary-data",
    "canary-note",
    "canary-attachment",
    "canary.mail",
    "canary.dead",
    "canary.refused",
    "+49151900900",
    "canary-url-path",
    "canary-inbox",
    "canary-intake",
    "canary.bulk",
    "canary.person",
    "canary-person-name",
    "canary-device",
    "canary.import",
    "whsec_",
];

/// A request to many, under a key: it can be repeated.
async fn send_canary_bulk(api: &Api) -> Result<Answer> {
    let bulk = json!({"recipients": ["canary.bulk@example.com", "canary.bulk is no address"], "channel": "email", "message": "canary-content"});
    let (path, key) = ("/api/notifications/send-bulk", [("Idempotency-Key", "k")]);
    api.request(Method::POST, path, &key, Some(serde_json::to_vec(&bulk)?)).await
}

/// Messages with canaries, each with the status that it ends with.
async fn plant_messages(api: &Api, sink: &HttpSink) -> Result<Vec<(String, &'static str)>> {
    let full = |recipient: &str| {
        json!({"channel": "email", "recipient": recipient, "title": "canary-title", "message": "canary-content",
            "html": "<p>canary-html</p>", "data": {"x": "canary-data"}, "metadata": {"n": "canary-note"},
            "attachments": [{"filename": "a.txt", "content_type": "text/plain", "content": STANDARD.encode("canary-attachment")}]})
    };
    let mut wanted = vec![
        (api.send(&full("canary.mail@example.com")).await?, "sent"),
        (api.send(&full("fail-reject+canary.refused@example.com")).await?, "failed"),
        (api.send(&full("fail-500+canary.dead@example.com")).await?, "dead"),
        (api.send(&json!({"channel": "sms", "recipient": "+49151900900", "message": "canary-content"})).await?, "sent"),
        (
            api.send(&json!({"channel": "in_app", "recipient": "u1", "user_id": "u1", "message": "canary-inbox"}))
                .await?,
            "delivered",
        ),
        (
            api.send(
                &json!({"channel": "webhook", "recipient": sink.url("/canary-url-path"), "data": {"x": "canary-data"}}),
            )
            .await?,
            "delivered",
        ),
    ];
    let answer = send_canary_bulk(api).await?;
    wanted.push((answer.ok()?["results"][0]["id"].as_str().context("id")?.to_owned(), "sent"));
    Ok(wanted)
}

/// A known person with a device, messages to that person, and people from a file.
async fn plant_people(stack: &Stack) -> Result<Vec<(String, &'static str)>> {
    let (api, mut wanted) = (stack.producer(), Vec::new());
    let person = json!({"email": "canary.person@example.com", "name": "canary-person-name", "phone": "+49151900900"});
    api.request(Method::PUT, "/api/users/u2", &[], Some(serde_json::to_vec(&person)?)).await?.ok()?;
    api.post("/api/notifications/register-device", &json!({"user_id": "u2", "device_token": "canary-device"}))
        .await?
        .ok()?;
    for channel in ["email", "sms", "push"] {
        let to_person = json!({"channel": channel, "user_id": "u2", "message": "canary-content"});
        wanted.push((api.send(&to_person).await?, "sent"));
    }
    let file = stack.temporary("people.csv", "user_id,email\nu3,canary.import@example.com\nu4,canary.refused\n")?;
    assert!(stack.cli(&["users", "import", &file, "--tenant", "acme"]).is_err(), "a row was refused");
    Ok(wanted)
}

/// A publish that is refused.
async fn plant_intake(stack: &Stack) -> Result<()> {
    let backend = Backend::connect(&stack.amqp_url).await?;
    let body =
        json!({"channel": "email", "recipient": "canary-intake@example.com", "surprise": "canary-intake"}).to_string();
    backend.publish("acme.email.normal", Backend::properties("m1")?, body.as_bytes()).await?;
    eventually("the refused publish is written down", SOON, || async {
        (stack.count("SELECT count(*) FROM dead_letters WHERE body IS NOT NULL").await.ok()? == 1).then_some(())
    })
    .await
}

/// Everything is still readable for those who may.
async fn check_readable(api: &Api, mail: &str) -> Result<()> {
    let message = api.message(mail).await?;
    assert_eq!(message["deliveries"][0]["recipient"], "canary.mail@example.com");
    assert_eq!(message["metadata"]["n"], "canary-note");
    let again = send_canary_bulk(api).await?;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body["results"][0]["recipient"], "canary.bulk@example.com");
    let inbox = api.get("/api/notifications/user/u1").await?.ok()?;
    assert_eq!(inbox["notifications"][0]["message"], "canary-inbox");
    Ok(())
}

/// Canaries in every place a producer can write to, through success, failure and death; then everything that was kept of it:
/// logs, metrics, broker, dump.
async fn plant_and_collect(encryption: &[(&str, &str)]) -> Result<[String; 4]> {
    let sink = HttpSink::start_local().await?;
    let settings = [
        patient::PATIENT,
        &[
            ("EMAIL_BACKEND", "sandbox"),
            ("RUST_LOG", "debug"),
            ("RETRY_MAX_ATTEMPTS", "2"),
            ("WEBHOOK_MAX_RETRIES", "0"),
        ][..],
        encryption,
    ]
    .concat();
    let mut stack = Stack::prepare(TestServers::shared()?, &settings).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let api = stack.producer();
    let mut wanted = plant_messages(&api, &sink).await?;
    wanted.extend(plant_people(&stack).await?);
    // No worker runs, so the messages in the broker can be read.
    stack.until_count("SELECT count(*) FROM outbox WHERE published_at IS NULL", 0).await?;
    let waiting = eventually("work waits in the broker", SOON, || async {
        broker_bodies(&stack).await.ok().filter(|bodies| bodies.contains("\\\"d\\\""))
    })
    .await?;
    stack.launch("worker", Role::Worker, &[]).await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    for (id, status) in &wanted {
        api.wait_status(id, status).await?;
    }
    plant_intake(&stack).await?;
    check_readable(&api, &wanted[0].0).await?;
    assert!(sink.requests()[0].text().contains("canary-data"));
    let mut metrics = String::new();
    for name in ["ingest", "worker", "scheduler"] {
        metrics.push_str(&reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port(name)?)).await?.text().await?);
    }
    let bodies = format!("{waiting}{}", broker_bodies(&stack).await?);
    Ok([stack.logs()?, metrics, bodies, dump(&stack)?])
}

#[tokio::test]
async fn invariant_p_with_a_key_no_canary_is_in_logs_metrics_queues_or_a_dump() -> Result<()> {
    let everything = plant_and_collect(&[(KEY, &key(7))]).await?;
    for (text, place) in everything.iter().zip(["logs", "metrics", "queues", "dump"]) {
        assert!(!text.is_empty(), "{place}");
        assert_eq!(sightings(CANARIES, text), Vec::<String>::new(), "in the {place}");
    }
    assert!(everything[3].contains("COPY") || everything[3].contains("INSERT INTO public.messages"), "a dump has rows");
    Ok(())
}

#[tokio::test]
async fn without_a_key_every_canary_is_in_the_dump_and_still_nowhere_else() -> Result<()> {
    let [logs, metrics, bodies, dump] = plant_and_collect(&[]).await?;
    for text in [logs, metrics, bodies] {
        assert_eq!(sightings(CANARIES, &text), Vec::<String>::new());
    }
    for canary in CANARIES {
        assert!(!sightings(&[canary], &dump).is_empty(), "{canary} is not found, so its twin proves nothing");
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_or_missing_key_stops_the_start_and_says_so() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[(KEY, &key(1))]).await?;
    stack.launch("all", Role::All, &[]).await?;
    stack.kill9("all")?;
    for (value, says) in [(None, "POSTHASTE_ENCRYPTION_KEY is not set"), (Some(key(2)), "another key")] {
        stack.set(KEY, value.as_deref());
        for role in [Role::All, Role::Worker, Role::Scheduler] {
            stack.spawn("bad", role, &[])?;
            assert!(!stack.ended("bad", SOON).await?.success(), "{says}");
        }
        assert!(stack.logs()?.contains(says), "{}", stack.logs()?);
        let doctor = stack.cli(&["doctor"]).unwrap_err().to_string();
        assert!(doctor.contains(says), "{doctor}");
        assert!(stack.cli(&["tenant", "create", "beta"]).is_err(), "nothing is written with the wrong key");
    }
    stack.set(KEY, Some(&key(2)));
    stack.set(PREVIOUS, Some(&key(1)));
    stack.launch("all", Role::All, &[]).await
}

/// The path of a person with a colon in the id.
const COLON: &str = "/api/users/with%3Acolon";

/// Rows that were written before there was a key.
struct Written {
    /// The id of the first message.
    first: String,
    /// The answer to the request to many.
    bulk: Value,
    /// The id of the device.
    device: Value,
}

async fn send_bulk(stack: &Stack) -> Result<Answer> {
    let body =
        serde_json::to_vec(&json!({"recipients": ["bob@example.com"], "channel": "email", "message": "to many"}))?;
    let (path, key) = ("/api/notifications/send-bulk", [("Idempotency-Key", "b")]);
    stack.producer().request(Method::POST, path, &key, Some(body)).await
}

async fn register_device(stack: &Stack) -> Result<Answer> {
    let device = json!({"user_id": "with:colon", "device_token": "device words"});
    stack.producer().post("/api/notifications/register-device", &device).await
}

/// Messages, a person, a device, and a dead letter.
async fn write_everything(stack: &Stack) -> Result<Written> {
    let api = stack.producer();
    let mail = json!({"channel": "email", "recipient": "ada@example.com", "user_id": "ada", "message": "first words"});
    let first = api.send(&mail).await?;
    let bulk = send_bulk(stack).await?.ok()?;
    api.send(&json!({"channel": "in_app", "recipient": "ada", "user_id": "ada", "message": "inbox words"})).await?;
    let person = json!({"name": "person words"});
    api.request(Method::PUT, COLON, &[], Some(serde_json::to_vec(&person)?)).await?.ok()?;
    let device = register_device(stack).await?.ok()?["id"].clone();
    let backend = Backend::connect(&stack.amqp_url).await?;
    backend.publish("acme.email.normal", Backend::properties("m1")?, b"{\"message\":\"no recipient\"}").await?;
    eventually("everything is written down", SOON, || async {
        let letters = stack.count("SELECT count(*) FROM dead_letters WHERE body IS NOT NULL").await.ok()?;
        (letters + stack.count("SELECT count(*) FROM inbox").await.ok()? == 2).then_some(())
    })
    .await?;
    Ok(Written { first, bulk, device })
}

impl Written {
    /// While the older key is known too.
    async fn check_under_both_keys(&self, stack: &Stack) -> Result<()> {
        let api = stack.producer();
        let message = api.message(&self.first).await?;
        assert_eq!(message["deliveries"][0]["recipient"], "ada@example.com", "the old key still opens");
        assert_eq!(api.get(COLON).await?.ok()?["name"], "person words");
        let again = register_device(stack).await?;
        assert_eq!(
            (again.status.as_u16(), &again.body["id"]),
            (200, &self.device),
            "a token is known under its older key"
        );
        let list = api.get("/api/messages?recipient=ada%40example.com").await?.ok()?;
        let found = &list["messages"][0]["id"];
        assert_eq!(*found, json!(self.first), "an exact recipient is found under the old key's fingerprint");
        Ok(())
    }

    /// Once the older key is gone: a row that still needs it cannot be read.
    async fn check_under_the_new_key(&self, stack: &Stack) -> Result<()> {
        let (api, admin) = (stack.producer(), stack.admin());
        assert_eq!(api.message(&self.first).await?["deliveries"][0]["recipient"], "ada@example.com");
        assert_eq!(send_bulk(stack).await?.ok()?, self.bulk);
        let list = api.get("/api/messages?recipient=ada%40example.com").await?.ok()?;
        assert_eq!(list["messages"][0]["id"], json!(self.first));
        let inbox = api.get("/api/notifications/user/ada").await?.ok()?;
        assert_eq!(inbox["notifications"][0]["message"], "inbox words");
        let letters = admin.get("/api/admin/dead-letters").await?.ok()?;
        assert!(letters["dead_letters"][0]["detail"].as_str().unwrap().contains("recipient"), "{letters}");
        let secret = admin.get("/api/webhooks/signing-secret").await?.ok()?;
        assert_eq!(secret["secret"], json!(stack.webhook_secret));
        Ok(())
    }
}

#[tokio::test]
async fn rotation_writes_everything_anew_while_services_run() -> Result<()> {
    let mut stack =
        Stack::prepare(TestServers::shared()?, &[("EMAIL_BACKEND", "sandbox"), ("RETRY_MAX_ATTEMPTS", "1")]).await?;
    stack.launch("all", Role::All, &[]).await?;
    let written = write_everything(&stack).await?;
    assert!(stack.cli(&["rotate-keys"]).is_err(), "there is nothing to encrypt with");
    let rows = [
        "ada@example.com",
        "first words",
        "to many",
        "inbox words",
        "no recipient",
        "whsec_",
        "person words",
        "device words",
    ];
    assert_eq!(sightings(&rows, &dump(&stack)?).len(), rows.len());

    stack.kill9("all")?;
    stack.set(KEY, Some(&key(1)));
    stack.launch("all", Role::All, &[]).await?;
    let stale = stack.cli_json(&["rotate-keys", "--dry-run"])?["stale"].as_i64().unwrap();
    assert!(stale >= 9, "{stale}");
    let done = stack.cli_json(&["rotate-keys"])?;
    assert_eq!((&done["written"], &done["left"]), (&json!(stale), &json!(0)));
    assert_eq!(sightings(&rows, &dump(&stack)?), Vec::<String>::new());
    assert_eq!(stack.cli_json(&["rotate-keys"])?["written"], 0, "a repeat has nothing to do");

    stack.kill9("all")?;
    stack.set(KEY, Some(&key(2)));
    stack.set(PREVIOUS, Some(&key(1)));
    stack.launch("all", Role::All, &[]).await?;
    written.check_under_both_keys(&stack).await?;
    assert_eq!(stack.cli_json(&["rotate-keys"])?["left"], 0);
    assert_eq!(stack.count("SELECT count(*) FROM seal_check").await?, 1);

    stack.kill9("all")?;
    stack.set(PREVIOUS, None);
    stack.launch("all", Role::All, &[]).await?;
    written.check_under_the_new_key(&stack).await
}

#[tokio::test]
async fn sealed_messages_are_found_by_exact_recipient_and_by_a_part_of_what_they_say() -> Result<()> {
    let stack = Stack::patient(&[(KEY, &key(3)), ("EMAIL_BACKEND", "sandbox")]).await?;
    let api = stack.producer();
    let mut ids = Vec::new();
    for (recipient, message) in
        [("ada@example.com", "Apples"), ("bob@example.com", "Say \"pears\""), ("ada@example.com", "Plums")]
    {
        ids.push(api.send(&json!({"channel": "email", "recipient": recipient, "message": message})).await?);
    }
    stack.cli(&["tenant", "create", "beta"])?;
    let other = stack.api(&stack.create_key("beta", "producer")?);
    let foreign = other.send(&json!({"channel": "email", "recipient": "ada@example.com", "message": "Apples"})).await?;
    let found = async |query: &str| -> Result<Vec<String>> {
        let list = api.get(&format!("/api/messages?{query}")).await?.ok()?;
        let ids = list["messages"].as_array().unwrap().iter();
        Ok(ids.map(|message| message["id"].as_str().unwrap().to_owned()).collect())
    };
    let ada = vec![ids[2].clone(), ids[0].clone()];
    assert_eq!(found("recipient=ada%40example.com").await?, ada);
    assert_eq!(found("q=ada%40example.com").await?, ada);
    assert_eq!(found("q=ADA%40exam").await?, ada, "a part, in any case");
    assert_eq!(found("q=apples").await?, [ids[0].clone()]);
    assert_eq!(found("q=say+%22PEARS%22").await?, [ids[1].clone()]);
    assert_eq!(found("recipient=ada").await?, Vec::<String>::new(), "exactly");
    assert_eq!(found("recipient=ada%40example.com&channel=sms").await?, Vec::<String>::new());
    let page = api.get("/api/messages?recipient=ada%40example.com&limit=1").await?.ok()?;
    let next = page["next_cursor"].as_str().unwrap();
    assert_eq!(found(&format!("recipient=ada%40example.com&limit=1&cursor={next}")).await?, [ids[0].clone()]);
    assert!(other.get("/api/messages?q=plums").await?.ok()?["messages"].as_array().unwrap().is_empty());
    assert!(other.get("/api/messages?q=apples").await?.ok()?.to_string().contains(&foreign));
    let plain = Stack::start_with(&[("EMAIL_BACKEND", "sandbox")]).await?;
    let id =
        plain.producer().send(&json!({"channel": "email", "recipient": "ada@example.com", "message": "m"})).await?;
    let list = plain.producer().get("/api/messages?recipient=ada%40example.com").await?.ok()?;
    assert_eq!(list["messages"][0]["id"], json!(id), "the same without a key");
    assert_eq!(plain.producer().get("/api/messages?recipient=ada").await?.ok()?["messages"], json!([]));
    Ok(())
}

// ---- retention ----

/// A message of `days` before `$today` with one delivery; its partitions are made where they are missing.
const OLD: &str = "
CREATE FUNCTION old(days integer, n integer, tenant integer, state text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    at     timestamptz := timestamp '$today' AT TIME ZONE 'UTC' - make_interval(days => days);
    id     uuid := uuid7_floor(at + make_interval(secs => n));
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['messages', 'deliveries', 'delivery_events'] LOOP
        EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
            parent || to_char(at AT TIME ZONE 'UTC', '_YYYYMMDD'), parent, uuid7_floor(at), uuid7_floor(at + interval '1 day'));
    END LOOP;
    INSERT INTO messages (id, tenant_id, priority, content, source, created_at) VALUES (id, tenant, 'normal', '{}', 'http', at);
    INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state) VALUES (id, id, tenant, 'in_app', 'normal', 'x', state);
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at) VALUES (id, 1, 'delivered', tenant, 'in_app', at);
    RETURN id;
END
$$";

/// How many rows of a tenant a run removed from the tables whose names begin so.
fn removed(run: &Value, tenant: &Value, table: &str) -> i64 {
    let all = run["removed"].as_array().unwrap().iter();
    all.filter(|one| &one["tenant"] == tenant && one["table"].as_str().unwrap().starts_with(table))
        .map(|one| one["rows"].as_i64().unwrap())
        .sum()
}

#[tokio::test]
async fn retention_drops_days_and_deletes_rows_but_nothing_that_is_alive() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    stack.cli(&["tenant", "create", "beta"])?;
    let sql = stack.sql().await?;
    // Midnight may come meanwhile: all days are counted from one, and none is a day away from what is kept.
    let today: String = sql.query_one("SELECT (now() AT TIME ZONE 'UTC')::date::text", &[]).await?.get(0);
    sql.batch_execute(&OLD.replace("$today", &today)).await?;
    let old = async |days: i32, n: i32, tenant: i32, state: &str| -> Result<String> {
        Ok(sql.query_one("SELECT old($1, $2, $3, $4)::text", &[&days, &n, &tenant, &state]).await?.get(0))
    };
    // A day past the retention of all tenants; one past that of acme only; one with a delivery that waits; one with an open dead
    // letter, which goes; one within the retention of all.
    for (days, tenant) in [(30, 1), (30, 2), (12, 1), (12, 2), (50, 1), (40, 1), (3, 1)] {
        old(days, tenant, tenant, "delivered").await?;
    }
    let scheduled = old(50, 5, 1, "scheduled").await?;
    let dead = old(40, 6, 1, "dead").await?;
    let letter = "INSERT INTO dead_letters (id, tenant_id, delivery_id, origin, reason, created_at) VALUES (gen_random_uuid(), 1, $1::text::uuid, 'delivery', 'poison', now() - interval '40 days')";
    sql.execute(letter, &[&dead]).await?;
    let inbox = "INSERT INTO inbox (id, tenant_id, user_id, content, created_at) VALUES (gen_random_uuid(), $1, 'x', '{}', now() - interval '12 days')";
    for tenant in [1, 2] {
        sql.execute(inbox, &[&tenant]).await?;
    }
    assert!(stack.cli(&["retention", "run"]).is_err(), "everything is kept for ever");
    stack.cli(&["retention", "set", "--tenant", "acme", "--days", "6"])?;
    stack.cli(&["retention", "set", "--tenant", "beta", "--days", "20"])?;
    let list = stack.cli_json(&["retention", "list"])?;
    assert_eq!(list["tenants"], json!([{"tenant": "acme", "days": 6}, {"tenant": "beta", "days": 20}]));
    let days = async || -> Result<i64> {
        stack.count("SELECT count(*) FROM pg_inherits WHERE inhparent = 'messages'::regclass").await
    };
    let (before, rows) = (days().await?, stack.count("SELECT count(*) FROM messages").await?);
    let dry = stack.cli_json(&["retention", "run", "--dry-run"])?;
    assert_eq!(
        (days().await?, stack.count("SELECT count(*) FROM messages").await?),
        (before, rows),
        "a dry run changes nothing"
    );
    assert_eq!(removed(&dry, &json!("acme"), "messages"), 2, "those of the dropped days are not counted twice: {dry}");
    assert_eq!(removed(&dry, &json!(null), "messages_"), 4, "{dry}");
    assert_eq!(dry["kept"].as_array().unwrap().len(), 1, "the day with something alive: {dry}");

    let run = stack.cli_json(&["retention", "run"])?;
    assert_eq!((removed(&run, &json!(null), "messages_"), days().await?), (4, before - 2), "{run}");
    assert_eq!(removed(&run, &json!(null), "dead_letters"), 1, "an open letter goes with its message: {run}");
    assert_eq!(removed(&run, &json!("acme"), "messages"), 2, "days 12 and 50: {run}");
    assert_eq!((removed(&run, &json!("acme"), "inbox"), removed(&run, &json!("beta"), "inbox")), (1, 0));
    let left: Vec<(String, i32)> = sql
        .query("SELECT id::text, tenant_id FROM messages ORDER BY id", &[])
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let alive: Vec<&String> = left.iter().filter(|(_, tenant)| *tenant == 1).map(|(id, _)| id).collect();
    assert_eq!(alive.len(), 2, "the scheduled one, and the one of day 3: {left:?}");
    assert!(alive.contains(&&scheduled));
    assert_eq!(left.iter().filter(|(_, tenant)| *tenant == 2).count(), 1, "beta keeps day 12");
    assert_eq!(stack.count("SELECT count(*) FROM deliveries").await?, 3);

    // Once it is over, its day goes as well.
    sql.batch_execute("UPDATE deliveries SET state = 'cancelled' WHERE state = 'scheduled'").await?;
    let run = stack.cli_json(&["retention", "run"])?;
    assert_eq!((removed(&run, &json!(null), "messages_"), days().await?), (1, before - 3), "{run}");
    Ok(())
}

// ---- erasure ----

/// Neither a producer nor another person may erase Ada, and another tenant has no such person.
async fn check_strangers(stack: &Stack, bob: &str) -> Result<()> {
    for credential in [stack.producer_key.as_str(), bob] {
        assert_eq!(delete(stack, credential, "/api/users/ada").await?.status.as_u16(), 403);
    }
    stack.cli(&["tenant", "create", "beta"])?;
    let foreign = stack.create_key("beta", "admin")?;
    let nothing = delete(stack, &foreign, "/api/users/ada").await?.ok()?;
    assert_eq!((&nothing["erased"]["messages"], &nothing["pending"]), (&json!(0), &json!(false)));
    Ok(())
}

/// Neither the inbox, nor the answer to a repeat, nor a search has anything of Ada.
async fn check_forgotten(api: &Api, keyed: &[(&str, &str)], body: Option<Vec<u8>>) -> Result<()> {
    assert_eq!(api.get("/api/notifications/user/ada").await?.ok()?["notifications"], json!([]));
    let replayed = api.request(Method::POST, "/api/notifications/send-bulk", keyed, body).await?;
    assert_eq!(replayed.header("idempotent-replayed"), Some("true"), "a repeat must not send again");
    assert!(
        !replayed.body.to_string().contains("\"ada\"") && replayed.body.to_string().contains("\"bob\""),
        "{}",
        replayed.body
    );
    assert_eq!(api.get("/api/messages?user_id=ada").await?.ok()?["messages"], json!([]));
    assert_eq!(api.get("/api/messages?recipient=ada%40example.com").await?.ok()?["messages"], json!([]));
    Ok(())
}

#[tokio::test]
async fn a_person_is_erased_everywhere_and_nobody_else() -> Result<()> {
    let settings = [(KEY, &*key(5)), ("EMAIL_BACKEND", "sandbox"), ("RETRY_MAX_ATTEMPTS", "1")];
    let stack = Stack::patient(&settings).await?;
    let api = stack.producer();
    let mail = |user: &str, to: &str| json!({"user_id": user, "channel": "email", "recipient": to, "message": format!("words for {user}")});
    let sent = api.send(&mail("ada", "ada@example.com")).await?;
    let others = api.send(&mail("bob", "bob@example.com")).await?;
    let later = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::hours(1);
    let mut scheduled = mail("ada", "ada@example.com");
    scheduled["scheduled_at"] = json!(later.to_rfc3339());
    let scheduled = api.send(&scheduled).await?;
    let dead = api.send(&mail("ada", "fail-500@example.com")).await?;
    let body =
        Some(serde_json::to_vec(&json!({"user_ids": ["ada", "bob"], "channel": "in_app", "message": "for both"}))?);
    let keyed = [("Idempotency-Key", "both")];
    let bulk = api.request(Method::POST, "/api/notifications/send-bulk", &keyed, body.clone()).await?.ok()?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let refused =
        json!({"user_id": "ada", "channel": "email", "recipient": "ada@example.com", "surprise": 1}).to_string();
    backend.publish("acme.email.normal", Backend::properties("m1")?, refused.as_bytes()).await?;
    for (id, status) in [(&sent, "sent"), (&others, "sent"), (&dead, "dead")] {
        api.wait_status(id, status).await?;
    }
    for result in bulk["results"].as_array().unwrap() {
        api.wait_status(result["id"].as_str().unwrap(), "delivered").await?;
    }
    eventually("the refused publish is written down", SOON, || async {
        (stack.count("SELECT count(*) FROM dead_letters WHERE body IS NOT NULL").await.ok()? == 1).then_some(())
    })
    .await?;
    let events = stack.count("SELECT count(*) FROM delivery_events").await?;

    let bob = stack.cli(&["token", "--tenant", "acme", "--sub", "bob", "--role", "user"])?;
    check_strangers(&stack, bob.trim()).await?;

    let erased = patient::erase(&stack.admin(), "ada").await?;
    let wanted = json!({"messages": 4, "deliveries": 4, "inbox": 1, "bulks": 0, "idempotency_responses": 1, "dead_letters": 2, "inbound": 0,
        "contact": 0, "events": 0});
    assert_eq!(erased, wanted);
    let again = delete(&stack, &stack.admin_key, "/api/users/ada").await?.ok()?;
    assert!(again["erased"].as_object().unwrap().values().all(|count| count == 0), "{again}");

    let message = api.message(&sent).await?;
    assert_eq!((&message["status"], &message["user_id"]), (&json!("sent"), &json!(null)), "the facts stay: {message}");
    assert_eq!(message["deliveries"][0]["recipient"], "");
    assert_eq!(api.message(&scheduled).await?["status"], "cancelled");
    assert_eq!(
        stack.count("SELECT count(*) FROM delivery_events").await?,
        events + 1,
        "and the log, with the cancelling"
    );
    assert_eq!(stack.count("SELECT count(*) FROM dead_letters WHERE status = 'open'").await?, 0);
    check_forgotten(&api, &keyed, body).await?;

    let message = api.message(&others).await?;
    assert_eq!(message["deliveries"][0]["recipient"], "bob@example.com", "bob is untouched");
    let inbox = api.get("/api/notifications/user/bob").await?.ok()?;
    assert_eq!(inbox["notifications"][0]["message"], "for both");
    // The content of the bulk goes with the last person it was for; a person may ask for itself.
    let own = patient::erase(&stack.api(bob.trim()), "bob").await?;
    assert_eq!((&own["messages"], &own["bulks"]), (&json!(2), &json!(1)));
    Ok(())
}

#[tokio::test]
async fn what_a_worker_holds_is_finished_once_and_then_erased() -> Result<()> {
    // The call lasts longer than the request that comes meanwhile, and the claim longer than the call.
    let settings = [patient::PATIENT, &[("WEBHOOK_TIMEOUT", "20000")]].concat();
    let (stack, sink) = (Stack::start_with(&settings).await?, HttpSink::start_local().await?);
    sink.reply_by_default(Reply::Hang);
    let api = stack.producer();
    let id = api
        .send(&json!({"user_id": "ada", "channel": "webhook", "recipient": sink.url("/ada-hook"), "data": {"x": 1}}))
        .await?;
    sink.wait_for(1, SOON).await?;
    let erased = delete(&stack, &stack.admin_key, "/api/users/ada").await?.ok()?;
    assert_eq!((&erased["erased"]["messages"], &erased["pending"]), (&json!(0), &json!(true)));
    eventually("it is erased", Duration::from_secs(120), || async {
        (stack.count("SELECT count(*) FROM erasures").await.ok()? == 0).then_some(())
    })
    .await?;
    let message = api.message(&id).await?;
    assert!(["expired", "cancelled"].contains(&message["status"].as_str().unwrap()), "{message}");
    assert_eq!(message["deliveries"][0]["recipient"], "");
    assert_eq!(sink.requests().len(), 1, "it was not sent again");
    assert_eq!(sightings(&["ada-hook"], &dump(&stack)?), Vec::<String>::new());
    Ok(())
}
