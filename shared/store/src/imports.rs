//! Bulk imports of people: how far each got. Nothing in them says who was imported.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use domain::TenantId;
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// An import that says nothing for so long is over: its process died.
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

impl Store {
    /// Begins an import.
    pub async fn begin_import(&self, tenant: TenantId) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let query = statement::<()>(BEGIN).bind::<SqlUuid, _>(id).bind::<Int4, _>(tenant.0).within(Some(tenant));
        query.run(self).await?;
        Ok(id)
    }

    /// Writes down how far an import got; `status`: `running`, `completed` or `failed`.
    pub async fn note_import(
        &self,
        tenant: TenantId,
        id: Uuid,
        status: &'static str,
        so_far: &Progress,
    ) -> DbResult<()> {
        let query = statement::<()>(NOTE)
            .bind::<Text, _>(status)
            .bind::<Int8, _>(so_far.bytes)
            .bind::<Int8, _>(so_far.rows)
            .bind::<Int8, _>(so_far.imported)
            .bind::<Int8, _>(so_far.refused)
            .bind::<Text, _>(so_far.faults.clone())
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(id);
        query.within(Some(tenant)).run(self).await.map(drop)
    }

    /// An import of the tenant.
    pub async fn import(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<ImportRow>> {
        type Row = ((Uuid, String, i64, i64, i64, i64, String), (DateTime<Utc>, DateTime<Utc>));
        let query = statement::<((SqlUuid, Text, Int8, Int8, Int8, Int8, Text), (Timestamptz, Timestamptz))>(ONE)
            .bind::<Int4, _>(SILENCE_SECONDS)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(id);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        let import =
            |((id, status, bytes, rows, imported, refused, faults), (created_at, updated_at)): Row| ImportRow {
                id,
                status,
                progress: Progress { bytes, rows, imported, refused, faults },
                created_at,
                updated_at,
            };
        Ok(rows.into_iter().next().map(import))
    }

    /// Forgets imports older than `days`, at most `limit` of them; says how many.
    pub async fn forget_imports(&self, days: i32, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET).bind::<Int4, _>(days).bind::<Int8, _>(limit).run(self).await
    }
}

const BEGIN: &str = "INSERT INTO imports (id, tenant_id) VALUES (?, ?)";

const NOTE: &str = "
UPDATE imports SET status = ?, bytes = ?, rows = ?, imported = ?, refused = ?, faults = ?::jsonb, updated_at = clock_timestamp()
WHERE tenant_id = ? AND id = ?";

const ONE: &str = "
SELECT i.id, CASE WHEN i.status = 'running' AND i.updated_at < now() - ? * interval '1 second' THEN 'failed' ELSE i.status END,
       i.bytes, i.rows, i.imported, i.refused, i.faults::text, i.created_at, i.updated_at
FROM imports i WHERE i.tenant_id = ? AND i.id = ?";

const FORGET: &str = "
DELETE FROM imports WHERE id = ANY (ARRAY(SELECT id FROM imports WHERE created_at < now() - ? * interval '1 day' LIMIT ?))";
