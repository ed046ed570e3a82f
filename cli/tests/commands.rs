//! The commands as a shell sees them, on a real database of their own: what they print, how they exit, what they leave.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::process::{Command, Output};

use diesel_async::SimpleAsyncConnection;
use domain::{
    TenantId,
    token::{self, Role, hash_key},
};
use records::{Records, audit::AuditFilter};
use runtime::config::DatabaseConfig;
use serde_json::Value;
use store::{Store, statement};
use url::Url;
use uuid::Uuid;

const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef";
/// An address without a listener.
const NO_BROKER: &str = "amqp://guest:guest@127.0.0.1:1/none";

#[expect(clippy::disallowed_methods, reason = "the test runner says where its database is")]
fn servers_database() -> Url {
    let url = std::env::var("POSTHASTE_TEST_DATABASE_URL");
    url.unwrap_or_else(|_| panic!("POSTHASTE_TEST_DATABASE_URL is not set: run `cargo xtask test`")).parse().unwrap()
}

/// An empty database, and commands that work on it.
struct Desk {
    url: Url,
}

impl Desk {
    async fn new() -> Self {
        let mut url = servers_database();
        let name = format!("commands_{}", Uuid::now_v7().simple());
        admin(format!("CREATE DATABASE {name}")).await;
        url.set_path(&name);
        Self { url }
    }

    async fn migrated() -> Self {
        let desk = Self::new().await;
        desk.ok(&["migrate"]);
        desk
    }

    fn store(&self) -> Store {
        Store::open_for_command(&DatabaseConfig::plain(&self.url), 2).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
        command.args(args).env_clear().env("DATABASE_URL", self.url.as_str());
        command.env("AMQP_URL", NO_BROKER).env("JWT_SECRET", JWT_SECRET);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The output of a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// The error of a command that must exit with `code`.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stdout));
        text(&output.stdout) + &text(&output.stderr)
    }

