//! Refusals: the errors of a database that cannot work and those of a wrong value are never confused.

use anyhow::{Context, Result};
use domain::{Channel, EventKind, TenantId, clock, contract::Event};
use lapin::options::{BasicGetOptions, BasicNackOptions};
use nix::sys::signal::Signal;
use runtime::config::DatabaseConfig;
use serde_json::{Value, json};
use store::{DbError, Store, statement};
use testkit::{
    HttpSink, Role, Stack, TestServers,
    amqp::Backend,
    api::SOON,
    check, eventually,
    patient::{LONG, PATIENT},
    rules::template,
};
use tokio::net::{TcpStream, UnixListener};

/// A database with the schema and no process.
async fn prepare() -> Result<(Stack, Store)> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 2)?;
    Ok((stack, store))
}

async fn refusal(store: &Store, sql: &'static str) -> Result<DbError> {
    statement::<()>(sql).run(store).await.err().with_context(|| format!("{sql} was not refused"))
}

/// SQL, its SQLSTATE, and whether the server is at fault.
const REFUSALS: &[(&str, &str, bool)] = &[
    ("SELECT 'x'::int", "22P02", false),
    ("SELECT 1 / 0", "22012", false),
    (r"SELECT convert_from('\x00', 'UTF8')", "22021", false),
    ("SELECT 2147483647 + 1", "22003", false),
    ("INSERT INTO told VALUES (1, ''), (1, '')", "23505", false),
    ("INSERT INTO told VALUES (NULL, '')", "23502", false),
    ("INSERT INTO told VALUES (-1, '')", "23514", false),
    ("INSERT INTO told SELECT 2, string_agg(md5(n::text), '') FROM generate_series(1, 1000) n", "54000", false),
    ("DO $$ BEGIN RAISE 'not like this'; END $$", "P0001", false),
    ("CREATE TABLE made_later ()", "25006", true),
    ("SELECT * FROM messages_19700101", "42P01", true),
    ("SELECT no_such_column FROM told", "42703", true),
    ("SELECT * FROM kept_back", "42501", true),
    ("EXECUTE prepared_elsewhere", "26000", true),
    ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", "53100", true),
    ("DO $$ BEGIN RAISE SQLSTATE '53200'; END $$", "53200", true),
    ("DO $$ BEGIN RAISE SQLSTATE '58030'; END $$", "58030", true),
    ("DO $$ BEGIN RAISE SQLSTATE '54000' USING HINT = 'Execute a database-wide VACUUM.'; END $$", "54000", true),
    ("DO $$ BEGIN PERFORM set_config('lock_timeout', '1ms', true), pg_advisory_xact_lock(1); END $$", "55P03", true),
];

/// Holds lock 2 until another session waits for it, then waits for lock 1: the last to wait finds the deadlock.
const DEADLOCK: &str = "DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(2);
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    PERFORM pg_advisory_xact_lock(1);
END $$";

/// Waits for the second lock once the other session holds it, and finds no deadlock itself.
const SECOND_LOCK: &str = "SET deadlock_timeout = '1h';
DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 2 AND granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT pg_advisory_xact_lock(2)";

#[tokio::test]
async fn a_refusal_is_the_servers_fault_by_its_sqlstate_whatever_language_it_speaks() -> Result<()> {
    let (stack, store) = prepare().await?;
    let sql = stack.sql().await?;
    sql.batch_execute(
        "CREATE TABLE told (id int PRIMARY KEY CHECK (id > 0), text text UNIQUE); CREATE TABLE kept_back ();
         GRANT ALL ON told TO posthaste_services; REVOKE ALL ON kept_back FROM posthaste_services",
    )
    .await?;
    sql.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await?;
    for language in languages(&stack).await? {
        let database = sql.query_one("SELECT current_database()", &[]).await?.get::<_, String>(0);
        stack.sql().await?.batch_execute(&format!("ALTER DATABASE {database} SET lc_messages = '{language}'")).await?;
        for (text, code, servers_fault) in REFUSALS {
            // A connection of its own: it speaks the language, and what it is set to ends with it.
            let read_only = if *code == "25006" { "?options=-c%20default_transaction_read_only%3Don" } else { "" };
            let url = format!("{}{read_only}", stack.database_url).parse()?;
            let error = refusal(&Store::open(&DatabaseConfig::plain(&url), 1)?, text).await?;
            assert_eq!(error.sqlstate(), Some(*code), "{language}: {text}: {error:?}");
            assert_eq!(error.is_unavailable(), *servers_fault, "{language}: {text}: {error:?}");
        }
    }
    for (end, code) in [("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")] {
        let error = cut_short(&stack, &store, end).await?;
        assert!(error.is_unavailable() && error.sqlstate().is_none_or(|said| said == code), "{end}: {error:?}");
    }
    // The pool may still hold the connection that was ended.
    eventually("a new connection is made", SOON, || async { store.ping().await.ok() }).await?;
    let other = tokio::spawn(async move { sql.batch_execute(SECOND_LOCK).await });
    let error = refusal(&store, DEADLOCK).await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("40P01"), true), "{error:?}");
    other.await??;
    let long = "DO $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = repeat('x', 100000); END $$";
    let error = refusal(&store, long).await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("53100"), true));
    store.ping().await?;
    Ok(())
}

