//! Types of notifications and their categories: imported from two JSON files of other systems, or one by one.

use std::collections::{BTreeMap, HashSet};

use actix_web::{HttpResponse, web::Data};
use content::{catalogue::NotificationType, template::TemplateSource};
use domain::{
    Channel, Class, SendWindow, TenantId,
    contract::{
        send_window,
        submission::{FieldError, NAME_BYTES_MAX},
    },
};
use records::{
    Records,
    notification_types::{Category, Done, Import, Imported},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use submission::{Submissions, openapi::SendWindowBody};
use utoipa::ToSchema;
use web::{
    audit,
    auth::{Admin, Reader},
    body::{JsonBody, TEMPLATE},
    params::PathName,
    problem::Problem,
};

use crate::managing::{
    template_body::TemplateBody,
    templates::{all_templates, check_at},
};

/// The most types of one import: each process caches all types of a tenant.
const TYPES_MAX: usize = 1000;

/// One type; or S2's `notifications_config.json` (`categories`, `plugins`) or `notification_templates.json`
/// (`templates`) as they are.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NotificationTypeImport)]
pub struct ImportBody {
    /// Categories with their types.
    #[serde(default)]
    categories: Vec<CategoryBody>,
    /// Categories of another kind: each plugin is one.
    #[serde(default)]
    plugins: BTreeMap<String, PluginBody>,
    /// Templates, by name.
    #[serde(default)]
    templates: BTreeMap<String, TemplateBody>,
    /// Further types.
    #[serde(default)]
    types: Vec<TypeBody>,
    /// The type's name, as `name`.
    id: Option<String>,
    /// The type's name.
    name: Option<String>,
    /// For people.
    label: Option<String>,
    /// For people.
    description: Option<String>,
    /// The category it belongs to.
    category: Option<String>,
    /// `essential`, `transactional` or `marketing`; default: that of its category.
    class: Option<String>,
    /// Its channels, unless a request names others; default `in_app`.
    channels: Option<Vec<String>>,
    /// Whether it is on for people without a choice; default `true`.
    default_enabled: Option<bool>,
    /// When it may disturb people by e-mail, text message, push or WhatsApp; default: at any time.
    #[schema(value_type = Option<SendWindowBody>)]
    send_window: Option<Value>,
}

/// A category with its types.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NotificationCategoryImport)]
pub struct CategoryBody {
    /// Its name.
    id: String,
    /// For people.
    #[serde(alias = "label")]
    name: Option<String>,
    /// `essential`, `transactional` or `marketing`.
    class: Option<String>,
    /// Its types.
    #[serde(default)]
    types: Vec<TypeBody>,
}

/// A plugin: a category under its own name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NotificationPluginImport)]
pub struct PluginBody {
    /// For people.
    display_name: Option<String>,
    /// `essential`, `transactional` or `marketing`.
    class: Option<String>,
    /// Its types.
    #[serde(default)]
    notifications: Vec<TypeBody>,
}

/// A type.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NotificationTypeSettings)]
pub struct TypeBody {
    /// Its name, as `name`.
    id: Option<String>,
    /// Its name; if `id` is given, it is the label.
    name: Option<String>,
    /// For people.
    label: Option<String>,
    /// For people.
    description: Option<String>,
    /// The category it belongs to.
    category: Option<String>,
    /// `essential`, `transactional` or `marketing`; default: that of its category.
    class: Option<String>,
    /// Its channels, unless a request names others; default `in_app`.
    channels: Option<Vec<String>>,
    /// Whether it is on for people without a choice; default `true`.
    default_enabled: Option<bool>,
    /// When it may disturb people by e-mail, text message, push or WhatsApp; default: at any time.
    #[schema(value_type = Option<SendWindowBody>)]
    send_window: Option<Value>,
}

/// Reads an import and collects its faults.
#[derive(Default)]
struct Reading {
    import: Import,
    /// The prefix of each template's field names.
    places: BTreeMap<String, String>,
    faults: Vec<FieldError>,
}

impl Reading {
    fn fault(&mut self, field: String, message: &str) {
        self.faults.push(FieldError::new(field, message));
    }

    fn name(&mut self, field: String, text: &str) {
        if !(1..=NAME_BYTES_MAX).contains(&text.len()) || text.chars().any(char::is_control) {
            self.fault(field, "must have 1 to 200 bytes and no control characters");
        }
    }

    /// Texts for people.
    fn text(&mut self, field: String, text: Option<&str>) {
        if text.is_some_and(|text| text.len() > 2000 || text.contains('\0')) {
            self.fault(field, "must have at most 2000 bytes and no NUL");
        }
    }

    fn class(&mut self, field: String, text: Option<&str>) -> Option<Class> {
        let class = text?.parse();
        class.map_err(|unknown: domain::UnknownWord| self.fault(field, &unknown.to_string())).ok()
    }

    fn category(&mut self, at: &str, name: String, label: Option<String>, class: Option<&str>) {
        self.name(format!("{at}id"), &name);
        self.text(format!("{at}name"), label.as_deref());
        let class = self.class(format!("{at}class"), class);
        self.import.categories.push(Category { name, label, class });
    }

    fn of_type(&mut self, at: &str, body: TypeBody, category: Option<&str>) {
        let TypeBody { id, name, label, description, category: own, class, channels, default_enabled, send_window } =
            body;
        let (field, name, label) = match (id, name) {
            (Some(id), name) => ("id", id, label.or(name)),
            (None, Some(name)) => ("name", name, label),
            (None, None) => return self.fault(format!("{at}id"), "is required"),
        };
        self.name(format!("{at}{field}"), &name);
        self.text(format!("{at}label"), label.as_deref());
        self.text(format!("{at}description"), description.as_deref());
        let category = own.or_else(|| category.map(str::to_owned));
        if let Some(category) = &category {
            self.name(format!("{at}category"), category);
        }
        let class = self.class(format!("{at}class"), class.as_deref());
        let channels = self.channels(at, channels.unwrap_or_else(|| vec![Channel::InApp.to_string()]));
        let send_window = send_window.and_then(|window| self.send_window(format!("{at}send_window"), window));
        self.import.types.push(NotificationType {
            name,
            category,
            label,
            description,
            class,
            channels,
            default_enabled: default_enabled.unwrap_or(true),
            send_window,
        });
    }

    fn send_window(&mut self, field: String, given: Value) -> Option<SendWindow> {
        send_window::read(&field, given).map_err(|faults| self.faults.extend(faults)).ok()
    }

    fn channels(&mut self, at: &str, given: Vec<String>) -> Vec<Channel> {
        let mut channels = Vec::new();
        for (index, text) in given.iter().enumerate() {
            match text.parse::<Channel>() {
                Ok(Channel::Webhook) => self.fault(format!("{at}channels[{index}]"), "must be a channel of people"),
                Ok(channel) if channels.contains(&channel) => {}
                Ok(channel) => channels.push(channel),
                Err(unknown) => self.fault(format!("{at}channels[{index}]"), &unknown.to_string()),
            }
        }
        if given.is_empty() {
            self.fault(format!("{at}channels"), "must name one at least");
        }
        channels
    }

    fn template(&mut self, name: String, mut body: TemplateBody) {
        let at = format!("templates.{name}.");
        if body.name.is_some() || body.active.is_some() {
            self.fault(format!("templates.{name}"), "is named by its key, and active");
        }
        body.name = Some(name.clone());
        match body.apply(None, &at) {
            Ok(source) => self.import.templates.push(source),
            Err(faults) => self.faults.extend(faults),
        }
        self.places.insert(name, at);
    }

    /// Of two entries with one name only one would remain, and it would be unclear which.
    fn doubled(&mut self) {
        let mut seen = HashSet::new();
        let doubled: Vec<String> =
            self.import.types.iter().filter(|one| !seen.insert(&one.name)).map(|one| one.name.clone()).collect();
        for name in doubled {
            self.fault("types".to_owned(), &format!("name `{name}` twice"));
        }
        let mut seen = HashSet::new();
        let doubled: Vec<String> =
            self.import.categories.iter().filter(|one| !seen.insert(&one.name)).map(|one| one.name.clone()).collect();
        for name in doubled {
            self.fault("categories".to_owned(), &format!("name `{name}` twice, plugins counted in"));
        }
    }
}

impl ImportBody {
    fn read(self) -> Result<Reading, Vec<FieldError>> {
        let Self { categories, plugins, templates, types, .. } = self;
        let Self { id, name, label, description, category, class, channels, default_enabled, send_window, .. } = self;
        let mut reading = Reading::default();
        for (index, category) in categories.into_iter().enumerate() {
            let at = format!("categories[{index}].");
            for (index, body) in category.types.into_iter().enumerate() {
                reading.of_type(&format!("{at}types[{index}]."), body, Some(&category.id));
            }
            reading.category(&at, category.id, category.name, category.class.as_deref());
        }
        for (name, plugin) in plugins {
            let at = format!("plugins.{name}.");
            for (index, body) in plugin.notifications.into_iter().enumerate() {
                reading.of_type(&format!("{at}notifications[{index}]."), body, Some(&name));
            }
            reading.category(&at, name, plugin.display_name, plugin.class.as_deref());
        }
        for (index, body) in types.into_iter().enumerate() {
            reading.of_type(&format!("types[{index}]."), body, None);
        }
        for (name, body) in templates {
            reading.template(name, body);
        }
        let is_single = id.is_some()
            || name.is_some()
            || label.is_some()
            || description.is_some()
            || category.is_some()
            || class.is_some()
            || channels.is_some()
            || default_enabled.is_some()
            || send_window.is_some();
        let is_empty =
            reading.import.types.is_empty() && reading.import.categories.is_empty() && reading.places.is_empty();
        if is_single || is_empty && reading.faults.is_empty() {
            let body =
                TypeBody { id, name, label, description, category, class, channels, default_enabled, send_window };
            reading.of_type("", body, None);
        }
        if reading.import.types.len() > TYPES_MAX || reading.import.categories.len() > TYPES_MAX {
            reading.fault("types".to_owned(), "must be at most 1000");
        }
        reading.doubled();
        if reading.faults.is_empty() { Ok(reading) } else { Err(reading.faults) }
    }
}

/// The changes of an import to one sort of things.
#[derive(Serialize, ToSchema)]
#[schema(as = NotificationImportDone)]
pub struct DoneView {
    /// Those that were not there before.
    pub created: Vec<String>,
    /// Those that were otherwise before.
    pub changed: Vec<String>,
    /// Those that stay as they were.
    pub unchanged: Vec<String>,
}

impl DoneView {
    fn of(done: Done, mut all: Vec<String>) -> Self {
        all.retain(|name| !done.created.contains(name) && !done.changed.contains(name));
        all.sort();
        Self { created: done.created, changed: done.changed, unchanged: all }
    }

    fn made_any(&self) -> bool {
        !self.created.is_empty()
    }
}

/// The result of an import.
#[derive(Serialize, ToSchema)]
#[schema(as = NotificationImported)]
pub struct ImportedView {
    /// With categories.
    pub categories: DoneView,
    /// With types.
    pub types: DoneView,
    /// With templates.
    pub templates: DoneView,
}

/// Imports types of notifications, categories and templates.
///
/// Takes `notifications_config.json` and `notification_templates.json` unchanged, or one type. Existing ones are
/// changed; the same import again changes nothing. It is all or nothing: one fault refuses the import, and the answer
/// names its place.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/notification-types", tag = "templates",
    request_body(content = ImportBody, examples(
        ("one" = (summary = "One type", value = json!({"id": "task_reminder", "label": "Task Reminders", "category": "tasks", "channels": ["in_app", "push"]}))),
        ("config" = (summary = "notifications_config.json", value = json!({"categories": [{"id": "system", "name": "System Notifications",
            "types": [{"id": "welcome", "label": "Welcome Message", "default_enabled": true, "channels": ["in_app", "email"]}]}], "plugins": {}}))),
        ("templates" = (summary = "notification_templates.json", value = json!({"templates": {"task_reminder": {"in_app": {"title": "{{title}}", "body": "{{message}}"}}}}))))),
    responses((status = 200, description = "Nothing was new", body = ImportedView), (status = 201, description = "Something was made", body = ImportedView)))]
