//! Replaying and dropping many dead letters, at a rate. A row records who did it, why, and how far it got.
//!
//! A replay is a row. Any scheduler may do a pass of it: it locks the row, picks the next open letters that match,
//! moves them and stores the progress, in one commit. Only open letters move, and the update checks that, so two
//! replays over the same letters move each letter once.

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, PgExpressionMethods, QueryDsl, Queryable, QueryableByName,
    dsl::sql,
    pg::Pg,
    result::Error,
    sql_types::{Array, Binary, Bool, Double, Int4, Int8, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use domain::TenantId;
use serde::{Deserialize, Serialize};
use store::{
    DbResult,
    scope::narrow,
    sealed,
    sql::{Columns, Typed, oid, row, sql, statements},
};
use uuid::Uuid;

use super::{LetterFilter, LetterStatus};
use crate::{
    ReplayStore,
    outbox::Dispatch,
    release::{Released, ReleasedRow},
    schema::dead_letters,
};

/// The bodies that one pass loads into memory, in bytes; a single larger one goes alone.
const PASS_BYTES_MAX: i64 = 8 * 1024 * 1024;

/// The action of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterAction {
    /// Start them again.
    Replay,
    /// Put them aside for good.
    Drop,
}

impl LetterAction {
    /// The word in the column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Drop => "drop",
        }
    }
}

row! {
    /// A replay or drop of dead letters, and its progress.
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct Replay {
        /// Its id.
        pub id: Uuid as SqlUuid,
        /// The tenant whose letters it moves; `None`: an operator's replay across tenants.
        #[serde(skip)]
        pub tenant_id: Option<i32> as Nullable<Int4>,
        /// `replay` or `drop`.
        pub action: String as Text,
        /// Which letters were meant.
        pub filter: serde_json::Value as Jsonb,
        /// The person who requested it.
        pub actor: String as Text,
        /// Why.
        pub note: String as Text,
        /// Letters a second; `None`: no limit.
        pub rate: Option<i32> as Nullable<Int4>,
        /// Open letters that matched when it began.
        pub matched: i32 as Int4,
        /// Letters moved so far.
        pub replayed: i32 as Int4,
        /// Letters that could not be moved: there is nothing to replay, or another replay moved them first.
        pub skipped: i32 as Int4,
        /// `running`, `done` or `cancelled`.
        pub status: String as Text,
        /// The time of the request; later letters are not touched.
        pub created_at: DateTime<Utc> as Timestamptz,
        /// When it ended.
        pub finished_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    }
}

/// A running replay, with the values that its rate is computed from.
#[derive(Clone, Debug, PartialEq, QueryableByName)]
#[diesel(check_for_backend(Pg))]
pub struct RunningReplay {
    /// The replay.
    #[diesel(embed)]
    pub replay: Replay,
    /// How long it has run, by the database's clock.
    #[diesel(sql_type = Double)]
    pub seconds: f64,
}

impl Columns for RunningReplay {
    fn columns() -> Vec<Typed> {
        let mut columns = Replay::columns();
        columns.push(("seconds", oid::<Double>()));
        columns
    }
}

row! {
    /// A refused publish to publish again.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct IntakeLetter {
        /// The letter.
        pub id: Uuid as SqlUuid,
        /// Its `message_id` property, which is its idempotency key.
        pub amqp_id: Option<String> as Nullable<Text>,
        /// The routing key of the producer; `None`: it is no submission.
        pub routing_key: Option<String> as Nullable<Text>,
        /// The publisher; empty: the publisher gave none; `None`: unknown today, but it was checked.
        pub amqp_user: Option<String> as Nullable<Text>,
        /// Its body.
        pub body: Vec<u8> as Binary,
    }
}

