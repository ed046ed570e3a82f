//! Retention: what a tenant keeps no longer goes, whole days at once where every tenant is through with them.
//!
//! Nothing goes that is alive: a delivery without an end, one that waits or is held, an open dead letter.

use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, Utc};
use diesel::{
    result::Error,
    sql_types::{Array, Bool, Date, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use uuid::Uuid;

use super::{DbResult, Store, messages::minute_after, statement};
use crate::domain::TenantId;

/// Rows that one statement looks at.
const BATCH: i64 = 1000;

/// How long a tenant keeps its messages.
#[derive(Clone, Debug, Serialize)]
pub struct Keeping {
    /// The tenant.
    pub tenant: String,
    /// Its own number of days; `None`: the default holds.
    pub days: Option<i32>,
}

/// What a pass removed, or would remove, from one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Whose rows; `None`: of all tenants, or of an unknown one.
    pub tenant: Option<String>,
    /// The table, or the partition that went as a whole.
    pub table: String,
    /// How many rows.
    pub rows: i64,
}

/// What a pass did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pass {
    /// What went, or would go.
    pub removed: Vec<Removed>,
    /// Days that stay as a whole although every tenant is through with them, since something in them is alive.
    pub kept: Vec<NaiveDate>,
    /// There was more than the time allowed.
    pub more: bool,
}

/// A tenant whose older rows go.
struct Expiry {
    tenant: Option<(TenantId, String)>,
    before: DateTime<Utc>,
}

impl Expiry {
    fn name(&self) -> Option<String> {
        self.tenant.as_ref().map(|(_, slug)| slug.clone())
    }

    fn id(&self) -> Option<i32> {
        self.tenant.as_ref().map(|(id, _)| id.0)
    }
}

/// One pass with its settings.
struct Run<'a> {
    store: &'a Store,
    default_days: Option<i32>,
    dry: bool,
    until: Option<Instant>,
    /// Days that a dry run would drop: their rows are counted.
    dropped: Vec<NaiveDate>,
    pass: Pass,
}

impl Store {
    /// How long every tenant keeps its messages.
    pub async fn retention_list(&self) -> DbResult<Vec<Keeping>> {
        let rows: Vec<(String, Option<i32>)> = statement::<(Text, Nullable<Int4>)>(LIST).rows(self).await?;
        Ok(rows.into_iter().map(|(tenant, days)| Keeping { tenant, days }).collect())
    }

    /// Sets how many days a tenant keeps its messages; `None`: the default.
    pub async fn set_retention(&self, tenant: TenantId, days: Option<i32>) -> DbResult<()> {
        let query = match days {
            Some(days) => statement::<()>(SET).bind::<Int4, _>(tenant.0).bind::<Int4, _>(days),
            None => statement::<()>("DELETE FROM retention WHERE tenant_id = ?").bind::<Int4, _>(tenant.0),
        };
        query.within(Some(tenant)).run(self).await?;
        Ok(())
    }

    /// Removes what is kept no longer, or only says what that would be (`dry`). Ends after about `time`, if given.
    pub async fn retain(&self, default_days: Option<i32>, dry: bool, time: Option<Duration>) -> DbResult<Pass> {
        let until = time.map(|time| Instant::now() + time);
        let mut run = Run { store: self, default_days, dry, until, dropped: Vec::new(), pass: Pass::default() };
        let expiries = run.expiries().await?;
        if let Some(newest) = expiries.iter().map(|expiry| expiry.before).max() {
            run.days(newest).await?;
            run.rows(&expiries).await?;
        }
        Ok(run.pass)
    }
}

