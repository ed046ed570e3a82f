//! Connections to one mail server, kept for the next mail.
//!
//! The mail library has a pool of its own, but one that puts a connection back even when its user was cut short by a
//! timeout. The next mail then reads the replies to the one before it, and a mail counts as sent that never was. Here a
//! connection goes back only from a known place in the conversation; in any other case it is dropped, which closes it.

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

/// Servers close idle connections after a minute or more, many after less.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// An old connection that does not answer at once is not worth waiting for.
const REUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a mail did not get through.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection; nothing was sent.
    Unreachable(&'static str, &'static str),
    /// The connection cannot do what the settings or the mail ask for.
    Unable(Outcome),
    /// The server said no, or the conversation broke off.
    Broken(Step, lettre::transport::smtp::Error),
}

impl Failure {
    /// Whether the server said no and waits for the next command.
    pub(super) fn is_reusable(&self) -> bool {
        let Self::Broken(_, error) = self else { return matches!(self, Self::Unable(_)) };
        error.status().is_some_and(|code| u16::from(code) != 421)
    }

    /// What it means for the delivery.
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

    /// The library would leave Nagle's algorithm on, and the final dot, a write of its own, waiting for a delayed ACK.
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
    /// Whether the last mail was refused half-way, so that the connection needs a RSET.
    needs_reset: bool,
}

impl Connections {
    pub(super) fn new(server: Server) -> Self {
        Self { server, idle: Mutex::default() }
    }

    /// A connection on which the mail has been announced. A kept one that turns out to be dead is replaced.
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

    /// Connects, logs in and leaves.
    pub(super) async fn check_login(&self) -> Result<(), Failure> {
        let mut connection = self.server.connect().await?;
        // Whatever it says to a goodbye, it has let us in.
        let _ = connection.quit().await;
        Ok(())
    }

    /// Keeps a connection for the next mail, if the way its last one ended allows.
    pub(super) fn release(&self, connection: AsyncSmtpConnection, failure: Option<&Failure>) {
        if failure.is_none_or(Failure::is_reusable) {
            self.lock().push(IdleConnection { connection, since: Instant::now(), needs_reset: failure.is_some() });
        }
    }

    /// The connection used last: what is too many for the load then grows old and is dropped.
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
