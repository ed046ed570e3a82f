//! Deletes the rows that their tenants no longer keep: table by table, then the messages of days that stay.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use deliveries::messages::floor;
use diesel::sql_types::{Array, Bool, Int4, Int8, Timestamptz, Uuid as SqlUuid};
use serde::{Deserialize, Serialize};
use store::{
    DbResult,
    sql::{row, sql, statements},
    statement,
};
use uuid::Uuid;

use super::{
    Expiry, Pass, RunOptions,
    days::{bounds, start_of},
};

/// Rows that one statement deletes.
const BATCH: i64 = 1000;
/// Tenants per statement: some milliseconds of work.
const GROUP: usize = 500;

/// The position of a pass; the default is the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// Tables before this one are done.
    table: usize,
    /// In this table or day, the tenants up to this one are done.
    tenant: i32,
    /// After all tables: the days before this one are done.
    day: Option<NaiveDate>,
    /// For this tenant and day, the messages up to this one are done.
    message: Uuid,
}

/// Continues from `position` until the end, which is the start of the next pass, or until time runs out. If a step
/// fails, `position` is after it. Days in `dropped` are left out.
pub(super) async fn run(
    options: RunOptions<'_>,
    position: &mut Position,
    dropped: &[NaiveDate],
    pass: &mut Pass,
) -> DbResult<()> {
    let expiries = options.expiries().await?;
    let mut rows = Rows { options, expiries, dropped, position, pass };
    let mut step = rows.tables().await?;
    if step == Step::Done {
        step = rows.days().await?;
    }
    match step {
        Step::Done => *position = Position::default(),
        Step::Late => pass.more = true,
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    Late,
}

struct Rows<'a> {
    options: RunOptions<'a>,
    expiries: Vec<Expiry>,
    dropped: &'a [NaiveDate],
    position: &'a mut Position,
    pass: &'a mut Pass,
}