/// The result of one pass of a replay.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Letters read; 0: the replay has ended, or another process works on it.
    pub seen: usize,
    /// Letters moved.
    pub moved: i64,
    /// The last letter read, after which the next pass may begin. `None`: begin at the start.
    pub last: Option<Uuid>,
    /// Outbox rows of restarted deliveries that wait in no line, to hand to the broker.
    pub dispatches: Vec<Dispatch>,
    /// Refused publishes to publish again. They stay open until [`ReplayStore::mark_republished`].
    pub intake: Vec<IntakeLetter>,
    /// Letters whose body cannot be decrypted.
    pub unreadable: Vec<Uuid>,
}

/// A letter that a pass may move.
#[derive(Queryable)]
struct Candidate {
    id: Uuid,
    is_delivery: bool,
    is_publishable: bool,
    bytes: i64,
}

const CANDIDATE_BYTES: &str = "coalesce(octet_length(body), 0)::int8";
/// The condition for a body that can be published again, as in `publishable.sql`.
const IS_PUBLISHABLE: &str =
    "delivery_id IS NULL AND body IS NOT NULL AND (routing_key IS NOT NULL OR origin = 'broker')";

impl ReplayStore<'_> {
    /// Starts to replay or drop the open letters that match; returns the replay's id and their number.
    pub async fn start(
        self,
        scope: Option<TenantId>,
        action: LetterAction,
        filter: &LetterFilter,
        rate: Option<i32>,
        note: &str,
        actor: &str,
    ) -> DbResult<(Uuid, i64)> {
        let id = Uuid::now_v7();
        let stored = serde_json::to_value(filter).map_err(|error| Error::SerializationError(Box::new(error)))?;
        let tenant = scope.map(|tenant| tenant.0);
        let (actor, note) = (actor.to_owned(), note.to_owned());
        // A transaction has one `now()`: the letters counted here are those that the passes find.
        let begin = async |conn: &mut AsyncPgConnection| {
            if let Some(tenant) = scope {
                narrow(conn, tenant).await?;
            }
            let matched: i64 = filter.open(scope, action).count().get_result(conn).await?;
            let count = i32::try_from(matched).unwrap_or(i32::MAX);
            let action = action.as_str();
            let replay = InsertReplay { id, tenant, action, filter: stored, actor, note, rate, matched: count };
            replay.query().run_on(conn).await?;
            Ok::<_, Error>(matched)
        };
        let matched = AsyncPgConnection::transaction(&mut *self.store.conn().await?, begin).await?;
        Ok((id, matched))
    }

    /// One replay, if it exists and `scope` may see it.
    pub async fn replay(self, scope: Option<TenantId>, id: Uuid) -> DbResult<Option<Replay>> {
        ById { id, tenant: scope.map(|tenant| tenant.0) }.query().within(scope).first(self.store).await
    }

    /// Cancels a running replay; returns whether there was one. Letters that have moved stay moved.
    pub async fn cancel(self, scope: Option<TenantId>, id: Uuid) -> DbResult<bool> {
        let cancel = Cancel { id, tenant: scope.map(|tenant| tenant.0) };
        Ok(cancel.query().within(scope).run(self.store).await? > 0)
    }

    /// The oldest running replays.
    pub async fn running(self, limit: i64) -> DbResult<Vec<RunningReplay>> {
        Running { limit }.query().rows(self.store).await
    }

    /// Moves up to `limit` letters of a replay, beginning after `after`. If none is left from the start on, the replay
    /// is done.
    pub async fn run_pass(
        self,
        replay: &Replay,
        limit: i64,
        after: Option<Uuid>,
        relay_after_ms: i32,
    ) -> DbResult<Pass> {
        let step = Step { replay, relay_after_ms };
        let pass = async |conn: &mut AsyncPgConnection| {
            if let Some(tenant) = replay.tenant_id {
                narrow(conn, TenantId(tenant)).await?;
            }
            step.run(conn, limit, after).await
        };
        let mut pass = AsyncPgConnection::transaction(&mut *self.store.conn().await?, pass).await?;
        for mut letter in std::mem::take(&mut pass.intake) {
            match self.store.opened(sealed::LETTER_BODY.of_nobody(), std::mem::take(&mut letter.body)) {
                Some(body) => {
                    letter.body = body;
                    pass.intake.push(letter);
                }
                None => pass.unreadable.push(letter.id),
            }
        }
        Ok(pass)
    }

    /// Records which refused publishes of a replay are with the broker again, and which can never be published
    /// (`hopeless`). One that was refused again meanwhile stays open.
    pub async fn mark_republished(self, replay: Uuid, done: Vec<Uuid>, hopeless: Vec<Uuid>) -> DbResult<()> {
        Republished { replay, done, hopeless }.query().run(self.store).await.map(drop)
    }
}

