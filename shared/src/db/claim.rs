//! The claim: the fence that lets at most one worker call a provider for a delivery at a run.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Store, statement};
use crate::{
    contract::WorkItem,
    domain::{Address, DeliveryId, MessageId, TenantId, Tries},
};

/// A delivery that is ours to send, with all that is needed for it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The run this claim made; every later write names it.
    pub run: i32,
    /// Its message.
    pub message: MessageId,
    /// Whose it is.
    pub tenant: TenantId,
    /// To whom.
    pub recipient: Address,
    /// What was tried, this attempt included.
    pub tries: Tries,
    /// The person.
    pub user_id: Option<String>,
    /// The content as JSON.
    pub content: Vec<u8>,
    /// When the message was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it is no longer worth sending.
    pub expires_at: Option<DateTime<Utc>>,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
}

type Row = (
    (Uuid, i32, Uuid, i32, String, (i16, i16, i16)),
    (Option<String>, Vec<u8>, DateTime<Utc>, Option<DateTime<Utc>>, Option<String>, Option<String>),
);
type SqlRow = (
    (SqlUuid, Int4, SqlUuid, Int4, Text, (Int2, Int2, Int2)),
    (Nullable<Text>, Binary, Timestamptz, Nullable<Timestamptz>, Nullable<Text>, Nullable<Text>),
);

impl Store {
    /// Claims what is still waiting at the run its hint names. What is not returned is somebody else's, or ended.
    pub async fn claim(&self, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
        let mut hints = hints.to_vec();
        hints.sort_by_key(|hint| hint.d);
        let ids: Vec<Uuid> = hints.iter().map(|hint| hint.d.0).collect();
        let query = statement::<SqlRow>(CLAIM)
            .near(&ids)
            .bind::<Int4, _>(lease_ms)
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Array<Int4>, _>(hints.iter().map(|hint| hint.r).collect::<Vec<_>>());
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().map(Claim::from).collect())
    }

    /// Of `hints`, which the broker delivered once more and whose claim failed: sets a watch on those that some worker
    /// still holds, for the moment its lease ends. Says how many.
    pub async fn watch(&self, hints: &[WorkItem]) -> DbResult<usize> {
        let ids: Vec<Uuid> = hints.iter().map(|hint| hint.d.0).collect();
        let query = statement::<()>(WATCH)
            .near(&ids)
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Array<Int4>, _>(hints.iter().map(|hint| hint.r).collect::<Vec<_>>());
        query.run(self).await
    }
}

impl From<Row> for Claim {
    fn from((delivery, message): Row) -> Self {
        let (id, run, message_id, tenant, recipient, (attempts, deferrals, crashes)) = delivery;
        let (user_id, content, accepted_at, expires_at, request_id, traceparent) = message;
        Self {
            delivery: DeliveryId(id),
            run,
            message: MessageId(message_id),
            tenant: TenantId(tenant),
            recipient: Address::new(recipient),
            tries: tries(attempts, deferrals, crashes),
            user_id,
            content,
            accepted_at,
            expires_at,
            request_id,
            traceparent,
        }
    }
}

/// The counters of a row; they are never negative.
pub(super) fn tries(attempts: i16, deferrals: i16, crashes: i16) -> Tries {
    let count = |n: i16| u16::try_from(n).unwrap_or_default();
    Tries { attempts: count(attempts), deferrals: count(deferrals), crashes: count(crashes) }
}

/// A message may have been accepted a moment before the midnight that its delivery came after: `messages` stays whole.
const CLAIM: &str = "
WITH claimed AS (
    UPDATE deliveries@ d
    SET state = 'sending', run = d.run + 1, attempts = d.attempts + 1, updated_at = clock_timestamp(),
        lease_until = clock_timestamp() + h.lease_ms * interval '1 millisecond'
    FROM (SELECT *, ?::int4 AS lease_ms FROM unnest(?::uuid[], ?::int4[]) AS u(id, run)) h
    WHERE d.id = h.id AND d.run = h.run AND d.state = 'queued'
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.recipient, d.attempts, d.deferrals, d.crashes
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.attempts, c.deferrals, c.crashes,
       m.user_id, coalesce(m.content, b.content), m.created_at, m.expires_at, m.request_id, m.traceparent
FROM claimed c JOIN messages m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id";

const WATCH: &str = "
INSERT INTO due (delivery_id, due_at, run, why)
SELECT d.id, greatest(d.lease_until, now()), d.run, 'watch'
FROM unnest(?::uuid[], ?::int4[]) AS h(id, run) JOIN deliveries@ d ON d.id = h.id
WHERE d.run = h.run + 1 AND d.state = 'sending'
ON CONFLICT (delivery_id) DO NOTHING";
