//! The sealed columns. A value that does not open is logged and left out, so that it delays no other rows.

use domain::seal::{Column, Place};

use super::Store;

pub(super) const TENANT_SECRET: Column = Column("tenants.webhook_secret");
/// The content of messages and bulks: a claim reads one or the other.
pub(super) const CONTENT: Column = Column("messages.content");
pub(super) const RECIPIENT: Column = Column("deliveries.recipient");
pub(super) const RESPONSE: Column = Column("idempotency_keys.response");
pub(super) const INBOX: Column = Column("inbox.content");
pub(super) const LETTER_BODY: Column = Column("dead_letters.body");
pub(super) const LETTER_DETAIL: Column = Column("dead_letters.detail");
pub(super) const SESSION_KEY: Column = Column("wa_sessions.api_key");
/// The former one as well.
pub(super) const SESSION_SECRET: Column = Column("wa_sessions.webhook_secret");
pub(super) const CONFIGURATION_HEADERS: Column = Column("webhook_configurations.headers");
/// The former secret as well: a statement moves it.
pub(super) const CONFIGURATION_SECRET: Column = Column("webhook_configurations.secret");
pub(super) const WAHA_EVENT: Column = Column("waha_events.body");
pub(super) const PROVIDER_EVENT: Column = Column("provider_events.body");
pub(super) const SERVICE_SECRET: Column = Column("service_secrets.secret");
pub(super) const SEAL_CHECK: Column = Column("seal_check.sealed");
pub(super) const INBOUND_SENDER: Column = Column("wa_inbound.sender");
pub(super) const INBOUND_RECIPIENT: Column = Column("wa_inbound.recipient");
pub(super) const INBOUND_CONTENT: Column = Column("wa_inbound.content");
pub(super) const SUPPRESSION: Column = Column("suppressions.address");
pub(super) const EVENT_DATA: Column = Column("event_log.data");
pub(super) const DIGEST_ITEM: Column = Column("digest_items.data");
pub(super) const LOG_REQUEST: Column = Column("webhook_logs.request");
pub(super) const LOG_RESPONSE: Column = Column("webhook_logs.response");
pub(super) const PROFILE: Column = Column("users.profile");
pub(super) const DEVICE: Column = Column("devices.token");
pub(super) const BROADCAST: Column = Column("broadcasts.definition");

impl Store {
    /// The plain value, if it opens.
    pub(super) fn opened(&self, place: Place, stored: Vec<u8>) -> Option<Vec<u8>> {
        let opened = self.sealer().open(place, stored);
        opened.inspect_err(|error| tracing::error!(?place, %error, "a stored value is left out")).ok()
    }

    /// The same for a text column.
    pub(super) fn opened_text(&self, place: Place, stored: String) -> Option<String> {
        let opened = self.sealer().open_text(place, stored);
        opened.inspect_err(|error| tracing::error!(?place, %error, "a stored value is left out")).ok()
    }
}
