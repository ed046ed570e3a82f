//! Reads a PostgreSQL URL. `tokio_postgres` reads hosts and login. `sslmode` and `sslrootcert` are read here, because
//! `tokio_postgres` knows only half of the modes. The meanings are those of libpq.

use std::{borrow::Cow, path::PathBuf, str::FromStr};

use tokio_postgres::config::Host;
use url::Url;

const POSTGRES_PORT: &str = "5432";
/// The value of `sslrootcert` for the certificates that the machine trusts.
const SYSTEM: &str = "system";

/// The encryption of a connection to PostgreSQL, and the checks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server offers it; its certificate is not checked.
    Prefer,
    /// Encrypted or refused; its certificate is not checked.
    Require,
    /// The server's certificate chains to a trusted one.
    VerifyCa,
    /// As `VerifyCa`, and the certificate names the host.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = PostgresUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return Err(PostgresUrlError::Mode),
        })
    }
}

/// The source of the certificates that the server's certificate is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// The machine's.
    System,
    /// A PEM file's.
    File(PathBuf),
}

/// A PostgreSQL URL, read.
#[derive(Clone, Debug)]
pub struct PostgresUrl {
    /// Hosts, login, database and options.
    pub config: tokio_postgres::Config,
    /// The encryption asked for.
    pub mode: SslMode,
    /// The trusted certificates; `None` if the server's certificate is not checked.
    pub roots: Option<RootCert>,
}

/// Why a URL cannot be used. The error holds no part of the URL.
#[derive(Debug, thiserror::Error)]
pub enum PostgresUrlError {
    /// Not a URL.
    #[error("is no URL")]
    Url(#[from] url::ParseError),
    /// An unknown mode.
    #[error("has an sslmode other than disable, prefer, require, verify-ca and verify-full")]
    Mode,
    /// `verify-ca` without a file: anybody can get a certificate that the machine trusts.
    #[error("has sslmode=verify-ca without the file of a certificate in sslrootcert (or use sslmode=verify-full)")]
    NoRoot,
    /// An option is unknown or has a wrong value.
    #[error("has an option that cannot be used: {}", source_text(.0))]
    Option(tokio_postgres::Error),
}

fn source_text(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl PostgresUrl {
    /// Reads a URL.
    pub fn parse(text: &str) -> Result<Self, PostgresUrlError> {
        let mut url = Url::parse(&one_authority(text))?;
        let (mut mode, mut root) = (None, None);
        let mut rest = Vec::new();
        for option in url.query().unwrap_or_default().split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value.parse()?),
                Some(("sslrootcert", value)) => root = Some(decoded(value)),
                _ => rest.push(option),
            }
        }
        let rest = rest.join("&");
        url.set_query(Some(rest.as_str()).filter(|rest| !rest.is_empty()));
        let config = tokio_postgres::Config::from_str(url.as_str()).map_err(PostgresUrlError::Option)?;
        let (mode, roots) = trust(mode, root)?;
        let is_local = |host: &Host| !matches!(host, Host::Tcp(_));
        let mode = if config.get_hosts().iter().all(is_local) { SslMode::Disable } else { mode };
        Ok(Self { config, mode, roots })
    }

    /// Whether a connection may leave this machine.
    pub fn is_remote(&self) -> bool {
        let is_near = |host: &Host| match host {
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            _ => true,
        };
        !self.config.get_hosts().iter().all(is_near)
    }
}

/// The mode in effect, and its trusted certificates. As in libpq, `require` with a certificate is `verify-ca`.
fn trust(mode: Option<SslMode>, root: Option<String>) -> Result<(SslMode, Option<RootCert>), PostgresUrlError> {
    let roots = root.filter(|path| !path.is_empty()).map(|path| match path.as_str() {
        SYSTEM => RootCert::System,
        _ => RootCert::File(path.into()),
    });
    let mode = match (mode, &roots) {
        (None, Some(RootCert::System)) => SslMode::VerifyFull,
        (Some(SslMode::Require), Some(_)) => SslMode::VerifyCa,
        (mode, _) => mode.unwrap_or(SslMode::Prefer),
    };
    match (mode, roots) {
        (SslMode::VerifyCa, None | Some(RootCert::System)) => Err(PostgresUrlError::NoRoot),
        (SslMode::VerifyFull, roots) => Ok((mode, Some(roots.unwrap_or(RootCert::System)))),
        (SslMode::VerifyCa, roots) => Ok((mode, roots)),
        (_, _) => Ok((mode, None)),
    }
}

