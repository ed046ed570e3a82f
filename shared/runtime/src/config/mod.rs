//! The settings: read once from the environment at the start, into typed structs that are passed down.
//!
//! No other code reads the environment. A failed start names every fault at once. The table in `table.rs` is the single
//! home of names, defaults and sentences; `.env.example` and `posthaste config check` are made from it.

mod aws;
mod by_channel;
mod categories;
mod database;
mod email;
mod fault;
mod kind;
mod postgres;
mod provider_events;
mod push;
mod reader;
mod retry;
mod setting;
mod sms;
mod table;
mod timing;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread::available_parallelism,
    time::Duration,
};

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

pub use aws::AwsConfig;
pub use by_channel::ByChannel;
pub use categories::Categories;
pub use database::DatabaseConfig;
pub use email::{DkimConfig, EmailConfig, SendgridConfig, SmtpConfig, SmtpTls};
pub use fault::{ConfigError, ConfigFault};
pub use postgres::{PostgresUrl, PostgresUrlError, RootCert, SslMode};
pub use provider_events::{ProviderEventsConfig, TrackConfig};
pub use push::{ApnsConfig, ApnsSigner, FcmConfig, PushConfig, VapidConfig};
pub use reader::Shown;
pub use retry::RetryConfig;
pub use sms::{SmsConfig, TwilioConfig};
pub use table::env_example;
pub use timing::{REPORT_TIME, TimingConfig};

use domain::{Channel, ProviderName, RequireMapping, RetryPolicy};
use reader::Reader;

/// The default number of threads that serve HTTP. The work is in the database; a second thread fills the waits of the
/// first.
const HTTP_WORKERS_USUAL: usize = 2;

/// Every setting of every process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database.
    pub database: DatabaseConfig,
    /// The broker.
    pub broker: BrokerConfig,
    /// The HTTP side of ingest.
    pub http: HttpConfig,
    /// Tokens.
    pub auth: AuthConfig,
    /// E-mail.
    pub email: EmailConfig,
    /// Text messages.
    pub sms: SmsConfig,
    /// The keys that verify the events of providers.
    pub provider_events: ProviderEventsConfig,
    /// Which mails are tracked.
    pub track: TrackConfig,
    /// Amazon Web Services.
    pub aws: AwsConfig,
    /// Push notifications.
    pub push: PushConfig,
    /// Webhooks to others.
    pub webhook: WebhookConfig,
    /// The backends of the inbox.
    pub in_app: Vec<ProviderName>,
    /// The backends of WhatsApp; empty if it is not configured.
    pub whatsapp: Vec<ProviderName>,
    /// The WAHA of the session `default`.
    pub waha: WahaConfig,
    /// When a provider that keeps failing is not called for a while.
    pub breaker: BreakerConfig,
    /// The longest call to a provider other than a webhook.
    pub provider_timeout: Duration,
    /// The limits of a worker.
    pub worker: WorkerConfig,
    /// The log filter, in the syntax of `RUST_LOG`.
    pub log: String,
    /// When each channel is tried again.
    pub retry: RetryConfig,
    /// Days for which messages are kept, for tenants without a value of their own; `None`: for ever.
    pub retention_days: Option<i32>,
    /// The waits that depend on each other.
    pub timing: TimingConfig,
    shown: Vec<Shown>,
}

/// The RabbitMQ broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Its URL, password and virtual host included.
    pub url: SecretString,
    /// Whether its users must be mapped to tenants.
    pub require_mapping: RequireMapping,
}

/// Where ingest listens.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address to bind.
    pub host: String,
    /// The port to bind.
    pub port: u16,
    /// The URL under which others reach it. It ends in a slash, so that `join("webhooks/waha")` appends.
    pub public_url: Url,
    /// Threads that serve.
    pub workers: usize,
    /// How often a caller may ask.
    pub rate: RateConfig,
    /// The proxies whose header names the address of a caller.
    pub trusted_proxies: Vec<IpNet>,
    /// The bytes of request bodies that all requests may hold at once.
    pub body_bytes: usize,
}

/// The rate limit of a caller, unless its tenant has one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateConfig {
    /// The time in which `requests` are counted.
    pub window: Duration,
    /// Requests of each credential.
    pub requests: u32,
}

/// Tokens.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Signs and checks tokens; only ingest needs it, see [`Config::require_jwt_secret`].
    pub jwt_secret: Option<SecretString>,
    /// How long an access token holds.
    pub jwt_expires_in: Duration,
    /// How long a refresh token holds.
    pub jwt_refresh_expires_in: Duration,
}

/// Webhooks to others.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// The backends of webhooks.
    pub backends: Vec<ProviderName>,
    /// The time that a receiver has to answer.
    pub timeout: Duration,
    /// Private networks that webhooks may reach.
    pub allow_nets: Vec<IpNet>,
    /// A configuration is switched off after every call failed for this long.
    pub disable_after: Duration,
    /// Days that logs of configurations, and events held for them, are kept.
    pub keep_days: i32,
}

