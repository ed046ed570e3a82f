//! In-app notifications: one row per delivery. Its person reads, archives and removes it.
//!
//! Every statement names tenant and person, so no caller reaches the rows of another person. Within an inbox the rows
//! are numbered in the order of their commits: a reader that has read up to a number has seen every smaller one.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    DeliveryId, TenantId,
    seal::{Fingerprint, Sealer},
};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::InboxStore;

/// The realm that separates the fingerprints of persons from all others.
const REALM: &str = "inbox";

/// The fingerprint of a person's inbox, for places where the id must not be shown, such as the broker.
pub fn person(sealer: &Sealer, tenant: TenantId, user_id: &str) -> Fingerprint {
    sealer.fingerprint(&realm(tenant), user_id)
}

/// Every fingerprint that another process may use for it while a key is replaced.
pub fn persons(sealer: &Sealer, tenant: TenantId, user_id: &str) -> Vec<Fingerprint> {
    sealer.fingerprints(&realm(tenant), user_id)
}

fn realm(tenant: TenantId) -> String {
    format!("{REALM}/{tenant}")
}

/// A new row of a person's inbox.
#[derive(Clone, Debug)]
pub struct NewItem {
    /// The delivery. Inserting it again changes nothing.
    pub delivery: DeliveryId,
    /// The tenant of the delivery.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The content as JSON.
    pub content: Vec<u8>,
    /// Its kind.
    pub kind: Option<String>,
    /// The category of the notification.
    pub category: Option<String>,
}

/// A row of a person's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxItem {
    /// The id of its delivery.
    pub id: Uuid,
    /// Its number in its inbox.
    pub seq: i64,
    /// The content as JSON.
    pub content: Vec<u8>,
    /// When it was read, if it was.
    pub read_at: Option<DateTime<Utc>>,
    /// When it was put there.
    pub created_at: DateTime<Utc>,
}

/// Which part of an inbox.
#[derive(Clone, Debug, Default)]
pub struct InboxFilter {
    /// Whether it is read; `None`: both.
    pub is_read: Option<bool>,
    /// Whether it is archived; `None`: both.
    pub is_archived: Option<bool>,
    /// Of this kind.
    pub kind: Option<String>,
    /// About this.
    pub category: Option<String>,
}

/// A change to items of an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboxChange {
    /// They were not read after all.
    Unread,
    /// They are put away.
    Archive,
    /// They are back.
    Unarchive,
    /// They are removed.
    Delete,
}

/// A client that begins to follow an inbox.
#[derive(Clone, Debug)]
pub struct Follower {
    /// The tenant of the person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// From where on.
    pub start: Start,
}

/// The item after which a client begins to follow an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes from now on.
    Now,
    /// After this item; if it is unknown, after the newest item.
    After(Option<Uuid>),
}

/// A client that has seen an inbox up to a number.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The tenant of the person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The number.
    pub after: i64,
}

