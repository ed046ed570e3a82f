//! Contacts: people as an admin reads and changes them, up to a thousand at a time.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{
    Person, TenantId,
    contract::{contact::ContactChange, submission::FieldError},
};
use store::{
    DbResult, Store,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{
    ContactStore, Records,
    people::{PersonRow, Profile},
};

/// A person, and since when the tenant knows them.
#[derive(Clone, Debug)]
pub struct Contact {
    /// The person, without devices.
    pub person: Person,
    /// Their devices, the oldest first.
    pub devices: Vec<DeviceRow>,
    /// When they were first heard of.
    pub created_at: DateTime<Utc>,
    /// When they were last changed.
    pub updated_at: DateTime<Utc>,
}

/// A device without its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its id.
    pub id: Uuid,
    /// Its platform, as a word.
    pub platform: Option<String>,
    /// When it was registered first.
    pub created_at: DateTime<Utc>,
}

/// Selects people for a list; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct ContactFilter {
    /// With this language tag.
    pub locale: Option<String>,
    /// By this zone's clock.
    pub time_zone: Option<String>,
    /// People whose attributes contain one of these JSON objects.
    pub attribute: Option<Vec<String>>,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The person was not known before.
    Made,
    /// The person was known.
    Changed,
    /// It cannot be stored.
    Refused(FieldError),
}

row! {
    /// A person without devices.
    struct LockedRow {
        user_id: String as Text,
        profile: Option<Vec<u8>> as Nullable<Binary>,
        locale: Option<String> as Nullable<Text>,
        time_zone: Option<String> as Nullable<Text>,
        quiet_start: Option<i16> as Nullable<Int2>,
        quiet_end: Option<i16> as Nullable<Int2>,
        attributes: String as Text,
    }
}

row! {
    /// A person; the devices are four columns in the same order.
    struct ContactRow {
        user_id: String as Text,
        profile: Option<Vec<u8>> as Nullable<Binary>,
        locale: Option<String> as Nullable<Text>,
        time_zone: Option<String> as Nullable<Text>,
        quiet_start: Option<i16> as Nullable<Int2>,
        quiet_end: Option<i16> as Nullable<Int2>,
        attributes: String as Text,
        tokens: Vec<String> as Array<Text>,
        platforms: Vec<Option<String>> as Array<Nullable<Text>>,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
        device_ids: Vec<Uuid> as Array<SqlUuid>,
        device_times: Vec<DateTime<Utc>> as Array<Timestamptz>,
    }
}

impl From<LockedRow> for PersonRow {
    fn from(row: LockedRow) -> Self {
        let LockedRow { user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes } = row;
        let (tokens, platforms) = (Vec::new(), Vec::new());
        Self { user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes, tokens, platforms }
    }
}

