//! The parts that every release of deliveries shares: outbox rows of a bounded size, and the tenants' fair shares.
//!
//! A release puts at most [`CROWD_MAX`] deliveries of one tenant and route directly into the outbox. Larger groups,
//! and the bulk lane always, wait in the tenant's share, which takes turns with the shares of other tenants.

use diesel::sql_types::{Array, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use store::sql::row;
use uuid::Uuid;

use crate::outbox::{Dispatch, dispatch};

/// The number of deliveries of one tenant and route in one batch that does not delay other tenants.
/// `due/release.sql` and `letters/revive.sql` repeat the number.
pub const CROWD_MAX: usize = 100;

row! {
    /// The number of picked deliveries; then an outbox row: its id, deliveries, runs and routes. A release without an
    /// outbox row returns one row.
    pub(crate) struct ReleasedRow {
        picked: i64 as Int8,
        id: Option<i64> as Nullable<Int8>,
        deliveries: Option<Vec<Uuid>> as Nullable<Array<SqlUuid>>,
        runs: Option<Vec<i32>> as Nullable<Array<Int4>>,
        routes: Option<Vec<String>> as Nullable<Array<Text>>,
    }
}

/// The result of one release.
#[derive(Clone, Debug, Default)]
pub struct Released {
    /// Deliveries taken from where they waited, including those that wait in a line now.
    pub picked: usize,
    /// The outbox rows to publish now, each of at most 500 deliveries.
    pub dispatches: Vec<Dispatch>,
}

impl Released {
    /// The number of deliveries that go to the broker now.
    pub fn handed_over(&self) -> usize {
        self.dispatches.iter().map(|dispatch| dispatch.items.len()).sum()
    }
}

impl From<Vec<ReleasedRow>> for Released {
    fn from(rows: Vec<ReleasedRow>) -> Self {
        let picked = rows.first().map_or(0, |row| usize::try_from(row.picked).unwrap_or_default());
        let dispatched = |row: ReleasedRow| Some(dispatch((row.id?, row.deliveries?, row.runs?, row.routes?)));
        Self { picked, dispatches: rows.into_iter().filter_map(dispatched).collect() }
    }
}
