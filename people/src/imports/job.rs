//! Bulk import of people: a file of any size, read in chunks, checked row by row, stored a thousand rows at a time.
//!
//! A thread of its own reads and checks, one chunk ahead of the database. Memory holds two chunks and a row, however
//! large the file is.

use std::{io::Read, time::Duration};

use domain::{TenantId, contract::submission::FieldError};
use records::{Records, contacts::Saved, imports::Progress};
use runtime::reconnect::Reconnect;
use serde::Serialize;
use store::{DbError, DbResult, Store};
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::rows::{self, Broken, Chunk, Format, RowFault};

/// The most faults that are reported; further ones are only counted.
const FAULTS_MAX: usize = 100;
/// How long to wait while the database is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Rows seen.
    pub rows: i64,
    /// Rows stored.
    pub imported: i64,
    /// Rows refused.
    pub failed: i64,
    /// The first hundred of the faults.
    pub errors: Vec<RowFault>,
    #[serde(skip)]
    bytes: i64,
}

impl Summary {
    fn fault(&mut self, fault: RowFault) {
        if self.errors.len() < FAULTS_MAX {
            self.errors.push(fault);
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            bytes: self.bytes,
            rows: self.rows,
            imported: self.imported,
            refused: self.failed,
            faults: serde_json::to_string(&self.errors).unwrap_or_default(),
        }
    }
}

/// Why an import ended before the end of its file. The rows stored until then stay.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The header row cannot be used.
    #[error("the header row cannot be used")]
    Header(Vec<FieldError>),
    /// A row without an end: most likely a quote is not closed.
    #[error("the row at line {0} has more than 256 KiB; is a quote left open?")]
    RowTooLong(u64),
    /// The file could not be read to its end.
    #[error("the file could not be read to its end")]
    Source(#[source] std::io::Error),
    /// The database refused the rows.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Imports the contents of `source` as the import `id`, which must exist.
pub async fn import(
    store: &Store,
    tenant: TenantId,
    id: Uuid,
    format: Format,
    source: impl Read + Send + 'static,
) -> Result<Summary, ImportError> {
    let (sender, mut chunks) = mpsc::channel(1);
    let parsing =
        tokio::task::spawn_blocking(move || rows::read(source, format, |chunk| sender.blocking_send(chunk).is_ok()));
    let mut summary = Summary::default();
    let saved = save_all(store, tenant, id, &mut chunks, &mut summary).await;
    // Without a receiver the reader ends at its next chunk.
    drop(chunks);
    let read = parsing.await.unwrap_or_else(|error| Err(Broken::Source(std::io::Error::other(error))));
    let ended = saved.map_err(ImportError::Db).and_then(|()| read.map_err(ImportError::from));
    let status = if ended.is_ok() { "completed" } else { "failed" };
    let so_far = summary.progress();
    let noted = patiently(|| store.imports().record_progress(tenant, id, status, &so_far)).await;
    ended?;
    noted?;
    Ok(summary)
}

async fn save_all(
    store: &Store,
    tenant: TenantId,
    id: Uuid,
    chunks: &mut mpsc::Receiver<Chunk>,
    summary: &mut Summary,
) -> DbResult<()> {
    while let Some(chunk) = chunks.recv().await {
        save(store, tenant, chunk, summary).await?;
        let so_far = summary.progress();
        patiently(|| store.imports().record_progress(tenant, id, "running", &so_far)).await?;
    }
    Ok(())
}

async fn save(store: &Store, tenant: TenantId, chunk: Chunk, summary: &mut Summary) -> DbResult<()> {
    let Chunk { lines, changes, faults, refused, bytes } = chunk;
    summary.bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    summary.rows += refused + i64::try_from(lines.len()).unwrap_or(i64::MAX);
    summary.failed += refused;
    let mut faults = faults;
    // A retry is safe: the same change twice gives the same person.
    let saved = patiently(|| store.contacts().save(tenant, changes.clone())).await?;
    for (line, saved) in lines.into_iter().zip(saved) {
        match saved {
            Saved::Made | Saved::Changed => summary.imported += 1,
            Saved::Refused(FieldError { field, message }) => {
                summary.failed += 1;
                faults.push(RowFault { line, field, message });
            }
        }
    }
    faults.sort_by_key(|fault| fault.line);
    faults.into_iter().for_each(|fault| summary.fault(fault));
    Ok(())
}

/// Retries for a while if the database is away.
async fn patiently<T, Fut: Future<Output = DbResult<T>>>(ask: impl Fn() -> Fut) -> DbResult<T> {
    let (started, mut pauses) = (Instant::now(), Reconnect::new());
    loop {
        match ask().await {
            Err(error) if error.is_unavailable() && started.elapsed() < PATIENCE => {
                tracing::warn!(%error, "an import waits for the database");
                pauses.pause().await;
            }
            answer => return answer,
        }
    }
}

impl From<Broken> for ImportError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Header(faults) => Self::Header(faults),
            Broken::RowTooLong(line) => Self::RowTooLong(line),
            Broken::Source(error) => Self::Source(error),
        }
    }
}
