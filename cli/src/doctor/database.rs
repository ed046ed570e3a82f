//! Checks the database: connection, version, migrations, clock, partitions and backlogs.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use deliveries::{
    Deliveries,
    letters::{LetterAction, LetterFilter},
    outbox::PENDING_MAX,
};
use diesel::sql_types::{Bool, Int4, Text, Timestamptz};
use domain::{Publishers, clock};
use records::Records;
use runtime::config::{PostgresUrl, SslMode};
use secrecy::ExposeSecret;
use store::{DbResult, Floor, Store, statement};

use super::{broker::shortened, finding::Finding};
use crate::{output::count, settings};

/// The lowest supported `server_version_num`.
const VERSION_MIN: i32 = 150_000;
/// With a larger clock difference, Posthaste and the database visibly disagree on what is due or expired.
const SKEW_WARN: TimeDelta = TimeDelta::milliseconds(500);
/// With a larger clock difference, tokens are refused as well.
const SKEW_FAIL: TimeDelta = TimeDelta::seconds(30);
/// Days for which partitions should exist: a weekend without a scheduler.
const DAYS_AHEAD_WARN: i64 = 2;
/// Seconds an outbox row may wait. The relay takes it over after five, so a quarter of a minute means that no relay
/// runs.
const OUTBOX_SECONDS: (f64, f64) = (15.0, 60.0);
/// Seconds a due row may be late.
const DUE_SECONDS: (f64, f64) = (5.0, 60.0);

const START_SCHEDULER: &str = "start a scheduler: posthaste run --only scheduler";

/// Runs all checks of the database. Without a connection that is the only finding.
pub async fn examine() -> Vec<Finding> {
    match reach().await {
        Ok((store, url, finding)) => {
            let encrypted = encryption(&store, &url).await;
            [vec![finding, encrypted], examine_reached(&store, url.is_remote()).await].concat()
        }
        Err(error) => vec![Finding::failed("database", &error, "check DATABASE_URL and that PostgreSQL runs")],
    }
}

async fn reach() -> anyhow::Result<(Store, PostgresUrl, Finding)> {
    let url = settings::database()?.url;
    let store = settings::store()?;
    let finding = version(&store).await.context(settings::shown(&url))?;
    Ok((store, PostgresUrl::parse(url.expose_secret())?, finding))
}

async fn examine_reached(store: &Store, is_remote: bool) -> Vec<Finding> {
    let mut findings = vec![clock_skew(store).await, migrations(store).await];
    if findings.iter().any(|finding| finding.check == "migrations" && finding.advice.is_some()) {
        return findings;
    }
    findings.extend(floor(store, is_remote).await);
    findings.extend([keys(store).await, publishers(store).await]);
    findings.extend([partitions(store).await, outbox(store).await, due(store).await, letters(store).await]);
    findings
}

/// Turns a failed check into a finding.
fn settled(check: &'static str, answer: anyhow::Result<Finding>) -> Finding {
    answer.unwrap_or_else(|error| Finding::failed(check, &error, "look at the database's log"))
}

async fn version(store: &Store) -> anyhow::Result<Finding> {
    let query = statement::<(Int4, Text)>(
        "SELECT current_setting('server_version_num')::int4, current_setting('server_version')",
    );
    let (number, name): (i32, String) = query.row(store).await?;
    let detail = format!("PostgreSQL {name}");
    Ok(if number < VERSION_MIN {
        Finding::fail("database", detail, "upgrade to PostgreSQL 15 or later")
    } else {
        Finding::ok("database", detail)
    })
}

async fn clock_skew(store: &Store) -> Finding {
    let asked = clock::now();
    let answered: DbResult<DateTime<Utc>> = statement::<Timestamptz>("SELECT clock_timestamp() AS at").row(store).await;
    let finding =
        answered.context("failed to ask for the time").map(|theirs| skew(theirs - midway(asked, clock::now())));
    settled("clock", finding)
}

fn midway(from: DateTime<Utc>, to: DateTime<Utc>) -> DateTime<Utc> {
    from + (to - from) / 2
}

