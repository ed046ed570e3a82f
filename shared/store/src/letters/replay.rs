//! What is done about dead letters: replaying or dropping many, at a rate, with a row that says who, why and how far.
//!
//! A replay is a row. Any scheduler takes a pass at it: it locks the row, picks the next open letters that match, moves
//! them and notes the progress, all in one commit. Since only open letters move, and in an update that checks it, two
//! replays over the same letters move each of them once.

use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, NullableExpressionMethods, OptionalExtension, PgExpressionMethods, QueryDsl, Queryable,
    dsl::sql,
    result::Error,
    sql_types::{Array, Bool, Double, Int4, Int8, Nullable, Text, Uuid as SqlUuid},
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use domain::TenantId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LetterFilter, LetterStatus};
use crate::{
    DbResult, Store,
    outbox::Dispatch,
    release::{self, Released, boxed, released_columns, share_out},
    schema::{dead_letters, replays},
    scope::narrow,
    sealed, statement,
};

/// Bodies that one pass takes into memory, in bytes; a single larger one goes alone.
const PASS_BYTES_MAX: i64 = 8 * 1024 * 1024;

/// What to do about letters.
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

/// What somebody did to dead letters, and how far it got.
#[derive(Clone, Debug, PartialEq, Serialize, Queryable)]
pub struct Replay {
    /// Its id.
    pub id: Uuid,
    /// Whose letters; `None`: an operator's, across tenants.
    #[serde(skip)]
    pub tenant_id: Option<i32>,
    /// `replay` or `drop`.
    pub action: String,
    /// Which letters were meant.
    pub filter: serde_json::Value,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub note: String,
    /// Letters a second; `None`: as fast as it goes.
    pub rate: Option<i32>,
    /// Open letters that matched when it began.
    pub matched: i32,
    /// Letters moved so far.
    pub replayed: i32,
    /// Letters that could not be moved: nothing to replay, or somebody else was first.
    pub skipped: i32,
    /// `running`, `done` or `cancelled`.
    pub status: String,
    /// When it was asked for; later letters are not touched.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// A replay that runs, with what its rate is measured by.
#[derive(Clone, Debug, PartialEq, Queryable)]
pub struct RunningReplay {
    /// The replay.
    pub replay: Replay,
    /// How long it has run, by the database's clock.
    pub seconds: f64,
}

/// A refused publish that is to be published again.
#[derive(Clone, Debug, PartialEq, Eq, Queryable)]
pub struct IntakeLetter {
    /// The letter.
    pub id: Uuid,
    /// Its `message_id` property, which is its idempotency key.
    pub amqp_id: Option<String>,
    /// The key a producer published it with; `None`: it is no submission.
    pub routing_key: Option<String>,
    /// Who published it; empty: nobody said; `None`: it is not known any more, but was checked.
    pub amqp_user: Option<String>,
    /// Its body.
    pub body: Vec<u8>,
}

/// What one pass over a replay did.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Letters looked at; none: the replay is over, or somebody else is at it.
    pub seen: usize,
    /// Letters moved.
    pub moved: i64,
    /// The last letter looked at: where the next pass may begin. `None`: from the start.
    pub last: Option<Uuid>,
    /// Outbox rows of deliveries that were started again and wait in no line, to be handed to the broker.
    pub dispatches: Vec<Dispatch>,
    /// Refused publishes to publish again; they stay open until [`Store::letters_republished`].
    pub intake: Vec<IntakeLetter>,
    /// Those whose body cannot be decrypted any more.
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
/// A body that can be published again: a producer wrote it and the intake refused it, or it is ours and could not be written down.
const IS_PUBLISHABLE: &str =
    "delivery_id IS NULL AND body IS NOT NULL AND (routing_key IS NOT NULL OR origin = 'broker')";

/// A letter without a user is of before users were kept. Its user was checked, unless that is what it was refused for.
const PUBLISHER: &str = "CASE WHEN reason = 'tenant' THEN coalesce(amqp_user, '') ELSE amqp_user END";

impl Store {
    /// Begins to replay or drop the open letters that match; returns the replay's id and how many there are.
    pub async fn start_replay(
        &self,
        scope: Option<TenantId>,
        action: LetterAction,
        filter: &LetterFilter,
        rate: Option<i32>,
        note: &str,
        actor: &str,
    ) -> DbResult<(Uuid, i64)> {
        let id = Uuid::now_v7();
        let stored = serde_json::to_value(filter).map_err(|error| Error::SerializationError(Box::new(error)))?;
        let row = (
            replays::id.eq(id),
            replays::tenant_id.eq(scope.map(|tenant| tenant.0)),
            replays::action.eq(action.as_str()),
            replays::filter.eq(stored),
            replays::actor.eq(actor),
            replays::note.eq(note),
            replays::rate.eq(rate),
        );
        // One transaction has one `now()`: what is counted here is what the passes will find.
        let begin = async |conn: &mut AsyncPgConnection| {
            if let Some(tenant) = scope {
                narrow(conn, tenant).await?;
            }
            let matched: i64 = filter.open(scope, action).count().get_result(conn).await?;
            let count = replays::matched.eq(i32::try_from(matched).unwrap_or(i32::MAX));
            diesel::insert_into(replays::table).values((row, count)).execute(conn).await?;
            Ok::<_, Error>(matched)
        };
        let matched = AsyncPgConnection::transaction(&mut *self.conn().await?, begin).await?;
        Ok((id, matched))
    }

