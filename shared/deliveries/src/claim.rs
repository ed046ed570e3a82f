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
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
    statement::day,
};
use uuid::Uuid;

use crate::ClaimStore;

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
    /// The time since which no provider could be called for it.
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

row! {
    struct ClaimRow {
        id: Uuid as SqlUuid,
        run: i32 as Int4,
        message_id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        recipient: String as Text,
        line: Option<Uuid> as Nullable<SqlUuid>,
        attempts: i16 as Int2,
        deferrals: i16 as Int2,
        crashes: i16 as Int2,
        round: i32 as Int4,
        waiting_since: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        user_id: Option<String> as Nullable<Text>,
        content: Option<Vec<u8>> as Nullable<Binary>,
        /// `None`: its message was accepted on another day.
        accepted_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        expires_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        request_id: Option<String> as Nullable<Text>,
        traceparent: Option<String> as Nullable<Text>,
    }
}

row! {
    /// The columns that a claim takes from its message.
    #[derive(Clone)]
    struct MessageRow {
        id: Uuid as SqlUuid,
        user_id: Option<String> as Nullable<Text>,
        content: Option<Vec<u8>> as Nullable<Binary>,
        accepted_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        expires_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        request_id: Option<String> as Nullable<Text>,
        traceparent: Option<String> as Nullable<Text>,
    }
}

impl ClaimRow {
    /// The row with this message.
    fn with(self, message: MessageRow) -> Self {
        let MessageRow { id: _, user_id, content, accepted_at, expires_at, request_id, traceparent } = message;
        Self { user_id, content, accepted_at, expires_at, request_id, traceparent, ..self }
    }
}

impl ClaimStore<'_> {
    /// Claims the deliveries that are still queued at the run of their hint; all are of `channel`. A delivery that is
    /// not returned belongs to another worker, has ended, or is back in its line. [`PolicyStore::load`] then says
    /// whether a claim may be sent. It is a separate call, so that it can be repeated alone if it fails after the
    /// claim is committed.
    pub async fn claim(self, channel: Channel, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
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
    async fn claim_day(self, channel: Channel, hints: &[WorkItem], lease_ms: i32) -> DbResult<Vec<Claim>> {
        let (ids, runs) = (ids(hints), runs(hints));
        let query = match channel {
            Channel::Whatsapp => ClaimInLine { ids: ids.clone(), runs, lease_ms }.query(),
            _ => ClaimQueued { lease_ms, ids: ids.clone(), runs }.query(),
        };
        let Some(query) = query.in_existing_partition_of(self.store, &ids).await? else { return Ok(Vec::new()) };
        let rows = query.rows(self.store).await?;
        let missing = rows.iter().filter(|row| row.accepted_at.is_none()).map(|row| row.message_id);
        let found = self.messages_of(missing.collect()).await;
        let (found, is_whole) = match found {
            Ok(found) => (found, true),
            // Keep the claims that have a message. The others end with their lease.
            Err(error) => {
                tracing::warn!(%error, "messages of another day could not be read");
                (HashMap::new(), false)
            }
        };
        let claim = |row: ClaimRow| {
            // A message may have several deliveries in one batch.
            let row = match found.get(&row.message_id) {
                Some(message) => row.with(message.clone()),
                None => row,
            };
            (is_whole || row.accepted_at.is_some()).then(|| Claim::of(row, self.store.sealer()))
        };
        Ok(rows.into_iter().filter_map(claim).collect())
    }

    /// Reads messages that were accepted on another day than their delivery: in the minute before midnight.
    async fn messages_of(self, mut ids: Vec<Uuid>) -> DbResult<HashMap<Uuid, MessageRow>> {
        let mut found = HashMap::new();
        ids.sort_unstable();
        for ids in ids.chunk_by(|one, next| day(one) == day(next)) {
            let query = Messages { ids: ids.to_vec() }.query().in_existing_partition_of(self.store, ids).await?;
            let Some(query) = query else { continue };
            found.extend(query.rows(self.store).await?.into_iter().map(|message| (message.id, message)));
        }
        Ok(found)
    }

    /// Takes the `hints` whose claim failed. Sets a watch on each delivery that a worker still holds, due when its
    /// lease ends. Returns their number.
    pub async fn watch(self, hints: &[WorkItem]) -> DbResult<usize> {
        let mut watched = 0;
        for hints in by_day(hints) {
            let (ids, runs) = (ids(&hints), runs(&hints));
            let query = Watch { ids: ids.clone(), runs }.query().in_existing_partition_of(self.store, &ids).await?;
            let Some(query) = query else { continue };
            watched += query.run(self.store).await?;
        }
        Ok(watched)
    }
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

    fn of(row: ClaimRow, sealer: &Sealer) -> Self {
        // Keep the claim. A value that cannot be decrypted ends only its own delivery, as a dead letter.
        let tenant = TenantId(row.tenant_id);
        let opened = sealer.open(sealed::CONTENT.of(tenant), row.content.unwrap_or_default());
        let opened =
            opened.and_then(|content| Ok((content, sealer.open_text(sealed::RECIPIENT.of(tenant), row.recipient)?)));
        let (content, recipient) = opened.unwrap_or_else(|error| {
            tracing::error!(delivery.id = %row.id, %error, "the content of a delivery cannot be opened");
            Default::default()
        });
        Self {
            delivery: DeliveryId(row.id),
            run: row.run,
            message: MessageId(row.message_id),
            tenant,
            recipient: Address::new(recipient),
            line: row.line,
            tries: tries(row.attempts, row.deferrals, row.crashes),
            round: FailoverRound(row.round),
            waiting_since: row.waiting_since,
            suppressed: Vec::new(),
            user_id: row.user_id,
            policy: None,
            content,
            accepted_at: row.accepted_at.unwrap_or_default(),
            expires_at: row.expires_at,
            request_id: row.request_id,
            traceparent: row.traceparent,
        }
    }
}

/// The counters of a row; they are never negative.
pub(crate) fn tries(attempts: i16, deferrals: i16, crashes: i16) -> Tries {
    let count = |n: i16| u16::try_from(n).unwrap_or_default();
    Tries { attempts: count(attempts), deferrals: count(deferrals), crashes: count(crashes) }
}

sql!(ClaimQueued in "claim/claim_queued.sql" {
    lease_ms: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>, runs: Vec<i32> as Array<Int4>
} -> ClaimRow);
sql!(
    /// Claims deliveries that need a slot of their line. Those of the highest rank get the free slots; the others go
    /// back into their line, where the release finds them.
    ClaimInLine in "claim/claim_in_line.sql" {
        ids: Vec<Uuid> as Array<SqlUuid>, runs: Vec<i32> as Array<Int4>, lease_ms: i32 as Int4
    } -> ClaimRow
);
sql!(Messages in "claim/messages.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> MessageRow);
sql!(Watch in "claim/watch.sql" { ids: Vec<Uuid> as Array<SqlUuid>, runs: Vec<i32> as Array<Int4> });
statements!(ClaimQueued, ClaimInLine, Messages, Watch);
