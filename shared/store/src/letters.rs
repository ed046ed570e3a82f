//! Dead letters: what a person must look at, from deliveries that died and from publishes that were refused.
//!
//! A tenant sees its own, an operator (no scope) those of all tenants, unknown ones included. Replaying and dropping
//! them is in `replay`.

mod filter;
mod replay;

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable,
    dsl::sql,
    sql_types::{Array, Binary, Bool, Nullable, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use uuid::Uuid;

pub use filter::{LetterFilter, LetterStatus};
pub use replay::{IntakeLetter, LetterAction, Pass, Replay, RunningReplay};

use super::{DbResult, Store, schema::dead_letters, sealed, statement, webhook_events::enqueue_webhook_events};
use domain::{Channel, DeadOrigin, DeadReason, TenantId};

/// Largest body that is kept for a replay: four times what the intake takes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A dead letter as people see it; the body stays in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Queryable)]
pub struct DeadLetter {
    /// Its id.
    pub id: Uuid,
    /// The slug of its tenant; `None` if it is unknown.
    pub tenant: Option<String>,
    /// The message whose delivery died.
    pub message_id: Option<Uuid>,
    /// The delivery that died.
    pub delivery_id: Option<Uuid>,
    /// The channel, as far as it is known.
    pub channel: Option<String>,
    /// `delivery`, `intake` or `broker`.
    pub origin: String,
    /// A word of [`DeadReason`].
    pub reason: String,
    /// What happened, as a clause.
    pub detail: String,
    /// The `message_id` property of a refused publish.
    pub amqp_id: Option<String>,
    /// The routing key of a refused publish.
    pub routing_key: Option<String>,
    /// Whether the body of the refused publish was kept.
    pub has_body: bool,
    /// `open`, `replayed` or `dropped`.
    pub status: String,
    /// The replay that moved it.
    pub replay_id: Option<Uuid>,
    /// When it was written down.
    pub created_at: DateTime<Utc>,
}

/// A letter to write down that belongs to no delivery.
#[derive(Clone, Debug)]
pub struct NewLetter {
    /// Its id; a second letter with the same one is not written.
    pub id: Uuid,
    /// The slug of the tenant it names; an unknown one is left out.
    pub tenant: Option<String>,
    /// The channel it names.
    pub channel: Option<Channel>,
    /// Who gave it up.
    pub origin: DeadOrigin,
    /// Why.
    pub reason: DeadReason,
    /// Why, as a clause.
    pub detail: String,
    /// The `message_id` property.
    pub amqp_id: Option<String>,
    /// The routing key it was published with; `None` if it was no submission.
    pub routing_key: Option<String>,
    /// The broker user that published it, if it was a submission; empty: it did not say.
    pub amqp_user: Option<String>,
    /// The body, to be replayed; cut off letters beyond [`BODY_BYTES_MAX`].
    pub body: Option<Vec<u8>>,
}

/// What is selected for a [`DeadLetter`], in its order.
macro_rules! columns {
    () => {
        (
            dead_letters::id,
            sql::<Nullable<Text>>("(SELECT slug FROM tenants WHERE tenants.id = dead_letters.tenant_id)"),
            dead_letters::message_id,
            dead_letters::delivery_id,
            dead_letters::channel,
            dead_letters::origin,
            dead_letters::reason,
            dead_letters::detail,
            dead_letters::amqp_id,
            dead_letters::routing_key,
            dead_letters::body.is_not_null(),
            dead_letters::status,
            dead_letters::replay_id,
            dead_letters::created_at,
        )
    };
}

impl NewLetter {
    /// The id of a letter that brings none along: the same parts give the same id (a UUIDv8, RFC 9562), so a message
    /// that the broker delivers twice becomes one letter.
    pub fn id_of(parts: &[&[u8]]) -> Uuid {
        let mut context = Context::new(&SHA256);
        for part in parts {
            // With its length, no part can pass for the end of the one before.
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

impl Store {
    /// Up to `limit` letters, newest first; `before` is the id of the last one of the page before (an unknown id gives
    /// an empty page).
    pub async fn letters_list(
        &self,
        scope: Option<TenantId>,
        filter: &LetterFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<DeadLetter>> {
        let mut query = filter.query(scope);
        if let Some(before) = before {
            let older = sql::<Bool>("(created_at, id) < (SELECT c.created_at, c.id FROM dead_letters c WHERE c.id = ");
            query = query.filter(older.bind::<SqlUuid, _>(before).sql(")"));
        }
        let page =
            query.order((dead_letters::created_at.desc(), dead_letters::id.desc())).limit(limit).select(columns!());
        let mut conn = self.within(scope).await?;
        let letters = page.load(&mut *conn).await;
        let letters: Vec<DeadLetter> = conn.done(letters).await?;
        Ok(letters.into_iter().map(|letter| self.letter_opened(letter)).collect())
    }

    /// One letter, if it exists and `scope` may see it.
    pub async fn letter(&self, scope: Option<TenantId>, id: Uuid) -> DbResult<Option<DeadLetter>> {
        let one = LetterFilter { ids: Some(vec![id]), ..LetterFilter::default() };
        let query = one.query(scope).select(columns!());
        let mut conn = self.within(scope).await?;
        let letter = query.first(&mut *conn).await.optional();
        Ok(conn.done(letter).await?.map(|letter| self.letter_opened(letter)))
    }

    /// The detail of a delivery is one of its log as well, and plain.
    fn letter_opened(&self, mut letter: DeadLetter) -> DeadLetter {
        if letter.delivery_id.is_none() {
            let detail = self.opened_text(sealed::LETTER_DETAIL.of_nobody(), letter.detail);
            letter.detail = detail.unwrap_or_default();
        }
        letter
    }

    /// How many open letters match: what `action` with this filter would move.
    pub async fn letters_match(
        &self,
        scope: Option<TenantId>,
        filter: &LetterFilter,
        action: LetterAction,
    ) -> DbResult<i64> {
        let mut conn = self.within(scope).await?;
        let count = filter.open(scope, action).count().get_result(&mut *conn).await;
        conn.done(count).await
    }

    /// Writes letters down, each id once, and returns the ids that were new. A letter that was replayed or dropped and
    /// comes once more is open again, and counts as written now: whatever was done about it did not help. So does one that comes
    /// back from a replay that has not noted yet that the letter has moved.
    pub async fn insert_letters(&self, mut letters: Vec<NewLetter>) -> DbResult<Vec<Uuid>> {
        // A statement may touch a row once only, and writers that overlap must take the rows in one order.
        letters.sort_by_key(|letter| letter.id);
        letters.dedup_by_key(|letter| letter.id);
        // What a refused publish says, and what was wrong with it, is as private as what was accepted.
        for letter in &mut letters {
            letter.detail = self
                .sealer()
                .seal_text(sealed::LETTER_DETAIL.of_nobody(), &clean(Some(&letter.detail)).unwrap_or_default())?;
            // One that is too long is better left out than kept in half: half of it would replay as something else.
            let body = letter.body.take().filter(|body| body.len() <= BODY_BYTES_MAX);
            letter.body = body.map(|body| self.sealer().seal(sealed::LETTER_BODY.of_nobody(), &body)).transpose()?;
        }
        let columns = |of: fn(&NewLetter) -> Option<String>| letters.iter().map(of).collect::<Vec<_>>();
        let query = statement::<SqlUuid>(INSERT)
            .bind::<Array<SqlUuid>, _>(letters.iter().map(|letter| letter.id).collect::<Vec<_>>())
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| clean(letter.tenant.as_deref())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| letter.channel.map(|channel| channel.to_string())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| Some(letter.origin.to_string())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| Some(letter.reason.to_string())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| Some(letter.detail.clone())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| clean(letter.amqp_id.as_deref())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| clean(letter.routing_key.as_deref())))
            .bind::<Array<Nullable<Text>>, _>(columns(|letter| clean(letter.amqp_user.as_deref())))
            .bind::<Array<Nullable<Binary>>, _>(letters.into_iter().map(|letter| letter.body).collect::<Vec<_>>());
        query.rows(self).await
    }
}

/// PostgreSQL's text knows no NUL, and what strangers publish may hold one.
fn clean(text: Option<&str>) -> Option<String> {
    text.map(|text| text.replace('\0', ""))
}

const INSERT: &str = concat!(
    "
WITH written AS (
INSERT INTO dead_letters (id, tenant_id, channel, origin, reason, detail, amqp_id, routing_key, amqp_user, body)
SELECT l.id, t.id, l.channel, l.origin, l.reason, l.detail, l.amqp_id, l.routing_key, l.amqp_user, l.body
FROM unnest(?::uuid[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::bytea[])
    AS l(id, tenant, channel, origin, reason, detail, amqp_id, routing_key, amqp_user, body)
LEFT JOIN tenants t ON t.slug = l.tenant
ON CONFLICT (id) DO UPDATE
SET status = 'open', replay_id = NULL, created_at = now(), reason = excluded.reason, detail = excluded.detail
WHERE dead_letters.status <> 'open'
   OR dead_letters.created_at <= (SELECT max(r.created_at) FROM replays r WHERE r.status = 'running')
RETURNING id, tenant_id, channel, origin, reason
), heard AS (",
    enqueue_webhook_events!(plain
        "
    SELECT tenant_id, channel, NULL::uuid, 'dead_letter.created', clock_timestamp(), id, NULL::int4,
           jsonb_build_object('id', id, 'channel', channel, 'origin', origin, 'reason', reason)
    FROM written WHERE tenant_id IS NOT NULL"
    ),
    "
)
SELECT id FROM written"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_parts_give_the_same_id_and_others_another() {
        let id = NewLetter::id_of(&[b"queue", b"", b"body"]);
        assert_eq!(id, NewLetter::id_of(&[b"queue", b"", b"body"]));
        for other in [&[b"queue".as_slice(), b"body", b""][..], &[b"queueb", b"", b"ody"], &[b"queue", b"body"]] {
            assert_ne!(id, NewLetter::id_of(other));
        }
    }
}