row! {
    struct ItemRow {
        id: Uuid as SqlUuid,
        seq: i64 as Int8,
        content: Vec<u8> as Binary,
        read_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    /// An item of the inbox of the reader at `place`, from 1.
    struct PlacedRow {
        place: i64 as Int8,
        id: Uuid as SqlUuid,
        seq: i64 as Int8,
        content: Vec<u8> as Binary,
        read_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

impl InboxStore<'_> {
    /// Puts all of `items` into their inboxes in one commit. Items that exist stay as they are. Returns the number of
    /// new items.
    pub async fn insert(self, items: Vec<NewItem>) -> DbResult<usize> {
        let sealed: Result<Vec<_>, _> =
            items.iter().map(|item| self.store.sealer().seal(sealed::INBOX.of(item.tenant), &item.content)).collect();
        let insert = Insert {
            id: items.iter().map(|item| item.delivery.0).collect(),
            tenant: items.iter().map(|item| item.tenant.0).collect(),
            user_id: items.iter().map(|item| item.user_id.clone()).collect(),
            content: sealed?,
            kind: items.iter().map(|item| item.kind.clone()).collect(),
            category: items.into_iter().map(|item| item.category).collect(),
        };
        insert.query().run(self.store).await
    }

    /// Up to `limit` items of a person, newest first; only those with numbers below `before`, if given.
    pub async fn list(
        self,
        tenant: TenantId,
        user_id: &str,
        filter: InboxFilter,
        before: Option<i64>,
        limit: i64,
    ) -> DbResult<Vec<InboxItem>> {
        let InboxFilter { is_read, is_archived, kind, category } = filter;
        let (own, user_id, before) = (tenant.0, user_id.to_owned(), before.unwrap_or(i64::MAX));
        let query = if is_read == Some(false) && is_archived == Some(false) {
            ListUnread { is_read, is_archived, kind, category, tenant: own, user_id, before, limit }.query()
        } else {
            List { is_read, is_archived, kind, category, tenant: own, user_id, before, limit }.query()
        };
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().filter_map(|row| self.item(tenant, row)).collect())
    }

    /// Whether a person has this item.
    pub async fn contains(self, tenant: TenantId, user_id: &str, id: Uuid) -> DbResult<bool> {
        let query = Has { id, tenant: tenant.0, user_id: user_id.to_owned() }.query();
        query.within(Some(tenant)).row(self.store).await
    }

    /// The number of a person's unread items that are not archived.
    pub async fn count_unread(self, tenant: TenantId, user_id: &str) -> DbResult<i64> {
        let query = Unread { tenant: tenant.0, user_id: user_id.to_owned() }.query();
        query.within(Some(tenant)).row(self.store).await
    }

    /// Marks items of a person as read; returns those that were unread before.
    pub async fn mark_read(self, tenant: TenantId, user_id: &str, ids: Vec<Uuid>) -> DbResult<Vec<DeliveryId>> {
        let query = MarkRead { tenant: tenant.0, user_id: user_id.to_owned(), ids }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(DeliveryId).collect())
    }

    /// Marks every item of a person as read, except archived ones; returns those that were unread before.
    pub async fn mark_all_read(self, tenant: TenantId, user_id: &str) -> DbResult<Vec<DeliveryId>> {
        let query = MarkAllRead { tenant: tenant.0, user_id: user_id.to_owned() }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(DeliveryId).collect())
    }

    /// Changes items of a person; returns the number of items that changed.
    pub async fn change(self, tenant: TenantId, user_id: &str, change: InboxChange, ids: Vec<Uuid>) -> DbResult<usize> {
        let (own, user_id) = (tenant.0, user_id.to_owned());
        let query = match change {
            InboxChange::Unread => MarkUnread { tenant: own, user_id, ids }.query(),
            InboxChange::Archive => Archive { tenant: own, user_id, ids }.query(),
            InboxChange::Unarchive => Unarchive { tenant: own, user_id, ids }.query(),
            InboxChange::Delete => Delete { tenant: own, user_id, ids }.query(),
        };
        query.within(Some(tenant)).run(self.store).await
    }

    /// The number after which each follower begins. An unknown item stands for `newest`.
    pub async fn starts(self, followers: &[Follower], newest: i64) -> DbResult<Vec<i64>> {
        let since = |follower: &Follower| match follower.start {
            Start::Now => None,
            Start::After(id) => id,
        };
        let starts = Starts {
            tenant: followers.iter().map(|one| one.tenant.0).collect(),
            user_id: followers.iter().map(|one| one.user_id.clone()).collect(),
            since: followers.iter().map(since).collect(),
            from_now: followers.iter().map(|one| one.start == Start::Now).collect(),
            newest,
        };
        starts.query().rows(self.store).await
    }

    /// The items that each reader has not seen, oldest first, at most `limit` for each.
    pub async fn after(self, readers: &[Reader], limit: i64) -> DbResult<Vec<Vec<InboxItem>>> {
        let after = After {
            tenant: readers.iter().map(|one| one.tenant.0).collect(),
            user_id: readers.iter().map(|one| one.user_id.clone()).collect(),
            after: readers.iter().map(|one| one.after).collect(),
            limit,
        };
        let rows = after.query().rows(self.store).await?;
        let mut read: Vec<Vec<InboxItem>> = readers.iter().map(|_| Vec::new()).collect();
        for PlacedRow { place, id, seq, content, read_at, created_at } in rows {
            let place = usize::try_from(place - 1).unwrap_or(usize::MAX);
            let Some((of, reader)) = read.get_mut(place).zip(readers.get(place)) else { continue };
            of.extend(self.item(reader.tenant, ItemRow { id, seq, content, read_at, created_at }));
        }
        Ok(read)
    }

    fn item(self, tenant: TenantId, row: ItemRow) -> Option<InboxItem> {
        let ItemRow { id, seq, content, read_at, created_at } = row;
        Some(InboxItem { id, seq, content: self.store.opened(sealed::INBOX.of(tenant), content)?, read_at, created_at })
    }
}