    async fn gone(self) {
        admin(format!("DROP DATABASE {} WITH (FORCE)", self.url.path().trim_start_matches('/'))).await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn admin(sql: String) {
    as_owner(&servers_database(), &sql).await.unwrap();
}

/// Runs `sql` as who logs in, and not as the role of the services.
async fn as_owner(database: &Url, sql: &str) -> Result<(), diesel::result::Error> {
    let store = Store::open_for_command(&DatabaseConfig::plain(database), 1).unwrap();
    let mut conn = store.conn().await.unwrap();
    // A database is not made within the time of a statement when the disk is busy.
    conn.batch_execute("RESET ROLE; SET statement_timeout = 0; SET lock_timeout = 0").await?;
    conn.batch_execute(sql).await
}

#[tokio::test]
async fn a_schema_is_missing_then_pending_then_current() {
    let desk = Desk::new().await;
    assert!(desk.fails(1, &["tenant", "list"]).contains("run `posthaste migrate`"));
    assert!(desk.fails(1, &["migrate", "--check"]).contains("pending: "));
    assert!(desk.ok(&["migrate"]).starts_with("ran "));
    assert_eq!(desk.ok(&["migrate"]), "the schema is up to date\n");
    assert_eq!(desk.json(&["migrate", "--check"]), serde_json::json!({ "pending": [] }));
    desk.gone().await;
}

#[tokio::test]
async fn a_tenant_is_created_once_and_found_by_name() {
    let desk = Desk::migrated().await;
    let made = desk.json(&["tenant", "create", "acme"]);
    assert!(made["webhook_secret"].as_str().unwrap().starts_with("whsec_"), "{made}");
    assert!(desk.fails(1, &["tenant", "create", "acme"]).contains("exists already"));
    for bad in ["Acme", "a.b", "-a", "", &"a".repeat(64)] {
        assert!(desk.fails(1, &["tenant", "create", "--", bad]).contains("lower-case"), "{bad}");
    }
    assert_eq!(desk.json(&["tenant", "list"])[0]["slug"], "acme");
    let (store, id) = (desk.store(), made["id"].as_i64().unwrap());
    let found = store.tenants().by_slug("acme").await.unwrap().unwrap();
    assert_eq!(i64::from(found.id.0), id);
    assert_eq!(store.tenants().by_id(found.id).await.unwrap().unwrap().slug, "acme");
    assert!(store.tenants().by_slug("unknown").await.unwrap().is_none());
    assert!(store.tenants().by_id(TenantId(-1)).await.unwrap().is_none());
    desk.gone().await;
}

#[tokio::test]
async fn a_broker_user_speaks_for_one_tenant_at_a_time() {
    let desk = Desk::migrated().await;
    desk.ok(&["tenant", "create", "acme"]);
    desk.ok(&["tenant", "create", "globex"]);
    desk.ok(&["tenant", "map-amqp-user", "shop", "--tenant", "acme"]);
    desk.ok(&["tenant", "map-amqp-user", "shop", "--tenant", "globex"]);
    let store = desk.store();
    let globex = store.tenants().by_slug("globex").await.unwrap().unwrap().id;
    assert_eq!(store.tenants().amqp_mapping("shop").await.unwrap(), Some(globex));
    assert_eq!(store.tenants().amqp_users().await.unwrap(), [("shop".to_owned(), globex)]);
    assert!(desk.fails(1, &["tenant", "map-amqp-user", "shop", "--tenant", "nobody"]).contains("no tenant `nobody`"));
    desk.ok(&["tenant", "unmap-amqp-user", "shop"]);
    assert_eq!(store.tenants().amqp_mapping("shop").await.unwrap(), None);
    desk.fails(1, &["tenant", "unmap-amqp-user", "shop"]);
    desk.gone().await;
}

#[tokio::test]
async fn a_key_holds_until_it_is_revoked_and_is_never_shown_again() {
    let desk = Desk::migrated().await;
    desk.ok(&["tenant", "create", "acme"]);
    let made = desk.json(&["key", "create", "--tenant", "acme", "--role", "producer", "--name", "shop"]);
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let store = desk.store();
    let held = store.api_keys().by_hash(&hash_key(key)).await.unwrap().unwrap();
    assert_eq!((held.id.to_string().as_str(), held.tenant_slug.as_str(), held.role), (id, "acme", Role::Producer));
    assert!(!desk.ok(&["key", "list"]).contains(key));
    let other = TenantId(held.tenant_id.0 + 1);
    assert!(store.api_keys().revoke(held.id, Some(other)).await.unwrap().is_none(), "the key of another tenant");
    desk.ok(&["key", "revoke", id]);
    assert!(store.api_keys().by_hash(&hash_key(key)).await.unwrap().is_none());
    assert!(desk.fails(1, &["key", "revoke", id]).contains("revoked already"));
    assert_eq!(desk.json(&["key", "list", "--tenant", "acme"])[0]["name"], "shop");
    desk.gone().await;
}

#[tokio::test]
async fn a_token_is_what_ingest_accepts() {
    let desk = Desk::new().await;
    let printed = desk.ok(&["token", "--tenant", "acme", "--sub", "ada", "--role", "user", "--ttl", "5m"]);
    let claims = token::decode(&JWT_SECRET.into(), printed.trim_end()).unwrap();
    assert_eq!((claims.sub.as_str(), claims.tenant.as_str(), claims.role), ("ada", "acme", Role::User));
    assert_eq!(claims.exp - claims.iat.unwrap(), 300);
    let unset = desk
        .command(&["token", "--tenant", "a", "--sub", "b", "--role", "user"])
        .env("JWT_SECRET", "")
        .output()
        .unwrap();
    assert!(unset.status.code() == Some(1) && text(&unset.stderr).contains("JWT_SECRET is missing"));
    desk.gone().await;
}

#[tokio::test]
async fn dead_letters_are_listed_counted_and_wait_for_a_scheduler() {
    let desk = Desk::migrated().await;
    let store = desk.store();
    let letters = "INSERT INTO dead_letters (id, channel, origin, reason) SELECT gen_random_uuid(), 'sms', 'intake', 'schema' FROM generate_series(1, 3)";
    statement::<()>(letters).run(&store).await.unwrap();
    assert_eq!(desk.json(&["dead", "list", "--reason", "schema", "--since", "1h"]).as_array().unwrap().len(), 3);
    assert_eq!(desk.json(&["dead", "list", "--until", "1h"]).as_array().unwrap().len(), 0);
    assert_eq!(desk.json(&["dead", "replay", "--channel", "sms", "--dry-run"])["matched"], 3);
    let begun = desk.json(&["dead", "drop", "--all", "--note", "a test", "--no-wait"]);
    let id = begun["replay_id"].as_str().unwrap();
    let seen = desk.json(&["dead", "status", id]);
    assert_eq!((&seen["status"], &seen["note"], &seen["matched"]), (&"running".into(), &"a test".into(), &3.into()));
    desk.ok(&["dead", "cancel", id]);
    assert_eq!(desk.json(&["dead", "status", id])["status"], "cancelled");
    desk.fails(2, &["dead", "replay", "--note", "no filter"]);
    desk.fails(2, &["dead", "drop", "--all"]);
    assert!(desk.fails(1, &["dead", "list", "--tenant", "nobody"]).contains("no tenant `nobody`"));
    desk.gone().await;
}

#[tokio::test]
async fn commands_that_change_something_are_in_the_audit_log_and_a_tampered_log_is_found() {
    let desk = Desk::migrated().await;
    assert_eq!(desk.json(&["audit", "verify"])["entries"], 0);
    desk.ok(&["tenant", "create", "acme"]);
    let key = desk.json(&["key", "create", "--tenant", "acme", "--role", "producer"]);
    let anchor = desk.json(&["audit", "verify"])["anchor"].as_str().unwrap().to_owned();
    desk.ok(&["key", "revoke", key["id"].as_str().unwrap()]);
    desk.ok(&["tenant", "map-amqp-user", "shop", "--tenant", "acme"]);
    desk.ok(&["tenant", "unmap-amqp-user", "shop"]);
    let letter = "INSERT INTO dead_letters (id, origin, reason) VALUES (gen_random_uuid(), 'intake', 'schema')";
    let store = desk.store();
    statement::<()>(letter).run(&store).await.unwrap();
    let begun = desk.json(&["dead", "drop", "--all", "--note", "a test", "--no-wait"]);
    desk.ok(&["dead", "cancel", begun["replay_id"].as_str().unwrap()]);
    let entries = store.audit_log().list(None, AuditFilter::default(), None, 100).await.unwrap();
    let actions: Vec<&str> = entries.iter().rev().map(|entry| entry.action.as_str()).collect();
    let wanted = [
        "tenant create",
        "key create",
        "key revoke",
        "tenant map-amqp-user",
        "tenant unmap-amqp-user",
        "dead drop",
        "dead cancel",
    ];
    assert_eq!(actions, wanted);
    assert!(entries.iter().all(|entry| entry.actor.starts_with("cli")), "{entries:?}");
    assert_eq!((entries[4].target.as_str(), entries[4].tenant.as_deref()), (key["id"].as_str().unwrap(), Some("acme")));
    assert!(desk.ok(&["audit", "verify", "--anchor", &anchor]).starts_with("7 entries hold"));
    let forged = format!("2:{}", "0".repeat(64));
    assert!(desk.fails(1, &["audit", "verify", "--anchor", &forged]).contains("entry 2 is broken"));
    desk.fails(2, &["audit", "verify", "--anchor", "2"]);

    for refused in ["UPDATE audit_entries SET actor = 'x'", "DELETE FROM audit_entries", "TRUNCATE audit_entries"] {
        let error = as_owner(&desk.url, refused).await.unwrap_err();
        assert!(error.to_string().contains("only grows"), "{refused}: {error}");
    }
    // A superuser can do more; the chain tells.
    let off = "ALTER TABLE audit_entries DISABLE TRIGGER ALL";
    as_owner(&desk.url, off).await.unwrap();
    let change = async |sql| as_owner(&desk.url, &format!("SET posthaste.tenant = '*'; {sql}")).await.unwrap();
    change("UPDATE audit_entries SET actor = 'cli:eve' WHERE id = 3").await;
    assert!(desk.fails(1, &["audit", "verify"]).contains("entry 3 is broken: it is not as it was written"));
    let rehash = "UPDATE audit_entries SET hash = audit_hash(prev_hash, id, tenant_id, at, actor, action, target, request_id) WHERE id = 3";
    change(rehash).await;
    assert!(desk.fails(1, &["audit", "verify"]).contains("entry 4 is broken"), "its follower names the old hash");
    change("DELETE FROM audit_entries WHERE id = 3").await;
    assert!(desk.fails(1, &["audit", "verify"]).contains("entry 3 is broken: it is missing"));
    change("DELETE FROM audit_entries WHERE id > 2").await;
    assert!(desk.fails(1, &["audit", "verify"]).contains("entry 3 is broken: it is missing"), "cut off at its end");
    desk.gone().await;
}

#[tokio::test]
async fn settings_are_checked_and_secrets_masked() {
    let desk = Desk::new().await;
    let shown = desk.ok(&["config", "check"]);
    assert!(shown.contains("JWT_SECRET") && !shown.contains(JWT_SECRET), "{shown}");
    let wrong = desk
        .command(&["config", "check"])
        .env("RETRY_BASE_MS", "soon")
        .env("POSTHASTE_COLOUR", "red")
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stdout).contains("RETRY_BASE_MS") && text(&wrong.stdout).contains("POSTHASTE_COLOUR"));
    assert!(desk.ok(&["config", "example"]).contains("\nAMQP_URL="));
    desk.gone().await;
}

#[tokio::test]
async fn the_doctor_names_what_is_missing_and_looks_at_the_rest() {
    let desk = Desk::migrated().await;
    let report = desk.fails(1, &["doctor"]);
    for wanted in
        ["ok    settings", "ok    database", "ok    migrations", "ok    partitions", "fail  broker", "check AMQP_URL"]
    {
        assert!(report.contains(wanted), "{wanted} in\n{report}");
    }
    assert!(!report.contains("guest:guest"), "{report}");
    desk.gone().await;
}
