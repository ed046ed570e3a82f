//! Refusals: what a database says when it cannot work, what it says when a value is wrong, and that nobody confuses the two.

use anyhow::{Context, Result};
use harness::{Stack, TestServers};
use shared::{
    config::DatabaseConfig,
    db::{DbError, Store, statement},
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
    ("DO $$ BEGIN RAISE SQLSTATE '54000'; END $$", "54000", true),
    ("DO $$ BEGIN PERFORM set_config('lock_timeout', '1ms', true), pg_advisory_xact_lock(1); END $$", "55P03", true),
    ("SELECT pg_cancel_backend(pg_backend_pid())", "57014", true),
    ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01", true),
];

/// Holds lock 2 until somebody waits for it, then waits for lock 1: the last to wait finds the deadlock.
const DEADLOCK: &str = "DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(2);
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    PERFORM pg_advisory_xact_lock(1);
END $$";

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
    let other =
        tokio::spawn(
            async move { sql.batch_execute("SET deadlock_timeout = '1h'; SELECT pg_advisory_xact_lock(2)").await },
        );
    let error = refusal(&store, DEADLOCK).await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("40P01"), true), "{error:?}");
    other.await??;
    let long = "DO $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = repeat('x', 100000); END $$";
    let error = refusal(&store, long).await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("53100"), true));
    store.ping().await?;
    Ok(())
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
    let mut url: url::Url = servers.database_url.parse()?;
    url.query_pairs_mut().append_pair("host", &directory.display().to_string());
    let local = url.as_str().replacen(&format!("127.0.0.1:{port}"), "", 1);
    let store = Store::open(&DatabaseConfig { url: local.into(), ..DatabaseConfig::plain(&url) }, 1)?;
    store.ping().await?;
    let error = refusal(&store, "SELECT 1 / 0").await?;
    assert_eq!((error.sqlstate(), error.is_unavailable()), (Some("22012"), false));
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
