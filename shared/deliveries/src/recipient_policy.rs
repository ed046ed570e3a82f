//! The facts that may prevent sending: suppressed addresses, and people's preferences. One query loads them for a whole
//! batch of claims; there is no query if no claim can have any.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text};
use domain::{
    Channel, Preferences, QuietHours, RecipientPolicy, TenantId, acceptance::Hash, suppression::is_suppressible,
};
use records::Records;
use store::{
    DbResult,
    sql::{row, sql, statements},
};

use crate::{PolicyStore, claim::Claim};

row! {
    /// A suppression of an address, or the preferences of a person; the columns of the other kind are empty.
    struct PolicyRow {
        address_hash: Option<Vec<u8>> as Nullable<Binary>,
        scope: Option<String> as Nullable<Text>,
        reason: Option<String> as Nullable<Text>,
        tenant_id: Option<i32> as Nullable<Int4>,
        user_id: Option<String> as Nullable<Text>,
        preferences: Option<String> as Nullable<Text>,
        time_zone: Option<String> as Nullable<Text>,
        quiet_start: Option<i16> as Nullable<Int2>,
        quiet_end: Option<i16> as Nullable<Int2>,
    }
}

impl PolicyStore<'_> {
    /// Adds the suppressions of its address and the preferences of its person to each claim; all are of `channel`.
    pub async fn load(self, channel: Channel, claims: &mut [Claim]) -> DbResult<()> {
        let prints: Vec<Vec<Hash>> = match is_suppressible(channel) {
            true => claims
                .iter()
                .map(|one| self.store.suppressions().address_prints(one.tenant, channel, one.recipient.reveal()))
                .collect(),
            false => Vec::new(),
        };
        let of_person = |claim: &Claim| Some((claim.tenant.0, claim.person(channel)?.to_owned()));
        let people: BTreeSet<(i32, String)> = claims.iter().filter_map(of_person).collect();
        if prints.is_empty() && people.is_empty() {
            return Ok(());
        }
        let hashes: Vec<Vec<u8>> = prints.iter().flatten().map(|hash| hash.to_vec()).collect();
        let (tenants, users): (Vec<i32>, Vec<String>) = people.into_iter().unzip();
        let load = Load { channel: channel.as_str(), hashes, tenants, users };
        let (mut suppressed, mut policy) = (Vec::new(), HashMap::new());
        for row in load.query().rows(self.store).await? {
            if let (Some(hash), Some(scope), Some(reason)) = (row.address_hash, row.scope, row.reason) {
                suppressed.extend(scope.parse().ok().zip(reason.parse().ok()).map(|found| (hash, found)));
            } else if let (Some(tenant), Some(id)) = (row.tenant_id, row.user_id) {
                let quiet = row.quiet_start.zip(row.quiet_end);
                let of_person = policy_of(tenant, row.preferences, row.time_zone.as_deref(), quiet);
                policy.insert((tenant, id), Arc::new(of_person));
            }
        }
        for (claim, prints) in claims.iter_mut().zip(prints.iter().map(Some).chain(std::iter::repeat(None))) {
            let is_its = |hash: &[u8]| prints.is_some_and(|prints| prints.iter().any(|print| print == hash));
            claim.suppressed = suppressed.iter().filter(|(hash, _)| is_its(hash)).map(|(_, one)| one.clone()).collect();
            claim.policy = of_person(claim).and_then(|person| policy.get(&person)).map(Arc::clone);
        }
        Ok(())
    }
}

fn policy_of(
    tenant: i32,
    preferences: Option<String>,
    zone: Option<&str>,
    quiet: Option<(i16, i16)>,
) -> RecipientPolicy {
    let read = |json: String| serde_json::from_str::<Preferences>(&json);
    let preferences = preferences.map(read).transpose().unwrap_or_else(|error| {
        tracing::error!(tenant.id = %TenantId(tenant), %error, "what a person wants cannot be read, and counts as nothing said");
        None
    });
    let quiet = quiet
        .and_then(|(start, end)| Some(QuietHours { start: u16::try_from(start).ok()?, end: u16::try_from(end).ok()? }));
    RecipientPolicy {
        preferences: preferences.unwrap_or_default(),
        zone: zone.and_then(|zone| zone.parse().ok()),
        quiet,
    }
}

sql!(Load in "recipient_policy/load.sql" {
    channel: &'static str as Text, hashes: Vec<Vec<u8>> as Array<Binary>, tenants: Vec<i32> as Array<Int4>,
    users: Vec<String> as Array<Text>
} -> PolicyRow);
statements!(Load);
