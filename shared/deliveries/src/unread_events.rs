//! Outcomes that are known but not recorded yet. Their deliveries do not count as crashed.
//!
//! Events of a newer worker that no scheduler of this version can read are stored unchanged until a scheduler can. Of
//! an event that the database refuses we store only the delivery, in a row with an empty body: the event itself is in
//! the dead letter with the id of that row.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Timestamptz, Uuid as SqlUuid};
use domain::DeliveryId;
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::UnreadEventStore;

/// An event that cannot be read yet, or a whole batch of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadEvent {
    /// Its delivery and run, if at least these can be read.
    pub about: Option<(Uuid, i32)>,
    /// The batch as a worker published it, reduced to this event.
    pub body: Vec<u8>,
}

row! {
    /// A stored event.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct KeptEvent {
        /// The id of its row; later rows have larger ids.
        pub id: Uuid as SqlUuid,
        /// The batch.
        pub body: Vec<u8> as Binary,
        /// When it was stored.
        pub kept_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct Page {
        last: Vec<Uuid> as Array<SqlUuid>,
        remaining: i64 as Int8,
    }
}

impl UnreadEventStore<'_> {
    /// Stores events. Until they are read, no crash report ends their deliveries; see [`DeliveryLog::record`].
    pub async fn insert(self, events: &[UnreadEvent]) -> DbResult<()> {
        if events.is_empty() {
            return Ok(());
        }
        let about = |event: &UnreadEvent| event.about.unzip();
        let keep = Keep {
            ids: events.iter().map(|_| Uuid::now_v7()).collect(),
            deliveries: events.iter().map(|event| about(event).0).collect(),
            runs: events.iter().map(|event| about(event).1).collect(),
            bodies: events.iter().map(|event| event.body.clone()).collect(),
        };
        keep.query().run(self.store).await.map(drop)
    }

    /// Records that the outcome of a delivery is in the dead letter `letter`, which may not be written yet.
    pub async fn keep_lettered_event(self, letter: Uuid, delivery: DeliveryId, run: i32) -> DbResult<()> {
        KeepLettered { letter, delivery: delivery.0, run }.query().run(self.store).await.map(drop)
    }

    /// Reads up to `limit` notes about outcomes in dead letters, starting after the note `after`. Deletes those whose
    /// delivery has moved on, or whose dead letter was dropped or is gone. A replayed outcome counts as known until
    /// it is recorded. Returns the last note that was read, and how many notes remain.
    pub async fn forget_lettered_events(self, after: Uuid, limit: i64) -> DbResult<(Option<Uuid>, i64)> {
        let Page { last, remaining } = ForgetLettered { after, limit }.query().row(self.store).await?;
        Ok((last.first().copied(), remaining))
    }

    /// Up to `limit` stored events after the row `after`, oldest first.
    pub async fn list(self, after: Uuid, limit: i64) -> DbResult<Vec<KeptEvent>> {
        Read { after, limit }.query().rows(self.store).await
    }

    /// Deletes stored events after they were published again.
    pub async fn prune(self, ids: Vec<Uuid>) -> DbResult<()> {
        Forget { ids }.query().run(self.store).await.map(drop)
    }
}

sql!(Keep in "unread_events/keep.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, deliveries: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    runs: Vec<Option<i32>> as Array<Nullable<Int4>>, bodies: Vec<Vec<u8>> as Array<Binary>
});
sql!(KeepLettered in "unread_events/keep_lettered.sql" {
    letter: Uuid as SqlUuid, delivery: Uuid as SqlUuid, run: i32 as Int4
});
sql!(ForgetLettered in "unread_events/forget_lettered.sql" { after: Uuid as SqlUuid, limit: i64 as Int8 } -> Page);
sql!(Read in "unread_events/read.sql" { after: Uuid as SqlUuid, limit: i64 as Int8 } -> KeptEvent);
sql!(Forget in "unread_events/forget.sql" { ids: Vec<Uuid> as Array<SqlUuid> });
statements!(Keep, KeepLettered, ForgetLettered, Read, Forget);
