//! The inbox of a person: its in-app notifications, which its owner reads, archives and removes.

use std::sync::Arc;

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{TenantId, token::Role};
use records::{
    Records,
    inbox::{InboxChange as Change, InboxFilter, InboxItem},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use store::Store;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web,
    auth::{Anyone, Identity},
    body::JsonBody,
    params::{self, Id, Params, PathUser, Text},
    problem::{Code, Problem},
};

use crate::reads::ReadReporter;

/// Most ids of one call.
const IDS_MAX: usize = 1000;

/// A notification in an inbox.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Notification)]
pub struct ItemView {
    /// Its id, which is its delivery's.
    pub id: Uuid,
    /// Its title.
    pub title: Option<String>,
    /// Its text.
    pub message: Option<String>,
    /// Its kind.
    pub r#type: Option<String>,
    /// The category of the notification.
    pub category: Option<String>,
    /// Data for the program that displays it.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Box<RawValue>>,
    /// The producer's notes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Box<RawValue>>,
    /// The target of a click: the submission's `action_url`, else that of its `data`.
    pub action_url: Option<String>,
    /// Whether it was read.
    pub read: bool,
    /// When it was read.
    pub read_at: Option<DateTime<Utc>>,
    /// When it arrived.
    pub created_at: DateTime<Utc>,
}

/// The parts of a message's content that an inbox shows.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Shown {
    title: Option<String>,
    message: Option<String>,
    kind: Option<String>,
    category: Option<String>,
    data: Option<Box<RawValue>>,
    metadata: Option<Box<RawValue>>,
    action_url: Option<String>,
}

impl From<InboxItem> for ItemView {
    fn from(item: InboxItem) -> Self {
        let shown: Shown = serde_json::from_slice(&item.content).unwrap_or_default();
        let action_url = shown.action_url.or_else(|| link(shown.data.as_deref()?));
        Self {
            id: item.id,
            title: shown.title,
            message: shown.message,
            r#type: shown.kind,
            category: shown.category,
            data: shown.data,
            metadata: shown.metadata,
            action_url,
            read: item.read_at.is_some(),
            read_at: item.read_at,
            created_at: item.created_at,
        }
    }
}

fn link(data: &RawValue) -> Option<String> {
    let data: Value = serde_json::from_str(data.get()).ok()?;
    data.get("action_url").and_then(Value::as_str).map(str::to_owned)
}

/// A page of an inbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotificationList {
    /// The notifications, newest first.
    pub notifications: Vec<ItemView>,
    /// Unread ones in the whole inbox, without archived ones.
    pub unread_count: i64,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// The number of unread notifications.
#[derive(Debug, Serialize, ToSchema)]
pub struct UnreadCount {
    /// The number.
    pub unread_count: i64,
}

/// The result of a change to an inbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct InboxChange {
    /// Notifications that changed; those that already were in this state do not count.
    pub updated: usize,
    /// Unread ones that remain.
    pub unread_count: i64,
}

/// Which inbox.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WhoseQuery {
    /// The person, for producers and admins; other callers have their own inbox.
    #[param(value_type = Option<String>)]
    user_id: Option<Text>,
}

/// Which part of which inbox.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct InboxQuery {
    /// The person, for producers and admins; other callers have their own inbox.
    #[param(value_type = Option<String>)]
    user_id: Option<Text>,
    /// `true`: unread ones only; `false`: read ones only.
    #[param(value_type = Option<bool>)]
    unread: Option<Text>,
    /// `true`: archived ones instead of the others.
    #[param(value_type = Option<bool>)]
    archived: Option<Text>,
    /// Of this kind.
    #[param(value_type = Option<String>)]
    r#type: Option<Text>,
    /// About this.
    #[param(value_type = Option<String>)]
    category: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// Selects a part of the inbox in the path.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `true`: unread ones only; `false`: read ones only.
    #[param(value_type = Option<bool>)]
    unread: Option<Text>,
    /// `true`: archived ones instead of the others.
    #[param(value_type = Option<bool>)]
    archived: Option<Text>,
    /// Of this kind.
    #[param(value_type = Option<String>)]
    r#type: Option<Text>,
    /// About this.
    #[param(value_type = Option<String>)]
    category: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// Which notifications.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IdsBody {
    /// Up to 1000 ids; unknown ones change nothing.
    #[schema(max_items = 1000)]
    ids: Vec<Uuid>,
}

