//! Templates of a tenant: versioned, checked before they are saved, and previewed.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use content::template::{self, DEFAULT, Fault, Template, TemplateSource};
use domain::{
    Channel, TenantId,
    contract::submission::{FieldError, Submission, TemplateRef},
};
use records::{
    Records,
    templates::{StoredTemplate, TemplateVersion},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use submission::{
    Submissions,
    envelope::{SendAnswer, to_json},
    http::{origin, submit_message},
    idempotency::{self, Kind},
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    audit,
    auth::{Admin, Reader},
    body::{JsonBody, TEMPLATE},
    observe::Trace,
    params::{self, Id, Page, Params},
    problem::Problem,
};

use crate::managing::template_body::{PartsBody, TemplateBody, field_errors, write_part, written_parts};

/// The most templates of one tenant: each process caches all of them.
pub const TEMPLATES_MAX: usize = 1000;
/// Their sources together.
const SOURCES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A template.
#[derive(Serialize, ToSchema)]
#[schema(as = Template)]
pub struct TemplateView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The category of its messages.
    pub category: Option<String>,
    /// Its current version; each change makes another.
    pub version: i32,
    /// The variables that each send must give.
    pub variables: Vec<String>,
    /// Whether it can be used.
    pub active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// Its parts as they were given: `subject`, `body`, `html_body`, and parts by channel.
    #[serde(flatten)]
    #[schema(value_type = PartsBody)]
    pub parts: Map<String, Value>,
}

impl From<StoredTemplate> for TemplateView {
    fn from(found: StoredTemplate) -> Self {
        let StoredTemplate { id, source, is_active, created_at, updated_at } = found;
        let parts = written_parts(&source.parts);
        let TemplateSource { name, category, version, variables, .. } = source;
        Self { id, name, category, version, variables, active: is_active, created_at, updated_at, parts }
    }
}

/// Templates, newest first.
#[derive(Serialize, ToSchema)]
pub struct TemplateList {
    /// The templates.
    pub templates: Vec<TemplateView>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

fn unknown() -> Problem {
    Problem::not_found("template")
}

fn taken(name: &str) -> Problem {
    Problem::conflict(format!("Choose another name, or change the template: `{name}` is there already."))
}

/// The tenant's templates.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/notifications/templates", tag = "templates", params(Page),
    responses((status = 200, description = "The templates", body = TemplateList)))]
pub async fn list(reader: Reader, page: Params<Page>, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = reader.0.tenant;
    let found =
        submissions.web.queries.run(async move |store| store.templates().list(tenant, before, limit + 1).await).await?;
    let (found, next_cursor) = params::page_of(found, limit, |template| template.id);
    Ok(HttpResponse::Ok()
        .json(TemplateList { templates: found.into_iter().map(TemplateView::from).collect(), next_cursor }))
}

/// Creates a template.
///
/// Templates are Handlebars, strict: a send that lacks a used variable is refused. HTML is escaped, texts are not. `{{>
/// name}}` includes another template, its text for the same channel and of the same kind. The helpers are if, unless,
/// each, with, lookup, eq, ne, gt, gte, lt, lte, and, or, not and len. A template that cannot be parsed, includes
/// itself or includes an unknown one is refused here, with its line.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/notifications/templates", tag = "templates",
    request_body(content = TemplateBody, examples(
        ("whole" = (summary = "For every channel", value = json!({"name": "order_confirmation", "category": "transactional",
            "subject": "Order #{{ order_id }} Confirmed", "body": "Hello {{ customer_name }}, your order for ${{ amount }} has been confirmed!",
            "html_body": "<h1>Order Confirmed</h1><p>Hello {{ customer_name }}</p>", "variables": ["customer_name", "order_id", "amount"]}))),
        ("channels" = (summary = "Channel by channel", value = json!({"name": "task_reminder", "in_app": {"title": "{{title}}", "body": "{{message}}"},
            "email": {"subject": "⏰ {{title}}", "text_body": "Hi {{username}},\n\n{{message}}"}, "sms": {"body": "{{message}}"}}))))),
    responses((status = 201, description = "Made", body = TemplateView), (status = 409, description = "The name is taken")))]
