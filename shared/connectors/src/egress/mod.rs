//! Calls to hosts that tenants name: the client for them, and the meaning of an error without an answer.

pub mod resolver;
pub mod retry_after;

use std::{error::Error, io, time::Duration};

use domain::contract::guard::Refusal;
use reqwest::{Client, ClientBuilder};
use url::Url;

use resolver::ResolveError;

/// A client that follows no redirect, repeats nothing, ignores proxy settings and decompresses nothing. Give it a
/// [`resolver::GuardedResolver`] before it calls a tenant's URL.
pub fn client(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        .connect_timeout(connect_timeout)
}

/// Whether two URLs have the same scheme, host name and port. A text that is not a URL has none.
pub fn same_origin(one: &str, other: &str) -> bool {
    matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one.origin() == other.origin())
}

/// Why a call has no answer. Before the connection is established nothing was sent; after that, the request may have
/// arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The target is not allowed, or not a URL.
    Refused(Refusal),
    /// Its name could not be resolved.
    Dns,
    /// No TLS connection could be made.
    Tls,
    /// It could not be connected to.
    Connect,
    /// It did not answer in time; the request may have arrived.
    Timeout,
    /// The connection broke before an answer; the request may have arrived.
    Reset,
    /// The answer was not HTTP; the request may have arrived.
    BadAnswer,
}

impl Trouble {
    /// The meaning of `error`.
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

/// The TLS library reports its errors as I/O errors of this kind; the sockets below it never do.
fn is_tls(error: &reqwest::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// The HTTP library's own error type has no public name, so its text must distinguish a missing answer from an
/// unreadable one.
fn broken(error: &reqwest::Error) -> bool {
    cause::<io::Error>(error).is_some()
        || causes(error).any(|cause| cause.to_string().contains("before message completed"))
}

/// The first cause of an error that has this type.
pub fn cause<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An I/O error does not list its inner error as a source, so it is examined here.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| {
        let cause: &(dyn Error + 'static) = *cause;
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        }
    })
}
