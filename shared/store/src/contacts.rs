//! Contacts: people as an admin sees and changes them, one or a thousand at a time.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int2, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{
    Person, TenantId,
    contract::{contact::ContactChange, submission::FieldError},
};
use uuid::Uuid;

use super::{
    DbResult, Store,
    people::{Profile, Row, SqlRow},
    statement,
};

/// A person, and since when they are known.
#[derive(Clone, Debug)]
pub struct Contact {
    /// The person; devices stand beside.
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

/// Which people a list shows; what is `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct ContactFilter {
    /// With this language tag.
    pub locale: Option<String>,
    /// By this zone's clock.
    pub time_zone: Option<String>,
    /// With the attributes of one of these JSON objects.
    pub attribute: Option<Vec<String>>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The person was not known before.
    Made,
    /// The person was known.
    Changed,
    /// It cannot be stored.
    Refused(FieldError),
}

type LockedRow = (String, Option<Vec<u8>>, Option<String>, Option<String>, Option<i16>, Option<i16>, String);
type SqlLocked = (Text, Nullable<Binary>, Nullable<Text>, Nullable<Text>, Nullable<Int2>, Nullable<Int2>, Text);
type SqlContact = (SqlRow, (Timestamptz, Timestamptz, Array<SqlUuid>, Array<Timestamptz>));
type ContactRow = (Row, (DateTime<Utc>, DateTime<Utc>, Vec<Uuid>, Vec<DateTime<Utc>>));

impl Store {
    /// A person who is known by more than preferences.
    pub async fn contact(&self, tenant: TenantId, id: &str) -> DbResult<Option<Contact>> {
        let query = statement::<SqlContact>(ONE).bind::<Int4, _>(tenant.0).bind::<Text, _>(id.to_owned());
        let rows: Vec<ContactRow> = query.within(Some(tenant)).rows(self).await?;
        rows.into_iter().next().map(|row| self.contact_of(tenant, row)).transpose()
    }

