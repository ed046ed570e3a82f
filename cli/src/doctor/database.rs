//! How the database is: reachable, new enough, migrated, in time, and not piling up work.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Int4, Text, Timestamptz};
use shared::{
    clock,
    db::{
        DbResult, Floor, Store,
        letters::{LetterAction, LetterFilter},
        outbox::PENDING_MAX,
        statement,
    },
    domain::Publishers,
};

use super::{broker::shortened, finding::Finding};
use crate::{output::count, settings};

/// Below this, `server_version_num` says a release that Posthaste is not made for.
const VERSION_MIN: i32 = 150_000;
/// Beyond this, ours and the database's idea of "due" and "expired" visibly differ.
const SKEW_WARN: TimeDelta = TimeDelta::milliseconds(500);
/// Beyond this, tokens are refused as well.
const SKEW_FAIL: TimeDelta = TimeDelta::seconds(30);
/// Days for which partitions should be there: a weekend without a scheduler.
const DAYS_AHEAD_WARN: i64 = 2;
/// Seconds an outbox row may wait: the relay takes it over after five, so a quarter of a minute means that none runs.
const OUTBOX_SECONDS: (f64, f64) = (15.0, 60.0);
/// Seconds a due row may be late.
const DUE_SECONDS: (f64, f64) = (5.0, 60.0);

const START_SCHEDULER: &str = "start a scheduler: posthaste run --only scheduler";

/// Everything about the database; without one there is nothing more to see.
pub async fn examine() -> Vec<Finding> {
    match reach().await {
        Ok((store, finding)) => [vec![finding], examine_reached(&store).await].concat(),
        Err(error) => vec![Finding::failed("database", &error, "check DATABASE_URL and that PostgreSQL runs")],
    }
}

async fn reach() -> anyhow::Result<(Store, Finding)> {
    let url = settings::database()?.url;
    let store = settings::store()?;
    let finding = version(&store).await.context(settings::shown(&url))?;
    Ok((store, finding))
}

async fn examine_reached(store: &Store) -> Vec<Finding> {
    let mut findings = vec![clock_skew(store).await, migrations(store).await];
    if findings.iter().any(|finding| finding.check == "migrations" && finding.advice.is_some()) {
        return findings;
    }
    findings.extend([floor(store).await, keys(store).await, publishers(store).await]);
    findings.extend([partitions(store).await, outbox(store).await, due(store).await, letters(store).await]);
    findings
}

/// Makes a failed question a finding of its own.
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

async fn floor(store: &Store) -> Finding {
    let floor = store.floor().await.context("failed to look at row-level security");
    settled("tenant walls", floor.map(|floor| walls(&floor)))
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
    let finding = open_tenants(store).await.map(|open| match open.as_slice() {
        [] => Finding::ok("broker users", "each publishes for its own tenant only"),
        open => Finding::warn(
            "broker users",
            format!("whoever may publish to posthaste.ingress publishes for {}", shortened(open)),
            "posthaste tenant map-amqp-user USER --tenant NAME, for each backend; see AMQP_REQUIRE_MAPPING",
        ),
    });
    settled("broker users", finding)
}

/// The tenants for which every user of the broker may publish.
async fn open_tenants(store: &Store) -> anyhow::Result<Vec<String>> {
    let users = store.amqp_users().await.context("failed to list the broker users")?;
    let tenants = store.list_tenants().await.context("failed to list the tenants")?;
    let publishers = Publishers::new(users, settings::require_mapping()?);
    Ok(tenants.into_iter().filter(|tenant| publishers.is_open(tenant.id)).map(|tenant| tenant.slug).collect())
}

async fn partitions(store: &Store) -> Finding {
    let days = store.partition_days_ahead().await.context("failed to look for partitions");
    settled("partitions", days.map(partition_days))
}

fn partition_days(days: i64) -> Finding {
    let advice = "posthaste migrate makes them at once; a scheduler keeps it up: posthaste run --only scheduler";
    let detail = format!("made for {} ahead", count(days, "day"));
    match days {
        ..=0 => Finding::fail("partitions", "none beyond today: soon nothing can be accepted, if not already", advice),
        1..DAYS_AHEAD_WARN => Finding::warn("partitions", detail, advice),
        DAYS_AHEAD_WARN.. => Finding::ok("partitions", detail),
    }
}

async fn outbox(store: &Store) -> Finding {
    let pending = store.outbox_pending().await.context("failed to read the outbox");
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
    let next = store.due_in_seconds().await.context("failed to read what is due");
    settled("due", next.map(|seconds| due_lag(-seconds.unwrap_or_default())))
}

fn due_lag(late: f64) -> Finding {
    let detail =
        if late > 0.0 { format!("the oldest due delivery is {late:.0} s late") } else { "nothing is late".to_owned() };
    Finding::graded("due", late, DUE_SECONDS, detail, START_SCHEDULER)
}

async fn letters(store: &Store) -> Finding {
    let every = LetterFilter { all: true, ..LetterFilter::default() };
    let open = store.letters_match(None, &every, LetterAction::Drop).await.context("failed to count the dead letters");
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
    use crate::doctor::finding::Verdict;

    #[test]
    fn clocks_may_differ_by_half_a_second_in_either_direction() {
        for (milliseconds, verdict) in [
            (0, Verdict::Ok),
            (500, Verdict::Ok),
            (-501, Verdict::Warn),
            (501, Verdict::Warn),
            (-30_001, Verdict::Fail),
        ] {
            assert_eq!(skew(TimeDelta::milliseconds(milliseconds)).verdict, verdict, "{milliseconds}");
        }
    }

    #[test]
    fn only_what_is_late_counts_as_lag() {
        let verdicts = [-30.0, 0.0, 4.0, 5.0, 60.0].map(|late| due_lag(late).verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Ok, Verdict::Warn, Verdict::Fail]);
        assert_eq!(due_lag(-30.0).detail, "nothing is late");
    }

    #[test]
    fn a_table_outside_the_walls_is_a_failure() {
        let verdict = |is_bound, open_tables| walls(&Floor { is_bound, open_tables }).verdict;
        assert_eq!(verdict(true, Vec::new()), Verdict::Ok);
        assert_eq!(verdict(false, Vec::new()), Verdict::Fail);
        assert_eq!(verdict(true, vec!["inbox".to_owned()]), Verdict::Fail);
    }

    #[test]
    fn running_out_of_partitions_is_a_failure_and_few_days_are_a_warning() {
        let verdicts = [0, 1, 2, 7].map(|days| partition_days(days).verdict);
        assert_eq!(verdicts, [Verdict::Fail, Verdict::Warn, Verdict::Ok, Verdict::Ok]);
    }
}
