//! The state of all areas, composed in one place.

use std::sync::Arc;

use actix_web::web::{Data, ServiceConfig};
use api::{
    managing::{channels::Backends, tokens::Issuer},
    whatsapp::state::Sessions,
};
use broker::{Broker, BrokerPart, Publisher};
use connectors::waha::Waha;
use domain::ProviderName;
use people::{
    imports::ImportSlots,
    live::{feed::Feed, hub::Hub, state::LiveInbox},
    reads::ReadReporter,
    unsubscribe::UnsubscribeKey,
};
use runtime::{config::Config, probe::Parts, telemetry::MetricsHandle};
use secrecy::SecretString;
use store::{DatabasePart, Store};
use submission::{Submissions, accept::Acceptor, rendering::Renderers};
use tokio_util::sync::CancellationToken;
use web::{Web, gate::Gate};

use crate::{
    docs::Document,
    health::HealthReports,
    inbound::{
        provider_events::{EventVerifier, EventWriter, ProviderWebhooks},
        tracking::Tracker,
        waha::WahaWebhooks,
    },
    openapi,
};

/// Arguments of [`AppState::new`].
pub struct StateDeps<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The secret that signs tokens.
    pub jwt_secret: SecretString,
    /// The pool for queries.
    pub store: Store,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// The pool for webhooks of WAHA.
    pub hooks: Store,
    /// The pool for events of other providers.
    pub events: Store,
    /// Keys and certificates that verify those events.
    pub verifier: EventVerifier,
    /// Calls WAHA.
    pub waha: Waha,
    /// The broker connection that publishes.
    pub broker: Broker,
    /// Publishes on `broker`.
    pub publisher: Publisher,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
    /// The metrics recorder.
    pub metrics: MetricsHandle,
    /// The parts of other services in the same process.
    pub others: Parts,
}

/// The state of every area; one per process. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// State of all handlers.
    pub web: Data<Web>,
    /// Of the handlers that submit, and of the intake.
    pub submissions: Data<Submissions>,
    /// Of the live inbox.
    pub live: Data<LiveInbox>,
    /// Of WhatsApp sessions.
    pub sessions: Data<Sessions>,
    /// Records opens and clicks.
    pub tracker: Data<Tracker>,
    /// Of the health routes.
    pub health: Data<HealthReports>,
    gate: Data<Gate>,
    waha_webhooks: Data<WahaWebhooks>,
    provider_webhooks: Data<ProviderWebhooks>,
    read_reporter: Data<ReadReporter>,
    unsubscribe_key: Data<UnsubscribeKey>,
    import_slots: Data<ImportSlots>,
    backends: Data<Backends>,
    broker: Data<Broker>,
    issuer: Data<Issuer>,
    document: Data<Document>,
}

impl AppState {
    /// Builds the state and starts its background tasks.
    pub fn new(deps: StateDeps<'_>) -> Self {
        let StateDeps { config, jwt_secret, store, acceptor, hooks, events, verifier, waha, broker, .. } = deps;
        let StateDeps { publisher, stop, metrics, others, .. } = deps;
        let web = Data::new(Web::new(config, jwt_secret.clone(), store.clone()));
        let waha_webhooks = Data::new(WahaWebhooks::start(hooks, web.queries.clone()));
        let parts = Parts::new();
        parts.add(DatabasePart(store.clone()));
        parts.add(BrokerPart { broker: broker.clone(), needed: false });
        parts.add(web.migrations.clone());
        let cached = waha_webhooks.clone();
        let forget = move |id, name: &str| cached.forget(id, name);
        let writer = EventWriter::start(events);
        let live = LiveInbox { web: web.clone(), hub: Arc::new(Hub::new(stop)), feed: Feed::start(store.clone()) };
        Self {
            submissions: Data::new(Submissions {
                web: web.clone(),
                acceptor,
                renderers: Renderers::default(),
                sends_by_waha: config.whatsapp.contains(&ProviderName::Waha),
            }),
            sessions: Data::new(Sessions::new(config, web.clone(), waha, parts.clone(), forget)),
            tracker: Data::new(Tracker::new(writer.clone(), config.retention_days)),
            health: Data::new(HealthReports { parts, others, metrics }),
            gate: Data::new(web.gate(config)),
            waha_webhooks,
            provider_webhooks: Data::new(ProviderWebhooks { web: web.clone(), verifier, writer }),
            read_reporter: Data::new(ReadReporter::new(store, publisher)),
            unsubscribe_key: Data::default(),
            import_slots: Data::default(),
            backends: Data::new(Backends::of(config)),
            broker: Data::new(broker),
            issuer: Data::new(Issuer::new(jwt_secret, &config.auth)),
            document: Data::new(Document(openapi::document())),
            live: Data::new(live),
            web,
        }
    }

    /// Registers what handlers and extractors ask for.
    pub fn register(&self, site: &mut ServiceConfig) {
        self.web.register(site);
        site.app_data(self.web.clone())
            .app_data(self.submissions.clone())
            .app_data(self.live.clone())
            .app_data(self.sessions.clone())
            .app_data(self.tracker.clone())
            .app_data(self.health.clone())
            .app_data(self.gate.clone())
            .app_data(self.waha_webhooks.clone())
            .app_data(self.provider_webhooks.clone())
            .app_data(self.read_reporter.clone())
            .app_data(self.unsubscribe_key.clone())
            .app_data(self.import_slots.clone())
            .app_data(self.backends.clone())
            .app_data(self.broker.clone())
            .app_data(self.issuer.clone())
            .app_data(self.document.clone());
    }
}
