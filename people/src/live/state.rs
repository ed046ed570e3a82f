//! State of the live inbox: of its route and its sockets.

use std::sync::Arc;

use actix_web::web::Data;
use web::Web;

use super::{feed::Feed, hub::Hub};

/// State of the live inbox; one per process.
pub struct LiveInbox {
    /// State of all handlers.
    pub web: Data<Web>,
    /// The open WebSockets of this process.
    pub hub: Arc<Hub>,
    /// Reads inboxes for the sockets.
    pub feed: Feed,
}
