//! Opens a connection: encrypted as the URL says, configured, and bound to the services' role.

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
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection, pooled_connection::deadpool::PoolError};
use futures_util::{FutureExt, future::BoxFuture};
use runtime::config::{PostgresUrl, RootCert, SslMode};
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

use super::{
    DbError,
    sql::{sql, statements},
    sqlstate::Coded,
};

const POSTGRES_PORT: u16 = 5432;
/// Requests encryption: a length of 8 and the code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The server's answer if it supports encryption.
const SSL_OFFERED: u8 = b'S';

/// The settings of every connection.
///
/// * Generic plans: the hot statements have the same text for every batch, and planning one over all partitions costs
///   more than running it.
/// * No sequential scans, hash or merge joins: a plan cached while a table was still empty must not be used when it
///   has ten million rows. All our joins are look-ups by key.
/// * Timeouts: a statement that hangs must not hold its locks; no transaction may sit idle.
const SESSION_SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET jit = off; \
    SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '10s'; \
    SET timezone = 'UTC'; SET application_name = 'posthaste'";

/// Row-level security binds the connection from here on, even that of a superuser. It starts with the rows of all
/// tenants; work for one tenant narrows it, see [`super::scope`].
const ROLE_SETTINGS: &str = "SET posthaste.tenant = '*'; \
    SELECT set_config('role', rolname, false) FROM pg_roles \
    WHERE rolname = 'posthaste_services' AND pg_has_role(session_user, oid, 'MEMBER')";

/// The login may not act as the services' role.
#[derive(Debug, thiserror::Error)]
#[error("the database login may not act as the role posthaste_services, which keeps tenants apart")]
struct RoleMissing;

/// Opens a connection for the pool: configured, with `more_settings` in addition, and bound to the role.
pub(super) async fn connect(url: &str, more_settings: &str) -> ConnectionResult<AsyncPgConnection> {
    let mut conn = dial(url).await?;
    for settings in [SESSION_SETTINGS, more_settings, ROLE_SETTINGS] {
        conn.batch_execute(settings).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    }
    let is_bound = IsBound {}.query().row_on(&mut conn).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    if is_bound { Ok(conn) } else { Err(role_missing()) }
}

fn role_missing() -> ConnectionError {
    ConnectionError::CouldntSetupConfiguration(diesel::result::Error::QueryBuilderError(Box::new(RoleMissing)))
}

/// Whether the connection failed because the login may not act as the services' role.
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

/// Opens a connection without settings, encrypted as the URL says, whose errors carry their code.
pub(super) async fn dial(url: &str) -> ConnectionResult<AsyncPgConnection> {
    let mut target = PostgresUrl::parse(url).map_err(|error| failed(&error))?;
    let config = &mut target.config;
    if let [Host::Unix(directory)] = config.get_hosts() {
        return dial_locally(config, directory).await;
    }
    if config.get_hosts().is_empty() {
        // TLS needs a server name.
        for address in config.get_hostaddrs().to_vec() {
            config.host(address.to_string());
        }
    }
    // tokio-postgres passes its socket to us in one place only: where TLS would start.
    config.ssl_mode(Negotiated::Require).ssl_negotiation(SslNegotiation::Direct);
    let answer = config.connect(Connector::of(target.mode, target.roots.as_ref())?).await;
    let (client, connection) = match answer {
        // The server offers a kind of encryption that we do not support. `prefer` continues without it, as libpq
        // does.
        Err(error) if target.mode == SslMode::Prefer && is_of_tls(&error) => {
            config.connect(Connector::of(SslMode::Disable, None)?).await
        }
        answer => answer,
    }
    .map_err(|error| failed(&error))?;
    AsyncPgConnection::try_from_client_and_connection(client, connection).await
}

/// Connects through a Unix socket, which needs no encryption.
async fn dial_locally(config: &Config, directory: &Path) -> ConnectionResult<AsyncPgConnection> {
    let port = config.get_ports().first().copied().unwrap_or(POSTGRES_PORT);
    let socket =
        UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await.map_err(|error| failed(&error))?;
    let (client, connection) = config.connect_raw(Coded::new(socket), NoTls).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    AsyncPgConnection::try_from(client).await
}

/// The whole chain of causes in one line: `ConnectionError` has no field for a cause.
fn failed(error: &dyn Error) -> ConnectionError {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    ConnectionError::BadConnection(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}

fn is_of_tls(error: &tokio_postgres::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    cause.is_some_and(|cause| cause.is::<rustls::Error>())
}

/// Encrypts a connection if needed, and makes its errors carry their code.
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

/// The start of one connection.
struct Handshake {
    tls: Option<<MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect>,
    is_required: bool,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Coded<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Coded<Wire>>>;

    fn connect(self, socket: Socket) -> Self::Future {
        async move { self.negotiate(socket).await.map(Coded::new) }.boxed()
    }
}

impl Handshake {
    async fn negotiate(self, mut socket: Socket) -> io::Result<Wire> {
        let Some(tls) = self.tls else { return Ok(Wire::Plain(socket)) };
        socket.write_all(&SSL_REQUEST).await?;
        match (socket.read_u8().await?, self.is_required) {
            (SSL_OFFERED, _) => Ok(Wire::Encrypted(Box::new(tls.connect(socket).await?))),
            (_, false) => Ok(Wire::Plain(socket)),
            (_, true) => Err(io::Error::other("the server does not support TLS")),
        }
    }
}

/// The transport of a connection.
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
    // `sslnegotiation=direct` requires it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn trusted(roots: &RootCert) -> Result<Arc<Trusted>, BoxError> {
    match roots {
        RootCert::File(path) => Ok(Arc::new(Trusted::read(path)?)),
        RootCert::System => Trusted::system(),
    }
}

/// The root certificates that we trust.
#[derive(Debug)]
struct Trusted {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// Reads the file for each connection, so that a renewed file takes effect without a restart.
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

/// Verifies a server's certificate. Without `roots` it accepts any: the connection is encrypted, but the server is
/// not identified.
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
            // A server with a self-signed certificate: its users configure that certificate itself as the root, as
            // PostgreSQL's manual shows.
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

sql!(IsBound in "connect/is_bound.sql" {} -> bool as Bool);
statements!(IsBound);
