//! In-app notifications: one row per delivery, read, put away and removed by the person it belongs to.
//!
//! Every statement names tenant and person, so no caller reaches the rows of another person. Within an inbox the rows are numbered
//! in the order of their commits: a reader that has read up to a number has seen every smaller one.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    DeliveryId, TenantId,
    seal::{Fingerprint, Sealer},
};
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement};

/// What keeps the fingerprints of persons apart from all others.
const REALM: &str = "inbox";

/// By what a person's inbox is known where the id must not be shown, such as on the broker.
pub fn person(sealer: &Sealer, tenant: TenantId, user_id: &str) -> Fingerprint {
    sealer.fingerprint(&realm(tenant), user_id)
}

/// Every fingerprint by which another process may know it, while a key is replaced.
pub fn persons(sealer: &Sealer, tenant: TenantId, user_id: &str) -> Vec<Fingerprint> {
    sealer.fingerprints(&realm(tenant), user_id)
}

fn realm(tenant: TenantId) -> String {
    format!("{REALM}/{tenant}")
}

/// A row to put into a person's inbox.
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
    /// Its kind.
    pub kind: Option<String>,
    /// What it is about.
    pub category: Option<String>,
}

/// A row of a person's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxItem {
    /// The id of the delivery that made it.
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
    /// Read ones, or those that are not; `None`: both.
    pub is_read: Option<bool>,
    /// Those put away, or those that are not; `None`: both.
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

/// A client that is about to follow an inbox.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Whose person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// From where on.
    pub start: Start,
}

/// Where a client begins to follow an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes from now on.
    Now,
    /// After this item; where it is unknown, with the newest ones.
    After(Option<Uuid>),
}

/// A client that has seen an inbox up to a number.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Whose person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The number.
    pub after: i64,
}

type SqlItem = (SqlUuid, Int8, Binary, Nullable<Timestamptz>, Timestamptz);
type Row = (Uuid, i64, Vec<u8>, Option<DateTime<Utc>>, DateTime<Utc>);

