//! The providers of each channel, built once from the settings.

use std::sync::Arc;

use domain::{Channel, ProviderName, contract::Provider};
use runtime::config::{ByChannel, Config};
use store::Store;

use crate::{
    breakers::Breakers,
    email::{
        sendgrid::Sendgrid,
        ses::Ses,
        smtp::{Smtp, SmtpSetupError},
    },
    in_app::{hints::Hints, inbox::Inbox},
    push::{PushSetupError, apns::Apns, fcm::Fcm, webpush::Webpush},
    sandbox::Sandbox,
    sms::{sns::Sns, twilio::Twilio},
    vendor::SetupError,
    webhook::http::Http,
    whatsapp::waha::Waha,
};

/// Providers in the order in which they are tried.
pub type Providers = Arc<[Arc<dyn Provider>]>;

/// Why the providers could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The settings of the mail server are invalid.
    #[error("failed to set up provider `smtp`")]
    Smtp(#[source] SmtpSetupError),
    /// The HTTP client for webhooks could not be created.
    #[error("failed to set up provider `http`")]
    Http(#[source] reqwest::Error),
    /// The HTTP client for WAHA could not be created.
    #[error("failed to set up provider `waha`")]
    Waha(#[source] reqwest::Error),
    /// A vendor could not be set up.
    #[error("failed to set up provider `{0}`")]
    Vendor(ProviderName, #[source] SetupError),
    /// The settings of a push service are invalid.
    #[error("failed to set up provider `{0}`")]
    Push(ProviderName, #[source] PushSetupError),
}

/// The providers of every channel.
pub struct Registry {
    providers: ByChannel<Providers>,
    breakers: Arc<Breakers>,
}

impl Registry {
    /// Builds the configured providers of the channels that this worker serves. It opens no connection. The in-app provider
    /// sends its hints for open sockets to `hints`.
    pub fn build(config: &Config, store: &Store, hints: &Hints) -> Result<Self, RegistryError> {
        let mut first_error = None;
        let breakers = Arc::new(Breakers::new(store.clone(), config.breaker));
        let providers = ByChannel::make(|channel| {
            let names = if config.worker.channels.contains(&channel) { config.backends(channel) } else { &[] };
            let build = |name: &ProviderName| provider(*name, config, store, &breakers, hints);
            let built: Result<Vec<_>, _> = names.iter().map(build).collect();
            built.map_err(|error| first_error = Some(error)).unwrap_or_default().into()
        });
        first_error.map_or(Ok(Self { providers, breakers }), Err)
    }

    /// The providers of `channel`, in order; empty if the channel is not configured.
    pub fn providers(&self, channel: Channel) -> Providers {
        Arc::clone(self.providers.get(channel))
    }

    /// The breakers that all providers share.
    pub fn breakers(&self) -> Arc<Breakers> {
        Arc::clone(&self.breakers)
    }
}

fn provider(
    name: ProviderName,
    config: &Config,
    store: &Store,
    breakers: &Arc<Breakers>,
    hints: &Hints,
) -> Result<Arc<dyn Provider>, RegistryError> {
    use ProviderName as Name;
    let vendor = |error| RegistryError::Vendor(name, error);
    let push = |error| RegistryError::Push(name, error);
    match name {
        Name::Smtp => Ok(Arc::new(Smtp::new(&config.email).map_err(RegistryError::Smtp)?)),
        Name::Http => {
            let http = Http::new(&config.webhook, config.worker.concurrency).map_err(RegistryError::Http)?;
            Ok(Arc::new(http.with_call_log(store.clone(), &config.webhook)))
        }
        Name::Inbox => Ok(Arc::new(Inbox::start(store.clone(), hints.clone()))),
        Name::Sandbox => Ok(Arc::new(Sandbox)),
        Name::Waha => {
            let breakers = Arc::clone(breakers);
            Ok(Arc::new(Waha::new(config, store.clone(), breakers).map_err(RegistryError::Waha)?))
        }
        Name::Sendgrid => Ok(Arc::new(Sendgrid::new(config).map_err(vendor)?)),
        Name::Ses => Ok(Arc::new(Ses::new(config).map_err(vendor)?)),
        Name::Twilio => Ok(Arc::new(Twilio::new(config).map_err(vendor)?)),
        Name::Sns => Ok(Arc::new(Sns::new(config).map_err(vendor)?)),
        Name::Fcm => Ok(Arc::new(Fcm::new(config, is_only_push(config)).map_err(push)?)),
        Name::Apns => Ok(Arc::new(Apns::new(config, is_only_push(config)).map_err(push)?)),
        Name::Webpush => Ok(Arc::new(Webpush::new(config, is_only_push(config)).map_err(push)?)),
    }
}

/// Whether the push channel has one provider beside the sandbox.
fn is_only_push(config: &Config) -> bool {
    config.push.backends.iter().filter(|name| **name != ProviderName::Sandbox).count() == 1
}

/// The setting that names the providers of a channel.
pub const fn backend_setting(channel: Channel) -> &'static str {
    match channel {
        Channel::Email => "EMAIL_BACKEND",
        Channel::Sms => "SMS_BACKEND",
        Channel::Push => "PUSH_BACKEND",
        Channel::Webhook => "WEBHOOK_BACKEND",
        Channel::InApp => "IN_APP_BACKEND",
        Channel::Whatsapp => "WHATSAPP_BACKEND",
    }
}
