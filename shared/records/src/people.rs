//! People: contact data (sealed), time zone, attributes and devices.

use std::collections::HashMap;

use diesel::sql_types::{Array, Binary, Int2, Int4, Nullable, Text};
use domain::{Address, Device, Person, QuietHours, TenantId};
use serde::{Deserialize, Serialize};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};

use crate::PersonStore;
use diesel::sql_types::Untyped;
use store::statement::Query;

/// The sealed values of a person.
#[derive(Default, Serialize, Deserialize)]
pub struct Profile {
    /// The mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The phone number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

row! {
    /// A person as stored; the devices are two columns in the same order.
    pub struct PersonRow {
        pub(crate) user_id: String as Text,
        pub(crate) profile: Option<Vec<u8>> as Nullable<Binary>,
        pub(crate) locale: Option<String> as Nullable<Text>,
        pub(crate) time_zone: Option<String> as Nullable<Text>,
        pub(crate) quiet_start: Option<i16> as Nullable<Int2>,
        pub(crate) quiet_end: Option<i16> as Nullable<Int2>,
        pub(crate) attributes: String as Text,
        pub(crate) tokens: Vec<String> as Array<Text>,
        pub(crate) platforms: Vec<Option<String>> as Array<Nullable<Text>>,
    }
}

/// The statement that reads these people of a tenant.
pub fn people(tenant: TenantId, ids: Vec<String>) -> Query<PersonRow, Untyped> {
    People { ids, tenant: tenant.0 }.query()
}

impl PersonStore<'_> {
    /// These people of a tenant with their devices; unknown people are left out.
    pub async fn load(self, tenant: TenantId, ids: Vec<String>) -> DbResult<HashMap<String, Person>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = people(tenant, ids).within(Some(tenant)).rows(self.store).await?;
        // A person that cannot be decrypted counts as unknown, and delays no others.
        let read = |row: PersonRow| {
            let person = self.person_of(tenant, row);
            person.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).map(|person| (person.id.clone(), person)).collect())
    }

    /// Decrypts a person.
    pub fn person_of(self, tenant: TenantId, row: PersonRow) -> DbResult<Person> {
        let profile = self.profile_of(tenant, row.profile)?;
        let minute = |minute: Option<i16>| minute.and_then(|minute| u16::try_from(minute).ok());
        let mut devices = Vec::with_capacity(row.tokens.len());
        for (token, platform) in row.tokens.into_iter().zip(row.platforms) {
            let platform = platform.and_then(|word| word.parse().ok());
            let token = self.store.opened_text(sealed::DEVICE.of(tenant), token).map(Address::new);
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

    pub(crate) fn profile_of(self, tenant: TenantId, stored: Option<Vec<u8>>) -> DbResult<Profile> {
        let profile = stored.map(|stored| self.store.sealer().open(sealed::PROFILE.of(tenant), stored)).transpose()?;
        Ok(profile.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default())
    }

    pub(crate) fn seal_profile(self, tenant: TenantId, profile: &Profile) -> DbResult<Vec<u8>> {
        Ok(self.store.sealer().seal(sealed::PROFILE.of(tenant), &serde_json::to_vec(profile).unwrap_or_default())?)
    }
}

sql!(People in "people/people.sql" { ids: Vec<String> as Array<Text>, tenant: i32 as Int4 } -> PersonRow);
statements!(People);
