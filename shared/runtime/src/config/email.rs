//! The rules between the mail settings.

use std::net::IpAddr;

use domain::ProviderName;
use secrecy::SecretString;
use url::Url;

use super::{aws, kind::TlsWord, reader::Reader, table};

/// The backends and the sender of e-mail.
#[derive(Clone, Debug)]
pub struct EmailConfig {
    /// The backends in order; empty if e-mail is not configured.
    pub backends: Vec<ProviderName>,
    /// The mail server, if `SMTP_HOST` is set; it is always set if `backends` names smtp.
    pub smtp: Option<SmtpConfig>,
    /// The sender, bare or as `Name <address>`; it is always set if `backends` names more than sandbox.
    pub from: Option<String>,
    /// The DKIM key for mails over SMTP, if `DKIM_DOMAIN` is set.
    pub dkim: Option<DkimConfig>,
    /// SendGrid.
    pub sendgrid: SendgridConfig,
    /// The configuration set named in mails through Amazon SES.
    pub ses_configuration_set: Option<String>,
}

/// SendGrid.
#[derive(Clone, Debug)]
pub struct SendgridConfig {
    /// Its API key; it is always set if `EMAIL_BACKEND` names sendgrid.
    pub api_key: Option<SecretString>,
    /// Where it is; ends in a slash.
    pub base_url: Url,
}

/// The DKIM key that signs mails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DkimConfig {
    /// The domain that answers for them.
    pub domain: String,
    /// The name of the key in DNS.
    pub selector: String,
    /// The file of the private key.
    pub private_key_path: String,
}

/// A mail server.
#[derive(Clone, Debug)]
pub struct SmtpConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The user to log in as; without a user there is no login.
    pub user: Option<String>,
    /// The user's password; set exactly if `user` is.
    pub password: Option<SecretString>,
    /// Encryption.
    pub tls: SmtpTls,
}

/// How a connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// Not at all.
    None,
    /// Upgraded by STARTTLS, or given up.
    StartTls,
    /// From the first byte.
    Tls,
}

const SUBMISSION_PORT: u16 = 587;
const IMPLICIT_TLS_PORT: u16 = 465;

pub(super) fn read(reader: &mut Reader) -> Option<EmailConfig> {
    let named = reader.get(&table::EMAIL_BACKEND);
    let smtp = smtp(reader);
    let from = reader.get(&table::EMAIL_FROM);
    let asked = reader.is_set(&table::EMAIL_BACKEND);
    let by_host = || if reader.is_set(&table::SMTP_HOST) { vec![ProviderName::Smtp] } else { Vec::new() };
    let by_host = by_host();
    let dkim = dkim(reader);
    let (api_key, base_url) = (reader.get(&table::SENDGRID_API_KEY), reader.get(&table::SENDGRID_BASE_URL));
    let ses_configuration_set = reader.get(&table::SES_CONFIGURATION_SET);
    let backends = if asked { named? } else { by_host };
    for backend in &backends {
        match backend {
            ProviderName::Smtp => check_smtp(reader),
            ProviderName::Sendgrid => check_sendgrid(reader),
            ProviderName::Ses => {
                check_from(reader, "ses");
                aws::check(reader, "EMAIL_BACKEND names ses");
            }
            _ => {}
        }
    }
    let sendgrid = SendgridConfig { api_key, base_url: base_url? };
    Some(EmailConfig { backends, smtp, from, dkim, sendgrid, ses_configuration_set })
}

fn dkim(reader: &mut Reader) -> Option<DkimConfig> {
    let domain = reader.get(&table::DKIM_DOMAIN);
    let selector = reader.get(&table::DKIM_SELECTOR);
    let private_key_path = reader.get(&table::DKIM_PRIVATE_KEY_PATH);
    let settings = [&table::DKIM_DOMAIN, &table::DKIM_SELECTOR, &table::DKIM_PRIVATE_KEY_PATH];
    if settings.iter().any(|setting| reader.is_set(setting)) {
        for setting in settings {
            if !reader.is_set(setting) {
                reader.missing(setting, "is missing, and DKIM needs its three settings");
            }
        }
    }
    Some(DkimConfig { domain: domain?, selector: selector?, private_key_path: private_key_path? })
}

