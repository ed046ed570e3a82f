//! Templates as an admin manages them: the current version and all earlier ones.

use chrono::{DateTime, Utc};
use content::template::{Sources, TemplateSource};
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::TenantId;
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::TemplateStore;

/// A template of a tenant.
#[derive(Clone, Debug)]
pub struct StoredTemplate {
    /// Its id.
    pub id: Uuid,
    /// The source of the template.
    pub source: TemplateSource,
    /// Whether it can be used.
    pub is_active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// A version of a template.
#[derive(Clone, Debug)]
pub struct TemplateVersion {
    /// Which version.
    pub version: i32,
    /// The variables that each send must give.
    pub variables: Vec<String>,
    /// The parts of the template.
    pub parts: Sources,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

row! {
    struct TemplateRow {
        id: Uuid as SqlUuid,
        name: String as Text,
        version: i32 as Int4,
        category: Option<String> as Nullable<Text>,
        variables: Vec<String> as Array<Text>,
        parts: String as Text,
        is_active: bool as Bool,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct VersionRow {
        version: i32 as Int4,
        variables: Vec<String> as Array<Text>,
        parts: String as Text,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

impl TemplateStore<'_> {
    /// Creates a template; `None`: the name is taken.
    pub async fn create(self, tenant: TenantId, source: &TemplateSource, is_active: bool) -> DbResult<Option<Uuid>> {
        let id = Uuid::now_v7();
        let create = Create {
            name: source.name.clone(),
            category: source.category.clone(),
            variables: source.variables.clone(),
            parts: parts_of(source),
            is_active,
            id,
            tenant: tenant.0,
        };
        let made = create.query().within(Some(tenant)).row(self.store).await?;
        Ok((made > 0).then_some(id))
    }

    /// Creates the version after `source.version` of a template; returns whether that was the newest, and the name
    /// free.
    pub async fn update(self, tenant: TenantId, id: Uuid, source: &TemplateSource, is_active: bool) -> DbResult<bool> {
        let update = Update {
            name: source.name.clone(),
            category: source.category.clone(),
            variables: source.variables.clone(),
            parts: parts_of(source),
            is_active,
            id,
            tenant: tenant.0,
            version: source.version,
        };
        let changed = update.query().within(Some(tenant)).row(self.store).await?;
        Ok(changed > 0)
    }

    /// Removes a template with all its versions; returns whether the tenant had it.
    pub async fn remove(self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let removed = Remove { tenant: tenant.0, id }.query().within(Some(tenant)).row(self.store).await?;
        Ok(removed > 0)
    }

    /// One template of a tenant.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredTemplate>> {
        let found = One { tenant: tenant.0, id }.query().within(Some(tenant)).first(self.store).await?;
        Ok(found.map(StoredTemplate::from))
    }

    /// Up to `limit` templates of a tenant, newest first; only those older than `before`, if given.
    pub async fn list(self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<StoredTemplate>> {
        let list = List { tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit };
        let rows = list.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(StoredTemplate::from).collect())
    }

    /// Up to `limit` versions of a template, newest first; only those before `before`, if given.
    pub async fn versions(
        self,
        tenant: TenantId,
        id: Uuid,
        before: Option<i32>,
        limit: i64,
    ) -> DbResult<Vec<TemplateVersion>> {
        let versions = Versions { tenant: tenant.0, template: id, before: before.unwrap_or(i32::MAX), limit };
        let rows = versions.query().within(Some(tenant)).rows(self.store).await?;
        let version = |VersionRow { version, variables, parts, created_at }| TemplateVersion {
            version,
            variables,
            parts: serde_json::from_str(&parts).unwrap_or_default(),
            created_at,
        };
        Ok(rows.into_iter().map(version).collect())
    }
}

impl From<TemplateRow> for StoredTemplate {
    fn from(row: TemplateRow) -> Self {
        let TemplateRow { id, name, version, category, variables, parts, is_active, created_at, updated_at } = row;
        let parts = serde_json::from_str(&parts).unwrap_or_default();
        let source = TemplateSource { name, version, category, variables, parts };
        Self { id, source, is_active, created_at, updated_at }
    }
}

/// The parts as JSON.
pub(crate) fn parts_of(source: &TemplateSource) -> String {
    serde_json::to_string(&source.parts).unwrap_or_default()
}

sql!(Create in "templates/create.sql" {
    name: String as Text, category: Option<String> as Nullable<Text>, variables: Vec<String> as Array<Text>,
    parts: String as Text, is_active: bool as Bool, id: Uuid as SqlUuid, tenant: i32 as Int4
} -> i64 as Int8);
sql!(Update in "templates/update.sql" {
    name: String as Text, category: Option<String> as Nullable<Text>, variables: Vec<String> as Array<Text>,
    parts: String as Text, is_active: bool as Bool, id: Uuid as SqlUuid, tenant: i32 as Int4, version: i32 as Int4
} -> i64 as Int8);
sql!(Remove in "templates/remove.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> i64 as Int8);
sql!(One in "templates/one.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> TemplateRow);
sql!(List in "templates/list.sql" { tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8 } -> TemplateRow);
sql!(Versions in "templates/versions.sql" {
    tenant: i32 as Int4, template: Uuid as SqlUuid, before: i32 as Int4, limit: i64 as Int8
} -> VersionRow);
statements!(Create, Update, Remove, One, List, Versions);
