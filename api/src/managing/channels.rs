//! The providers of each channel, and their state.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use deliveries::{
    Deliveries,
    breakers::{Breaker, host_key, session_key},
};
use domain::{BreakerState, Channel, ProviderName, TenantId};
use records::Records;
use runtime::config::Config;
use serde::Serialize;
use store::{DbResult, Store};
use utoipa::ToSchema;
use web::{Web, auth::Admin, problem::Problem};

/// The most sessions whose breakers are read; more than a tenant has.
const SESSIONS_MAX: i64 = 10_000;

/// Every channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelList {
    /// In the order of the settings.
    channels: Vec<ChannelView>,
}

/// A channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelView {
    /// Its name.
    #[schema(value_type = String, example = "whatsapp")]
    channel: Channel,
    /// Its providers in order; empty if the channel is not configured.
    providers: Vec<ProviderView>,
}

/// A provider and its circuit breaker.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProviderView {
    /// Its name.
    #[schema(value_type = String, example = "waha")]
    name: ProviderName,
    /// `closed`: calls are made. `open`: no call is made for a while. `half_open`: one call is made as a test. If there
    /// are several breakers (WhatsApp has one for each session and each WAHA, webhooks have one for each receiver), the
    /// worst.
    #[schema(value_type = String, example = "closed")]
    state: BreakerState,
    /// Since when; `null` if the breaker never opened.
    since: Option<DateTime<Utc>>,
    /// Failures in a row.
    failures: i32,
}

/// The providers of each channel.
pub struct Backends(pub Vec<(Channel, Vec<ProviderName>)>);

impl Backends {
    /// As the settings name them.
    pub fn of(config: &Config) -> Self {
        Self(Channel::ALL.iter().map(|channel| (*channel, config.backends(*channel).to_vec())).collect())
    }
}

/// The channels, their providers, and whether these work.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/admin/notifications/channels", tag = "managing",
    responses((status = 200, description = "Every channel", body = ChannelList)))]
pub async fn list(admin: Admin, web: Data<Web>, backends: Data<Backends>) -> Result<HttpResponse, Problem> {
    let tenant = admin.0.tenant;
    let names: Vec<ProviderName> = backends.0.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let found = web.queries.run(async move |store| breakers(&store, tenant, names.clone()).await).await?;
    let view = |name: ProviderName| {
        let breaker = found.iter().filter(|(of, _)| *of == name).map(|(_, breaker)| breaker).max_by_key(badness);
        ProviderView {
            name,
            state: breaker.map_or(BreakerState::Closed, |breaker| breaker.state),
            since: breaker.map(|breaker| breaker.since),
            failures: breaker.map_or(0, |breaker| breaker.failures),
        }
    };
    let channels = backends.0.iter().map(|(channel, names)| ChannelView {
        channel: *channel,
        providers: names.iter().copied().map(view).collect(),
    });
    Ok(HttpResponse::Ok().json(ChannelList { channels: channels.collect() }))
}

/// The breakers for the tenant's calls, without those of other tenants' sessions and receivers.
async fn breakers(store: &Store, tenant: TenantId, names: Vec<ProviderName>) -> DbResult<Vec<(ProviderName, Breaker)>> {
    let shared = names.into_iter().filter(|name| !matches!(name, ProviderName::Waha | ProviderName::Http)).collect();
    let mut found = store.breakers().of_scope(shared).await?;
    let sessions = store.whatsapp_sessions().list(tenant, None, SESSIONS_MAX).await?;
    let keys =
        sessions.iter().flat_map(|session| [session_key(session.id), host_key(tenant, &session.settings.base_url)]);
    found.extend(store.breakers().list(keys.collect()).await?.into_iter().map(|breaker| (ProviderName::Waha, breaker)));
    let receivers = store.breakers().before(&format!("http/{tenant}/")).await?;
    found.extend(receivers.into_iter().map(|breaker| (ProviderName::Http, breaker)));
    Ok(found)
}

fn badness(breaker: &&Breaker) -> (u8, i32, DateTime<Utc>) {
    let state = match breaker.state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    };
    (state, breaker.failures, breaker.since)
}
