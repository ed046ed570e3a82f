//! Bulk imports of people and their progress. The rows hold no data of the people.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use domain::TenantId;
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::ImportStore;

/// An import without progress for this long has ended: its process died.
const SILENCE_SECONDS: i32 = 120;

/// How far an import got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: i64,
    /// Rows seen.
    pub rows: i64,
    /// Rows stored.
    pub imported: i64,
    /// Rows refused.
    pub refused: i64,
    /// The first of the faults, as JSON.
    pub faults: String,
}

/// An import as it stands.
#[derive(Clone, Debug)]
pub struct ImportRow {
    /// Its id.
    pub id: Uuid,
    /// `running`, `completed` or `failed`.
    pub status: String,
    /// How far it got.
    pub progress: Progress,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it was last heard of.
    pub updated_at: DateTime<Utc>,
}

row! {
    struct StoredRow {
        id: Uuid as SqlUuid,
        status: String as Text,
        bytes: i64 as Int8,
        rows: i64 as Int8,
        imported: i64 as Int8,
        refused: i64 as Int8,
        faults: String as Text,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
    }
}

impl ImportStore<'_> {
    /// Begins an import.
    pub async fn insert(self, tenant: TenantId) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        Begin { id, tenant: tenant.0 }.query().within(Some(tenant)).run(self.store).await?;
        Ok(id)
    }

    /// Stores the progress of an import; `status`: `running`, `completed` or `failed`.
    pub async fn record_progress(
        self,
        tenant: TenantId,
        id: Uuid,
        status: &'static str,
        so_far: &Progress,
    ) -> DbResult<()> {
        let Progress { bytes, rows, imported, refused, faults } = so_far.clone();
        let query = Note { status, bytes, rows, imported, refused, faults, tenant: tenant.0, id }.query();
        query.within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// An import of the tenant.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<ImportRow>> {
        let query = One { silence_seconds: SILENCE_SECONDS, tenant: tenant.0, id }.query();
        let row = query.within(Some(tenant)).first(self.store).await?;
        Ok(row.map(|row| {
            let StoredRow { id, status, bytes, rows, imported, refused, faults, created_at, updated_at } = row;
            let progress = Progress { bytes, rows, imported, refused, faults };
            ImportRow { id, status, progress, created_at, updated_at }
        }))
    }

    /// Deletes imports older than `days`, at most `limit` of them; returns their number.
    pub async fn prune(self, days: i32, limit: i64) -> DbResult<usize> {
        Forget { days, limit }.query().run(self.store).await
    }
}

sql!(Begin in "imports/begin.sql" { id: Uuid as SqlUuid, tenant: i32 as Int4 });
sql!(Note in "imports/note.sql" {
    status: &'static str as Text,
    bytes: i64 as Int8,
    rows: i64 as Int8,
    imported: i64 as Int8,
    refused: i64 as Int8,
    faults: String as Text,
    tenant: i32 as Int4,
    id: Uuid as SqlUuid,
});
sql!(One in "imports/one.sql" { silence_seconds: i32 as Int4, tenant: i32 as Int4, id: Uuid as SqlUuid } -> StoredRow);
sql!(Forget in "imports/forget.sql" { days: i32 as Int4, limit: i64 as Int8 });
statements!(Begin, Note, One, Forget);
