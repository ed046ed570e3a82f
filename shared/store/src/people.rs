//! People: contact data (sealed), time zone, attributes and devices.

use std::collections::HashMap;

use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text};
use domain::{Address, Device, Person, QuietHours, TenantId};
use serde::{Deserialize, Serialize};

use super::{
    DbResult, Store, sealed,
    sql::{row, sql, statements},
};

/// The sealed values of a person.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Profile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) phone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
}

row! {
    /// A person as stored; the devices are two columns in the same order.
    pub(super) struct PersonRow {
        pub(super) user_id: String as Text,
        pub(super) profile: Option<Vec<u8>> as Nullable<Binary>,
        pub(super) locale: Option<String> as Nullable<Text>,
        pub(super) time_zone: Option<String> as Nullable<Text>,
        pub(super) quiet_start: Option<i16> as Nullable<Int2>,
        pub(super) quiet_end: Option<i16> as Nullable<Int2>,
        pub(super) attributes: String as Text,
        pub(super) tokens: Vec<String> as Array<Text>,
        pub(super) platforms: Vec<Option<String>> as Array<Nullable<Text>>,
    }
}

impl Store {
    /// These people of a tenant with their devices; unknown people are left out.
    pub async fn people(&self, tenant: TenantId, ids: Vec<String>) -> DbResult<HashMap<String, Person>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = People { ids, tenant: tenant.0 }.query().within(Some(tenant)).rows(self).await?;
        // A person that cannot be decrypted counts as unknown, and delays no others.
        let read = |row: PersonRow| {
            let person = self.person_of(tenant, row);
            person.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).map(|person| (person.id.clone(), person)).collect())
    }

    pub(super) fn person_of(&self, tenant: TenantId, row: PersonRow) -> DbResult<Person> {
        let profile = self.profile_of(tenant, row.profile)?;
        let minute = |minute: Option<i16>| minute.and_then(|minute| u16::try_from(minute).ok());
        let mut devices = Vec::with_capacity(row.tokens.len());
        for (token, platform) in row.tokens.into_iter().zip(row.platforms) {
            let platform = platform.and_then(|word| word.parse().ok());
            let token = self.opened_text(sealed::DEVICE.of(tenant), token).map(Address::new);
            devices.extend(token.map(|token| Device { token, platform }));
        }
        Ok(Person {
            id: row.user_id,
            email: profile.email,
            phone: profile.phone,
            name: profile.name,
            locale: row.locale,
            time_zone: row.time_zone.and_then(|zone| zone.parse().ok()),
            quiet_hours: minute(row.quiet_start)
                .zip(minute(row.quiet_end))
                .map(|(start, end)| QuietHours { start, end }),
            attributes: serde_json::from_str(&row.attributes).unwrap_or_default(),
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

sql!(pub(crate) People in "people/people.sql" { ids: Vec<String> as Array<Text>, tenant: i32 as Int4 } -> PersonRow);
statements!(People);
