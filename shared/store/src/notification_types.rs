//! Kinds of notifications, their categories and templates, as an admin imports them: all in one commit, and again without effect.

use content::{catalogue::NotificationType, template::TemplateSource};
use diesel::sql_types::{Array, Bool, Int4, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{Class, TenantId};
use uuid::Uuid;

use super::{DbResult, Store, statement, templates::parts_of};

/// A category that types belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// Its name.
    pub name: String,
    /// For people.
    pub label: Option<String>,
    /// Its class; `None`: as its name says, or as it was.
    pub class: Option<Class>,
}

/// What is to be there afterwards.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Categories.
    pub categories: Vec<Category>,
    /// Types.
    pub types: Vec<NotificationType>,
    /// Templates.
    pub templates: Vec<TemplateSource>,
}

/// What an import did with things of one sort, by name; what it left as it was is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What was not there before.
    pub created: Vec<String>,
    /// What was otherwise before.
    pub changed: Vec<String>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// To categories.
    pub categories: Done,
    /// To types.
    pub types: Done,
    /// To templates.
    pub templates: Done,
}

impl Store {
    /// Imports everything, or nothing.
    pub async fn import_types(&self, tenant: TenantId, import: Import) -> DbResult<Imported> {
        let mut conn = self.within(Some(tenant)).await?;
        let imported = async {
            Ok(Imported {
                categories: put_categories(&mut conn, tenant, import.categories).await?,
                types: put_types(&mut conn, tenant, import.types).await?,
                templates: put_templates(&mut conn, tenant, import.templates).await?,
            })
        };
        let imported = imported.await;
        conn.finish(imported).await
    }

    /// Every category of a tenant, by name.
    pub async fn categories(&self, tenant: TenantId) -> DbResult<Vec<Category>> {
        type Row = (String, Option<String>, Option<String>);
        let query = statement::<(Text, Nullable<Text>, Nullable<Text>)>(CATEGORIES).bind::<Int4, _>(tenant.0);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        let category =
            |(name, label, class): Row| Category { name, label, class: class.and_then(|class| class.parse().ok()) };
        Ok(rows.into_iter().map(category).collect())
    }

