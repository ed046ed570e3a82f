//! Outcomes that are known but not recorded yet. Their deliveries do not count as crashed.
//!
//! Events of a newer worker that no scheduler of this version can read are stored unchanged until a scheduler can. Of
//! an event that the database refuses we store only the delivery, in a row with an empty body: the event itself is in
//! the dead letter with the id of that row.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Timestamptz, Uuid as SqlUuid};
use domain::DeliveryId;
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// An event that cannot be read yet, or a whole batch of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadEvent {
    /// Its delivery and run, if at least these can be read.
    pub about: Option<(Uuid, i32)>,
    /// The batch as a worker published it, reduced to this event.
    pub body: Vec<u8>,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvent {
    /// The id of its row; later rows have larger ids.
    pub id: Uuid,
    /// The batch.
    pub body: Vec<u8>,
    /// When it was stored.
    pub kept_at: DateTime<Utc>,
}

impl Store {
    /// Stores events. Until they are read, no crash report ends their deliveries; see [`Store::record`].
    pub async fn keep_unread_events(&self, events: &[UnreadEvent]) -> DbResult<()> {
        if events.is_empty() {
            return Ok(());
        }
        let about = |event: &UnreadEvent| event.about.unzip();
        let query = statement::<()>(KEEP)
            .bind::<Array<SqlUuid>, _>(events.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
            .bind::<Array<Nullable<SqlUuid>>, _>(events.iter().map(|event| about(event).0).collect::<Vec<_>>())
            .bind::<Array<Nullable<Int4>>, _>(events.iter().map(|event| about(event).1).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(events.iter().map(|event| event.body.clone()).collect::<Vec<_>>());
        query.run(self).await.map(drop)
    }

    /// Records that the outcome of a delivery is in the dead letter `letter`, which may not be written yet.
    pub async fn keep_lettered_event(&self, letter: Uuid, delivery: DeliveryId, run: i32) -> DbResult<()> {
        let query = statement::<()>(KEEP_LETTERED).bind::<SqlUuid, _>(letter).bind::<SqlUuid, _>(delivery.0);
        query.bind::<Int4, _>(run).run(self).await.map(drop)
    }

    /// Reads up to `limit` notes about outcomes in dead letters, starting after the note `after`. Deletes those whose
    /// delivery has moved on, or whose dead letter was dropped or is gone. A replayed outcome counts as known until
    /// it is recorded. Returns the last note that was read, and how many notes remain.
    pub async fn forget_lettered_events(&self, after: Uuid, limit: i64) -> DbResult<(Option<Uuid>, i64)> {
        let query = statement::<(Array<SqlUuid>, Int8)>(FORGET_LETTERED).bind::<SqlUuid, _>(after);
        let (last, stay): (Vec<Uuid>, i64) = query.bind::<Int8, _>(limit).row(self).await?;
        Ok((last.first().copied(), stay))
    }

    /// Up to `limit` stored events after the row `after`, oldest first.
    pub async fn unread_events(&self, after: Uuid, limit: i64) -> DbResult<Vec<KeptEvent>> {
        let query = statement::<(SqlUuid, Binary, Timestamptz)>(READ).bind::<SqlUuid, _>(after).bind::<Int8, _>(limit);
        let rows: Vec<(Uuid, Vec<u8>, DateTime<Utc>)> = query.rows(self).await?;
        Ok(rows.into_iter().map(|(id, body, kept_at)| KeptEvent { id, body, kept_at }).collect())
    }

    /// Deletes stored events after they were published again.
    pub async fn forget_unread_events(&self, ids: Vec<Uuid>) -> DbResult<()> {
        statement::<()>(FORGET).bind::<Array<SqlUuid>, _>(ids).run(self).await.map(drop)
    }
}

const KEEP: &str = "
INSERT INTO unread_events (id, delivery_id, run, body) SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::bytea[])";

const READ: &str = "SELECT id, body, created_at FROM unread_events WHERE id > ? AND body <> '' ORDER BY id LIMIT ?";

const KEEP_LETTERED: &str = "
INSERT INTO unread_events (id, delivery_id, run, body) VALUES (?, ?, ?, '') ON CONFLICT DO NOTHING";

/// A dead letter that is not written yet is still on its way through the broker.
const FORGET_LETTERED: &str = "
WITH page AS MATERIALIZED (
    SELECT id, delivery_id, run, created_at FROM unread_events WHERE id > ? AND body = '' ORDER BY id LIMIT ?
), gone AS (
    DELETE FROM unread_events WHERE id = ANY (ARRAY(
        SELECT p.id FROM page p
        WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.id = p.delivery_id AND d.run = p.run AND d.state = 'sending')
           OR EXISTS (SELECT FROM dead_letters l WHERE l.id = p.id AND l.status = 'dropped')
           OR (p.created_at < now() - interval '3 days' AND NOT EXISTS (SELECT FROM dead_letters l WHERE l.id = p.id))))
    RETURNING 1)
SELECT ARRAY(SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM page) - (SELECT count(*) FROM gone)";

const FORGET: &str = "DELETE FROM unread_events WHERE id = ANY (?::uuid[])";
