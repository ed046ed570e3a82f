//! Reports of providers after the call. Each event is stored once, sealed, and processed by the scheduler.

use aws_lc_rs::rand;
use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Channel, DeliveryId, EventSource, ProviderName, State, TenantId, acceptance::Hash, replay, seal::SealError,
    suppression::suppressed_form, unsubscribe,
};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{ProviderEventStore, holds::About};

/// Soft bounces in a row after which an address is suppressed.
pub const SOFT_BOUNCES_MAX: i64 = 5;
/// How long a processed event is kept, so that a repeat is recognized: longer than any vendor retries.
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
    /// The source of the event.
    pub source: EventSource,
    /// The hash that identifies the event.
    pub dedup: Hash,
    /// The event as its provider sent it: JSON.
    pub body: Vec<u8>,
}

/// An event to work through.
#[derive(Clone, Debug)]
pub struct PendingProviderEvent {
    /// Its row.
    pub id: Uuid,
    /// The source of the event; `None`: a word of a later version.
    pub source: Option<EventSource>,
    /// The event; `None`: it cannot be decrypted.
    pub body: Option<Vec<u8>>,
    /// How often it was taken, including now.
    pub tries: i16,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

/// The state of a delivery that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The subject that an event of it names.
    pub about: About,
    /// Its state.
    pub state: State,
    /// The provider of the last call.
    pub provider: Option<ProviderName>,
    /// The provider's id of the message, if the log has it.
    pub reference: Option<String>,
    /// Whether the result of the last call is unknown.
    pub in_doubt: bool,
}

row! {
    struct Taken {
        id: Uuid as SqlUuid,
        source: String as Text,
        body: Vec<u8> as Binary,
        tries: i16 as Int2,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct Referred {
        name: String as Text,
        delivery: Uuid as SqlUuid,
    }
}

row! {
    struct SubjectRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        run: i32 as Int4,
        channel: String as Text,
        state: String as Text,
        provider: Option<String> as Nullable<Text>,
        reference: Option<String> as Nullable<Text>,
        in_doubt: bool as Bool,
    }
}

row! {
    struct Recipient {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        channel: String as Text,
        recipient: String as Text,
    }
}

row! {
    struct SoftBounces {
        delivery: Uuid as SqlUuid,
        n: i64 as Int8,
    }
}

