use std::time::Duration;

use domain::{
    Channel,
    OutcomeClass::{self, AddressDead, Misconfigured, Rejected, Sent, Throttled, Transient},
};
use futures_util::future::join_all;
use servers::sinks::http::{HttpSink, Reply, Request};

use super::{super::testing, *};
use crate::testing::{CountingProxy, config, order};

const DEVICE: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";
const WAIT: Duration = Duration::from_secs(60);

fn path() -> String {
    format!("/3/device/{DEVICE}")
}

fn apns(base: &str) -> Apns {
    Apns::new(&config(testing::settings(ProviderName::Apns, base)), false).unwrap()
}

fn notification(content: &Value) -> Order {
    order(Channel::Push, DEVICE, &content.to_string())
}

fn hello() -> Order {
    notification(&json!({"message": "m"}))
}

fn refusal(code: u16, reason: &str) -> Reply {
    Reply::json(code, &json!({"reason": reason}))
}

fn token(request: &Request) -> String {
    request.header("authorization").unwrap().strip_prefix("bearer ").unwrap().to_owned()
}

#[tokio::test]
async fn a_notification_says_who_sends_what_to_whom_until_when() {
    let sink = HttpSink::start_local().await.unwrap();
    let mut order = notification(&json!({"title": "T", "message": "M",
        "data": {"badge": 5, "order": {"id": 7}, "aps": {"alert": "forged"}}}));
    order.expires_at = Some(clock::now() + TimeDelta::hours(1));
    let before = clock::now().timestamp();
    assert_eq!(apns(&sink.url("/")).post(&order).await.class(), Sent);
    let requests = sink.requests_to(&path());
    let [request] = requests.as_slice() else { panic!("one request, not {}", requests.len()) };
    let id = order.delivery.to_string();
    for (name, value) in [
        ("apns-id", id.as_str()),
        ("apns-collapse-id", &id),
        ("apns-topic", "com.example.app"),
        ("apns-push-type", "alert"),
        ("apns-priority", "10"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    let until: i64 = request.header("apns-expiration").unwrap().parse().unwrap();
    assert!((until - order.expires_at.unwrap().timestamp()).abs() <= 60);
    let expected = json!({"aps": {"alert": {"title": "T", "body": "M"}, "badge": 5}, "badge": 5, "order": {"id": 7}});
    assert_eq!(request.json().unwrap(), expected);
    let token = token(request);
    let (header, claims) = testing::by_apple(&token).unwrap();
    assert_eq!(header, json!({"alg": "ES256", "kid": "ABC123DEFG"}));
    assert_eq!(claims["iss"], "DEF123GHIJ");
    assert!((before..=clock::now().timestamp()).contains(&claims["iat"].as_i64().unwrap()), "{claims}");
    assert!(testing::by_google(&token).is_none(), "the check itself can fail");
}

#[tokio::test]
async fn all_notifications_share_a_connection_and_a_token() {
    let sink = HttpSink::start_local().await.unwrap();
    let door = CountingProxy::start(sink.address()).await;
    let apns = apns(&format!("http://{}", door.address));
    assert_eq!(apns.post(&hello()).await.class(), Sent);
    let orders: Vec<Order> = (0..50).map(|_| hello()).collect();
    let outcomes = join_all(orders.iter().map(|order| apns.post(order))).await;
    assert!(outcomes.iter().all(|outcome| outcome.class() == Sent), "{outcomes:?}");
    assert_eq!(door.connections(), 1);
    let mut tokens: Vec<String> = sink.requests().iter().map(|request| token(request)).collect();
    assert_eq!(tokens.len(), 51);
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
}

#[tokio::test]
async fn each_reason_has_its_meaning() {
    let sink = HttpSink::start_local().await.unwrap();
    let apns = apns(&sink.url("/"));
    let classes: [(u16, &str, OutcomeClass); 22] = [
        (400, "BadDeviceToken", AddressDead),
        (410, "Unregistered", AddressDead),
        (410, "ExpiredToken", AddressDead),
        (400, "DeviceTokenNotForTopic", Rejected),
        (400, "BadCollapseId", Rejected),
        (400, "PayloadEmpty", Rejected),
        (413, "PayloadTooLarge", Rejected),
        (400, "BadTopic", Misconfigured),
        (400, "MissingTopic", Misconfigured),
        (400, "TopicDisallowed", Misconfigured),
        (400, "BadCertificate", Misconfigured),
        (403, "BadCertificateEnvironment", Misconfigured),
        (403, "Forbidden", Misconfigured),
        (403, "InvalidProviderToken", Misconfigured),
        (403, "MissingProviderToken", Misconfigured),
        (403, "ExpiredProviderToken", Transient),
        (400, "IdleTimeout", Transient),
        (429, "TooManyRequests", Throttled),
        (429, "TooManyProviderTokenUpdates", Throttled),
        (500, "InternalServerError", Transient),
        (503, "ServiceUnavailable", Transient),
        (503, "Shutdown", Transient),
    ];
    for (code, reason, class) in classes {
        sink.reply_to(&path(), refusal(code, reason));
        let outcome = apns.post(&hello()).await;
        assert_eq!(outcome.class(), class, "{reason}: {outcome:?}");
        assert_eq!(outcome.fault().unwrap().code.as_deref(), Some(reason));
    }
}

#[tokio::test]
async fn a_token_that_apple_calls_expired_is_renewed_once() {
    let sink = HttpSink::start_local().await.unwrap();
    let apns = apns(&sink.url("/"));
    sink.reply_to(&path(), refusal(403, "ExpiredProviderToken"));
    for _ in 0..3 {
        assert_eq!(apns.post(&hello()).await.class(), Transient);
    }
    let tokens: Vec<String> = sink.requests().iter().map(|request| token(request)).collect();
    assert!(tokens[0] != tokens[1], "a new one");
    assert_eq!(tokens[1], tokens[2], "and no third one");
}

#[test]
fn a_token_is_kept_between_twenty_and_sixty_minutes() {
    let settings = config(testing::settings(ProviderName::Apns, "http://127.0.0.1:9")).push.apns.unwrap();
    let pem = std::fs::read(&settings.certificate_path).unwrap();
    let signer = Signer::new(&settings.signer.unwrap(), &pem).unwrap();
    let now = clock::now();
    let at = |minutes| signer.token(now + TimeDelta::minutes(minutes)).unwrap();
    let first = at(0);
    assert!(Arc::ptr_eq(&first, &at(20)) && Arc::ptr_eq(&first, &at(39)));
    let second = at(59);
    assert!(!Arc::ptr_eq(&first, &second));
    // The clock was set back: by it, the token would be from the future.
    assert!(!Arc::ptr_eq(&second, &at(0)));
    // One that was dropped lately is not dropped again, a day later it is.
    let cache = at(1);
    signer.drop_expired(&cache, now);
    let next = at(2);
    signer.drop_expired(&next, now + TimeDelta::minutes(2));
    assert!(Arc::ptr_eq(&next, &at(3)));
    signer.drop_expired(&next, now + TimeDelta::minutes(30));
    assert!(!Arc::ptr_eq(&next, &at(31)));
}

#[tokio::test]
async fn what_is_too_large_or_no_token_is_not_sent_at_all() {
    let sink = HttpSink::start_local().await.unwrap();
    let apns = apns(&sink.url("/"));
    let outcome = apns.post(&notification(&json!({"message": "m".repeat(4096)}))).await;
    assert_eq!((outcome.class(), outcome.fault().unwrap().code.as_deref()), (Rejected, Some("PayloadTooLarge")));
    for token in ["../../3/device/x", "a b", "x?y", "%2e"] {
        let outcome = apns.post(&order(Channel::Push, token, r#"{"message":"m"}"#)).await;
        assert_eq!(outcome.class(), Rejected, "{token}");
    }
    assert!(sink.requests().is_empty());
}

#[tokio::test]
async fn the_check_cannot_reach_anybody() {
    let sink = HttpSink::start_local().await.unwrap();
    sink.reply_to("*", refusal(400, "BadDeviceToken"));
    let apns = apns(&sink.url("/"));
    assert!(apns.check().await.unwrap().contains("com.example.app"));
    let [request] = &*sink.requests() else { panic!("one request") };
    assert_eq!(request.path(), format!("/3/device/{}", "0".repeat(64)));
    assert_eq!(request.json().unwrap(), json!({"aps": {"content-available": 1}}));
    for reason in ["InvalidProviderToken", "BadTopic"] {
        sink.reply_to("*", refusal(403, reason));
        assert_eq!(apns.check().await.unwrap_err().code.as_deref(), Some(reason));
    }
}

#[test]
fn a_file_of_another_kind_is_refused_naming_the_setting() {
    let mut settings = testing::settings(ProviderName::Apns, "http://127.0.0.1:10");
    let refused = |settings: &[(&'static str, String)]| {
        Apns::new(&config(settings.iter().cloned()), false).err().unwrap().to_string()
    };
    let without_key_id: Vec<_> =
        settings.iter().filter(|(name, _)| !["APNS_KEY_ID", "APNS_TEAM_ID"].contains(name)).cloned().collect();
    let said = refused(&without_key_id);
    assert!(said.starts_with("APNS_CERTIFICATE_PATH names a file that is not a PEM with a certificate"), "{said}");
    let other = testing::written("no-key");
    std::fs::write(&other, "hunter2").unwrap();
    settings[1].1 = other.display().to_string();
    let said = refused(&settings);
    assert!(said.starts_with("APNS_CERTIFICATE_PATH names a file that is not a token key"), "{said}");
    assert!(!said.contains("hunter2"));
    settings[1].1 = "/nowhere/at/all".to_owned();
    assert_eq!(refused(&settings), "APNS_CERTIFICATE_PATH names a file that cannot be read");
}

#[tokio::test]
async fn a_silent_apple_is_an_unknown_outcome_and_the_next_connection_works() {
    let sink = HttpSink::start_local().await.unwrap();
    let apns = apns(&sink.url("/"));
    sink.reply_to(&path(), Reply::Sequence(vec![Reply::ok(), Reply::CloseAfterBody, Reply::ok()]));
    let classes = [apns.post(&hello()).await, apns.post(&hello()).await, apns.post(&hello()).await];
    let classes: Vec<OutcomeClass> = classes.iter().map(Outcome::class).collect();
    assert_eq!(classes, [Sent, OutcomeClass::Unknown, Sent]);
    assert_eq!(apns.post(&Order { timeout: WAIT, ..hello() }).await.class(), Sent);
}
