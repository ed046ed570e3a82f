use domain::{Channel, OutcomeClass};
use serde_json::{Value, json};
use servers::sinks::{
    SmtpSink,
    http::{HttpSink, Reply, Request},
};

use super::*;
use crate::testing::{CountingProxy, SECRET, order};

const WAIT: Duration = Duration::from_secs(60);

fn config(allowed: &[&str]) -> WebhookConfig {
    let allow_nets = allowed.iter().map(|net| net.parse().unwrap()).collect();
    WebhookConfig { backends: vec![ProviderName::Http], timeout: WAIT, allow_nets, disable_after: WAIT, keep_days: 30 }
}

fn http(allowed: &[&str]) -> Http {
    Http::new(&config(allowed), 64).unwrap()
}

/// Loopback is where the receivers of a test are.
fn local() -> Http {
    http(&["127.0.0.0/8", "::1/128"])
}

fn webhook(url: &str, content: &Value) -> Order {
    order(Channel::Webhook, url, &content.to_string())
}

async fn posted(order: &Order, sink: &HttpSink) -> Request {
    let outcome = local().post(order).await;
    assert_eq!(outcome.class(), OutcomeClass::Sent, "{outcome:?}");
    Request::clone(&sink.wait_for(1, WAIT).await.unwrap()[0])
}

async fn outcome_of(reply: Reply) -> Outcome {
    let sink = HttpSink::start_local().await.unwrap();
    // Who stays silent is waited for briefly; who answers is given the time a busy machine needs.
    let timeout = if matches!(reply, Reply::Hang) { Duration::from_millis(300) } else { WAIT };
    sink.reply_to("/", reply);
    let order = Order { timeout, ..webhook(&sink.url("/"), &json!({"data": 1})) };
    local().post(&order).await
}

fn code(outcome: &Outcome) -> (OutcomeClass, &str) {
    (outcome.class(), outcome.fault().and_then(|fault| fault.code.as_deref()).unwrap_or_default())
}

