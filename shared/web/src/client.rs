//! The address of a caller: the peer of the connection, or the address that trusted proxies report.

use std::net::{IpAddr, SocketAddr};

use actix_web::{
    HttpMessage, HttpRequest,
    dev::ServiceRequest,
    http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue},
};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of a caller, resolved by the gate once per request.
#[derive(Clone, Copy, Debug)]
struct ClientAddress(Option<IpAddr>);

/// Addresses that count as one caller: one IPv4 address, or the 2^64 IPv6 addresses that one host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(u128);

impl Network {
    /// The network of an address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits() >> 64 | 1 << 64,
        })
    }
}

/// Resolves the caller's address and stores it in the request's extensions.
pub fn note(request: &ServiceRequest, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = request.peer_addr().map(|peer| peer.ip());
    let address = peer.and_then(|peer| resolve(peer, request.headers(), trusted));
    request.extensions_mut().insert(ClientAddress(address));
    address
}

/// The address that [`note`] stored. Callers without an address count as one caller, and no network contains them.
pub fn address(request: &HttpRequest) -> Option<IpAddr> {
    request.extensions().get::<ClientAddress>().and_then(|kept| kept.0)
}

/// Walks from the peer towards the caller as long as each hop is trusted. A hop that is not an address ends the walk.
/// Returns `None` if a trusted proxy sends both headers: it sets only one of them, so the caller may have written the
/// other. Falling back to the proxy's own address would admit the caller to networks that contain the proxy.
fn resolve(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut address = peer.to_canonical();
    if !is_trusted(address) {
        return Some(address);
    }
    let mut hops = hops(headers)?;
    while is_trusted(address)
        && let Some(Some(hop)) = hops.pop()
    {
        address = hop.to_canonical();
    }
    Some(address)
}

/// The hops that the header lists, the nearest last; a hop that is not an address is `None`. Returns `None` if both headers
/// are present.
fn hops(headers: &HeaderMap) -> Option<Vec<Option<IpAddr>>> {
    let lines = |name| headers.get_all(name).map(HeaderValue::as_bytes);
    let all = |name| lines(name).flat_map(|line| line.split(|byte| *byte == b',')).map(|hop| str::from_utf8(hop).ok());
    match (headers.contains_key(X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
        (true, true) => None,
        (true, false) => Some(all(X_FORWARDED_FOR).map(|hop| parse(hop?)).collect()),
        (false, _) => Some(all(FORWARDED).map(|element| parse(forwarded_for(element?)?)).collect()),
    }
}

/// The `for` of an element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<&str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for")).map(|(_, value)| value)
}

/// Parses an address, with or without a port, quotes and the brackets of IPv6.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(peer: &str, headers: &[(&HeaderName, &str)]) -> String {
        let lines: Vec<(&HeaderName, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        resolved_bytes(peer, &lines)
    }

    fn resolved_bytes(peer: &str, headers: &[(&HeaderName, &[u8])]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append((*name).clone(), HeaderValue::from_bytes(value).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        resolve(peer.parse().unwrap(), &map, &trusted).map_or("none".to_owned(), |address| address.to_string())
    }

    #[test]
    fn the_last_hop_that_is_no_proxy_is_the_caller() {
        let by = |value| resolved("10.0.0.1", &[(&X_FORWARDED_FOR, value)]);
        assert_eq!(by("192.0.2.1"), "192.0.2.1");
        assert_eq!(
            by("198.51.100.7, 192.0.2.1, 10.0.0.2"),
            "192.0.2.1",
            "what the caller wrote itself counts for nothing"
        );
        assert_eq!(by("10.0.0.3, 10.0.0.2"), "10.0.0.3", "all of them are proxies");
        assert_eq!(by("192.0.2.1:443"), "192.0.2.1");
        assert_eq!(by("192.0.2.1, [2001:db8::1]:443"), "2001:db8::1");
        assert_eq!(resolved("::ffff:10.0.0.1", &[(&X_FORWARDED_FOR, "::ffff:192.0.2.1")]), "192.0.2.1");
        let lines = [(&X_FORWARDED_FOR, "192.0.2.1"), (&X_FORWARDED_FOR, "192.0.2.2, 10.0.0.9")];
        assert_eq!(resolved("10.0.0.1", &lines), "192.0.2.2", "several lines are one list");
    }

    #[test]
    fn nobody_else_is_believed() {
        assert_eq!(resolved("192.0.2.9", &[(&X_FORWARDED_FOR, "192.0.2.1")]), "192.0.2.9");
        assert_eq!(resolved("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(resolved("10.0.0.1", &[(&X_FORWARDED_FOR, "192.0.2.1, unknown")]), "10.0.0.1");
        assert_eq!(resolved("10.0.0.1", &[(&X_FORWARDED_FOR, "192.0.2.1, junk, 10.0.0.2")]), "10.0.0.2");
    }

    #[test]
    fn nothing_beyond_a_hop_that_is_no_text_is_believed() {
        let by = |lines: &[&[u8]]| {
            let name = X_FORWARDED_FOR;
            let lines: Vec<(&HeaderName, &[u8])> = lines.iter().map(|line| (&name, *line)).collect();
            resolved_bytes("10.0.0.1", &lines)
        };
        assert_eq!(by(&[b"198.51.100.7", b"\xff"]), "10.0.0.1", "a line that is no text is a hop");
        assert_eq!(by(&[b"198.51.100.7, \xff, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(by(&[b"\xff, 192.0.2.1"]), "192.0.2.1", "what a caller writes before it changes nothing");
        let forwarded: &[u8] = b"for=198.51.100.7, for=\xff";
        assert_eq!(resolved_bytes("10.0.0.1", &[(&FORWARDED, forwarded)]), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_where_the_other_header_is_missing() {
        let by = |value| resolved("fd00::1", &[(&FORWARDED, value)]);
        assert_eq!(by("for=192.0.2.60;proto=http;by=203.0.113.43"), "192.0.2.60");
        assert_eq!(by("for=198.51.100.7, For=\"[2001:db8:cafe::17]:4711\", for=10.0.0.2"), "2001:db8:cafe::17");
        assert_eq!(by("for=_hidden"), "fd00::1");
        assert_eq!(by("proto=http"), "fd00::1");
        let both = [(&FORWARDED, "for=192.0.2.1"), (&X_FORWARDED_FOR, "192.0.2.2")];
        assert_eq!(resolved("10.0.0.1", &both), "none", "with both, the caller is not known");
        assert_eq!(resolved("192.0.2.9", &both), "192.0.2.9", "no proxy is between");
    }
}
