//! Everything that is kept about a person, as one document.

use actix_web::{
    HttpResponse,
    http::header::{CONTENT_DISPOSITION, ContentType},
    web::{Bytes, Data},
};
use futures_util::stream;
use store::DbError;
use tokio::sync::mpsc;
use web::{Web, auth::Anyone, params::PathUser, problem::Problem};

use crate::{person_file, users::require_ownership};

/// Pieces on their way to a reader.
const PIECES: usize = 16;

/// Everything that is kept about a person.
///
/// One JSON document, written while it is read: `user`, `devices` with their tokens, `preferences`, `inbox`, `messages` with content,
/// deliveries and events, `events`, `digests`, `whatsapp_received`, `suppressions`. An unknown person has empty lists. A document that
/// ends before its last brace broke off: ask again. `whatsapp_received` and `suppressions` are found by the person's addresses and
/// are empty but for an admin.
///
/// Roles: admin; a user for itself, with a token that an admin's key or the owner of `JWT_SECRET` made.
#[utoipa::path(get, path = "/api/users/{user_id}/export", tag = "people",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "The document", body = serde_json::Value, content_type = "application/json")))]
pub async fn show(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, user.0.into_inner());
    let by_address = require_ownership(&caller.0, &user)?;
    // A database that is away is a 503, not half a document.
    web.queries.run(async |store| store.ping().await).await?;
    let (sender, pieces) = mpsc::channel(PIECES);
    web.queries.spawn(async move |store| {
        if let Err(error) = person_file::write(&store, tenant, &user, by_address, sender.clone()).await {
            tracing::warn!(%error, "what is kept about a person could not be read to its end");
            // The client may have gone.
            let _ = sender.send(Err(error)).await;
        }
    });
    let body = stream::unfold(pieces, async |mut pieces: mpsc::Receiver<Result<Vec<u8>, DbError>>| {
        let piece = pieces.recv().await?;
        Some((piece.map(Bytes::from), pieces))
    });
    Ok(HttpResponse::Ok()
        .content_type(ContentType::json())
        .insert_header((CONTENT_DISPOSITION, "attachment; filename=\"person.json\""))
        .streaming(body))
}