    /// Removes a type, or the category of that name where there is no such type; says whether there was one.
    pub async fn remove_type(&self, tenant: TenantId, name: &str) -> DbResult<bool> {
        for text in [REMOVE_TYPE, REMOVE_CATEGORY] {
            let query = statement::<()>(text).bind::<Int4, _>(tenant.0).bind::<Text, _>(name.to_owned());
            if query.within(Some(tenant)).run(self).await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn done(rows: Vec<(String, bool)>) -> Done {
    let (created, changed): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, is_new)| *is_new);
    let names = |rows: Vec<(String, bool)>| {
        let mut names: Vec<String> = rows.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    Done { created: names(created), changed: names(changed) }
}

async fn put_categories(conn: &mut AsyncPgConnection, tenant: TenantId, all: Vec<Category>) -> DbResult<Done> {
    if all.is_empty() {
        return Ok(Done::default());
    }
    let query = statement::<(Text, Bool)>(PUT_CATEGORIES)
        .bind::<Int4, _>(tenant.0)
        .bind::<Array<Text>, _>(all.iter().map(|one| one.name.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.label.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.class.map(Class::as_str)).collect::<Vec<_>>());
    Ok(done(RunQueryDsl::load(query, conn).await?))
}

async fn put_types(conn: &mut AsyncPgConnection, tenant: TenantId, all: Vec<NotificationType>) -> DbResult<Done> {
    if all.is_empty() {
        return Ok(Done::default());
    }
    let channels = |one: &NotificationType| {
        let words: Vec<&str> = one.channels.iter().map(|channel| channel.as_str()).collect();
        words.join(",")
    };
    let send_window = |one: &NotificationType| serde_json::to_string(one.send_window.as_ref()?).ok();
    let query = statement::<(Text, Bool)>(PUT_TYPES)
        .bind::<Int4, _>(tenant.0)
        .bind::<Array<Text>, _>(all.iter().map(|one| one.name.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.category.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.label.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.description.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.class.map(Class::as_str)).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(all.iter().map(channels).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(all.iter().map(|one| one.default_enabled).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(send_window).collect::<Vec<_>>());
    Ok(done(RunQueryDsl::load(query, conn).await?))
}

async fn put_templates(conn: &mut AsyncPgConnection, tenant: TenantId, all: Vec<TemplateSource>) -> DbResult<Done> {
    if all.is_empty() {
        return Ok(Done::default());
    }
    let query = statement::<(Text, Bool)>(PUT_TEMPLATES)
        .bind::<Int4, _>(tenant.0)
        .bind::<Array<SqlUuid>, _>(all.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(all.iter().map(|one| one.name.clone()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(all.iter().map(|one| one.category.clone()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(all.iter().map(|one| one.variables.join("\n")).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(all.iter().map(parts_of).collect::<Vec<_>>());
    Ok(done(RunQueryDsl::load(query, conn).await?))
}

const PUT_CATEGORIES: &str = "
INSERT INTO categories AS c (tenant_id, name, label, class)
SELECT ?::int4, name, label, class FROM unnest(?::text[], ?::text[], ?::text[]) AS g(name, label, class)
ON CONFLICT (tenant_id, name) DO UPDATE SET label = coalesce(excluded.label, c.label), class = coalesce(excluded.class, c.class)
WHERE (c.label, c.class) IS DISTINCT FROM (coalesce(excluded.label, c.label), coalesce(excluded.class, c.class))
RETURNING name, (xmax = 0) AS is_new";

const PUT_TYPES: &str = "
INSERT INTO notification_types AS t (tenant_id, name, category, label, description, class, channels, default_enabled, send_window)
SELECT ?::int4, name, category, label, description, class, string_to_array(channels, ','), default_enabled, send_window::jsonb
FROM unnest(?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::bool[], ?::text[])
    AS g(name, category, label, description, class, channels, default_enabled, send_window)
ON CONFLICT (tenant_id, name) DO UPDATE SET category = excluded.category, label = excluded.label, description = excluded.description,
    class = coalesce(excluded.class, t.class), channels = excluded.channels, default_enabled = excluded.default_enabled,
    send_window = excluded.send_window
WHERE (t.category, t.label, t.description, t.class, t.channels, t.default_enabled, t.send_window) IS DISTINCT FROM
    (excluded.category, excluded.label, excluded.description, coalesce(excluded.class, t.class), excluded.channels, excluded.default_enabled,
    excluded.send_window)
RETURNING name, (xmax = 0) AS is_new";

const PUT_TEMPLATES: &str = "
WITH put AS (
    INSERT INTO templates AS t (tenant_id, id, name, category, variables, parts)
    SELECT ?::int4, id, name, category, coalesce(string_to_array(nullif(variables, ''), chr(10)), '{}'), parts::jsonb
    FROM unnest(?::uuid[], ?::text[], ?::text[], ?::text[], ?::text[]) AS g(id, name, category, variables, parts)
    ON CONFLICT (tenant_id, name) DO UPDATE SET category = coalesce(excluded.category, t.category), variables = excluded.variables,
        parts = excluded.parts, is_active = true, version = t.version + 1, updated_at = clock_timestamp()
    WHERE (t.category, t.variables, t.parts, t.is_active) IS DISTINCT FROM
        (coalesce(excluded.category, t.category), excluded.variables, excluded.parts, true)
    RETURNING id, name, version, tenant_id, variables, parts, (xmax = 0) AS is_new
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM put
)
SELECT name, is_new FROM put";

const CATEGORIES: &str = "SELECT name, label, class FROM categories WHERE tenant_id = ? ORDER BY name";

const REMOVE_TYPE: &str = "DELETE FROM notification_types WHERE tenant_id = ? AND name = ?";
const REMOVE_CATEGORY: &str = "DELETE FROM categories WHERE tenant_id = ? AND name = ?";
