//! What providers told afterwards: each event kept once, sealed, and worked through by the scheduler.

use aws_lc_rs::rand;
use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Channel, DeliveryId, EventSource, ProviderName, State, TenantId, acceptance::Hash, replay, seal::SealError,
    suppression::suppressed_form, unsubscribe,
};
use uuid::Uuid;

use super::{DbResult, Store, holds::About, sealed, statement};

/// Soft bounces in a row after which an address is suppressed.
pub const SOFT_BOUNCES_MAX: i64 = 5;
/// How long an event that was worked through is remembered, so that a repeat is known: longer than any vendor tries.
const REMEMBERED: &str = "30 days";
/// The secret that signs the links of tracked mails.
const TRACKING: i32 = 1;
/// The secret of the links that unsubscribe.
const UNSUBSCRIBING: i32 = 2;
/// Of the proofs of replays.
const REPLAYING: i32 = 11;
const SECRET_BYTES: usize = 32;

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderEvent {
    /// Who told it.
    pub source: EventSource,
    /// What makes it the same event.
    pub dedup: Hash,
    /// The event as its provider sent it: JSON.
    pub body: Vec<u8>,
}

/// An event to work through.
#[derive(Clone, Debug)]
pub struct PendingProviderEvent {
    /// Its row.
    pub id: Uuid,
    /// Who told it; `None`: a later version knows.
    pub source: Option<EventSource>,
    /// What it says; `None`: it cannot be decrypted any more.
    pub body: Option<Vec<u8>>,
    /// How often it was taken up, this time included.
    pub tries: i16,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

/// A delivery that an event is about, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What an event of it names.
    pub about: About,
    /// Its state.
    pub state: State,
    /// Who was called last.
    pub provider: Option<ProviderName>,
    /// What that provider calls it, as far as the log has it.
    pub reference: Option<String>,
    /// Whether the end of the last call is unknown.
    pub in_doubt: bool,
}

