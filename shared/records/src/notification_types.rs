//! Types of notifications, their categories and templates. An admin imports them in one commit; a repeated import
//! changes nothing.

use content::{catalogue::NotificationType, template::TemplateSource};
use diesel::sql_types::{Array, Bool, Int4, Nullable, Text, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{Class, TenantId};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{TypeStore, templates::parts_of};

/// A category that types belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// Its name.
    pub name: String,
    /// For people.
    pub label: Option<String>,
    /// Its class; `None`: the default of its name, or the class it already has.
    pub class: Option<Class>,
}

/// The types, categories and templates that exist after the import.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Categories.
    pub categories: Vec<Category>,
    /// Types.
    pub types: Vec<NotificationType>,
    /// Templates.
    pub templates: Vec<TemplateSource>,
}

/// The changes of an import to one sort of things, by name. Unchanged ones are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The names that are new.
    pub created: Vec<String>,
    /// The names that changed.
    pub changed: Vec<String>,
}

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// To categories.
    pub categories: Done,
    /// To types.
    pub types: Done,
    /// To templates.
    pub templates: Done,
}

row! {
    struct CategoryRow {
        name: String as Text,
        label: Option<String> as Nullable<Text>,
        class: Option<String> as Nullable<Text>,
    }
}

row! {
    struct Put {
        name: String as Text,
        is_new: bool as Bool,
    }
}

impl TypeStore<'_> {
    /// Imports all of it or nothing.
    pub async fn import(self, tenant: TenantId, import: Import) -> DbResult<Imported> {
        let mut conn = self.store.within(Some(tenant)).await?;
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
    pub async fn categories(self, tenant: TenantId) -> DbResult<Vec<Category>> {
        let rows = Categories { tenant: tenant.0 }.query().within(Some(tenant)).rows(self.store).await?;
        let category = |CategoryRow { name, label, class }| {
            let class = class.and_then(|class| class.parse().ok());
            Category { name, label, class }
        };
        Ok(rows.into_iter().map(category).collect())
    }

    /// Removes a type, or the category of that name if there is no such type; returns whether there was one.
    pub async fn remove(self, tenant: TenantId, name: &str) -> DbResult<bool> {
        let (tenant_id, name) = (tenant.0, name.to_owned());
        let of_type = RemoveType { tenant: tenant_id, name: name.clone() };
        if of_type.query().within(Some(tenant)).run(self.store).await? > 0 {
            return Ok(true);
        }
        let of_category = RemoveCategory { tenant: tenant_id, name };
        Ok(of_category.query().within(Some(tenant)).run(self.store).await? > 0)
    }
}

fn done(rows: Vec<Put>) -> Done {
    let (created, changed): (Vec<_>, Vec<_>) = rows.into_iter().partition(|put| put.is_new);
    let names = |rows: Vec<Put>| {
        let mut names: Vec<String> = rows.into_iter().map(|put| put.name).collect();
        names.sort();
        names
    };
    Done { created: names(created), changed: names(changed) }
}

async fn put_categories(conn: &mut AsyncPgConnection, tenant: TenantId, all: Vec<Category>) -> DbResult<Done> {
    if all.is_empty() {
        return Ok(Done::default());
    }
    let put = PutCategories {
        tenant: tenant.0,
        names: all.iter().map(|one| one.name.clone()).collect(),
        labels: all.iter().map(|one| one.label.clone()).collect(),
        classes: all.iter().map(|one| one.class.map(Class::as_str)).collect(),
    };
    Ok(done(put.query().rows_on(conn).await?))
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
    let put = PutTypes {
        tenant: tenant.0,
        names: all.iter().map(|one| one.name.clone()).collect(),
        categories: all.iter().map(|one| one.category.clone()).collect(),
        labels: all.iter().map(|one| one.label.clone()).collect(),
        descriptions: all.iter().map(|one| one.description.clone()).collect(),
        classes: all.iter().map(|one| one.class.map(Class::as_str)).collect(),
        channels: all.iter().map(channels).collect(),
        defaults_enabled: all.iter().map(|one| one.default_enabled).collect(),
        send_windows: all.iter().map(send_window).collect(),
    };
    Ok(done(put.query().rows_on(conn).await?))
}

async fn put_templates(conn: &mut AsyncPgConnection, tenant: TenantId, all: Vec<TemplateSource>) -> DbResult<Done> {
    if all.is_empty() {
        return Ok(Done::default());
    }
    let put = PutTemplates {
        tenant: tenant.0,
        ids: all.iter().map(|_| Uuid::now_v7()).collect(),
        names: all.iter().map(|one| one.name.clone()).collect(),
        categories: all.iter().map(|one| one.category.clone()).collect(),
        variables: all.iter().map(|one| one.variables.join("\n")).collect(),
        parts: all.iter().map(parts_of).collect(),
    };
    Ok(done(put.query().rows_on(conn).await?))
}

sql!(PutCategories in "notification_types/put_categories.sql" {
    tenant: i32 as Int4, names: Vec<String> as Array<Text>, labels: Vec<Option<String>> as Array<Nullable<Text>>,
    classes: Vec<Option<&'static str>> as Array<Nullable<Text>>
} -> Put);
sql!(PutTypes in "notification_types/put_types.sql" {
    tenant: i32 as Int4,
    names: Vec<String> as Array<Text>,
    categories: Vec<Option<String>> as Array<Nullable<Text>>,
    labels: Vec<Option<String>> as Array<Nullable<Text>>,
    descriptions: Vec<Option<String>> as Array<Nullable<Text>>,
    classes: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    channels: Vec<String> as Array<Text>,
    defaults_enabled: Vec<bool> as Array<Bool>,
    send_windows: Vec<Option<String>> as Array<Nullable<Text>>,
} -> Put);
sql!(PutTemplates in "notification_types/put_templates.sql" {
    tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>, names: Vec<String> as Array<Text>,
    categories: Vec<Option<String>> as Array<Nullable<Text>>, variables: Vec<String> as Array<Text>,
    parts: Vec<String> as Array<Text>
} -> Put);
sql!(Categories in "notification_types/categories.sql" { tenant: i32 as Int4 } -> CategoryRow);
sql!(RemoveType in "notification_types/remove_type.sql" { tenant: i32 as Int4, name: String as Text });
sql!(RemoveCategory in "notification_types/remove_category.sql" { tenant: i32 as Int4, name: String as Text });
statements!(PutCategories, PutTypes, PutTemplates, Categories, RemoveType, RemoveCategory);
