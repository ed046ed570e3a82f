//! Connections to one mail server, kept for the next mail.
//!
//! The mail library's pool also takes back a connection whose user was cancelled by a timeout. The next mail then reads the
//! replies to the previous one, and may count as sent although it was not. Here a connection is reused only from a known
//! state; otherwise it is dropped, which closes it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{Fault, Outcome};
use lettre::{
    Address,
    transport::smtp::{
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Mail as MailFrom, Rset},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
    },
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    compose::Mail,
    smtp_reply::{Step, refusal},
};

/// How long an idle connection is kept. Many servers close one after less than a minute.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// The longest time to test an idle connection before a new one is opened.
const REUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a mail was not accepted.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection; nothing was sent.
    Unreachable(&'static str, &'static str),
    /// The connection cannot do what the settings or the mail ask for.
    Unable(Outcome),
    /// The server refused a command, or the connection broke.
    Broken(Step, lettre::transport::smtp::Error),
}

impl Failure {
    /// True if the server refused a command and waits for the next one.
    pub(super) fn is_reusable(&self) -> bool {
        let Self::Broken(_, error) = self else { return matches!(self, Self::Unable(_)) };
        error.status().is_some_and(|code| u16::from(code) != 421)
    }

    /// Its meaning for the delivery.
    pub(super) fn into_outcome(self) -> Outcome {
        match self {
            Self::Unreachable(code, detail) => Outcome::Transient(Fault::new(code, detail), None),
            Self::Unable(outcome) => outcome,
            Self::Broken(step, error) => step_outcome(step, &error),
        }
    }
}

fn step_outcome(step: Step, error: &lettre::transport::smtp::Error) -> Outcome {
    let text = || std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    if let Some(code) = error.status() {
        return refusal(step, code.into(), &text());
    }
    match step {
        Step::Content => Outcome::Unknown(Fault::new("reset", "the connection broke after the mail was handed over")),
        Step::Login if error.is_client() => {
            Outcome::Misconfigured(Fault::new("login", "the mail server offers no way to log in that is known here"))
        }
        Step::Connect if error.is_client() => {
            Outcome::Misconfigured(Fault::new("starttls", "the mail server offers no STARTTLS; see SMTP_USE_TLS"))
        }
        Step::Connect => {
            Outcome::Transient(Fault::new("connect", "no conversation with the mail server came about"), None)
        }
        Step::Login | Step::Sender | Step::Recipient | Step::Data => {
            Outcome::Transient(Fault::new("reset", "the connection broke before the mail was handed over"), None)
        }
    }
}

/// How to reach the server.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) hello: ClientId,
    pub(super) encryption: Encryption,
    pub(super) credentials: Option<Credentials>,
}

/// How the connection is encrypted.
pub(super) enum Encryption {
    /// Not at all.
    None,
    /// Upgraded before anything is said.
    StartTls(TlsParameters),
    /// From the first byte.
    Tls(TlsParameters),
}

impl Server {
    /// A connection, encrypted and logged in as the settings say.
    async fn connect(&self) -> Result<AsyncSmtpConnection, Failure> {
        let mut connection = self.open().await?;
        if let Encryption::StartTls(tls) = &self.encryption {
            connection
                .starttls(tls.clone(), &self.hello)
                .await
                .map_err(|error| Failure::Broken(Step::Connect, error))?;
        }
        if let Some(credentials) = &self.credentials {
            connection
                .auth(DEFAULT_MECHANISMS, credentials)
                .await
                .map_err(|error| Failure::Broken(Step::Login, error))?;
        }
        Ok(connection)
    }

    async fn open(&self) -> Result<AsyncSmtpConnection, Failure> {
        let opened = if let Encryption::Tls(tls) = &self.encryption {
            AsyncSmtpConnection::connect_tokio1((&*self.host, self.port), None, &self.hello, Some(tls.clone()), None)
                .await
        } else {
            AsyncSmtpConnection::connect_with_transport(Box::new(self.dial().await?), &self.hello).await
        };
        opened.map_err(|error| Failure::Broken(Step::Connect, error))
    }