/// The error of a statement that an operator ends while it runs.
async fn cut_short(stack: &Stack, store: &Store, end: &str) -> Result<DbError> {
    let operator = stack.sql().await?;
    let sleeping = format!(
        "SELECT {end}(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep(60)%'"
    );
    let ended = eventually("it is ended", SOON, || async {
        let ended = operator.query(&sleeping, &[]).await.ok()?;
        (!ended.is_empty()).then_some(())
    });
    let (error, ended) = tokio::join!(refusal(store, "SELECT pg_sleep(60)"), ended);
    ended?;
    error
}

/// The languages of messages that this server can speak.
async fn languages(stack: &Stack) -> Result<Vec<&'static str>> {
    let sql = stack.sql().await?;
    let mut spoken = vec!["C"];
    for language in ["de_DE.UTF-8", "fr_FR.UTF-8", "es_ES.UTF-8"] {
        if sql.batch_execute(&format!("SET lc_messages = '{language}'")).await.is_ok() {
            spoken.push(language);
        }
    }
    println!("refusals in these languages: {spoken:?}");
    Ok(spoken)
}

#[tokio::test]
async fn a_database_behind_a_unix_socket_is_reached_and_its_refusals_are_read() -> Result<()> {
    let servers = TestServers::shared()?;
    let config: tokio_postgres::Config = servers.database_url.parse()?;
    let port = *config.get_ports().first().context("a port")?;
    let directory = std::env::temp_dir().join(format!("posthaste-socket-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let socket = UnixListener::bind(directory.join(".s.PGSQL.5432"))?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = socket.accept().await {
            let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
        Ok::<_, std::io::Error>(())
    });
    let maintenance: url::Url = servers.database_url.parse()?;
    let mut url: url::Url = format!("postgres://{}", maintenance.path()).parse()?;
    url.query_pairs_mut()
        .append_pair("host", &directory.display().to_string())
        .append_pair("user", maintenance.username())
        .append_pair("password", maintenance.password().unwrap_or_default());
    let store = Store::open(&DatabaseConfig::plain(&url), 1)?;
    store.ping().await?;
    let error = refusal(&store, "SELECT 1 / 0").await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("22012"), false));
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

/// Has every insert into a table that meets `condition` refused with `code`, until [`accept_all`].
async fn refuse(stack: &Stack, table: &str, condition: &str, code: &str) -> Result<()> {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF {condition} THEN RAISE SQLSTATE '{code}' USING MESSAGE = 'nicht heute'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()"
    );
    Ok(stack.sql().await?.batch_execute(&sql).await?)
}

async fn accept_all(stack: &Stack, table: &str) -> Result<()> {
    Ok(stack.sql().await?.batch_execute(&format!("DROP TRIGGER refuse ON {table}")).await?)
}

/// How often the log writer has failed.
async fn log_failures(stack: &Stack) -> Option<f64> {
    let metrics =
        reqwest::get(format!("http://127.0.0.1:{}/metrics", stack.port("all").ok()?)).await.ok()?.text().await.ok()?;
    let failures = r#"posthaste_task_failures_total{task="log_writer"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(failures))?.parse().ok()
}

const LETTERS: &str = "SELECT count(*) FROM dead_letters";

