//! No webhook reaches the operator's network, however its address is written.

use std::{collections::BTreeSet, io::ErrorKind, net::TcpListener};

use anyhow::Result;
use domain::contract::guard::{Guard, Refusal};
use serde_json::json;
use testkit::{HttpSink, Reply, Stack, api::SOON, eventually};

/// Addresses of special networks, each registry's first, last or best known.
const V4: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.253",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.255.255",
    "172.16.0.1",
    "172.17.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.254",
    "255.255.255.255",
];

/// The same in other writing: short, decimal, hexadecimal, octal, mixed, encoded, with other digits and dots.
const ENCODED: &[&str] = &[
    "0",
    "127.1",
    "127.0.1",
    "10.1",
    "10.0.1",
    "192.168.1",
    "172.16.1",
    "169.254.43518",
    "10.65793",
    "127.0.0.1.",
    "2130706433",
    "2852039166",
    "2886729729",
    "3232235521",
    "167772161",
    "4294967295",
    "0x7f000001",
    "0X7F000001",
    "0xa9fea9fe",
    "0xc0a80001",
    "0xac100001",
    "0x0a000001",
    "0xffffffff",
    "0x0",
    "017700000001",
    "025177524776",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "0177.0.0.01",
    "00000177.0.0.1",
    "0251.0376.0251.0376",
    "0xA9.0xFE.0xA9.0xFE",
    "0x7f.1",
    "0x7f.0.1",
    "127.0x0.0.1",
    "0300.0250.0.1",
    "00.00.00.00",
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "127%2E1",
    "127。0。0。1",
    "127．0．0．1",
    "127｡0｡0｡1",
    "１２７.0.0.1",
    "①②⑦.0.0.1",
    "⑯⑨.254.169.254",
];

const NAMES: &[&str] = &[
    "localhost",
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "a.b.localhost.",
    "%6cocalhost",
    "ｌｏｃａｌｈｏｓｔ",
    "locaｌhost",
    "localhost。",
    "local\u{ad}host",
    "ⓛocalhost",
];

/// Special addresses, and those that carry an IPv4 address inside: compatible, mapped, translated, NAT64, 6to4, Teredo, link-local.
const V6: &[&str] = &[
    "[::]",
    "[::1]",
    "[::2]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::a9fe:a9fe]",
    "[::ffff:ffff]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::FFFF:7F00:1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:192.168.0.1]",
    "[::ffff:100.64.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[::ffff:0:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b::c0a8:1]",
    "[64:ff9b:1::1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:7f00:1::1]",
    "[2002:a00:1::1]",
    "[2002:c0a8:1::1]",
    "[2002:a9fe:a9fe::1]",
    "[2002:808:808::1]",
    "[2001::1]",
    "[2001:0:7f00:1::1]",
    "[2001:0:53aa:64c:0:7fff:80ff:fffe]",
    "[2001:2::1]",
    "[2001:10::1]",
    "[2001:20::1]",
    "[2001:db8::1]",
    "[2620:4f:8000::1]",
    "[3fff::1]",
    "[100::1]",
    "[100:0:0:1::1]",
    "[5f00::1]",
    "[1::1]",
    "[4000::1]",
    "[8000::1]",
    "[e000::1]",
    "[fc00::1]",
    "[fd00::1]",
    "[fd00:ec2::254]",
    "[fdff:ffff::1]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[febf::1]",
    "[fec0::1]",
    "[feff::1]",
    "[ff00::1]",
    "[ff02::1]",
    "[ff05::2]",
    "[ff0e::1]",
];

/// Texts that are no web address, or hide one; `{}` is the canary's port.
const CROOKED: &[&str] = &[
    "http://user@127.0.0.1:{}/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1:{}/",
    "http://127.0.0.1:{}@example.com/",
    "http://[fe80::1%25lo]:{}/",
    "http://[::1%lo]:{}/",
    "http://[::1%251]:{}/",
    "http://127.0.0.1:0/",
    "http://256.256.256.256/",
    "http://0x100000000/",
    "http://1.2.3.4.5/",
    "http://127.0.0.1\\@example.com:{}/",
    "http:/127.0.0.1:{}/",
    "http:127.0.0.1:{}/",
    "http:\\\\127.0.0.1:{}/",
    "//127.0.0.1:{}/",
    "/127.0.0.1",
    "127.0.0.1:{}",
    "ftp://127.0.0.1:{}/",
    "gopher://127.0.0.1:{}/",
    "file:///etc/passwd",
    "data:text/plain,x",
    "javascript:alert(1)",
    "unix:/run/docker.sock",
    "ws://127.0.0.1:{}/",
    "http://",
    "http:///",
    "http://[::1",
    "http://127.0.0.1 :{}/",
    "ht\ttp://127.0.0.1:{}/",
    "http://127.0.\n0.1:{}/",
    " http://127.0.0.1:{}/",
];

