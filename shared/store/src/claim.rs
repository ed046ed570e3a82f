//! Claiming a delivery. The claim is the fence: at most one worker may call a provider for a delivery at one run.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, DeliveryId, FailoverRound, MessageId, RecipientPolicy, TenantId, Tries,
    contract::WorkItem,
    seal::Sealer,
    suppression::{SuppressionReason, SuppressionScope},
};
use uuid::Uuid;

use super::{
    DbResult, Statement, Store, sealed,
    statement::{day, statement},
};

/// A claimed delivery with everything that is needed to send it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The run that this claim made, the fencing token; every later write names it.
    pub run: i32,
    /// Its message.
    pub message: MessageId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The recipient's address.
    pub recipient: Address,
    /// The line in which the claim took a slot: its WhatsApp session.
    pub line: Option<Uuid>,
    /// The counters of its tries, this attempt included.
    pub tries: Tries,
    /// The providers that were called since the last pause.
    pub round: FailoverRound,
    /// Since when no provider could be called for it, without an attempt.
    pub waiting_since: Option<DateTime<Utc>>,
    /// The suppressions of its address.
    pub suppressed: Vec<(SuppressionScope, SuppressionReason)>,
    /// The person.
    pub user_id: Option<String>,
    /// The person's preferences; `None` if there are none or the person is unknown.
    pub policy: Option<Arc<RecipientPolicy>>,
    /// The content as JSON.
    pub content: Vec<u8>,
    /// When the message was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The producer's request id.
    pub request_id: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
}

type Row = ((Uuid, i32, Uuid, i32, (String, Option<Uuid>), (i16, i16, i16, i32, Option<DateTime<Utc>>)), MessageRow);
type SqlRow = (
    (SqlUuid, Int4, SqlUuid, Int4, (Text, Nullable<SqlUuid>), (Int2, Int2, Int2, Int4, Nullable<Timestamptz>)),
    SqlMessageRow,
);

/// The columns that a claim takes from its message: person, content, acceptance, expiry, request id, trace context.
type MessageRow =
    (Option<String>, Option<Vec<u8>>, Option<DateTime<Utc>>, Option<DateTime<Utc>>, Option<String>, Option<String>);
type SqlMessageRow =
    (Nullable<Text>, Nullable<Binary>, Nullable<Timestamptz>, Nullable<Timestamptz>, Nullable<Text>, Nullable<Text>);

impl Store {
    /// Claims the deliveries that are still queued at the run of their hint; all are of `channel`. A delivery that is
    /// not returned belongs to another worker, has ended, or is back in its line. [`Store::load_policies`] then says
    /// whether a claim may be sent. It is a separate call, so that it can be repeated alone if it fails after the
    /// claim is committed.
    pub async fn claim(&self, channel: Channel, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
        let mut claims: Vec<Claim> = Vec::new();
        for hints in by_day(hints) {
            match self.claim_day(channel, &hints, lease_ms).await {
                Ok(more) => claims.extend(more),
                Err(error) if claims.is_empty() => return Err(error),
                // A claimed delivery must be sent, so it is returned. The audit finds the others.
                Err(error) => {
                    tracing::warn!(%error, "deliveries of another day could not be claimed");
                    break;
                }
            }
        }
        Ok(claims)
    }

    /// Claims deliveries that were created on one day; opens only the partitions of that day.
    async fn claim_day(&self, channel: Channel, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
        let ids = ids(hints);
        let query = match channel {
            Channel::Whatsapp => claim_in_line(hints, lease_ms),
            _ => claim(hints, lease_ms),
        };
        let Some(query) = query.at_day_of(self, &ids).await? else { return Ok(Vec::new()) };
        let rows: Vec<Row> = query.rows(self).await?;
        let missing = rows.iter().filter(|(_, message)| message.2.is_none()).map(|(delivery, _)| delivery.2);
        let found = self.messages_of(missing.collect()).await;
        let (mut found, is_whole) = match found {
            Ok(found) => (found, true),
            // Keep the claims that have a message. The others end with their lease.
            Err(error) => {
                tracing::warn!(%error, "messages of another day could not be read");
                (HashMap::new(), false)
            }
        };
        let claim = |(delivery, message): Row| {
            let message = found.remove(&delivery.2).unwrap_or(message);
            (is_whole || message.2.is_some()).then(|| Claim::of((delivery, message), self.sealer()))
        };
        Ok(rows.into_iter().filter_map(claim).collect())
    }

    /// Reads messages that were accepted on another day than their delivery: in the minute before midnight.
    async fn messages_of(&self, mut ids: Vec<Uuid>) -> DbResult<HashMap<Uuid, MessageRow>> {
        let mut found = HashMap::new();
        ids.sort_unstable();
        for ids in ids.chunk_by(|one, next| day(one) == day(next)) {
            let query = statement::<(SqlUuid, SqlMessageRow)>(MESSAGES).at_day_of(self, ids).await?;
            let Some(query) = query else { continue };
            let rows: Vec<(Uuid, MessageRow)> = query.bind::<Array<SqlUuid>, _>(ids.to_vec()).rows(self).await?;
            found.extend(rows);
        }
        Ok(found)
    }