/// One pass inside its transaction.
struct Step<'a> {
    replay: &'a Replay,
    relay_after_ms: i32,
}

impl Step<'_> {
    async fn run(&self, conn: &mut AsyncPgConnection, limit: i64, after: Option<Uuid>) -> Result<Pass, Error> {
        if !self.lock(conn).await? {
            return Ok(Pass::default());
        }
        let candidates = self.candidates(conn, limit, after).await?;
        let mut pass =
            Pass { seen: candidates.len(), last: candidates.last().map(|letter| letter.id), ..Pass::default() };
        if candidates.is_empty() && after.is_none() {
            self.finish(conn).await?;
        } else if self.action() == LetterAction::Drop {
            pass.moved = self.drop(conn, &candidates).await?;
        } else {
            let revived = self.revive(conn, ids(&candidates, |letter| letter.is_delivery)).await?;
            (pass.moved, pass.dispatches) = (count(revived.picked), revived.dispatches);
            pass.intake = self.publishable(conn, ids(&candidates, |letter| letter.is_publishable)).await?;
            self.skip(conn, ids(&candidates, |letter| !letter.is_publishable)).await?;
        }
        Ok(pass)
    }

    fn action(&self) -> LetterAction {
        if self.replay.action == LetterAction::Drop.as_str() { LetterAction::Drop } else { LetterAction::Replay }
    }

    /// Locks the pass against other schedulers; false if one works on it, or the replay has ended.
    async fn lock(&self, conn: &mut AsyncPgConnection) -> Result<bool, Error> {
        Ok(Lock { replay: self.replay.id }.query().run_on(conn).await? > 0)
    }

    async fn candidates(
        &self,
        conn: &mut AsyncPgConnection,
        limit: i64,
        after: Option<Uuid>,
    ) -> Result<Vec<Candidate>, Error> {
        let filter: LetterFilter = serde_json::from_value(self.replay.filter.clone())
            .map_err(|error| Error::DeserializationError(Box::new(error)))?;
        let open = LetterFilter { status: Some(LetterStatus::Open), ..filter };
        let mut query = open
            .moved_by(self.action(), self.replay.tenant_id.map(TenantId))
            .filter(dead_letters::created_at.le(self.replay.created_at))
            // A skipped letter stays open for a later replay, but not for this one.
            .filter(dead_letters::replay_id.is_distinct_from(self.replay.id));
        if let Some(after) = after {
            query = query.filter(dead_letters::id.gt(after));
        }
        let columns = (
            dead_letters::id,
            dead_letters::delivery_id.is_not_null(),
            sql::<Bool>(IS_PUBLISHABLE),
            sql::<Int8>(CANDIDATE_BYTES),
        );
        let letters = query.order(dead_letters::id).limit(limit).select(columns).load(conn).await?;
        Ok(bounded(letters))
    }

    /// Restarts dead deliveries. The run goes up, so late events of the old run cannot touch the new one.
    async fn revive(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<Released, Error> {
        if letters.is_empty() {
            return Ok(Released::default());
        }
        let (replay, full, relay_after_ms) = (self.replay.id, Vec::new(), self.relay_after_ms);
        Ok(Revive { replay, letters, full, relay_after_ms }.query().rows_on(conn).await?.into())
    }

    async fn publishable(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<Vec<IntakeLetter>, Error> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        Publishable { letters }.query().rows_on(conn).await
    }

    async fn drop(&self, conn: &mut AsyncPgConnection, candidates: &[Candidate]) -> Result<i64, Error> {
        DropLetters { replay: self.replay.id, letters: ids(candidates, |_| true) }.query().row_on(conn).await
    }

    /// Marks the open letters among `letters` as read by this replay.
    async fn skip(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<(), Error> {
        Skip { replay: self.replay.id, letters }.query().run_on(conn).await.map(drop)
    }

    async fn finish(&self, conn: &mut AsyncPgConnection) -> Result<(), Error> {
        Finish { replay: self.replay.id }.query().run_on(conn).await.map(drop)
    }
}

fn ids(candidates: &[Candidate], wanted: impl Fn(&Candidate) -> bool) -> Vec<Uuid> {
    candidates.iter().filter(|letter| wanted(letter)).map(|letter| letter.id).collect()
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The first letters whose bodies fit into memory together; at least one.
fn bounded(letters: Vec<Candidate>) -> Vec<Candidate> {
    let mut bytes = 0;
    let fits = |letter: &Candidate| {
        let first = bytes == 0;
        bytes += letter.bytes.max(1);
        first || bytes <= PASS_BYTES_MAX
    };
    letters.into_iter().take_while(fits).collect()
}

sql!(InsertReplay in "letters/insert_replay.sql" {
    id: Uuid as SqlUuid,
    tenant: Option<i32> as Nullable<Int4>,
    action: &'static str as Text,
    filter: serde_json::Value as Jsonb,
    actor: String as Text,
    note: String as Text,
    rate: Option<i32> as Nullable<Int4>,
    matched: i32 as Int4,
});
sql!(ById in "letters/replay.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> } -> Replay);
sql!(Cancel in "letters/cancel.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> });
sql!(Running in "letters/replays_running.sql" { limit: i64 as Int8 } -> RunningReplay);
sql!(Lock in "letters/lock.sql" { replay: Uuid as SqlUuid });
sql!(Revive in "letters/revive.sql" {
    replay: Uuid as SqlUuid,
    letters: Vec<Uuid> as Array<SqlUuid>,
    full: Vec<String> as Array<Text>,
    relay_after_ms: i32 as Int4,
} -> ReleasedRow);
sql!(Publishable in "letters/publishable.sql" { letters: Vec<Uuid> as Array<SqlUuid> } -> IntakeLetter);
sql!(DropLetters in "letters/drop.sql" {
    replay: Uuid as SqlUuid, letters: Vec<Uuid> as Array<SqlUuid>
} -> i64 as Int8);
sql!(Skip in "letters/skip.sql" { replay: Uuid as SqlUuid, letters: Vec<Uuid> as Array<SqlUuid> });
sql!(Republished in "letters/republished.sql" {
    replay: Uuid as SqlUuid, done: Vec<Uuid> as Array<SqlUuid>, hopeless: Vec<Uuid> as Array<SqlUuid>
});
sql!(Finish in "letters/finish.sql" { replay: Uuid as SqlUuid });
statements!(InsertReplay, ById, Cancel, Running, Lock, Revive, Publishable, DropLetters, Skip, Republished, Finish);

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(bytes: i64) -> Candidate {
        Candidate { id: Uuid::nil(), is_delivery: false, is_publishable: true, bytes }
    }

    #[test]
    fn a_pass_takes_what_fits_into_memory_and_at_least_one() {
        let taken = |sizes: &[i64]| bounded(sizes.iter().copied().map(letter).collect()).len();
        assert_eq!(taken(&[PASS_BYTES_MAX + 1, 1]), 1);
        assert_eq!(taken(&[PASS_BYTES_MAX / 2, PASS_BYTES_MAX / 2, 1]), 2);
        assert_eq!(taken(&[0; 1000]), 1000);
    }
}