impl ProviderEventStore<'_> {
    /// Stores events in one commit. Returns for each, in order, whether it is new.
    pub async fn insert(self, events: Vec<ProviderEvent>) -> DbResult<Vec<bool>> {
        let ids: Vec<Uuid> = events.iter().map(|_| Uuid::now_v7()).collect();
        let mut rows = Vec::with_capacity(events.len());
        for (id, event) in ids.iter().zip(events) {
            rows.push((
                *id,
                event.source.as_str(),
                event.dedup,
                self.store.sealer().seal(sealed::PROVIDER_EVENT.of_nobody(), &event.body)?,
            ));
        }
        // All callers that store the same events use one lock order.
        rows.sort_by_key(|(_, _, dedup, _)| *dedup);
        let keep = Keep {
            ids: rows.iter().map(|row| row.0).collect(),
            sources: rows.iter().map(|row| row.1).collect(),
            dedups: rows.iter().map(|row| row.2.to_vec()).collect(),
            bodies: rows.into_iter().map(|row| row.3).collect(),
        };
        let kept = keep.query().rows(self.store).await?;
        Ok(ids.iter().map(|id| kept.contains(id)).collect())
    }

    /// Takes up to `limit` pending events that are due; no other caller gets them for `lease_ms`.
    pub async fn take(self, limit: i64, lease_ms: i32) -> DbResult<Vec<PendingProviderEvent>> {
        let mut rows = Take { limit, lease_ms }.query().rows(self.store).await?;
        rows.sort_by_key(|row| row.id);
        let event = |Taken { id, source, body, tries, created_at }| PendingProviderEvent {
            id,
            source: source.parse().ok(),
            body: self.store.sealer().open(sealed::PROVIDER_EVENT.of_nobody(), body).ok(),
            tries,
            created_at,
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// The deliveries with these ids at a provider.
    pub async fn ids_by_ref(self, provider: ProviderName, refs: Vec<String>) -> DbResult<Vec<(String, DeliveryId)>> {
        if refs.is_empty() {
            return Ok(Vec::new());
        }
        let rows = IdsByRef { provider: provider.as_str(), refs }.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|Referred { name, delivery }| (name, DeliveryId(delivery))).collect())
    }

    /// Those of these deliveries that exist, of any tenant: a provider signed the report that names them.
    pub async fn subjects(self, ids: Vec<DeliveryId>) -> DbResult<Vec<Subject>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = ids.into_iter().map(|id| id.0).collect();
        let rows = Subjects { ids: ids.clone() }.query().in_partition_of(&ids).rows(self.store).await?;
        Ok(rows.into_iter().filter_map(subject).collect())
    }

    /// Counts soft bounces, each event once, and returns the deliveries whose addresses had too many in a row.
    pub async fn count_soft_bounces(self, bounces: Vec<(Uuid, DeliveryId)>) -> DbResult<Vec<DeliveryId>> {
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
        let count = CountSoftBounces {
            events: rows.iter().map(|(event, _)| *event).collect(),
            deliveries: rows.iter().map(|(_, one)| one.delivery.0).collect(),
            tenants: rows.iter().map(|(_, one)| one.tenant.0).collect(),
            channels: rows.iter().map(|(_, one)| one.channel.as_str()).collect(),
            hashes: rows.iter().map(|(_, one)| one.hash.clone()).collect(),
        };
        let counts = count.query().rows(self.store).await?;
        let many = counts.into_iter().filter(|bounces| bounces.n >= SOFT_BOUNCES_MAX);
        Ok(many.map(|bounces| DeliveryId(bounces.delivery)).collect())
    }

    /// Resets the soft bounces of these deliveries' addresses, because they work.
    pub async fn prune_soft_bounces(self, deliveries: Vec<DeliveryId>) -> DbResult<()> {
        let addresses = self.address_hashes(deliveries).await?;
        if addresses.is_empty() {
            return Ok(());
        }
        let forget = ForgetSoftBounces {
            tenants: addresses.iter().map(|one| one.tenant.0).collect(),
            channels: addresses.iter().map(|one| one.channel.as_str()).collect(),
            hashes: addresses.into_iter().map(|one| one.hash).collect(),
        };
        forget.query().run(self.store).await.map(drop)
    }

    /// Deletes events too old to be repeated, and old soft bounces, up to a limit; returns whether there are more.
    pub async fn prune(self, limit: i64) -> DbResult<bool> {
        let gone = Forget { remembered: REMEMBERED, limit }.query().row(self.store).await?;
        Ok(gone >= limit)
    }

    /// The key that signs the pixels and links of tracked mails; created on first use.
    pub async fn tracking_secret(self) -> DbResult<Vec<u8>> {
        self.service_secret(TRACKING).await
    }

    /// The key of unsubscribe links; created on first use.
    pub async fn unsubscribe_key(self) -> DbResult<unsubscribe::Key> {
        Ok(unsubscribe::Key::new(&self.service_secret(UNSUBSCRIBING).await?)?)
    }

    /// The key that proves replays of refused submissions; created on first use.
    pub async fn replay_key(self) -> DbResult<replay::Key> {
        Ok(replay::Key::new(&self.service_secret(REPLAYING).await?))
    }

    async fn service_secret(self, id: i32) -> DbResult<Vec<u8>> {
        let mut secret = [0; SECRET_BYTES];
        rand::fill(&mut secret).map_err(|_| SealError::NoRandom)?;
        let place = sealed::SERVICE_SECRET.of_nobody();
        MakeSecret { id, secret: self.store.sealer().seal(place, &secret)? }.query().run(self.store).await?;
        let stored = ReadSecret { id }.query().row(self.store).await?;
        Ok(self.store.sealer().open(place, stored)?)
    }

    async fn address_hashes(self, deliveries: Vec<DeliveryId>) -> DbResult<Vec<Addressed>> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = deliveries.into_iter().map(|id| id.0).collect();
        let rows = Recipients { ids: ids.clone() }.query().in_partition_of(&ids).rows(self.store).await?;
        let mut addressed = Vec::with_capacity(rows.len());
        for Recipient { id, tenant_id: tenant, channel, recipient } in rows {
            let Ok(channel) = channel.parse() else { continue };
            let recipient = self.store.opened_text(sealed::RECIPIENT.of(TenantId(tenant)), recipient);
            let address = suppressed_form(channel, &recipient.unwrap_or_default());
            // Erased people have none.
            if !address.is_empty() {
                let hash = self.store.sealer().fingerprint(&tenant.to_string(), &address).to_vec();
                addressed.push(Addressed { delivery: DeliveryId(id), tenant: TenantId(tenant), channel, hash });
            }
        }
        Ok(addressed)
    }
}

