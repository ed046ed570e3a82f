use std::time::Duration;

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use domain::{
    Channel,
    OutcomeClass::{self, AddressDead, Misconfigured, Rejected, Sent, Throttled, Transient, Unknown},
};
use serde_json::Value;
use servers::sinks::http::{HttpSink, Reply};

use super::{super::testing, *};
use crate::testing::{config, order};

// RFC 8291, section 5.
const BROWSER: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const BROWSER_PRIVATE: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
const OURS: &str = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
const OURS_PRIVATE: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";
const SALT: &str = "DGv6ra1nlYgDCS1FRnbzlw";
const PLAIN: &str = "When I grow up, I want to be a watermelon";
const RECORD: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

fn bytes(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

fn key(text: &str) -> PrivateKey {
    PrivateKey::from_private_key(&ECDH_P256, &bytes(text)).unwrap()
}

fn browser() -> SubscriptionKeys {
    SubscriptionKeys { p256dh: BROWSER.to_owned(), auth: AUTH.to_owned() }
}

/// Decrypts as a browser does (RFC 8291). `None`: it was not meant for this browser.
fn decrypted(message: &[u8], auth: &str) -> Option<Vec<u8>> {
    let (salt, rest) = message.split_at(16);
    let (head, rest) = rest.split_at(5);
    assert_eq!(head, [0, 0, 16, 0, 65]);
    let (theirs, record) = rest.split_at(65);
    let mixed = agree(&key(BROWSER_PRIVATE), UnparsedPublicKey::new(&ECDH_P256, theirs), (), |shared| {
        Ok(Salt::new(HKDF_SHA256, &bytes(auth)).extract(shared))
    });
    let seed: [u8; 32] = expanded(&mixed.unwrap(), &[b"WebPush: info\0", &bytes(BROWSER), theirs]).unwrap();
    let secret = Salt::new(HKDF_SHA256, salt).extract(&seed);
    let cipher: [u8; 16] = expanded(&secret, &[b"Content-Encoding: aes128gcm\0"]).unwrap();
    let nonce: [u8; 12] = expanded(&secret, &[b"Content-Encoding: nonce\0"]).unwrap();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &cipher).unwrap());
    let mut record = record.to_vec();
    let plain = cipher.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).ok()?;
    assert_eq!(plain.last(), Some(&2));
    Some(plain[..plain.len() - 1].to_vec())
}

fn webpush(allowed: &str) -> Webpush {
    let settings = [
        ("PUSH_BACKEND", "webpush"),
        ("PUSH_VAPID_PUBLIC_KEY", OURS),
        ("PUSH_VAPID_PRIVATE_KEY", OURS_PRIVATE),
        ("PUSH_VAPID_SUBJECT", "mailto:ops@example.com"),
        ("WEBHOOK_ALLOW_NETS", allowed),
    ];
    Webpush::new(&config(settings.map(|(name, value)| (name, value.to_owned()))), false).unwrap()
}

fn local() -> Webpush {
    webpush("127.0.0.0/8")
}

fn to(endpoint: &str, content: &Value) -> Order {
    let subscription = Subscription { endpoint: endpoint.to_owned(), keys: browser() };
    order(Channel::Push, &serde_json::to_string(&subscription).unwrap(), &content.to_string())
}

fn hello(endpoint: &str) -> Order {
    to(endpoint, &json!({"message": "m"}))
}

fn code(outcome: &Outcome) -> (OutcomeClass, &str) {
    (outcome.class(), outcome.fault().and_then(|fault| fault.code.as_deref()).unwrap_or_default())
}

#[test]
fn the_example_of_the_standard_comes_out_byte_for_byte() {
    let salt = bytes(SALT).try_into().unwrap();
    let message = encrypted_with(&browser(), PLAIN.into(), &key(OURS_PRIVATE), salt).unwrap();
    assert_eq!(URL_SAFE_NO_PAD.encode(message), RECORD);
    assert_eq!(decrypted(&bytes(RECORD), AUTH).unwrap(), PLAIN.as_bytes());
    let no_point = SubscriptionKeys { p256dh: URL_SAFE_NO_PAD.encode([4; 65]), auth: AUTH.to_owned() };
    assert!(encrypted(&no_point, PLAIN.into()).is_none());
}

