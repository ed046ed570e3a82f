//! The operations that both tables of inbound webhooks share: give rows back, put them off, end them.

use diesel::sql_types::{Array, Int4, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// A table of inbound webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundWebhook {
    /// The webhooks of WAHA.
    Waha,
    /// The webhooks of other providers.
    Provider,
}

struct Texts {
    end: &'static str,
    give_back: &'static str,
    put_off: &'static str,
}

macro_rules! texts {
    ($table:literal, $ended:literal) => {
        Texts {
            end: concat!(
                "UPDATE ",
                $table,
                " SET status = CASE WHEN id = ANY (?::uuid[]) THEN 'done' ELSE 'ignored' END",
                $ended,
                " WHERE id = ANY (?::uuid[]) AND status = 'pending'"
            ),
            give_back: concat!(
                "UPDATE ",
                $table,
                " SET tries = tries - 1, due_at = now() + interval '1 second'
WHERE id = ANY (?::uuid[]) AND status = 'pending' AND tries > 0"
            ),
            put_off: concat!(
                "UPDATE ",
                $table,
                " e SET due_at = now() + w.wait * interval '1 millisecond'
FROM unnest(?::uuid[], ?::int4[]) AS w(id, wait) WHERE e.id = w.id"
            ),
        }
    };
}

const WAHA: Texts = texts!("waha_events", "");
/// The body contains addresses and is not needed any more, so it is emptied.
const PROVIDER: Texts = texts!("provider_events", ", body = ''::bytea");

impl InboundWebhook {
    const fn texts(self) -> Texts {
        match self {
            Self::Waha => WAHA,
            Self::Provider => PROVIDER,
        }
    }
}

impl Store {
    /// Ends events as `done`, or as `ignored` if there is nothing to do.
    pub async fn end_events(&self, of: InboundWebhook, done: Vec<Uuid>, ignored: Vec<Uuid>) -> DbResult<()> {
        if done.is_empty() && ignored.is_empty() {
            return Ok(());
        }
        let query = statement::<()>(of.texts().end)
            .bind::<Array<SqlUuid>, _>(done.clone())
            .bind::<Array<SqlUuid>, _>([done, ignored].concat());
        query.run(self).await.map(drop)
    }

    /// Gives taken events back, so that they are taken again soon; events that ended meanwhile stay ended.
    pub async fn give_back_events(&self, of: InboundWebhook, ids: Vec<Uuid>) -> DbResult<()> {
        statement::<()>(of.texts().give_back).bind::<Array<SqlUuid>, _>(ids).run(self).await.map(drop)
    }

    /// Delays each event by its number of milliseconds.
    pub async fn put_off_events(&self, of: InboundWebhook, ids: Vec<Uuid>, waits_ms: Vec<i32>) -> DbResult<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = statement::<()>(of.texts().put_off).bind::<Array<SqlUuid>, _>(ids).bind::<Array<Int4>, _>(waits_ms);
        query.run(self).await.map(drop)
    }
}
