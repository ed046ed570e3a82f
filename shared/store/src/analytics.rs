//! What deliveries came to, per day of their acceptance: counted in the commit that writes the log, so that nothing is ever scanned.
//!
//! A delivery counts once for each kind of event it ever had, however often it is replayed. Its row says which kinds those are
//! (`reached`) and which of them the last change added (`fresh`); both are written under the row's lock, so two writers never
//! count the same. A statement that writes to the delivery log adds [`reach!`] to its update and [`daily!`] to its statement.

use chrono::NaiveDate;
use diesel::sql_types::{Array, Date, Int4, Int8, Nullable, Text};
use domain::{Channel, EventKind, TenantId};

use super::{DbResult, Store, statement};

/// What an update of `deliveries d` sets, so that the kinds whose bits are `$bits` count, unless they did before.
macro_rules! reach {
    ($bits:literal) => {
        concat!("reached = d.reached | ", $bits, ", fresh = ", $bits, " & ~d.reached")
    };
}

/// Adds to the counts what updates have added to deliveries. `$rows` gives `id, tenant_id, channel, provider, category, template,
/// fresh`. Rows are taken in one order, so that two writers never wait for each other in a circle.
macro_rules! daily {
    ($rows:literal) => {
        concat!(
            "
    INSERT INTO daily_counts (day, tenant_id, channel, provider, category, template, kind, n)
    SELECT r.day, r.tenant_id, r.channel, r.provider, r.category, r.template, k.kind, sum(r.n)
    FROM (SELECT uuid7_day(f.id) AS day, f.tenant_id, f.channel, coalesce(f.provider, '') AS provider, coalesce(f.category, '') AS category,
                 coalesce(f.template, '') AS template, f.fresh, count(*) AS n
          FROM (",
            $rows,
            ") AS f (id, tenant_id, channel, provider, category, template, fresh)
          WHERE f.fresh <> 0 GROUP BY 1, 2, 3, 4, 5, 6, 7) r
    JOIN (VALUES (1, 'sent'), (2, 'delivered'), (4, 'failed'), (8, 'bounced'), (16, 'dead'), (32, 'suppressed'), (64, 'expired'),
                 (128, 'cancelled'), (256, 'read'), (512, 'opened'), (1024, 'clicked'), (2048, 'complained'),
                 (4096, 'tried'), (8192, 'wrong')) AS k (bit, kind)
      ON r.fresh & k.bit <> 0
    GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (tenant_id, day, channel, provider, category, template, kind) DO UPDATE SET n = daily_counts.n + excluded.n"
        )
    };
}

pub(super) use {daily, reach};

/// Every kind that is counted.
pub const COUNTED: [EventKind; 12] = [
    EventKind::Sent,
    EventKind::Delivered,
    EventKind::Failed,
    EventKind::Bounced,
    EventKind::Dead,
    EventKind::Suppressed,
    EventKind::Expired,
    EventKind::Cancelled,
    EventKind::Read,
    EventKind::Opened,
    EventKind::Clicked,
    EventKind::Complained,
];

/// Counts deliveries that a provider took, or that went wrong.
pub const TRIED: &str = "tried";
/// Counts deliveries that failed, came back or died.
pub const WRONG: &str = "wrong";

/// Which deliveries; what is `None` does not restrict.
#[derive(Clone, Debug)]
pub struct AnalyticsFilter {
    /// Accepted on this day or later.
    pub from: NaiveDate,
    /// Accepted on this day or before.
    pub to: NaiveDate,
    /// On this channel.
    pub channel: Option<Channel>,
    /// By this provider.
    pub provider: Option<String>,
    /// From this template.
    pub template: Option<String>,
    /// About this.
    pub category: Option<String>,
}

/// How many deliveries ever had an event of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindCount {
    /// By what they are gathered: `total`, `day`, `channel`, `provider`, `template` or `category`.
    pub by: String,
    /// Which of those; empty: none.
    pub key: String,
    /// The kind; or [`TRIED`] or [`WRONG`].
    pub kind: String,
    /// How many.
    pub count: i64,
}

impl Store {
    /// What a tenant's deliveries came to: in all, and by each of `by`.
    pub async fn delivery_counts(
        &self,
        tenant: TenantId,
        filter: AnalyticsFilter,
        by: Vec<&'static str>,
    ) -> DbResult<Vec<KindCount>> {
        let query = statement::<(Text, Text, Text, Int8)>(COUNTS)
            .bind::<Int4, _>(tenant.0)
            .bind::<Date, _>(filter.from)
            .bind::<Date, _>(filter.to)
            .bind::<Nullable<Text>, _>(filter.channel.map(Channel::as_str))
            .bind::<Nullable<Text>, _>(filter.provider)
            .bind::<Nullable<Text>, _>(filter.template)
            .bind::<Nullable<Text>, _>(filter.category)
            .bind::<Array<Text>, _>(by);
        let rows: Vec<(String, String, String, i64)> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().map(|(by, key, kind, count)| KindCount { by, key, kind, count }).collect())
    }
}

/// One walk over the days, whatever is asked; each kind of sums is small.
const COUNTS: &str = "
SELECT x.by, x.key, x.kind, x.n FROM (
    SELECT CASE WHEN grouping(c.day) = 0 THEN 'day' WHEN grouping(c.channel) = 0 THEN 'channel' WHEN grouping(c.provider) = 0 THEN 'provider'
                WHEN grouping(c.template) = 0 THEN 'template' WHEN grouping(c.category) = 0 THEN 'category' ELSE 'total' END AS by,
           coalesce(c.day::text, c.channel, c.provider, c.template, c.category, '') AS key, c.kind, sum(c.n)::int8 AS n
    FROM (SELECT ?::int4 AS tenant_id, ?::date AS from_day, ?::date AS to_day, ?::text AS channel, ?::text AS provider, ?::text AS template,
                 ?::text AS category) f
    JOIN daily_counts c ON c.tenant_id = f.tenant_id AND c.day >= f.from_day AND c.day <= f.to_day
    WHERE (f.channel IS NULL OR c.channel = f.channel) AND (f.provider IS NULL OR c.provider = f.provider)
      AND (f.template IS NULL OR c.template = f.template) AND (f.category IS NULL OR c.category = f.category)
    GROUP BY GROUPING SETS ((c.kind), (c.day, c.kind), (c.channel, c.kind), (c.provider, c.kind), (c.template, c.kind), (c.category, c.kind))) x
WHERE x.by = 'total' OR x.by = ANY (?::text[])
ORDER BY 1, 2";