pub async fn create(
    admin: Admin,
    submissions: Data<Submissions>,
    body: JsonBody<TEMPLATE>,
) -> Result<HttpResponse, Problem> {
    let body: TemplateBody = body.parse().await?;
    let (tenant, is_active) = (admin.0.tenant, body.active.unwrap_or(true));
    let source = body.apply(None, "").map_err(Problem::validation)?;
    let all = all_templates(&submissions, tenant).await?;
    if all.iter().any(|one| one.source.name == source.name) {
        return Err(taken(&source.name));
    }
    check((&submissions, tenant), all, vec![source.clone()], None).await?;
    let name = source.name.clone();
    let saving = async move |store: store::Store| match store.templates().create(tenant, &source, is_active).await? {
        Some(id) => store.templates().find(tenant, id).await,
        None => Ok(None),
    };
    let made = submissions.web.queries.run(saving).await?.ok_or_else(|| taken(&name))?;
    submissions.web.catalogues.forget(tenant);
    let id = made.id;
    Ok(audit::made(HttpResponse::Created().json(TemplateView::from(made)), id))
}

/// All templates of a tenant, active or not.
pub async fn all_templates(submissions: &Submissions, tenant: TenantId) -> Result<Vec<StoredTemplate>, Problem> {
    let most = i64::try_from(TEMPLATES_MAX).unwrap_or(i64::MAX) + 1;
    submissions.web.queries.run(async move |store| store.templates().list(tenant, None, most).await).await
}

/// Checks whether `changed` can be saved beside the others. `but`: one that is removed or renamed.
async fn check(
    of: (&Submissions, TenantId),
    all: Vec<StoredTemplate>,
    changed: Vec<TemplateSource>,
    but: Option<Uuid>,
) -> Result<(), Problem> {
    check_at(of, all, changed, but, |_| String::new()).await
}

/// As [`check`]; `at` gives the prefix of a template's field names.
pub async fn check_at(
    (submissions, tenant): (&Submissions, TenantId),
    all: Vec<StoredTemplate>,
    changed: Vec<TemplateSource>,
    but: Option<Uuid>,
    at: impl Fn(&str) -> String,
) -> Result<(), Problem> {
    let is_new = |source: &&TemplateSource| !all.iter().any(|one| one.source.name == source.name);
    let bytes_of = |source: &TemplateSource| to_json(&source.parts).len();
    let bytes = all.iter().map(|one| bytes_of(&one.source)).chain(changed.iter().map(bytes_of)).sum::<usize>();
    if all.len() + changed.iter().filter(is_new).count() > TEMPLATES_MAX || bytes > SOURCES_BYTES_MAX {
        return Err(Problem::conflict("Remove templates first: there may be 1000 of them, with 16 MiB together."));
    }
    let names: Vec<String> = changed.iter().map(|source| source.name.clone()).collect();
    let checking = move || {
        let kept = all.into_iter().filter(|one| one.is_active && Some(one.id) != but).map(|one| one.source);
        template::check(&changed, &kept.collect::<Vec<_>>())
    };
    let found: Vec<Fault> = submissions.renderers.run(tenant, checking).await?;
    if found.is_empty() {
        return Ok(());
    }
    Err(Problem::validation(field_errors(found, |name| names.iter().any(|own| own == name).then(|| at(name)))))
}

/// Refuses to remove a template that others include.
async fn check_unused(
    (submissions, tenant): (&Submissions, TenantId),
    all: Vec<StoredTemplate>,
    name: String,
) -> Result<(), Problem> {
    let checking = move || {
        let active: Vec<TemplateSource> = all.into_iter().filter(|one| one.is_active).map(|one| one.source).collect();
        template::check_without(&name, &active)
    };
    let found = submissions.renderers.run(tenant, checking).await?;
    let Some(fault) = found.first() else { return Ok(()) };
    Err(Problem::conflict(format!("Change template `{}` first: it includes this one.", fault.template)))
}

/// A template.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/notifications/templates/{id}", tag = "templates", params(("id" = Uuid, Path, description = "The template")),
    responses((status = 200, description = "The template", body = TemplateView)))]
pub async fn show(reader: Reader, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let found = stored(&submissions, reader.0.tenant, id.0).await?;
    Ok(HttpResponse::Ok().json(TemplateView::from(found)))
}

