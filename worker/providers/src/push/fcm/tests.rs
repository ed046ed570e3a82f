use domain::{
    Channel,
    OutcomeClass::{AddressDead, Misconfigured, Rejected, Sent, Throttled, Transient, Unknown},
};
use futures_util::future::join_all;
use servers::sinks::http::{HttpSink, Reply, Request};

use super::{
    super::testing::{self, MESSAGES, TOKEN},
    *,
};
use crate::testing::{config, order};

const DEVICE: &str = "bk3RNwTe3H0:CI2k_HHwgIpoDKCIZvvDMExUdFQ3P1";

fn fcm(base: &str) -> Fcm {
    Fcm::new(&config(testing::settings(ProviderName::Fcm, base)), false).unwrap()
}

fn notification(content: &Value) -> Order {
    order(Channel::Push, DEVICE, &content.to_string())
}

fn hello() -> Order {
    notification(&json!({"message": "m"}))
}

fn body(token: &str, seconds: u64) -> Reply {
    Reply::json(200, &json!({"access_token": token, "expires_in": seconds, "token_type": "Bearer"}))
}

fn accepted() -> Reply {
    Reply::json(200, &json!({"name": "projects/project-1/messages/0:1500415314455276%31bd1c9631bd1c96"}))
}

fn refusal(code: u16, status: &str, error: Option<&str>) -> Reply {
    let details =
        error.map(|code| json!({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}));
    let details: Vec<Value> = details.into_iter().collect();
    Reply::json(code, &json!({"error": {"code": code, "message": DEVICE, "status": status, "details": details}}))
}

/// A Google that gives the token `t1` and takes everything.
async fn google() -> (HttpSink, Fcm) {
    let sink = HttpSink::start_local().await.unwrap();
    sink.reply_to(TOKEN, body("t1", 3600));
    sink.reply_to(MESSAGES, accepted());
    let fcm = fcm(&sink.url("/"));
    (sink, fcm)
}

fn bearer(request: &Request) -> &str {
    request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap()
}

#[tokio::test]
async fn a_message_shows_title_and_body_and_its_data_are_texts() {
    let (sink, fcm) = google().await;
    let data = json!({"order": "A1", "amount": 7.5, "nested": {"x": [1]}, "badge": 5, "none": null});
    let mut order = notification(&json!({"title": "T", "message": "M", "data": data}));
    let outcome = fcm.post(&order).await;
    let Outcome::Sent(receipt) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        receipt.provider_ref.as_deref(),
        Some("projects/project-1/messages/0:1500415314455276%31bd1c9631bd1c96")
    );
    let requests = sink.requests_to(MESSAGES);
    let id = order.delivery.to_string();
    let expected = json!({"message": {
        "token": DEVICE,
        "notification": {"title": "T", "body": "M"},
        "data": {"order": "A1", "amount": "7.5", "nested": "{\"x\":[1]}", "badge": "5", "none": "null"},
        "android": {"notification": {"tag": id}},
        "apns": {"headers": {"apns-collapse-id": id}, "payload": {"aps": {"badge": 5}}},
    }});
    assert_eq!(requests[0].json().unwrap(), expected);
    assert_eq!(bearer(&requests[0]), "t1");
    order = hello();
    order.expires_at = Some(clock::now() + chrono::TimeDelta::minutes(10));
    assert_eq!(fcm.post(&order).await.class(), Sent);
    let message = &sink.requests_to(MESSAGES)[1].json().unwrap()["message"];
    assert!(message.get("data").is_none() && message["apns"].get("payload").is_none());
    let ttl: u64 = message["android"]["ttl"].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
    assert!((300..=600).contains(&ttl), "{ttl}");
    assert_eq!(message["apns"]["headers"]["apns-expiration"], order.expires_at.unwrap().timestamp().to_string());
}

