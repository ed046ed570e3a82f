//! Drops the partitions of days that no tenant keeps.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use diesel::sql_types::{Bool, Date, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{Pass, RunOptions, Surveyed};
use crate::{DbResult, messages::floor, statement};

/// Blocks of a partition read in one statement: 64 MB.
const BLOCKS: i64 = 8192;
/// Dead letters deleted in one statement.
const LETTERS: i64 = 1000;
/// How often a day whose tables are in use is tried, and the pause before the next try. A try takes no lock or all of them, and
/// waits for none.
const TRIES: usize = 25;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// What becomes of a day.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DayOutcome {
    /// It was dropped, or would be.
    Dropped,
    /// Something in it is alive.
    Alive,
    /// A tenant keeps it, or it is gone already.
    InboundWebhook,
    /// Its tables were in use.
    Busy,
    /// The time was up.
    Late,
}

/// Goes over all days that are old enough for some tenant; returns those that were dropped, or would be. A day that stays does not
/// keep the next one from being looked at.
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
            Ok(DayOutcome::InboundWebhook) => {}
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
    let standing = ask(options, "SELECT day_standing(?, ?)", day).await?;
    let outcome = match standing.as_str() {
        "free" => survey(options, day, surveyed).await?,
        "alive" => DayOutcome::Alive,
        _ => DayOutcome::InboundWebhook,
    };
    if outcome != DayOutcome::Dropped {
        return Ok(outcome);
    }
    let rows = sizes(options, day).await?;
    let outcome = if options.dry { outcome } else { drop_day(options, day, pass).await? };
    if outcome == DayOutcome::Dropped {
        surveyed.remove(&day);
        for (table, rows) in ["messages", "deliveries", "delivery_events"].into_iter().zip(rows) {
            pass.note(None, &format!("{table}_{}", day.format("%Y%m%d")), rows);
        }
    }
    Ok(outcome)
}

async fn ask(options: RunOptions<'_>, text: &'static str, day: NaiveDate) -> DbResult<String> {
    let query = statement::<Text>(text).bind::<Date, _>(day).bind::<Nullable<Int4>, _>(options.default_days);
    query.row(options.store).await
}

/// Reads the day's deliveries, a part at a time, for one without an end. What waits is found by its due row and never gets here;
/// this is for deliveries that nothing points at, which would be a defect.
async fn survey(options: RunOptions<'_>, day: NaiveDate, surveyed: &mut Surveyed) -> DbResult<DayOutcome> {
    let blocks: i64 = statement::<Int8>(BLOCKS_OF).on_day(day).row(options.store).await?;
    let first = surveyed.entry(day).or_default();
    while *first < blocks {
        let query = statement::<Bool>(SURVEY).on_day(day).bind::<Int8, _>(*first).bind::<Int8, _>(*first + BLOCKS);
        if query.row::<bool>(options.store).await? {
            return Ok(DayOutcome::Alive);
        }
        *first += BLOCKS;
        if options.is_late() {
            return Ok(DayOutcome::Late);
        }
    }
    Ok(DayOutcome::Dropped)
}

/// Rows of the three partitions: counted where that is quick.
async fn sizes(options: RunOptions<'_>, day: NaiveDate) -> DbResult<[i64; 3]> {
    let query = statement::<(Int8, Int8, Int8)>(SIZES).on_day(day);
    let (messages, deliveries, events) = query.row(options.store).await?;
    Ok([messages, deliveries, events])
}

async fn drop_day(options: RunOptions<'_>, day: NaiveDate, pass: &mut Pass) -> DbResult<DayOutcome> {
    if !forget_letters(options, day, pass).await? {
        return Ok(DayOutcome::Late);
    }
    for _ in 0..TRIES {
        match ask(options, "SELECT drop_partitions(?, ?)", day).await?.as_str() {
            "dropped" => return Ok(DayOutcome::Dropped),
            "busy" => tokio::time::sleep(PAUSE).await,
            "alive" => return Ok(DayOutcome::Alive),
            _ => return Ok(DayOutcome::InboundWebhook),
        }
    }
    Ok(DayOutcome::Busy)
}

/// The dead letters of the day's deliveries go with them: a deleted delivery cannot be replayed. Says whether all are gone; else the
/// time was up.
async fn forget_letters(options: RunOptions<'_>, day: NaiveDate, pass: &mut Pass) -> DbResult<bool> {
    loop {
        let (low, high) = bounds(day);
        let query = statement::<Int8>(FORGET_LETTERS).bind::<SqlUuid, _>(low).bind::<SqlUuid, _>(high);
        let letters: i64 = query.bind::<Int8, _>(LETTERS).row(options.store).await?;
        pass.note(None, "dead_letters", letters);
        if letters < LETTERS {
            return Ok(true);
        }
        if options.is_late() {
            return Ok(false);
        }
    }
}

/// The smallest id of a day, and that of the next one.
pub(super) fn bounds(day: NaiveDate) -> (Uuid, Uuid) {
    (floor(start_of(day)), floor(start_of(day.checked_add_days(Days::new(1)).unwrap_or(day))))
}

pub(super) fn start_of(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

const BLOCKS_OF: &str = "SELECT pg_relation_size('deliveries@') / current_setting('block_size')::int8";

const SURVEY: &str = "
SELECT EXISTS (SELECT FROM deliveries@
    WHERE ctid >= ('(' || ?::int8 || ',0)')::tid AND ctid < ('(' || ?::int8 || ',0)')::tid
      AND state IN ('scheduled', 'queued', 'sending', 'retrying'))";

/// As many as there are, or as the last ANALYZE found.
macro_rules! size {
    ($table:literal) => {
        concat!(
            "CASE WHEN pg_relation_size('",
            $table,
            "@') < 67108864 THEN (SELECT count(*) FROM ",
            $table,
            "@) ELSE (SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = '",
            $table,
            "@'::regclass) END"
        )
    };
}

const SIZES: &str = concat!("SELECT ", size!("messages"), ", ", size!("deliveries"), ", ", size!("delivery_events"));

const FORGET_LETTERS: &str = "
WITH gone AS (
    DELETE FROM dead_letters WHERE id = ANY (ARRAY(
        SELECT id FROM dead_letters WHERE delivery_id >= ? AND delivery_id < ? ORDER BY delivery_id LIMIT ?)) RETURNING 1)
SELECT count(*) FROM gone";