struct Canary(Vec<TcpListener>, u16);

impl Canary {
    /// Listens on both loopbacks, at one port.
    fn start() -> Result<Self> {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        // A machine without IPv6 has nothing to reach there.
        let all: Vec<_> = [Some(first), TcpListener::bind(("::1", port)).ok()].into_iter().flatten().collect();
        all.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(Self(all, port))
    }

    fn is_alone(&self) -> bool {
        self.0.iter().all(|listener| listener.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
    }
}

#[tokio::test]
async fn a_canary_notices_who_comes() -> Result<()> {
    let canary = Canary::start()?;
    assert!(canary.is_alone());
    let _visitor = std::net::TcpStream::connect(("127.0.0.1", canary.1))?;
    // The kernel may hand the connection over a moment later.
    eventually("the visitor is noticed", SOON, || async { (!canary.is_alone()).then_some(()) }).await
}

#[tokio::test]
async fn no_writing_of_an_inside_address_is_accepted_or_dialled() -> Result<()> {
    let stack = Stack::start_with(&[
        ("WEBHOOK_ALLOW_NETS", "127.0.0.2/32"),
        // A machine that stands still for a while is no reason to give up a call or a claim.
        ("WEBHOOK_TIMEOUT", "60000"),
        ("LEASE_MARGIN_MS", "60000"),
    ])
    .await?;
    let (canary, admin) = (Canary::start()?, stack.admin());
    let inside: BTreeSet<String> = [V4, ENCODED, NAMES, V6]
        .concat()
        .iter()
        // The one address that the operator exempts.
        .filter(|host| **host != "127.0.0.2")
        .map(|host| format!("http://{host}:{}/x", canary.1))
        .collect();
    let crooked: Vec<String> = CROOKED.iter().map(|url| url.replace("{}", &canary.1.to_string())).collect();
    assert!(inside.len() + crooked.len() >= 180, "{}", inside.len() + crooked.len());
    for url in &inside {
        assert_eq!(Guard::default().check_url(url), Err(Refusal::Private), "{url}");
        let body = json!({"channel": "webhook", "recipient": url, "data": {}});
        let answer = admin.post("/api/notifications/send", &body).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (400, &json!("target_not_allowed")), "{url}");
        let answer = admin.post("/api/webhooks/configurations", &json!({"name": "n", "url": url})).await?;
        assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec!["url".to_owned()]), "{url}: {}", answer.body);
    }
    for url in &crooked {
        assert!(Guard::default().check_url(url).is_err(), "{url}");
        let body = json!({"channel": "webhook", "recipient": url, "data": {}});
        assert_eq!(admin.post("/api/notifications/send", &body).await?.status.as_u16(), 400, "{url}");
        let answer = admin.post("/api/webhooks/configurations", &json!({"name": "n", "url": url})).await?;
        assert_eq!(answer.status.as_u16(), 400, "{url}");
    }
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 0);

    // A receiver that may be reached sends us on, and one whose name leads inside only when it is asked for.
    let sink = HttpSink::start("127.0.0.2:0".parse()?).await?;
    let elsewhere = format!("http://127.0.0.1:{}/", canary.1);
    sink.reply_to(
        "/redirect",
        Reply::Sequence(vec![Reply::status(307).with_header("Location", &elsewhere), Reply::ok()]),
    );
    let id = admin.send(&json!({"channel": "webhook", "recipient": sink.url("/redirect"), "data": {}})).await?;
    admin.wait_status(&id, "delivered").await?;
    let timeline = admin.timeline(&id).await?;
    assert_eq!(
        (&timeline["attempts"][0]["outcome"], &timeline["attempts"][0]["code"]),
        (&json!("transient"), &json!("307"))
    );
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let names = hosts.lines().filter_map(|line| line.split('#').next()?.strip_prefix("127.0.0.1"));
    let names: BTreeSet<&str> = names
        .chain(hosts.lines().filter_map(|line| line.strip_prefix("::1")))
        .flat_map(str::split_whitespace)
        .collect();
    for name in names.into_iter().filter(|name| *name != "localhost") {
        let url = format!("http://{name}:{}/", canary.1);
        let id = admin.send(&json!({"channel": "webhook", "recipient": url, "data": {}})).await?;
        admin.wait_status(&id, "failed").await?;
        let timeline = admin.timeline(&id).await?;
        assert_eq!(timeline["attempts"][0]["code"], "target_not_allowed", "{name}");
    }
    assert!(canary.is_alone(), "a connection came");
    Ok(())
}
