//! Which addresses a webhook may reach. Tenants name the targets, so nothing inside the operator's network may be one
//! (server-side request forgery).
//!
//! The tables are the union of the special-purpose registries (RFC 6890 and its IPv6 twin) with the transition
//! prefixes that smuggle an IPv4 address inside an IPv6 one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::IpNet;
use url::{Host, Url};

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The URL is not an absolute http or https URL.
    #[error("must be an absolute http or https URL such as https://example.com/hook")]
    NotHttp,
    /// The URL carries a user or password.
    #[error("must not carry a user or password")]
    UserInfo,
    /// Port 0 cannot be dialled.
    #[error("must not use port 0")]
    Port,
    /// The target takes https only, and this URL is plain text.
    #[error("must be an https URL")]
    NotEncrypted,
    /// The address lies in a network that is not public.
    #[error("target_not_allowed: private, loopback, link-local and other special addresses cannot be webhook targets")]
    Private,
}

/// The guard of private addresses. Every global address passes; others pass only if the operator exempts their network.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    allowed: std::sync::Arc<[IpNet]>,
    exempt_only: bool,
}

impl Guard {
    /// A guard with the networks of `WEBHOOK_ALLOW_NETS` exempt, or of `MEDIA_ALLOW_NETS`.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed: allowed.into(), exempt_only: false }
    }

    /// Lets only exempt networks pass: for traffic that must not cross the Internet in plain text.
    pub fn exempt_only(&self) -> Self {
        Self { allowed: self.allowed.clone(), exempt_only: true }
    }

    /// Checks the URL of a browser's push service: it must be https, unless the operator exempts its network.
    pub fn check_push_url(&self, text: &str) -> Result<(), Refusal> {
        self.check_url(text)?;
        let plain = Url::parse(text).is_ok_and(|url| url.scheme() == "http");
        let may_be_exempt = !self.allowed.is_empty() && self.exempt_only().check_url(text).is_ok();
        if plain && !may_be_exempt { Err(Refusal::NotEncrypted) } else { Ok(()) }
    }

    /// Checks a URL as written. Host names are checked again, resolved, when they are dialled.
    pub fn check_url(&self, text: &str) -> Result<(), Refusal> {
        let url = Url::parse(text).map_err(|_| Refusal::NotHttp)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::NotHttp);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::UserInfo);
        }
        if url.port() == Some(0) {
            return Err(Refusal::Port);
        }
        match url.host().ok_or(Refusal::NotHttp)? {
            Host::Ipv4(ip) => self.check_ip(ip.into()),
            Host::Ipv6(ip) => self.check_ip(ip.into()),
            Host::Domain(name) => self.check_name(name),
        }
    }

    /// Checks one address that is about to be dialled.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), Refusal> {
        let exempt = self.allowed.iter().any(|net| net.contains(&ip) || net.contains(&unmapped(ip)));
        if exempt || (!self.exempt_only && is_global(ip)) { Ok(()) } else { Err(Refusal::Private) }
    }

    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let local = name == "localhost" || name.ends_with(".localhost");
        match local {
            true => self.check_ip(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            false => Ok(()),
        }
    }
}

fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => !within(&SPECIAL_V4, ip),
        IpAddr::V6(v6) => is_global_v6(v6),
    }
}

/// Only 2000::/3 is routed, and parts of it are not. A NAT64 form of a global IPv4 address counts as that address.
fn is_global_v6(ip: Ipv6Addr) -> bool {
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = ip.segments() {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        return is_global(Ipv4Addr::new(a, b, c, d).into());
    }
    within(&ROUTED_V6, ip.into()) && !within(&SPECIAL_V6, ip.into())
}

fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

/// Parses a table of this file; a typo would make the table shorter, which a test notices.
fn table(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().filter_map(|net| net.parse().ok()).collect()
}

static ROUTED_V6: LazyLock<Vec<IpNet>> = LazyLock::new(|| table(&["2000::/3"]));

static SPECIAL_V4: LazyLock<Vec<IpNet>> = LazyLock::new(|| table(SPECIAL_V4_TEXT));

static SPECIAL_V6: LazyLock<Vec<IpNet>> = LazyLock::new(|| table(SPECIAL_V6_TEXT));

const SPECIAL_V4_TEXT: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    // A cloud's own service inside global addresses.
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Inside 2000::/3: protocol assignments with Teredo and ORCHID, documentation, 6to4, direct delegation AS112.
const SPECIAL_V6_TEXT: &[&str] = &["2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_inside_address_is_refused() {
        for host in [
            "127.0.0.1",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fc00::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "[2001::1]",
            "[ff02::1]",
            "[fec0::1]",
            "[64:ff9b:1::1]",
            "[5f00::1]",
        ] {
            let url = format!("http://{host}/hook");
            assert_eq!(Guard::default().check_url(&url), Err(Refusal::Private), "{url}");
        }
    }

    #[test]
    fn no_line_of_the_tables_is_a_typo() {
        assert_eq!((SPECIAL_V4.len(), SPECIAL_V6.len()), (SPECIAL_V4_TEXT.len(), SPECIAL_V6_TEXT.len()));
    }

    #[test]
    fn public_targets_pass() {
        for url in [
            "https://example.com/hook",
            "http://93.184.216.34:8080/",
            "https://[2606:4700::1111]/",
            "http://[64:ff9b::808:808]/",
        ] {
            assert_eq!(Guard::default().check_url(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn other_schemes_and_credentials_are_refused() {
        assert_eq!(Guard::default().check_url("ftp://example.com"), Err(Refusal::NotHttp));
        assert_eq!(Guard::default().check_url("/hook"), Err(Refusal::NotHttp));
        assert_eq!(Guard::default().check_url("https://u:p@example.com"), Err(Refusal::UserInfo));
    }

    #[test]
    fn a_push_service_is_reached_in_plain_text_only_inside_an_exempt_network() {
        let exempt = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
        for (url, guarded, exempted) in [
            ("https://push.example.com/x", Ok(()), Ok(())),
            ("http://push.example.com/x", Err(Refusal::NotEncrypted), Ok(())),
            ("http://93.184.216.34/x", Err(Refusal::NotEncrypted), Err(Refusal::NotEncrypted)),
            ("http://127.0.0.1:9/x", Err(Refusal::Private), Ok(())),
            ("https://127.0.0.1:9/x", Err(Refusal::Private), Ok(())),
            ("https://10.0.0.1/x", Err(Refusal::Private), Err(Refusal::Private)),
            ("push.example.com", Err(Refusal::NotHttp), Err(Refusal::NotHttp)),
        ] {
            assert_eq!(Guard::default().check_push_url(url), guarded, "{url}");
            assert_eq!(exempt.check_push_url(url), exempted, "{url}");
        }
        // A name passes here: its addresses are checked when they are dialled.
        assert_eq!(exempt.exempt_only().check_ip(IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34))), Err(Refusal::Private));
        assert_eq!(exempt.exempt_only().check_ip(IpAddr::V4(Ipv4Addr::LOCALHOST)), Ok(()));
    }

    #[test]
    fn the_operator_can_exempt_a_network() {
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
        for url in ["http://127.0.0.1:9/x", "http://localhost/x", "http://[::ffff:127.0.0.1]/x"] {
            assert_eq!(guard.check_url(url), Ok(()), "{url}");
        }
        assert_eq!(guard.check_url("http://10.0.0.1/"), Err(Refusal::Private));
    }
}
