//! State of the session handlers, and the health of their WAHA.

use std::time::Duration;

use actix_web::web::Data;
use connectors::waha::{Host, NamedBy, Waha, WahaError};
use records::Records;
use runtime::{
    config::Config,
    probe::{Checking, Health, Part, Parts},
};
use uuid::Uuid;
use web::{QueryRunner, Web};

/// Less than the 900 ms for each part of the health report.
const PING_TIMEOUT: Duration = Duration::from_millis(700);
/// Upper bound on one call to WAHA: an admin waits for its answer. WAHA creates and starts a session within a second.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// Called with the id and the name of a session that changed.
type OnChange = Box<dyn Fn(Uuid, &str) + Send + Sync>;

/// State of the handlers of sessions.
pub struct Sessions {
    /// State of all handlers.
    pub web: Data<Web>,
    /// Calls WAHA.
    pub waha: Waha,
    /// Timeout of one call to WAHA.
    pub timeout: Duration,
    /// The WAHA host from the settings.
    host: Option<Host>,
    /// The parts of the health report.
    parts: Parts,
    on_change: OnChange,
}

impl Sessions {
    /// The health of WAHA is shown in `parts` once there are sessions. `on_change` is called with the id and the name
    /// of each session that changes.
    pub fn new(
        config: &Config,
        web: Data<Web>,
        waha: Waha,
        parts: Parts,
        on_change: impl Fn(Uuid, &str) + Send + Sync + 'static,
    ) -> Self {
        let host = config.waha.base_url.as_ref().and_then(|url| {
            let key = config.waha.api_key.as_ref();
            waha.host(url.as_str(), key, PING_TIMEOUT, NamedBy::Operator).ok()
        });
        let timeout = config.provider_timeout.min(CALL_TIMEOUT_MAX);
        Self { web, waha, timeout, host, parts, on_change: Box::new(on_change) }
    }

    /// Whether the settings name a WAHA.
    pub const fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Adds the WAHA of the sessions to the health report.
    pub fn show_health(&self) {
        self.parts.add(WahaPart { queries: self.web.queries.clone(), host: self.host.clone() });
    }

    /// Reports that a session changed.
    pub(super) fn changed(&self, id: Uuid, name: &str) {
        (self.on_change)(id, name);
    }
}

/// Whether the WAHA of the sessions answers. Only WhatsApp depends on it.
struct WahaPart {
    /// Queries which sessions cannot be reached.
    queries: QueryRunner,
    /// The WAHA host from the settings.
    host: Option<Host>,
}

impl Part for WahaPart {
    fn name(&self) -> &'static str {
        "waha"
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(async {
            if let Some(host) = &self.host
                && let Err(error) = host.ping().await
            {
                // An old version does not have this path, but its answer shows that it runs.
                if !matches!(error, WahaError::NotFound | WahaError::Refused(_) | WahaError::BadKey) {
                    return Health::Degraded(format!("WAHA_BASE_URL: {error}"));
                }
            }
            match self.queries.run(async |store| store.whatsapp_sessions().unreachable().await).await {
                Ok(0) => Health::Up,
                Ok(count) => Health::Degraded(format!("the WAHA of {count} started sessions does not answer")),
                Err(_) => Health::Degraded("the sessions are not known while the database is away".to_owned()),
            }
        })
    }
}
