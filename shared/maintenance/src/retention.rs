//! Retention: removes the rows that tenants no longer keep.
//!
//! Two loops do this. [`days`] drops the partitions of days that no tenant keeps. It runs queries with an index first,
//! and reads the deliveries of a day only if nothing else keeps it. [`rows`] deletes the other rows: it goes through
//! the tables in groups of tenants, then through the remaining days, and continues where it ended. Deliveries without
//! an end stay, with their messages. A dead letter goes with its message, open or not.

pub(crate) mod days;
pub(crate) mod rows;

use std::{collections::HashMap, time::Instant};

use chrono::{DateTime, NaiveDate, Utc};
use diesel::sql_types::{Bool, Date, Int4, Nullable, Text, Timestamptz};
use domain::TenantId;
use serde::Serialize;
use store::{
    DbResult, Scoped, Store,
    sql::{row, sql, statements},
};

use crate::RetentionStore;

pub use rows::Position;

row! {
    /// How long a tenant keeps its messages.
    #[derive(Clone, Debug, Serialize)]
    pub struct Keeping {
        /// The tenant.
        pub tenant: String as Text,
        /// The tenant's own number of days; `None`: the default.
        pub days: Option<i32> as Nullable<Int4>,
    }
}

/// The rows that a pass removed, or would remove, from one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The tenant of the rows; `None`: all tenants, or an unknown one.
    pub tenant: Option<String>,
    /// The table, or the partition that was dropped.
    pub table: String,
    /// The number of rows; an estimate for a large partition.
    pub rows: i64,
}

/// The result of a pass.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pass {
    /// The rows that were removed, or would be.
    pub removed: Vec<Removed>,
    /// Days that no tenant keeps but that stay, because they hold deliveries without an end.
    pub kept: Vec<NaiveDate>,
    /// Whether time ran out before the work.
    pub more: bool,
    /// Whether a day could not be dropped because its tables were in use.
    pub busy: bool,
}

/// For each day, the block of the partition up to which all deliveries were found ended. A later pass continues there.
pub type Surveyed = HashMap<NaiveDate, i64>;

/// A tenant with a retention time.
struct Expiry {
    tenant: TenantId,
    slug: String,
    before: DateTime<Utc>,
}

/// The options of a pass: its limits and its end.
#[derive(Clone, Copy)]
struct RunOptions<'a> {
    store: &'a Store,
    /// Days of retention for a tenant without a value of its own.
    default_days: Option<i32>,
    /// Only says what would go.
    dry: bool,
    until: Option<Instant>,
}

impl RunOptions<'_> {
    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// The tenants with a retention time, in the order of their ids.
    async fn expiries(&self) -> DbResult<Vec<Expiry>> {
        let rows = Expiries { default_days: self.default_days }.query().rows(self.store).await?;
        let expiry = |ExpiryRow { tenant, slug, before }| Expiry { tenant: TenantId(tenant), slug, before };
        Ok(rows.into_iter().map(expiry).collect())
    }

    /// The first day with partitions after `day` and before `end`.
    async fn day_after(&self, day: Option<NaiveDate>, end: NaiveDate) -> DbResult<Option<NaiveDate>> {
        DayAfter { day, end }.query().row(self.store).await
    }
}

impl Pass {
    fn note(&mut self, tenant: Option<&str>, table: &str, rows: i64) {
        let same = |one: &&mut Removed| one.tenant.as_deref() == tenant && one.table == table;
        match self.removed.iter_mut().find(same) {
            Some(one) => one.rows += rows,
            None if rows > 0 => {
                self.removed.push(Removed { tenant: tenant.map(str::to_owned), table: table.to_owned(), rows });
            }
            None => {}
        }
    }
}

