//! The parts that every release of deliveries shares: outbox rows of a bounded size, and the tenants' fair shares.
//!
//! A release puts at most [`CROWD_MAX`] deliveries of one tenant and route directly into the outbox. Larger groups,
//! and the bulk lane always, wait in the tenant's share, which takes turns with the shares of other tenants.

use diesel::sql_types::{Array, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::outbox::{Dispatch, dispatch};

/// The number of deliveries of one tenant and route in one batch that does not delay other tenants. [`share_out`]
/// repeats the number.
pub const CROWD_MAX: usize = 100;

/// The number of picked deliveries; then an outbox row: its id, deliveries, runs and routes. A release without an
/// outbox row returns one row.
pub(super) type SqlRow = (Int8, Nullable<Int8>, Nullable<Array<SqlUuid>>, Nullable<Array<Int4>>, Nullable<Array<Text>>);
pub(super) type Row = (i64, Option<i64>, Option<Vec<Uuid>>, Option<Vec<i32>>, Option<Vec<String>>);

/// The result of one release.
#[derive(Clone, Debug, Default)]
pub struct Released {
    /// Deliveries taken from where they waited, including those that wait in a line now.
    pub picked: usize,
    /// The outbox rows to publish now, each of at most 500 deliveries.
    pub dispatches: Vec<Dispatch>,
}

impl Released {
    pub(super) fn of(rows: Vec<Row>) -> Self {
        let picked = rows.first().map_or(0, |(picked, ..)| usize::try_from(*picked).unwrap_or_default());
        let row = |(_, id, deliveries, runs, routes)| Some(dispatch((id?, deliveries?, runs?, routes?)));
        Self { picked, dispatches: rows.into_iter().filter_map(row).collect() }
    }

    /// The number of deliveries that go to the broker now.
    pub fn handed_over(&self) -> usize {
        self.dispatches.iter().map(|dispatch| dispatch.items.len()).sum()
    }
}

/// The columns of `released`, as an update of `deliveries d` returns them.
macro_rules! released_columns {
    () => {
        "d.id, d.run, d.tenant_id, d.channel, d.lane, d.channel || '.' || d.lane AS route,
              (SELECT l.id FROM lines l WHERE l.id = d.line) AS line, d.rank, d.expires_at"
    };
}

/// The CTE `placed` and its helpers. Of the rows of `released` ([`released_columns`]), those that need a slot of a
/// session go into its line. Those of a tenant with too many deliveries of the route, of the bulk lane, and of a
/// route in the bind go into the tenant's share. `placed` returns the others with `share` NULL. The share's id is
/// computed once per tenant and route.
macro_rules! share_out {
    () => {
        "grouped AS MATERIALIZED (
    SELECT tenant_id, route, array_agg(id) AS ids, array_agg(run) AS runs, array_agg(rank) AS ranks,
           CASE WHEN lane = 'bulk' OR route = ANY (?::text[]) OR count(*) > 100 THEN share_line(tenant_id, route) END AS share
    FROM released WHERE line IS NULL GROUP BY tenant_id, lane, route
), placed AS MATERIALIZED (
    SELECT g.route, g.share, u.id, u.run, u.rank FROM grouped g CROSS JOIN LATERAL unnest(g.ids, g.runs, g.ranks) AS u(id, run, rank)
), new_shares AS (
    INSERT INTO lines (id, tenant_id, kind, route)
    SELECT share, tenant_id, 'share', route FROM grouped WHERE share IS NOT NULL ORDER BY 1
    ON CONFLICT DO NOTHING
), lined_up AS (
    INSERT INTO parked (delivery_id, line, run, rank, expires_at)
    SELECT id, line, run, rank, expires_at FROM released WHERE line IS NOT NULL
    UNION ALL
    SELECT id, share, run, rank, NULL FROM placed WHERE share IS NOT NULL
    ON CONFLICT (delivery_id) DO UPDATE SET run = excluded.run
)"
    };
}

/// Ends a statement: writes the rows of `$from` (id, run, route) into outbox rows of at most 500 deliveries, so that
/// the work for one outbox row is bounded. Returns [`Row`]s; the statement counts `$picked`.
macro_rules! boxed {
    ($from:literal, $picked:literal) => {
        concat!(
            "boxed AS (
    INSERT INTO outbox (act_at, deliveries, runs, routes)
    SELECT now() + ? * interval '1 millisecond', array_agg(id), array_agg(run), array_agg(route)
    FROM (SELECT id, run, route, (row_number() OVER () - 1) / 500 AS box FROM ",
            $from,
            ") numbered GROUP BY box
    RETURNING id, deliveries, runs, routes
)
SELECT (SELECT count(*) FROM ",
            $picked,
            ") AS picked, b.id, b.deliveries, b.runs, b.routes FROM (SELECT) one LEFT JOIN boxed b ON true"
        )
    };
}

pub(super) use {boxed, released_columns, share_out};
