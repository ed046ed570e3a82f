//! Calls to hosts that tenants name: how such a client is made, and what an error without an answer means.

pub mod resolver;
pub mod retry_after;

use std::{error::Error, io, time::Duration};

use domain::contract::guard::Refusal;
use reqwest::{Client, ClientBuilder};
use url::Url;

use resolver::ResolveError;

/// A client that follows nothing, repeats nothing, trusts no proxy setting and unpacks nothing; give it a
/// [`resolver::GuardedResolver`] before it calls what a tenant names.
pub fn client(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        .connect_timeout(connect_timeout)
}

/// Whether two URLs lead to one host: scheme, name and port are the same. What is no URL leads nowhere.
pub fn same_origin(one: &str, other: &str) -> bool {
    matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one.origin() == other.origin())
}

/// Why a call has no answer. Before the connection stands nothing was sent; after that it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The target is not allowed, or no URL.
    Refused(Refusal),
    /// Its name could not be resolved.
    Dns,
    /// No TLS connection could be made.
    Tls,
    /// It could not be connected to.
    Connect,
    /// It did not answer in time; it may have taken the request.
    Timeout,
    /// The connection broke before an answer; it may have taken the request.
    Reset,
    /// What came back was no HTTP answer; it may have taken the request.
    BadAnswer,
}

impl Trouble {
    /// What `error` means.
    pub fn of(error: &reqwest::Error) -> Self {
        if error.is_builder() {
            return Self::Refused(Refusal::NotHttp);
        }
        if error.is_connect() {
            return match cause::<ResolveError>(error) {
                Some(ResolveError::Refused(refusal)) => Self::Refused(*refusal),
                Some(ResolveError::Unknown(_)) => Self::Dns,
                None if is_tls(error) => Self::Tls,
                None => Self::Connect,
            };
        }
        match error.is_timeout() {
            true => Self::Timeout,
            false if broken(error) => Self::Reset,
            false => Self::BadAnswer,
        }
    }

    /// Whether the request certainly did not arrive.
    pub const fn is_unsent(self) -> bool {
        match self {
            Self::Refused(_) | Self::Dns | Self::Tls | Self::Connect => true,
            Self::Timeout | Self::Reset | Self::BadAnswer => false,
        }
    }

    /// A short word for the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused(_) => "target_not_allowed",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::BadAnswer => "bad_answer",
        }
    }
}

/// The TLS library reports through I/O errors of this kind; the sockets below it never do.
fn is_tls(error: &reqwest::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// The HTTP library's own error type cannot be named from here, so its text has to tell an end without an answer from
/// an answer that could not be read.
fn broken(error: &reqwest::Error) -> bool {
    cause::<io::Error>(error).is_some()
        || causes(error).any(|cause| cause.to_string().contains("before message completed"))
}

/// The first of an error's causes that is of this type.
pub fn cause<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An I/O error leaves what it wraps out of its sources, so it is looked into.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| {
        let cause: &(dyn Error + 'static) = *cause;
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        }
    })
}