    /// One replay, if it exists and `scope` may see it.
    pub async fn replay(&self, scope: Option<TenantId>, id: Uuid) -> DbResult<Option<Replay>> {
        let mut query = replays::table.find(id).into_boxed();
        if let Some(TenantId(tenant)) = scope {
            query = query.filter(replays::tenant_id.eq(tenant));
        }
        let mut conn = self.within(scope).await?;
        let replay = query.first(&mut *conn).await.optional();
        conn.done(replay).await
    }

    /// Ends a running replay where it is; says whether there was one. What has moved stays moved.
    pub async fn cancel_replay(&self, scope: Option<TenantId>, id: Uuid) -> DbResult<bool> {
        let query =
            statement::<()>(CANCEL).bind::<SqlUuid, _>(id).bind::<Nullable<Int4>, _>(scope.map(|tenant| tenant.0));
        Ok(query.within(scope).run(self).await? > 0)
    }

    /// The oldest replays that run.
    pub async fn replays_running(&self, limit: i64) -> DbResult<Vec<RunningReplay>> {
        let seconds = sql::<Double>("extract(epoch FROM now() - created_at)::float8");
        let query = replays::table.filter(sql::<Bool>("status = 'running'")).order(replays::id).limit(limit);
        Ok(query.select((replays::all_columns, seconds)).load(&mut *self.conn().await?).await?)
    }

    /// Moves up to `limit` letters of a replay, beginning after `after`. When none is left from the start on, the
    /// replay is done.
    pub async fn replay_pass(
        &self,
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
        let mut pass = AsyncPgConnection::transaction(&mut *self.conn().await?, pass).await?;
        for mut letter in std::mem::take(&mut pass.intake) {
            match self.opened(sealed::LETTER_BODY.of_nobody(), std::mem::take(&mut letter.body)) {
                Some(body) => {
                    letter.body = body;
                    pass.intake.push(letter);
                }
                None => pass.unreadable.push(letter.id),
            }
        }
        Ok(pass)
    }

