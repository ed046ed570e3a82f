//! Dead letters: dead deliveries and refused publishes that a person must look at.
//!
//! A tenant sees its own, an operator (no scope) those of all tenants and of unknown ones. Replaying and dropping
//! them is in `replay`.

mod filter;
pub(crate) mod replay;

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, Utc};
use diesel::{
    ExpressionMethods, QueryDsl, Queryable,
    dsl::sql,
    sql_types::{Array, Binary, Bool, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use uuid::Uuid;

use crate::DeadLetterStore;

pub use filter::{LetterFilter, LetterStatus};
pub use replay::{IntakeLetter, LetterAction, Pass, Replay, RunningReplay};

use crate::schema::dead_letters;
use domain::{Channel, DeadOrigin, DeadReason, TenantId};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};

/// The largest body that is kept for a replay: four times the limit of the intake.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

row! {
    /// A dead letter without its body, which stays in the database.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Queryable)]
    pub struct DeadLetter {
        /// Its id.
        pub id: Uuid as SqlUuid,
        /// The slug of its tenant; `None` if it is unknown.
        pub tenant: Option<String> as Nullable<Text>,
        /// The message whose delivery died.
        pub message_id: Option<Uuid> as Nullable<SqlUuid>,
        /// The delivery that died.
        pub delivery_id: Option<Uuid> as Nullable<SqlUuid>,
        /// The channel, if it is known.
        pub channel: Option<String> as Nullable<Text>,
        /// `delivery`, `intake` or `broker`.
        pub origin: String as Text,
        /// A word of [`DeadReason`].
        pub reason: String as Text,
        /// The cause, as a clause.
        pub detail: String as Text,
        /// The `message_id` property of a refused publish.
        pub amqp_id: Option<String> as Nullable<Text>,
        /// The routing key of a refused publish.
        pub routing_key: Option<String> as Nullable<Text>,
        /// Whether the body of the refused publish was kept.
        pub has_body: bool as Bool,
        /// `open`, `replayed` or `dropped`.
        pub status: String as Text,
        /// The replay that moved it.
        pub replay_id: Option<Uuid> as Nullable<SqlUuid>,
        /// When it was written down.
        pub created_at: DateTime<Utc> as Timestamptz,
    }
}

/// A new letter that belongs to no delivery.
#[derive(Clone, Debug)]
pub struct NewLetter {
    /// Its id. A second letter with the same id is not stored.
    pub id: Uuid,
    /// The slug of its tenant; an unknown one is left out.
    pub tenant: Option<String>,
    /// The channel it names.
    pub channel: Option<Channel>,
    /// The part that gave it up.
    pub origin: DeadOrigin,
    /// Why.
    pub reason: DeadReason,
    /// Why, as a clause.
    pub detail: String,
    /// The `message_id` property.
    pub amqp_id: Option<String>,
    /// The routing key it was published with; `None` if it was no submission.
    pub routing_key: Option<String>,
    /// The broker user that published it, if it was a submission; empty: the publisher gave none.
    pub amqp_user: Option<String>,
    /// The body, for a replay. A body beyond [`BODY_BYTES_MAX`] is left out.
    pub body: Option<Vec<u8>>,
}

/// The columns of a [`DeadLetter`], in its order.
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
    /// The id of a letter that has none of its own. The same parts give the same id (a UUIDv8, RFC 9562), so a message
    /// that the broker delivers twice becomes one letter.
    pub fn id_of(parts: &[&[u8]]) -> Uuid {
        let mut context = Context::new(&SHA256);
        for part in parts {
            // Each part follows its length, so the end of a part cannot be taken for the start of the next.
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

impl DeadLetterStore<'_> {
    /// Up to `limit` letters, newest first. `before` is the id of the last letter of the previous page; an unknown id
    /// gives an empty page.
    pub async fn list(
        self,
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
        let mut conn = self.store.within(scope).await?;
        let letters = page.load(&mut *conn).await;
        let letters: Vec<DeadLetter> = conn.done(letters).await?;
        Ok(letters.into_iter().map(|letter| self.letter_opened(letter)).collect())
    }

    /// One letter, if it exists and `scope` may see it.
    pub async fn find(self, scope: Option<TenantId>, id: Uuid) -> DbResult<Option<DeadLetter>> {
        let letter = One { id, tenant: scope.map(|tenant| tenant.0) }.query().within(scope).first(self.store).await?;
        Ok(letter.map(|letter| self.letter_opened(letter)))
    }

    /// The detail of a delivery's letter is also in its log, and not encrypted.
    fn letter_opened(self, mut letter: DeadLetter) -> DeadLetter {
        if letter.delivery_id.is_none() {
            let detail = self.store.opened_text(sealed::LETTER_DETAIL.of_nobody(), letter.detail);
            letter.detail = detail.unwrap_or_default();
        }
        letter
    }

    /// The number of open letters that match: those that `action` with this filter would move.
    pub async fn letters_match(
        self,
        scope: Option<TenantId>,
        filter: &LetterFilter,
        action: LetterAction,
    ) -> DbResult<i64> {
        let mut conn = self.store.within(scope).await?;
        let count = filter.open(scope, action).count().get_result(&mut *conn).await;
        conn.done(count).await
    }

    /// Stores letters, each id once, and returns the ids that were new. A letter that was replayed or dropped and is
    /// stored again is open again, with the present time: the action did not help. The same holds for a letter that
    /// comes back from a replay before the replay has recorded it as moved.
    pub async fn insert(self, mut letters: Vec<NewLetter>) -> DbResult<Vec<Uuid>> {
        // A statement may touch a row only once, and overlapping writers must take the rows in one order.
        letters.sort_by_key(|letter| letter.id);
        letters.dedup_by_key(|letter| letter.id);
        // A refused publish and its fault are as private as an accepted message.
        for letter in &mut letters {
            letter.detail = self
                .store
                .sealer()
                .seal_text(sealed::LETTER_DETAIL.of_nobody(), &clean(Some(&letter.detail)).unwrap_or_default())?;
            // A body that is too long is left out: half of it would be replayed as another message.
            let body = letter.body.take().filter(|body| body.len() <= BODY_BYTES_MAX);
            letter.body =
                body.map(|body| self.store.sealer().seal(sealed::LETTER_BODY.of_nobody(), &body)).transpose()?;
        }
        let texts = |of: fn(&NewLetter) -> Option<String>| letters.iter().map(of).collect();
        let insert = Insert {
            ids: letters.iter().map(|letter| letter.id).collect(),
            tenants: texts(|letter| clean(letter.tenant.as_deref())),
            channels: texts(|letter| letter.channel.map(|channel| channel.to_string())),
            origins: texts(|letter| Some(letter.origin.to_string())),
            reasons: texts(|letter| Some(letter.reason.to_string())),
            details: texts(|letter| Some(letter.detail.clone())),
            amqp_ids: texts(|letter| clean(letter.amqp_id.as_deref())),
            routing_keys: texts(|letter| clean(letter.routing_key.as_deref())),
            amqp_users: texts(|letter| clean(letter.amqp_user.as_deref())),
            bodies: letters.into_iter().map(|letter| letter.body).collect(),
        };
        insert.query().rows(self.store).await
    }
}

/// PostgreSQL's text has no NUL, and a refused publish may contain one.
fn clean(text: Option<&str>) -> Option<String> {
    text.map(|text| text.replace('\0', ""))
}

sql!(One in "letters/one.sql" { id: Uuid as SqlUuid, tenant: Option<i32> as Nullable<Int4> } -> DeadLetter);
sql!(Insert in "letters/insert.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>,
    tenants: Vec<Option<String>> as Array<Nullable<Text>>,
    channels: Vec<Option<String>> as Array<Nullable<Text>>,
    origins: Vec<Option<String>> as Array<Nullable<Text>>,
    reasons: Vec<Option<String>> as Array<Nullable<Text>>,
    details: Vec<Option<String>> as Array<Nullable<Text>>,
    amqp_ids: Vec<Option<String>> as Array<Nullable<Text>>,
    routing_keys: Vec<Option<String>> as Array<Nullable<Text>>,
    amqp_users: Vec<Option<String>> as Array<Nullable<Text>>,
    bodies: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
} -> Uuid as SqlUuid);
statements!(One, Insert);

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