fn skew(ahead: TimeDelta) -> Finding {
    let detail = format!("the database's clock is {} ms from ours", ahead.num_milliseconds());
    let advice =
        "synchronise both machines (chrony, systemd-timesyncd): retries, schedules and tokens depend on the time";
    if ahead.abs() > SKEW_FAIL {
        Finding::fail("clock", detail, advice)
    } else if ahead.abs() > SKEW_WARN {
        Finding::warn("clock", detail, advice)
    } else {
        Finding::ok("clock", detail)
    }
}

async fn migrations(store: &Store) -> Finding {
    let pending = store.pending_migrations().await.context("failed to compare the schema");
    let finding = pending.map(|pending| match pending.as_slice() {
        [] => Finding::ok("migrations", "the schema is up to date"),
        pending => Finding::fail("migrations", format!("pending: {}", pending.join(", ")), "posthaste migrate"),
    });
    settled("migrations", finding)
}

async fn floor(store: &Store, is_remote: bool) -> Vec<Finding> {
    match store.floor().await.context("failed to look at row-level security") {
        Ok(floor) => vec![walls(&floor), login(&floor, is_remote)],
        Err(error) => vec![settled("tenant walls", Err(error))],
    }
}

fn walls(floor: &Floor) -> Finding {
    let advice =
        "run posthaste migrate as the owner of the database, then: GRANT posthaste_services TO the services' login";
    match floor {
        Floor { is_bound: false, .. } => {
            Finding::fail("tenant walls", "this login may not act as the role posthaste_services", advice)
        }
        Floor { open_tables, .. } if !open_tables.is_empty() => {
            let detail = format!("not under row-level security: {}", open_tables.join(", "));
            Finding::fail("tenant walls", detail, "posthaste migrate")
        }
        Floor { .. } => Finding::ok("tenant walls", "row-level security holds on every table"),
    }
}

/// A database on this machine is for development, where a privileged login is acceptable.
fn login(floor: &Floor, is_remote: bool) -> Finding {
    if !floor.login_is_privileged {
        return Finding::ok("database login", "it is bound by row-level security and owns nothing");
    }
    let detail = "the one of this command is a superuser, bypasses row-level security or owns the tables: RESET ROLE ends the tenant walls";
    let advice = "run posthaste migrate with this login, the services with another: CREATE ROLE posthaste_app LOGIN NOSUPERUSER \
                  NOINHERIT IN ROLE posthaste_services PASSWORD '…'";
    if is_remote {
        Finding::fail("database login", detail, advice)
    } else {
        Finding::warn("database login", detail, advice)
    }
}

async fn encryption(store: &Store, url: &PostgresUrl) -> Finding {
    let query = statement::<Bool>("SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)");
    let answer = query.row(store).await.context("failed to ask whether the connection is encrypted");
    settled("database TLS", answer.map(|is_encrypted| encrypted(url, is_encrypted)))
}

fn encrypted(url: &PostgresUrl, is_encrypted: bool) -> Finding {
    let is_verified = matches!(url.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let advice = "add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL";
    match (url.is_remote(), is_encrypted) {
        (true, false) => Finding::warn("database TLS", "the connection to another machine is not encrypted", advice),
        (true, true) if !is_verified => {
            Finding::warn("database TLS", "encrypted, but the server's certificate is not checked", advice)
        }
        (_, true) => Finding::ok("database TLS", "the connection is encrypted"),
        (false, false) => Finding::ok("database TLS", "the connection does not leave this machine"),
    }
}

async fn keys(store: &Store) -> Finding {
    match store.check_keys().await {
        Ok(()) if store.sealer().is_on() && !store.sealer().is_bound() => Finding::warn(
            "encryption",
            "values are encrypted in the format of former versions, not bound to their column and tenant",
            "posthaste rotate-keys, once every service is of this version",
        ),
        Ok(()) if store.sealer().is_on() => Finding::ok("encryption", "the keys open what is stored"),
        Ok(()) => Finding::warn(
            "encryption",
            "contents and recipients are stored as they are",
            "set POSTHASTE_ENCRYPTION_KEY to `openssl rand -base64 32`, then posthaste rotate-keys",
        ),
        Err(error) => Finding::fail("encryption", error.to_string(), "posthaste config check"),
    }
}

async fn publishers(store: &Store) -> Finding {
    settled("broker users", publishing_tenants(store).await.map(|(open, shut_out)| broker_users(&open, &shut_out)))
}

fn broker_users(open: &[String], shut_out: &[String]) -> Finding {
    match (open, shut_out) {
        ([], []) => Finding::ok("broker users", "each publishes for its own tenant only"),
        ([], shut_out) => Finding::warn(
            "broker users",
            format!("no broker user may publish for {}, although some did or tried to", shortened(shut_out)),
            "posthaste tenant map-amqp-user USER --tenant NAME, for each backend; AMQP_REQUIRE_MAPPING=false until then",
        ),
        (open, _) => Finding::warn(
            "broker users",
            format!("whoever may publish to posthaste.ingress publishes for {}", shortened(open)),
            "posthaste tenant map-amqp-user USER --tenant NAME, for each backend; see AMQP_REQUIRE_MAPPING",
        ),
    }
}

/// The tenants for which every broker user may publish, and those for which no user may publish although some did
/// recently.
async fn publishing_tenants(store: &Store) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let users = store.tenants().amqp_users().await.context("failed to list the broker users")?;
    let tenants = store.tenants().list().await.context("failed to list the tenants")?;
    let unmapped: Vec<String> =
        statement::<Text>(UNMAPPED).rows(store).await.context("failed to look for publishes without a mapping")?;
    let publishers = Publishers::new(users, settings::require_mapping()?);
    let (open, closed): (Vec<_>, Vec<_>) = tenants.into_iter().partition(|tenant| publishers.is_open(tenant.id));
    let shut_out = closed.into_iter().map(|tenant| tenant.slug).filter(|slug| unmapped.contains(slug)).collect();
    Ok((open.into_iter().map(|tenant| tenant.slug).collect(), shut_out))
}

