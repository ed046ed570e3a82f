//! The environment of the services: everything inherited, plus what this run decides.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use servers::environment;

use super::Sinks;
use super::backing::Backing;

const PORT_DEFAULT: u16 = 8080;

/// Where the API listens.
pub(super) struct ApiAddress {
    pub(super) host: String,
    pub(super) port: u16,
}

impl ApiAddress {
    /// `--port`, else `PORT`, else 8080; on `HOST`, else the loopback interface.
    pub(super) fn choose(port: Option<u16>) -> Result<Self> {
        let port = match (port, environment::get("PORT")) {
            (Some(port), _) => port,
            (None, Some(text)) => text.parse().with_context(|| format!("PORT is no port number: {text}"))?,
            (None, None) => PORT_DEFAULT,
        };
        Ok(Self { host: environment::get("HOST").unwrap_or_else(|| "127.0.0.1".to_owned()), port })
    }

    /// The base URL for a client on this machine.
    pub(super) fn url(&self) -> String {
        let host = match self.host.as_str() {
            "0.0.0.0" | "::" => "127.0.0.1",
            host => host,
        };
        format!("http://{host}:{}", self.port)
    }
}

/// Every name that says how mail is sent. Whoever sets one of them wants their own way of sending.
const MAIL_SETTINGS: [&str; 9] = [
    "EMAIL_BACKEND",
    "SMTP_HOST",
    "SMTP_PORT",
    "SMTP_USER",
    "SMTP_USE_TLS",
    "EMAIL_HOST",
    "EMAIL_PORT",
    "EMAIL_SECURE",
    "EMAIL_USER",
];

/// The environment of the services, beyond the inherited one.
pub(super) struct Settings {
    pub(super) values: BTreeMap<&'static str, String>,
    pub(super) api_url: String,
}

impl Settings {
    /// The servers and the address, which are decided by now, and receivers for whatever the person has
    /// not set up.
    pub(super) fn new(backing: &Backing, address: &ApiAddress, jwt_secret: String, sinks: &Sinks) -> Self {
        let mut values = BTreeMap::from([
            ("DATABASE_URL", backing.database_url.clone()),
            ("AMQP_URL", backing.amqp_url.clone()),
            ("JWT_SECRET", jwt_secret),
            ("HOST", address.host.clone()),
            ("PORT", address.port.to_string()),
        ]);
        if environment::first_set(&MAIL_SETTINGS).is_none() {
            values.extend(mail_to_sink(sinks));
        }
        if environment::first_set(&["EMAIL_FROM", "FROM_EMAIL"]).is_none() {
            values.insert("EMAIL_FROM", "demo@posthaste.localhost".to_owned());
        }
        for name in ["WEBHOOK_ALLOW_NETS", "MEDIA_ALLOW_NETS"] {
            if environment::get(name).is_none() {
                values.insert(name, "127.0.0.0/8,::1/128".to_owned());
            }
        }
        Self { values, api_url: address.url() }
    }
}

fn mail_to_sink(sinks: &Sinks) -> [(&'static str, String); 4] {
    let address = sinks.smtp.address();
    [
        ("EMAIL_BACKEND", "smtp".to_owned()),
        ("SMTP_HOST", address.ip().to_string()),
        ("SMTP_PORT", address.port().to_string()),
        ("SMTP_USE_TLS", "false".to_owned()),
    ]
}
