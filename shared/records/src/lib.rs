//! The tables that tenants manage and people own: one file per table or aggregate, its statements in `sql/`.
//!
//! [`Records`] is the table of contents: each of its methods gives the statements of one file.

pub mod analytics;
pub mod audit;
pub mod catalogue;
pub mod configurations;
pub mod contacts;
pub mod counts;
pub mod devices;
pub mod imports;
pub mod inbound_webhooks;
pub mod inbox;
pub mod keys;
pub mod limits;
pub mod notification_types;
pub mod people;
pub mod person_file;
pub mod preferences;
pub mod refresh;
pub mod rules;
pub mod suppressions;
pub mod templates;
pub mod tenants;
pub mod wa_inbound;
pub mod wa_sessions;
pub mod waha_events;
pub mod webhook_logs;

store::handles! {
    /// The tables that tenants manage and people own.
    pub trait Records {
        /// Counts of deliveries by day.
        analytics: AnalyticsStore,
        /// The audit log of management.
        audit_log: AuditLog,
        /// The types, templates and rules of a tenant as one version.
        catalogue: CatalogueStore,
        /// Webhook configurations of tenants.
        webhook_configurations: ConfigurationStore,
        /// People with their addresses.
        contacts: ContactStore,
        /// Numbers of bounded things.
        counts: CountStore,
        /// Devices for push.
        devices: DeviceStore,
        /// Imports of people.
        imports: ImportStore,
        /// Webhooks of providers that wait to be read.
        inbound_webhooks: InboundWebhookStore,
        /// In-app inboxes.
        inbox: InboxStore,
        /// API keys.
        api_keys: KeyStore,
        /// Limits of tenants.
        limits: LimitStore,
        /// Notification types and their categories.
        notification_types: TypeStore,
        /// Profiles of people.
        people: PersonStore,
        /// The stored data about one person.
        person_files: PersonFileStore,
        /// Preferences of people.
        preferences: PreferenceStore,
        /// Families of refresh tokens.
        refresh_tokens: RefreshTokenStore,
        /// Rules of tenants.
        rules: RuleStore,
        /// Suppressed addresses.
        suppressions: SuppressionStore,
        /// Templates of tenants.
        templates: TemplateStore,
        /// Tenants.
        tenants: TenantStore,
        /// Received WhatsApp messages.
        whatsapp_inbound: WhatsappInboundStore,
        /// WhatsApp sessions.
        whatsapp_sessions: SessionStore,
        /// Webhooks of WAHA.
        waha_events: WahaEventStore,
        /// Calls of webhook configurations.
        webhook_logs: WebhookLogStore,
    }
}

/// Every statement, for the test that compares them with the schema.
pub fn statements() -> Vec<store::sql::Shape> {
    let modules = [
        analytics::shapes(),
        audit::shapes(),
        catalogue::shapes(),
        configurations::shapes(),
        contacts::shapes(),
        counts::shapes(),
        devices::shapes(),
        imports::shapes(),
        inbound_webhooks::shapes(),
        inbox::shapes(),
        keys::shapes(),
        limits::shapes(),
        notification_types::shapes(),
        people::shapes(),
        person_file::shapes(),
        preferences::shapes(),
        refresh::shapes(),
        rules::shapes(),
        suppressions::shapes(),
        templates::shapes(),
        tenants::shapes(),
        wa_inbound::shapes(),
        wa_sessions::shapes(),
        waha_events::shapes(),
        webhook_logs::shapes(),
    ];
    modules.into_iter().flatten().collect()
}
