//! Addresses that nothing is sent to any more. They are found by fingerprint.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Store, accept::Hash, claim::Claim, statement};
use crate::domain::{
    Channel, DeliveryId, TenantId,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible, suppressed_form},
};

/// What a delivery showed about its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The delivery.
    pub delivery: DeliveryId,
    /// What is kept from its address from now on.
    pub scope: SuppressionScope,
    /// Why.
    pub reason: SuppressionReason,
    /// The provider's code or clause; no address, no content.
    pub detail: Option<String>,
}

/// An address that is suppressed.
#[derive(Clone, Debug)]
pub struct Suppression {
    /// Its id.
    pub id: Uuid,
    /// The channel.
    pub channel: Channel,
    /// The address; `None`: its person was erased.
    pub address: Option<String>,
    /// What is kept from it.
    pub scope: SuppressionScope,
    /// Why.
    pub reason: SuppressionReason,
    /// The provider's code or clause.
    pub detail: Option<String>,
    /// The delivery that found it out.
    pub delivery: Option<DeliveryId>,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

type Row = (Uuid, String, Option<String>, String, String, Option<String>, Option<Uuid>, DateTime<Utc>);
type SqlRow = (SqlUuid, Text, Nullable<Text>, Text, Text, Nullable<Text>, Nullable<SqlUuid>, Timestamptz);

/// Which suppressions are asked for.
#[derive(Clone, Debug, Default)]
pub struct SuppressionFilter {
    /// This address, as producers write it.
    pub recipient: Option<String>,
    /// This channel.
    pub channel: Option<Channel>,
}

impl Store {
    /// Suppresses the addresses of deliveries. Repeats change nothing; says how many are new. What cannot be suppressed (a
    /// webhook), and a recipient that was erased, is passed over.
    pub async fn suppress(&self, findings: &[Finding]) -> DbResult<usize> {
        let ids: Vec<Uuid> = findings.iter().map(|finding| finding.delivery.0).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let query = statement::<(SqlUuid, Int4, Text, Text)>(RECIPIENTS).near(&ids).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<(Uuid, i32, String, String)> = query.rows(self).await?;
        let mut new = NewRows::default();
        for (id, tenant, channel, sealed) in rows {
            let Ok(channel) = channel.parse::<Channel>() else { continue };
            // One address of an unknown key must not hold up the others, and what is written down beside them.
            let opened = self.sealer().open_text(sealed);
            let opened = opened.inspect_err(|error| {
                tracing::error!(delivery.id = %id, %error, "the address of a delivery cannot be opened and is not suppressed");
            });
            let address = suppressed_form(channel, &opened.unwrap_or_default());
            if address.is_empty() || !is_suppressible(channel) {
                continue;
            }
            for finding in findings.iter().filter(|finding| finding.delivery.0 == id) {
                new.tenants.push(tenant);
                new.channels.push(channel.as_str());
                new.hashes.push(self.sealer().fingerprint(&tenant.to_string(), &address).to_vec());
                new.known.push(self.address_prints(TenantId(tenant), channel, &address).concat());
                new.addresses.push(self.sealer().seal_text(&address)?);
                new.findings.push(finding);
            }
        }
        new.insert(self).await
    }

    /// For each claim, in order: what its address is suppressed for. One look for all of them.
    pub(super) async fn suppressions_of(
        &self,
        channel: Channel,
        claims: &[Claim],
    ) -> DbResult<Vec<Vec<(SuppressionScope, SuppressionReason)>>> {
        if claims.is_empty() || !is_suppressible(channel) {
            return Ok(vec![Vec::new(); claims.len()]);
        }
        let prints: Vec<Vec<Hash>> =
            claims.iter().map(|claim| self.address_prints(claim.tenant, channel, claim.recipient.reveal())).collect();
        let hashes: Vec<Vec<u8>> = prints.iter().flatten().map(|hash| hash.to_vec()).collect();
        let query = statement::<(Binary, Text, Text)>(FOUND).bind::<Text, _>(channel.as_str());
        let query = query.bind::<Array<Binary>, _>(hashes);
        let rows: Vec<(Vec<u8>, String, String)> = query.rows(self).await?;
        let of = |prints: &Vec<Hash>| {
            let own = rows.iter().filter(|(hash, ..)| prints.iter().any(|print| print == hash.as_slice()));
            own.filter_map(|(_, scope, reason)| Some((scope.parse().ok()?, reason.parse().ok()?))).collect()
        };
        Ok(prints.iter().map(of).collect())
    }