/// Tenants without a mapped user that were published for within a week: among their latest messages, or among the
/// publishes refused because of their publisher.
const UNMAPPED: &str = "
SELECT t.slug FROM tenants t WHERE NOT EXISTS (SELECT FROM amqp_users u WHERE u.tenant_id = t.id) AND (
    EXISTS (SELECT FROM (
        SELECT m.source FROM messages m WHERE m.tenant_id = t.id AND m.id >= uuid7_floor(now() - interval '7 days')
        ORDER BY m.id DESC LIMIT 200) latest WHERE latest.source = 'amqp')
    OR t.slug IN (SELECT split_part(l.routing_key, '.', 1) FROM (
        SELECT l.reason, l.routing_key, l.amqp_user FROM dead_letters l
        WHERE l.created_at > now() - interval '7 days' ORDER BY l.created_at DESC LIMIT 10000) l
        WHERE l.reason = 'tenant' AND NOT EXISTS (SELECT FROM amqp_users u WHERE u.username = l.amqp_user)))";

async fn partitions(store: &Store) -> Finding {
    let days = store.partition_days_ahead().await.context("failed to look for partitions");
    settled("partitions", days.map(partition_days))
}

fn partition_days(days: i64) -> Finding {
    let advice = "posthaste migrate makes them at once; a scheduler keeps it up: posthaste run --only scheduler";
    let detail = format!("made for {} ahead", count(days, "day"));
    match days {
        ..0 => Finding::fail("partitions", "none for today: nothing can be accepted", advice),
        0 => Finding::fail("partitions", "none beyond today: soon nothing can be accepted", advice),
        1..DAYS_AHEAD_WARN => Finding::warn("partitions", detail, advice),
        DAYS_AHEAD_WARN.. => Finding::ok("partitions", detail),
    }
}

async fn outbox(store: &Store) -> Finding {
    let pending = store.outbox().count_pending().await.context("failed to read the outbox");
    settled(
        "outbox",
        pending.map(|(rows, age)| {
            let detail = match rows {
                0 => "everything is with the broker".to_owned(),
                PENDING_MAX.. => format!(
                    "more than {} batches are not yet with the broker, the oldest for {age:.0} s",
                    PENDING_MAX - 1
                ),
                rows => format!("{rows} batches are not yet with the broker, the oldest for {age:.0} s"),
            };
            let advice = "check the broker below; the scheduler relays what is late: posthaste run --only scheduler";
            Finding::graded("outbox", age, OUTBOX_SECONDS, detail, advice)
        }),
    )
}

async fn due(store: &Store) -> Finding {
    let next = store.due().due_in_seconds().await.context("failed to read what is due");
    settled("due", next.map(|seconds| due_lag(-seconds.unwrap_or_default())))
}

