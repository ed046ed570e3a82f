//! One statement that returns when each kind of work is due. So the tasks of a scheduler need not ask one by one,
//! which would be most of the load of an idle Posthaste.
//!
//! An index keeps the entries of deleted rows as long as some transaction may still see these rows, and a scan from its
//! low end visits all of them at each poll. So a poll starts at a floor: the first due time of the last poll, less
//! [`FLOOR_MARGIN`].

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Array, Nullable, Timestamptz};
use store::{
    DbResult,
    sql::{row, sql, statements},
};

use crate::PollStore;

/// A statement ends after 10 s, so its rows become visible at most that long after they are due. A poll without
/// floors finds any row that is due earlier.
const FLOOR_MARGIN: TimeDelta = TimeDelta::seconds(15);

/// A kind of work that waits in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkKind {
    /// Deliveries that are scheduled, held or retried.
    Due,
    /// Claims whose worker may be lost.
    Watches,
    /// Deliveries in the line of a session with a free slot.
    Sessions,
    /// Deliveries in a tenant's share.
    Shares,
    /// Webhooks of WAHA.
    WahaEvents,
    /// Webhooks of other providers.
    ProviderEvents,
    /// Events for webhook configurations.
    WebhookEvents,
    /// Broadcasts that run or are due to start.
    Broadcasts,
    /// Pages of broadcasts to count.
    BroadcastPages,
    /// Digests to close.
    Digests,
    /// Replays of dead letters.
    Replays,
    /// Outbox rows that were not published in time.
    Outbox,
}

impl WorkKind {
    /// All kinds, in the order in which `poll.sql` returns them.
    const ALL: [Self; 12] = [
        Self::Due,
        Self::Watches,
        Self::Sessions,
        Self::Shares,
        Self::WahaEvents,
        Self::ProviderEvents,
        Self::WebhookEvents,
        Self::Broadcasts,
        Self::BroadcastPages,
        Self::Digests,
        Self::Replays,
        Self::Outbox,
    ];
}

/// For each kind of work, a moment before which the last poll found nothing due. Empty: nothing is known.
pub type Floors = HashMap<WorkKind, DateTime<Utc>>;

/// The result of a poll.
#[derive(Clone, Debug)]
pub struct Poll {
    /// The time of the poll, by the database's clock.
    pub now: DateTime<Utc>,
    /// When the first item of each kind is due; a kind without waiting items is missing.
    pub due: HashMap<WorkKind, DateTime<Utc>>,
}

impl Poll {
    /// How late the first item of a kind is, in seconds; 0 if none is late.
    pub fn lag_seconds(&self, work: WorkKind) -> f64 {
        self.due.get(&work).map_or(0.0, |due| (self.now - *due).as_seconds_f64().max(0.0))
    }

    /// The floors for the next poll.
    pub fn floors(&self) -> Floors {
        let floor = |work: WorkKind| self.due.get(&work).copied().unwrap_or(self.now).min(self.now) - FLOOR_MARGIN;
        WorkKind::ALL.into_iter().map(|work| (work, floor(work))).collect()
    }
}

/// The floor of a kind of work as a bind value.
pub(crate) fn floor_of(floors: &Floors, work: WorkKind) -> DateTime<Utc> {
    floors.get(&work).copied().unwrap_or(DateTime::UNIX_EPOCH)
}

row! {
    /// When the first item of each kind is due, in the order of [`WorkKind::ALL`].
    struct FirstDue {
        now: DateTime<Utc> as Timestamptz,
        due: Vec<Option<DateTime<Utc>>> as Array<Nullable<Timestamptz>>,
    }
}

impl PollStore<'_> {
    /// When the first item of each kind of work is due. It sees only items that are due at the floors or later.
    pub async fn poll(self, floors: &Floors) -> DbResult<Poll> {
        let floors: Vec<_> = WorkKind::ALL.iter().map(|work| floor_of(floors, *work)).collect();
        let FirstDue { now, due } = FindDue { floors }.query().row(self.store).await?;
        let due = WorkKind::ALL.into_iter().zip(due).filter_map(|(work, due)| Some((work, due?))).collect();
        Ok(Poll { now, due })
    }
}

sql!(FindDue in "poll/poll.sql" { floors: Vec<DateTime<Utc>> as Array<Timestamptz> } -> FirstDue);
statements!(FindDue);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_below_what_was_first_and_below_now() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let (late, soon) = (now - TimeDelta::minutes(5), now + TimeDelta::hours(1));
        let poll = Poll { now, due: HashMap::from([(WorkKind::Due, late), (WorkKind::Digests, soon)]) };
        let floors = poll.floors();
        assert_eq!(floors.get(&WorkKind::Due), Some(&(late - FLOOR_MARGIN)));
        assert_eq!(floors.get(&WorkKind::Digests), Some(&(now - FLOOR_MARGIN)), "something sooner may be added");
        assert_eq!(floors.get(&WorkKind::Outbox), Some(&(now - FLOOR_MARGIN)), "nothing waits");
        assert_eq!((poll.lag_seconds(WorkKind::Due), poll.lag_seconds(WorkKind::Digests)), (300.0, 0.0));
    }
}