impl Run<'_> {
    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn note(&mut self, tenant: Option<String>, table: &str, rows: i64) {
        let same = |one: &&mut Removed| one.tenant == tenant && one.table == table;
        match self.pass.removed.iter_mut().find(same) {
            Some(one) => one.rows += rows,
            None if rows > 0 => self.pass.removed.push(Removed { tenant, table: table.to_owned(), rows }),
            None => {}
        }
    }

    /// Whoever keeps things for a time only, and since when.
    async fn expiries(&self) -> DbResult<Vec<Expiry>> {
        let query = statement::<(Nullable<Int4>, Nullable<Text>, Timestamptz)>(EXPIRIES);
        let query = query.bind::<Nullable<Int4>, _>(self.default_days);
        let rows: Vec<(Option<i32>, Option<String>, DateTime<Utc>)> = query.rows(self.store).await?;
        let expiry = |(id, slug, before): (Option<i32>, Option<String>, DateTime<Utc>)| Expiry {
            tenant: id.map(TenantId).zip(slug),
            before,
        };
        Ok(rows.into_iter().map(expiry).collect())
    }

    /// Drops whole days.
    async fn days(&mut self, newest: DateTime<Utc>) -> DbResult<()> {
        let query = statement::<Date>(DAYS).bind::<Date, _>(newest.date_naive());
        let days: Vec<NaiveDate> = query.rows(self.store).await?;
        for day in days {
            if self.is_late() {
                self.pass.more = true;
                return Ok(());
            }
            let Some((verdict, messages, deliveries, events)) = self.drop_day(day).await? else { continue };
            match verdict.as_str() {
                DROPPED => {}
                WOULD_DROP => self.dropped.push(day),
                ALIVE => {
                    self.pass.kept.push(day);
                    continue;
                }
                _ => continue,
            }
            for (table, rows) in [("messages", messages), ("deliveries", deliveries), ("delivery_events", events)] {
                let table = format!("{table}_{}", day.format("%Y%m%d"));
                self.pass.removed.push(Removed { tenant: None, table, rows });
            }
        }
        Ok(())
    }

    async fn drop_day(&self, day: NaiveDate) -> DbResult<Option<(String, i64, i64, i64)>> {
        let (default_days, dry) = (self.default_days, self.dry);
        let drop = async |conn: &mut AsyncPgConnection| {
            // Counting a day's rows takes longer than any statement of a service may.
            conn.batch_execute("SET LOCAL statement_timeout = '10min'").await?;
            let query = statement::<(Text, Int8, Int8, Int8)>(DROP_DAY)
                .bind::<Date, _>(day)
                .bind::<Nullable<Int4>, _>(default_days)
                .bind::<Bool, _>(dry);
            let rows: Vec<(String, i64, i64, i64)> = RunQueryDsl::load(query, conn).await?;
            Ok::<_, Error>(rows.into_iter().next())
        };
        Ok(AsyncPgConnection::transaction(&mut *self.store.conn().await?, drop).await?)
    }

    /// Deletes the rows of tenants that are through with them before the others.
    async fn rows(&mut self, expiries: &[Expiry]) -> DbResult<()> {
        for expiry in expiries {
            self.messages(expiry).await?;
            for (table, [delete, count]) in TABLES {
                loop {
                    if self.is_late() {
                        self.pass.more = true;
                        return Ok(());
                    }
                    let query = statement::<Int8>(if self.dry { count } else { delete })
                        .bind::<Nullable<Int4>, _>(expiry.id())
                        .bind::<Timestamptz, _>(expiry.before);
                    let query = if self.dry { query } else { query.bind::<Int8, _>(BATCH) };
                    let rows: i64 = query.row(self.store).await?;
                    self.note(expiry.name(), table, rows);
                    if self.dry || rows < BATCH {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn messages(&mut self, expiry: &Expiry) -> DbResult<()> {
        type Counts = (Vec<Uuid>, i64, i64, i64);
        let Some((TenantId(tenant), slug)) = expiry.tenant.clone() else { return Ok(()) };
        let mut after = Uuid::nil();
        loop {
            if self.is_late() {
                self.pass.more = true;
                return Ok(());
            }
            let query =
                statement::<(Array<SqlUuid>, Int8, Int8, Int8)>(if self.dry { COUNT_MESSAGES } else { MESSAGES })
                    .bind::<Int4, _>(tenant)
                    .bind::<SqlUuid, _>(after)
                    .bind::<Timestamptz, _>(expiry.before)
                    .bind::<Array<Date>, _>(self.dropped.clone())
                    .bind::<Int8, _>(BATCH)
                    .within(Some(TenantId(tenant)));
            let (last, messages, deliveries, events): Counts = query.row(self.store).await?;
            for (table, rows) in [("messages", messages), ("deliveries", deliveries), ("delivery_events", events)] {
                self.note(Some(slug.clone()), table, rows);
            }
            let Some(&last) = last.as_slice().first() else { return Ok(()) };
            after = last;
        }
    }
}

/// The verdicts of `drop_day` that mean something here; anything else is a day that somebody keeps.
const DROPPED: &str = "dropped";
const WOULD_DROP: &str = "to be dropped";
const ALIVE: &str = "kept: something in it is still alive";

const LIST: &str = "SELECT t.slug, r.days FROM tenants t LEFT JOIN retention r ON r.tenant_id = t.id ORDER BY t.id";

const SET: &str = "
INSERT INTO retention (tenant_id, days) VALUES (?, ?) ON CONFLICT (tenant_id) DO UPDATE SET days = excluded.days, updated_at = now()";

/// The last row stands for what belongs to nobody known.
const EXPIRIES: &str = "
SELECT x.id, x.slug, ((now() AT TIME ZONE 'UTC')::date - x.days)::timestamp AT TIME ZONE 'UTC'
FROM (SELECT ?::int4 AS days) f
CROSS JOIN LATERAL (
    SELECT t.id, t.slug, coalesce(r.days, f.days) AS days FROM tenants t LEFT JOIN retention r ON r.tenant_id = t.id
    UNION ALL SELECT NULL, NULL, f.days) x
WHERE x.days IS NOT NULL";

const DAYS: &str = "
SELECT d.day FROM (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'messages'::regclass) d
WHERE d.day < ? ORDER BY d.day";

const DROP_DAY: &str = "SELECT verdict, messages, deliveries, events FROM drop_day(?, ?, ?)";

/// Messages of a tenant in the order of their ids, and those among them whose every delivery is over.
macro_rules! over {
    ($rest:literal) => {
        concat!(
            "
WITH picked AS MATERIALIZED (
    SELECT m.id FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS after, ?::timestamptz AS before, ?::date[] AS dropped) f CROSS JOIN messages m
    WHERE m.tenant_id = f.tenant_id AND m.id > f.after AND m.id < uuid7_floor(f.before)
      AND NOT EXISTS (SELECT 1 FROM unnest(f.dropped) AS g(day)
          WHERE m.id >= uuid7_floor(g.day::timestamp AT TIME ZONE 'UTC') AND m.id < uuid7_floor((g.day + 1)::timestamp AT TIME ZONE 'UTC'))
    ORDER BY m.id LIMIT ?
), over AS MATERIALIZED (
    SELECT p.id FROM picked p WHERE NOT EXISTS (
        SELECT 1 FROM deliveries d WHERE d.message_id = p.id AND d.id >= p.id AND d.id < ",
            minute_after!("p.id"),
            " AND (d.state IN ('scheduled', 'queued', 'sending', 'retrying')
               OR EXISTS (SELECT 1 FROM due w WHERE w.delivery_id = d.id)
               OR EXISTS (SELECT 1 FROM parked k WHERE k.delivery_id = d.id)
               OR EXISTS (SELECT 1 FROM dead_letters l WHERE l.delivery_id = d.id AND l.status = 'open')))
), theirs AS MATERIALIZED (
    SELECT d.id FROM over o CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries d WHERE d.message_id = o.id AND d.id >= o.id AND d.id < ",
            minute_after!("o.id"),
            " OFFSET 0) d
)",
            $rest
        )
    };
}

const MESSAGES: &str = over!(
    ", events AS (DELETE FROM delivery_events e USING theirs t WHERE e.delivery_id = t.id RETURNING 1
), gone AS (DELETE FROM deliveries d USING theirs t WHERE d.id = t.id RETURNING 1
), messages_gone AS (DELETE FROM messages m USING over o WHERE m.id = o.id RETURNING 1
)
SELECT ARRAY(SELECT id FROM picked ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM messages_gone), (SELECT count(*) FROM gone),
       (SELECT count(*) FROM events)"
);

const COUNT_MESSAGES: &str = over!(
    "
SELECT ARRAY(SELECT id FROM picked ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM over), (SELECT count(*) FROM theirs),
       (SELECT count(*) FROM theirs t JOIN delivery_events e ON e.delivery_id = t.id)"
);

/// The rows of a tenant (or of nobody known) that are older than a moment, removed in batches, or counted.
macro_rules! older {
    ($table:literal, $moment:literal, $over:literal) => {
        (
            $table,
            [
                concat!(
                    "WITH gone AS (DELETE FROM ",
                    $table,
                    " WHERE ctid = ANY (ARRAY(
    SELECT x.ctid FROM (SELECT ?::int4 AS tenant_id, ?::timestamptz AS before) f CROSS JOIN ",
                    $table,
                    " x
    WHERE x.tenant_id IS NOT DISTINCT FROM f.tenant_id AND x.",
                    $moment,
                    " < f.before",
                    $over,
                    " LIMIT ?)) RETURNING 1)
SELECT count(*) FROM gone"
                ),
                concat!(
                    "SELECT count(*) FROM (SELECT ?::int4 AS tenant_id, ?::timestamptz AS before) f CROSS JOIN ",
                    $table,
                    " x
WHERE x.tenant_id IS NOT DISTINCT FROM f.tenant_id AND x.",
                    $moment,
                    " < f.before",
                    $over
                ),
            ],
        )
    };
}

/// Everything but messages and what hangs on them. A bulk stays as long as a message needs its content.
const TABLES: [(&str, [&str; 2]); 12] = [
    older!("bulks", "created_at", " AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.bulk_id = x.id)"),
    older!(
        "broadcasts",
        "created_at",
        " AND x.finished_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM bulks b WHERE b.id = x.id)"
    ),
    older!("broadcast_pages", "created_at", " AND NOT EXISTS (SELECT 1 FROM broadcasts b WHERE b.id = x.broadcast_id)"),
    older!("inbox", "created_at", ""),
    older!("event_log", "created_at", ""),
    older!("wa_inbound", "created_at", ""),
    older!("waha_events", "created_at", " AND x.status <> 'pending'"),
    older!(
        "provider_refs",
        "created_at",
        " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = x.delivery_id AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))"
    ),
    older!("webhook_events", "at", " AND NOT x.pending"),
    older!("webhook_logs", "created_at", ""),
    older!("dead_letters", "created_at", " AND x.status <> 'open'"),
    older!("replays", "created_at", " AND x.status <> 'running'"),
];