impl Store {
    /// Puts all of `items` into their inboxes in one commit; those that stand there already are left as they are.
    /// Returns how many are new.
    pub async fn inbox_insert(&self, items: Vec<NewItem>) -> DbResult<usize> {
        let sealed: Result<Vec<_>, _> =
            items.iter().map(|item| self.sealer().seal(sealed::INBOX.of(item.tenant), &item.content)).collect();
        let query = statement::<()>(INSERT)
            .bind::<Array<SqlUuid>, _>(items.iter().map(|item| item.delivery.0).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(items.iter().map(|item| item.tenant.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(items.iter().map(|item| item.user_id.clone()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(sealed?)
            .bind::<Array<Nullable<Text>>, _>(items.iter().map(|item| item.kind.clone()).collect::<Vec<_>>())
            .bind::<Array<Nullable<Text>>, _>(items.into_iter().map(|item| item.category).collect::<Vec<_>>());
        query.run(self).await
    }

    /// Up to `limit` items of a person, newest first; those with numbers below `before`, if given.
    pub async fn inbox_list(
        &self,
        tenant: TenantId,
        user_id: &str,
        filter: InboxFilter,
        before: Option<i64>,
        limit: i64,
    ) -> DbResult<Vec<InboxItem>> {
        let text = if filter.is_read == Some(false) && filter.is_archived == Some(false) { LIST_UNREAD } else { LIST };
        let query = statement::<SqlItem>(text)
            .within(Some(tenant))
            .bind::<Nullable<Bool>, _>(filter.is_read)
            .bind::<Nullable<Bool>, _>(filter.is_archived)
            .bind::<Nullable<Text>, _>(filter.kind)
            .bind::<Nullable<Text>, _>(filter.category)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<Int8, _>(before.unwrap_or(i64::MAX))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().filter_map(|row| self.item(tenant, row)).collect())
    }

    /// Whether a person has this item.
    pub async fn inbox_has(&self, tenant: TenantId, user_id: &str, id: Uuid) -> DbResult<bool> {
        let query = statement::<Bool>(HAS).within(Some(tenant)).bind::<SqlUuid, _>(id).bind::<Int4, _>(tenant.0);
        query.bind::<Text, _>(user_id.to_owned()).row(self).await
    }

    /// How many items a person has not read, without those put away.
    pub async fn inbox_unread(&self, tenant: TenantId, user_id: &str) -> DbResult<i64> {
        own::<Int8>(UNREAD, tenant, user_id).row(self).await
    }

    /// Marks items of a person as read; says which were unread before.
    pub async fn inbox_mark_read(&self, tenant: TenantId, user_id: &str, ids: Vec<Uuid>) -> DbResult<Vec<DeliveryId>> {
        let rows: Vec<Uuid> =
            own::<SqlUuid>(MARK_READ, tenant, user_id).bind::<Array<SqlUuid>, _>(ids).rows(self).await?;
        Ok(rows.into_iter().map(DeliveryId).collect())
    }

    /// Marks every item of a person as read but those put away; says which were unread before.
    pub async fn inbox_mark_all_read(&self, tenant: TenantId, user_id: &str) -> DbResult<Vec<DeliveryId>> {
        let rows: Vec<Uuid> = own::<SqlUuid>(MARK_ALL_READ, tenant, user_id).rows(self).await?;
        Ok(rows.into_iter().map(DeliveryId).collect())
    }

    /// Changes items of a person; says how many were otherwise before.
    pub async fn inbox_change(
        &self,
        tenant: TenantId,
        user_id: &str,
        change: InboxChange,
        ids: Vec<Uuid>,
    ) -> DbResult<usize> {
        let text = match change {
            InboxChange::Unread => MARK_UNREAD,
            InboxChange::Archive => ARCHIVE,
            InboxChange::Unarchive => UNARCHIVE,
            InboxChange::Delete => DELETE,
        };
        own::<()>(text, tenant, user_id).bind::<Array<SqlUuid>, _>(ids).run(self).await
    }

    /// After which number each follower begins. `newest` is what an unknown item stands for.
    pub async fn inbox_starts(&self, followers: &[Follower], newest: i64) -> DbResult<Vec<i64>> {
        let since = |follower: &Follower| match follower.start {
            Start::Now => None,
            Start::After(id) => id,
        };
        let query = statement::<Int8>(STARTS)
            .bind::<Array<Int4>, _>(followers.iter().map(|one| one.tenant.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(followers.iter().map(|one| one.user_id.clone()).collect::<Vec<_>>())
            .bind::<Array<Nullable<SqlUuid>>, _>(followers.iter().map(since).collect::<Vec<_>>())
            .bind::<Array<Bool>, _>(followers.iter().map(|one| one.start == Start::Now).collect::<Vec<_>>())
            .bind::<Int8, _>(newest);
        query.rows(self).await
    }

    /// What each reader has not seen yet, oldest first, at most `limit` items for each.
    pub async fn inbox_after(&self, readers: &[Reader], limit: i64) -> DbResult<Vec<Vec<InboxItem>>> {
        type Placed = (i64, Uuid, i64, Vec<u8>, Option<DateTime<Utc>>, DateTime<Utc>);
        let query = statement::<(Int8, SqlUuid, Int8, Binary, Nullable<Timestamptz>, Timestamptz)>(AFTER)
            .bind::<Array<Int4>, _>(readers.iter().map(|one| one.tenant.0).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(readers.iter().map(|one| one.user_id.clone()).collect::<Vec<_>>())
            .bind::<Array<Int8>, _>(readers.iter().map(|one| one.after).collect::<Vec<_>>())
            .bind::<Int8, _>(limit);
        let rows: Vec<Placed> = query.rows(self).await?;
        let mut read: Vec<Vec<InboxItem>> = readers.iter().map(|_| Vec::new()).collect();
        for (place, id, seq, content, read_at, created_at) in rows {
            let place = usize::try_from(place - 1).unwrap_or(usize::MAX);
            let Some((of, reader)) = read.get_mut(place).zip(readers.get(place)) else { continue };
            of.extend(self.item(reader.tenant, (id, seq, content, read_at, created_at)));
        }
        Ok(read)
    }

    fn item(&self, tenant: TenantId, (id, seq, content, read_at, created_at): Row) -> Option<InboxItem> {
        Some(InboxItem { id, seq, content: self.opened(sealed::INBOX.of(tenant), content)?, read_at, created_at })
    }
}

/// A statement on a person's own rows.
fn own<Row>(text: &'static str, tenant: TenantId, user_id: &str) -> super::Statement<Row> {
    statement(text).within(Some(tenant)).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned())
}

/// What stands already takes no number. The persons are locked in one order, so that two batches wait for each other at most.
const INSERT: &str = "
WITH clock AS MATERIALIZED (SELECT (extract(epoch FROM now()) * 1000)::int8 AS begin
), given AS MATERIALIZED (
    SELECT g.* FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::bytea[], ?::text[], ?::text[])
        WITH ORDINALITY AS g(id, tenant_id, user_id, content, kind, category, place)
    WHERE NOT EXISTS (SELECT 1 FROM inbox i WHERE i.id = g.id)
), numbered AS MATERIALIZED (
    SELECT g.*, row_number() OVER (PARTITION BY g.tenant_id, g.user_id ORDER BY g.place DESC) - 1 AS from_end FROM given g
), taken AS (
    INSERT INTO inboxes AS b (tenant_id, user_id, last_seq)
    SELECT g.tenant_id, g.user_id, c.begin + count(*) FROM given g CROSS JOIN clock c
    GROUP BY g.tenant_id, g.user_id, c.begin ORDER BY g.tenant_id, g.user_id
    ON CONFLICT (tenant_id, user_id)
        DO UPDATE SET last_seq = b.last_seq + excluded.last_seq - (SELECT c.begin FROM clock c)
    RETURNING b.tenant_id, b.user_id, b.last_seq
)
INSERT INTO inbox (id, tenant_id, user_id, content, kind, category, seq)
SELECT n.id, n.tenant_id, n.user_id, n.content, n.kind, n.category, t.last_seq - n.from_end
FROM taken t JOIN numbered n ON n.tenant_id = t.tenant_id AND n.user_id = t.user_id
ORDER BY n.tenant_id, n.user_id, n.place
ON CONFLICT (id) DO NOTHING";

/// A page of an inbox; what the filter leaves open does not restrict.
macro_rules! list {
    ($rest:literal) => {
        concat!(
            "
SELECT i.id, i.seq, i.content, i.read_at, i.created_at
FROM (SELECT ?::bool AS is_read, ?::bool AS is_archived, ?::text AS kind, ?::text AS category) f CROSS JOIN inbox i
WHERE i.tenant_id = ? AND i.user_id = ? AND i.seq < ?
  AND (f.kind IS NULL OR i.kind = f.kind) AND (f.category IS NULL OR i.category = f.category)
  AND (f.is_read IS NULL OR (i.read_at IS NOT NULL) = f.is_read)
  AND (f.is_archived IS NULL OR (i.archived_at IS NOT NULL) = f.is_archived)",
            $rest,
            " ORDER BY i.seq DESC LIMIT ?"
        )
    };
}

const LIST: &str = list!("");

/// The same in the words of the index of unread items, so that few among many are found at once.
const LIST_UNREAD: &str = list!(" AND i.read_at IS NULL AND i.archived_at IS NULL");

const HAS: &str = "SELECT EXISTS (SELECT 1 FROM inbox WHERE id = ? AND tenant_id = ? AND user_id = ?)";

const UNREAD: &str = "
SELECT count(*) FROM inbox WHERE tenant_id = ? AND user_id = ? AND read_at IS NULL AND archived_at IS NULL";

const MARK_READ: &str = "
UPDATE inbox SET read_at = now() WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[]) AND read_at IS NULL
RETURNING id";

const MARK_ALL_READ: &str = "
UPDATE inbox SET read_at = now() WHERE tenant_id = ? AND user_id = ? AND read_at IS NULL AND archived_at IS NULL
RETURNING id";

const MARK_UNREAD: &str = "
UPDATE inbox SET read_at = NULL WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[]) AND read_at IS NOT NULL";

const ARCHIVE: &str = "
UPDATE inbox SET archived_at = now() WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[]) AND archived_at IS NULL";

const UNARCHIVE: &str = "
UPDATE inbox SET archived_at = NULL WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[]) AND archived_at IS NOT NULL";

const DELETE: &str = "DELETE FROM inbox WHERE tenant_id = ? AND user_id = ? AND id = ANY (?::uuid[])";

const STARTS: &str = "
SELECT COALESCE(
    CASE WHEN w.from_now THEN (SELECT b.last_seq FROM inboxes b WHERE b.tenant_id = w.tenant_id AND b.user_id = w.user_id)
    ELSE COALESCE(
        (SELECT i.seq FROM inbox i WHERE i.id = w.since AND i.tenant_id = w.tenant_id AND i.user_id = w.user_id),
        (SELECT i.seq FROM inbox i WHERE i.tenant_id = w.tenant_id AND i.user_id = w.user_id AND i.archived_at IS NULL
         ORDER BY i.seq DESC OFFSET f.newest LIMIT 1)) END, -1)
FROM unnest(?::int4[], ?::text[], ?::uuid[], ?::bool[]) WITH ORDINALITY AS w(tenant_id, user_id, since, from_now, place)
CROSS JOIN (SELECT ?::int8 AS newest) f ORDER BY w.place";

const AFTER: &str = "
SELECT w.place, i.id, i.seq, i.content, i.read_at, i.created_at
FROM unnest(?::int4[], ?::text[], ?::int8[]) WITH ORDINALITY AS w(tenant_id, user_id, after, place)
CROSS JOIN (SELECT ?::int8 AS most) f
CROSS JOIN LATERAL (
    SELECT i.id, i.seq, i.content, i.read_at, i.created_at FROM inbox i
    WHERE i.tenant_id = w.tenant_id AND i.user_id = w.user_id AND i.seq > w.after AND i.archived_at IS NULL
    ORDER BY i.seq LIMIT f.most
) i
ORDER BY w.place, i.seq";