impl RetentionStore<'_> {
    /// The retention of every tenant.
    pub async fn list(self) -> DbResult<Vec<Keeping>> {
        List {}.query().rows(self.store).await
    }

    /// Sets the days for which a tenant keeps its messages; `None`: the default.
    pub async fn set(self, tenant: TenantId, days: Option<i32>) -> DbResult<()> {
        let query = match days {
            Some(days) => Set { tenant: tenant.0, days }.query(),
            None => Unset { tenant: tenant.0 }.query(),
        };
        query.within(Some(tenant)).run(self.store).await?;
        Ok(())
    }

    /// Removes the expired rows in one run, or only reports them (`dry`).
    pub async fn retain(self, default_days: Option<i32>, dry: bool) -> DbResult<Pass> {
        let options = RunOptions { store: self.store, default_days, dry, until: None };
        let mut pass = Pass::default();
        let dropped = days::run(options, &mut Surveyed::new(), &mut pass).await?;
        rows::run(options, &mut Position::default(), &dropped, &mut pass).await?;
        Ok(pass)
    }

    /// Drops the days that no tenant keeps, until a time. `surveyed` is for the next call.
    pub async fn drop_days(self, default_days: Option<i32>, until: Instant, surveyed: &mut Surveyed) -> DbResult<Pass> {
        let options = RunOptions { store: self.store, default_days, dry: false, until: Some(until) };
        let mut pass = Pass::default();
        days::run(options, surveyed, &mut pass).await?;
        Ok(pass)
    }

    /// Deletes the rows that their tenants no longer keep, from the end of the last call, until a time.
    pub async fn remove_rows(self, default_days: Option<i32>, until: Instant) -> DbResult<Pass> {
        let options = RunOptions { store: self.store, default_days, dry: false, until: Some(until) };
        let (mut position, mut pass) = (self.load_position().await?, Pass::default());
        let ended = rows::run(options, &mut position, &[], &mut pass).await;
        // A failed step is passed over too: the next pass reaches it again, and the steps after it do not wait.
        self.save_position(&position).await?;
        ended.map(|()| pass)
    }

    /// A transaction that holds the lock of this name until it ends; `None`: another process holds it. It has no
    /// snapshot, so it delays no vacuum. The server ends it after five idle minutes, far longer than a turn takes.
    pub async fn alone(self, name: &'static str) -> DbResult<Option<Scoped>> {
        let mut conn = self.store.transaction().await?;
        let got = Lock { name }.query().row_on(&mut conn).await;
        match got {
            Ok(true) => Ok(Some(conn)),
            other => conn.done(other).await.map(|_| None),
        }
    }

    async fn load_position(self) -> DbResult<Position> {
        let json = LoadPosition {}.query().first(self.store).await?;
        // A position of another version that cannot be read: begin at the start.
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default())
    }

    async fn save_position(self, position: &Position) -> DbResult<()> {
        let position = serde_json::to_string(position).unwrap_or_default();
        SavePosition { position }.query().run(self.store).await.map(drop)
    }
}

row! {
    struct ExpiryRow {
        tenant: i32 as Int4,
        slug: String as Text,
        before: DateTime<Utc> as Timestamptz,
    }
}

sql!(List in "retention/list.sql" {} -> Keeping);
sql!(Set in "retention/set.sql" { tenant: i32 as Int4, days: i32 as Int4 });
sql!(Unset in "retention/unset.sql" { tenant: i32 as Int4 });
sql!(Expiries in "retention/expiries.sql" { default_days: Option<i32> as Nullable<Int4> } -> ExpiryRow);
sql!(DayAfter in "retention/day_after.sql" {
    day: Option<NaiveDate> as Nullable<Date>, end: NaiveDate as Date
} -> Option<NaiveDate> as Nullable<Date>);
sql!(Lock in "retention/lock.sql" { name: &'static str as Text } -> bool as Bool);
sql!(LoadPosition in "retention/load_position.sql" {} -> String as Text);
sql!(SavePosition in "retention/save_position.sql" { position: String as Text });
statements!(List, Set, Unset, Expiries, DayAfter, Lock, LoadPosition, SavePosition);
