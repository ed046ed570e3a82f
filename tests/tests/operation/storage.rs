//! Migrations, partitions, retention and the loops that keep tables small: none of them makes deliveries wait, and one failure does not
//! keep the next one from its turn.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use deliveries::{Deliveries, webhook_events::Swept};
use domain::{Channel, DeliveryId, TenantId, contract::WorkItem};
use maintenance::{
    Maintenance,
    retention::{Pass, Surveyed},
};
use records::Records;
use runtime::config::DatabaseConfig;
use store::{Store, migrate::migrate};
use testkit::{Role, Stack, TestServers, api::SOON, eventually, patient::LONG};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

/// Makes a day's partitions where they are missing, and a message in it with one delivery. `days` before today, `seconds` after
/// midnight.
const STORED: &str = "
CREATE FUNCTION stored(days integer, seconds float8, tenant integer, state text, later float8 DEFAULT 0) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    day      timestamptz := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - make_interval(days => days);
    -- With the bits of version and variant, without which an id holds no time.
    message  uuid := overlay(uuid7_floor(day + make_interval(secs => seconds))::text PLACING '7000-8000' FROM 15 FOR 9)::uuid;
    delivery uuid := overlay(uuid7_floor(day + make_interval(secs => seconds + later))::text PLACING '7000-8000' FROM 15 FOR 9)::uuid;
    parent   text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['messages', 'deliveries', 'delivery_events'] LOOP
        EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
            parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD'), parent, uuid7_floor(day), uuid7_floor(day + interval '1 day'));
    END LOOP;
    INSERT INTO messages (id, tenant_id, priority, content, source, created_at) VALUES (message, tenant, 'normal', '{\"n\": 1}', 'http', day);
    INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state) VALUES (delivery, message, tenant, 'in_app', 'normal', 'x', state);
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at) VALUES (delivery, 1, 'delivered', tenant, 'in_app', day);
    RETURN delivery;
END
$$";

struct Base {
    stack: Stack,
    store: Store,
    sql: tokio_postgres::Client,
}

impl Base {
    /// A database with the schema and one tenant; no process runs.
    async fn new() -> Result<Self> {
        let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
        let store = Store::open_for_command(&DatabaseConfig::plain(&stack.database_url.parse()?), 4)?;
        let sql = stack.sql().await?;
        sql.batch_execute(STORED).await?;
        Ok(Self { stack, store, sql })
    }

    async fn stored(&self, days: i32, seconds: f64, tenant: i32, state: &str) -> Result<Uuid> {
        self.stored_later(days, seconds, tenant, state, 0.0).await
    }

    /// As [`Base::stored`], with a delivery that came `later` than its message.
    async fn stored_later(&self, days: i32, seconds: f64, tenant: i32, state: &str, later: f64) -> Result<Uuid> {
        let query = "SELECT stored($1, $2, $3, $4, $5)::text";
        let id: String = self.sql.query_one(query, &[&days, &seconds, &tenant, &state, &later]).await?.get(0);
        Ok(id.parse()?)
    }

    async fn count(&self, query: &str) -> Result<i64> {
        Ok(self.sql.query_one(query, &[]).await?.get(0))
    }

    async fn days(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM pg_inherits WHERE inhparent = 'messages'::regclass").await
    }

    /// A session that reads a table for as long as it is kept.
    async fn reader(&self, tables: &str) -> Result<tokio_postgres::Client> {
        let reader = self.stack.sql().await?;
        reader.batch_execute(&format!("BEGIN; LOCK TABLE {tables} IN ACCESS SHARE MODE")).await?;
        Ok(reader)
    }
}

/// How long a claim may take on a busy machine. One that waits for a reader ends with the statement limit, later than this.
const CLAIM_MAX: Duration = Duration::from_secs(8);

fn hint(delivery: Uuid) -> WorkItem {
    WorkItem::new(DeliveryId(delivery), 0)
}