    /// Notes which refused publishes of a replay are with the broker again, and which can never be (`hopeless`). One that was
    /// refused anew meanwhile stays open.
    pub async fn letters_republished(&self, replay: Uuid, done: Vec<Uuid>, hopeless: Vec<Uuid>) -> DbResult<()> {
        let query = statement::<()>(REPUBLISHED)
            .bind::<SqlUuid, _>(replay)
            .bind::<Array<SqlUuid>, _>(done)
            .bind::<Array<SqlUuid>, _>(hopeless);
        query.run(self).await?;
        Ok(())
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

    /// Keeps other schedulers from the same pass; false if one is at it, or the replay is over.
    async fn lock(&self, conn: &mut AsyncPgConnection) -> Result<bool, Error> {
        let locked = RunQueryDsl::execute(statement::<()>(LOCK).bind::<SqlUuid, _>(self.replay.id), conn).await?;
        Ok(locked > 0)
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
            // What was skipped stays open for a later replay, but not for this one.
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

    /// Starts dead deliveries again. The run goes up, so that nothing said about the run that died can touch the new one.
    async fn revive(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<Released, Error> {
        if letters.is_empty() {
            return Ok(Released::default());
        }
        let query = statement::<release::SqlRow>(REVIVE)
            .bind::<SqlUuid, _>(self.replay.id)
            .bind::<Array<SqlUuid>, _>(letters)
            .bind::<Array<Text>, _>(Vec::<String>::new())
            .bind::<Int4, _>(self.relay_after_ms);
        Ok(Released::of(RunQueryDsl::load(query, conn).await?))
    }

    async fn publishable(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<Vec<IntakeLetter>, Error> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        let columns = (
            dead_letters::id,
            dead_letters::amqp_id,
            dead_letters::routing_key,
            sql::<Nullable<Text>>(PUBLISHER),
            dead_letters::body.assume_not_null(),
        );
        let stored = dead_letters::table.filter(dead_letters::id.eq_any(letters)).filter(sql::<Bool>(IS_PUBLISHABLE));
        stored.order(dead_letters::id).select(columns).load(conn).await
    }

    async fn drop(&self, conn: &mut AsyncPgConnection, candidates: &[Candidate]) -> Result<i64, Error> {
        let query = statement::<Int8>(DROP)
            .bind::<SqlUuid, _>(self.replay.id)
            .bind::<Array<SqlUuid>, _>(ids(candidates, |_| true));
        RunQueryDsl::get_result(query, conn).await
    }

    /// Marks what is still open of `letters` as looked at by this replay.
    async fn skip(&self, conn: &mut AsyncPgConnection, letters: Vec<Uuid>) -> Result<(), Error> {
        let query = statement::<()>(SKIP).bind::<SqlUuid, _>(self.replay.id).bind::<Array<SqlUuid>, _>(letters);
        RunQueryDsl::execute(query, conn).await?;
        Ok(())
    }

    async fn finish(&self, conn: &mut AsyncPgConnection) -> Result<(), Error> {
        RunQueryDsl::execute(statement::<()>(FINISH).bind::<SqlUuid, _>(self.replay.id), conn).await?;
        Ok(())
    }
}

fn ids(candidates: &[Candidate], wanted: impl Fn(&Candidate) -> bool) -> Vec<Uuid> {
    candidates.iter().filter(|letter| wanted(letter)).map(|letter| letter.id).collect()
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The first letters whose bodies fit into memory together, and at least one.
fn bounded(letters: Vec<Candidate>) -> Vec<Candidate> {
    let mut bytes = 0;
    let fits = |letter: &Candidate| {
        let first = bytes == 0;
        bytes += letter.bytes.max(1);
        first || bytes <= PASS_BYTES_MAX
    };
    letters.into_iter().take_while(fits).collect()
}

const LOCK: &str = "SELECT 1 FROM replays WHERE id = ? AND status = 'running' FOR UPDATE SKIP LOCKED";

const CANCEL: &str = "
UPDATE replays r SET status = 'cancelled', finished_at = now()
FROM (SELECT ?::uuid AS id, ?::int4 AS tenant_id) asked
WHERE r.id = asked.id AND r.status = 'running' AND (asked.tenant_id IS NULL OR r.tenant_id = asked.tenant_id)";

/// Letters, deliveries, log and outbox in one commit; the letters are taken in one order, so that two replays over the
/// same ones wait for each other instead of blocking each other.
const REVIVE: &str = concat!(
    "
WITH asked AS (SELECT ?::uuid AS replay_id
), letters AS MATERIALIZED (
    SELECT id, delivery_id FROM dead_letters WHERE id = ANY (?::uuid[]) AND status = 'open' AND delivery_id IS NOT NULL
    ORDER BY id FOR UPDATE
), released AS (
    UPDATE deliveries d
    SET state = 'queued', run = d.run + 1, attempts = 0, deferrals = 0, crashes = 0, round = 0, waiting_since = NULL, lease_until = NULL, updated_at = clock_timestamp()
    FROM (SELECT DISTINCT delivery_id FROM letters) l
    WHERE d.id = l.delivery_id AND d.state = 'dead'
    RETURNING ",
    released_columns!(),
    "
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at)
    SELECT id, run, 'replayed', tenant_id, channel, clock_timestamp() FROM released
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), moved AS (
    UPDATE dead_letters l SET status = 'replayed', replay_id = asked.replay_id
    FROM asked, letters
    WHERE l.id = letters.id AND letters.delivery_id IN (SELECT id FROM released)
    RETURNING 1
), noted AS (
    UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id
), ",
    share_out!(),
    ", ",
    boxed!("placed WHERE share IS NULL", "released")
);

const DROP: &str = "
WITH asked AS (SELECT ?::uuid AS replay_id
), letters AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id = ANY (?::uuid[]) AND status = 'open' ORDER BY id FOR UPDATE
), moved AS (
    UPDATE dead_letters l SET status = 'dropped', replay_id = asked.replay_id FROM asked, letters WHERE l.id = letters.id RETURNING 1
), noted AS (
    UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id
)
SELECT count(*) FROM moved";

const SKIP: &str = "
UPDATE dead_letters l SET replay_id = asked.id
FROM (SELECT ?::uuid AS id) asked
WHERE l.id = ANY (?::uuid[]) AND l.status = 'open'";

const REPUBLISHED: &str = "
WITH asked AS (SELECT ?::uuid AS replay_id
), done AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id = ANY (?::uuid[]) AND status = 'open'
        AND created_at <= (SELECT r.created_at FROM replays r JOIN asked ON r.id = asked.replay_id) ORDER BY id FOR UPDATE
), moved AS (
    UPDATE dead_letters l SET status = 'replayed', replay_id = asked.replay_id FROM asked, done WHERE l.id = done.id RETURNING 1
), skipped AS (
    UPDATE dead_letters l SET replay_id = asked.replay_id FROM asked WHERE l.id = ANY (?::uuid[]) AND l.status = 'open'
)
UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id";

/// Whatever matched and was not moved counts as skipped, and a letter whose commit came late as matched.
const FINISH: &str = "
UPDATE replays SET status = 'done', finished_at = now(), matched = greatest(matched, replayed), skipped = greatest(matched - replayed, 0)
WHERE id = ? AND status = 'running'";

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