    /// Opens the connection without Nagle's algorithm. The library leaves it on, and the final dot, a separate write, then waits for
    /// a delayed ACK.
    async fn dial(&self) -> Result<TcpStream, Failure> {
        let unreachable = |_| Failure::Unreachable("connect", "the mail server could not be connected to");
        let addresses = tokio::net::lookup_host((&*self.host, self.port));
        let addresses: Vec<_> = addresses
            .await
            .map_err(|_| Failure::Unreachable("dns", "the mail server's name could not be resolved"))?
            .collect();
        let stream = TcpStream::connect(&*addresses).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(stream)
    }
}

/// The server and the connections that are free.
pub(super) struct Connections {
    server: Server,
    idle: Mutex<Vec<IdleConnection>>,
}

struct IdleConnection {
    connection: AsyncSmtpConnection,
    since: Instant,
    /// The last mail was refused, so the next one starts with RSET.
    needs_reset: bool,
}

impl Connections {
    pub(super) fn new(server: Server) -> Self {
        Self { server, idle: Mutex::default() }
    }

    /// Returns a connection on which MAIL FROM was accepted. An idle connection that is dead is replaced.
    pub(super) async fn start_mail(&self, mail: &Mail) -> Result<AsyncSmtpConnection, Failure> {
        if let Some(idle) = self.take()
            && let Ok(Ok(connection)) = timeout(REUSE_TIMEOUT, reuse(idle, mail)).await
        {
            return Ok(connection);
        }
        let mut connection = self.server.connect().await?;
        match mail_from(&mut connection, mail).await {
            Ok(()) => Ok(connection),
            Err(failure) => {
                self.release(connection, Some(&failure));
                Err(failure)
            }
        }
    }

    /// Connects, logs in and quits.
    pub(super) async fn check_login(&self) -> Result<(), Failure> {
        let mut connection = self.server.connect().await?;
        // The reply to QUIT does not matter: the login succeeded.
        let _ = connection.quit().await;
        Ok(())
    }

    /// Keeps a connection for the next mail if it can be reused.
    pub(super) fn release(&self, connection: AsyncSmtpConnection, failure: Option<&Failure>) {
        if failure.is_none_or(Failure::is_reusable) {
            self.lock().push(IdleConnection { connection, since: Instant::now(), needs_reset: failure.is_some() });
        }
    }

    /// Takes the connection that was used last, so that surplus ones expire.
    fn take(&self) -> Option<IdleConnection> {
        let mut idle = self.lock();
        idle.retain(|idle| idle.since.elapsed() < IDLE_MAX);
        idle.pop()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn reuse(idle: IdleConnection, mail: &Mail) -> Result<AsyncSmtpConnection, Failure> {
    let mut connection = idle.connection;
    if idle.needs_reset {
        connection.command(Rset).await.map_err(|error| Failure::Broken(Step::Sender, error))?;
    }
    mail_from(&mut connection, mail).await?;
    Ok(connection)
}

async fn mail_from(connection: &mut AsyncSmtpConnection, mail: &Mail) -> Result<(), Failure> {
    let can = |extension| connection.server_info().supports_feature(extension);
    let mut parameters = Vec::new();
    let ascii = |address: &Address| AsRef::<str>::as_ref(address).is_ascii();
    if !ascii(&mail.recipient) || !ascii(&mail.sender) {
        if !can(Extension::SmtpUtfEight) {
            let detail = "the mail server cannot handle an address beyond ASCII";
            return Err(Failure::Unable(Outcome::Rejected(Fault::new("smtputf8", detail))));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    if !mail.bytes.is_ascii() && can(Extension::EightBitMime) {
        parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    let command = MailFrom::new(Some(mail.sender.clone()), parameters);
    connection.command(command).await.map_err(|error| Failure::Broken(Step::Sender, error))?;
    Ok(())
}