#[tokio::test]
async fn outcomes_wait_for_a_full_disk_and_only_a_wrong_value_is_put_aside_and_can_be_replayed() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let stack = Stack::patient(&[]).await?;
    let body = |category: &str| json!({"channel": "webhook", "recipient": sink.url("/hook"), "category": category, "data": {"n": 1}});
    // The disk takes one row in two, so that no batch is refused as a whole.
    refuse(&stack, "delivery_events", "get_byte(uuid_send(NEW.delivery_id), 15) % 2 = 0", "53100").await?;
    let mut accepted = Vec::new();
    for _ in 0..40 {
        accepted.push(stack.producer().send(&body("order")).await?);
    }
    eventually("all of it is sent", SOON, || async { (sink.requests().len() == 40).then_some(()) }).await?;
    eventually("it tries again and again", SOON, || async { (log_failures(&stack).await? >= 3.0).then_some(()) })
        .await?;
    assert_eq!(stack.count(LETTERS).await?, 0, "a full disk is no row's fault");
    accept_all(&stack, "delivery_events").await?;
    let ledger = check::ledger(&stack, &sink, &accepted, LONG).await?;
    ledger.hold()?;
    assert_eq!((ledger.repeats, ledger.ambiguous, stack.count(LETTERS).await?), (0, 0, 0), "{ledger:?}");

    let of = |category: &str| {
        format!("EXISTS (SELECT FROM deliveries d WHERE d.id = NEW.delivery_id AND d.category = '{category}')")
    };
    // Only one row lies on the damaged page: it waits, and its neighbours are written.
    refuse(&stack, "delivery_events", &of("damaged"), "XX001").await?;
    for n in 0..10 {
        accepted.push(stack.producer().send(&body(if n == 4 { "damaged" } else { "order" })).await?);
    }
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 49).await?;
    assert_eq!(stack.count(LETTERS).await?, 0, "a damaged page is no row's fault");
    accept_all(&stack, "delivery_events").await?;
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 50).await?;

    refuse(&stack, "delivery_events", &of("poison"), "22003").await?;
    for n in 0..10 {
        accepted.push(stack.producer().send(&body(if n == 4 { "poison" } else { "order" })).await?);
    }
    stack
        .until_count(&format!("{LETTERS} WHERE reason = 'poison' AND origin = 'broker' AND status = 'open'"), 1)
        .await?;
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 59).await?;
    accept_all(&stack, "delivery_events").await?;
    // Its worker is taken for lost meanwhile, although its outcome is in the letter.
    let poison = "SELECT id::text, run FROM deliveries WHERE category = 'poison'";
    let poison = stack.sql().await?.query_one(poison, &[]).await?;
    let crash = crash(poison.get::<_, String>(0).parse()?, poison.get(1))?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    backend.publish_to("posthaste.events", "events.crash", Backend::properties("c")?, &batch(&[crash])).await?;
    accepted.push(stack.producer().send(&body("order")).await?);
    stack.until_count("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 60).await?;
    let held = "SELECT count(*) FROM deliveries WHERE category = 'poison' AND state = 'sending'";
    assert_eq!(stack.count(held).await?, 1, "its outcome is known");
    stack.cli(&["dead", "replay", "--reason", "poison", "--note", "the column is wide enough now"])?;
    let ledger = check::ledger(&stack, &sink, &accepted, LONG).await?;
    ledger.hold()?;
    assert_eq!((ledger.repeats, ledger.ambiguous), (0, 0), "{ledger:?}");
    stack.until_count(&format!("{LETTERS} WHERE status = 'replayed'"), 1).await?;

    refuse(&stack, "rules", "true", "53100").await?;
    let rule = json!({"name": "full", "event_type": "x", "template_name": "t", "channels": ["in_app"]});
    template(&stack, "t", "m").await?;
    let answer = stack.admin().post("/api/rules", &rule).await?;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
    Ok(())
}

/// The deliveries of these messages.
async fn deliveries(stack: &Stack, messages: &[String]) -> Result<Vec<uuid::Uuid>> {
    let text = "SELECT d.id::text FROM unnest($1::text[]) WITH ORDINALITY AS asked(id, n) JOIN deliveries d ON d.message_id = asked.id::uuid ORDER BY n";
    let rows = stack.sql().await?.query(text, &[&messages]).await?;
    rows.iter().map(|row| Ok(row.get::<_, String>(0).parse()?)).collect()
}

/// The report "delivered" of a worker for a delivery at its first run.
fn arrived(delivery: uuid::Uuid) -> Result<Value> {
    let about = (TenantId(1), domain::DeliveryId(delivery), 0, Channel::Webhook);
    let event = Event { report: false, ..Event::report(about, EventKind::Delivered, clock::now()) };
    Ok(serde_json::to_value(event)?)
}

/// "Its worker is lost", as a scheduler would report.
fn crash(delivery: uuid::Uuid, run: i32) -> Result<Value> {
    let mut crash = arrived(delivery)?;
    for (field, value) in [
        ("run", json!(run)),
        ("kind", json!("ambiguous")),
        ("state", json!("retrying")),
        ("delay_ms", json!(0)),
        ("crash", json!(true)),
    ] {
        crash[field] = value;
    }
    Ok(crash)
}