/// An inbox that the caller may use.
struct Inbox {
    tenant: TenantId,
    user: String,
}

impl Inbox {
    /// The caller's own inbox, or the requested one if the caller's role may read it.
    fn of(caller: &Arc<Identity>, asked: Option<Text>) -> Result<Self, Problem> {
        let user = params::given(asked).unwrap_or_else(|| caller.subject.clone());
        if !may_open(caller, &user) {
            return Err(Problem::new(Code::Forbidden, "Leave out `user_id`: this role has its own inbox only."));
        }
        Ok(Self { tenant: caller.tenant, user })
    }

    async fn page(self, web: &Web, query: PageQuery) -> Result<HttpResponse, Problem> {
        let (limit, before) = (params::limit(query.limit)?, params::number_cursor(query.cursor)?);
        let filter = InboxFilter {
            is_read: params::flag("unread", query.unread)?.map(|unread| !unread),
            is_archived: Some(params::flag("archived", query.archived)?.unwrap_or(false)),
            kind: params::given(query.r#type),
            category: params::given(query.category),
        };
        let Self { tenant, user } = self;
        let asking = async move |store: Store| {
            let rows = store.inbox().list(tenant, &user, filter, before, limit + 1).await?;
            Ok((rows, store.inbox().count_unread(tenant, &user).await?))
        };
        let (rows, unread_count) = web.queries.run(asking).await?;
        let (rows, next_cursor) = params::page_after(rows, limit, |item| params::number_cursor_after(item.seq));
        let notifications = rows.into_iter().map(ItemView::from).collect();
        Ok(HttpResponse::Ok().json(NotificationList { notifications, unread_count, next_cursor }))
    }

    async fn unread(self, web: &Web) -> Result<HttpResponse, Problem> {
        let Self { tenant, user } = self;
        let unread_count = web.queries.run(async move |store| store.inbox().count_unread(tenant, &user).await).await?;
        Ok(HttpResponse::Ok().json(UnreadCount { unread_count }))
    }

    async fn mark_read(self, web: &Web, reads: &ReadReporter, ids: Option<Vec<Uuid>>) -> Result<HttpResponse, Problem> {
        let Self { tenant, user } = self;
        let asking = async move |store: Store| {
            let read = match ids {
                Some(ids) => store.inbox().mark_read(tenant, &user, ids).await?,
                None => store.inbox().mark_all_read(tenant, &user).await?,
            };
            Ok((read, store.inbox().count_unread(tenant, &user).await?))
        };
        let (read, unread_count) = web.queries.run(asking).await?;
        reads.tell(&read);
        Ok(HttpResponse::Ok().json(InboxChange { updated: read.len(), unread_count }))
    }

    async fn change(self, web: &Web, change: Change, ids: Vec<Uuid>) -> Result<InboxChange, Problem> {
        let Self { tenant, user } = self;
        let asking = async move |store: Store| {
            let updated = store.inbox().change(tenant, &user, change, ids).await?;
            Ok(InboxChange { updated, unread_count: store.inbox().count_unread(tenant, &user).await? })
        };
        web.queries.run(asking).await
    }

    /// Changes one notification, which must exist.
    async fn change_one(self, web: &Web, change: Change, id: Id) -> Result<HttpResponse, Problem> {
        self.require(web, id).await?;
        Ok(HttpResponse::Ok().json(self.change(web, change, vec![id.0]).await?))
    }

    /// Changes the notifications that the body names; unknown ones are left out.
    async fn change_many(self, web: &Web, change: Change, body: JsonBody) -> Result<HttpResponse, Problem> {
        Ok(HttpResponse::Ok().json(self.change(web, change, ids(body).await?).await?))
    }

    /// Refuses a notification of another inbox.
    async fn require(&self, web: &Web, id: Id) -> Result<(), Problem> {
        let (tenant, user) = (self.tenant, self.user.clone());
        let has = web.queries.run(async move |store| store.inbox().contains(tenant, &user, id.0).await).await?;
        if has { Ok(()) } else { Err(Problem::not_found("notification")) }
    }
}

/// Whether the caller may open this person's inbox: its own, or any if its role sees all of the tenant.
pub fn may_open(caller: &Identity, user: &str) -> bool {
    user == caller.subject || matches!(caller.role, Role::Admin | Role::Producer | Role::Operator)
}

async fn ids(body: JsonBody) -> Result<Vec<Uuid>, Problem> {
    let IdsBody { ids } = body.parse().await?;
    if ids.len() > IDS_MAX {
        let error = domain::contract::submission::FieldError::new("ids", format!("must be at most {IDS_MAX}"));
        return Err(Problem::validation(vec![error]));
    }
    Ok(ids)
}

/// The caller's inbox.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(get, path = "/api/notifications", tag = "inbox", params(InboxQuery),
    responses((status = 200, description = "A page of the inbox, newest first", body = NotificationList)))]