impl Rows<'_> {
    /// All tables except messages and their rows.
    async fn tables(&mut self) -> DbResult<Step> {
        while let Some(table) = TABLES.get(self.position.table) {
            if self.groups(table).await? == Step::Late {
                return Ok(Step::Late);
            }
            self.position.table += 1;
            self.position.tenant = 0;
            if let Some(texts) = table.of_nobody {
                self.of_nobody(table.name, texts).await?;
            }
        }
        Ok(Step::Done)
    }

    async fn groups(&mut self, table: &Table) -> DbResult<Step> {
        loop {
            let from = self.expiries.partition_point(|expiry| expiry.tenant.0 <= self.position.tenant);
            let group: Vec<(i32, DateTime<Utc>)> =
                self.expiries.iter().skip(from).take(GROUP).map(|expiry| (expiry.tenant.0, expiry.before)).collect();
            let Some(&(last, _)) = group.last() else { return Ok(Step::Done) };
            let before = std::mem::replace(&mut self.position.tenant, last);
            let rows = self.group(table, group).await?;
            // A full batch means that the same group may have more.
            if !self.options.dry && rows >= BATCH {
                self.position.tenant = before;
            }
            if self.options.is_late() {
                return Ok(Step::Late);
            }
        }
    }

    async fn group(&mut self, table: &Table, group: Vec<(i32, DateTime<Utc>)>) -> DbResult<i64> {
        let (tenants, moments): (Vec<i32>, Vec<DateTime<Utc>>) = group.into_iter().unzip();
        let [delete, count] = table.texts;
        let query = statement::<(Int4, Int8)>(if self.options.dry { count } else { delete })
            .bind::<Array<Int4>, _>(tenants)
            .bind::<Array<Timestamptz>, _>(moments);
        let query = if self.options.dry { query } else { query.bind::<Int8, _>(BATCH) };
        let found: Vec<(i32, i64)> = query.rows(self.options.store).await?;
        for (tenant, rows) in &found {
            let of = self.expiries.binary_search_by_key(tenant, |expiry| expiry.tenant.0);
            let slug = of.ok().and_then(|at| self.expiries.get(at)).map(|expiry| expiry.slug.as_str());
            self.pass.note(slug, table.name, *rows);
        }
        Ok(found.into_iter().map(|(_, rows)| rows).sum())
    }

    /// Rows without a known tenant expire after the default time.
    async fn of_nobody(&mut self, table: &str, [delete, count]: [&'static str; 2]) -> DbResult<()> {
        let Some(days) = self.options.default_days else { return Ok(()) };
        loop {
            let query = statement::<Int8>(if self.options.dry { count } else { delete }).bind::<Int4, _>(days);
            let query = if self.options.dry { query } else { query.bind::<Int8, _>(BATCH) };
            let rows: i64 = query.row(self.options.store).await?;
            self.pass.note(None, table, rows);
            if self.options.dry || rows < BATCH || self.options.is_late() {
                return Ok(());
            }
        }
    }

    /// The messages of days that were not dropped, because a tenant keeps them or they hold deliveries without an end.
    async fn days(&mut self) -> DbResult<Step> {
        let Some(newest) = self.expiries.iter().map(|expiry| expiry.before).max() else { return Ok(Step::Done) };
        loop {
            let passed = self.position.day.and_then(|day| day.pred_opt());
            let Some(day) = self.options.day_after(passed, newest.date_naive()).await? else { return Ok(Step::Done) };
            if self.position.day != Some(day) {
                *self.position = Position { table: TABLES.len(), day: Some(day), ..Position::default() };
            }
            if !self.dropped.contains(&day) && self.day(day).await? == Step::Late {
                return Ok(Step::Late);
            }
            let next = day.checked_add_days(Days::new(1));
            *self.position = Position { table: TABLES.len(), day: next, ..Position::default() };
            if self.options.is_late() {
                return Ok(Step::Late);
            }
        }
    }

    async fn day(&mut self, day: NaiveDate) -> DbResult<Step> {
        let present = self.tenants_of(day).await?;
        let gone = |tenant: &i32| {
            let at = self.expiries.binary_search_by_key(tenant, |expiry| expiry.tenant.0).ok()?;
            self.expiries.get(at).filter(|expiry| expiry.before.date_naive() > day)
        };
        let tenants: Vec<(i32, String)> =
            present.iter().filter_map(gone).map(|expiry| (expiry.tenant.0, expiry.slug.clone())).collect();
        for (tenant, slug) in tenants {
            let done = std::mem::replace(&mut self.position.tenant, tenant);
            let step = self.messages(day, tenant, &slug).await;
            if let Ok(Step::Late) = step {
                self.position.tenant = done;
                return step;
            }
            self.position.message = Uuid::nil();
            step?;
        }
        Ok(Step::Done)
    }

    async fn tenants_of(&mut self, day: NaiveDate) -> DbResult<Vec<i32>> {
        let tenants = Tenants { after: self.position.tenant };
        let present = tenants.query().in_partition(day).rows(self.options.store).await;
        if present.is_err() {
            self.position.day = day.checked_add_days(Days::new(1));
        }
        present
    }

    /// A delivery of the last minute's messages may belong to the next day: for these the statements open all
    /// partitions.
    async fn messages(&mut self, day: NaiveDate, tenant: i32, slug: &str) -> DbResult<Step> {
        let (low, high) = bounds(day);
        let last_minute = floor(start_of(day) + TimeDelta::hours(24) - TimeDelta::minutes(1));
        for (low, high, whole) in [(low, last_minute, false), (last_minute, high, true)] {
            while self.position.message < high {
                let Some(last) = self.batch(day, (tenant, slug), (low, high), whole).await? else { break };
                self.position.message = last;
                if self.options.is_late() {
                    return Ok(Step::Late);
                }
            }
        }
        Ok(Step::Done)
    }

    /// The last message that was read; `None`: there are no more.
    async fn batch(
        &mut self,
        day: NaiveDate,
        (tenant, slug): (i32, &str),
        (low, high): (Uuid, Uuid),
        whole: bool,
    ) -> DbResult<Option<Uuid>> {
        let low = low.max(self.position.message);
        if whole && !self.has_messages(day, tenant, low).await? {
            return Ok(None);
        }
        let (after, limit) = (self.position.message, BATCH);
        let query = if self.options.dry {
            CountMessages { tenant, low, after, high, limit }.query()
        } else {
            DeleteMessages { tenant, low, after, high, limit }.query()
        };
        let query = if whole { query } else { query.in_partition(day) };
        let batch = query.row(self.options.store).await?;
        let counts = [
            ("messages", batch.messages),
            ("deliveries", batch.deliveries),
            ("delivery_events", batch.events),
            ("dead_letters", batch.letters),
        ];
        for (table, rows) in counts {
            self.pass.note(Some(slug), table, rows);
        }
        Ok(batch.last.first().copied())
    }

    async fn has_messages(&self, day: NaiveDate, tenant: i32, low: Uuid) -> DbResult<bool> {
        HasMessages { tenant, low }.query().in_partition(day).row(self.options.store).await
    }
}