pub async fn import(
    admin: Admin,
    submissions: Data<Submissions>,
    body: JsonBody<TEMPLATE>,
) -> Result<HttpResponse, Problem> {
    let body: ImportBody = body.parse().await?;
    let Reading { import, places, .. } = body.read().map_err(Problem::validation)?;
    let tenant = admin.0.tenant;
    if !import.templates.is_empty() {
        let at = |name: &str| places.get(name).cloned().unwrap_or_default();
        check_at(
            (&submissions, tenant),
            all_templates(&submissions, tenant).await?,
            import.templates.clone(),
            None,
            at,
        )
        .await?;
    }
    let names = (
        import.categories.iter().map(|one| one.name.clone()).collect(),
        import.types.iter().map(|one| one.name.clone()).collect(),
        import.templates.iter().map(|one: &TemplateSource| one.name.clone()).collect(),
    );
    let Imported { categories, types, templates } =
        submissions.web.queries.run(async move |store| store.notification_types().import(tenant, import).await).await?;
    submissions.web.catalogues.forget(tenant);
    let view = ImportedView {
        categories: DoneView::of(categories, names.0),
        types: DoneView::of(types, names.1),
        templates: DoneView::of(templates, names.2),
    };
    let all = [&view.categories, &view.types, &view.templates];
    let has_made = all.iter().any(|done| done.made_any());
    let has_changed = has_made || all.iter().any(|done| !done.changed.is_empty());
    let made: Vec<&str> =
        all.iter().flat_map(|done| done.created.iter().chain(&done.changed)).map(String::as_str).collect();
    let made = made.into_iter().take(20).collect::<Vec<_>>().join(" ");
    let response = if has_made { HttpResponse::Created().json(&view) } else { HttpResponse::Ok().json(&view) };
    Ok(if has_changed { audit::made(response, made) } else { audit::unchanged(response) })
}