pub async fn list(caller: Anyone, query: Params<InboxQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let InboxQuery { user_id, unread, archived, r#type, category, limit, cursor } = query.0;
    Inbox::of(&caller.0, user_id)?.page(&web, PageQuery { unread, archived, r#type, category, limit, cursor }).await
}

/// The number of the caller's unread notifications.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(get, path = "/api/notifications/unread-count", tag = "inbox", params(WhoseQuery),
    responses((status = 200, description = "The count", body = UnreadCount)))]
pub async fn unread(caller: Anyone, query: Params<WhoseQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.unread(&web).await
}

/// A person's inbox.
///
/// Roles: producer, admin, operator; a user its own.
#[utoipa::path(get, path = "/api/notifications/user/{user_id}", tag = "inbox",
    params(("user_id" = String, Path, description = "The person"), PageQuery),
    responses((status = 200, description = "A page of the inbox, newest first", body = NotificationList)))]
pub async fn list_of(
    caller: Anyone,
    user: PathUser,
    query: Params<PageQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, Some(user.0))?.page(&web, query.0).await
}

/// The number of a person's unread notifications.
///
/// Roles: producer, admin, operator; a user its own.
#[utoipa::path(get, path = "/api/notifications/user/{user_id}/unread-count", tag = "inbox",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "The count", body = UnreadCount)))]
pub async fn unread_of(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, Some(user.0))?.unread(&web).await
}

/// Marks notifications as read.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/mark-as-read", tag = "inbox", params(WhoseQuery),
    request_body(content = IdsBody, example = json!({"ids": ["0191d8a0-0000-7000-8000-000000000001"]})),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn mark(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    reads: Data<ReadReporter>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let inbox = Inbox::of(&caller.0, query.0.user_id)?;
    inbox.mark_read(&web, &reads, Some(ids(body).await?)).await
}

/// Marks every notification as read, except archived ones.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/mark-all-as-read", tag = "inbox", params(WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn mark_all(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    reads: Data<ReadReporter>,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.mark_read(&web, &reads, None).await
}

/// Marks every notification as read; another name of `mark-all-as-read`.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/read-all", tag = "inbox", params(WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn read_all(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    reads: Data<ReadReporter>,
) -> Result<HttpResponse, Problem> {
    mark_all(caller, query, web, reads).await
}