fn due_lag(late: f64) -> Finding {
    let detail =
        if late > 0.0 { format!("the oldest due delivery is {late:.0} s late") } else { "nothing is late".to_owned() };
    Finding::graded("due", late, DUE_SECONDS, detail, START_SCHEDULER)
}

async fn letters(store: &Store) -> Finding {
    let every = LetterFilter { all: true, ..LetterFilter::default() };
    let open = store
        .dead_letters()
        .letters_match(None, &every, LetterAction::Drop)
        .await
        .context("failed to count the dead letters");
    settled(
        "dead letters",
        open.map(|open| match open {
            0 => Finding::ok("dead letters", "none is open"),
            open => Finding::warn("dead letters", format!("{open} open"), "posthaste dead list --status open"),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::CheckResult;

    #[test]
    fn clocks_may_differ_by_half_a_second_in_either_direction() {
        for (milliseconds, verdict) in [
            (0, CheckResult::Ok),
            (500, CheckResult::Ok),
            (-501, CheckResult::Warn),
            (501, CheckResult::Warn),
            (-30_001, CheckResult::Fail),
        ] {
            assert_eq!(skew(TimeDelta::milliseconds(milliseconds)).verdict, verdict, "{milliseconds}");
        }
    }

    #[test]
    fn only_what_is_late_counts_as_lag() {
        let verdicts = [-30.0, 0.0, 4.0, 5.0, 60.0].map(|late| due_lag(late).verdict);
        assert_eq!(verdicts, [CheckResult::Ok, CheckResult::Ok, CheckResult::Ok, CheckResult::Warn, CheckResult::Fail]);
        assert_eq!(due_lag(-30.0).detail, "nothing is late");
    }

    #[test]
    fn a_table_outside_the_walls_is_a_failure() {
        let verdict =
            |is_bound, open_tables| walls(&Floor { is_bound, login_is_privileged: false, open_tables }).verdict;
        assert_eq!(verdict(true, Vec::new()), CheckResult::Ok);
        assert_eq!(verdict(false, Vec::new()), CheckResult::Fail);
        assert_eq!(verdict(true, vec!["inbox".to_owned()]), CheckResult::Fail);
    }

    #[test]
    fn an_owner_may_serve_on_its_own_machine_only() {
        let floor = |login_is_privileged| Floor { is_bound: true, login_is_privileged, open_tables: Vec::new() };
        assert_eq!(login(&floor(true), true).verdict, CheckResult::Fail);
        assert_eq!(login(&floor(true), false).verdict, CheckResult::Warn);
        assert_eq!(login(&floor(false), true).verdict, CheckResult::Ok);
    }

    #[test]
    fn a_tenant_that_is_shut_out_is_worth_a_look_as_is_one_that_is_open() {
        let acme = ["acme".to_owned()];
        assert_eq!(broker_users(&[], &[]).verdict, CheckResult::Ok);
        let (open, shut_out) = (broker_users(&acme, &[]), broker_users(&[], &acme));
        assert_eq!((open.verdict, shut_out.verdict), (CheckResult::Warn, CheckResult::Warn));
        assert!(shut_out.detail.starts_with("no broker user may publish for acme"), "{}", shut_out.detail);
    }

    #[test]
    fn a_connection_that_leaves_the_machine_is_encrypted_and_verified() {
        let verdict = |url, is_encrypted| encrypted(&PostgresUrl::parse(url).unwrap(), is_encrypted).verdict;
        assert_eq!(verdict("postgres://u@db.example.com/n", false), CheckResult::Warn);
        assert_eq!(verdict("postgres://u@db.example.com/n?sslmode=require", true), CheckResult::Warn);
        assert_eq!(verdict("postgres://u@db.example.com/n?sslmode=verify-full", true), CheckResult::Ok);
        assert_eq!(verdict("postgres://u@127.0.0.1/n", false), CheckResult::Ok);
    }

    #[test]
    fn running_out_of_partitions_is_a_failure_and_few_days_are_a_warning() {
        let verdicts = [-1, 0, 1, 2, 7].map(|days| partition_days(days).verdict);
        assert_eq!(
            verdicts,
            [CheckResult::Fail, CheckResult::Fail, CheckResult::Warn, CheckResult::Ok, CheckResult::Ok]
        );
    }
}
