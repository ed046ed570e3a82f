//! What may prevent sending: suppressed addresses, and people's preferences. One query loads them for a whole batch
//! of claims; there is no query if no claim can have any.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text};
use domain::{
    Channel, Preferences, QuietHours, RecipientPolicy, TenantId, acceptance::Hash, suppression::is_suppressible,
};

use super::{DbResult, Store, claim::Claim, statement};

type Row = (
    (Option<Vec<u8>>, Option<String>, Option<String>),
    (Option<i32>, Option<String>, Option<String>, Option<String>, Option<i16>, Option<i16>),
);
type SqlRow = (
    (Nullable<Binary>, Nullable<Text>, Nullable<Text>),
    (Nullable<Int4>, Nullable<Text>, Nullable<Text>, Nullable<Text>, Nullable<Int2>, Nullable<Int2>),
);

impl Store {
    /// Adds the suppressions of its address and the preferences of its person to each claim; all are of `channel`.
    pub async fn load_policies(&self, channel: Channel, claims: &mut [Claim]) -> DbResult<()> {
        let prints: Vec<Vec<Hash>> = match is_suppressible(channel) {
            true => claims.iter().map(|one| self.address_prints(one.tenant, channel, one.recipient.reveal())).collect(),
            false => Vec::new(),
        };
        let of_person = |claim: &Claim| Some((claim.tenant.0, claim.person(channel)?.to_owned()));
        let people: BTreeSet<(i32, String)> = claims.iter().filter_map(of_person).collect();
        if prints.is_empty() && people.is_empty() {
            return Ok(());
        }
        let hashes: Vec<Vec<u8>> = prints.iter().flatten().map(|hash| hash.to_vec()).collect();
        let (tenants, ids): (Vec<i32>, Vec<String>) = people.into_iter().unzip();
        let query = statement::<SqlRow>(LOAD)
            .bind::<Text, _>(channel.as_str())
            .bind::<Array<Binary>, _>(hashes)
            .bind::<Array<Int4>, _>(tenants)
            .bind::<Array<Text>, _>(ids);
        let (mut suppressed, mut policy) = (Vec::new(), HashMap::new());
        for (of_address, of_person) in query.rows::<Row>(self).await? {
            if let (Some(hash), Some(scope), Some(reason)) = of_address {
                suppressed.extend(scope.parse().ok().zip(reason.parse().ok()).map(|found| (hash, found)));
            } else if let (Some(tenant), Some(id), preferences, zone, start, end) = of_person {
                policy.insert((tenant, id), Arc::new(policy_of(tenant, preferences, zone.as_deref(), start.zip(end))));
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

/// The hash of an address includes the tenant, so the query needs no tenant condition.
const LOAD: &str = "
SELECT s.address_hash, s.scope, s.reason, NULL::int4, NULL::text, NULL::text, NULL::text, NULL::int2, NULL::int2
FROM suppressions s WHERE s.channel = ? AND s.address_hash = ANY (?::bytea[])
UNION ALL
SELECT NULL, NULL, NULL, u.tenant_id, u.user_id, u.preferences::text, u.time_zone, u.quiet_start, u.quiet_end
FROM unnest(?::int4[], ?::text[]) AS asked(tenant_id, user_id)
JOIN users u ON u.tenant_id = asked.tenant_id AND u.user_id = asked.user_id
WHERE u.preferences IS NOT NULL OR u.quiet_start IS NOT NULL OR u.time_zone IS NOT NULL";