/// Marks one notification as read.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/{id}/read", tag = "inbox",
    params(("id" = Uuid, Path, description = "The notification"), WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn read(
    caller: Anyone,
    id: Id,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    reads: Data<ReadReporter>,
) -> Result<HttpResponse, Problem> {
    let inbox = Inbox::of(&caller.0, query.0.user_id)?;
    inbox.require(&web, id).await?;
    inbox.mark_read(&web, &reads, Some(vec![id.0])).await
}

/// Marks one notification as unread.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/{id}/unread", tag = "inbox",
    params(("id" = Uuid, Path, description = "The notification"), WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn mark_unread(
    caller: Anyone,
    id: Id,
    query: Params<WhoseQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_one(&web, Change::Unread, id).await
}

/// Archives one notification: it leaves the default list and the unread count.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/{id}/archive", tag = "inbox",
    params(("id" = Uuid, Path, description = "The notification"), WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn archive(
    caller: Anyone,
    id: Id,
    query: Params<WhoseQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_one(&web, Change::Archive, id).await
}

/// Returns one archived notification to the default list.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/{id}/unarchive", tag = "inbox",
    params(("id" = Uuid, Path, description = "The notification"), WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn unarchive(
    caller: Anyone,
    id: Id,
    query: Params<WhoseQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_one(&web, Change::Unarchive, id).await
}

/// Archives notifications.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/archive", tag = "inbox", params(WhoseQuery),
    request_body(content = IdsBody, example = json!({"ids": ["0191d8a0-0000-7000-8000-000000000001"]})),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn archive_many(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_many(&web, Change::Archive, body).await
}

/// Returns archived notifications to the default list.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/unarchive", tag = "inbox", params(WhoseQuery),
    request_body(content = IdsBody, example = json!({"ids": ["0191d8a0-0000-7000-8000-000000000001"]})),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn unarchive_many(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_many(&web, Change::Unarchive, body).await
}

/// Removes notifications.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/delete", tag = "inbox", params(WhoseQuery),
    request_body(content = IdsBody, example = json!({"ids": ["0191d8a0-0000-7000-8000-000000000001"]})),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn delete_many(
    caller: Anyone,
    query: Params<WhoseQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    Inbox::of(&caller.0, query.0.user_id)?.change_many(&web, Change::Delete, body).await
}

/// Removes one notification.
///
/// Roles: any for its own inbox; producer, admin and operator for others of the tenant.
#[utoipa::path(delete, path = "/api/notifications/{id}", tag = "inbox",
    params(("id" = Uuid, Path, description = "The notification"), WhoseQuery),
    responses((status = 200, description = "What changed", body = InboxChange)))]
pub async fn delete(
    caller: Anyone,
    id: Id,
    query: Params<WhoseQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    let inbox = Inbox::of(&caller.0, query.0.user_id)?;
    let change = inbox.change(&web, Change::Delete, vec![id.0]).await?;
    if change.updated == 0 { Err(Problem::not_found("notification")) } else { Ok(HttpResponse::Ok().json(change)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role) -> Arc<Identity> {
        Arc::new(Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via: None })
    }

    fn of(role: Role, asked: Option<&str>) -> Option<String> {
        let asked = asked.map(|user| Text::try_from(user.to_owned()).unwrap());
        Inbox::of(&caller(role), asked).ok().map(|inbox| inbox.user)
    }

    #[test]
    fn a_user_has_one_inbox_and_a_producer_all_of_the_tenant() {
        assert_eq!(of(Role::User, None).as_deref(), Some("ada"));
        assert_eq!(of(Role::User, Some("ada")).as_deref(), Some("ada"));
        assert_eq!(of(Role::User, Some("eve")), None);
        assert_eq!(of(Role::Agent, Some("eve")), None);
        assert_eq!(of(Role::Producer, Some("eve")).as_deref(), Some("eve"));
    }

    #[test]
    fn an_item_shows_the_content_and_finds_its_link_in_the_data() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let content = br#"{"title":"T","message":"M","kind":"info","data":{"action_url":"/x","n":1.0}}"#.to_vec();
        let item = InboxItem { id: Uuid::nil(), seq: 1, content, read_at: Some(at), created_at: at };
        let view = serde_json::to_value(ItemView::from(item)).unwrap();
        assert_eq!((&view["type"], &view["action_url"], &view["read"]), (&"info".into(), &"/x".into(), &true.into()));
        assert_eq!(view["data"]["n"], 1.0);
    }
}
