//! How services reach the database: encrypted as `sslmode` says, as a role that row-level security binds, and without the right
//! to rewrite the audit log.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use records::{Records, audit::Deed};
use runtime::config::DatabaseConfig;
use servers::{
    private::{Postgres, ServersConfig},
    progress::Progress,
};
use store::{
    Store,
    migrate::{SchemaError, migrate},
    statement,
};
use testkit::{Stack, TestServers};
use tokio_postgres::{Client, NoTls, error::SqlState};

/// A store at this URL with one connection.
fn store(url: &str) -> Result<Store> {
    Ok(Store::open_for_command(&DatabaseConfig::plain(&url.parse()?), 1)?)
}

/// `url` with another login.
fn as_login(url: &str, login: &str) -> Result<String> {
    let (_, rest) = url.split_once('@').context("a test's URL has a login")?;
    Ok(format!("postgres://{login}@{rest}"))
}

async fn sql(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

// ---- TLS ----

/// PostgreSQL with a certificate for `localhost`, and the certificates that do and do not vouch for it.
struct TlsServer {
    _server: Postgres,
    /// Of the maintenance database.
    url: String,
    port: u16,
    dir: tempdir::Dir,
}

/// A folder that goes with its test.
mod tempdir {
    use std::path::PathBuf;

    pub struct Dir(pub PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn openssl(dir: &Path, args: &str) -> Result<()> {
    let output =
        Command::new("openssl").current_dir(dir).args(args.split(' ')).output().context("openssl is needed")?;
    ensure!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl TlsServer {
    async fn start() -> Result<Self> {
        let dir = tempdir::Dir(std::env::temp_dir().join(format!("posthaste-tls-{}", std::process::id())));
        let config = ServersConfig::below(dir.0.join("servers"));
        let server = Postgres::start(&config, &Progress::silent())?;
        let url = config.addresses()?.maintenance_url();
        for ca in ["ca", "other"] {
            openssl(
                &dir.0,
                &format!(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"
                ),
            )?;
        }
        openssl(
            &dir.0,
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server -keyout server.key -out server.csr",
        )?;
        std::fs::write(dir.0.join("server.ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")?;
        openssl(
            &dir.0,
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
        )?;
        let port = url.parse::<url::Url>()?.port().context("a test's URL has a port")?;
        Ok(Self { _server: server, url, port, dir })
    }

    /// Runs a shell command as the server's account in its data directory, with `input` as its standard input.
    async fn shell(&self, input: &[u8], command: &str) -> Result<()> {
        let input = STANDARD.encode(input);
        let copy = format!("COPY (SELECT '{input}') TO PROGRAM 'base64 -d | (umask 077; {command})'");
        Ok(sql(&self.url).await?.batch_execute(&copy).await?)
    }

    async fn encrypt(&self) -> Result<()> {
        for name in ["server.key", "server.pem"] {
            self.shell(&std::fs::read(self.dir.0.join(name))?, &format!("cat > {name}")).await?;
        }
        let client = sql(&self.url).await?;
        for setting in ["ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl = on"] {
            client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await?;
        }
        self.reload().await
    }

    /// `pg_reload_conf` returns before the server has reloaded, so new connections are opened until one is encrypted.
    async fn reload(&self) -> Result<()> {
        sql(&self.url).await?.batch_execute("SELECT pg_reload_conf()").await?;
        testkit::eventually("the server offers TLS", testkit::api::SOON, || async {
            (self.ask("localhost", "postgres", "?sslmode=require").await == Ok(true)).then_some(())
        })
        .await
    }

    /// Whether a connection that the platform opens is encrypted, or why it cannot be opened.
    async fn ask(&self, host: &str, login: &str, options: &str) -> Result<bool, String> {
        let url = format!("postgres://{login}@{host}:{}/postgres{options}", self.port);
        let query = statement::<diesel::sql_types::Bool>("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
        let store = store(&url).map_err(|error| error.to_string())?;
        query
            .row(&store)
            .await
            .map_err(|error| std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
    }

    fn verifying(&self, mode: &str, root: &str) -> String {
        format!("?sslmode={mode}&sslrootcert={}", self.dir.0.join(root).display())
    }
}

#[tokio::test]
async fn connections_are_encrypted_and_verified_as_sslmode_says() -> Result<()> {
    let server = TlsServer::start().await?;
    let ask = async |host: &str, options: &str| server.ask(host, "postgres", options).await;
    assert_eq!(ask("localhost", "").await, Ok(false), "a server without TLS, as ever");
    assert!(ask("localhost", "?sslmode=require").await.unwrap_err().contains("does not support TLS"));
    server.encrypt().await?;
    for (options, is_encrypted) in [("", true), ("?sslmode=prefer", true), ("?sslmode=disable", false)] {
        assert_eq!(ask("127.0.0.1", options).await, Ok(is_encrypted), "{options}");
    }
    let [ca, full] = ["verify-ca", "verify-full"].map(|mode| server.verifying(mode, "ca.pem"));
    assert_eq!(ask("127.0.0.1", &ca).await, Ok(true), "any host name will do");
    assert_eq!(ask("127.0.0.1", &server.verifying("verify-ca", "server.pem")).await, Ok(true), "that very certificate");
    assert_eq!(ask("localhost", &full).await, Ok(true));
    let refused = ask("127.0.0.1", &full).await.unwrap_err();
    assert!(refused.contains("not valid for name"), "the certificate is for another host: {refused}");
    for mode in ["verify-ca", "verify-full", "require"] {
        let refused = ask("localhost", &server.verifying(mode, "other.pem")).await.unwrap_err();
        assert!(refused.contains("invalid peer certificate"), "{mode} by another authority: {refused}");
    }
    let refused = ask("localhost", "?sslmode=verify-full").await.unwrap_err();
    let is_unsigned = refused.contains("invalid peer certificate") || refused.contains("trusts no certificate");
    assert!(is_unsigned, "no public authority signed it: {refused}");
    assert!(ask("localhost", &server.verifying("verify-ca", "none.pem")).await.unwrap_err().contains("sslrootcert"));
    // The server now takes encrypted connections only: migrations work over TLS too, and SCRAM is bound to the channel.
    server
        .shell(
            b"hostssl all secret 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 trust\n",
            "cat > pg_hba.conf",
        )
        .await?;
    let url = format!("postgres://postgres@localhost:{}/posthaste{full}", server.port);
    sql(&server.url)
        .await?
        .batch_execute("CREATE ROLE secret LOGIN SUPERUSER PASSWORD 'pw'; SELECT pg_reload_conf()")
        .await?;
    testkit::eventually("connections without TLS are refused", testkit::api::SOON, || async {
        server.ask("localhost", "postgres", "?sslmode=disable").await.is_err().then_some(())
    })
    .await?;
    assert_eq!(server.ask("localhost", "secret:pw", "?sslmode=require&channel_binding=require").await, Ok(true));
    assert!(!migrate(&url.as_str().into()).await?.is_empty());
    assert!(store(&url)?.floor().await?.is_bound);
    Ok(())
}

// ---- roles ----

/// The roles of docker/compose.yaml, with names of their own: roles belong to the whole server.
async fn compose_roles(servers: &TestServers) -> Result<(String, [String; 2])> {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let text = include_str!("../../../docker/postgres/roles.sql")
        .lines()
        .filter(|line| !line.starts_with('\\') && !line.starts_with("CREATE ROLE posthaste_services"))
        .map(|line| line.replace(":'owner_password'", "'pw'").replace(":'app_password'", "'pw'"))
        .map(|line| line.replace("DATABASE posthaste", &format!("DATABASE d{id}")))
        .map(|line| {
            line.replace("posthaste_owner", &format!("owner{id}")).replace("posthaste_app", &format!("app{id}"))
        })
        .collect::<Vec<_>>();
    let client = sql(&servers.database_url).await?;
    for line in text.iter().filter(|line| !line.starts_with("--")) {
        client.batch_execute(line).await.with_context(|| line.clone())?;
    }
    let (base, _) = servers.database_url.rsplit_once('/').context("a database URL ends in a name")?;
    Ok((format!("{base}/d{id}"), [format!("owner{id}:pw"), format!("app{id}:pw")]))
}

#[tokio::test]
async fn invariant_t_the_login_of_compose_is_nothing_without_the_role() -> Result<()> {
    // The role is there once any database of the server has been migrated.
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    assert!(store(&stack.database_url)?.floor().await?.login_is_privileged, "the tests' own login is a superuser");
    let (url, [owner, app]) = compose_roles(&stack.servers).await?;
    let (owner, app) = (as_login(&url, &owner)?, as_login(&url, &app)?);
    migrate(&owner.as_str().into()).await?;
    assert!(store(&owner)?.floor().await?.login_is_privileged, "it owns the tables");
    let services = store(&app)?;
    services.await_schema().await?;
    let floor = services.floor().await?;
    assert!(floor.is_bound && !floor.login_is_privileged && floor.open_tables.is_empty(), "{floor:?}");
    services.ensure_partitions(3).await?;
    let raw = sql(&app).await?;
    raw.batch_execute("SET ROLE posthaste_services; SET posthaste.tenant = '*'; SELECT FROM tenants").await?;
    let refused = raw.batch_execute("RESET ROLE; SELECT FROM tenants").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    Ok(())
}

#[tokio::test]
async fn a_login_that_may_not_act_as_the_role_gets_no_connection() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let name = format!("bypass{}", uuid::Uuid::now_v7().simple());
    let client = stack.sql().await?;
    client
        .batch_execute(&format!(
            "CREATE ROLE {name} LOGIN BYPASSRLS IN ROLE posthaste_services; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
        ))
        .await?;
    let url = as_login(&stack.database_url, &name)?;
    let tenants = async |store: Store| store.tenants().list().await;
    assert_eq!(tenants(store(&url)?).await?.len(), 1, "a member serves");
    client.batch_execute(&format!("REVOKE posthaste_services FROM {name}")).await?;
    let refused = tenants(store(&url)?).await.unwrap_err();
    let cause = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("may not act as the role"), "not as itself, past every policy: {refused}: {cause}");
    assert!(matches!(store(&url)?.await_schema().await, Err(SchemaError::Role)), "a service does not wait for a right");
    client.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await?;
    Ok(())
}

// ---- the audit log ----

#[tokio::test]
async fn the_services_role_can_append_to_the_audit_log_and_nothing_else() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let before = stack.count("SELECT count(*) FROM audit_entries").await?;
    let services = stack.sql().await?;
    services.batch_execute("SET ROLE posthaste_services; SET posthaste.tenant = '*'").await?;
    let forged = "INSERT INTO audit_entries SELECT id + 1, NULL, now(), 'admin:eve', 'x', 'x', NULL, hash,
        audit_hash(hash, id + 1, NULL, now(), 'admin:eve', 'x', 'x', NULL) FROM audit_head";
    for attempt in [
        forged,
        "UPDATE audit_entries SET actor = 'admin:eve'",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET id = 0",
        "INSERT INTO audit_head (only_row, id, hash) VALUES (true, 0, '')",
    ] {
        let refused = services.batch_execute(attempt).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{attempt}: {refused}");
    }
    // The function does not use tables of the same name in the caller's temporary schema.
    let shadow = "CREATE TEMP TABLE audit_head AS SELECT true AS only_row, 41::bigint AS id, '\\x00'::bytea AS hash;
        CREATE TEMP TABLE audit_entries (LIKE public.audit_entries)";
    services.batch_execute(shadow).await?;
    let append = "SELECT audit_append(NULL, $1, 'key create', 'k', NULL)";
    let id: i64 = services.query_one(append, &[&"cli:ada"]).await?.get(0);
    assert_eq!(id, before + 1);
    let unnamed = services.query_one(append, &[&"eve"]).await.unwrap_err();
    assert_eq!(unnamed.code(), Some(&SqlState::CHECK_VIOLATION), "{unnamed}");
    assert_eq!(stack.cli_json(&["audit", "verify"])?["entries"], before + 1);
    let loose = "SELECT p.proname::text FROM pg_proc p WHERE p.prosecdef AND p.pronamespace = 'public'::regnamespace
        AND coalesce(array_to_string(p.proconfig, ';'), '') !~ 'search_path=[^;]*, pg_temp(;|$)'";
    let loose: Vec<String> = services.query(loose, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(loose, Vec::<String>::new(), "functions that run as their owner look among temporary objects last");
    // Tables of later migrations are closed too, and a second run of migrate opens nothing.
    stack.cli(&["migrate"])?;
    assert!(services.batch_execute("DELETE FROM public.audit_head").await.is_err());
    let deed = Deed { tenant: None, actor: "cli".into(), action: "x".into(), target: "x".into(), request_id: None };
    assert_eq!(store(&stack.database_url)?.audit_log().append(deed).await?, before + 2);
    Ok(())
}