struct Table {
    name: &'static str,
    /// Deletes or counts the old rows of some tenants; returns the number of each.
    texts: [&'static str; 2],
    /// The same for rows of no tenant.
    of_nobody: Option<[&'static str; 2]>,
}

/// The rows that are older than their tenants' limits. `$old` compares with the limit through an index that begins with
/// the tenant.
macro_rules! older {
    ($table:literal, $old:literal, $over:literal) => {
        Table {
            name: $table,
            texts: [
                concat!(
                    "WITH gone AS (DELETE FROM ",
                    $table,
                    " WHERE ctid = ANY (ARRAY(
    SELECT x.place FROM unnest(?::int4[], ?::timestamptz[]) AS f(tenant_id, before) CROSS JOIN LATERAL (
        SELECT x.ctid AS place FROM ",
                    $table,
                    " x WHERE x.tenant_id = f.tenant_id AND ",
                    $old,
                    $over,
                    " OFFSET 0) x LIMIT ?)) RETURNING tenant_id)
SELECT tenant_id, count(*) FROM gone GROUP BY tenant_id"
                ),
                concat!(
                    "SELECT f.tenant_id, count(*) FROM unnest(?::int4[], ?::timestamptz[]) AS f(tenant_id, before) CROSS JOIN LATERAL (
    SELECT 1 FROM ",
                    $table,
                    " x WHERE x.tenant_id = f.tenant_id AND ",
                    $old,
                    $over,
                    " OFFSET 0) x GROUP BY f.tenant_id"
                ),
            ],
            of_nobody: None,
        }
    };
    ($table:literal, $old:literal, $over:literal, or nobody) => {
        Table {
            of_nobody: Some([
                concat!(
                    "WITH gone AS (DELETE FROM ",
                    $table,
                    " WHERE ctid = ANY (ARRAY(SELECT x.ctid FROM ",
                    $table,
                    " x WHERE x.tenant_id IS NULL AND x.created_at < ((now() AT TIME ZONE 'UTC')::date - ?::int4)::timestamp AT TIME ZONE 'UTC'",
                    $over,
                    " LIMIT ?)) RETURNING 1)
SELECT count(*) FROM gone"
                ),
                concat!(
                    "SELECT count(*) FROM ",
                    $table,
                    " x WHERE x.tenant_id IS NULL AND x.created_at < ((now() AT TIME ZONE 'UTC')::date - ?::int4)::timestamp AT TIME ZONE 'UTC'",
                    $over
                ),
            ]),
            ..older!($table, $old, $over)
        }
    };
}

/// A bulk stays while a message needs its content. A dead letter stays while it holds the only known outcome of a
/// delivery.
const TABLES: [Table; 12] = [
    older!("bulks", "x.created_at < f.before", " AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.bulk_id = x.id)"),
    older!(
        "broadcasts",
        "x.created_at < f.before",
        " AND x.finished_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM bulks b WHERE b.id = x.id)"
    ),
    older!(
        "broadcast_pages",
        "x.created_at < f.before",
        " AND NOT EXISTS (SELECT 1 FROM broadcasts b WHERE b.id = x.broadcast_id)"
    ),
    older!("inbox", "x.created_at < f.before", ""),
    older!("event_log", "x.created_at < f.before", ""),
    older!("wa_inbound", "x.created_at < f.before", ""),
    older!("waha_events", "x.created_at < f.before", " AND x.status <> 'pending'"),
    older!(
        "provider_refs",
        "x.created_at < f.before",
        " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = x.delivery_id AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))"
    ),
    older!("webhook_events", "x.at < f.before", " AND NOT x.pending"),
    older!("webhook_logs", "x.created_at < f.before", ""),
    older!(
        "dead_letters",
        "x.created_at < f.before",
        " AND NOT EXISTS (SELECT FROM unread_events u WHERE u.id = x.id)",
        or nobody
    ),
    older!("replays", "x.created_at < f.before", " AND x.status <> 'running'", or nobody),
];

row! {
    /// The deleted or counted rows of a batch of messages.
    struct Batch {
        /// The last of these messages; empty if there are no more.
        last: Vec<Uuid> as Array<SqlUuid>,
        messages: i64 as Int8,
        deliveries: i64 as Int8,
        events: i64 as Int8,
        letters: i64 as Int8,
    }
}

sql!(Tenants in "retention/rows/tenants.sql" { after: i32 as Int4 } -> i32 as Int4);
sql!(HasMessages in "retention/rows/has_messages.sql" { tenant: i32 as Int4, low: Uuid as SqlUuid } -> bool as Bool);
sql!(DeleteMessages in "retention/rows/delete_messages.sql" {
    tenant: i32 as Int4, low: Uuid as SqlUuid, after: Uuid as SqlUuid, high: Uuid as SqlUuid, limit: i64 as Int8
} -> Batch);
sql!(CountMessages in "retention/rows/count_messages.sql" {
    tenant: i32 as Int4, low: Uuid as SqlUuid, after: Uuid as SqlUuid, high: Uuid as SqlUuid, limit: i64 as Int8
} -> Batch);
statements!(Tenants, HasMessages, DeleteMessages, CountMessages);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_of_another_version_that_lacks_parts_is_read() {
        let position: Position = serde_json::from_str(r#"{"table": 3, "tenant": 7, "later": true}"#).unwrap();
        assert_eq!(position, Position { table: 3, tenant: 7, ..Position::default() });
    }

    #[test]
    fn every_text_compares_the_tenant_by_its_index() {
        for table in &TABLES {
            for text in table.texts {
                assert!(
                    text.contains("x.tenant_id = f.tenant_id") && !text.contains("DISTINCT FROM"),
                    "{}",
                    table.name
                );
            }
        }
    }
}