    /// Up to `limit` suppressions of a tenant, newest first; those older than `before`, if given.
    pub async fn list_suppressions(
        &self,
        tenant: TenantId,
        filter: &SuppressionFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<Suppression>> {
        let channels = Channel::ALL.iter().filter(|channel| is_suppressible(**channel));
        let hashes = filter.recipient.as_ref().map(|recipient| -> Vec<Vec<u8>> {
            let prints = channels.flat_map(|channel| self.address_prints(tenant, *channel, recipient));
            prints.map(|hash| hash.to_vec()).collect()
        });
        let query = statement::<SqlRow>(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Nullable<Array<Binary>>, _>(hashes)
            .bind::<Nullable<Text>, _>(filter.channel.map(|channel| channel.as_str()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        rows.into_iter().filter_map(|row| self.suppression(row).transpose()).collect()
    }

    /// Lifts a suppression; says whether the tenant had it.
    pub async fn lift_suppression(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let query = statement::<()>(LIFT).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(query.run(self).await? > 0)
    }

    fn address_prints(&self, tenant: TenantId, channel: Channel, address: &str) -> Vec<Hash> {
        self.sealer().fingerprints(&tenant.to_string(), &suppressed_form(channel, address))
    }

    fn suppression(&self, row: Row) -> DbResult<Option<Suppression>> {
        let (id, channel, address, scope, reason, detail, delivery, created_at) = row;
        let address = address.map(|sealed| self.sealer().open_text(sealed)).transpose()?;
        let (Ok(channel), Ok(scope), Ok(reason)) = (channel.parse(), scope.parse(), reason.parse()) else {
            return Ok(None);
        };
        let delivery = delivery.map(DeliveryId);
        Ok(Some(Suppression { id, channel, address, scope, reason, detail, delivery, created_at }))
    }
}

#[derive(Default)]
struct NewRows<'a> {
    tenants: Vec<i32>,
    channels: Vec<&'static str>,
    hashes: Vec<Vec<u8>>,
    /// All fingerprints of the address one after the other, those of older keys too.
    known: Vec<Vec<u8>>,
    addresses: Vec<String>,
    findings: Vec<&'a Finding>,
}

impl NewRows<'_> {
    async fn insert(self, store: &Store) -> DbResult<usize> {
        if self.findings.is_empty() {
            return Ok(0);
        }
        let column = |of: fn(&Finding) -> &'static str| -> Vec<&'static str> {
            self.findings.iter().map(|finding| of(finding)).collect()
        };
        let query = statement::<()>(INSERT)
            .bind::<Array<SqlUuid>, _>(self.findings.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(self.tenants)
            .bind::<Array<Text>, _>(self.channels)
            .bind::<Array<Binary>, _>(self.hashes)
            .bind::<Array<Binary>, _>(self.known)
            .bind::<Array<Text>, _>(self.addresses)
            .bind::<Array<Text>, _>(column(|finding| finding.scope.as_str()))
            .bind::<Array<Text>, _>(column(|finding| finding.reason.as_str()))
            .bind::<Array<Nullable<Text>>, _>(
                self.findings
                    .iter()
                    .map(|finding| finding.detail.as_ref().map(|text| text.replace('\0', "")))
                    .collect::<Vec<_>>(),
            )
            .bind::<Array<SqlUuid>, _>(self.findings.iter().map(|finding| finding.delivery.0).collect::<Vec<_>>());
        query.run(store).await
    }
}

const RECIPIENTS: &str = "SELECT id, tenant_id, channel, recipient FROM deliveries@ WHERE id = ANY (?::uuid[])";

/// In the order of the unique key, so that two writers cannot wait for each other. A fingerprint has 32 bytes.
const INSERT: &str = "
INSERT INTO suppressions (id, tenant_id, channel, address_hash, address, scope, reason, detail, delivery_id)
SELECT id, tenant_id, channel, address_hash, address, scope, reason, detail, delivery_id
FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::bytea[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::text[], ?::uuid[])
    AS n(id, tenant_id, channel, address_hash, known, address, scope, reason, detail, delivery_id)
WHERE NOT EXISTS (
    SELECT FROM generate_series(0, octet_length(n.known) / 32 - 1) i
    JOIN suppressions s ON s.address_hash = substr(n.known, i * 32 + 1, 32)
    WHERE s.tenant_id = n.tenant_id AND s.channel = n.channel AND s.scope = n.scope)
ORDER BY address_hash, tenant_id, channel, scope
ON CONFLICT (address_hash, tenant_id, channel, scope) DO NOTHING";

const FOUND: &str = "
SELECT address_hash, scope, reason FROM suppressions WHERE channel = ? AND address_hash = ANY (?::bytea[])";

const LIST: &str = "
SELECT s.id, s.channel, s.address, s.scope, s.reason, s.detail, s.delivery_id, s.created_at
FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS before, ?::bytea[] AS hashes, ?::text AS channel) asked
JOIN suppressions s USING (tenant_id)
WHERE s.id < asked.before AND (asked.hashes IS NULL OR s.address_hash = ANY (asked.hashes))
  AND (asked.channel IS NULL OR s.channel = asked.channel)
ORDER BY s.id DESC LIMIT ?";

const LIFT: &str = "DELETE FROM suppressions WHERE tenant_id = ? AND id = ?";
