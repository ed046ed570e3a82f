//! Templates as an admin manages them: the current version, and every one before.

use chrono::{DateTime, Utc};
use content::template::{Sources, TemplateSource};
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::TenantId;
use uuid::Uuid;

use super::{DbResult, Statement, Store, statement};

/// A template of a tenant.
#[derive(Clone, Debug)]
pub struct StoredTemplate {
    /// Its id.
    pub id: Uuid,
    /// What it says.
    pub source: TemplateSource,
    /// Whether it can be used.
    pub is_active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a template was, or is.
#[derive(Clone, Debug)]
pub struct TemplateVersion {
    /// Which version.
    pub version: i32,
    /// What each send must give.
    pub variables: Vec<String>,
    /// What it says.
    pub parts: Sources,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

type Row = ((Uuid, String, i32, Option<String>, Vec<String>, String), (bool, DateTime<Utc>, DateTime<Utc>));
type SqlRow = ((SqlUuid, Text, Int4, Nullable<Text>, Array<Text>, Text), (Bool, Timestamptz, Timestamptz));

/// A fixed text that reads templates.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, version, category, variables, parts::text, is_active, created_at, updated_at FROM templates ",
            $rest
        )
    };
}

impl Store {
    /// Makes a template; `None`: the name is taken.
    pub async fn create_template(
        &self,
        tenant: TenantId,
        source: &TemplateSource,
        is_active: bool,
    ) -> DbResult<Option<Uuid>> {
        let id = Uuid::now_v7();
        let query = bind(statement::<Int8>(CREATE), source, is_active).bind::<SqlUuid, _>(id);
        let made: i64 = query.bind::<Int4, _>(tenant.0).within(Some(tenant)).row(self).await?;
        Ok((made > 0).then_some(id))
    }

    /// Makes the version after `source.version` of a template; says whether that was the newest, and the name free.
    pub async fn update_template(
        &self,
        tenant: TenantId,
        id: Uuid,
        source: &TemplateSource,
        is_active: bool,
    ) -> DbResult<bool> {
        let query = bind(statement::<Int8>(UPDATE), source, is_active)
            .bind::<SqlUuid, _>(id)
            .bind::<Int4, _>(tenant.0)
            .bind::<Int4, _>(source.version);
        let changed: i64 = query.within(Some(tenant)).row(self).await?;
        Ok(changed > 0)
    }

    /// Removes a template with all its versions; says whether the tenant had it.
    pub async fn remove_template(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let query = statement::<Int8>(REMOVE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        let removed: i64 = query.row(self).await?;
        Ok(removed > 0)
    }

    /// One template of a tenant.
    pub async fn template(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredTemplate>> {
        let query = statement::<SqlRow>(ONE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().next().map(StoredTemplate::from))
    }

    /// Up to `limit` templates of a tenant, newest first; those older than `before`, if given.
    pub async fn list_templates(
        &self,
        tenant: TenantId,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<StoredTemplate>> {
        let query = statement::<SqlRow>(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().map(StoredTemplate::from).collect())
    }

    /// Up to `limit` versions of a template, newest first; those before `before`, if given.
    pub async fn template_versions(
        &self,
        tenant: TenantId,
        id: Uuid,
        before: Option<i32>,
        limit: i64,
    ) -> DbResult<Vec<TemplateVersion>> {
        let query = statement::<(Int4, Array<Text>, Text, Timestamptz)>(VERSIONS)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(id)
            .bind::<Int4, _>(before.unwrap_or(i32::MAX))
            .bind::<Int8, _>(limit);
        let rows: Vec<(i32, Vec<String>, String, DateTime<Utc>)> = query.within(Some(tenant)).rows(self).await?;
        let version = |(version, variables, parts, created_at): (i32, Vec<String>, String, DateTime<Utc>)| {
            TemplateVersion { version, variables, parts: serde_json::from_str(&parts).unwrap_or_default(), created_at }
        };
        Ok(rows.into_iter().map(version).collect())
    }
}

impl From<Row> for StoredTemplate {
    fn from(((id, name, version, category, variables, parts), (is_active, created_at, updated_at)): Row) -> Self {
        let parts = serde_json::from_str(&parts).unwrap_or_default();
        let source = TemplateSource { name, version, category, variables, parts };
        Self { id, source, is_active, created_at, updated_at }
    }
}

fn bind<T>(query: Statement<T>, source: &TemplateSource, is_active: bool) -> Statement<T> {
    query
        .bind::<Text, _>(source.name.clone())
        .bind::<Nullable<Text>, _>(source.category.clone())
        .bind::<Array<Text>, _>(source.variables.clone())
        .bind::<Text, _>(parts_of(source))
        .bind::<Bool, _>(is_active)
}

/// The parts as JSON.
pub(super) fn parts_of(source: &TemplateSource) -> String {
    serde_json::to_string(&source.parts).unwrap_or_default()
}

const CREATE: &str = "
WITH made AS (
    INSERT INTO templates (name, category, variables, parts, is_active, id, tenant_id)
    VALUES (?, ?, ?, ?::jsonb, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id, version, tenant_id, variables, parts
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM made
)
SELECT count(*) FROM made";

const UPDATE: &str = "
WITH given AS (
    SELECT ?::text AS name, ?::text AS category, ?::text[] AS variables, ?::text AS parts, ?::bool AS is_active,
           ?::uuid AS id, ?::int4 AS tenant_id, ?::int4 AS version
), changed AS (
    UPDATE templates t SET name = g.name, category = g.category, variables = g.variables, parts = g.parts::jsonb, is_active = g.is_active,
        version = t.version + 1, updated_at = clock_timestamp()
    FROM given g
    WHERE t.id = g.id AND t.tenant_id = g.tenant_id AND t.version = g.version
      AND NOT EXISTS (SELECT FROM templates o WHERE o.tenant_id = g.tenant_id AND o.name = g.name AND o.id <> g.id)
    RETURNING t.id, t.version, t.tenant_id, t.variables, t.parts
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM changed
)
SELECT count(*) FROM changed";

const REMOVE: &str = "
WITH gone AS (DELETE FROM templates WHERE tenant_id = ? AND id = ? RETURNING id
), versions AS (DELETE FROM template_versions v USING gone WHERE v.template_id = gone.id)
SELECT count(*) FROM gone";

const ONE: &str = select!("WHERE tenant_id = ? AND id = ?");
const LIST: &str = select!("WHERE tenant_id = ? AND id < ? ORDER BY id DESC LIMIT ?");

const VERSIONS: &str = "
SELECT version, variables, parts::text, created_at FROM template_versions
WHERE tenant_id = ? AND template_id = ? AND version < ? ORDER BY version DESC LIMIT ?";
