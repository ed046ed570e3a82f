//! E-mail through an SMTP server.
//!
//! This module sends each SMTP command itself instead of using the mail library's transport, because only the step at which a
//! mail failed tells whether it may have been sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use domain::{
    Fault, Outcome, ProviderName, Receipt, clock,
    contract::{
        Order, Provider,
        provider::{Checking, Sending},
    },
};
use lettre::{
    message::Mailbox,
    transport::smtp::{
        authentication::Credentials,
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Data, Rcpt},
        extension::ClientId,
        response::Response,
    },
};
use runtime::config::{EmailConfig, SmtpConfig, SmtpTls};
use secrecy::ExposeSecret;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    compose::{self, ComposeError, Mail},
    dkim::{DkimError, Signer},
    smtp_connection::{Connections, Encryption, Failure, Server},
    smtp_reply::{Step, queue_id},
};

/// Concurrent connections. Servers limit them per client, often to 20. A mail waits for one within its timeout.
const CONNECTIONS_MAX: usize = 16;

/// How long a check of the settings may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the settings do not make a mail server.
#[derive(Debug, thiserror::Error)]
pub enum SmtpSetupError {
    /// SMTP is named as a backend without a server or a sender.
    #[error("SMTP_HOST and EMAIL_FROM must be set")]
    Incomplete,
    /// The sender is no address.
    #[error("EMAIL_FROM must be an e-mail address, bare or as `Name <address>`")]
    From(#[source] lettre::address::AddressError),
    /// Mails cannot be signed.
    #[error("failed to prepare DKIM")]
    Dkim(#[source] DkimError),
    /// TLS could not be prepared.
    #[error("failed to prepare TLS for SMTP_HOST")]
    Tls(#[source] lettre::transport::smtp::Error),
}

/// The mail server of the settings.
pub struct Smtp {
    from: Mailbox,
    dkim: Option<Arc<Signer>>,
    connections: Connections,
    permits: Semaphore,
    breaker_key: Arc<str>,
}

impl Smtp {
    /// A mail server that is dialled with the first mail.
    pub fn new(config: &EmailConfig) -> Result<Self, SmtpSetupError> {
        let (Some(smtp), Some(from)) = (&config.smtp, &config.from) else { return Err(SmtpSetupError::Incomplete) };
        let from = from.parse().map_err(SmtpSetupError::From)?;
        let dkim = config.dkim.as_ref().map(Signer::load).transpose().map_err(SmtpSetupError::Dkim)?;
        Ok(Self {
            from,
            dkim: dkim.map(Arc::new),
            connections: Connections::new(server(smtp)?),
            permits: Semaphore::new(CONNECTIONS_MAX),
            breaker_key: format!("smtp/{}:{}", smtp.host, smtp.port).into(),
        })
    }

    async fn mail(&self, order: &Order) -> Outcome {
        let (from, dkim) = (self.from.clone(), self.dkim.clone());
        let mail = match compose::compose_blocking(order, move |order| write(&from, dkim.as_deref(), order)).await {
            Ok(mail) => mail,
            Err(error) => return error.into_outcome(),
        };
        let content_sent = AtomicBool::new(false);
        match timeout(order.timeout, self.transmit(order, &mail, &content_sent)).await {
            Ok(Ok(response)) => sent(&response),
            Ok(Err(failure)) => failure.into_outcome(),
            Err(_) => timed_out(content_sent.load(Ordering::Relaxed)),
        }
    }

    /// Connects, logs in and quits.
    async fn check_login(&self) -> Result<String, Fault> {
        match timeout(CHECK_TIMEOUT, self.connections.check_login()).await {
            Ok(Ok(())) => Ok("the mail server takes the credentials".to_owned()),
            Ok(Err(failure)) => Err(failure.into_outcome().fault().cloned().unwrap_or_default()),
            Err(_) => Err(Fault::new("timeout", "the mail server did not answer in time")),
        }
    }

    /// Waits for a free connection, for at most half of the timeout.
    async fn acquire(&self, order: &Order) -> Result<Option<SemaphorePermit<'_>>, Failure> {
        let busy = || Outcome::Throttled(Fault::new("busy", "every connection to the mail server is in use"), None);
        timeout(order.timeout / 2, self.permits.acquire()).await.map(Result::ok).map_err(|_| Failure::Unable(busy()))
    }

    /// Sets `content_sent` right before the content goes out. Being dropped half-way closes the connection.
    async fn transmit(&self, order: &Order, mail: &Mail, content_sent: &AtomicBool) -> Result<Response, Failure> {
        let _permit = self.acquire(order).await?;
        let mut connection = self.connections.start_mail(mail).await?;
        let result = send_mail(&mut connection, mail, content_sent).await;
        self.connections.release(connection, result.as_ref().err());
        result
    }
}

impl Provider for Smtp {
    fn name(&self) -> ProviderName {
        ProviderName::Smtp
    }

    fn breaker_key(&self, _: &Order) -> Option<Arc<str>> {
        Some(Arc::clone(&self.breaker_key))
    }

    /// A reply code comes from a working server: it defers this mail or this recipient only.
    fn is_down(&self, failure: &Outcome) -> bool {
        let code = failure.fault().and_then(|fault| fault.code.as_deref());
        code.is_none_or(|code| code.parse::<u16>().is_err())
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(self.check_login())
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(self.mail(order))
    }
}

fn write(from: &Mailbox, dkim: Option<&Signer>, order: &Order) -> Result<Mail, ComposeError> {
    let mut mail = compose::compose(from, order)?;
    if let Some(dkim) = dkim {
        mail.bytes = dkim.sign(&mail.bytes, clock::now()).ok_or(ComposeError::Signature)?;
    }
    Ok(mail)
}

fn server(config: &SmtpConfig) -> Result<Server, SmtpSetupError> {
    let tls = || TlsParameters::new(config.host.clone()).map_err(SmtpSetupError::Tls);
    let encryption = match config.tls {
        SmtpTls::None => Encryption::None,
        SmtpTls::StartTls => Encryption::StartTls(tls()?),
        SmtpTls::Tls => Encryption::Tls(tls()?),
    };
    let login = config.user.as_ref().zip(config.password.as_ref());
    let credentials = login.map(|(user, password)| Credentials::new(user.clone(), password.expose_secret().to_owned()));
    Ok(Server { host: config.host.clone(), port: config.port, hello: ClientId::default(), encryption, credentials })
}

async fn send_mail(
    connection: &mut AsyncSmtpConnection,
    mail: &Mail,
    content_sent: &AtomicBool,
) -> Result<Response, Failure> {
    let broken = |step| move |error| Failure::Broken(step, error);
    connection.command(Rcpt::new(mail.recipient.clone(), Vec::new())).await.map_err(broken(Step::Recipient))?;
    connection.command(Data).await.map_err(broken(Step::Data))?;
    content_sent.store(true, Ordering::Relaxed);
    connection.message(&mail.bytes).await.map_err(broken(Step::Content))
}

fn sent(response: &Response) -> Outcome {
    let provider_ref = response.message().find_map(queue_id);
    Outcome::Sent(Receipt { provider_ref, code: Some(response.code().to_string()), ..Receipt::default() })
}

fn timed_out(content_sent: bool) -> Outcome {
    match content_sent {
        true => Outcome::Unknown(Fault::new("timeout", "the mail server did not confirm the mail in time")),
        false => Outcome::Transient(
            Fault::new("timeout", "the mail server did not get as far as taking the mail in time"),
            None,
        ),
    }
}

#[cfg(test)]
mod tests;