impl Store {
    /// Keeps events in one commit. Says of each, in order, whether it is new.
    pub async fn keep_provider_events(&self, events: Vec<ProviderEvent>) -> DbResult<Vec<bool>> {
        let ids: Vec<Uuid> = events.iter().map(|_| Uuid::now_v7()).collect();
        let mut rows = Vec::with_capacity(events.len());
        for (id, event) in ids.iter().zip(events) {
            rows.push((
                *id,
                event.source.as_str(),
                event.dedup,
                self.sealer().seal(sealed::PROVIDER_EVENT.of_nobody(), &event.body)?,
            ));
        }
        // One lock order for all who keep the same events at once.
        rows.sort_by_key(|(_, _, dedup, _)| *dedup);
        let query = statement::<SqlUuid>(KEEP)
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rows.iter().map(|row| row.1).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(rows.iter().map(|row| row.2.to_vec()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(rows.into_iter().map(|row| row.3).collect::<Vec<_>>());
        let kept: Vec<Uuid> = query.rows(self).await?;
        Ok(ids.iter().map(|id| kept.contains(id)).collect())
    }

    /// Takes up to `limit` pending events that are due; no other caller gets them for `lease_ms`.
    pub async fn take_provider_events(&self, limit: i64, lease_ms: i32) -> DbResult<Vec<PendingProviderEvent>> {
        type Row = (Uuid, String, Vec<u8>, i16, DateTime<Utc>);
        let query = statement::<(SqlUuid, Text, Binary, Int2, Timestamptz)>(TAKE)
            .bind::<Int8, _>(limit)
            .bind::<Int4, _>(lease_ms);
        let mut rows: Vec<Row> = query.rows(self).await?;
        rows.sort_by_key(|row| row.0);
        let event = |(id, source, body, tries, created_at): Row| PendingProviderEvent {
            id,
            source: source.parse().ok(),
            body: self.sealer().open(sealed::PROVIDER_EVENT.of_nobody(), body).ok(),
            tries,
            created_at,
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// The deliveries that a provider knows by these names.
    pub async fn ids_by_ref(&self, provider: ProviderName, refs: Vec<String>) -> DbResult<Vec<(String, DeliveryId)>> {
        if refs.is_empty() {
            return Ok(Vec::new());
        }
        let query =
            statement::<(Text, SqlUuid)>(IDS_BY_REF).bind::<Text, _>(provider.as_str()).bind::<Array<Text>, _>(refs);
        let rows: Vec<(String, Uuid)> = query.rows(self).await?;
        Ok(rows.into_iter().map(|(name, id)| (name, DeliveryId(id))).collect())
    }

    /// Those of these deliveries that exist, of whatever tenant: what names them was signed by a provider.
    pub async fn subjects(&self, ids: Vec<DeliveryId>) -> DbResult<Vec<Subject>> {
        type Row = (Uuid, i32, i32, String, String, Option<String>, Option<String>, bool);
        type SqlRow = (SqlUuid, Int4, Int4, Text, Text, Nullable<Text>, Nullable<Text>, Bool);
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = ids.into_iter().map(|id| id.0).collect();
        let rows: Vec<Row> = statement::<SqlRow>(SUBJECTS).near(&ids).bind::<Array<SqlUuid>, _>(ids).rows(self).await?;
        let subject = |(id, tenant, run, channel, state, provider, reference, in_doubt): Row| {
            let about = (TenantId(tenant), DeliveryId(id), run, channel.parse().ok()?);
            let provider = provider.and_then(|name| name.parse().ok());
            Some(Subject { about, state: state.parse().ok()?, provider, reference, in_doubt })
        };
        Ok(rows.into_iter().filter_map(subject).collect())
    }

    /// Counts soft bounces, each event once, and returns the deliveries whose addresses have had too many in a row.
    pub async fn count_soft_bounces(&self, bounces: Vec<(Uuid, DeliveryId)>) -> DbResult<Vec<DeliveryId>> {
        let addresses = self.address_hashes(bounces.iter().map(|(_, delivery)| *delivery).collect()).await?;
        let rows: Vec<(Uuid, &Addressed)> = bounces
            .iter()
            .flat_map(|(event, delivery)| {
                addresses.iter().filter(|one| one.delivery == *delivery).map(|one| (*event, one))
            })
            .collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let query = statement::<(SqlUuid, Int8)>(COUNT_SOFT)
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|(event, _)| *event).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|(_, one)| one.delivery.0).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(rows.iter().map(|(_, one)| one.tenant.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rows.iter().map(|(_, one)| one.channel.as_str()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(rows.iter().map(|(_, one)| one.hash.clone()).collect::<Vec<_>>());
        let counts: Vec<(Uuid, i64)> = query.rows(self).await?;
        let many = counts.into_iter().filter(|(_, n)| *n >= SOFT_BOUNCES_MAX);
        Ok(many.map(|(delivery, _)| DeliveryId(delivery)).collect())
    }

    /// The addresses of these deliveries work: what came back before counts no more.
    pub async fn forget_soft_bounces(&self, deliveries: Vec<DeliveryId>) -> DbResult<()> {
        let addresses = self.address_hashes(deliveries).await?;
        if addresses.is_empty() {
            return Ok(());
        }
        let query = statement::<()>(FORGET_SOFT)
            .bind::<Array<Int4>, _>(addresses.iter().map(|one| one.tenant.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(addresses.iter().map(|one| one.channel.as_str()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(addresses.into_iter().map(|one| one.hash).collect::<Vec<_>>());
        query.run(self).await.map(drop)
    }

    /// Forgets events too old to be repeated, and old soft bounces. Bounded; says whether there are more.
    pub async fn forget_provider_events(&self, limit: i64) -> DbResult<bool> {
        let query = statement::<Int8>(FORGET)
            .bind::<Text, _>(REMEMBERED)
            .bind::<Int8, _>(limit)
            .bind::<Text, _>(REMEMBERED)
            .bind::<Int8, _>(limit);
        let gone: i64 = query.row(self).await?;
        Ok(gone >= limit)
    }

    /// The key that signs the pixels and links of tracked mails; made on first use.
    pub async fn tracking_secret(&self) -> DbResult<Vec<u8>> {
        self.service_secret(TRACKING).await
    }

    /// The key of the links that unsubscribe; made on first use.
    pub async fn unsubscribe_key(&self) -> DbResult<unsubscribe::Key> {
        Ok(unsubscribe::Key::new(&self.service_secret(UNSUBSCRIBING).await?)?)
    }

    /// The key that proves replays of refused submissions; made on first use.
    pub async fn replay_key(&self) -> DbResult<replay::Key> {
        Ok(replay::Key::new(&self.service_secret(REPLAYING).await?))
    }

    async fn service_secret(&self, id: i32) -> DbResult<Vec<u8>> {
        let mut secret = [0; SECRET_BYTES];
        rand::fill(&mut secret).map_err(|_| SealError::NoRandom)?;
        let (place, query) = (sealed::SERVICE_SECRET.of_nobody(), statement::<()>(MAKE_SECRET).bind::<Int4, _>(id));
        let query = query.bind::<Binary, _>(self.sealer().seal(place, &secret)?);
        query.run(self).await?;
        let stored: Vec<u8> = statement::<Binary>(READ_SECRET).bind::<Int4, _>(id).row(self).await?;
        Ok(self.sealer().open(place, stored)?)
    }

    async fn address_hashes(&self, deliveries: Vec<DeliveryId>) -> DbResult<Vec<Addressed>> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = deliveries.into_iter().map(|id| id.0).collect();
        let query = statement::<(SqlUuid, Int4, Text, Text)>(RECIPIENTS).near(&ids).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<(Uuid, i32, String, String)> = query.rows(self).await?;
        let mut addressed = Vec::with_capacity(rows.len());
        for (id, tenant, channel, recipient) in rows {
            let Ok(channel) = channel.parse() else { continue };
            let recipient = self.opened_text(sealed::RECIPIENT.of(TenantId(tenant)), recipient);
            let address = suppressed_form(channel, &recipient.unwrap_or_default());
            // Erased people have none.
            if !address.is_empty() {
                let hash = self.sealer().fingerprint(&tenant.to_string(), &address).to_vec();
                addressed.push(Addressed { delivery: DeliveryId(id), tenant: TenantId(tenant), channel, hash });
            }
        }
        Ok(addressed)
    }
}

/// Where a delivery went.
struct Addressed {
    delivery: DeliveryId,
    tenant: TenantId,
    channel: Channel,
    hash: Vec<u8>,
}

const KEEP: &str = "
INSERT INTO provider_events (id, teller, dedup, body)
SELECT * FROM unnest(?::uuid[], ?::text[], ?::bytea[], ?::bytea[])
ON CONFLICT (dedup) DO NOTHING
RETURNING id";

const TAKE: &str = "
WITH picked AS MATERIALIZED (
    SELECT id FROM provider_events WHERE status = 'pending' AND due_at <= now() ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED
)
UPDATE provider_events e SET due_at = now() + ? * interval '1 millisecond', tries = least(e.tries, 32000) + 1
FROM picked WHERE e.id = picked.id
RETURNING e.id, e.teller, e.body, e.tries, e.created_at";

const IDS_BY_REF: &str = "
SELECT r.ref, r.delivery_id
FROM (SELECT ?::text AS provider) p CROSS JOIN unnest(?::text[]) AS asked(ref)
JOIN provider_refs r ON r.provider = p.provider AND r.ref = asked.ref";

const SUBJECTS: &str = "
SELECT d.id, d.tenant_id, d.run, d.channel, d.state, d.provider,
       (SELECT x.provider_ref FROM delivery_events@ x WHERE x.delivery_id = d.id AND x.run = d.run AND x.provider_ref IS NOT NULL LIMIT 1),
       EXISTS (SELECT 1 FROM delivery_events@ x WHERE x.delivery_id = d.id AND x.run = d.run AND x.kind = 'ambiguous')
FROM deliveries@ d WHERE d.id = ANY (?::uuid[])";

const RECIPIENTS: &str = "SELECT id, tenant_id, channel, recipient FROM deliveries@ WHERE id = ANY (?::uuid[])";

/// A bounce that is written only now is not among the rows that this statement sees.
const COUNT_SOFT: &str = "
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::text[], ?::bytea[]) AS a(event_id, delivery_id, tenant_id, channel, address_hash)
), written AS (
    INSERT INTO soft_bounces (address_hash, tenant_id, channel, event_id)
    SELECT DISTINCT address_hash, tenant_id, channel, event_id FROM asked ORDER BY 1, 2, 3, 4
    ON CONFLICT DO NOTHING
    RETURNING address_hash, tenant_id, channel
)
SELECT a.delivery_id,
       (SELECT count(*) FROM soft_bounces b WHERE b.address_hash = a.address_hash AND b.tenant_id = a.tenant_id AND b.channel = a.channel)
       + (SELECT count(*) FROM written w WHERE w.address_hash = a.address_hash AND w.tenant_id = a.tenant_id AND w.channel = a.channel)
FROM asked a";

const FORGET_SOFT: &str = "
DELETE FROM soft_bounces b USING unnest(?::int4[], ?::text[], ?::bytea[]) AS a(tenant_id, channel, address_hash)
WHERE b.address_hash = a.address_hash AND b.tenant_id = a.tenant_id AND b.channel = a.channel";

const FORGET: &str = "
WITH events AS (
    DELETE FROM provider_events WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM provider_events WHERE created_at < now() - ?::interval AND status <> 'pending' ORDER BY created_at LIMIT ?))
    RETURNING 1
), bounces AS (
    DELETE FROM soft_bounces WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM soft_bounces WHERE created_at < now() - ?::interval * 3 ORDER BY created_at LIMIT ?))
    RETURNING 1
)
SELECT greatest((SELECT count(*) FROM events), (SELECT count(*) FROM bounces))";

const MAKE_SECRET: &str = "INSERT INTO service_secrets (id, secret) VALUES (?, ?) ON CONFLICT DO NOTHING";

const READ_SECRET: &str = "SELECT secret FROM service_secrets WHERE id = ?";