/// The WAHA of the session `default` and the settings for every session. Sessions that tenants make have their own
/// WAHA.
#[derive(Clone, Debug)]
pub struct WahaConfig {
    /// Where it is; ends in a slash.
    pub base_url: Option<Url>,
    /// The key to it.
    pub api_key: Option<SecretString>,
    /// Signs its webhooks.
    pub webhook_secret: Option<SecretString>,
    /// Private networks that media may be fetched from.
    pub media_nets: Vec<IpNet>,
}

/// When a provider that keeps failing is not called for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The number of failures in a row.
    pub failures: i32,
    /// The pause before one probe is made.
    pub open: Duration,
}

/// The limits of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The channels it serves.
    pub channels: Vec<Channel>,
    /// Deliveries that it attempts at once, per channel and lane.
    pub concurrency: usize,
}

/// The environment of this process. In a value that is not UTF-8 the invalid bytes are replaced.
#[expect(clippy::disallowed_methods, reason = "the one legal caller: everything else is handed its settings")]
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

impl Config {
    /// Reads the settings of this process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_env_map(environment())
    }

    /// Reads the settings from names and values, such as a map or an array of pairs.
    pub fn from_env_map<N, V>(vars: impl IntoIterator<Item = (N, V)>) -> Result<Self, ConfigError>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let mut reader = Reader::new(vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        let built = read(&mut reader);
        let (config, shown) = reader.finish(built)?;
        Ok(Self { shown, ..config })
    }

    /// The retry policy of a channel.
    pub fn retry_policy(&self, channel: Channel) -> RetryPolicy {
        self.retry.get(channel).clone()
    }

    /// The backends of a channel in order; empty if the channel is not configured.
    pub fn backends(&self, channel: Channel) -> &[ProviderName] {
        match channel {
            Channel::Email => &self.email.backends,
            Channel::Sms => &self.sms.backends,
            Channel::Push => &self.push.backends,
            Channel::Webhook => &self.webhook.backends,
            Channel::InApp => &self.in_app,
            Channel::Whatsapp => &self.whatsapp,
        }
    }

    /// The longest call on a channel.
    pub fn call_timeout(&self, channel: Channel) -> Duration {
        if channel == Channel::Webhook { self.webhook.timeout } else { self.provider_timeout }
    }

    /// The secret for tokens, or the reason why ingest does not start.
    pub fn require_jwt_secret(&self) -> Result<&SecretString, ConfigError> {
        self.auth.jwt_secret.as_ref().ok_or_else(|| {
            let (name, example) = (table::JWT_SECRET.spec.name.to_owned(), table::JWT_SECRET.spec.example_value());
            let problem = format!("is missing, and ingest needs it: set it to {}", table::JWT_SECRET.kind.expects);
            ConfigError { faults: vec![ConfigFault { name, value: None, problem, example }] }
        })
    }

    /// Every setting by name, its value with secrets masked, and its source: the variable that is set, or `default`,
    /// `derived`, `unset`.
    pub fn describe(&self) -> Vec<Shown> {
        self.shown.clone()
    }
}

impl DatabaseConfig {
    /// Reads only the settings of the database, for commands that need nothing else.
    pub fn from_env_map<N, V>(vars: impl IntoIterator<Item = (N, V)>) -> Result<Self, ConfigError>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let mut reader = Reader::new(vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        let built = database::read(&mut reader);
        reader.finish(built).map(|(config, _)| config)
    }
}

impl BrokerConfig {
    /// Reads only whether broker users must be mapped, for commands that need nothing else.
    pub fn require_mapping_of<N, V>(vars: impl IntoIterator<Item = (N, V)>) -> Result<RequireMapping, ConfigError>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let mut reader = Reader::new(vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        let built = reader.get(&table::AMQP_REQUIRE_MAPPING);
        reader.finish(built).map(|(require, _)| require)
    }
}

