//! The claim: the fence that lets at most one worker call a provider for a delivery at a run.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Statement, Store, sealed, statement};
use crate::{
    contract::WorkItem,
    domain::{
        Address, Channel, DeliveryId, MessageId, Round, TenantId, Tries, Wishes,
        suppression::{SuppressionReason, SuppressionScope},
    },
    seal::Sealer,
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
    /// The line it got a slot of: its WhatsApp session.
    pub line: Option<Uuid>,
    /// What was tried, this attempt included.
    pub tries: Tries,
    /// Which providers were asked since the last pause.
    pub round: Round,
    /// Since when it has waited for a provider that may be called, without an attempt.
    pub waiting_since: Option<DateTime<Utc>>,
    /// What its address is suppressed for.
    pub suppressed: Vec<(SuppressionScope, SuppressionReason)>,
    /// The person.
    pub user_id: Option<String>,
    /// What the person wants; `None`: they said nothing, or nobody knows who they are.
    pub wishes: Option<Arc<Wishes>>,
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
    (Uuid, i32, Uuid, i32, (String, Option<Uuid>), (i16, i16, i16, i32, Option<DateTime<Utc>>)),
    (Option<String>, Vec<u8>, DateTime<Utc>, Option<DateTime<Utc>>, Option<String>, Option<String>),
);
type SqlRow = (
    (SqlUuid, Int4, SqlUuid, Int4, (Text, Nullable<SqlUuid>), (Int2, Int2, Int2, Int4, Nullable<Timestamptz>)),
    (Nullable<Text>, Binary, Timestamptz, Nullable<Timestamptz>, Nullable<Text>, Nullable<Text>),
);

impl Store {
    /// Claims what is still waiting at the run its hint names; all of it is of `channel`. What stands against sending it comes
    /// along. What is not returned is somebody else's, or ended, or has gone back into its line.
    pub async fn claim(&self, channel: Channel, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
        let query = match channel {
            Channel::Whatsapp => claim_in_line(hints, lease_ms),
            _ => claim(hints, lease_ms),
        };
        let rows: Vec<Row> = query.rows(self).await?;
        let mut claims: Vec<Claim> = rows.into_iter().map(|row| Claim::of(row, self.sealer())).collect();
        self.look(channel, &mut claims).await?;
        Ok(claims)
    }

    /// Of `hints` whose claim failed: sets a watch on those that some worker still holds, for the moment its lease ends. Says
    /// how many.
    pub async fn watch(&self, hints: &[WorkItem]) -> DbResult<usize> {
        let (ids, runs) = sorted(hints);
        let query = statement::<()>(WATCH).near(&ids).bind::<Array<SqlUuid>, _>(ids).bind::<Array<Int4>, _>(runs);
        query.run(self).await
    }
}

fn claim(hints: &[WorkItem], lease_ms: i32) -> Statement<SqlRow> {
    let (ids, runs) = sorted(hints);
    let query = statement::<SqlRow>(CLAIM).near(&ids).bind::<Int4, _>(lease_ms);
    query.bind::<Array<SqlUuid>, _>(ids).bind::<Array<Int4>, _>(runs)
}

/// For deliveries that need a slot of their line: those of the highest rank get what slots there are, the others go back into
/// their line, where the release finds them.
fn claim_in_line(hints: &[WorkItem], lease_ms: i32) -> Statement<SqlRow> {
    let (ids, runs) = sorted(hints);
    let query = statement::<SqlRow>(CLAIM_IN_LINE).near(&ids).bind::<Array<SqlUuid>, _>(ids);
    query.bind::<Array<Int4>, _>(runs).bind::<Int4, _>(lease_ms)
}

/// Ids and runs, in the one lock order of all claims.
fn sorted(hints: &[WorkItem]) -> (Vec<Uuid>, Vec<i32>) {
    let mut hints = hints.to_vec();
    hints.sort_by_key(|hint| hint.d);
    hints.iter().map(|hint| (hint.d.0, hint.r)).unzip()
}

impl Claim {
    /// Who it is for, where that is known.
    pub fn person(&self, channel: Channel) -> Option<&str> {
        let by_inbox = (channel == Channel::InApp).then(|| self.recipient.reveal());
        self.user_id.as_deref().or(by_inbox).filter(|id| !id.is_empty())
    }

