//! Drops the partitions of days that no tenant keeps.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use deliveries::messages::floor;
use diesel::sql_types::{Bool, Date, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use super::{Pass, RunOptions, Surveyed};

/// Blocks of a partition read in one statement: 64 MB.
const BLOCKS: i64 = 8192;
/// Dead letters deleted in one statement.
const LETTERS: i64 = 1000;
/// How often to try a day whose tables are in use, and the pause between tries. A try takes all locks or none, and
/// waits for none.
const TRIES: usize = 25;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The decision about a day.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DayOutcome {
    /// It was dropped, or would be.
    Dropped,
    /// Something in it is alive.
    Alive,
    /// A tenant keeps it, or it is already dropped.
    StillNeeded,
    /// Its tables were in use.
    Busy,
    /// The time was up.
    Late,
}

/// Goes through all days that are old enough for some tenant; returns those that were dropped, or would be. A day that
/// stays does not stop the next one.
pub(super) async fn run(options: RunOptions<'_>, surveyed: &mut Surveyed, pass: &mut Pass) -> DbResult<Vec<NaiveDate>> {
    let mut dropped = Vec::new();
    let Some(newest) = options.expiries().await?.into_iter().map(|expiry| expiry.before).max() else {
        return Ok(dropped);
    };
    let (mut day, mut failed) = (None, Ok(()));
    while let Some(next) = options.day_after(day, newest.date_naive()).await? {
        day = Some(next);
        match one(options, next, surveyed, pass).await {
            Ok(DayOutcome::Dropped) => dropped.push(next),
            Ok(DayOutcome::Alive) => pass.kept.push(next),
            Ok(DayOutcome::StillNeeded) => {}
            Ok(DayOutcome::Busy) => pass.busy = true,
            Ok(DayOutcome::Late) => pass.more = true,
            Err(error) => failed = Err(error),
        }
        if pass.busy || pass.more {
            break;
        }
    }
    failed.map(|()| dropped)
}

async fn one(
    options: RunOptions<'_>,
    day: NaiveDate,
    surveyed: &mut Surveyed,
    pass: &mut Pass,
) -> DbResult<DayOutcome> {
    if options.is_late() {
        return Ok(DayOutcome::Late);
    }
    let standing = Standing { day, default_days: options.default_days }.query().row(options.store).await?;
    let outcome = match standing.as_str() {
        "free" => survey(options, day, surveyed).await?,
        "alive" => DayOutcome::Alive,
        _ => DayOutcome::StillNeeded,
    };
    if outcome != DayOutcome::Dropped {
        return Ok(outcome);
    }
    let size = Sizes {}.query().in_partition(day).row(options.store).await?;
    let outcome = if options.dry { outcome } else { drop_day(options, day, pass).await? };
    if outcome == DayOutcome::Dropped {
        surveyed.remove(&day);
        let sizes =
            [("messages", size.messages), ("deliveries", size.deliveries), ("delivery_events", size.delivery_events)];
        for (table, rows) in sizes {
            pass.note(None, &format!("{table}_{}", day.format("%Y%m%d")), rows);
        }
    }
    Ok(outcome)
}

/// Reads the day's deliveries in parts and looks for one without an end. A waiting delivery is found earlier, by its
/// due row. This finds deliveries without any such row, which would be a defect.
async fn survey(options: RunOptions<'_>, day: NaiveDate, surveyed: &mut Surveyed) -> DbResult<DayOutcome> {
    let blocks = Blocks {}.query().in_partition(day).row(options.store).await?;
    let first = surveyed.entry(day).or_default();
    while *first < blocks {
        let survey = HasUnfinished { first: *first, end: *first + BLOCKS };
        if survey.query().in_partition(day).row(options.store).await? {
            return Ok(DayOutcome::Alive);
        }
        *first += BLOCKS;
        if options.is_late() {
            return Ok(DayOutcome::Late);
        }
    }
    Ok(DayOutcome::Dropped)
}

async fn drop_day(options: RunOptions<'_>, day: NaiveDate, pass: &mut Pass) -> DbResult<DayOutcome> {
    if !forget_letters(options, day, pass).await? {
        return Ok(DayOutcome::Late);
    }
    for _ in 0..TRIES {
        let dropped = DropDay { day, default_days: options.default_days }.query().row(options.store).await?;
        match dropped.as_str() {
            "dropped" => return Ok(DayOutcome::Dropped),
            "busy" => tokio::time::sleep(PAUSE).await,
            "alive" => return Ok(DayOutcome::Alive),
            _ => return Ok(DayOutcome::StillNeeded),
        }
    }
    Ok(DayOutcome::Busy)
}

/// Deletes the dead letters of the day's deliveries, because a deleted delivery cannot be replayed. Returns whether all
/// are deleted; otherwise time ran out.
async fn forget_letters(options: RunOptions<'_>, day: NaiveDate, pass: &mut Pass) -> DbResult<bool> {
    loop {
        let (low, high) = bounds(day);
        let letters = ForgetLetters { low, high, limit: LETTERS }.query().row(options.store).await?;
        pass.note(None, "dead_letters", letters);
        if letters < LETTERS {
            return Ok(true);
        }
        if options.is_late() {
            return Ok(false);
        }
    }
}

/// The smallest id of a day, and of the next day.
pub(super) fn bounds(day: NaiveDate) -> (Uuid, Uuid) {
    (floor(start_of(day)), floor(start_of(day.checked_add_days(Days::new(1)).unwrap_or(day))))
}

pub(super) fn start_of(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

row! {
    /// The rows of the three partitions, counted if that is quick.
    struct Size {
        messages: i64 as Int8,
        deliveries: i64 as Int8,
        delivery_events: i64 as Int8,
    }
}

sql!(Standing in "retention/days/standing.sql" {
    day: NaiveDate as Date, default_days: Option<i32> as Nullable<Int4>
} -> String as Text);
sql!(DropDay in "retention/days/drop.sql" {
    day: NaiveDate as Date, default_days: Option<i32> as Nullable<Int4>
} -> String as Text);
sql!(Blocks in "retention/days/blocks.sql" {} -> i64 as Int8);
sql!(HasUnfinished in "retention/days/has_unfinished.sql" { first: i64 as Int8, end: i64 as Int8 } -> bool as Bool);
sql!(Sizes in "retention/days/sizes.sql" {} -> Size);
sql!(ForgetLetters in "retention/days/forget_letters.sql" {
    low: Uuid as SqlUuid, high: Uuid as SqlUuid, limit: i64 as Int8
} -> i64 as Int8);
statements!(Standing, DropDay, Blocks, HasUnfinished, Sizes, ForgetLetters);
