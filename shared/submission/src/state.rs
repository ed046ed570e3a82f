//! State of the handlers that submit.

use actix_web::web::Data;
use web::Web;

use crate::{accept::Acceptor, rendering::Renderers};

/// State of the handlers that submit; one per process.
pub struct Submissions {
    /// State of all handlers.
    pub web: Data<Web>,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// Renders templates.
    pub renderers: Renderers,
    /// Whether WhatsApp messages go out through WAHA sessions; otherwise they are only simulated.
    pub sends_by_waha: bool,
}