#[tokio::test]
async fn the_service_account_signs_for_its_token_and_asks_once_for_all() {
    let (sink, fcm) = google().await;
    let orders: Vec<Order> = (0..20).map(|_| hello()).collect();
    let outcomes = join_all(orders.iter().map(|order| fcm.post(order))).await;
    assert!(outcomes.iter().all(|outcome| outcome.class() == Sent), "{outcomes:?}");
    let asked = sink.requests_to(TOKEN);
    let [request] = asked.as_slice() else { panic!("one token, not {}", asked.len()) };
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    let form = request.text();
    let assertion = form
        .strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=")
        .unwrap_or_else(|| panic!("{form}"));
    let (header, claims) = testing::by_google(assertion).unwrap();
    assert_eq!(header, json!({"alg": "RS256", "typ": "JWT", "kid": "key-canary"}));
    let now = clock::now().timestamp();
    for (name, value) in [
        ("iss", json!("push@project-1.iam.gserviceaccount.com")),
        ("aud", json!(sink.url(TOKEN))),
        ("scope", json!("https://www.googleapis.com/auth/firebase.messaging")),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert!((claims["iat"].as_i64().unwrap() - now).abs() <= 10);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert!(testing::by_apple(assertion).is_none(), "the check itself can fail");
}

#[tokio::test]
async fn each_error_of_fcm_has_its_meaning() {
    let (sink, fcm) = google().await;
    for (code, status, error, class) in [
        (404, "NOT_FOUND", Some("UNREGISTERED"), AddressDead),
        (404, "NOT_FOUND", None, Rejected),
        (400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), Rejected),
        (400, "INVALID_ARGUMENT", None, Rejected),
        (403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"), Rejected),
        (403, "PERMISSION_DENIED", None, Misconfigured),
        (401, "UNAUTHENTICATED", Some("THIRD_PARTY_AUTH_ERROR"), Misconfigured),
        (429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), Throttled),
        (429, "RESOURCE_EXHAUSTED", None, Throttled),
        (503, "UNAVAILABLE", Some("UNAVAILABLE"), Transient),
        (500, "INTERNAL", Some("INTERNAL"), Transient),
    ] {
        sink.reply_to(MESSAGES, refusal(code, status, error));
        let outcome = fcm.post(&hello()).await;
        assert_eq!(outcome.class(), class, "{code} {error:?}: {outcome:?}");
        assert_eq!(outcome.fault().unwrap().code.as_deref(), Some(error.unwrap_or(status)));
        assert!(!format!("{outcome:?}").contains(DEVICE));
    }
    sink.reply_to(MESSAGES, refusal(503, "UNAVAILABLE", Some("UNAVAILABLE")).with_header("Retry-After", "17"));
    let asked = Some(Duration::from_secs(17));
    assert!(matches!(fcm.post(&hello()).await, Outcome::Transient(_, wait) if wait == asked));
    assert_eq!(sink.requests_to(TOKEN).len(), 1, "none of that was the token's fault");
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_the_outcome_says_whose_fault_it_is() {
    for (reply, class, code) in [
        (Reply::json(400, &json!({"error": "invalid_grant"})), Misconfigured, "invalid_grant"),
        (Reply::json(401, &json!({"error": "invalid_client"})), Misconfigured, "invalid_client"),
        (Reply::status(404), Misconfigured, "404"),
        (Reply::status(503), Transient, "503"),
        (Reply::status(302), Transient, "302"),
        (Reply::status(429), Throttled, "429"),
        (Reply::json(200, &json!({"id_token": "x"})), Transient, "200"),
        (Reply::CloseAfterBody, Transient, "reset"),
        (Reply::Garbage, Transient, "bad_answer"),
        (Reply::Hang, Transient, "timeout"),
    ] {
        let (sink, fcm) = google().await;
        sink.reply_to(TOKEN, reply.clone());
        let timeout = if matches!(reply, Reply::Hang) { Duration::from_millis(300) } else { Duration::from_secs(60) };
        let outcome = fcm.post(&Order { timeout, ..hello() }).await;
        assert_eq!(outcome.class(), class, "{reply:?}: {outcome:?}");
        assert_eq!(outcome.fault().unwrap().code.as_deref(), Some(code), "{reply:?}");
        assert!(sink.requests_to(MESSAGES).is_empty(), "{reply:?}");
        sink.reply_to(TOKEN, body("t2", 3600));
        assert_eq!(fcm.post(&hello()).await.class(), Sent, "{reply:?} is not kept");
    }
}

#[tokio::test]
async fn a_token_that_worked_and_is_refused_is_replaced_once() {
    let (sink, fcm) = google().await;
    sink.reply_to(TOKEN, Reply::Sequence(vec![body("t1", 3600), body("t2", 3600), body("t3", 3600)]));
    assert_eq!(fcm.post(&hello()).await.class(), Sent);
    sink.reply_to(MESSAGES, refusal(401, "UNAUTHENTICATED", None));
    assert_eq!(fcm.post(&hello()).await.class(), Transient);
    assert_eq!(fcm.post(&hello()).await.class(), Misconfigured, "the new one is refused as well");
    sink.reply_to(MESSAGES, accepted());
    assert_eq!(fcm.post(&hello()).await.class(), Sent);
    let used: Vec<String> = sink.requests_to(MESSAGES).iter().map(|request| bearer(request).to_owned()).collect();
    assert_eq!(used, ["t1", "t1", "t2", "t3"]);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_and_used_to_it_if_that_fails() {
    let (sink, fcm) = google().await;
    sink.reply_to(TOKEN, Reply::Sequence(vec![body("t1", 3600), Reply::status(503), body("t2", 3600)]));
    assert_eq!(fcm.post(&hello()).await.class(), Sent);
    let aged = |fcm: &Fcm| {
        let mut cached = fcm.tokens.cached.lock().unwrap();
        let token = cached.take().unwrap();
        let value = token.value.expose_secret().into();
        let (renew_at, was_accepted) = (Instant::now(), AtomicBool::new(true));
        *cached = Some(Arc::new(Token { value, renew_at, ends_at: token.ends_at, was_accepted }));
    };
    aged(&fcm);
    assert_eq!(fcm.post(&hello()).await.class(), Sent);
    assert_eq!(fcm.post(&hello()).await.class(), Sent);
    let used: Vec<String> = sink.requests_to(MESSAGES).iter().map(|request| bearer(request).to_owned()).collect();
    assert_eq!(used, ["t1", "t1", "t2"]);
    assert_eq!(sink.requests_to(TOKEN).len(), 3);
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_unknown_outcome() {
    let (sink, fcm) = google().await;
    for reply in [Reply::CloseAfterBody, Reply::Garbage, Reply::json(200, &json!({})), Reply::ok()] {
        sink.reply_to(MESSAGES, reply.clone());
        assert_eq!(fcm.post(&hello()).await.class(), Unknown, "{reply:?}");
    }
}

#[tokio::test]
async fn the_check_fetches_a_token_and_sends_nothing() {
    let (sink, fcm) = google().await;
    assert!(fcm.check().await.unwrap().contains("project-1"));
    sink.reply_to(TOKEN, Reply::json(400, &json!({"error": "invalid_grant"})));
    assert_eq!(fcm.check().await.unwrap_err().code.as_deref(), Some("invalid_grant"));
    assert_eq!((sink.requests_to(TOKEN).len(), sink.requests_to(MESSAGES).len()), (2, 0));
}

#[test]
fn a_file_of_another_kind_is_refused_naming_the_setting() {
    let mut settings = testing::settings(ProviderName::Fcm, "http://127.0.0.1:9");
    let made = |settings: &[(&'static str, String)]| Fcm::new(&config(settings.iter().cloned()), false);
    let named = [&settings[..], &[("FCM_PROJECT_ID", "other".to_owned())]].concat();
    assert!(made(&named).unwrap().send.path().contains("/projects/other/"));
    for (content, says) in [
        ("hunter2", "the JSON file of a service account"),
        (
            r#"{"project_id":"p","private_key":"hunter2","client_email":"a","token_uri":"http://x"}"#,
            "the file of a service account with an RSA key",
        ),
    ] {
        let path = testing::written("no-account");
        std::fs::write(&path, content).unwrap();
        settings[1].1 = path.display().to_string();
        let said = made(&settings).err().unwrap().to_string();
        assert_eq!(said, format!("FCM_CREDENTIALS_PATH names a file that is not {says}"));
    }
}