fn batch(events: &[Value]) -> Vec<u8> {
    json!({"v": 1, "events": events}).to_string().into_bytes()
}

/// Gives one message of a queue back so often that the broker gives it up.
async fn return_too_often(backend: &Backend, queue: &str) -> Result<()> {
    let channel = backend.channel().await?;
    for _ in 0..=20 {
        let got = eventually("a message", SOON, || async {
            channel.basic_get(queue.into(), BasicGetOptions::default()).await.ok()?
        })
        .await?;
        #[expect(clippy::disallowed_methods, reason = "plays readers that crash")]
        channel.basic_nack(got.delivery_tag, BasicNackOptions { requeue: true, ..Default::default() }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_returned_too_often_lives_and_an_unknown_word_waits_for_a_newer_scheduler() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut stack = Stack::prepare(TestServers::shared()?, PATIENT).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    let backend = Backend::connect(&stack.amqp_url).await?;
    let mut messages = Vec::new();
    for _ in 0..4 {
        let body = json!({"channel": "webhook", "recipient": sink.url("/hook"), "data": {"n": 1}});
        messages.push(stack.producer().send(&body).await?);
    }
    let [hinted, returned, known, newer] = deliveries(&stack, &messages).await?[..] else { anyhow::bail!("four") };

    // No worker takes it, no scheduler writes it down: the broker gives both up.
    return_too_often(&backend, "posthaste.work.webhook.normal").await?;
    let events = "posthaste.events";
    backend.publish_to(events, "events.attempt", Backend::properties("r")?, &batch(&[arrived(returned)?])).await?;
    return_too_often(&backend, "posthaste.events.log").await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    let delivered =
        |id: uuid::Uuid| format!("SELECT count(*) FROM deliveries WHERE id = '{id}' AND state = 'delivered'");
    stack.until_count(&delivered(returned), 1).await?;
    stack.until_measured("scheduler", &["posthaste_hints_given_up_total 1"]).await?;
    let queued = format!("SELECT count(*) FROM deliveries WHERE id = '{hinted}' AND state = 'queued'");
    assert_eq!((stack.count(&queued).await?, stack.count(LETTERS).await?), (1, 0), "a hint is only a hint");

    let mut unread = arrived(newer)?;
    unread["reason"] = json!("from_the_future");
    let both = batch(&[unread, arrived(known)?]);
    backend.publish_to(events, "events.attempt", Backend::properties("n")?, &both).await?;
    stack.until_count(&delivered(known), 1).await?;
    let kept = format!("SELECT count(*) FROM unread_events WHERE delivery_id = '{newer}' AND run = 0");
    stack.until_count(&kept, 1).await?;
    // Its worker is taken for dead meanwhile, although its outcome is here.
    let sql = stack.sql().await?;
    sql.batch_execute(&format!("UPDATE deliveries SET state = 'sending' WHERE id = '{newer}'")).await?;
    let crash = batch(&[crash(newer, 0)?, arrived(hinted)?]);
    backend.publish_to(events, "events.crash", Backend::properties("c")?, &crash).await?;
    stack.until_count(&delivered(hinted), 1).await?;
    let sending = format!("SELECT count(*) FROM deliveries WHERE id = '{newer}' AND state = 'sending'");
    assert_eq!((stack.count(&sending).await?, stack.count(LETTERS).await?), (1, 0), "its outcome waits");
    // A scheduler that knows the word.
    sql.batch_execute(
        "UPDATE unread_events SET body = replace(convert_from(body, 'UTF8'), 'from_the_future', 'quiet_hours')::bytea",
    )
    .await?;
    stack.signal("scheduler", Signal::SIGTERM)?;
    stack.ended("scheduler", SOON).await?;
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    stack.until_count(&delivered(newer), 1).await?;
    stack.until_count("SELECT count(*) FROM unread_events", 0).await?;

    // Of two dead letters one cannot be written: the other one is.
    refuse(&stack, "dead_letters", "NEW.amqp_id = 'unwritable'", "22001").await?;
    for id in ["unwritable", "fine"] {
        backend.publish_to("", "posthaste.dlq", Backend::properties(id)?, b"?").await?;
    }
    let written = |id: &str| format!("{LETTERS} WHERE amqp_id = '{id}'");
    stack.until_count(&written("fine"), 1).await?;
    accept_all(&stack, "dead_letters").await?;
    stack.until_count(&written("unwritable"), 1).await
}
