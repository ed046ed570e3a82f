//! What the route and its sockets share.

use std::sync::Arc;

use actix_web::web::Data;
use web::Web;

use super::{feed::Feed, hub::Hub};

/// State of the live inbox; one per process.
pub struct LiveInbox {
    /// What all handlers share.
    pub web: Data<Web>,
    /// The open WebSockets of this process.
    pub hub: Arc<Hub>,
    /// Reads inboxes for the sockets.
    pub feed: Feed,
}