sql!(Insert in "inbox/insert.sql" {
    id: Vec<Uuid> as Array<SqlUuid>,
    tenant: Vec<i32> as Array<Int4>,
    user_id: Vec<String> as Array<Text>,
    content: Vec<Vec<u8>> as Array<Binary>,
    kind: Vec<Option<String>> as Array<Nullable<Text>>,
    category: Vec<Option<String>> as Array<Nullable<Text>>,
});
sql!(List in "inbox/list.sql" {
    is_read: Option<bool> as Nullable<Bool>,
    is_archived: Option<bool> as Nullable<Bool>,
    kind: Option<String> as Nullable<Text>,
    category: Option<String> as Nullable<Text>,
    tenant: i32 as Int4,
    user_id: String as Text,
    before: i64 as Int8,
    limit: i64 as Int8,
} -> ItemRow);
sql!(ListUnread in "inbox/list_unread.sql" {
    is_read: Option<bool> as Nullable<Bool>,
    is_archived: Option<bool> as Nullable<Bool>,
    kind: Option<String> as Nullable<Text>,
    category: Option<String> as Nullable<Text>,
    tenant: i32 as Int4,
    user_id: String as Text,
    before: i64 as Int8,
    limit: i64 as Int8,
} -> ItemRow);
sql!(Has in "inbox/has.sql" { id: Uuid as SqlUuid, tenant: i32 as Int4, user_id: String as Text } -> bool as Bool);
sql!(Unread in "inbox/unread.sql" { tenant: i32 as Int4, user_id: String as Text } -> i64 as Int8);
sql!(MarkRead in "inbox/mark_read.sql" {
    tenant: i32 as Int4, user_id: String as Text, ids: Vec<Uuid> as Array<SqlUuid>
} -> Uuid as SqlUuid);
sql!(MarkAllRead in "inbox/mark_all_read.sql" { tenant: i32 as Int4, user_id: String as Text } -> Uuid as SqlUuid);
sql!(MarkUnread in "inbox/mark_unread.sql" {
    tenant: i32 as Int4, user_id: String as Text, ids: Vec<Uuid> as Array<SqlUuid>
});
sql!(Archive in "inbox/archive.sql" {
    tenant: i32 as Int4, user_id: String as Text, ids: Vec<Uuid> as Array<SqlUuid>
});
sql!(Unarchive in "inbox/unarchive.sql" {
    tenant: i32 as Int4, user_id: String as Text, ids: Vec<Uuid> as Array<SqlUuid>
});
sql!(Delete in "inbox/delete.sql" {
    tenant: i32 as Int4, user_id: String as Text, ids: Vec<Uuid> as Array<SqlUuid>
});
sql!(Starts in "inbox/starts.sql" {
    tenant: Vec<i32> as Array<Int4>,
    user_id: Vec<String> as Array<Text>,
    since: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    from_now: Vec<bool> as Array<Bool>,
    newest: i64 as Int8,
} -> i64 as Int8);
sql!(After in "inbox/after.sql" {
    tenant: Vec<i32> as Array<Int4>,
    user_id: Vec<String> as Array<Text>,
    after: Vec<i64> as Array<Int8>,
    limit: i64 as Int8,
} -> PlacedRow);
statements!(
    Insert,
    List,
    ListUnread,
    Has,
    Unread,
    MarkRead,
    MarkAllRead,
    MarkUnread,
    Archive,
    Unarchive,
    Delete,
    Starts,
    After
);