    /// Up to `limit` people of a tenant, newest first; those that come after `after`, if given.
    pub async fn contacts(
        &self,
        tenant: TenantId,
        filter: &ContactFilter,
        after: Option<(DateTime<Utc>, String)>,
        limit: i64,
    ) -> DbResult<Vec<Contact>> {
        let (at, id) = after.unwrap_or((DateTime::<Utc>::from_timestamp_nanos(i64::MAX), String::new()));
        let query = statement::<SqlContact>(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<Timestamptz, _>(at)
            .bind::<Text, _>(id)
            .bind::<Nullable<Text>, _>(filter.locale.clone())
            .bind::<Nullable<Text>, _>(filter.time_zone.clone())
            .bind::<Nullable<Array<Text>>, _>(filter.attribute.clone())
            .bind::<Int8, _>(limit);
        let rows: Vec<ContactRow> = query.within(Some(tenant)).rows(self).await?;
        // A person that cannot be decrypted delays no other.
        let read = |row: ContactRow| {
            let contact = self.contact_of(tenant, row);
            contact.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    fn contact_of(
        &self,
        tenant: TenantId,
        (row, (created_at, updated_at, ids, times)): ContactRow,
    ) -> DbResult<Contact> {
        // A device whose token cannot be read is shown all the same: it can be taken away.
        let platforms = row.1.1.clone();
        let person = Person { devices: Vec::new(), ..self.person_of(tenant, row)? };
        let devices = ids.into_iter().zip(platforms).zip(times);
        let device = |((id, platform), created_at)| DeviceRow { id, platform, created_at };
        Ok(Contact { devices: devices.map(device).collect(), person, created_at, updated_at })
    }

    /// Changes people, in order; one answer for each change. Unknown people are made. Known ones stay locked from reading to
    /// writing, and of two callers that make the same person the second changes what the first has made.
    pub async fn save_contacts(&self, tenant: TenantId, changes: Vec<ContactChange>) -> DbResult<Vec<Saved>> {
        let mut answers: Vec<Option<Saved>> = vec![None; changes.len()];
        let mut open: Vec<(usize, ContactChange)> = changes.into_iter().enumerate().collect();
        while !open.is_empty() {
            let mut conn = self.within(Some(tenant)).await?;
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

    /// Returns the answers, and those people whom another caller made at the same moment: they are to be tried again.
    async fn save_once(
        &self,
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
        // One order for all, so that two writers cannot wait for each other.
        let mut drafts: Vec<Draft> = people.into_values().filter(|draft| draft.is_changed).collect();
        drafts.sort_by(|one, other| one.person.id.cmp(&other.person.id));
        let mut overtaken: HashSet<String> =
            drafts.iter().filter(|draft| !draft.is_row).map(|draft| draft.person.id.clone()).collect();
        let mut columns = Columns::default();
        for draft in drafts {
            columns.push(self, tenant, draft)?;
        }
        let made: Vec<String> = RunQueryDsl::load(columns.bind(tenant), conn).await?;
        for id in &made {
            overtaken.remove(id);
        }
        Ok((answers, overtaken))
    }

    /// Those of the people that there are, locked.
    async fn locked(
        &self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        changes: &[(usize, ContactChange)],
    ) -> DbResult<HashMap<String, Draft>> {
        let ids: HashSet<&String> = changes.iter().map(|(_, change)| &change.id).collect();
        let query = statement::<SqlLocked>(LOCK)
            .bind::<Array<Text>, _>(ids.into_iter().cloned().collect::<Vec<_>>())
            .bind::<Int4, _>(tenant.0);
        let rows: Vec<LockedRow> = RunQueryDsl::load(query, conn).await?;
        let draft = |row: LockedRow| {
            let is_contact = row.1.is_some();
            let person = self.person_of(tenant, (row, (Vec::new(), Vec::new())))?;
            Ok((person.id.clone(), Draft { person, is_row: true, is_contact, is_changed: false }))
        };
        rows.into_iter().map(draft).collect()
    }
}

/// A person about to be written.
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

#[derive(Default)]
struct Columns {
    id: Vec<String>,
    profile: Vec<Vec<u8>>,
    locale: Vec<Option<String>>,
    time_zone: Vec<Option<&'static str>>,
    quiet_start: Vec<Option<i16>>,
    quiet_end: Vec<Option<i16>>,
    attributes: Vec<String>,
    is_row: Vec<bool>,
}

impl Columns {
    fn push(&mut self, store: &Store, tenant: TenantId, draft: Draft) -> DbResult<()> {
        let Person { id, email, phone, name, locale, time_zone, quiet_hours, attributes, .. } = draft.person;
        let minute = |minute: u16| i16::try_from(minute).ok();
        self.id.push(id);
        self.profile.push(store.seal_profile(tenant, &Profile { email, phone, name })?);
        self.locale.push(locale);
        self.time_zone.push(time_zone.map(chrono_tz::Tz::name));
        self.quiet_start.push(quiet_hours.and_then(|hours| minute(hours.start)));
        self.quiet_end.push(quiet_hours.and_then(|hours| minute(hours.end)));
        self.attributes.push(serde_json::to_string(&attributes).unwrap_or_else(|_| "{}".to_owned()));
        self.is_row.push(draft.is_row);
        Ok(())
    }

    fn bind(self, tenant: TenantId) -> super::Statement<Text> {
        statement(WRITE)
            .bind::<Int4, _>(tenant.0)
            .bind::<Array<Text>, _>(self.id)
            .bind::<Array<Binary>, _>(self.profile)
            .bind::<Array<Nullable<Text>>, _>(self.locale)
            .bind::<Array<Nullable<Text>>, _>(self.time_zone)
            .bind::<Array<Nullable<Int2>>, _>(self.quiet_start)
            .bind::<Array<Nullable<Int2>>, _>(self.quiet_end)
            .bind::<Array<Text>, _>(self.attributes)
            .bind::<Array<Bool>, _>(self.is_row)
    }
}

const LOCK: &str = "
SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text
FROM unnest(?::text[]) AS asked(user_id) JOIN users u ON u.tenant_id = ? AND u.user_id = asked.user_id
ORDER BY u.user_id FOR UPDATE OF u";

/// People that were found are changed; others are made, unless another caller has done so meanwhile.
const WRITE: &str = "
WITH given AS MATERIALIZED (
    SELECT f.tenant_id, g.* FROM (SELECT ?::int4 AS tenant_id) f CROSS JOIN
        unnest(?::text[], ?::bytea[], ?::text[], ?::text[], ?::int2[], ?::int2[], ?::text[], ?::bool[])
            AS g(user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes, is_row)
), changed AS (
    UPDATE users u SET profile = g.profile, locale = g.locale, time_zone = g.time_zone, quiet_start = g.quiet_start, quiet_end = g.quiet_end,
        attributes = g.attributes::jsonb, updated_at = clock_timestamp()
    FROM given g WHERE g.is_row AND u.tenant_id = g.tenant_id AND u.user_id = g.user_id
)
INSERT INTO users (tenant_id, user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes)
SELECT tenant_id, user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes::jsonb FROM given WHERE NOT is_row
ON CONFLICT DO NOTHING RETURNING user_id";

/// A fixed text that reads contacts.
macro_rules! select {
    ($from:literal) => {
        concat!(
            "
SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text,
       ARRAY(SELECT d.token FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id),
       ARRAY(SELECT d.platform FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id),
       u.created_at, u.updated_at,
       ARRAY(SELECT d.id FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id),
       ARRAY(SELECT d.created_at FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id ORDER BY d.id) ",
            $from
        )
    };
}

const ONE: &str = select!("FROM users u WHERE u.tenant_id = ? AND u.user_id = ? AND u.profile IS NOT NULL");

const LIST: &str = select!(
    "
FROM (SELECT ?::int4 AS tenant_id, ?::timestamptz AS at, ?::text AS id, ?::text AS locale, ?::text AS time_zone, (?::text[])::jsonb[] AS attributes) f
JOIN users u ON u.tenant_id = f.tenant_id
WHERE u.profile IS NOT NULL AND (u.created_at, u.user_id) < (f.at, f.id) AND (f.locale IS NULL OR u.locale = f.locale)
  AND (f.time_zone IS NULL OR u.time_zone = f.time_zone) AND (f.attributes IS NULL OR EXISTS (SELECT FROM unnest(f.attributes) a WHERE jsonb_contains(u.attributes, a)))
ORDER BY u.created_at DESC, u.user_id DESC LIMIT ?"
);