#[tokio::test]
async fn a_request_is_signed_and_carries_its_ids() {
    let sink = HttpSink::start_local().await.unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let order = Order {
        request_id: Some("req-1".to_owned()),
        traceparent: Some(trace.to_owned()),
        ..webhook(&sink.url("/hook?x=1"), &json!({"data": {"a": 1}}))
    };
    let before = clock::now().timestamp();
    let request = posted(&order, &sink).await;
    let id = order.delivery.to_string();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/hook?x=1"));
    for (name, value) in [
        ("content-type", "application/json"),
        ("webhook-id", &id),
        ("idempotency-key", &id),
        ("x-request-id", "req-1"),
        ("traceparent", trace),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert!(request.header("user-agent").unwrap().starts_with("Posthaste/"));
    let timestamp: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
    assert!((before..=clock::now().timestamp()).contains(&timestamp), "{timestamp}");
    assert_eq!(
        request.header("webhook-signature"),
        standard_webhooks::sign(SECRET, &id, timestamp, &request.body).as_deref()
    );
}

#[tokio::test]
async fn data_that_stands_alone_is_sent_byte_for_byte() {
    let sink = HttpSink::start_local().await.unwrap();
    let data = r#"{ "b":1.0,  "a":[ 1e3 ] , "ü":"\u00fc"}"#;
    let order = order(Channel::Webhook, &sink.url("/"), &format!(r#"{{"data":{data},"type":"t"}}"#));
    assert_eq!(posted(&order, &sink).await.text(), data);
}

#[tokio::test]
async fn a_message_with_more_than_data_becomes_an_envelope() {
    let sink = HttpSink::start_local().await.unwrap();
    let content =
        json!({"title": "T", "message": "M", "data": {"n": 1}, "kind": "order.created", "metadata": {"k": "v"}});
    let order = webhook(&sink.url("/"), &content);
    let expected = json!({
        "id": order.message.to_string(), "type": "order.created", "title": "T", "message": "M",
        "data": {"n": 1}, "metadata": {"k": "v"}, "created_at": "2026-11-20T12:00:00.000Z",
    });
    assert_eq!(posted(&order, &sink).await.json().unwrap(), expected);
    sink.clear();
    let order = webhook(&sink.url("/"), &json!({"message": "M"}));
    let expected = json!({"id": order.message.to_string(), "message": "M", "created_at": "2026-11-20T12:00:00.000Z"});
    assert_eq!(posted(&order, &sink).await.json().unwrap(), expected);
}

#[test]
fn each_status_has_its_meaning() {
    use OutcomeClass::{Rejected, Sent, Throttled, Transient};
    for (status, class) in [
        (200, Sent),
        (204, Sent),
        (299, Sent),
        (301, Transient),
        (302, Transient),
        (304, Transient),
        (308, Transient),
        (400, Rejected),
        (401, Rejected),
        (404, Rejected),
        (410, Rejected),
        (422, Rejected),
        (408, Transient),
        (409, Transient),
        (425, Transient),
        (429, Throttled),
        (500, Transient),
        (502, Transient),
        (503, Transient),
        (504, Transient),
        (599, Transient),
    ] {
        let outcome = classify(StatusCode::from_u16(status).unwrap(), None);
        assert_eq!(outcome.class(), class, "{status}");
        let said = match &outcome {
            Outcome::Sent(receipt) => receipt.code.as_deref(),
            failed => failed.fault().and_then(|fault| fault.code.as_deref()),
        };
        assert_eq!(said, Some(status.to_string().as_str()));
    }
}

#[tokio::test]
async fn a_receiver_may_say_when_to_come_back() {
    let asked = Some(Duration::from_secs(17));
    let with = |status| Reply::status(status).with_header("Retry-After", "17");
    assert!(matches!(outcome_of(with(429)).await, Outcome::Throttled(_, wait) if wait == asked));
    assert!(matches!(outcome_of(with(503)).await, Outcome::Transient(_, wait) if wait == asked));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (sink, elsewhere) = (HttpSink::start_local().await.unwrap(), HttpSink::start_local().await.unwrap());
    sink.reply_to("/", Reply::status(307).with_header("Location", &elsewhere.url("/")));
    let outcome = local().post(&webhook(&sink.url("/"), &json!({"data": 1}))).await;
    assert_eq!(code(&outcome), (OutcomeClass::Transient, "307"));
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn once_the_request_was_written_silence_is_an_unknown_outcome() {
    assert_eq!(code(&outcome_of(Reply::Hang).await), (OutcomeClass::Unknown, "timeout"));
    assert_eq!(code(&outcome_of(Reply::CloseAfterBody).await), (OutcomeClass::Unknown, "reset"));
    assert_eq!(code(&outcome_of(Reply::CloseBeforeReading).await), (OutcomeClass::Unknown, "reset"));
    assert_eq!(code(&outcome_of(Reply::Garbage).await), (OutcomeClass::Unknown, "bad_answer"));
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let plain = SmtpSink::start_local().await.unwrap();
    let outcome = local().post(&webhook(&format!("https://{}/", plain.address()), &json!({"data": 1}))).await;
    assert_eq!(code(&outcome), (OutcomeClass::Transient, "tls"));
    let sink = HttpSink::start_local().await.unwrap();
    let closed = sink.url("/");
    drop(sink);
    let outcome = loop {
        // The listener ends with its task, a moment after the sink.
        let outcome = local().post(&webhook(&closed, &json!({"data": 1}))).await;
        if code(&outcome).0 == OutcomeClass::Transient {
            break outcome;
        }
    };
    assert_eq!(code(&outcome), (OutcomeClass::Transient, "connect"));
    let outcome = local().post(&webhook("http://nowhere.invalid/", &json!({"data": 1}))).await;
    assert_eq!(code(&outcome), (OutcomeClass::Transient, "dns"));
}

#[tokio::test]
async fn no_way_leads_inside() {
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let port = canary.local_addr().unwrap().port();
    let guarded = http(&[]);
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
        let outcome = guarded.post(&webhook(&format!("http://{host}:{port}/"), &json!({"data": 1}))).await;
        assert_eq!(code(&outcome), (OutcomeClass::Rejected, "target_not_allowed"), "{host}");
    }
    // As if the name had been public when it was submitted: only the resolver stands in the way now.
    let error = guarded.client.post(format!("http://localhost:{port}/")).send().await.unwrap_err();
    assert_eq!(code(&error_outcome(&error)), (OutcomeClass::Rejected, "target_not_allowed"));
    assert_eq!(canary.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody came");
}

/// A name server that answers each question with the next addresses, and a resolver that asks it anew every time.
async fn name_server(answers: Vec<Vec<std::net::Ipv4Addr>>) -> connectors::egress::resolver::LookUp {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        let mut question = [0; 512];
        while let Ok((length, asker)) = server.recv_from(&mut question).await {
            let addresses = answers.next().unwrap_or_default();
            let mut answer = question[..length].to_vec();
            answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::try_from(addresses.len()).unwrap()]);
            for address in addresses {
                // The name of the question, A, IN, for no time at all.
                answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(address.octets());
            }
            server.send_to(&answer, asker).await.unwrap();
        }
    });
    Arc::new(move |name: String| {
        Box::pin(async move {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
            let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.trim_end_matches('.').split('.') {
                question.push(u8::try_from(label.len()).unwrap());
                question.extend(label.as_bytes());
            }
            question.extend([0, 0, 1, 0, 1]);
            socket.send_to(&question, address).await?;
            let mut answer = [0; 512];
            let (length, _) = socket.recv_from(&mut answer).await?;
            let records = answer[question.len()..length].chunks_exact(16);
            Ok(records.map(|record| ([record[12], record[13], record[14], record[15]], 0).into()).collect())
        })
    })
}