impl ContactStore<'_> {
    /// A person of whom more than preferences is known.
    pub async fn find(self, tenant: TenantId, id: &str) -> DbResult<Option<Contact>> {
        let query = One { tenant: tenant.0, user_id: id.to_owned() }.query();
        let row = query.within(Some(tenant)).first(self.store).await?;
        row.map(|row| self.contact_of(tenant, row)).transpose()
    }

    /// Up to `limit` people of a tenant, newest first; only those after `after`, if given.
    pub async fn list(
        self,
        tenant: TenantId,
        filter: &ContactFilter,
        after: Option<(DateTime<Utc>, String)>,
        limit: i64,
    ) -> DbResult<Vec<Contact>> {
        let (at, id) = after.unwrap_or((DateTime::<Utc>::from_timestamp_nanos(i64::MAX), String::new()));
        let ContactFilter { locale, time_zone, attribute: attributes } = filter.clone();
        let query = List { tenant: tenant.0, at, id, locale, time_zone, attributes, limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        // A person that cannot be decrypted delays no other.
        let read = |row: ContactRow| {
            let contact = self.contact_of(tenant, row);
            contact.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    fn contact_of(self, tenant: TenantId, row: ContactRow) -> DbResult<Contact> {
        // A device whose token cannot be read is still shown, so that it can be removed.
        let devices = row.device_ids.into_iter().zip(row.platforms.clone()).zip(row.device_times);
        let device = |((id, platform), created_at)| DeviceRow { id, platform, created_at };
        let (created_at, updated_at) = (row.created_at, row.updated_at);
        let stored = PersonRow {
            user_id: row.user_id,
            profile: row.profile,
            locale: row.locale,
            time_zone: row.time_zone,
            quiet_start: row.quiet_start,
            quiet_end: row.quiet_end,
            attributes: row.attributes,
            tokens: row.tokens,
            platforms: row.platforms,
        };
        let person = Person { devices: Vec::new(), ..self.store.people().person_of(tenant, stored)? };
        Ok(Contact { devices: devices.map(device).collect(), person, created_at, updated_at })
    }

    /// Changes people, in order; one answer per change. Unknown people are created. Known people are locked from the
    /// read to the write. If two callers create the same person, the second one changes the first one's row.
    pub async fn save(self, tenant: TenantId, changes: Vec<ContactChange>) -> DbResult<Vec<Saved>> {
        let mut answers: Vec<Option<Saved>> = vec![None; changes.len()];
        let mut open: Vec<(usize, ContactChange)> = changes.into_iter().enumerate().collect();
        while !open.is_empty() {
            let mut conn = self.store.within(Some(tenant)).await?;
            let saved = self.save_once(&mut conn, tenant, &open).await;
            let (saved, overtaken) = conn.finish(saved).await?;
            for ((index, _), answer) in open.iter().zip(saved) {
                if let Some(slot) = answers.get_mut(*index) {
                    *slot = Some(answer);
                }
            }
            open.retain(|(_, change)| overtaken.contains(&change.id));
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Returns the answers, and the people that another caller created at the same time: their changes must be
    /// repeated.
    async fn save_once(
        self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        changes: &[(usize, ContactChange)],
    ) -> DbResult<(Vec<Saved>, HashSet<String>)> {
        let mut people = self.locked(conn, tenant, changes).await?;
        let mut answers = Vec::with_capacity(changes.len());
        for (_, change) in changes {
            let draft = people.entry(change.id.clone()).or_insert_with(|| Draft::of_nobody(&change.id));
            answers.push(draft.take(change.clone()));
        }
        // Every writer uses the same order, so that no two writers wait for each other.
        let mut drafts: Vec<Draft> = people.into_values().filter(|draft| draft.is_changed).collect();
        drafts.sort_by(|one, other| one.person.id.cmp(&other.person.id));
        let mut overtaken: HashSet<String> =
            drafts.iter().filter(|draft| !draft.is_row).map(|draft| draft.person.id.clone()).collect();
        let mut write = Write::of(tenant);
        for draft in drafts {
            write.push(self.store, tenant, draft)?;
        }
        for id in &write.query().rows_on(conn).await? {
            overtaken.remove(id);
        }
        Ok((answers, overtaken))
    }

    /// Those of these people that exist, locked.
    async fn locked(
        self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        changes: &[(usize, ContactChange)],
    ) -> DbResult<HashMap<String, Draft>> {
        let ids: HashSet<&String> = changes.iter().map(|(_, change)| &change.id).collect();
        let query = Lock { ids: ids.into_iter().cloned().collect(), tenant: tenant.0 }.query();
        let rows = query.rows_on(conn).await?;
        let draft = |row: LockedRow| {
            let is_contact = row.profile.is_some();
            let person = self.store.people().person_of(tenant, PersonRow::from(row))?;
            Ok((person.id.clone(), Draft { person, is_row: true, is_contact, is_changed: false }))
        };
        rows.into_iter().map(draft).collect()
    }
}

/// A person before the write.
struct Draft {
    person: Person,
    is_row: bool,
    is_contact: bool,
    is_changed: bool,
}

impl Draft {
    fn of_nobody(id: &str) -> Self {
        Self { person: Person::unknown(id), is_row: false, is_contact: false, is_changed: false }
    }

    fn take(&mut self, change: ContactChange) -> Saved {
        if let Err(fault) = change.apply(&mut self.person) {
            return Saved::Refused(fault);
        }
        let saved = if self.is_contact { Saved::Changed } else { Saved::Made };
        (self.is_contact, self.is_changed) = (true, true);
        saved
    }
}

impl Write {
    fn of(tenant: TenantId) -> Self {
        Self {
            tenant: tenant.0,
            id: Vec::new(),
            profile: Vec::new(),
            locale: Vec::new(),
            time_zone: Vec::new(),
            quiet_start: Vec::new(),
            quiet_end: Vec::new(),
            attributes: Vec::new(),
            is_row: Vec::new(),
        }
    }

    fn push(&mut self, store: &Store, tenant: TenantId, draft: Draft) -> DbResult<()> {
        let Person { id, email, phone, name, locale, time_zone, quiet_hours, attributes, .. } = draft.person;
        let minute = |minute: u16| i16::try_from(minute).ok();
        self.id.push(id);
        self.profile.push(store.people().seal_profile(tenant, &Profile { email, phone, name })?);
        self.locale.push(locale);
        self.time_zone.push(time_zone.map(chrono_tz::Tz::name));
        self.quiet_start.push(quiet_hours.and_then(|hours| minute(hours.start)));
        self.quiet_end.push(quiet_hours.and_then(|hours| minute(hours.end)));
        self.attributes.push(serde_json::to_string(&attributes).unwrap_or_else(|_| "{}".to_owned()));
        self.is_row.push(draft.is_row);
        Ok(())
    }
}

sql!(One in "contacts/one.sql" { tenant: i32 as Int4, user_id: String as Text } -> ContactRow);
sql!(List in "contacts/list.sql" {
    tenant: i32 as Int4,
    at: DateTime<Utc> as Timestamptz,
    id: String as Text,
    locale: Option<String> as Nullable<Text>,
    time_zone: Option<String> as Nullable<Text>,
    attributes: Option<Vec<String>> as Nullable<Array<Text>>,
    limit: i64 as Int8,
} -> ContactRow);
sql!(Lock in "contacts/lock.sql" { ids: Vec<String> as Array<Text>, tenant: i32 as Int4 } -> LockedRow);
sql!(Write in "contacts/write.sql" {
    tenant: i32 as Int4,
    id: Vec<String> as Array<Text>,
    profile: Vec<Vec<u8>> as Array<Binary>,
    locale: Vec<Option<String>> as Array<Nullable<Text>>,
    time_zone: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    quiet_start: Vec<Option<i16>> as Array<Nullable<Int2>>,
    quiet_end: Vec<Option<i16>> as Array<Nullable<Int2>>,
    attributes: Vec<String> as Array<Text>,
    is_row: Vec<bool> as Array<Bool>,
} -> String as Text);
statements!(One, List, Lock, Write);
