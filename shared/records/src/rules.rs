//! Rules as an admin manages them. The services read them from the catalogue.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{Preferences, RuleDefinition, TenantId};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::RuleStore;

/// The settings of an admin.
#[derive(Clone, Debug)]
pub struct RuleSettings {
    /// Its name.
    pub name: String,
    /// A type of events, or a prefix with `.*`.
    pub event_type: String,
    /// The body of the rule.
    pub definition: RuleDefinition,
    /// Whether it is switched on.
    pub is_active: bool,
}

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub struct StoredRule {
    /// Its id.
    pub id: Uuid,
    /// The admin's settings.
    pub settings: RuleSettings,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

row! {
    struct RuleRow {
        id: Uuid as SqlUuid,
        name: String as Text,
        event_type: String as Text,
        definition: String as Text,
        is_active: bool as Bool,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct Named {
        id: Uuid as SqlUuid,
        name: String as Text,
    }
}

impl RuleStore<'_> {
    /// Makes a rule.
    pub async fn create(self, tenant: TenantId, settings: &RuleSettings) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let RuleSettings { name, event_type, definition, is_active } = settings.clone();
        let create = Create { name, event_type, definition: json(&definition), is_active, id, tenant: tenant.0 };
        create.query().within(Some(tenant)).run(self.store).await?;
        Ok(id)
    }

    /// Replaces the settings of a rule; returns whether the tenant has it.
    pub async fn update(self, tenant: TenantId, id: Uuid, settings: &RuleSettings) -> DbResult<bool> {
        let RuleSettings { name, event_type, definition, is_active } = settings.clone();
        let update = Update { name, event_type, definition: json(&definition), is_active, tenant: tenant.0, id };
        Ok(update.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// Removes a rule; returns whether the tenant had it.
    pub async fn remove(self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        Ok(Remove { tenant: tenant.0, id }.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// One rule of a tenant.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredRule>> {
        let rows = One { tenant: tenant.0, id }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().find_map(stored))
    }

    /// Up to `limit` rules of a tenant, newest first; only those older than `before`, if given.
    pub async fn list(self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<StoredRule>> {
        let list = List { tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit };
        let rows = list.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().filter_map(stored).collect())
    }

    /// The rules of a tenant that are switched off, by id and name.
    pub async fn switched_off(self, tenant: TenantId) -> DbResult<Vec<(Uuid, String)>> {
        let rows = SwitchedOff { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(|Named { id, name }| (id, name)).collect())
    }

    /// Whether a tenant has a template of this name. The cached catalogues may be too old for this.
    pub async fn has_template(self, tenant: TenantId, name: &str) -> DbResult<bool> {
        let has = HasTemplate { tenant: tenant.0, name: name.to_owned() };
        has.query().within(Some(tenant)).row(self.store).await
    }

    /// The preferences of a person, if known.
    pub async fn chosen_preferences(self, tenant: TenantId, user: &str) -> DbResult<Preferences> {
        let of_person = PreferencesOf { tenant: tenant.0, user_id: user.to_owned() };
        let rows = of_person.query().within(Some(tenant)).rows(self.store).await?;
        let chosen = rows.into_iter().flatten().next();
        Ok(chosen.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default())
    }

    /// The WhatsApp session of messages that name none: the tenant's only one, or the one called `default`.
    pub async fn usual_session(self, tenant: TenantId) -> DbResult<Option<Uuid>> {
        let some = Sessions { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        let only = some.first().filter(|_| some.len() == 1);
        Ok(only.or_else(|| some.iter().find(|session| session.name == USUAL_SESSION)).map(|session| session.id))
    }
}

/// The session of messages that name none, if a tenant has several.
const USUAL_SESSION: &str = "default";

/// A definition as JSON.
fn json(definition: &RuleDefinition) -> String {
    serde_json::to_string(definition).unwrap_or_default()
}

fn stored(row: RuleRow) -> Option<StoredRule> {
    let RuleRow { id, name, event_type, definition, is_active, created_at, updated_at } = row;
    let definition = serde_json::from_str(&definition).ok()?;
    Some(StoredRule { id, settings: RuleSettings { name, event_type, definition, is_active }, created_at, updated_at })
}

sql!(Create in "rules/create.sql" {
    name: String as Text, event_type: String as Text, definition: String as Text, is_active: bool as Bool,
    id: Uuid as SqlUuid, tenant: i32 as Int4
});
sql!(Update in "rules/update.sql" {
    name: String as Text, event_type: String as Text, definition: String as Text, is_active: bool as Bool,
    tenant: i32 as Int4, id: Uuid as SqlUuid
});
sql!(Remove in "rules/remove.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid });
sql!(One in "rules/one.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> RuleRow);
sql!(List in "rules/list.sql" { tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8 } -> RuleRow);
sql!(SwitchedOff in "rules/switched_off.sql" { tenant: i32 as Int4 } -> Named);
sql!(HasTemplate in "rules/has_template.sql" { tenant: i32 as Int4, name: String as Text } -> bool as Bool);
sql!(PreferencesOf in "rules/preferences.sql" {
    tenant: i32 as Int4, user_id: String as Text
} -> Option<String> as Nullable<Text>);
sql!(Sessions in "rules/sessions.sql" { tenant: i32 as Int4 } -> Named);
statements!(Create, Update, Remove, One, List, SwitchedOff, HasTemplate, PreferencesOf, Sessions);