/// Reads every part before the first `?`, so that one fault does not hide another.
fn read(reader: &mut Reader) -> Option<Config> {
    let database = database::read(reader);
    let (broker, heartbeat) = broker(reader).unzip();
    let http = http(reader);
    let auth = auth(reader);
    let email = email::read(reader);
    let sms = sms::read(reader);
    let (events, track) = (provider_events::read(reader), provider_events::tracking(reader));
    let aws = aws::read(reader);
    let push = push::read(reader);
    let whatsapp = reader.get(&table::WHATSAPP_BACKEND);
    let (breaker_failures, breaker_open) = (reader.get(&table::BREAKER_FAILURES), reader.get(&table::BREAKER_OPEN_MS));
    let in_app = reader.get(&table::IN_APP_BACKEND);
    let webhook = webhook(reader);
    let waha = WahaConfig {
        base_url: reader.get(&table::WAHA_BASE_URL),
        api_key: reader.get(&table::WAHA_API_KEY),
        webhook_secret: reader.get(&table::WAHA_WEBHOOK_SECRET),
        media_nets: reader.get(&table::MEDIA_ALLOW_NETS).unwrap_or_default(),
    };
    let provider_timeout = reader.get(&table::PROVIDER_TIMEOUT_MS);
    let retry = retry::read(reader);
    let worker = worker(reader);
    let longest_call = webhook.as_ref().map(|webhook| webhook.timeout).max(provider_timeout);
    let timing = timing::read(reader, heartbeat, longest_call);
    let retention_days = reader.get(&table::RETENTION_DAYS);
    let log = reader.get(&table::RUST_LOG);
    Some(Config {
        database: database?,
        broker: broker?,
        http: http?,
        auth: auth?,
        email: email?,
        sms: sms?,
        provider_events: events,
        track,
        aws,
        push: push?,
        webhook: webhook?,
        in_app: in_app?,
        whatsapp: whatsapp?,
        waha,
        breaker: BreakerConfig { failures: breaker_failures?, open: breaker_open? },
        provider_timeout: provider_timeout?,
        worker: worker?,
        log: log?,
        retry: retry?,
        retention_days,
        timing: timing?,
        shown: Vec::new(),
    })
}

/// The broker, and the heartbeat of connections to it, in seconds.
fn broker(reader: &mut Reader) -> Option<(BrokerConfig, u16)> {
    let (url, heartbeat) = (reader.get(&table::AMQP_URL), reader.get(&table::AMQP_HEARTBEAT_SECONDS));
    let require_mapping = reader.get(&table::AMQP_REQUIRE_MAPPING);
    let (url, heartbeat) = timing::with_heartbeat(url?, heartbeat?);
    Some((BrokerConfig { url: String::from(url).into(), require_mapping: require_mapping? }, heartbeat))
}

fn http(reader: &mut Reader) -> Option<HttpConfig> {
    let host = reader.get(&table::HOST);
    let port = reader.get(&table::PORT);
    let public_url = reader.get(&table::PUBLIC_URL);
    let workers = reader.get(&table::HTTP_WORKERS);
    let (window, requests) = (reader.get(&table::RATE_LIMIT_WINDOW_MS), reader.get(&table::RATE_LIMIT_MAX_REQUESTS));
    let trusted_proxies = reader.get(&table::TRUSTED_PROXIES).unwrap_or_default();
    let body_bytes = reader.get(&table::BODY_BYTES_IN_FLIGHT);
    let cores = available_parallelism().map_or(1, usize::from);
    let (host, port) = (host?, port?);
    let public_url = public_url.or_else(|| own_url(&host, port));
    let rate = RateConfig { window: window?, requests: requests? };
    let workers = workers.unwrap_or(HTTP_WORKERS_USUAL.min(cores));
    Some(HttpConfig { host, port, public_url: public_url?, workers, rate, trusted_proxies, body_bytes: body_bytes? })
}

/// The URL of a local listener. A listener on every address is reached on the loopback address.
fn own_url(host: &str, port: u16) -> Option<Url> {
    let host = match host.parse() {
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => format!("[{}]", Ipv6Addr::LOCALHOST),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.to_owned(),
    };
    Url::parse(&format!("http://{host}:{port}/")).ok()
}

fn auth(reader: &mut Reader) -> Option<AuthConfig> {
    let jwt_secret = reader.get(&table::JWT_SECRET);
    let access = reader.get(&table::JWT_EXPIRES_IN);
    let refresh = reader.get(&table::JWT_REFRESH_EXPIRES_IN);
    Some(AuthConfig { jwt_secret, jwt_expires_in: access?, jwt_refresh_expires_in: refresh? })
}

fn webhook(reader: &mut Reader) -> Option<WebhookConfig> {
    let backends = reader.get(&table::WEBHOOK_BACKEND);
    let timeout = reader.get(&table::WEBHOOK_TIMEOUT);
    let allow_nets = reader.get(&table::WEBHOOK_ALLOW_NETS).unwrap_or_default();
    let (disable_after, keep_days) =
        (reader.get(&table::WEBHOOK_DISABLE_AFTER_MS), reader.get(&table::WEBHOOK_KEEP_DAYS));
    Some(WebhookConfig {
        backends: backends?,
        timeout: timeout?,
        allow_nets,
        disable_after: disable_after?,
        keep_days: keep_days?,
    })
}

fn worker(reader: &mut Reader) -> Option<WorkerConfig> {
    let channels = reader.get(&table::WORKER_CHANNELS);
    let concurrency = reader.get(&table::WORKER_CONCURRENCY);
    Some(WorkerConfig { channels: channels?, concurrency: concurrency? })
}

#[cfg(test)]
mod tests;