fn smtp(reader: &mut Reader) -> Option<SmtpConfig> {
    let host = reader.get(&table::SMTP_HOST);
    let port = reader.get(&table::SMTP_PORT);
    let user = reader.get(&table::SMTP_USER);
    let password = reader.get(&table::SMTP_PASSWORD);
    let word = reader.get(&table::SMTP_USE_TLS);
    let secure = reader.get(&table::EMAIL_SECURE);
    let host = host?;
    let asked = asked_tls(reader, word, secure, port);
    let port = port.unwrap_or(if asked == Some(SmtpTls::Tls) { IMPLICIT_TLS_PORT } else { SUBMISSION_PORT });
    let tls = asked.unwrap_or_else(|| usual_tls(port, password.is_some() && !is_loopback(&host)));
    Some(SmtpConfig { host, port, user, password, tls })
}

/// The encryption that the two settings request. They use different words, but must mean the same.
fn asked_tls(reader: &mut Reader, word: Option<TlsWord>, secure: Option<bool>, port: Option<u16>) -> Option<SmtpTls> {
    let word = word.map(|word| named_tls(word, port));
    let secure = secure.map(|secure| nodemailer_tls(secure, port));
    if word.is_some() && secure.is_some() && word != secure {
        reader.disagree(table::SMTP_USE_TLS.spec.name, table::EMAIL_SECURE.spec.name);
    }
    word.or(secure)
}

fn named_tls(word: TlsWord, port: Option<u16>) -> SmtpTls {
    match word {
        TlsWord::Off => SmtpTls::None,
        TlsWord::StartTls => SmtpTls::StartTls,
        TlsWord::On if port != Some(IMPLICIT_TLS_PORT) => SmtpTls::StartTls,
        TlsWord::On | TlsWord::Tls => SmtpTls::Tls,
    }
}

/// nodemailer upgrades to TLS even with `secure: false`. So do we on the submission port, where plain text is not
/// usual.
fn nodemailer_tls(secure: bool, port: Option<u16>) -> SmtpTls {
    match (secure, port.unwrap_or(SUBMISSION_PORT)) {
        (true, _) => SmtpTls::Tls,
        (false, SUBMISSION_PORT) => SmtpTls::StartTls,
        (false, _) => SmtpTls::None,
    }
}

/// The usual encryption of the port. A password never leaves the machine in plain text unless that was requested.
fn usual_tls(port: u16, password_leaves: bool) -> SmtpTls {
    match port {
        IMPLICIT_TLS_PORT => SmtpTls::Tls,
        SUBMISSION_PORT => SmtpTls::StartTls,
        _ if password_leaves => SmtpTls::StartTls,
        _ => SmtpTls::None,
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn check_smtp(reader: &mut Reader) {
    if !reader.is_set(&table::SMTP_HOST) {
        reader.missing(&table::SMTP_HOST, "is missing, and EMAIL_BACKEND names smtp");
    }
    check_from(reader, "smtp");
    match (reader.is_set(&table::SMTP_USER), reader.is_set(&table::SMTP_PASSWORD)) {
        (true, false) => reader.missing(&table::SMTP_PASSWORD, "is missing, and SMTP_USER is set"),
        (false, true) => reader.missing(&table::SMTP_USER, "is missing, and SMTP_PASSWORD is set"),
        _ => {}
    }
}

fn check_sendgrid(reader: &mut Reader) {
    if !reader.is_set(&table::SENDGRID_API_KEY) {
        reader.missing(&table::SENDGRID_API_KEY, "is missing, and EMAIL_BACKEND names sendgrid");
    }
    check_from(reader, "sendgrid");
}

fn check_from(reader: &mut Reader, backend: &str) {
    if !reader.is_set(&table::EMAIL_FROM) && !reader.is_missing(&table::EMAIL_FROM) {
        reader.missing(&table::EMAIL_FROM, &format!("is missing, and e-mail goes out by {backend}"));
    }
}