    /// Takes the `hints` whose claim failed. Sets a watch on each delivery that a worker still holds, due when its
    /// lease ends. Returns their number.
    pub async fn watch(&self, hints: &[WorkItem]) -> DbResult<usize> {
        let mut watched = 0;
        for hints in by_day(hints) {
            let Some(query) = statement::<()>(WATCH).at_day_of(self, &ids(&hints)).await? else { continue };
            let query = query.bind::<Array<SqlUuid>, _>(ids(&hints));
            let runs = hints.iter().map(|hint| hint.r).collect::<Vec<_>>();
            watched += query.bind::<Array<Int4>, _>(runs).run(self).await?;
        }
        Ok(watched)
    }
}

fn claim(hints: &[WorkItem], lease_ms: i32) -> Statement<SqlRow> {
    let query = statement::<SqlRow>(CLAIM).bind::<Int4, _>(lease_ms);
    query.bind::<Array<SqlUuid>, _>(ids(hints)).bind::<Array<Int4>, _>(runs(hints))
}

/// Claims deliveries that need a slot of their line. Those of the highest rank get the free slots; the others go back
/// into their line, where the release finds them.
fn claim_in_line(hints: &[WorkItem], lease_ms: i32) -> Statement<SqlRow> {
    let query = statement::<SqlRow>(CLAIM_IN_LINE).bind::<Array<SqlUuid>, _>(ids(hints));
    query.bind::<Array<Int4>, _>(runs(hints)).bind::<Int4, _>(lease_ms)
}

/// Groups the hints by the day on which their deliveries were created, in the one lock order of all claims.
fn by_day(hints: &[WorkItem]) -> Vec<Vec<WorkItem>> {
    let mut hints = hints.to_vec();
    hints.sort_by_key(|hint| hint.d);
    hints.chunk_by(|one, next| day(&one.d.0) == day(&next.d.0)).map(<[WorkItem]>::to_vec).collect()
}

fn ids(hints: &[WorkItem]) -> Vec<Uuid> {
    hints.iter().map(|hint| hint.d.0).collect()
}

fn runs(hints: &[WorkItem]) -> Vec<i32> {
    hints.iter().map(|hint| hint.r).collect()
}

impl Claim {
    /// The recipient as a person, if known.
    pub fn person(&self, channel: Channel) -> Option<&str> {
        let by_inbox = (channel == Channel::InApp).then(|| self.recipient.reveal());
        self.user_id.as_deref().or(by_inbox).filter(|id| !id.is_empty())
    }

    fn of((delivery, message): Row, sealer: &Sealer) -> Self {
        let (id, run, message_id, tenant, (recipient, line), (attempts, deferrals, crashes, round, waiting_since)) =
            delivery;
        let (user_id, content, accepted_at, expires_at, request_id, traceparent) = message;
        // Keep the claim. A value that cannot be decrypted ends only its own delivery, as a dead letter.
        let tenant = TenantId(tenant);
        let opened = sealer.open(sealed::CONTENT.of(tenant), content.unwrap_or_default());
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
            round: FailoverRound(round),
            waiting_since,
            suppressed: Vec::new(),
            user_id,
            policy: None,
            content,
            accepted_at: accepted_at.unwrap_or_default(),
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

/// A message that was accepted just before midnight, with a delivery created after it, is not found here;
/// `messages_of` reads it.
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
FROM claimed c LEFT JOIN messages@ m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id";

/// Takes slots first, then makes the claims that they allow. A slot is wasted if its claim then fails, but the limit
/// still holds. A deleted line limits nothing: the provider finds no session, and the delivery ends as a dead letter
/// that an admin sees.
const CLAIM_IN_LINE: &str = "
WITH hinted AS MATERIALIZED (
    SELECT d.id, d.run, d.line, d.rank, d.expires_at FROM unnest(?::uuid[], ?::int4[]) AS u(id, run) JOIN deliveries@ d ON d.id = u.id
    WHERE d.run = u.run AND d.state = 'queued'
), asked AS (
    SELECT array_agg(line ORDER BY line) AS lines, array_agg(n ORDER BY line) AS wanted
    FROM (SELECT line, count(*)::int4 AS n FROM hinted WHERE line IS NOT NULL GROUP BY line) g
), granted AS MATERIALIZED (
    SELECT t.line, t.n FROM asked CROSS JOIN LATERAL take_slots(asked.lines, asked.wanted) t
), ranked AS MATERIALIZED (
    SELECT h.id, h.run, h.line, h.rank, h.expires_at,
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
    INSERT INTO parked (delivery_id, line, run, rank, expires_at) SELECT id, line, run, rank, expires_at FROM ranked WHERE NOT has_slot
    ON CONFLICT DO NOTHING
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.line, c.attempts, c.deferrals, c.crashes, c.round, c.waiting_since,
       m.user_id, coalesce(m.content, b.content), m.created_at, m.expires_at, m.request_id, m.traceparent
FROM claimed c LEFT JOIN messages@ m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id";

const MESSAGES: &str = "
SELECT m.id, m.user_id, coalesce(m.content, b.content), m.created_at, m.expires_at, m.request_id, m.traceparent
FROM messages@ m LEFT JOIN bulks b ON b.id = m.bulk_id WHERE m.id = ANY (?::uuid[])";

const WATCH: &str = "
INSERT INTO due (delivery_id, due_at, run, why)
SELECT d.id, greatest(d.lease_until, now()), d.run, 'watch'
FROM unnest(?::uuid[], ?::int4[]) AS h(id, run) JOIN deliveries@ d ON d.id = h.id
WHERE d.run = h.run + 1 AND d.state = 'sending' ORDER BY d.id
ON CONFLICT (delivery_id) DO NOTHING";