    fn of((delivery, message): Row, sealer: &Sealer) -> Self {
        let (id, run, message_id, tenant, (recipient, line), (attempts, deferrals, crashes, round, waiting_since)) =
            delivery;
        let (user_id, content, accepted_at, expires_at, request_id, traceparent) = message;
        // The claim stands. What cannot be opened ends as a dead letter by itself, and holds up nobody beside it.
        let tenant = TenantId(tenant);
        let opened = sealer.open(sealed::CONTENT.of(tenant), content);
        let opened =
            opened.and_then(|content| Ok((content, sealer.open_text(sealed::RECIPIENT.of(tenant), recipient)?)));
        let (content, recipient) = opened.unwrap_or_else(|error| {
            tracing::error!(delivery.id = %id, %error, "the content of a delivery cannot be opened");
            Default::default()
        });
        Self {
            delivery: DeliveryId(id),
            run,
            message: MessageId(message_id),
            tenant,
            recipient: Address::new(recipient),
            line,
            tries: tries(attempts, deferrals, crashes),
            round: Round(round),
            waiting_since,
            suppressed: Vec::new(),
            user_id,
            wishes: None,
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
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.recipient, d.line, d.attempts, d.deferrals, d.crashes, d.round, d.waiting_since
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.line, c.attempts, c.deferrals, c.crashes, c.round, c.waiting_since,
       m.user_id, coalesce(m.content, b.content), m.created_at, m.expires_at, m.request_id, m.traceparent
FROM claimed c JOIN messages m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id";

/// Slots first, then the claims they allow. A slot is lost where a claim then fails: the limit holds all the same.
/// A line that is gone limits nothing: the provider finds no session, and the delivery ends as a dead letter an admin sees.
const CLAIM_IN_LINE: &str = "
WITH hinted AS MATERIALIZED (
    SELECT d.id, d.run, d.line, d.rank FROM unnest(?::uuid[], ?::int4[]) AS u(id, run) JOIN deliveries@ d ON d.id = u.id
    WHERE d.run = u.run AND d.state = 'queued'
), asked AS (
    SELECT array_agg(line ORDER BY line) AS lines, array_agg(n ORDER BY line) AS wanted
    FROM (SELECT line, count(*)::int4 AS n FROM hinted WHERE line IS NOT NULL GROUP BY line) g
), granted AS MATERIALIZED (
    SELECT t.line, t.n FROM asked CROSS JOIN LATERAL take_slots(asked.lines, asked.wanted) t
), ranked AS MATERIALIZED (
    SELECT h.id, h.run, h.line, h.rank,
           g.line IS NULL OR row_number() OVER (PARTITION BY h.line ORDER BY h.rank DESC, h.id) <= g.n AS has_slot
    FROM hinted h LEFT JOIN granted g ON g.line = h.line
), claimed AS (
    UPDATE deliveries@ d
    SET state = 'sending', run = d.run + 1, attempts = d.attempts + 1, updated_at = clock_timestamp(),
        lease_until = clock_timestamp() + r.lease_ms * interval '1 millisecond'
    FROM (SELECT *, ?::int4 AS lease_ms FROM ranked WHERE has_slot) r
    WHERE d.id = r.id AND d.run = r.run AND d.state = 'queued'
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.recipient, d.line, d.attempts, d.deferrals, d.crashes, d.round, d.waiting_since
), put_back AS (
    INSERT INTO parked (delivery_id, line, run, rank) SELECT id, line, run, rank FROM ranked WHERE NOT has_slot
    ON CONFLICT DO NOTHING
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.line, c.attempts, c.deferrals, c.crashes, c.round, c.waiting_since,
       m.user_id, coalesce(m.content, b.content), m.created_at, m.expires_at, m.request_id, m.traceparent
FROM claimed c JOIN messages m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id";

const WATCH: &str = "
INSERT INTO due (delivery_id, due_at, run, why)
SELECT d.id, greatest(d.lease_until, now()), d.run, 'watch'
FROM unnest(?::uuid[], ?::int4[]) AS h(id, run) JOIN deliveries@ d ON d.id = h.id
WHERE d.run = h.run + 1 AND d.state = 'sending' ORDER BY d.id
ON CONFLICT (delivery_id) DO NOTHING";