/// Moves all hosts but the first of a URL with several (`postgres://user@one:5432,two:5432/name`) into its query. `Url`
/// accepts them there, and `tokio_postgres` finds them.
pub(super) fn one_authority(text: &str) -> Cow<'_, str> {
    move_hosts(text).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn move_hosts(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
    let (first, others) = hosts.split_once(',')?;
    let at = if login.is_empty() { "" } else { "@" };
    let first = match split_port(first) {
        (_, Some(_)) => first.to_owned(),
        (host, None) => format!("{host}:{POSTGRES_PORT}"),
    };
    let others: Vec<_> = others.split(',').map(split_port).collect();
    let names: Vec<_> = others.iter().map(|(host, _)| host.trim_matches(['[', ']'])).collect();
    let ports: Vec<_> = others.iter().map(|(_, port)| port.unwrap_or(POSTGRES_PORT)).collect();
    let join = if tail.contains('?') { '&' } else { '?' };
    let more = format!("{join}host={}&port={}", names.join(","), ports.join(","));
    Some(format!("{scheme}://{login}{at}{first}{tail}{more}"))
}

/// A host and its port, if it names one.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Undoes the %-encoding of a part of a URL.
pub(super) fn decoded(part: &str) -> String {
    let pair = format!("part={}", part.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<PostgresUrl, PostgresUrlError> {
        PostgresUrl::parse(&format!("postgres://u:p%40w@db.example.com/posthaste{options}"))
    }

    #[test]
    fn modes_mean_what_they_mean_to_libpq() {
        let file = || Some(RootCert::File("/ca.pem".into()));
        for (options, mode, roots) in [
            ("", SslMode::Prefer, None),
            ("?sslmode=disable", SslMode::Disable, None),
            ("?sslmode=prefer&connect_timeout=3", SslMode::Prefer, None),
            ("?sslmode=require", SslMode::Require, None),
            ("?sslmode=require&sslrootcert=%2Fca.pem", SslMode::VerifyCa, file()),
            ("?sslrootcert=/ca.pem&sslmode=verify-ca", SslMode::VerifyCa, file()),
            ("?sslmode=verify-full&sslrootcert=/ca.pem", SslMode::VerifyFull, file()),
            ("?sslmode=verify-full", SslMode::VerifyFull, Some(RootCert::System)),
            ("?sslrootcert=system", SslMode::VerifyFull, Some(RootCert::System)),
        ] {
            let read = parse(options).unwrap();
            assert_eq!((read.mode, read.roots), (mode, roots), "{options}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_showing_the_url() {
        for options in [
            "?sslmode=allow",
            "?sslmode=verify-ca",
            "?sslmode=verify-ca&sslrootcert=system",
            "?colour=p%40w",
            "?port=x",
        ] {
            let text = parse(options).unwrap_err().to_string();
            assert!(!text.contains("p@w") && !text.contains("p%40w"), "{text}");
        }
    }

    #[test]
    fn login_and_options_stay_as_they_are() {
        let read = PostgresUrl::parse("postgres://u:p%40w%2B+@db/n?application_name=a%20b&sslmode=require").unwrap();
        assert_eq!(read.config.get_password(), Some(&b"p@w++"[..]));
        assert_eq!(read.config.get_application_name(), Some("a b"));
        assert_eq!((read.config.get_user(), read.config.get_dbname()), (Some("u"), Some("n")));
    }

    #[test]
    fn several_hosts_are_tried_in_their_order() {
        for (text, ports) in [
            ("postgres://u:p@one:5433,two/n?target_session_attrs=read-write", [5433, 5432]),
            ("postgres://u:p@one,two:5433/n", [5432, 5433]),
        ] {
            let read = PostgresUrl::parse(text).unwrap();
            let hosts = [Host::Tcp("one".to_owned()), Host::Tcp("two".to_owned())];
            assert_eq!((read.config.get_hosts(), read.config.get_ports()), (&hosts[..], &ports[..]), "{text}");
        }
    }

    #[test]
    fn only_loopback_addresses_and_sockets_are_of_this_machine() {
        for (url, is_remote) in [
            ("postgres://u@db.example.com/n", true),
            ("postgres://u@127.0.0.1,10.0.0.2/n", true),
            ("postgres://u@127.0.0.1/n", false),
            ("postgres://u@[::1]/n", false),
            ("postgres://u@localhost/n", false),
            ("postgres:///n?host=/run/postgresql", false),
        ] {
            assert_eq!(PostgresUrl::parse(url).unwrap().is_remote(), is_remote, "{url}");
        }
    }
}
