//! The outbox: every batch for the broker, from its commit until the audit has seen all its deliveries move on.

use diesel::sql_types::{Array, Bool, Int4, Int8, Text, Uuid as SqlUuid};
use domain::{DeliveryId, channel::Route};
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// The columns: id, deliveries, runs, routes.
pub(super) type Row = (i64, Vec<Uuid>, Vec<i32>, Vec<String>);

/// A batch for the broker, as stored in the outbox.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    /// The outbox row.
    pub outbox_id: i64,
    /// What to publish.
    pub items: Vec<DispatchItem>,
}

/// One delivery that may be sent now.
#[derive(Clone, Copy, Debug)]
pub struct DispatchItem {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The current run of its row.
    pub run: i32,
    /// Its route, which names its queue.
    pub route: Route,
}

impl Store {
    /// Takes up to `limit` rows that were not published in time; no other caller gets them for `lease_ms`.
    pub async fn take_unpublished(&self, limit: i64, lease_ms: i32) -> DbResult<Vec<Dispatch>> {
        let query = statement::<(Int8, Array<SqlUuid>, Array<Int4>, Array<Text>)>(TAKE)
            .bind::<Int4, _>(lease_ms)
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().map(dispatch).collect())
    }

    /// Gives back taken rows that could not be published, so that they do not wait for the end of their lease.
    pub async fn give_back_unpublished(&self, rows: Vec<i64>) -> DbResult<()> {
        let query = statement::<()>(GIVE_BACK).bind::<Array<Int8>, _>(rows);
        query.run(self).await?;
        Ok(())
    }

    /// Records that every delivery of these rows is with the broker; the audit checks them `audit_after_ms` from now.
    pub async fn mark_published(&self, mut rows: Vec<i64>, audit_after_ms: i32) -> DbResult<()> {
        rows.sort_unstable();
        let query = statement::<()>(PUBLISHED).bind::<Int4, _>(audit_after_ms).bind::<Array<Int8>, _>(rows);
        query.run(self).await?;
        Ok(())
    }

    /// Checks published rows that are due: at most `rows` of them, and no further row once they hold `deliveries`
    /// deliveries. A row whose deliveries all moved on is deleted. A delivery that a worker still holds gets a watch.
    /// If the broker lost a delivery, which means that it is still queued on a route in `empty`, the row goes back to
    /// the relay. Any other row is checked again later, at growing intervals.
    pub async fn audit(&self, rows: i64, deliveries: i64, empty: &[Route]) -> DbResult<Audited> {
        let routes: Vec<String> = empty.iter().map(Route::to_string).collect();
        let query = statement::<(Int8, Int8, Int8, Int8)>(AUDIT).bind::<Int8, _>(rows).bind::<Int8, _>(deliveries);
        let found: (i64, i64, i64, i64) = query.bind::<Array<Text>, _>(routes).row(self).await?;
        let (due, seen, lost, watched) = found;
        Ok(Audited { seen, lost, watched, is_more: due > seen || due >= rows })
    }

    /// The number of unpublished rows, counted up to [`PENDING_MAX`], and the age in seconds of the oldest of them.
    pub async fn outbox_pending(&self) -> DbResult<(i64, f64)> {
        let query = statement::<(Int8, diesel::sql_types::Double)>(PENDING).bind::<Int8, _>(PENDING_MAX);
        query.row(self).await
    }

    /// Whether any published row waits for the audit; without one we need not ask the broker for its depths.
    pub async fn audit_waits(&self) -> DbResult<bool> {
        let query = statement::<Bool>(
            "SELECT EXISTS (SELECT 1 FROM outbox WHERE published_at IS NOT NULL AND act_at <= now()) AS waits",
        );
        query.row(self).await
    }
}

/// The result of one audit pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Outbox rows checked.
    pub seen: i64,
    /// Rows given back to the relay because the broker lost some of their deliveries.
    pub lost: i64,
    /// Deliveries that got a watch because a worker has held them this long.
    pub watched: i64,
    /// Whether more rows are due for a check.
    pub is_more: bool,
}