/// Claims deliveries one after the other until it is stopped; how many, and the longest that one took.
async fn claim_all(store: Store, deliveries: Vec<Uuid>, stop: Arc<AtomicBool>) -> Result<(usize, Duration)> {
    let (mut claimed, mut longest) = (0, Duration::ZERO);
    for delivery in deliveries {
        let started = Instant::now();
        claimed += store.claims().claim(Channel::InApp, &[hint(delivery)], 10_000).await?.len();
        longest = longest.max(started.elapsed());
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok((claimed, longest))
}

#[tokio::test]
async fn partitions_are_made_beside_a_long_reader_and_no_claim_waits_behind_it() -> Result<()> {
    let base = Base::new().await?;
    let mut waiting = Vec::new();
    for n in 0..300 {
        waiting.push(base.stored(0, f64::from(n), 1, "queued").await?);
    }
    let newest = "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '7 days', '_YYYYMMDD')";
    let newest: String = base.sql.query_one(newest, &[]).await?.get(0);
    base.sql
        .batch_execute(&format!("DROP TABLE messages{newest}, deliveries{newest}, delivery_events{newest}"))
        .await?;
    let before = base.store.partition_days_ahead().await?;
    // As pg_dump does for hours.
    let reader = base.reader("messages, deliveries, delivery_events").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let claims = tokio::spawn(claim_all(base.store.clone(), waiting, Arc::clone(&stop)));
    let made = base.store.ensure_partitions(7).await?;
    let again = base.store.ensure_partitions(7).await?;
    stop.store(true, Ordering::Relaxed);
    let (claimed, longest) = claims.await??;
    assert_eq!((made, again, base.store.partition_days_ahead().await? - before), (3, 0, 1));
    assert!(claimed > 0 && longest < CLAIM_MAX, "{claimed} claims, the longest took {longest:?}");
    drop(reader);
    // The new ones are as the others: under the policies, and the services may write into them.
    let open = "SELECT count(*) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE c.relkind = 'r' AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND has_table_privilege('posthaste_services', c.oid, 'INSERT'))";
    assert_eq!(base.count(open).await?, 0);
    let differing = "SELECT count(DISTINCT n) FROM (
        SELECT count(*) AS n FROM pg_index x JOIN pg_inherits i ON i.inhrelid = x.indrelid WHERE i.inhparent = 'deliveries'::regclass
        GROUP BY x.indrelid) indexes";
    assert_eq!(base.count(differing).await?, 1, "each partition has the same indexes");
    Ok(())
}