#[tokio::test]
async fn a_name_that_leads_inside_the_second_time_is_not_dialled_the_second_time() {
    let outside = HttpSink::start("127.0.0.2:0".parse().unwrap()).await.unwrap();
    outside.reply_by_default(Reply::ok().with_header("Connection", "close"));
    let port = outside.address().port();
    let canary = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    canary.set_nonblocking(true).unwrap();
    let (out, inside) = ([127, 0, 0, 2].into(), [127, 0, 0, 1].into());
    let look_up = name_server(vec![vec![out], vec![inside], vec![out, inside], vec![], vec![out]]).await;
    let config = config(&["127.0.0.2/32"]);
    let resolver = GuardedResolver::asking(Guard::new(config.allow_nets.clone()), look_up);
    let http = Http::with_resolver(&config, 64, resolver).unwrap();
    let order = webhook(&format!("http://rebind.example.com:{port}/"), &json!({"data": 1}));
    let refused = (OutcomeClass::Rejected, "target_not_allowed");
    assert_eq!(http.post(&order).await.class(), OutcomeClass::Sent, "outside");
    assert_eq!(code(&http.post(&order).await), refused, "inside");
    assert_eq!(code(&http.post(&order).await), refused, "one of them is inside");
    assert_eq!(http.post(&order).await.class(), OutcomeClass::Transient, "nowhere");
    assert_eq!(http.post(&order).await.class(), OutcomeClass::Sent, "outside again");
    assert_eq!(outside.requests().len(), 2);
    assert_eq!(canary.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody came");
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_small_answer_and_a_large_one_is_not_read_to_its_end() {
    let sink = HttpSink::start_local().await.unwrap();
    let door = CountingProxy::start(sink.address()).await;
    let (http, order) = (local(), webhook(&format!("http://{}/", door.address), &json!({"data": 1})));
    sink.reply_to("/", Reply::Status(200, Vec::new(), vec![b'x'; 1000]));
    for _ in 0..5 {
        assert_eq!(http.post(&order).await.class(), OutcomeClass::Sent);
    }
    assert_eq!(door.connections(), 1);
    sink.reply_to("/", Reply::Status(200, Vec::new(), vec![b'x'; 10 * 1024 * 1024]));
    for _ in 0..2 {
        assert_eq!(http.post(&order).await.class(), OutcomeClass::Sent);
    }
    assert_eq!(door.connections(), 2);
}

#[tokio::test]
async fn no_outcome_repeats_an_address_or_content() {
    let sink = HttpSink::start_local().await.unwrap();
    let port = sink.address().port().to_string();
    for reply in [Reply::status(400), Reply::status(500), Reply::Garbage, Reply::CloseAfterBody, Reply::Hang] {
        sink.reply_to("/secret-path", reply);
        let order = webhook(&sink.url("/secret-path"), &json!({"data": "secret-data"}));
        let outcome = local().post(&Order { timeout: Duration::from_millis(300), ..order }).await;
        let said = format!("{outcome:?}");
        assert!(!said.contains("secret") && !said.contains("127.0.0.1") && !said.contains(&port), "{said}");
    }
}
