//! Bulk import of people over HTTP. The body is streamed.

pub mod job;
pub mod rows;

use std::{
    io::{self, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    web::{Bytes, Data, Payload},
};
use chrono::{DateTime, Utc};
use domain::contract::submission::FieldError;
use futures_util::{StreamExt, future::join};
use records::{Records, imports::ImportRow};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    Web, audit,
    auth::Producer,
    params::Id,
    permits::PerTenant,
    problem::{Code, Problem},
};

use job::{ImportError, Summary};
use rows::{Format, RowFault};

/// Largest file.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// How long a client may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval in which a client's pace is measured, and the bytes that it must send in it: 64 KiB/s.
const PACE_TIME: Duration = Duration::from_secs(60);
const PACE_BYTES: usize = 60 * 64 * 1024;
/// The longest import. The largest file takes well under an hour.
const IMPORT_TIMEOUT: Duration = Duration::from_hours(6);
/// Parts of the body that wait for the reader, of some tens of kilobytes each.
const PIECES: usize = 8;
/// How much of a refused body is still read, so that its sender reads the answer.
const DISCARD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The result of an import.
#[derive(Serialize, ToSchema)]
pub struct ImportAnswer {
    /// The import, for `GET /api/users/imports/{id}`.
    pub import_id: Uuid,
    /// Rows seen.
    pub rows: i64,
    /// Rows stored.
    pub imported: i64,
    /// Rows refused.
    pub failed: i64,
    /// The first hundred faults; never a value of the file.
    pub errors: Vec<RowFault>,
}

/// An import as it stands.
#[derive(Serialize, ToSchema)]
#[schema(as = Import)]
pub struct ImportView {
    /// The import.
    #[serde(flatten)]
    #[schema(inline)]
    pub so_far: ImportAnswer,
    /// `running`, `completed` or `failed`. After a failure the stored rows stay.
    #[schema(example = "running")]
    pub status: String,
    /// Bytes read.
    pub bytes: i64,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it was last heard of.
    pub updated_at: DateTime<Utc>,
}

impl From<ImportRow> for ImportView {
    fn from(row: ImportRow) -> Self {
        let ImportRow { id, status, progress, created_at, updated_at } = row;
        let errors = serde_json::from_str(&progress.faults).unwrap_or_default();
        let so_far = ImportAnswer {
            import_id: id,
            rows: progress.rows,
            imported: progress.imported,
            failed: progress.refused,
            errors,
        };
        Self { so_far, status, bytes: progress.bytes, created_at, updated_at }
    }
}

/// Concurrent imports. Each holds one of the few connections of the query pool.
const IMPORTS_MAX: usize = 4;

/// Permits of concurrent imports: each keeps a thread busy.
pub struct ImportSlots {
    /// Over all tenants.
    all: Arc<Semaphore>,
    /// One per tenant.
    by_tenant: PerTenant,
}

impl Default for ImportSlots {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(IMPORTS_MAX)), by_tenant: PerTenant::default() }
    }
}

/// Imports people from a file of any size up to 2 GiB.
///
/// `text/csv`: a header row with `user_id` and any of `email`, `phone`, `name`, `locale`, `time_zone`, `quiet_start`,
/// `quiet_end`. Every other column becomes an attribute, as a text; an empty cell changes nothing.
/// `application/x-ndjson`: a JSON object on each line, with `user_id` and the fields of a PUT. Each row changes a
/// person as a PUT does. A bad row is counted, the first hundred are named by line, and the import continues. The body
/// is streamed, one import per tenant at a time; `GET /api/users/imports/{id}` shows the progress. Repeating an import
/// is safe.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/users/import", tag = "people",
    request_body(content(
        (String = "text/csv", example = json!("user_id,email,tier\nada,ada@example.com,gold\n")),
        (String = "application/x-ndjson", example = json!("{\"user_id\": \"ada\", \"email\": \"ada@example.com\"}\n")))),
    responses((status = 200, description = "Read to its end", body = ImportAnswer)))]
pub async fn create(
    producer: Producer,
    request: HttpRequest,
    web: Data<Web>,
    slots: Data<ImportSlots>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let format = format(&request)?;
    let tenant = producer.0.tenant;
    let busy = || Problem::new(Code::Overloaded, "Wait until another import is over, then send the file again.");
    let turn = slots.by_tenant.try_enter(tenant).ok_or_else(busy)?;
    let permit = Arc::clone(&slots.all).try_acquire_owned().map_err(|_| busy())?;
    let id = web.queries.run(async move |store| store.imports().insert(tenant).await).await?;
    let (sender, pieces) = mpsc::channel(PIECES);
    let source = Source { pieces, current: Bytes::new(), is_over: false };
    let importing = web.queries.run_within(IMPORT_TIMEOUT, async move |store| {
        let ended = job::import(&store, tenant, id, format, source).await;
        drop((permit, turn));
        Ok(ended)
    });
    let (ended, sent) = join(importing, pump(payload, sender)).await;
    let summary = match ended.and_then(|ended| outcome(ended, sent, id)) {
        Ok(summary) => summary,
        // The rows before the fault are stored.
        Err(problem) => return Ok(audit::made(audit::in_part(problem.error_response()), id)),
    };
    let Summary { rows, imported, failed, errors, .. } = summary;
    let answer = HttpResponse::Ok().json(ImportAnswer { import_id: id, rows, imported, failed, errors });
    Ok(audit::made(answer, id))
}

