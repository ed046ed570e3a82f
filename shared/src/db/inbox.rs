//! In-app notifications: one row per delivery, read and removed by the person it belongs to.
//!
//! Every statement names tenant and person, so nobody reaches another one's rows.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Store, statement};
use crate::domain::{DeliveryId, TenantId};

/// A row to put into somebody's inbox.
#[derive(Clone, Debug)]
pub struct NewItem {
    /// The delivery: a repeat of it changes nothing.
    pub delivery: DeliveryId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The content as JSON.
    pub content: Vec<u8>,
}

/// A row of somebody's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxItem {
    /// The id of the delivery that made it.
    pub id: Uuid,
    /// The person.
    pub user_id: String,
    /// The content as JSON.
    pub content: Vec<u8>,
    /// When it was read, if it was.
    pub read_at: Option<DateTime<Utc>>,
    /// When it was put there.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// Puts all of `items` into their inboxes in one commit; those that stand there already are left as they are.
    /// Returns how many are new.
    pub async fn inbox_insert(&self, items: Vec<NewItem>) -> DbResult<usize> {
        let ids: Vec<Uuid> = items.iter().map(|item| item.delivery.0).collect();
        let tenants: Vec<i32> = items.iter().map(|item| item.tenant.0).collect();
        let (users, contents): (Vec<_>, Vec<_>) = items.into_iter().map(|item| (item.user_id, item.content)).unzip();
        let sealed: Result<Vec<_>, _> = contents.iter().map(|content: &Vec<u8>| self.sealer().seal(content)).collect();
        let sealed = sealed?;
        let query = statement::<()>(INSERT)
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Array<Int4>, _>(tenants)
            .bind::<Array<Text>, _>(users)
            .bind::<Array<Binary>, _>(sealed);
        query.run(self).await
    }

    /// Up to `limit` items of a person, newest first; those older than the item `before`, if given.
    pub async fn inbox_list(
        &self,
        tenant: TenantId,
        user_id: &str,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<InboxItem>> {
        type Row = (Uuid, String, Vec<u8>, Option<DateTime<Utc>>, DateTime<Utc>);
        let query = statement::<(SqlUuid, Text, Binary, Nullable<Timestamptz>, Timestamptz)>(LIST)
            .within(Some(tenant))
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.rows(self).await?;
        let item = |(id, user_id, content, read_at, created_at): Row| {
            let content = self.sealer().open(content)?;
            Ok(InboxItem { id, user_id, content, read_at, created_at })
        };
        rows.into_iter().map(item).collect()
    }

    /// How many items a person has not read.
    pub async fn inbox_unread(&self, tenant: TenantId, user_id: &str) -> DbResult<i64> {
        let query = statement::<Int8>(UNREAD).within(Some(tenant)).bind::<Int4, _>(tenant.0);
        query.bind::<Text, _>(user_id.to_owned()).row(self).await
    }

    /// Marks items of a person as read; says how many were unread before.
    pub async fn inbox_mark_read(&self, tenant: TenantId, user_id: &str, ids: Vec<Uuid>) -> DbResult<usize> {
        own(MARK_READ, tenant, user_id).bind::<Array<SqlUuid>, _>(ids).run(self).await
    }

    /// Marks every item of a person as read; says how many were unread before.
    pub async fn inbox_mark_all_read(&self, tenant: TenantId, user_id: &str) -> DbResult<usize> {
        own(MARK_ALL_READ, tenant, user_id).run(self).await
    }

    /// Removes items of a person; says how many there were.
    pub async fn inbox_delete(&self, tenant: TenantId, user_id: &str, ids: Vec<Uuid>) -> DbResult<usize> {
        own(DELETE, tenant, user_id).bind::<Array<SqlUuid>, _>(ids).run(self).await
    }
}

/// A statement on a person's own rows.
fn own(text: &'static str, tenant: TenantId, user_id: &str) -> super::Statement<()> {
    statement(text).within(Some(tenant)).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned())
}

const INSERT: &str = "
INSERT INTO inbox (id, tenant_id, user_id, content)
SELECT * FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::bytea[])
ON CONFLICT (id) DO NOTHING";

const LIST: &str = "
SELECT id, user_id, content, read_at, created_at FROM inbox
WHERE tenant_id = ? AND user_id = ? AND id < ? ORDER BY id DESC LIMIT ?";

const UNREAD: &str = "SELECT count(*) FROM inbox WHERE tenant_id = ? AND user_id = ? AND read_at IS NULL";

const MARK_READ: &str = "
UPDATE inbox SET read_at = now() WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[]) AND read_at IS NULL";

const MARK_ALL_READ: &str = "UPDATE inbox SET read_at = now() WHERE tenant_id = ? AND user_id = ? AND read_at IS NULL";

const DELETE: &str = "DELETE FROM inbox WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[])";
