//! Rules as an admin manages them. What runs reads them from the catalogue.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Preferences, RuleDefinition, TenantId};
use uuid::Uuid;

use super::{DbResult, Statement, Store, statement};

/// What an admin sets.
#[derive(Clone, Debug)]
pub struct RuleSettings {
    /// Its name.
    pub name: String,
    /// A type of events, or a beginning with `.*`.
    pub event_type: String,
    /// What it says.
    pub definition: RuleDefinition,
    /// Whether it hears of events at present.
    pub is_active: bool,
}

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub struct StoredRule {
    /// Its id.
    pub id: Uuid,
    /// What its admin set.
    pub settings: RuleSettings,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

type Row = (Uuid, String, String, String, bool, DateTime<Utc>, DateTime<Utc>);
type SqlRow = (SqlUuid, Text, Text, Text, Bool, Timestamptz, Timestamptz);

/// A fixed text that reads rules.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, name, event_type, definition::text, is_active, created_at, updated_at FROM rules ", $rest)
    };
}

impl Store {
    /// Makes a rule.
    pub async fn create_rule(&self, tenant: TenantId, settings: &RuleSettings) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let query = bound(statement::<()>(CREATE), settings).bind::<SqlUuid, _>(id).bind::<Int4, _>(tenant.0);
        query.within(Some(tenant)).run(self).await?;
        Ok(id)
    }

    /// Writes the settings of a rule anew; says whether the tenant has it.
    pub async fn update_rule(&self, tenant: TenantId, id: Uuid, settings: &RuleSettings) -> DbResult<bool> {
        let query = bound(statement::<()>(UPDATE), settings).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id);
        Ok(query.within(Some(tenant)).run(self).await? > 0)
    }

    /// Removes a rule; says whether the tenant had it.
    pub async fn remove_rule(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let query = statement::<()>(REMOVE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(query.run(self).await? > 0)
    }

    /// One rule of a tenant.
    pub async fn stored_rule(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredRule>> {
        let query = statement::<SqlRow>(ONE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().find_map(stored))
    }

    /// Up to `limit` rules of a tenant, newest first; those older than `before`, if given.
    pub async fn list_rules(&self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<StoredRule>> {
        let query = statement::<SqlRow>(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().filter_map(stored).collect())
    }

    /// The rules of a tenant that are switched off, by id and name.
    pub async fn switched_off_rules(&self, tenant: TenantId) -> DbResult<Vec<(Uuid, String)>> {
        let query = statement::<(SqlUuid, Text)>(SWITCHED_OFF).bind::<Int4, _>(tenant.0).within(Some(tenant));
        query.rows(self).await
    }

    /// Whether a tenant has a template of this name. The copies of catalogues may be a moment too old to ask.
    pub async fn has_template(&self, tenant: TenantId, name: &str) -> DbResult<bool> {
        let query = statement::<Bool>(HAS_TEMPLATE).bind::<Int4, _>(tenant.0).bind::<Text, _>(name.to_owned());
        query.within(Some(tenant)).row(self).await
    }

    /// What a person chose, as far as anything is known.
    pub async fn chosen_preferences(&self, tenant: TenantId, user: &str) -> DbResult<Preferences> {
        let query = statement::<Nullable<Text>>(PREFERENCES).bind::<Int4, _>(tenant.0).bind::<Text, _>(user.to_owned());
        let rows: Vec<Option<String>> = query.within(Some(tenant)).rows(self).await?;
        let chosen = rows.into_iter().flatten().next();
        Ok(chosen.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default())
    }

    /// The WhatsApp session that carries what names none: the tenant's only one, or the one called `default`.
    pub async fn usual_session(&self, tenant: TenantId) -> DbResult<Option<Uuid>> {
        let query = statement::<(SqlUuid, Text)>(SESSIONS).bind::<Int4, _>(tenant.0).within(Some(tenant));
        let some: Vec<(Uuid, String)> = query.rows(self).await?;
        let only = some.first().filter(|_| some.len() == 1);
        Ok(only.or_else(|| some.iter().find(|(_, name)| name == USUAL_SESSION)).map(|(id, _)| *id))
    }
}

/// The session that carries what names none, where a tenant has several.
const USUAL_SESSION: &str = "default";

fn bound<T>(query: Statement<T>, settings: &RuleSettings) -> Statement<T> {
    query
        .bind::<Text, _>(settings.name.clone())
        .bind::<Text, _>(settings.event_type.clone())
        .bind::<Text, _>(serde_json::to_string(&settings.definition).unwrap_or_default())
        .bind::<Bool, _>(settings.is_active)
}

fn stored((id, name, event_type, definition, is_active, created_at, updated_at): Row) -> Option<StoredRule> {
    let definition = serde_json::from_str(&definition).ok()?;
    Some(StoredRule { id, settings: RuleSettings { name, event_type, definition, is_active }, created_at, updated_at })
}

const CREATE: &str = "
INSERT INTO rules (name, event_type, definition, is_active, id, tenant_id) VALUES (?, ?, ?::jsonb, ?, ?, ?)";

const UPDATE: &str = "
UPDATE rules r SET name = x.name, event_type = x.event_type, definition = x.definition::jsonb, is_active = x.is_active,
    updated_at = clock_timestamp()
FROM (SELECT ?::text AS name, ?::text AS event_type, ?::text AS definition, ?::bool AS is_active) x
WHERE r.tenant_id = ? AND r.id = ?";

const REMOVE: &str = "DELETE FROM rules WHERE tenant_id = ? AND id = ?";

const ONE: &str = select!("WHERE tenant_id = ? AND id = ?");
const LIST: &str = select!("WHERE tenant_id = ? AND id < ? ORDER BY id DESC LIMIT ?");

const SWITCHED_OFF: &str = "SELECT id, name FROM rules WHERE tenant_id = ? AND NOT is_active ORDER BY id";

const HAS_TEMPLATE: &str = "SELECT EXISTS (SELECT FROM templates WHERE tenant_id = ? AND name = ?)";

const PREFERENCES: &str = "SELECT preferences::text FROM users WHERE tenant_id = ? AND user_id = ?";

const SESSIONS: &str = "SELECT id, name FROM wa_sessions WHERE tenant_id = ?";
