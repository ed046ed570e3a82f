//! How the mail settings fit together.

use std::net::IpAddr;

use secrecy::SecretString;

use super::{kind::TlsWord, reader::Reader, table};
use crate::domain::ProviderName;

/// What sends e-mail, and as whom.
#[derive(Clone, Debug)]
pub struct EmailConfig {
    /// The backends, first one first; empty where e-mail is not set up.
    pub backends: Vec<ProviderName>,
    /// The mail server, where `SMTP_HOST` is set; always there when `backends` names smtp.
    pub smtp: Option<SmtpConfig>,
    /// The sender, bare or as `Name <address>`; always there when `backends` names smtp.
    pub from: Option<String>,
}

/// A mail server.
#[derive(Clone, Debug)]
pub struct SmtpConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The user to log in as; nobody logs in without one.
    pub user: Option<String>,
    /// That user's password; there exactly when `user` is.
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
    let backends = if asked { named? } else { by_host() };
    if backends.contains(&ProviderName::Smtp) {
        check_smtp(reader);
    }
    Some(EmailConfig { backends, smtp, from })
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

/// What the two settings ask for; they have different words for it, but must mean the same.
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

/// In nodemailer `secure: false` still upgrades; on the submission port, where plain text is not welcome, so do we.
fn nodemailer_tls(secure: bool, port: Option<u16>) -> SmtpTls {
    match (secure, port.unwrap_or(SUBMISSION_PORT)) {
        (true, _) => SmtpTls::Tls,
        (false, SUBMISSION_PORT) => SmtpTls::StartTls,
        (false, _) => SmtpTls::None,
    }
}

/// What the port is for; and a password never leaves the machine in plain text unless that was asked for.
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
    if !reader.is_set(&table::EMAIL_FROM) {
        reader.missing(&table::EMAIL_FROM, "is missing, and e-mail goes out by smtp");
    }
    match (reader.is_set(&table::SMTP_USER), reader.is_set(&table::SMTP_PASSWORD)) {
        (true, false) => reader.missing(&table::SMTP_PASSWORD, "is missing, and SMTP_USER is set"),
        (false, true) => reader.missing(&table::SMTP_USER, "is missing, and SMTP_PASSWORD is set"),
        _ => {}
    }
}
