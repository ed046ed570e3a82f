//! Suppressed addresses: nothing is sent to them any more. They are found by fingerprint.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, DeliveryId, TenantId,
    acceptance::Hash,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible, suppressed_form},
};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::SuppressionStore;

/// A fact about an address that a delivery showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The notifications that its address does not get from now on.
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
    /// The notifications that it does not get.
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

row! {
    struct SuppressionRow {
        id: Uuid as SqlUuid,
        channel: String as Text,
        address: Option<String> as Nullable<Text>,
        scope: String as Text,
        reason: String as Text,
        detail: Option<String> as Nullable<Text>,
        delivery_id: Option<Uuid> as Nullable<SqlUuid>,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct RecipientRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        channel: String as Text,
        recipient: String as Text,
    }
}

/// Selects suppressions.
#[derive(Clone, Debug, Default)]
pub struct SuppressionFilter {
    /// This address, as producers write it.
    pub recipient: Option<String>,
    /// This channel.
    pub channel: Option<Channel>,
}

impl SuppressionStore<'_> {
    /// Suppresses the addresses of deliveries. Repeats change nothing; returns the number of new ones. An address that
    /// cannot be suppressed (a webhook) and an erased recipient are skipped.
    pub async fn suppress(self, findings: &[Finding]) -> DbResult<usize> {
        let ids: Vec<Uuid> = findings.iter().map(|finding| finding.delivery.0).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let rows = Recipients { ids: ids.clone() }.query().in_partition_of(&ids).rows(self.store).await?;
        let mut new = Vec::new();
        for RecipientRow { id, tenant_id: tenant, channel, recipient } in rows {
            let Ok(channel) = channel.parse::<Channel>() else { continue };
            // An address under an unknown key must not delay the others, nor the records beside them.
            let opened = self.store.sealer().open_text(sealed::RECIPIENT.of(TenantId(tenant)), recipient);
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
            Some(insert) => insert.query().run(self.store).await,
            None => Ok(0),
        }
    }

    /// The statement that writes suppressions; `None`: none of these can be suppressed.
    pub(crate) fn suppressing(self, new: &[NewSuppression]) -> DbResult<Option<Insert>> {
        let is_possible = |one: &&NewSuppression| is_suppressible(one.channel) && !one.form().is_empty();
        let new: Vec<&NewSuppression> = new.iter().filter(is_possible).collect();
        if new.is_empty() {
            return Ok(None);
        }
        let hash =
            |one: &NewSuppression| self.store.sealer().fingerprint(&one.tenant.to_string(), &one.form()).to_vec();
        let known = |one: &NewSuppression| self.address_prints(one.tenant, one.channel, one.address.reveal()).concat();
        let address = |one: &NewSuppression| {
            let place = sealed::SUPPRESSION.of(one.tenant);
            one.is_shown.then(|| self.store.sealer().seal_text(place, &one.form())).transpose()
        };
        let addresses: Result<Vec<Option<String>>, _> = new.iter().map(|one| address(one)).collect();
        Ok(Some(Insert {
            id: column(&new, |_| Uuid::now_v7()),
            tenant: column(&new, |one| one.tenant.0),
            channel: column(&new, |one| one.channel.as_str()),
            address_hash: column(&new, hash),
            known: column(&new, known),
            address: addresses?,
            scope: column(&new, |one| one.scope.to_string()),
            reason: column(&new, |one| one.reason.as_str()),
            detail: column(&new, |one| one.detail.as_ref().map(|text| text.replace('\0', ""))),
            delivery: column(&new, |one| one.delivery),
        }))
    }

    /// Up to `limit` suppressions of a tenant, newest first; only those older than `before`, if given.
    pub async fn list(
        self,
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
        let (before, channel) = (before.unwrap_or(Uuid::max()), filter.channel.map(|channel| channel.as_str()));
        let query = List { tenant: tenant.0, before, hashes, channel, limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().filter_map(|row| self.suppression(tenant, row)).collect())
    }

    /// Lifts a suppression; returns whether the tenant had it.
    pub async fn lift(self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        Ok(Lift { tenant: tenant.0, id }.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// Every fingerprint under which an address may be suppressed.
    pub fn address_prints(self, tenant: TenantId, channel: Channel, address: &str) -> Vec<Hash> {
        self.store.sealer().fingerprints(&tenant.to_string(), &suppressed_form(channel, address))
    }

    fn suppression(self, tenant: TenantId, row: SuppressionRow) -> Option<Suppression> {
        let SuppressionRow { id, channel, address, scope, reason, detail, delivery_id, created_at } = row;
        let address = address.and_then(|stored| self.store.opened_text(sealed::SUPPRESSION.of(tenant), stored));
        let (Ok(channel), Ok(scope), Ok(reason)) = (channel.parse(), scope.parse(), reason.parse()) else {
            return None;
        };
        let delivery = delivery_id.map(DeliveryId);
        Some(Suppression { id, channel, address, scope, reason, detail, delivery, created_at })
    }
}

/// An address to suppress.
pub struct NewSuppression {
    /// The tenant.
    pub tenant: TenantId,
    /// The channel of the address.
    pub channel: Channel,
    /// The address.
    pub address: Address,
    /// Whether the address stays readable; else only its fingerprint is kept.
    pub is_shown: bool,
    /// The kind of messages that it does not get.
    pub scope: SuppressionScope,
    /// The reason.
    pub reason: SuppressionReason,
    /// The words of the provider or person.
    pub detail: Option<String>,
    /// The delivery that showed it.
    pub delivery: Option<Uuid>,
}

impl NewSuppression {
    fn form(&self) -> String {
        suppressed_form(self.channel, self.address.reveal())
    }
}

fn column<T>(new: &[&NewSuppression], of: impl Fn(&NewSuppression) -> T) -> Vec<T> {
    new.iter().map(|one| of(one)).collect()
}

sql!(Recipients in "suppressions/recipients.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> RecipientRow);
sql!(pub(crate) Insert in "suppressions/insert.sql" {
    id: Vec<Uuid> as Array<SqlUuid>,
    tenant: Vec<i32> as Array<Int4>,
    channel: Vec<&'static str> as Array<Text>,
    address_hash: Vec<Vec<u8>> as Array<Binary>,
    known: Vec<Vec<u8>> as Array<Binary>,
    address: Vec<Option<String>> as Array<Nullable<Text>>,
    scope: Vec<String> as Array<Text>,
    reason: Vec<&'static str> as Array<Text>,
    detail: Vec<Option<String>> as Array<Nullable<Text>>,
    delivery: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
});
sql!(List in "suppressions/list.sql" {
    tenant: i32 as Int4,
    before: Uuid as SqlUuid,
    hashes: Option<Vec<Vec<u8>>> as Nullable<Array<Binary>>,
    channel: Option<&'static str> as Nullable<Text>,
    limit: i64 as Int8,
} -> SuppressionRow);
sql!(Lift in "suppressions/lift.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid });
statements!(Recipients, Insert, List, Lift);
