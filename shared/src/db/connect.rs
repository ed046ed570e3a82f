//! How a connection is made: encrypted as the URL says, set up, and bound to the services' role.

use std::{
    convert::Infallible,
    error::Error,
    fs, io,
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use diesel::{ConnectionError, ConnectionResult, sql_types::Bool};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, pooled_connection::deadpool::PoolError};
use futures_util::{FutureExt, future::BoxFuture};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::UnixStream,
};
use tokio_postgres::{
    Config, NoTls, Socket,
    config::{Host, SslMode as Negotiated, SslNegotiation},
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{DbError, sqlstate::Coded, statement};
use crate::config::{PostgresUrl, RootCert, SslMode};

const POSTGRES_PORT: u16 = 5432;
/// Asks the server to go on encrypted: a length of 8 and the code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The server's answer if it will.
const SSL_OFFERED: u8 = b'S';

/// What every connection is set to.
///
/// * Generic plans: the hot statements are the same text for every batch, and planning one over all partitions costs
///   more than running it.
/// * No sequential scans, hash or merge joins: a plan cached while a table was still empty must not survive into the
///   hour when it has ten million rows. All our joins are look-ups by key.
/// * Timeouts: a statement that hangs must not hold its locks; nothing may sit idle inside a transaction.
const SESSION_SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET jit = off; \
    SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '10s'; \
    SET timezone = 'UTC'; SET application_name = 'posthaste'";

/// From here on row-level security binds the connection, even that of a superuser. It begins with the engine's view, every
/// tenant's rows; what is done for one tenant narrows it, see [`super::scope`].
const ROLE_SETTINGS: &str = "SET posthaste.tenant = '*'; \
    SELECT set_config('role', rolname, false) FROM pg_roles \
    WHERE rolname = 'posthaste_services' AND pg_has_role(session_user, oid, 'MEMBER')";

/// A login that may not act as the role must not go on as itself. Before the schema is there, there is no role either.
const IS_BOUND: &str = "SELECT current_user = 'posthaste_services' OR to_regprocedure('secure_tables()') IS NULL";

/// The login may not act as the services' role.
#[derive(Debug, thiserror::Error)]
#[error("the database login may not act as the role posthaste_services, which keeps tenants apart")]
struct RoleMissing;

/// A connection for the pool: set up, with `more_settings` besides, and bound to the role.
pub(super) async fn connect(url: &str, more_settings: &str) -> ConnectionResult<AsyncPgConnection> {
    let mut conn = dial(url).await?;
    for settings in [SESSION_SETTINGS, more_settings, ROLE_SETTINGS] {
        conn.batch_execute(settings).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    }
    let is_bound: bool = RunQueryDsl::get_result(statement::<Bool>(IS_BOUND), &mut conn)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    if is_bound { Ok(conn) } else { Err(role_missing()) }
}

fn role_missing() -> ConnectionError {
    ConnectionError::CouldntSetupConfiguration(diesel::result::Error::QueryBuilderError(Box::new(RoleMissing)))
}

/// Whether no connection could be had because the login may not act as the services' role.
pub(super) fn is_role_missing(error: &DbError) -> bool {
    use diesel::result::Error::QueryBuilderError;
    use diesel_async::pooled_connection::PoolError::ConnectionError as Failed;
    let cause = error.source().and_then(|cause| cause.downcast_ref::<PoolError>());
    let Some(PoolError::Backend(Failed(ConnectionError::CouldntSetupConfiguration(QueryBuilderError(cause))))) = cause
    else {
        return false;
    };
    cause.is::<RoleMissing>()
}

/// A connection as the server gives it, encrypted as the URL says, whose errors carry their code.
pub(super) async fn dial(url: &str) -> ConnectionResult<AsyncPgConnection> {
    let mut target = PostgresUrl::parse(url).map_err(|error| failed(&error))?;
    let config = &mut target.config;
    if let [Host::Unix(directory)] = config.get_hosts() {
        return dial_locally(config, directory).await;
    }
    if config.get_hosts().is_empty() {
        // TLS wants the server to have a name.
        for address in config.get_hostaddrs().to_vec() {
            config.host(address.to_string());
        }
    }
    // tokio-postgres hands its socket over in one place only, where TLS would begin.
    config.ssl_mode(Negotiated::Require).ssl_negotiation(SslNegotiation::Direct);
    let answer = config.connect(Connector::of(target.mode, target.roots.as_ref())?).await;
    let (client, connection) = match answer {
        // The server offers encryption of a kind that is not known here. `prefer` does without, as libpq does.
        Err(error) if target.mode == SslMode::Prefer && is_of_tls(&error) => {
            config.connect(Connector::of(SslMode::Disable, None)?).await
        }
        answer => answer,
    }
    .map_err(|error| failed(&error))?;
    AsyncPgConnection::try_from_client_and_connection(client, connection).await
}

/// Through a socket of this machine, which needs no encryption.
async fn dial_locally(config: &Config, directory: &Path) -> ConnectionResult<AsyncPgConnection> {
    let port = config.get_ports().first().copied().unwrap_or(POSTGRES_PORT);
    let socket =
        UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await.map_err(|error| failed(&error))?;
    let (client, connection) = config.connect_raw(Coded::new(socket), NoTls).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    AsyncPgConnection::try_from(client).await
}

/// The whole chain in one line: `ConnectionError` has no place for a cause.
fn failed(error: &dyn Error) -> ConnectionError {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    ConnectionError::BadConnection(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}

fn is_of_tls(error: &tokio_postgres::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    cause.is_some_and(|cause| cause.is::<rustls::Error>())
}

/// Encrypts a connection or not, and has its errors carry their code.
struct Connector {
    tls: Option<MakeRustlsConnect>,
    is_required: bool,
}

impl Connector {
    fn of(mode: SslMode, roots: Option<&RootCert>) -> ConnectionResult<Self> {
        let tls = match mode {
            SslMode::Disable => None,
            _ => Some(MakeRustlsConnect::new(client_config(roots, mode).map_err(|error| failed(&*error))?)),
        };
        Ok(Self { tls, is_required: mode != SslMode::Prefer })
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Coded<Wire>;
    type TlsConnect = Handshake;
    type Error = Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Infallible> {
        let tls = self.tls.as_mut().map(|tls| MakeTlsConnect::<Socket>::make_tls_connect(tls, host)).transpose()?;
        Ok(Handshake { tls, is_required: self.is_required })
    }
}

/// The beginning of one connection.
struct Handshake {
    tls: Option<<MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect>,
    is_required: bool,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Coded<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Coded<Wire>>>;

    fn connect(self, socket: Socket) -> Self::Future {
        async move { self.shake(socket).await.map(Coded::new) }.boxed()
    }
}

impl Handshake {
    async fn shake(self, mut socket: Socket) -> io::Result<Wire> {
        let Some(tls) = self.tls else { return Ok(Wire::Plain(socket)) };
        socket.write_all(&SSL_REQUEST).await?;
        match (socket.read_u8().await?, self.is_required) {
            (SSL_OFFERED, _) => Ok(Wire::Encrypted(Box::new(tls.connect(socket).await?))),
            (_, false) => Ok(Wire::Plain(socket)),
            (_, true) => Err(io::Error::other("the server does not support TLS")),
        }
    }
}

/// What carries a connection.
enum Wire {
    Plain(Socket),
    Encrypted(Box<<MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Self::Plain(_) => ChannelBinding::none(),
            Self::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

fn client_config(roots: Option<&RootCert>, mode: SslMode) -> Result<ClientConfig, BoxError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = roots.map(trusted).transpose()?;
    let verifier = Verifier { roots, checks_name: mode == SslMode::VerifyFull, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // `sslnegotiation=direct` asks for it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn trusted(roots: &RootCert) -> Result<Arc<Trusted>, BoxError> {
    match roots {
        RootCert::File(path) => Ok(Arc::new(Trusted::read(path)?)),
        RootCert::System => Trusted::system(),
    }
}

/// Certificates that may vouch for a server.
#[derive(Debug)]
struct Trusted {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// The file is read for each connection, so that a renewed one holds without a restart.
    fn read(path: &Path) -> Result<Self, BoxError> {
        let bytes = fs::read(path).map_err(|error| format!("failed to read sslrootcert: {error}"))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>()?;
        if certificates.is_empty() {
            return Err("sslrootcert holds no certificate".into());
        }
        Ok(Self::of(certificates))
    }

    /// The machine's certificates, read once.
    fn system() -> Result<Arc<Self>, BoxError> {
        static SYSTEM: OnceLock<Arc<Trusted>> = OnceLock::new();
        let trusted = SYSTEM.get_or_init(|| Arc::new(Self::of(rustls_native_certs::load_native_certs().certs)));
        if trusted.store.is_empty() {
            return Err("this machine trusts no certificate: install ca-certificates, or set sslrootcert".into());
        }
        Ok(Arc::clone(trusted))
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        Self { store, certificates }
    }
}

/// Judges a server's certificate. Without `roots` any will do: the connection is encrypted, and the server is not identified.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<Trusted>>,
    checks_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let chain =
            verify_server_cert_signed_by_trust_anchor(&certificate, &roots.store, intermediates, now, algorithms);
        match chain {
            // A server with a self-made certificate is given that very certificate to vouch for it, as PostgreSQL's manual shows.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer))
                if roots.certificates.iter().any(|trusted| trusted == end_entity) => {}
            chain => chain?,
        }
        if self.checks_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
