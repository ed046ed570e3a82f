use std::{sync::Arc, time::Duration};

use domain::{Channel, OutcomeClass};
use runtime::config::Config;
use servers::sinks::smtp::{Options, Reply, SmtpSink};

use super::*;
use crate::testing::{CountingProxy, config, order};

const WAIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn smtp(sink: &SmtpSink, login: Option<(&str, &str)>) -> Smtp {
    smtp_at(sink.address(), login)
}

fn smtp_at(address: std::net::SocketAddr, login: Option<(&str, &str)>) -> Smtp {
    Smtp::new(&settings(address, login).email).unwrap()
}

fn settings(address: std::net::SocketAddr, login: Option<(&str, &str)>) -> Config {
    let server = [("SMTP_HOST", address.ip().to_string()), ("SMTP_PORT", address.port().to_string())];
    let words = [("SMTP_USE_TLS", "none"), ("EMAIL_FROM", "Posthaste <noreply@example.com>")];
    let login = login.map(|(user, password)| [("SMTP_USER", user), ("SMTP_PASSWORD", password)]);
    let words = words.into_iter().chain(login.into_iter().flatten());
    config(server.into_iter().chain(words.map(|(name, value)| (name, value.to_owned()))))
}

fn to(recipient: &str, message: &str) -> Order {
    let content = serde_json::json!({"title": "T", "message": message});
    order(Channel::Email, recipient, &content.to_string())
}

fn within(timeout: Duration, order: Order) -> Order {
    Order { timeout, ..order }
}

fn code(outcome: &Outcome) -> (OutcomeClass, &str) {
    (outcome.class(), outcome.fault().and_then(|fault| fault.code.as_deref()).unwrap_or_default())
}

fn said(code: u16, text: &str) -> Reply {
    Reply::Code(code, text.to_owned())
}

#[tokio::test]
async fn a_mail_arrives_as_it_was_meant() {
    let sink = SmtpSink::start_local().await.unwrap();
    let order = to("ada@example.org", "first\n.second");
    let outcome = smtp(&sink, None).mail(&order).await;
    assert!(
        matches!(&outcome, Outcome::Sent(receipt) if !receipt.arrived && receipt.code.as_deref() == Some("250")),
        "{outcome:?}"
    );
    let mails = sink.wait_for(1, WAIT).await.unwrap();
    assert_eq!(
        (mails[0].sender.as_str(), &mails[0].recipients),
        ("noreply@example.com", &vec!["ada@example.org".to_owned()])
    );
    assert_eq!(mails[0].header("Message-ID"), Some(format!("<{}@example.com>", order.delivery)));
    assert!(mails[0].text().contains("\r\n.second"), "{}", mails[0].text());
}

#[tokio::test]
async fn one_connection_carries_many_mails_even_after_refusals() {
    let sink = SmtpSink::start_local().await.unwrap();
    let door = CountingProxy::start(sink.address()).await;
    let smtp = smtp_at(door.address, None);
    sink.reply_to_recipient("gone@example.org", said(550, "5.1.1 no such person"));
    for recipient in ["ada@example.org", "gone@example.org", "bob@example.org"] {
        smtp.mail(&to(recipient, "m")).await;
    }
    assert_eq!((sink.mails().len(), door.connections()), (2, 1));
}

#[tokio::test]
async fn replies_are_classed_by_where_they_come() {
    let sink = SmtpSink::start_local().await.unwrap();
    let smtp = smtp(&sink, None);
    sink.reply_to_recipient("gone@example.org", said(550, "5.1.1 <gone@example.org> unknown"));
    sink.reply_to_recipient("spam@example.org", said(554, "5.7.1 policy"));
    sink.reply_to_recipient("grey@example.org", said(451, "4.7.1 later"));
    sink.reply_to_recipient("busy@example.org", said(421, "4.7.0 too many"));
    for (recipient, expected) in [
        ("gone@example.org", (OutcomeClass::AddressDead, "550")),
        ("spam@example.org", (OutcomeClass::Rejected, "554")),
        ("grey@example.org", (OutcomeClass::Transient, "451")),
        ("busy@example.org", (OutcomeClass::Throttled, "421")),
        ("ada@example.org", (OutcomeClass::Sent, "")),
    ] {
        let outcome = smtp.mail(&to(recipient, "m")).await;
        assert_eq!(code(&outcome), expected, "{recipient}");
        assert!(!format!("{outcome:?}").contains('@'), "{outcome:?}");
    }
    sink.reply_to_content(said(554, "5.6.0 no"));
    assert_eq!(code(&smtp.mail(&to("ada@example.org", "m")).await), (OutcomeClass::Rejected, "554"));
    sink.reply_to_content(said(452, "4.3.1 full"));
    assert_eq!(code(&smtp.mail(&to("ada@example.org", "m")).await), (OutcomeClass::Transient, "452"));
    sink.reply_to_sender(said(553, "5.7.1 not yours"));
    assert_eq!(code(&smtp.mail(&to("ada@example.org", "m")).await), (OutcomeClass::Misconfigured, "553"));
}

