//! The sealed columns. A value that does not open is logged and left out, so that it delays no other rows.

use domain::seal::{Column, Place};

use super::Store;

/// `tenants.webhook_secret`.
pub const TENANT_SECRET: Column = Column("tenants.webhook_secret");
/// The content of messages and bulks: a claim reads one or the other.
/// `messages.content`.
pub const CONTENT: Column = Column("messages.content");
/// `deliveries.recipient`.
pub const RECIPIENT: Column = Column("deliveries.recipient");
/// `idempotency_keys.response`.
pub const RESPONSE: Column = Column("idempotency_keys.response");
/// `inbox.content`.
pub const INBOX: Column = Column("inbox.content");
/// `dead_letters.body`.
pub const LETTER_BODY: Column = Column("dead_letters.body");
/// `dead_letters.detail`.
pub const LETTER_DETAIL: Column = Column("dead_letters.detail");
/// `wa_sessions.api_key`.
pub const SESSION_KEY: Column = Column("wa_sessions.api_key");
/// `wa_sessions.webhook_secret`, the former one as well.
pub const SESSION_SECRET: Column = Column("wa_sessions.webhook_secret");
/// `webhook_configurations.headers`.
pub const CONFIGURATION_HEADERS: Column = Column("webhook_configurations.headers");
/// The former secret as well: a statement moves it.
/// `webhook_configurations.secret`.
pub const CONFIGURATION_SECRET: Column = Column("webhook_configurations.secret");
/// `waha_events.body`.
pub const WAHA_EVENT: Column = Column("waha_events.body");
/// `provider_events.body`.
pub const PROVIDER_EVENT: Column = Column("provider_events.body");
/// `service_secrets.secret`.
pub const SERVICE_SECRET: Column = Column("service_secrets.secret");
/// `seal_check.sealed`.
pub const SEAL_CHECK: Column = Column("seal_check.sealed");
/// `wa_inbound.sender`.
pub const INBOUND_SENDER: Column = Column("wa_inbound.sender");
/// `wa_inbound.recipient`.
pub const INBOUND_RECIPIENT: Column = Column("wa_inbound.recipient");
/// `wa_inbound.content`.
pub const INBOUND_CONTENT: Column = Column("wa_inbound.content");
/// `suppressions.address`.
pub const SUPPRESSION: Column = Column("suppressions.address");
/// `event_log.data`.
pub const EVENT_DATA: Column = Column("event_log.data");
/// `digest_items.data`.
pub const DIGEST_ITEM: Column = Column("digest_items.data");
/// `webhook_logs.request`.
pub const LOG_REQUEST: Column = Column("webhook_logs.request");
/// `webhook_logs.response`.
pub const LOG_RESPONSE: Column = Column("webhook_logs.response");
/// `users.profile`.
pub const PROFILE: Column = Column("users.profile");
/// `devices.token`.
pub const DEVICE: Column = Column("devices.token");
/// `broadcasts.definition`.
pub const BROADCAST: Column = Column("broadcasts.definition");

impl Store {
    /// The plain value, if it opens.
    pub fn opened(&self, place: Place, stored: Vec<u8>) -> Option<Vec<u8>> {
        let opened = self.sealer().open(place, stored);
        opened.inspect_err(|error| tracing::error!(?place, %error, "a stored value is left out")).ok()
    }

    /// The same for a text column.
    pub fn opened_text(&self, place: Place, stored: String) -> Option<String> {
        let opened = self.sealer().open_text(place, stored);
        opened.inspect_err(|error| tracing::error!(?place, %error, "a stored value is left out")).ok()
    }
}
