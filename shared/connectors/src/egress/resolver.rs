//! Resolves and checks the names of webhook targets in one step: the client dials the checked addresses.
//!
//! A name that is public at submission may have a private address when it is dialled (DNS rebinding), so the check
//! belongs here. The HTTP client connects only to the returned addresses. It does not ask for IP literals, so the
//! caller checks them before.

use std::{io, net::SocketAddr, sync::Arc};

use domain::contract::guard::{Guard, Refusal};
use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Finds the addresses of a name.
pub type LookUp = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Resolves names and refuses addresses that the guard refuses.
pub struct GuardedResolver {
    guard: Guard,
    look_up: LookUp,
}

/// Why a name was not dialled.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It has no address, or no name server answered.
    #[error("the name could not be resolved")]
    Unknown(#[source] io::Error),
    /// One of its addresses is forbidden. One is enough, because any of them may be dialled.
    #[error("{0}")]
    Refused(Refusal),
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, looked_up) = (self.guard.clone(), (self.look_up)(name.as_str().to_owned()));
        Box::pin(async move {
            let addresses: Addrs = Box::new(vetted(&guard, looked_up.await)?.into_iter());
            Ok(addresses)
        })
    }
}

impl GuardedResolver {
    /// A resolver for the HTTP client, which asks the system's resolver.
    pub fn shared(guard: Guard) -> Arc<Self> {
        Self::asking(guard, Arc::new(|name| Box::pin(system(name))))
    }

    /// A resolver with another source of addresses.
    pub fn asking(guard: Guard, look_up: LookUp) -> Arc<Self> {
        Arc::new(Self { guard, look_up })
    }

    /// The guard that decides.
    pub const fn guard(&self) -> &Guard {
        &self.guard
    }
}

/// Port 0 stands for the port of the URL, which the client fills in.
async fn system(name: String) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

fn vetted(guard: &Guard, looked_up: io::Result<Vec<SocketAddr>>) -> Result<Vec<SocketAddr>, ResolveError> {
    let addresses = looked_up.map_err(ResolveError::Unknown)?;
    addresses.iter().try_for_each(|address| guard.check_ip(address.ip())).map_err(ResolveError::Refused)?;
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn vetted(guard: &Guard, name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        super::vetted(guard, system(name.to_owned()).await)
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused() {
        assert!(matches!(vetted(&Guard::default(), "localhost").await, Err(ResolveError::Refused(Refusal::Private))));
    }

    #[tokio::test]
    async fn an_exempt_network_may_be_named() {
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        let addresses = vetted(&guard, "localhost").await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_no_refusal() {
        assert!(matches!(vetted(&Guard::default(), "nowhere.invalid").await, Err(ResolveError::Unknown(_))));
    }
}