/// A type.
#[derive(Serialize, ToSchema)]
#[schema(as = NotificationType)]
pub struct TypeView {
    /// Its name.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people.
    pub label: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// The category it belongs to.
    pub category: Option<String>,
    /// How far a person may refuse it: its own class, that of its category, or the default of the category's name.
    #[schema(value_type = String, example = "transactional")]
    pub class: Class,
    /// Its channels, unless a request names others.
    #[schema(value_type = Vec<submission::openapi::ChannelWord>)]
    pub channels: Vec<Channel>,
    /// Whether it is on for people without a choice.
    pub default_enabled: bool,
    /// When it may disturb people; absent: at any time.
    #[schema(value_type = Option<SendWindowBody>)]
    pub send_window: Option<Value>,
}

/// A category.
#[derive(Serialize, ToSchema)]
#[schema(as = NotificationCategory)]
pub struct CategoryView {
    /// Its name.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Its class: its own, or the default of its name.
    #[schema(value_type = String, example = "transactional")]
    pub class: Class,
}

/// All types and categories.
#[derive(Serialize, ToSchema)]
pub struct NotificationTypeList {
    /// The types, by name.
    pub types: Vec<TypeView>,
    /// The categories, by name.
    pub categories: Vec<CategoryView>,
}

/// The tenant's types of notifications, and their categories.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/notification-types", tag = "templates",
    responses((status = 200, description = "The types and categories", body = NotificationTypeList)))]
