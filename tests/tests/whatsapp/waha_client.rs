//! The typed client against a WAHA that behaves as documented.

use std::time::Duration;

use connectors::{
    egress::Trouble,
    waha::{Host, NamedBy, Outgoing, SessionConfig, Waha, WahaError, WebhookSpec},
};
use domain::contract::guard::Guard;
use testkit::waha::{IdShape, SendFault, Waha as Server};

const KEY: &str = "secret";
/// The time limit of a call in tests that are not about time.
const PATIENT_MS: u64 = 60_000;

fn client(server: &Server, key: &str, timeout_ms: u64) -> Host {
    let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let waha = Waha::new(guard, None).unwrap();
    let key = Some(key.to_owned().into());
    waha.host(&server.url(), key.as_ref(), Duration::from_millis(timeout_ms), NamedBy::Tenant).unwrap()
}

fn text() -> Outgoing {
    Outgoing::Text("hello".to_owned())
}

#[tokio::test]
async fn every_form_of_a_taken_message_has_its_id() -> anyhow::Result<()> {
    let server = Server::start(KEY).await?;
    server.add_working("default");
    let host = client(&server, KEY, PATIENT_MS);
    for shape in [IdShape::Text, IdShape::Serialized, IdShape::Key] {
        server.id_shape(shape);
        let sent = host.send("default", "4915112345678@c.us", &text()).await?;
        assert_eq!(sent.id, server.sent().last().map(|sent| sent.id.clone()), "{shape:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_failure_has_its_own_error() -> anyhow::Result<()> {
    let server = Server::start(KEY).await?;
    server.add_working("default");
    server.status_wait(Duration::from_millis(10));
    let host = client(&server, KEY, PATIENT_MS);
    let hello = text();
    let send = || host.send("default", "49@c.us", &hello);
    for (fault, error) in [
        (SendFault::Status(429, Some(7)), WahaError::TooMany(Some(Duration::from_secs(7)))),
        (SendFault::Status(500, None), WahaError::Failed(500, None)),
        (SendFault::NotImplemented, WahaError::NotImplemented),
        (SendFault::CloseAfterSending, WahaError::Unanswered(Trouble::Reset)),
    ] {
        server.next_sends([fault]);
        assert_eq!(send().await.unwrap_err(), error);
    }
    // Time enough to connect and ask, whatever else the machine does.
    server.next_sends([SendFault::HangAfterSending]);
    let hasty = client(&server, KEY, 3000);
    assert_eq!(hasty.send("default", "49@c.us", &hello).await.unwrap_err(), WahaError::Unanswered(Trouble::Timeout));
    server.set_status("default", "SCAN_QR_CODE");
    assert_eq!(send().await.unwrap_err(), WahaError::SessionStatus { status: "SCAN_QR_CODE".to_owned() });
    let stranger = client(&server, "wrong", PATIENT_MS);
    assert_eq!(stranger.send("default", "49@c.us", &text()).await.unwrap_err(), WahaError::BadKey);
    assert_eq!(host.session("other").await.unwrap_err(), WahaError::NotFound);
    server.go_down();
    // A new client: on an open connection it would be unclear whether the message was sent.
    let host = client(&server, KEY, PATIENT_MS);
    assert_eq!(host.send("default", "49@c.us", &hello).await.unwrap_err(), WahaError::Unreachable(Trouble::Connect));
    Ok(())
}

#[tokio::test]
async fn a_session_lives_through_its_states() -> anyhow::Result<()> {
    let server = Server::start(KEY).await?;
    server.link_at_start(false);
    let host = client(&server, KEY, PATIENT_MS);
    let hook = WebhookSpec { url: "http://127.0.0.1:9/".into(), events: vec!["*".into()], ..WebhookSpec::default() };
    let config = SessionConfig { webhooks: vec![hook], ..SessionConfig::default() };
    assert_eq!(host.create_session("one", &config, true).await?.status, "STARTING");
    let scanning = || async { host.qr("one").await.ok() };
    let qr = testkit::eventually("a code can be scanned", Duration::from_secs(60), scanning).await?;
    assert_eq!(qr.mimetype, "image/png");
    server.scan("one");
    let session = host.session("one").await?;
    assert_eq!((session.status.as_str(), session.config.as_ref()), ("WORKING", Some(&config)));
    host.stop_session("one").await?;
    assert_eq!(host.sessions().await?.first().map(|session| session.status.clone()).as_deref(), Some("STOPPED"));
    host.start_session("one").await?;
    host.delete_session("one").await?;
    assert_eq!(host.session("one").await.unwrap_err(), WahaError::NotFound);
    host.ping().await?;
    Ok(())
}

#[tokio::test]
async fn history_and_numbers_can_be_read() -> anyhow::Result<()> {
    let server = Server::start(KEY).await?;
    server.add_working("default");
    let host = client(&server, KEY, PATIENT_MS);
    for n in 0..3 {
        server.receive_silently("default", "4915112345678@c.us", &format!("message {n}"));
    }
    let chats = host.chats("default", 10, 0).await?;
    assert_eq!(chats.iter().map(|chat| chat.id.as_str()).collect::<Vec<_>>(), ["4915112345678@c.us"]);
    let since = chrono::DateTime::from_timestamp(0, 0);
    let messages = host.chat_messages("default", "4915112345678@c.us", since, 2, 0).await?.messages;
    assert_eq!(messages.iter().map(|message| &message["body"]).collect::<Vec<_>>(), ["message 2", "message 1"]);
    server.number("5511987654321", Some("551187654321@c.us"));
    let check = host.check_exists("default", "5511987654321").await?;
    assert_eq!((check.exists, check.chat_id.as_deref()), (true, Some("551187654321@c.us")));
    Ok(())
}

#[tokio::test]
async fn a_tenants_base_url_cannot_lead_inside_but_the_operators_may() -> anyhow::Result<()> {
    let server = Server::start(KEY).await?;
    let inside = server.url();
    let guarded = Waha::new(Guard::default(), None)?;
    let of = |waha: &Waha, url: &str, named_by| waha.host(url, None, Duration::from_millis(PATIENT_MS), named_by);
    let host = of(&guarded, &inside, NamedBy::Operator);
    assert!(matches!(host, Err(WahaError::Unreachable(Trouble::Refused(_)))));
    assert!(of(&guarded, &inside.replace("127.0.0.1", "localhost."), NamedBy::Operator).is_err());
    let operators = Waha::new(Guard::default(), Some(&inside.parse()?))?;
    of(&operators, &inside, NamedBy::Operator)?.ping().await?;
    let others = of(&operators, &inside, NamedBy::Tenant);
    assert!(matches!(others, Err(WahaError::Unreachable(Trouble::Refused(_)))), "another tenant names it");
    assert!(of(&operators, "http://127.0.0.1:1/", NamedBy::Operator).is_err());
    Ok(())
}
