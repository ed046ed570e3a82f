//! Counts of deliveries by outcome, per day of acceptance. The commit that writes the log also writes the counts, so no
//! query scans deliveries.
//!
//! A delivery counts once for each kind of event it ever had, however often it is replayed. Its row holds these kinds
//! (`reached`) and the kinds that the last change added (`fresh`). Both are written under the row's lock, so two
//! writers never count the same kind. A statement that writes to the delivery log sets both in its update and adds them
//! to the counts in its part `daily`.

use chrono::NaiveDate;
use diesel::sql_types::{Array, Date, Int4, Int8, Nullable, Text};
use domain::{Channel, TenantId};
use store::{
    DbResult,
    sql::{row, sql, statements},
};

use crate::AnalyticsStore;

/// Counts deliveries that a provider took, or that went wrong.
pub const TRIED: &str = "tried";
/// Counts deliveries that failed, bounced or died.
pub const WRONG: &str = "wrong";

/// Selects deliveries; `None` does not restrict.
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

row! {
    /// The number of deliveries that ever had an event of a kind.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct KindCount {
        /// The grouping: `total`, `day`, `channel`, `provider`, `template` or `category`.
        pub by: String as Text,
        /// Which of those; empty: none.
        pub key: String as Text,
        /// The kind; or [`TRIED`] or [`WRONG`].
        pub kind: String as Text,
        /// How many.
        pub count: i64 as Int8,
    }
}

impl AnalyticsStore<'_> {
    /// The counts of a tenant's deliveries, in total and by each of `by`.
    pub async fn delivery_counts(
        self,
        tenant: TenantId,
        filter: AnalyticsFilter,
        by: Vec<&'static str>,
    ) -> DbResult<Vec<KindCount>> {
        let AnalyticsFilter { from, to, channel, provider, template, category } = filter;
        let channel = channel.map(Channel::as_str);
        let counts = Counts { tenant: tenant.0, from_day: from, to_day: to, channel, provider, template, category, by };
        counts.query().within(Some(tenant)).rows(self.store).await
    }
}

sql!(Counts in "analytics/counts.sql" {
    tenant: i32 as Int4,
    from_day: NaiveDate as Date,
    to_day: NaiveDate as Date,
    channel: Option<&'static str> as Nullable<Text>,
    provider: Option<String> as Nullable<Text>,
    template: Option<String> as Nullable<Text>,
    category: Option<String> as Nullable<Text>,
    by: Vec<&'static str> as Array<Text>,
} -> KindCount);
statements!(Counts);