fn outcome(ended: Result<Summary, ImportError>, sent: Result<(), Problem>, id: Uuid) -> Result<Summary, Problem> {
    let error = match ended {
        Ok(summary) => return Ok(summary),
        Err(error) => error,
    };
    let kept = format!("What came before it is stored, see GET /api/users/imports/{id}");
    match error {
        ImportError::Header(faults) => Err(Problem::validation(faults)),
        ImportError::RowTooLong(line) => {
            let message = format!("at line {line} goes on for more than 256 KiB; is a quote left open? {kept}");
            Err(Problem::validation(vec![FieldError::new("row", message)]))
        }
        ImportError::Source(_) => Err(sent.err().unwrap_or_else(Problem::internal)),
        ImportError::Db(error) => Err(error.into()),
    }
}

fn format(request: &HttpRequest) -> Result<Format, Problem> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if text(CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send the body without a Content-Encoding."));
    }
    if text(CONTENT_LENGTH).and_then(|length| length.parse().ok()).is_some_and(|length: u64| length > FILE_BYTES_MAX) {
        return Err(too_large());
    }
    let essence = text(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "text/csv" | "application/csv" => Ok(Format::Csv),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Format::Ndjson),
        _ => Err(Problem::new(
            Code::UnsupportedMediaType,
            "Send CSV with Content-Type: text/csv, or a JSON object on each line with application/x-ndjson.",
        )),
    }
}

fn too_large() -> Problem {
    Problem::new(Code::PayloadTooLarge, "Send at most 2 GiB; split the file.")
}

/// A part of the body; without the part `End`, the body broke off.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Passes the body on as it arrives.
async fn pump(mut payload: Payload, sender: mpsc::Sender<Piece>) -> Result<(), Problem> {
    let (mut bytes, mut pace): (u64, _) = (0, Pace::default());
    loop {
        let late = |_| Problem::new(Code::RequestTimeout, "Send on: 30 seconds without a byte end an import.");
        let asked = Instant::now();
        let Some(piece) = timeout(IDLE_TIMEOUT, payload.next()).await.map_err(late)? else {
            // The reader may have stopped.
            let _ = sender.send(Piece::End).await;
            return Ok(());
        };
        let broken = |_| Problem::new(Code::MalformedBody, "Send the body in full, as long as Content-Length says.");
        let piece = piece.map_err(broken)?;
        bytes += u64::try_from(piece.len()).unwrap_or_default();
        if !pace.keeps_up(asked.elapsed(), piece.len()) {
            return Err(Problem::new(Code::RequestTimeout, "Send faster: an import takes at least 64 KiB a second."));
        }
        if bytes > FILE_BYTES_MAX {
            return Err(too_large());
        }
        if sender.send(Piece::Bytes(piece)).await.is_err() {
            discard(payload).await;
            return Ok(());
        }
    }
}

/// The pace of a client. Only the wait for the client counts, not the time to store its rows.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// Records a part and the wait for it; `false`: the client is too slow.
    fn keeps_up(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < PACE_TIME {
            return true;
        }
        std::mem::take(self).bytes >= PACE_BYTES
    }
}

async fn discard(mut payload: Payload) {
    let mut room = DISCARD_BYTES_MAX;
    while let Ok(Some(Ok(piece))) = timeout(IDLE_TIMEOUT, payload.next()).await {
        let Some(left) = room.checked_sub(piece.len()) else { return };
        room = left;
    }
}

/// The body, for a thread that reads it blocking.
struct Source {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    is_over: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.is_over = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.current.len().min(buffer.len());
        let piece = self.current.split_to(length);
        (&*piece).read(buffer)
    }
}

/// The progress of an import.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/api/users/imports/{id}", tag = "people", params(("id" = Uuid, Path, description = "The `import_id`")),
    responses((status = 200, description = "The import", body = ImportView)))]
pub async fn show(producer: Producer, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (producer.0.tenant, id.0);
    let found = web.queries.run(async move |store| store.imports().find(tenant, id).await).await?;
    let found = found.ok_or_else(|| Problem::not_found("import"))?;
    Ok(HttpResponse::Ok().json(ImportView::from(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_trickles_is_cut_off_after_a_minute_of_waiting_and_a_slow_one_is_not() {
        let (mut trickle, mut slow, mut stored) = (Pace::default(), Pace::default(), Pace::default());
        let second = Duration::from_secs(1);
        let first_failure = |pace: &mut Pace, waited, bytes| (1..=600).find(|_| !pace.keeps_up(waited, bytes));
        assert_eq!(first_failure(&mut trickle, Duration::from_secs(29), 1), Some(3));
        assert_eq!(first_failure(&mut slow, second, 64 * 1024), None);
        assert_eq!(first_failure(&mut slow, second, 64 * 1024 - 1), Some(60));
        assert_eq!(first_failure(&mut stored, Duration::from_millis(1), 1), None, "waiting for us is not its fault");
    }
}