pub async fn list(reader: Reader, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(all(&submissions, reader.0.tenant).await?))
}

async fn all(submissions: &Submissions, tenant: TenantId) -> Result<NotificationTypeList, Problem> {
    let (types, categories) = submissions
        .web
        .queries
        .run(async move |store| {
            Ok((store.catalogue().types(tenant).await?, store.notification_types().categories(tenant).await?))
        })
        .await?;
    let class_of = |name: Option<&str>| {
        let own = categories.iter().find(|category| Some(category.name.as_str()) == name);
        own.and_then(|category| category.class).unwrap_or_else(|| Class::of(name))
    };
    let of_type = |one: NotificationType| TypeView {
        class: one.class.unwrap_or_else(|| class_of(one.category.as_deref())),
        id: one.name.clone(),
        name: one.name,
        label: one.label,
        description: one.description,
        category: one.category,
        channels: one.channels,
        default_enabled: one.default_enabled,
        send_window: one.send_window.as_ref().map(send_window::show),
    };
    let types = types.into_iter().map(of_type).collect();
    let category = |one: &Category| CategoryView {
        id: one.name.clone(),
        name: one.label.clone(),
        class: class_of(Some(&one.name)),
    };
    Ok(NotificationTypeList { types, categories: categories.iter().map(category).collect() })
}