#[tokio::test]
async fn functions_that_run_as_their_owner_find_nothing_temporary_first() -> Result<()> {
    let base = Base::new().await?;
    let safe = "SELECT DISTINCT p.proname::text FROM pg_proc p
        WHERE p.prosecdef AND p.proname IN ('attach_partitions', 'ensure_partitions', 'drop_partitions', 'drop_day')
        AND EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=%, pg_temp') ORDER BY 1";
    let safe: Vec<String> = base.sql.query(safe, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(safe, ["attach_partitions", "drop_day", "drop_partitions", "ensure_partitions"]);
    Ok(())
}

/// Claims `hints` while another session holds the row of one of them; the relation locks that the claim holds meanwhile.
async fn locks_of_a_claim(base: &Base, hints: Vec<WorkItem>, held: Uuid) -> Result<(i64, Vec<DeliveryId>)> {
    let holder = base.stack.sql().await?;
    holder.batch_execute(&format!("BEGIN; SELECT 1 FROM deliveries WHERE id = '{held}' FOR UPDATE")).await?;
    let store = base.store.clone();
    let claim = tokio::spawn(async move { store.claims().claim(Channel::InApp, &hints, 10_000).await });
    let locks = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE a.datname = current_database() AND a.wait_event_type = 'Lock' AND l.locktype = 'relation' AND a.query LIKE '%UPDATE deliveries%'";
    let locks = eventually("the claim waits for the row", SOON, || async {
        base.count(locks).await.ok().filter(|locks| *locks > 0)
    })
    .await?;
    holder.batch_execute("COMMIT").await?;
    Ok((locks, claim.await??.into_iter().map(|claim| claim.delivery).collect()))
}

#[tokio::test]
async fn a_claim_opens_the_days_of_its_deliveries_however_many_are_kept() -> Result<()> {
    let base = Base::new().await?;
    // A day has 16 locks in it: with 60 of them a claim that opened all would hold about a thousand.
    base.sql.batch_execute("SELECT attach_partitions(parent, 60) FROM unnest(ARRAY['messages', 'deliveries', 'delivery_events']) AS p(parent)").await?;
    let (today, old) = (base.stored(0, 1.0, 1, "queued").await?, base.stored(5, 1.0, 1, "queued").await?);
    let second = base.stored(0, 2.0, 1, "queued").await?;
    let (locks, claimed) = locks_of_a_claim(&base, vec![hint(today)], today).await?;
    assert_eq!(claimed, [DeliveryId(today)]);
    assert!(locks <= 40, "a claim of today holds {locks} locks");
    // Beside one of today, a retry of a delivery that is some days old.
    let (locks, claimed) = locks_of_a_claim(&base, vec![hint(second), hint(old)], old).await?;
    assert_eq!(claimed, [DeliveryId(old), DeliveryId(second)]);
    assert!(locks <= 40, "a claim of two days holds {locks} locks");
    // Accepted a moment before midnight, delivered after it.
    let late = base.stored_later(1, 86_399.9, 1, "queued", 0.2).await?;
    let claims = base.store.claims().claim(Channel::InApp, &[hint(late)], 10_000).await?;
    assert_eq!(claims.first().map(|claim| claim.content.clone()), Some(br#"{"n": 1}"#.to_vec()));
    // A hint of a day that is gone is a hint of nothing.
    let gone = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_000_000_000, 0));
    assert!(base.store.claims().claim(Channel::InApp, &[hint(gone)], 10_000).await?.is_empty());
    Ok(())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Removes rows turn by turn, as a scheduler does, through failures; how many turns failed.
async fn remove_all(store: &Store) -> Result<usize> {
    let (started, mut failures) = (Instant::now(), 0);
    while started.elapsed() < LONG {
        match store.retention().remove_rows(Some(6), soon()).await {
            Ok(Pass { more: false, .. }) => return Ok(failures),
            Ok(_) => {}
            Err(_) => failures += 1,
        }
    }
    anyhow::bail!("no pass came to its end");
}

#[tokio::test]
async fn a_day_that_stays_keeps_no_other_day_and_no_row_from_going() -> Result<()> {
    let base = Base::new().await?;
    // One waits since fifty days; one is dead, and its letter is open; one is over; each beside another that is over.
    for (days, state) in [(50, "scheduled"), (40, "dead"), (30, "delivered")] {
        let delivery = base.stored(days, 1.0, 1, state).await?;
        base.stored(days, 2.0, 1, "delivered").await?;
        let beside = match state {
            "scheduled" => {
                "INSERT INTO due (delivery_id, due_at, run, why) VALUES ($1::text::uuid, now() + interval '9 days', 0, 'scheduled')"
            }
            _ => {
                "INSERT INTO dead_letters (id, tenant_id, delivery_id, origin, reason, created_at) VALUES (gen_random_uuid(), 1, $1::text::uuid, 'delivery', 'poison', now() - interval '30 days')"
            }
        };
        base.sql.execute(beside, &[&delivery.to_string()]).await?;
    }
    // Without a due row: nothing points at it, and the day is read for it.
    base.stored(45, 1.0, 1, "queued").await?;
    let (before, mut surveyed) = (base.days().await?, Surveyed::new());
    let reader = base.reader("deliveries").await?;
    let pass = base.store.retention().drop_days(Some(6), soon(), &mut surveyed).await?;
    assert!(pass.busy && base.days().await? == before, "not while a session reads: {pass:?}");
    reader.batch_execute("COMMIT").await?;
    let pass = base.store.retention().drop_days(Some(6), soon(), &mut surveyed).await?;
    assert_eq!((pass.kept.len(), pass.busy, base.days().await?), (2, false, before - 2), "{pass:?}");
    assert_eq!(base.count("SELECT count(*) FROM dead_letters").await?, 0, "a letter goes with its message");
    // Ended messages are removed from the day that stays.
    assert_eq!(remove_all(&base.store).await?, 0);
    let left = "SELECT count(*) FROM deliveries WHERE id < uuid7_floor(now() - interval '20 days')";
    assert_eq!(base.count(left).await?, 2, "the two that are alive");
    Ok(())
}

#[tokio::test]
async fn retention_gets_to_the_last_of_many_tenants_and_past_a_table_that_refuses() -> Result<()> {
    let base = Base::new().await?;
    base.sql
        .batch_execute(
            "INSERT INTO tenants (slug, webhook_secret) SELECT 'many-' || n, 'x' FROM generate_series(1, 4000) AS s(n);
             INSERT INTO event_log (id, tenant_id, event_type, data, matched, created_at)
                 SELECT uuid7_floor(now() - interval '9 days'), max(id), 'e', '', '{}', now() - interval '9 days' FROM tenants;
             INSERT INTO inbox (id, tenant_id, user_id, content, created_at)
                 SELECT gen_random_uuid(), max(id), 'x', '{}', now() - age FROM tenants, unnest(ARRAY[interval '9 days', interval '1 day']) AS a(age)
                 GROUP BY age;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
             CREATE TRIGGER refuse BEFORE DELETE ON inbox FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await?;
    // One of the last tables, and of the last tenant.
    let letter = "INSERT INTO dead_letters (id, tenant_id, origin, reason, status, created_at) SELECT gen_random_uuid(), max(id), 'intake', 'schema', 'open', now() - interval '9 days' FROM tenants";
    base.sql.batch_execute(letter).await?;
    let of_an_outcome = "WITH l AS (INSERT INTO dead_letters (id, origin, reason, created_at) VALUES (gen_random_uuid(), 'broker', 'poison', now() - interval '9 days') RETURNING id)
        INSERT INTO unread_events (id, delivery_id, run, body) SELECT id, gen_random_uuid(), 1, '' FROM l";
    base.sql.batch_execute(of_an_outcome).await?;
    assert_eq!(remove_all(&base.store).await?, 1, "the table that refuses, once in a pass");
    assert_eq!(base.count("SELECT count(*) FROM event_log").await?, 0);
    assert_eq!(base.count("SELECT count(*) FROM dead_letters").await?, 1, "no other place has the outcome");
    base.sql.batch_execute("DROP TRIGGER refuse ON inbox; DELETE FROM unread_events").await?;
    assert_eq!(remove_all(&base.store).await?, 0);
    assert_eq!(base.count("SELECT count(*) FROM dead_letters").await?, 0);
    assert_eq!(base.count("SELECT count(*) FROM inbox").await?, 1, "that of yesterday");
    Ok(())
}

#[tokio::test]
async fn a_day_that_is_missing_in_between_is_seen_and_made_by_a_migration() -> Result<()> {
    let base = Base::new().await?;
    let day = "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '3 days', '_YYYYMMDD')";
    let day: String = base.sql.query_one(day, &[]).await?.get(0);
    base.sql.batch_execute(&format!("DROP TABLE deliveries{day}")).await?;
    assert_eq!(base.store.partition_days_ahead().await?, 2);
    base.stack.cli(&["migrate"])?;
    assert!(base.store.partition_days_ahead().await? >= 7);
    Ok(())
}

#[tokio::test]
async fn a_partition_that_cannot_be_frozen_keeps_no_other_one_from_it() -> Result<()> {
    let base = Base::new().await?;
    base.stored(3, 1.0, 1, "delivered").await?;
    let old = "SELECT 'messages' || to_char(now() AT TIME ZONE 'UTC' - interval '3 days', '_YYYYMMDD')";
    let old: String = base.sql.query_one(old, &[]).await?.get(0);
    let holder = base.stack.sql().await?;
    holder.batch_execute(&format!("BEGIN; LOCK TABLE {old} IN SHARE UPDATE EXCLUSIVE MODE")).await?;
    // As on a server that does not say when a table was vacuumed, the caller names what it has had.
    let (mut passed, mut refused) = (Vec::new(), Vec::new());
    while let Some(frozen) = base.store.partitions().freeze(passed.clone()).await? {
        refused.extend(frozen.refused.map(|_| frozen.partition.clone()));
        passed.push(frozen.partition);
    }
    assert_eq!(refused, [old]);
    assert!(passed.len() >= 3, "{passed:?}");
    Ok(())
}

#[tokio::test]
async fn sessions_of_the_operator_that_the_version_before_made_are_marked() -> Result<()> {
    let base = Base::new().await?;
    base.sql
        .batch_execute(
            "INSERT INTO tenants (slug, webhook_secret) VALUES ('another', '');
             INSERT INTO wa_sessions (id, tenant_id, name, base_url)
                 SELECT gen_random_uuid(), id, 's', 'http://127.0.0.1:1' FROM tenants",
        )
        .await?;
    assert_eq!(base.store.whatsapp_sessions().mark_operators_sessions().await?, 1);
    assert_eq!(base.store.whatsapp_sessions().mark_operators_sessions().await?, 0);
    let marked = "SELECT count(*) FROM wa_sessions WHERE is_operators AND tenant_id = (SELECT min(id) FROM tenants)";
    assert_eq!(base.count(marked).await?, 1);
    Ok(())
}

#[tokio::test]
async fn the_doctor_names_tenants_that_the_mapping_of_others_shuts_out() -> Result<()> {
    let base = Base::new().await?;
    base.stored(0, 1.0, 1, "delivered").await?;
    base.sql
        .batch_execute(
            "INSERT INTO tenants (slug, webhook_secret) VALUES ('refused', ''), ('mapped', ''), ('quiet', '');
             INSERT INTO amqp_users (username, tenant_id) SELECT 'backend', id FROM tenants WHERE slug = 'mapped';
             UPDATE messages SET source = 'amqp';
             INSERT INTO dead_letters (id, origin, reason, routing_key, amqp_user)
                 VALUES (gen_random_uuid(), 'intake', 'tenant', 'refused.sms.high', ''),
                        (gen_random_uuid(), 'intake', 'tenant', 'quiet.sms.high', 'backend')",
        )
        .await?;
    // Without a running service it finds other faults as well.
    let seen = base.stack.cli(&["doctor"]).unwrap_or_else(|error| error.to_string());
    assert!(seen.contains("no broker user may publish for acme, refused, although"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn one_scheduler_at_a_time_and_another_one_once_it_is_gone() -> Result<()> {
    let base = Base::new().await?;
    let first = base.store.retention().alone("test").await?.context("it is free")?;
    assert!(base.store.retention().alone("test").await?.is_none());
    assert!(base.store.retention().alone("another").await?.is_some());
    // A turn may take longer than a transaction may be idle otherwise.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(base.store.retention().alone("test").await?.is_none());
    first.undo().await?;
    assert!(base.store.retention().alone("test").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn events_of_a_configuration_that_went_off_are_taken_back_page_by_page() -> Result<()> {
    let base = Base::new().await?;
    let waiting = base.stored(0, 1.0, 1, "queued").await?;
    let over = base.stored(0, 2.0, 1, "delivered").await?;
    base.sql
        .batch_execute(&format!(
            "UPDATE messages SET source = 'event'; UPDATE deliveries SET channel = 'webhook';
             INSERT INTO webhook_configurations (id, tenant_id, name, url, headers, secret, is_active, disabled_at)
                 VALUES ('0191d8a0-0000-7000-8000-0000000000aa', 1, 'c', 'http://127.0.0.1:1', '{{}}', 'x', false, now());
             INSERT INTO webhook_events (tenant_id, configuration_id, event, at, fact, pending, carrier)
                 SELECT 1, '0191d8a0-0000-7000-8000-0000000000aa', 'message.sent', now() - interval '1 hour' + n / 2 * interval '1 ms', '{{}}', false,
                        CASE n WHEN 250 THEN '{waiting}'::uuid ELSE '{over}' END FROM generate_series(1, 250) AS s(n)"
        ))
        .await?;
    let mut swept = Swept::new();
    for more in [true, true, false, false] {
        assert_eq!(base.store.webhook_events().hold_back(100, &mut swept).await?, more);
    }
    assert!(swept.is_empty());
    assert_eq!(base.count("SELECT count(*) FROM deliveries WHERE state = 'cancelled'").await?, 1);
    assert_eq!(base.count("SELECT count(*) FROM webhook_events WHERE carrier IS NULL").await?, 1);
    Ok(())
}

/// Work for a running scheduler: an erasure that fails before one that does not, a delivery that expires behind a session that is shut,
/// a breaker and a share without use, a past day.
const TO_DO: &str = "
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.user_id = 'bad' THEN RAISE 'no'; END IF; RETURN OLD; END $$;
CREATE TRIGGER refuse BEFORE DELETE ON inbox FOR EACH ROW EXECUTE FUNCTION refuse();
INSERT INTO inbox (id, tenant_id, user_id, content, created_at) VALUES
    (gen_random_uuid(), 1, 'bad', '{}', now() - interval '1 hour'), (gen_random_uuid(), 1, 'good', '{}', now() - interval '1 hour');
INSERT INTO erasures (tenant_id, user_id, created_at, due_at) VALUES
    (1, 'bad', now() - interval '2 minutes', now() - interval '2 minutes'), (1, 'good', now() - interval '1 minute', now() - interval '1 minute');
INSERT INTO breakers (key, provider, state, failures, since, retry_at) VALUES
    ('webhook/https://over', 'webhook', 'closed', 0, now() - interval '1 day', now() - interval '1 day'),
    ('webhook/https://troubled', 'webhook', 'closed', 1, now() - interval '1 day', now() - interval '1 day');
INSERT INTO lines (id, tenant_id, kind, route, released_at) VALUES
    (gen_random_uuid(), 1, 'share', 'email.bulk', now() - interval '2 days'), (gen_random_uuid(), 1, 'share', 'sms.bulk', now());
INSERT INTO wa_sessions (id, tenant_id, name, base_url) VALUES ('0191d8a0-0000-7000-8000-0000000000aa', 1, 's', 'http://127.0.0.1:1');
INSERT INTO lines (id, tenant_id, kind, route, is_open) VALUES ('0191d8a0-0000-7000-8000-0000000000aa', 1, 'session', 'whatsapp', false);
INSERT INTO webhook_configurations (id, tenant_id, name, url, headers, secret, is_active)
    VALUES (gen_random_uuid(), 1, 'c', 'http://127.0.0.1:1', '{}', 'x', false)";

#[tokio::test]
async fn a_scheduler_gets_past_what_fails_ends_what_expired_and_forgets_what_is_over() -> Result<()> {
    let mut base = Base::new().await?;
    base.sql.batch_execute(TO_DO).await?;
    let delivery = base.stored(0, 1.0, 1, "queued").await?;
    base.stored(3, 1.0, 1, "delivered").await?;
    let park = format!(
        "UPDATE deliveries SET channel = 'whatsapp', line = '0191d8a0-0000-7000-8000-0000000000aa' WHERE id = '{delivery}';
         INSERT INTO parked (delivery_id, line, run, rank, expires_at) VALUES ('{delivery}', '0191d8a0-0000-7000-8000-0000000000aa', 0, 1, now())"
    );
    base.sql.batch_execute(&park).await?;
    // The version before parks without a time.
    let old = base.stored(0, 2.0, 1, "queued").await?;
    let park = format!(
        "UPDATE messages m SET expires_at = now() FROM deliveries d WHERE d.id = '{old}' AND m.id = d.message_id;
         UPDATE deliveries SET channel = 'whatsapp', line = '0191d8a0-0000-7000-8000-0000000000aa' WHERE id = '{old}';
         INSERT INTO parked (delivery_id, line, run, rank) VALUES ('{old}', '0191d8a0-0000-7000-8000-0000000000aa', 0, 1)"
    );
    base.sql.batch_execute(&park).await?;
    let (session, tenant) = ("0191d8a0-0000-7000-8000-0000000000aa".parse()?, TenantId(1));
    let removed = base.store.whatsapp_sessions().remove(tenant, session).await?;
    assert_eq!(format!("{removed:?}"), "Busy(2)");
    base.stack.launch("scheduler", Role::Scheduler, &[]).await?;
    let wanted = [
        ("the good one is erased", "SELECT count(*) = 0 FROM inbox WHERE user_id = 'good'"),
        (
            "the bad one is put off",
            "SELECT count(*) = 1 FROM erasures WHERE user_id = 'bad' AND failures > 0 AND due_at > now()",
        ),
        ("both deliveries are expired", "SELECT count(*) = 2 FROM deliveries WHERE state = 'expired'"),
        ("its line is empty", "SELECT waiting = 0 FROM lines WHERE kind = 'session'"),
        ("the log says so", "SELECT count(*) = 2 FROM delivery_events WHERE kind = 'expired'"),
        ("the webhook as well", "SELECT count(*) >= 1 FROM webhook_events WHERE event = 'message.expired'"),
        ("only the troubled breaker is left", "SELECT count(*) = 1 AND bool_and(key LIKE '%troubled') FROM breakers"),
        (
            "only the share in use is left",
            "SELECT count(*) = 1 AND bool_and(route = 'sms.bulk') FROM lines WHERE kind = 'share'",
        ),
        ("the operator's session is marked", "SELECT bool_and(is_operators) FROM wa_sessions"),
        (
            "the days that are over are frozen",
            "SELECT count(*) >= 3 FROM pg_stat_user_tables WHERE relname ~ '^(messages|deliveries|delivery_events)_' AND last_vacuum IS NOT NULL",
        ),
    ];
    for (what, condition) in wanted {
        eventually(what, SOON, || async {
            let holds: Option<bool> = base.sql.query_one(condition, &[]).await.ok()?.get(0);
            holds.filter(|holds| *holds).map(drop)
        })
        .await?;
    }
    let shown =
        ["posthaste_events_written_total{kind=\"expired\"} 2", "posthaste_task_failures_total{task=\"freeze\"} "];
    base.stack.until_measured("scheduler", &shown).await?;
    let removed = base.store.whatsapp_sessions().remove(tenant, session).await?;
    assert_eq!(format!("{removed:?}"), "Yes");
    Ok(())
}

/// Every table, and what keeps it from growing without end.
const OWNERS: &[(&str, &str)] = &[
    ("amqp_users", "an operator"),
    ("api_keys", "an operator or admin; a key is a row for ever"),
    ("audit_entries", "none: the audit log only grows, by what admins do"),
    ("audit_head", "one row"),
    ("breakers", "pruning"),
    ("broadcast_pages", "retention"),
    ("broadcasts", "retention"),
    ("bulks", "retention"),
    ("catalogues", "a row for each tenant"),
    ("categories", "an admin"),
    ("daily_counts", "none: a few rows for each tenant and day"),
    ("dead_letters", "retention"),
    ("deliveries", "retention"),
    ("delivery_events", "retention"),
    ("devices", "an erasure or the person"),
    ("digest_items", "digests: with their window"),
    ("digests", "digest_forgets"),
    ("due", "release_due and crashes"),
    ("erasures", "erasures: at their end"),
    ("event_counts", "nothing writes it any more; dropped in the next version"),
    ("event_log", "retention"),
    ("holds", "holds"),
    ("idempotency_keys", "partitions: after three days"),
    ("imports", "partitions: after thirty days"),
    ("inbox", "retention or the person"),
    ("inboxes", "a row for each person; goes with its erasure"),
    ("lines", "sessions with their session, shares by pruning"),
    ("messages", "retention"),
    ("notification_types", "an admin"),
    ("outbox", "audit"),
    ("parked", "release_lines and expiry"),
    ("provider_events", "provider_events: after some days"),
    ("provider_refs", "retention"),
    ("replays", "retention"),
    ("retention", "a row for each tenant at most"),
    ("retention_cursor", "one row"),
    ("rules", "an admin"),
    ("seal_check", "a row for each encryption key"),
    ("service_secrets", "a fixed number of rows"),
    ("soft_bounces", "provider_events: after some days"),
    ("suppressions", "an admin; a row for each address that must not be written to"),
    ("template_versions", "an admin, with the template"),
    ("templates", "an admin"),
    ("tenant_limits", "a row for each tenant at most"),
    ("tenants", "an operator"),
    ("throttles", "digest_forgets: once they say nothing"),
    ("token_families", "partitions: once they have expired"),
    (
        "unread_events",
        "unread_events: once they are read, or after three days; notes of outcomes once their delivery goes on or their letter is dropped",
    ),
    ("users", "an erasure or an admin"),
    ("wa_inbound", "retention"),
    ("wa_sessions", "an admin"),
    ("waha_events", "retention"),
    ("webhook_configurations", "an admin"),
    ("webhook_events", "webhook_forgets and retention"),
    ("webhook_logs", "webhook_forgets and retention"),
];

#[tokio::test]
async fn every_table_has_an_owner_that_keeps_it_from_growing_without_end() -> Result<()> {
    let base = Base::new().await?;
    let tables = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname NOT LIKE '\\_\\_%'";
    let tables: BTreeSet<String> = base.sql.query(tables, &[]).await?.iter().map(|row| row.get(0)).collect();
    let owned: BTreeSet<String> = OWNERS.iter().map(|(table, _)| (*table).to_owned()).collect();
    assert_eq!(tables, owned, "a table without pruning grows for ever: name its owner");
    Ok(())
}

#[tokio::test]
async fn a_migration_that_was_killed_while_it_built_an_index_runs_again() -> Result<()> {
    let Base { stack, sql, .. } = Base::new().await?;
    let forget = "DELETE FROM __diesel_schema_migrations WHERE version BETWEEN '20261130130200' AND '20261130131100'";
    let forgotten = sql.execute(forget, &[]).await?;
    sql.batch_execute("DROP INDEX parked_expires").await?;
    // The build enters the index into the catalogue, then waits for the writer, and is ended there.
    let writer = stack.sql().await?;
    writer.batch_execute("BEGIN; LOCK TABLE parked IN ROW EXCLUSIVE MODE").await?;
    sql.batch_execute("SET lock_timeout = '100ms'").await?;
    let ended = sql.batch_execute("CREATE INDEX CONCURRENTLY parked_expires ON parked (expires_at)").await.unwrap_err();
    assert_eq!(ended.code(), Some(&SqlState::LOCK_NOT_AVAILABLE), "{ended}");
    writer.batch_execute("COMMIT").await?;
    let invalid = "SELECT count(*) FROM pg_index WHERE indexrelid = 'parked_expires'::regclass AND NOT indisvalid";
    assert_eq!(stack.count(invalid).await?, 1, "a part of an index is left");
    let ran = migrate(&stack.database_url.as_str().into()).await?;
    assert_eq!(u64::try_from(ran.len())?, forgotten, "{ran:?}");
    assert_eq!(stack.count(invalid).await?, 0);
    Ok(())
}
