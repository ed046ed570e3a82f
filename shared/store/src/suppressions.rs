//! Addresses that nothing is sent to any more. They are found by fingerprint.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, DeliveryId, TenantId,
    acceptance::Hash,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible, suppressed_form},
};
use uuid::Uuid;

use super::{DbResult, Statement, Store, sealed, statement};

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
        let mut new = Vec::new();
        for (id, tenant, channel, recipient) in rows {
            let Ok(channel) = channel.parse::<Channel>() else { continue };
            // One address of an unknown key must not hold up the others, and what is written down beside them.
            let opened = self.sealer().open_text(sealed::RECIPIENT.of(TenantId(tenant)), recipient);
            let opened = opened.inspect_err(|error| {
                tracing::error!(delivery.id = %id, %error, "the address of a delivery cannot be opened and is not suppressed");
            });
            let address = Address::new(opened.unwrap_or_default());
            new.extend(findings.iter().filter(|finding| finding.delivery.0 == id).map(|finding| NewSuppression {
                tenant: TenantId(tenant),
                channel,
                address: address.clone(),
                is_shown: true,
                scope: finding.scope.clone(),
                reason: finding.reason,
                detail: finding.detail.clone(),
                delivery: Some(id),
            }));
        }
        match self.suppressing(&new)? {
            Some(query) => query.run(self).await,
            None => Ok(0),
        }
    }

    /// What writes suppressions; `None`: none of these can be written.
    pub(super) fn suppressing(&self, new: &[NewSuppression]) -> DbResult<Option<Statement<()>>> {
        let is_possible = |one: &&NewSuppression| is_suppressible(one.channel) && !one.form().is_empty();
        let new: Vec<&NewSuppression> = new.iter().filter(is_possible).collect();
        if new.is_empty() {
            return Ok(None);
        }
        let hash = |one: &NewSuppression| self.sealer().fingerprint(&one.tenant.to_string(), &one.form()).to_vec();
        let known = |one: &NewSuppression| self.address_prints(one.tenant, one.channel, one.address.reveal()).concat();
        let address = |one: &NewSuppression| {
            let place = sealed::SUPPRESSION.of(one.tenant);
            one.is_shown.then(|| self.sealer().seal_text(place, &one.form())).transpose()
        };
        let addresses: Result<Vec<Option<String>>, _> = new.iter().map(|one| address(one)).collect();
        let query = statement::<()>(INSERT)
            .bind::<Array<SqlUuid>, _>(column(&new, |_| Uuid::now_v7()))
            .bind::<Array<Int4>, _>(column(&new, |one| one.tenant.0))
            .bind::<Array<Text>, _>(column(&new, |one| one.channel.as_str()))
            .bind::<Array<Binary>, _>(column(&new, hash))
            .bind::<Array<Binary>, _>(column(&new, known))
            .bind::<Array<Nullable<Text>>, _>(addresses?)
            .bind::<Array<Text>, _>(column(&new, |one| one.scope.to_string()))
            .bind::<Array<Text>, _>(column(&new, |one| one.reason.as_str()))
            .bind::<Array<Nullable<Text>>, _>(column(&new, |one| {
                one.detail.as_ref().map(|text| text.replace('\0', ""))
            }))
            .bind::<Array<Nullable<SqlUuid>>, _>(column(&new, |one| one.delivery));
        Ok(Some(query))
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
        Ok(rows.into_iter().filter_map(|row| self.suppression(tenant, row)).collect())
    }

    /// Lifts a suppression; says whether the tenant had it.
    pub async fn lift_suppression(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let query = statement::<()>(LIFT).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(query.run(self).await? > 0)
    }

    /// Every fingerprint under which an address may be suppressed.
    pub(super) fn address_prints(&self, tenant: TenantId, channel: Channel, address: &str) -> Vec<Hash> {
        self.sealer().fingerprints(&tenant.to_string(), &suppressed_form(channel, address))
    }

    fn suppression(&self, tenant: TenantId, row: Row) -> Option<Suppression> {
        let (id, channel, address, scope, reason, detail, delivery, created_at) = row;
        let address = address.and_then(|stored| self.opened_text(sealed::SUPPRESSION.of(tenant), stored));
        let (Ok(channel), Ok(scope), Ok(reason)) = (channel.parse(), scope.parse(), reason.parse()) else {
            return None;
        };
        let delivery = delivery.map(DeliveryId);
        Some(Suppression { id, channel, address, scope, reason, detail, delivery, created_at })
    }
}

/// An address that is to be suppressed.
pub(super) struct NewSuppression {
    pub(super) tenant: TenantId,
    pub(super) channel: Channel,
    pub(super) address: Address,
    /// Whether the address stays readable; else only its fingerprint is kept.
    pub(super) is_shown: bool,
    pub(super) scope: SuppressionScope,
    pub(super) reason: SuppressionReason,
    pub(super) detail: Option<String>,
    pub(super) delivery: Option<Uuid>,
}

impl NewSuppression {
    fn form(&self) -> String {
        suppressed_form(self.channel, self.address.reveal())
    }
}

fn column<T>(new: &[&NewSuppression], of: impl Fn(&NewSuppression) -> T) -> Vec<T> {
    new.iter().map(|one| of(one)).collect()
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

const LIST: &str = "
SELECT s.id, s.channel, s.address, s.scope, s.reason, s.detail, s.delivery_id, s.created_at
FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS before, ?::bytea[] AS hashes, ?::text AS channel) asked
JOIN suppressions s USING (tenant_id)
WHERE s.id < asked.before AND (asked.hashes IS NULL OR s.address_hash = ANY (asked.hashes))
  AND (asked.channel IS NULL OR s.channel = asked.channel)
ORDER BY s.id DESC LIMIT ?";

const LIFT: &str = "DELETE FROM suppressions WHERE tenant_id = ? AND id = ?";
