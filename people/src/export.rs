//! All data of a person, as one document.

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

/// Parts of the document that wait for the reader.
const PIECES: usize = 16;

/// All data of a person.
///
/// One JSON document, streamed: `user`, `devices` with their tokens, `preferences`, `inbox`, `messages` with content,
/// deliveries and events, `events`, `digests`, `whatsapp_received`, `suppressions`. An unknown person has empty lists.
/// A document without its last brace is incomplete: request it again. `whatsapp_received` and `suppressions` are found
/// by the person's addresses, and only an admin gets them.
///
/// Roles: admin; a user for itself, with a token that an admin's key or the owner of `JWT_SECRET` made.
#[utoipa::path(get, path = "/api/users/{user_id}/export", tag = "people",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "The document", body = serde_json::Value, content_type = "application/json")))]
pub async fn show(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, user.0.into_inner());
    let by_address = require_ownership(&caller.0, &user)?;
    // If the database is away, the answer is a 503 and not half a document.
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
