//! People: for now, forgetting them.

use std::time::{Duration, Instant};

use actix_web::{HttpResponse, web::Data};
use serde::Serialize;
use shared::{
    db::{
        Store,
        erasure::{Erased, Step},
    },
    token::Role,
};
use utoipa::ToSchema;

use crate::{
    app::App,
    auth::Anyone,
    params::PathUser,
    problem::{Code, Problem},
};

/// How long a caller waits; the scheduler does the rest.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was erased.
#[derive(Debug, Serialize, ToSchema)]
pub struct Erasure {
    /// How much of what.
    #[schema(value_type = ErasedCounts)]
    pub erased: Erased,
    /// Something is left, such as a message that a worker is sending right now; it is erased within seconds.
    pub pending: bool,
}

/// How much was erased.
#[derive(ToSchema)]
#[schema(as = Erased)]
#[expect(dead_code, reason = "describes `Erased`, which knows nothing of OpenAPI")]
pub struct ErasedCounts {
    /// Messages whose content is gone; those that waited are cancelled.
    messages: i64,
    /// Deliveries whose recipient is gone.
    deliveries: i64,
    /// Entries of the inbox.
    inbox: i64,
    /// Contents of bulks that went to nobody else.
    bulks: i64,
    /// Kept answers from which the person was taken out.
    idempotency_responses: i64,
    /// Dead letters that were emptied or closed.
    dead_letters: i64,
    /// WhatsApp messages from the person, and what was told about them.
    inbound: i64,
}

/// Forgets a person.
///
/// Everything that says who the person is or what was written to them goes: content, recipients, inbox, refused publishes,
/// messages from their numbers. What waits to be sent is cancelled. States, counters and the log's facts stay. A repeat
/// finds nothing and answers zeros.
///
/// Roles: admin; a user for itself.
#[utoipa::path(delete, path = "/api/users/{user_id}", tag = "managing",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "What was erased", body = Erasure)))]
pub async fn erase(caller: Anyone, user: PathUser, app: Data<App>) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, user.0.into_inner());
    if caller.0.role != Role::Admin && !(caller.0.role == Role::User && caller.0.subject == user) {
        return Err(Problem::new(Code::Forbidden, "Use an admin's credential, or the person's own."));
    }
    let erasing = async move |store: Store| {
        let (started, mut erased) = (Instant::now(), Erased::default());
        let person = store.begin_erasure(tenant, &user).await?;
        loop {
            let step = store.erase_step(&person, &mut erased).await?;
            if step != Step::More || started.elapsed() > PATIENCE {
                return Ok(Erasure { erased, pending: step != Step::Done });
            }
        }
    };
    Ok(HttpResponse::Ok().json(app.db.run_within(PATIENCE * 3, erasing).await?))
}