#[tokio::test]
async fn only_the_browser_can_read_it_and_the_service_sees_who_sent_it() {
    let sink = HttpSink::start_local().await.unwrap();
    sink.reply_by_default(Reply::status(201).with_header("Location", "/message/secret"));
    let mut order =
        to(&sink.url("/push/abc?x=1"), &json!({"title": "T", "message": "M", "data": {"order": 7, "badge": 2}}));
    order.expires_at = Some(clock::now() + chrono::TimeDelta::minutes(10));
    order.lane = Lane::High;
    let outcome = local().post(&order).await;
    let Outcome::Sent(receipt) = &outcome else { panic!("{outcome:?}") };
    assert_eq!((receipt.code.as_deref(), &receipt.provider_ref, receipt.arrived), (Some("201"), &None, false));
    let requests = sink.requests();
    let [request] = requests.as_slice() else { panic!("one request, not {}", requests.len()) };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/push/abc?x=1"));
    assert_eq!(request.header("content-encoding"), Some("aes128gcm"));
    assert_eq!(request.header("urgency"), Some("high"));
    assert_eq!(request.header("topic"), Some(order.delivery.0.simple().to_string().as_str()));
    let ttl: u64 = request.header("ttl").unwrap().parse().unwrap();
    assert!((300..=600).contains(&ttl), "{ttl}");
    let payload: Value = serde_json::from_slice(&decrypted(&request.body, AUTH).unwrap()).unwrap();
    assert_eq!(payload, json!({"title": "T", "body": "M", "data": {"order": 7, "badge": 2}}));
    assert!(decrypted(&request.body, SALT).is_none(), "no other secret opens it");
    let vapid = request.header("authorization").unwrap().strip_prefix("vapid t=").unwrap();
    let (token, public) = vapid.split_once(", k=").unwrap();
    assert_eq!(public, OURS);
    let (header, claims) = testing::verified(token, &ECDSA_P256_SHA256_FIXED, &bytes(OURS)).unwrap();
    assert_eq!(header, json!({"typ": "JWT", "alg": "ES256"}));
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!(sink.url("")), &json!("mailto:ops@example.com")));
    let left = claims["exp"].as_i64().unwrap() - clock::now().timestamp();
    assert!((3600..24 * 3600).contains(&left), "{left}");
    assert!(testing::verified(token, &ECDSA_P256_SHA256_FIXED, &bytes(BROWSER)).is_none(), "the check itself can fail");
}

#[tokio::test]
async fn each_answer_has_its_meaning() {
    let sink = HttpSink::start_local().await.unwrap();
    let webpush = local();
    for (status, class) in [
        (200, Sent),
        (201, Sent),
        (202, Sent),
        (302, Transient),
        (400, Rejected),
        (401, Misconfigured),
        (403, Misconfigured),
        (404, AddressDead),
        (410, AddressDead),
        (413, Rejected),
        (429, Throttled),
        (500, Transient),
        (503, Transient),
    ] {
        sink.reply_by_default(Reply::status(status).with_header("Retry-After", "17"));
        let outcome = webpush.post(&hello(&sink.url("/push"))).await;
        assert_eq!(outcome.class(), class, "{status}: {outcome:?}");
        if let Outcome::Throttled(_, wait) | Outcome::Transient(_, wait) = &outcome {
            assert_eq!(*wait, Some(Duration::from_secs(17)), "{status}");
        }
        assert!(!format!("{outcome:?}").contains("/push"), "{outcome:?}");
    }
    for (reply, code_of) in [(Reply::CloseAfterBody, "reset"), (Reply::Garbage, "bad_answer"), (Reply::Hang, "timeout")]
    {
        let timeout = Duration::from_millis(if matches!(reply, Reply::Hang) { 500 } else { 60_000 });
        sink.reply_by_default(reply);
        let order = Order { timeout, ..hello(&sink.url("/push")) };
        assert_eq!(code(&webpush.post(&order).await), (Unknown, code_of));
    }
    let over_tls = hello(&format!("https://{}/push", sink.address()));
    assert_eq!(webpush.post(&over_tls).await.class(), Transient);
    assert_eq!(code(&webpush.post(&hello("https://nowhere.invalid/push")).await), (Transient, "dns"));
}

#[tokio::test]
async fn no_endpoint_leads_inside() {
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let port = canary.local_addr().unwrap().port();
    let guarded = webpush("10.0.0.0/8");
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
        for scheme in ["http", "https"] {
            let outcome = guarded.post(&hello(&format!("{scheme}://{host}:{port}/"))).await;
            assert_eq!(code(&outcome), (Rejected, "target_not_allowed"), "{scheme} {host}");
        }
    }
    // As if the name had been public when it was submitted: only the resolver stands in the way now.
    for client in [&guarded.client, &guarded.plain] {
        let error = client.post(format!("https://localhost:{port}/")).send().await.unwrap_err();
        assert_eq!(Trouble::of(&error), Trouble::Refused(Refusal::Private));
    }
    let outcome = guarded.post(&hello("http://93.184.216.34/push")).await;
    assert_eq!(code(&outcome), (Rejected, "bad_url"), "no plain text across the Internet");
    assert_eq!(canary.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody came");
}

#[tokio::test]
async fn what_is_too_large_or_no_subscription_is_not_sent_at_all() {
    let sink = HttpSink::start_local().await.unwrap();
    let webpush = local();
    let large = to(&sink.url("/"), &json!({"message": "m".repeat(4000)}));
    assert_eq!(code(&webpush.post(&large).await), (Rejected, "too_large"));
    let token = order(Channel::Push, "a-token", r#"{"message":"m"}"#);
    assert_eq!(code(&webpush.post(&token).await), (Rejected, "subscription"));
    assert!(sink.requests().is_empty());
    let full = to(&sink.url("/"), &json!({"message": "m".repeat(PLAIN_BYTES_MAX - r#"{"body":""}"#.len())}));
    assert_eq!(webpush.post(&full).await.class(), Sent);
    assert_eq!(sink.requests()[0].body.len(), 4096);
}

#[tokio::test]
async fn each_service_has_a_breaker_of_its_own() {
    let webpush = local();
    let key = |endpoint: &str| webpush.breaker_key(&hello(endpoint)).unwrap();
    assert_eq!(&*key("https://push.example.com/a"), "webpush/https://push.example.com");
    assert_eq!(key("https://push.example.com/a"), key("https://push.example.com/b"));
    assert_ne!(key("https://push.example.com/a"), key("https://other.example.com/a"));
    assert!(webpush.check().await.unwrap().contains("VAPID"));
}