async fn stored(submissions: &Submissions, tenant: TenantId, id: Uuid) -> Result<StoredTemplate, Problem> {
    submissions.web.queries.run(async move |store| store.templates().find(tenant, id).await).await?.ok_or_else(unknown)
}

/// Creates another version of a template. An absent field stays.
///
/// Accepted messages keep the version from which they were rendered.
///
/// Roles: admin.
#[utoipa::path(put, path = "/api/notifications/templates/{id}", tag = "templates", params(("id" = Uuid, Path, description = "The template")),
    request_body(content = TemplateBody, example = json!({"subject": "Your order #{{ order_id }}"})),
    responses((status = 200, description = "Changed", body = TemplateView),
        (status = 409, description = "The name is taken, another template includes it, or somebody else changed it just now")))]
pub async fn update(
    admin: Admin,
    id: Id,
    submissions: Data<Submissions>,
    body: JsonBody<TEMPLATE>,
) -> Result<HttpResponse, Problem> {
    let body: TemplateBody = body.parse().await?;
    let (tenant, id) = (admin.0.tenant, id.0);
    let before = stored(&submissions, tenant, id).await?;
    let is_active = body.active.unwrap_or(before.is_active);
    let source = body.apply(Some(&before.source), "").map_err(Problem::validation)?;
    let all = all_templates(&submissions, tenant).await?;
    if all.iter().any(|one| one.source.name == source.name && one.id != id) {
        return Err(taken(&source.name));
    }
    if before.is_active && (!is_active || source.name != before.source.name) {
        check_unused((&submissions, tenant), all.clone(), before.source.name).await?;
    }
    check((&submissions, tenant), all, vec![source.clone()], Some(id)).await?;
    let saving = async move |store: store::Store| match store.templates().update(tenant, id, &source, is_active).await?
    {
        true => store.templates().find(tenant, id).await,
        false => Ok(None),
    };
    let changed = submissions.web.queries.run(saving).await?;
    let changed = changed
        .ok_or_else(|| Problem::conflict("Read the template and try again: somebody else changed it just now."))?;
    submissions.web.catalogues.forget(tenant);
    Ok(HttpResponse::Ok().json(TemplateView::from(changed)))
}

/// Removes a template with all its versions. Messages already accepted from it are still sent.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/notifications/templates/{id}", tag = "templates", params(("id" = Uuid, Path, description = "The template")),
    responses((status = 204, description = "Removed"), (status = 409, description = "Another template includes it")))]
pub async fn remove(admin: Admin, id: Id, submissions: Data<Submissions>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let found = stored(&submissions, tenant, id).await?;
    if found.is_active {
        check_unused((&submissions, tenant), all_templates(&submissions, tenant).await?, found.source.name).await?;
    }
    let was_there = submissions.web.queries.run(async move |store| store.templates().remove(tenant, id).await).await?;
    submissions.web.catalogues.forget(tenant);
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(unknown()) }
}

/// A version of a template.
#[derive(Serialize, ToSchema)]
#[schema(as = TemplateVersion)]
pub struct VersionView {
    /// Which one.
    pub version: i32,
    /// The variables that each send had to give.
    pub variables: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Its parts.
    #[serde(flatten)]
    #[schema(value_type = PartsBody)]
    pub parts: Map<String, Value>,
}

/// Versions, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = TemplateVersionList)]
pub struct VersionList {
    /// The versions.
    pub versions: Vec<VersionView>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// The versions of a template.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/notifications/templates/{id}/versions", tag = "templates",
    params(("id" = Uuid, Path, description = "The template"), Page),
    responses((status = 200, description = "The versions", body = VersionList)))]
pub async fn versions(
    reader: Reader,
    id: Id,
    page: Params<Page>,
    submissions: Data<Submissions>,
) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::number_cursor(page.0.cursor)?);
    let (tenant, id) = (reader.0.tenant, id.0);
    stored(&submissions, tenant, id).await?;
    let before = before.map(|before| i32::try_from(before).unwrap_or(i32::MAX));
    let found = submissions
        .web
        .queries
        .run(async move |store| store.templates().versions(tenant, id, before, limit + 1).await)
        .await?;
    let (found, next_cursor) =
        params::page_after(found, limit, |one| params::number_cursor_after(i64::from(one.version)));
    let view = |one: TemplateVersion| {
        let TemplateVersion { version, variables, parts, created_at } = one;
        VersionView { version, variables, created_at, parts: written_parts(&parts) }
    };
    Ok(HttpResponse::Ok().json(VersionList { versions: found.into_iter().map(view).collect(), next_cursor }))
}