#[tokio::test]
async fn wrong_credentials_are_our_fault() {
    let options = Options { credentials: Some(("user".to_owned(), "right".to_owned())), ..Options::default() };
    let sink = SmtpSink::start_with(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let order = to("ada@example.org", "m");
    assert_eq!(code(&smtp(&sink, Some(("user", "wrong"))).mail(&order).await), (OutcomeClass::Misconfigured, "535"));
    assert_eq!(code(&smtp(&sink, None).mail(&order).await), (OutcomeClass::Misconfigured, "530"));
    assert_eq!(smtp(&sink, Some(("user", "right"))).mail(&order).await.class(), OutcomeClass::Sent);
}

#[tokio::test]
async fn a_check_logs_in_and_sends_nothing() {
    let options = Options { credentials: Some(("user".to_owned(), "right".to_owned())), ..Options::default() };
    let sink = SmtpSink::start_with(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    smtp(&sink, Some(("user", "right"))).check().await.unwrap();
    let refused = smtp(&sink, Some(("user", "wrong"))).check().await.unwrap_err();
    assert_eq!(refused.code.as_deref(), Some("535"), "{refused:?}");
    assert!(sink.mails().is_empty());
    let nobody = ([127, 0, 0, 1], 1).into();
    assert_eq!(smtp_at(nobody, None).check().await.unwrap_err().code.as_deref(), Some("connect"));
}

#[tokio::test]
async fn a_mail_that_can_be_unsubscribed_from_says_how() {
    let sink = SmtpSink::start_local().await.unwrap();
    let smtp = smtp(&sink, None);
    let with = |url: &str| {
        let content = serde_json::json!({"message": "m", "unsubscribe_url": url});
        order(Channel::Email, "ada@example.org", &content.to_string())
    };
    smtp.mail(&with("https://n.example/u/abc")).await;
    smtp.mail(&with("https://n.example/>\r\nBcc: spy@example.net")).await;
    smtp.mail(&to("ada@example.org", "m")).await;
    let said: Vec<_> = sink.mails().iter().map(|mail| mail.header("List-Unsubscribe")).collect();
    assert_eq!(said, [Some("<https://n.example/u/abc>".to_owned()), None, None]);
    let promise = sink.mails()[0].header("List-Unsubscribe-Post");
    assert_eq!(promise.as_deref(), Some("List-Unsubscribe=One-Click"));
    assert_eq!(sink.mails()[1].header("List-Unsubscribe-Post"), None);
}

#[tokio::test]
async fn what_breaks_before_the_content_was_certainly_not_sent() {
    let sink = SmtpSink::start_local().await.unwrap();
    // Only silence is waited for briefly.
    let (briefly, order) = (|| within(SHORT, to("ada@example.org", "m")), || to("ada@example.org", "m"));
    sink.reply_to_connection(Reply::Hang);
    assert_eq!(code(&smtp(&sink, None).mail(&briefly()).await), (OutcomeClass::Transient, "timeout"));
    sink.reply_to_connection(Reply::Drop);
    assert_eq!(code(&smtp(&sink, None).mail(&order()).await), (OutcomeClass::Transient, "connect"));
    sink.accept_all();
    sink.reply_to_recipients(Reply::Drop);
    assert_eq!(code(&smtp(&sink, None).mail(&order()).await), (OutcomeClass::Transient, "reset"));
    sink.reply_to_recipients(Reply::Hang);
    assert_eq!(code(&smtp(&sink, None).mail(&briefly()).await), (OutcomeClass::Transient, "timeout"));
    assert!(sink.mails().is_empty());
    let nobody = smtp(&sink, None);
    drop(sink);
    let outcome = loop {
        // The listener ends with its task, a moment after the sink.
        let outcome = nobody.mail(&order()).await;
        if code(&outcome).1 == "connect" {
            break outcome;
        }
    };
    assert_eq!(outcome.class(), OutcomeClass::Transient);
}

#[tokio::test]
async fn what_breaks_after_the_content_may_have_been_sent() {
    let sink = SmtpSink::start_local().await.unwrap();
    let smtp = smtp(&sink, None);
    sink.reply_to_content(Reply::Drop);
    assert_eq!(code(&smtp.mail(&to("ada@example.org", "m")).await), (OutcomeClass::Unknown, "reset"));
    sink.clear();
    sink.reply_to_content(Reply::Hang);
    assert_eq!(code(&cut_short(&sink, &smtp, "ada@example.org").await), (OutcomeClass::Unknown, "timeout"));
}

/// A mail whose time ends once its content has arrived. A short time may end before that, on a machine that stands still.
async fn cut_short(sink: &SmtpSink, smtp: &Smtp, recipient: &str) -> Outcome {
    for timeout in [SHORT, 10 * SHORT, WAIT] {
        let outcome = smtp.mail(&within(timeout, to(recipient, "m"))).await;
        let has_arrived = sink.wait_for(1, SHORT).await.is_ok();
        if has_arrived || timeout == WAIT {
            return outcome;
        }
    }
    unreachable!("the last time is the longest")
}

/// A connection whose user was cut short must not carry another mail: that one would read the replies to the first.
#[tokio::test]
async fn a_mail_cut_short_does_not_spoil_the_next_one() {
    let sink = SmtpSink::start_local().await.unwrap();
    let smtp = Arc::new(smtp(&sink, None));
    // Far later than the mail is given up, and sooner than the next one would be.
    let late = Reply::Accept.after(WAIT / 2);
    sink.reply_to_content(Reply::Sequence(vec![late, said(554, "5.6.0 no"), Reply::Accept]));
    let first = cut_short(&sink, &smtp, "first@example.org").await;
    assert_eq!(code(&first), (OutcomeClass::Unknown, "timeout"));
    assert_eq!(code(&smtp.mail(&to("second@example.org", "m")).await), (OutcomeClass::Rejected, "554"));
    assert_eq!(smtp.mail(&to("third@example.org", "m")).await.class(), OutcomeClass::Sent);
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_without_an_attempt_lost() {
    let sink = SmtpSink::start_local().await.unwrap();
    let door = CountingProxy::start(sink.address()).await;
    let smtp = smtp_at(door.address, None);
    assert_eq!(smtp.mail(&to("ada@example.org", "m")).await.class(), OutcomeClass::Sent);
    sink.reply_to_sender(Reply::Sequence(vec![Reply::Drop, Reply::Accept]));
    assert_eq!(smtp.mail(&to("ada@example.org", "m")).await.class(), OutcomeClass::Sent);
    assert_eq!((sink.mails().len(), door.connections()), (2, 2));
}

#[tokio::test]
async fn a_mail_that_gets_no_turn_in_time_spends_no_attempt() {
    let sink = SmtpSink::start_local().await.unwrap();
    let smtp = smtp(&sink, None);
    let all = smtp.permits.acquire_many(u32::try_from(CONNECTIONS_MAX).unwrap()).await.unwrap();
    let outcome = smtp.mail(&within(SHORT, to("ada@example.org", "m"))).await;
    assert_eq!(code(&outcome), (OutcomeClass::Throttled, "busy"));
    drop(all);
    assert_eq!(smtp.mail(&to("ada@example.org", "m")).await.class(), OutcomeClass::Sent);
}

#[tokio::test]
async fn files_arrive_with_their_names_and_bytes() {
    let sink = SmtpSink::start_local().await.unwrap();
    let content = serde_json::json!({
        "message": "see file",
        "attachments": [{"filename": "a.bin", "content_type": "application/octet-stream", "content": "AAECAw=="}],
    });
    let outcome = smtp(&sink, None).mail(&order(Channel::Email, "ada@example.org", &content.to_string())).await;
    assert_eq!(outcome.class(), OutcomeClass::Sent);
    let text = sink.wait_for(1, WAIT).await.unwrap()[0].text();
    assert!(text.contains("a.bin") && text.contains("AAECAw=="), "{text}");
}

#[test]
fn settings_that_make_no_mail_server_are_refused() {
    let email = config([("EMAIL_FROM", "a@b.example".to_owned())]).email;
    assert!(matches!(Smtp::new(&email), Err(SmtpSetupError::Incomplete)));
}
