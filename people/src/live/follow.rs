//! The WebSocket route of the live inbox: authorization and the start position. Every refusal happens before the upgrade.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Payload},
};
use domain::{clock, contract::wire::InboxHint};
use records::inbox::{Follower, Reader, Start, persons};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;
use web::{
    auth::{self, Anyone},
    params::{Params, PathUser},
    problem::{Code, Problem},
};

use super::{
    hub::{Full, Registration},
    socket::{Pass, Socket},
    state::LiveInbox,
};
use crate::inbox::may_open;

/// Largest frame that a client may send: clients have nothing to send.
const FRAME_BYTES_MAX: usize = 4 * 1024;

/// How to follow an inbox.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct FollowQuery {
    /// A token, for clients that cannot send an `Authorization` header, such as browsers.
    #[serde(rename = "token")]
    #[param(rename = "token")]
    _token: Option<String>,
    /// The id of the last notification that was seen: what came after it is sent first. Where it is unknown, the newest 100.
    since: Option<String>,
}

/// Follows an inbox over a WebSocket.
///
/// Each notification arrives as `{"type": "notification", "data": {…}}` with the fields of a notification in a list, oldest
/// first; ignore messages of other types. After a loss connect again with `since`. Nothing needs to be sent.
///
/// Closed with 4401 when the credential ends, 4408 when the client does not read, 1001 when the server goes away.
///
/// Roles: a user, its own; producer, admin and operator for any person of the tenant.
#[utoipa::path(get, path = "/ws/notifications/{user_id}", tag = "inbox",
    params(("user_id" = String, Path, description = "The person"), FollowQuery),
    responses((status = 101, description = "The socket is open")))]
pub async fn follow(
    caller: Anyone,
    user: PathUser,
    request: HttpRequest,
    body: Payload,
    live: Data<LiveInbox>,
) -> Result<HttpResponse, Problem> {
    let user = user.0.into_inner();
    if !may_open(&caller.0, &user) {
        return Err(Problem::new(Code::Forbidden, "Follow the inbox of the person whose token it is."));
    }
    let query: FollowQuery = Params::read(&request)?.0;
    let credential = auth::presented(request.headers(), request.path(), request.query_string())?.into_owned();
    let (response, session, stream) = actix_ws::handle(&request, body).map_err(|_| Problem::upgrade_required())?;
    let tenant = caller.0.tenant;
    // The socket registers first, so that items committed after the start position is read wake it.
    let registration = enter(&live, &caller, &user)?;
    let start = match query.since.filter(|since| !since.is_empty()) {
        Some(since) => Start::After(since.parse().ok()),
        None => Start::Now,
    };
    let follower = Follower { tenant, user_id: user.clone(), start };
    let after = live.feed.start_after(follower).await.ok_or_else(Problem::unavailable)?;
    if start != Start::Now {
        registration.wakeup().notify_one();
    }
    let pass = match live.web.credentials.ends(&credential) {
        Some(end) => Pass::Until(Instant::now() + (end - clock::now()).to_std().unwrap_or_default()),
        None => Pass::Key(credential),
    };
    let (reader, stream) = (Reader { tenant, user_id: user, after }, stream.max_frame_size(FRAME_BYTES_MAX));
    actix_web::rt::spawn(Socket::new(live, session, stream, registration, reader, pass).serve());
    Ok(response)
}

fn enter(live: &LiveInbox, caller: &Anyone, user: &str) -> Result<Registration, Problem> {
    if live.hub.leaving().is_cancelled() {
        return Err(Problem::unavailable());
    }
    let names = persons(&live.web.sealer, caller.0.tenant, user).iter().map(InboxHint::of).collect();
    Arc::clone(&live.hub).enter(caller.0.tenant, names).map_err(|full| {
        Problem::too_many_sockets(match full {
            Full::Person => "Close other sockets of this person, or share one; then try again.",
            Full::Tenant => "Try again later: this tenant has as many sockets open as one process holds.",
        })
    })
}