/// The variables of a preview.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TemplatePreview)]
pub struct PreviewBody {
    /// The variables.
    #[serde(default)]
    #[schema(value_type = Option<Object>, example = json!({"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}))]
    template_vars: Map<String, Value>,
    /// Only the part for this channel.
    #[schema(example = "email")]
    channel: Option<String>,
    /// The version; default: the current one.
    version: Option<i32>,
}

/// Renders a template with these variables.
///
/// Returns its parts in the form in which they were given: `subject`, `body` and `html_body`, or channel by channel. A
/// missing variable is a 400 that names it.
///
/// Roles: producer, admin, operator.
#[utoipa::path(post, path = "/api/notifications/templates/{id}/preview", tag = "templates",
    params(("id" = Uuid, Path, description = "The template")),
    request_body(content = PreviewBody, example = json!({"template_vars": {"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}})),
    responses((status = 200, description = "What it says", body = PartsBody,
        example = json!({"subject": "Order #12345 Confirmed", "body": "Hello John Doe, your order for $99.99 has been confirmed!"}))))]
pub async fn preview(
    reader: Reader,
    id: Id,
    submissions: Data<Submissions>,
    body: JsonBody<TEMPLATE>,
) -> Result<HttpResponse, Problem> {
    let asked: PreviewBody = body.parse_or_default().await?;
    let channel = channel_of(asked.channel.as_deref())?;
    let template = ready(&submissions, reader.0.tenant, id.0, asked.version).await?;
    let variables = Value::Object(asked.template_vars);
    let mut said = Map::new();
    for (key, channel) in places(&template.source, channel) {
        let (tenant, variables) = (reader.0.tenant, variables.clone());
        let part = submissions.renderers.render(tenant, Arc::clone(&template), channel, variables).await?;
        write_part(&key, &part, &mut said);
    }
    if said.is_empty() {
        return Err(Problem::validation(vec![FieldError::new(
            "channel",
            "is none that the template says anything on",
        )]));
    }
    Ok(audit::unchanged(HttpResponse::Ok().json(said)))
}

fn channel_of(text: Option<&str>) -> Result<Option<Channel>, Problem> {
    let parsed = text.map(str::parse::<Channel>).transpose();
    parsed.map_err(|unknown| Problem::validation(vec![FieldError::new("channel", unknown.to_string())]))
}

/// A template of this tenant, ready to render as it stands in the database, also where it is not active.
async fn ready(
    submissions: &Submissions,
    tenant: TenantId,
    id: Uuid,
    version: Option<i32>,
) -> Result<Arc<Template>, Problem> {
    let mut source = stored(submissions, tenant, id).await?.source;
    if let Some(version) = version.filter(|version| *version != source.version) {
        let next = version.saturating_add(1);
        let found = submissions
            .web
            .queries
            .run(async move |store| store.templates().versions(tenant, id, Some(next), 1).await)
            .await?;
        let found = found.into_iter().find(|one| one.version == version);
        let found =
            found.ok_or_else(|| Problem::validation(vec![FieldError::new("version", "must be one that there was")]))?;
        (source.version, source.variables, source.parts) = (version, found.variables, found.parts);
    }
    let name = source.name.clone();
    let others =
        all_templates(submissions, tenant).await?.into_iter().filter(|one| one.is_active && one.source.name != name);
    let all = std::iter::once(source).chain(others.map(|one| one.source)).collect();
    template::compile(all).into_iter().next().map(Arc::new).ok_or_else(unknown)
}

/// The parts to show, each with the channel whose part it is rendered as.
fn places(source: &TemplateSource, asked: Option<Channel>) -> Vec<(String, Channel)> {
    let is_own = |channel: &Channel| source.parts.contains_key(channel.as_str());
    if let Some(channel) = asked {
        let key = if is_own(&channel) { channel.as_str() } else { DEFAULT };
        return source.parts.get(key).map(|_| (key.to_owned(), channel)).into_iter().collect();
    }
    let own = Channel::ALL.iter().filter(|channel| is_own(channel)).map(|channel| (channel.to_string(), *channel));
    let whole = source.parts.get(DEFAULT).and_then(|part| {
        let has_text = part.message.is_some() || part.html.is_some();
        let order = if has_text {
            [Channel::Email, Channel::InApp, Channel::Sms]
        } else {
            [Channel::InApp, Channel::Push, Channel::Webhook]
        };
        order.into_iter().find(|channel| !is_own(channel)).map(|channel| (DEFAULT.to_owned(), channel))
    });
    whole.into_iter().chain(own).collect()
}

/// The recipient and the variables of a test.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TemplateTest)]
pub struct TestBody {
    /// The variables.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    template_vars: Map<String, Value>,
    /// The channel; default `in_app`.
    channel: Option<String>,
    /// The recipient; default: the caller. Required for any channel except `in_app`.
    #[schema(example = "ada@example.com")]
    recipient: Option<String>,
}

/// Sends a rendered template as a test.
///
/// By default it goes to the caller's own inbox. Templates that are not active can be tested too.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/notifications/templates/{id}/test", tag = "templates",
    params(("id" = Uuid, Path, description = "The template")),
    request_body(content = TestBody, example = json!({"channel": "email", "recipient": "ada@example.com",
        "template_vars": {"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}})),
    responses((status = 202, description = "Accepted: it is on its way", body = SendAnswer)))]
pub async fn test(
    admin: Admin,
    id: Id,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<TEMPLATE>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let asked: TestBody = match bytes.is_empty() {
        true => TestBody::default(),
        false => domain::contract::submission::parse_json(&bytes).map_err(Problem::malformed)?,
    };
    let key = idempotency::key(request.headers(), None)?;
    let channel = channel_of(asked.channel.as_deref())?.unwrap_or(Channel::InApp);
    let tenant = admin.0.tenant;
    let template = ready(&submissions, tenant, id.0, None).await?;
    let part = submissions
        .renderers
        .render(tenant, Arc::clone(&template), channel, Value::Object(asked.template_vars))
        .await?;
    let own = || (channel == Channel::InApp).then(|| admin.0.subject.clone());
    let submission = Submission {
        channel: Some(channel.to_string()),
        recipient: asked.recipient.or_else(own),
        title: part.title,
        message: part.message,
        html: part.html,
        category: template.source.category.clone(),
        kind: Some("test".to_owned()),
        ..Submission::default()
    };
    let mut draft = submission.check(&submissions.web.rules()).map_err(Problem::validation)?;
    let TemplateSource { name, version, .. } = &template.source;
    draft.content.template = Some(TemplateRef { name: name.clone(), version: *version });
    let meant = to_json(&(id.0, String::from_utf8_lossy(&bytes)));
    submit_message(&submissions, draft, origin(&admin.0, trace, key, Kind::TemplateTest, &meant)).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_preview_reads_each_part_as_a_channel_that_takes_it() {
        let shown = |parts: Value, asked| {
            let parts = serde_json::from_value(parts).unwrap();
            let source =
                TemplateSource { name: "n".to_owned(), version: 1, category: None, variables: Vec::new(), parts };
            places(&source, asked)
        };
        let default = |channel| vec![(DEFAULT.to_owned(), channel)];
        assert_eq!(shown(json!({"default": {"message": "m"}}), None), default(Channel::Email));
        assert_eq!(shown(json!({"default": {"title": "t"}}), None), default(Channel::InApp));
        assert_eq!(shown(json!({"default": {"message": "m"}}), Some(Channel::Sms)), default(Channel::Sms));
        let both = json!({"default": {"message": "m"}, "email": {"message": "m"}});
        assert_eq!(shown(both.clone(), Some(Channel::Email)), [("email".to_owned(), Channel::Email)]);
        assert_eq!(shown(both, None), [(DEFAULT.to_owned(), Channel::InApp), ("email".to_owned(), Channel::Email)]);
        assert!(shown(json!({"sms": {"message": "m"}}), Some(Channel::Push)).is_empty());
    }
}
