//! People: contact data (sealed), by whose clock they live, what else a tenant knows of them, and their devices.

use std::collections::HashMap;

use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text};
use domain::{Address, Device, Person, QuietHours, TenantId};
use serde::{Deserialize, Serialize};

use super::{DbResult, Store, sealed, statement};

/// What is sealed of a person.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Profile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) phone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
}

pub(super) type Row = (
    (String, Option<Vec<u8>>, Option<String>, Option<String>, Option<i16>, Option<i16>, String),
    (Vec<String>, Vec<Option<String>>),
);
pub(super) type SqlRow = (
    (Text, Nullable<Binary>, Nullable<Text>, Nullable<Text>, Nullable<Int2>, Nullable<Int2>, Text),
    (Array<Text>, Array<Nullable<Text>>),
);

impl Store {
    /// These people of a tenant, with their devices; unknown ones are left out.
    pub async fn people(&self, tenant: TenantId, ids: Vec<String>) -> DbResult<HashMap<String, Person>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let query =
            statement::<SqlRow>(PEOPLE).bind::<Array<Text>, _>(ids).bind::<Int4, _>(tenant.0).within(Some(tenant));
        let rows: Vec<Row> = query.rows(self).await?;
        // A person that cannot be decrypted counts as unknown, and delays no other.
        let read = |row: Row| {
            let person = self.person_of(tenant, row);
            person.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).map(|person| (person.id.clone(), person)).collect())
    }

    pub(super) fn person_of(&self, tenant: TenantId, row: Row) -> DbResult<Person> {
        let ((id, profile, locale, time_zone, quiet_start, quiet_end, attributes), (tokens, platforms)) = row;
        let profile = self.profile_of(tenant, profile)?;
        let minute = |minute: Option<i16>| minute.and_then(|minute| u16::try_from(minute).ok());
        let mut devices = Vec::with_capacity(tokens.len());
        for (token, platform) in tokens.into_iter().zip(platforms) {
            let platform = platform.and_then(|word| word.parse().ok());
            let token = self.opened_text(sealed::DEVICE.of(tenant), token).map(Address::new);
            devices.extend(token.map(|token| Device { token, platform }));
        }
        Ok(Person {
            id,
            email: profile.email,
            phone: profile.phone,
            name: profile.name,
            locale,
            time_zone: time_zone.and_then(|zone| zone.parse().ok()),
            quiet_hours: minute(quiet_start).zip(minute(quiet_end)).map(|(start, end)| QuietHours { start, end }),
            attributes: serde_json::from_str(&attributes).unwrap_or_default(),
            devices,
        })
    }

    pub(super) fn profile_of(&self, tenant: TenantId, stored: Option<Vec<u8>>) -> DbResult<Profile> {
        let profile = stored.map(|stored| self.sealer().open(sealed::PROFILE.of(tenant), stored)).transpose()?;
        Ok(profile.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
    }

    pub(super) fn seal_profile(&self, tenant: TenantId, profile: &Profile) -> DbResult<Vec<u8>> {
        Ok(self.sealer().seal(sealed::PROFILE.of(tenant), &serde_json::to_vec(profile).unwrap_or_default())?)
    }
}

pub(super) const PEOPLE: &str = "
SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text,
       ARRAY(SELECT d.token FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id),
       ARRAY(SELECT d.platform FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id)
FROM unnest(?::text[]) AS asked(user_id) JOIN users u ON u.tenant_id = ? AND u.user_id = asked.user_id";