/// Removes a type; if there is no such type, the category of that name.
///
/// Preferences about it stay, and so does a template of that name.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/notification-types/{name}", tag = "templates", params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Removed")))]
pub async fn remove(admin: Admin, name: PathName, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (tenant, name) = (admin.0.tenant, name.0.into_inner());
    let was_there =
        submissions.web.queries.run(async move |store| store.notification_types().remove(tenant, &name).await).await?;
    submissions.web.catalogues.forget(tenant);
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found("notification type")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Import, Vec<String>> {
        let body: ImportBody = serde_json::from_value(body).map_err(|error| vec![error.to_string()])?;
        let fields = |faults: Vec<FieldError>| faults.into_iter().map(|fault| fault.field).collect();
        body.read().map(|reading| reading.import).map_err(fields)
    }

    #[test]
    fn the_printed_file_of_types_is_taken() {
        let import = read(json!({
            "categories": [{"id": "system", "name": "System Notifications", "types": [
                {"id": "welcome", "label": "Welcome Message", "default_enabled": true, "channels": ["in_app", "email"]}]}],
            "plugins": {"task_manager": {"display_name": "Task Manager", "notifications": [
                {"id": "task_reminder", "label": "Task Reminders", "description": "Get reminded about upcoming tasks",
                 "default_enabled": true, "channels": ["in_app", "push"]}]}}
        }))
        .unwrap();
        let types: Vec<_> = import.types.iter().map(|one| (one.name.as_str(), one.category.as_deref())).collect();
        assert_eq!(types, [("welcome", Some("system")), ("task_reminder", Some("task_manager"))]);
        assert_eq!(import.categories.last().unwrap().label.as_deref(), Some("Task Manager"));
    }

    #[test]
    fn every_fault_is_named_by_its_place() {
        let faults = |body: Value| read(body).unwrap_err();
        assert_eq!(faults(json!({})), ["id"]);
        assert_eq!(faults(json!({"label": "x"})), ["id"]);
        assert_eq!(faults(json!({"id": "x", "class": "vital", "channels": ["fax"]})), ["class", "channels[0]"]);
        let nested = json!({"categories": [{"id": "", "types": [{"id": "a", "channels": []}]}],
            "plugins": {"p": {"notifications": [{"label": "x"}]}}, "templates": {"t": {"email": {}}}});
        let wanted = [
            "categories[0].types[0].category",
            "categories[0].types[0].channels",
            "categories[0].id",
            "plugins.p.notifications[0].id",
            "templates.t.email",
        ];
        assert_eq!(faults(nested), wanted);
        assert_eq!(faults(json!({"types": [{"id": "a"}, {"name": "a"}]})), ["types"]);
        assert_eq!(faults(json!({"id": "x", "send_window": {"from": "9", "to": "17:00"}})), ["send_window.from"]);
        assert_eq!(faults(json!({"send_window": {"from": "09:00", "to": "17:00"}})), ["id"]);
        let nested = json!({"plugins": {"p": {"notifications": [{"id": "x", "send_window": {"days": ["x"], "from": "09:00", "to": "17:00"}}]}}});
        assert_eq!(faults(nested), ["plugins.p.notifications[0].send_window.days[0]"]);
    }
}