/// The limit of the count of unpublished rows: after hours without a broker there are millions, and an exact number
/// is not worth the time.
pub const PENDING_MAX: i64 = 10_001;

pub(super) fn dispatch((outbox_id, ids, runs, routes): Row) -> Dispatch {
    let items = ids.into_iter().zip(runs).zip(routes).filter_map(|((id, run), route)| item(id, run, &route)).collect();
    Dispatch { outbox_id, items }
}

/// An item from its columns; the audit handles a route that this version does not know.
fn item(id: Uuid, run: i32, route: &str) -> Option<DispatchItem> {
    let (channel, lane) = route.split_once('.')?;
    let route = Route { channel: channel.parse().ok()?, lane: lane.parse().ok()? };
    Some(DispatchItem { delivery: DeliveryId(id), run, route })
}

const TAKE: &str = "
UPDATE outbox SET act_at = now() + ? * interval '1 millisecond'
WHERE id = ANY (ARRAY(SELECT id FROM outbox WHERE published_at IS NULL AND act_at <= now() ORDER BY act_at LIMIT ? FOR UPDATE SKIP LOCKED))
RETURNING id, deliveries, runs, routes";

const GIVE_BACK: &str = "UPDATE outbox SET act_at = now() WHERE id = ANY (?::int8[]) AND published_at IS NULL";

const PUBLISHED: &str = "
UPDATE outbox SET published_at = now(), act_at = now() + ? * interval '1 millisecond' WHERE id = ANY (?::int8[]) AND published_at IS NULL";

/// The look-ups cost time per delivery, so one statement is limited by the deliveries that its rows hold; rows beyond
/// the limit wait for the next pass. Watches are set in the order of the ids, as in every other statement.
const AUDIT: &str = "
WITH due_rows AS MATERIALIZED (
    SELECT id, act_at, created_at, deliveries, runs, routes FROM outbox
    WHERE published_at IS NOT NULL AND act_at <= now() ORDER BY act_at LIMIT ? FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT id, created_at, deliveries, runs, routes
    FROM (SELECT *, sum(cardinality(deliveries)) OVER (ORDER BY act_at, id) - cardinality(deliveries) AS before FROM due_rows) r
    WHERE before < ?
), waiting AS MATERIALIZED (
    SELECT p.id AS row_id, d.id, u.run, u.route, d.state, d.run AS now_run, d.lease_until,
           d.state = 'queued' AND u.route = ANY (?::text[]) AS lost
    FROM picked p
    CROSS JOIN LATERAL unnest(p.deliveries, p.runs, p.routes) AS u(id, run, route)
    JOIN deliveries d ON d.id = u.id
    WHERE (d.state = 'queued' AND d.run = u.run AND NOT EXISTS (SELECT 1 FROM parked k WHERE k.delivery_id = d.id))
       OR (d.state = 'sending' AND d.run = u.run + 1)
), shrunk AS MATERIALIZED (
    SELECT row_id, array_agg(id) AS deliveries, array_agg(run) AS runs, array_agg(route) AS routes, bool_or(lost) AS lost
    FROM waiting GROUP BY row_id
), gone AS (
    DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM picked EXCEPT SELECT row_id FROM shrunk))
), kept AS (
    UPDATE outbox o
    SET deliveries = s.deliveries, runs = s.runs, routes = s.routes,
        published_at = CASE WHEN s.lost THEN NULL ELSE o.published_at END,
        act_at = CASE WHEN s.lost THEN now()
                 ELSE now() + least(greatest(now() - o.created_at, interval '1 second'), interval '10 minutes') END
    FROM shrunk s WHERE o.id = s.row_id
), watched AS (
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, greatest(lease_until, now()), now_run, 'watch' FROM waiting WHERE state = 'sending' ORDER BY id
    ON CONFLICT (delivery_id) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM due_rows), (SELECT count(*) FROM picked), (SELECT count(*) FROM shrunk WHERE lost), (SELECT count(*) FROM watched)";

const PENDING: &str = "
SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS age
FROM (SELECT created_at FROM outbox WHERE published_at IS NULL ORDER BY act_at LIMIT ?) o";