fn subject(row: SubjectRow) -> Option<Subject> {
    let SubjectRow { id, tenant_id, run, channel, state, provider, reference, in_doubt } = row;
    let about = (TenantId(tenant_id), DeliveryId(id), run, channel.parse().ok()?);
    let provider = provider.and_then(|name| name.parse().ok());
    Some(Subject { about, state: state.parse().ok()?, provider, reference, in_doubt })
}

/// Where a delivery went.
struct Addressed {
    delivery: DeliveryId,
    tenant: TenantId,
    channel: Channel,
    hash: Vec<u8>,
}

sql!(Keep in "provider_events/keep.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, sources: Vec<&'static str> as Array<Text>,
    dedups: Vec<Vec<u8>> as Array<Binary>, bodies: Vec<Vec<u8>> as Array<Binary>
} -> Uuid as SqlUuid);
sql!(Take in "provider_events/take.sql" { limit: i64 as Int8, lease_ms: i32 as Int4 } -> Taken);
sql!(IdsByRef in "provider_events/ids_by_ref.sql" {
    provider: &'static str as Text, refs: Vec<String> as Array<Text>
} -> Referred);
sql!(Subjects in "provider_events/subjects.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> SubjectRow);
sql!(Recipients in "provider_events/recipients.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> Recipient);
sql!(CountSoftBounces in "provider_events/count_soft_bounces.sql" {
    events: Vec<Uuid> as Array<SqlUuid>, deliveries: Vec<Uuid> as Array<SqlUuid>, tenants: Vec<i32> as Array<Int4>,
    channels: Vec<&'static str> as Array<Text>, hashes: Vec<Vec<u8>> as Array<Binary>
} -> SoftBounces);
sql!(ForgetSoftBounces in "provider_events/forget_soft_bounces.sql" {
    tenants: Vec<i32> as Array<Int4>, channels: Vec<&'static str> as Array<Text>, hashes: Vec<Vec<u8>> as Array<Binary>
});
sql!(Forget in "provider_events/forget.sql" { remembered: &'static str as Text, limit: i64 as Int8 } -> i64 as Int8);
sql!(MakeSecret in "provider_events/make_secret.sql" { id: i32 as Int4, secret: Vec<u8> as Binary });
sql!(ReadSecret in "provider_events/read_secret.sql" { id: i32 as Int4 } -> Vec<u8> as Binary);
statements!(
    Keep,
    Take,
    IdsByRef,
    Subjects,
    Recipients,
    CountSoftBounces,
    ForgetSoftBounces,
    Forget,
    MakeSecret,
    ReadSecret
);
