use chrono::TimeDelta;
use domain::DeliveryId;
use serde_json::json;

use super::*;
use crate::provider_events;

// Made with openssl; the key was deleted.
const PEM: &[u8] = include_bytes!("signing.pem");
const OTHER_PEM: &[u8] = include_bytes!("other.pem");
const SHA1: &str = "RbILzU6dtMbfNf9wkQu2UJqY5hEycFr56gsOioyF/APRH8vOdWfMdBSukM0Dg5akwKnv2jZOXluZ2CO3bJUp7JjM7A+MPVnaj3QbQH/zHa2S+HckrB4KenQtyj+ULz5r1PdwZ7JwxGoKnM+EbJS97W3FPNJLHWg2ZVFHuqum6GZ51PtGBWlTqLhbwIM+3MC75GTQlFTp2s7WyrxU4t3pE3EtTN6eASZ9x9qlt6Xr+gIxa0/MfWic7cnmKU3wmTyznkAtCi+UYpaW5j+umeZLlgjZNCVdtVMbQlRhGAAe4e6z8lw0FFl/7nBvENF/7tzF5bbH+J2/T4vWSuN9+D0DvA==";
const SHA256: &str = "JDIOoak6yLZw44bF9dzL+gshDoSyxOH/3axI+odhJIlf6Nd96QE6cPxxZve9WbqCQu3A2eh3CUHc00U35QA3epG68ZjMZDObijJy8DfOwKgzat/pG4uVFFNm6cP1xO3Gqai/6VthqqD61WiO2TSIwnl1so2CmuM2FJpA+JsCWp+RwmDaEj8cBvrqXCY28raL6zoLsj4I5LcDinS7n+j0jmU962NQ1IzXJaFxjeHUTl8XMGtwVGrkfqVowVe8l+RbFbwnS/tRzKKEmDF6d6DQ3SHE5CdcSKUi0JdR6ucUIgRxpg9Ql9XpVOndCG5cf9CYMJf3Z0XyHnI2dpDbIjglyg==";
const WITHOUT_SUBJECT: &str = "ebDwCKuWns+QfyE/USzQU37s8Nx47s/eraYzLrwqXLc+K74Hxa9wNhsRU5zXiMVwG3iBjv01sG35P+Do7Jy+ACk7SSI//3pCb2dfBsLz6shc1SkmdiKvRBoCDxBVE5W0vRdzVWI7G6/lBjQvZN0TYG4KGqHMmlWTZ4SO8yVE3ZWSI5G1O7kvXPO6PzrIe41tSRN2bU1rbU9yVWJzx/IvxowSwJkdE8a8woOwBrpx/1/GsFrzYjVWXZCB8O+dhAI9GNm1IyYU1rqYqa3bxYUvufcvM/83o03Pdid6y2Q1dLBbnhucxaMoYaeyADzlAO9SCSRGPzaZ2XNimGvhPCn+kQ==";
const SUBSCRIPTION: &str = "TTflqFE1NIhB99nEEq6L+qcIjxOBmrAExqiv4vKO/CsSBDZXOfAunMilt2pa8Q1ZDblMYOgJSzg7SdBmwfdwxyplPgfRoPELdx1eZaK0M05aMuRKGNgQdnC0lnj1+qV13RIdjewst3lgPAFLJn3HNm3Fe05GZ2sKoCGVqFXl7CoIVBfIYYrHVOCLJn48A9SpFU3L815oK70rYw3T9tgUJxQw3q0L42h14aP+2kerwael/1bkrLp6n8lR2Bp/NzuShpILtxK3uTpTayVZLaAU9SAkzg6AsiYRjHxSQH0XCuW/TFSFTMN7hYAcnlJgUXY3QU/X0/uoffrabxc2Tp7YLQ==";

fn then() -> DateTime<Utc> {
    "2026-11-20T18:45:07Z".parse().unwrap()
}

fn certificate() -> Certificate {
    Certificate::parse(PEM).unwrap()
}

fn notification(version: &str, signature: &str) -> Value {
    json!({"Type": "Notification", "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic", "Subject": "My First Message", "Message": "Hello \"world\"!\nä",
        "Timestamp": "2026-11-20T18:45:07.000Z", "SignatureVersion": version, "Signature": signature,
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-1.pem",
        "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe"})
}

fn subscription() -> Value {
    json!({"Type": "SubscriptionConfirmation", "MessageId": "165545c9-2a5c-472c-8df2-7ff2be2b3b1b", "Token": "2336412f37fb",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic", "Message": "You have chosen to subscribe",
        "SubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription",
        "Timestamp": "2026-11-20T18:45:07.000Z", "SignatureVersion": "2", "Signature": SUBSCRIPTION,
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-1.pem"})
}

fn read(value: &Value) -> Envelope {
    Envelope::read(value.to_string().as_bytes()).unwrap()
}

fn holds(value: &Value) -> bool {
    read(value).is_signed_by(&certificate(), then())
}

fn with(mut value: Value, name: &str, changed: &str) -> Value {
    value[name] = json!(changed);
    value
}

#[test]
fn both_versions_hold_and_each_change_breaks_them() {
    assert!(holds(&notification("1", SHA1)) && holds(&notification("2", SHA256)) && holds(&subscription()));
    assert!(!holds(&notification("2", SHA1)) && !holds(&notification("1", SHA256)), "the other hash");
    assert!(read(&notification("1", SHA1)).uses_sha1() && !read(&notification("2", SHA256)).uses_sha1());
    for version in ["", "0", "3", "1.0"] {
        assert!(!holds(&notification(version, SHA256)), "version {version}");
    }
    let other = Certificate::parse(OTHER_PEM).unwrap();
    assert!(!read(&notification("2", SHA256)).is_signed_by(&other, then()), "another certificate");
    for name in ["Type", "MessageId", "TopicArn", "Subject", "Message", "Timestamp"] {
        assert!(!holds(&with(notification("2", SHA256), name, "2026-11-20T18:45:08.000Z")), "{name} changed");
    }
    for name in ["Type", "MessageId", "Token", "TopicArn", "Message", "SubscribeURL", "Timestamp"] {
        assert!(!holds(&with(subscription(), name, "2026-11-20T18:45:08.000Z")), "{name} changed");
    }
    assert!(!holds(&with(notification("2", SHA256), "Signature", "AAAA")));
    assert!(!holds(&with(notification("2", SHA256), "Signature", "not base64!")));
}

#[test]
fn a_subject_is_signed_only_where_there_is_one() {
    let mut value = notification("2", WITHOUT_SUBJECT);
    assert!(!holds(&value));
    value["Subject"] = Value::Null;
    assert!(holds(&value));
    value.as_object_mut().unwrap().remove("Subject");
    assert!(holds(&value));
}

#[test]
fn a_signature_holds_for_a_day_and_not_from_the_future() {
    let at = |now| read(&notification("2", SHA256)).is_signed_by(&certificate(), now);
    assert!(at(then() + TimeDelta::hours(24)));
    assert!(!at(then() + TimeDelta::hours(26)) && !at(then() - TimeDelta::minutes(11)));
}

#[test]
fn certificates_are_fetched_at_sns_and_nowhere_else() {
    let url = |url: &str| read(&with(notification("2", SHA256), "SigningCertURL", url)).certificate_url().is_some();
    for good in [
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.cn-north-1.amazonaws.com.cn/a.pem",
        "https://SNS.eu-west-1.amazonaws.com/a.pem",
    ] {
        assert!(url(good), "{good}");
    }
    for bad in [
        "http://sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com.evil.example/a.pem",
        "https://evil.example/sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/a.pem",
        "https://user@sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com:444/a.pem",
        "https://sns.evil.example.amazonaws.com/a.pem",
        "https://sns..amazonaws.com/a.pem",
        "https://snsXus-east-1.amazonaws.com/a.pem",
        "https://bucket.s3.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.txt",
        "https://127.0.0.1/a.pem",
        "a.pem",
        "",
    ] {
        assert!(!url(bad), "{bad}");
    }
}

#[test]
fn a_certificate_has_a_key_of_a_decent_size_and_a_time() {
    assert!(
        certificate().holds_at(then() + TimeDelta::days(1)) && !certificate().holds_at(then() - TimeDelta::days(1))
    );
    for garbage in
        [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"-----BEGIN PUBLIC KEY-----"]
    {
        assert!(Certificate::parse(garbage).is_none());
    }
}

#[test]
fn what_is_no_envelope_is_refused() {
    for garbage in [&b""[..], b"{}", b"[]", b"\xff", b"{\"Type\": 1}"] {
        assert!(Envelope::read(garbage).is_err());
    }
}

fn meaning_of(event: &Value) -> Meaning {
    let body = json!({"Type": "Notification", "MessageId": "1", "Message": event.to_string()}).to_string();
    provider_events::meaning(EventSource::Ses, body.as_bytes(), then())
}

fn report(event: &Value) -> Report {
    match meaning_of(event) {
        Meaning::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_event_means_what_ses_says() {
    let hard = AddressNews::Suppress(Scope::All, Reason::HardBounce);
    let complaint = AddressNews::Suppress(Scope::Marketing, Reason::Complaint);
    for (event, kind, address) in [
        (json!({"eventType": "Send"}), EventKind::Sent, AddressNews::None),
        (json!({"eventType": "Delivery"}), EventKind::Delivered, AddressNews::Works),
        (json!({"notificationType": "Delivery"}), EventKind::Delivered, AddressNews::Works),
        (json!({"eventType": "Bounce", "bounce": {"bounceType": "Permanent"}}), EventKind::Bounced, hard),
        (json!({"eventType": "Bounce", "bounce": {"bounceType": "Transient"}}), EventKind::Bounced, AddressNews::Weak),
        (
            json!({"notificationType": "Bounce", "bounce": {"bounceType": "Undetermined"}}),
            EventKind::Bounced,
            AddressNews::Weak,
        ),
        (json!({"eventType": "Complaint"}), EventKind::Complained, complaint),
        (json!({"eventType": "Reject"}), EventKind::Failed, AddressNews::None),
        (json!({"eventType": "Rendering Failure"}), EventKind::Failed, AddressNews::None),
        (json!({"eventType": "Open"}), EventKind::Opened, AddressNews::None),
        (json!({"eventType": "Click"}), EventKind::Clicked, AddressNews::None),
    ] {
        let found = report(&event);
        assert_eq!((found.kind, found.address), (Some(kind), address), "{event}");
    }
    for event in [json!({"eventType": "DeliveryDelay"}), json!({"eventType": 1}), json!({}), json!("text")] {
        assert_eq!(meaning_of(&event), Meaning::Nothing, "{event}");
    }
}

#[test]
fn a_delivery_is_named_by_tag_header_or_mail_and_by_their_id() {
    let id = DeliveryId::generate();
    let header = |name: &str, value: String| json!({"messageId": "0100", "headers": [{"name": "From", "value": "x"}, {"name": name, "value": value}]});
    for mail in [
        json!({"messageId": "0100", "tags": {"posthaste_delivery": [id.to_string()]}}),
        header("X-Posthaste-Delivery-Id", id.to_string()),
        header("Message-ID", format!("<{id}@example.com>")),
    ] {
        let found = report(&json!({"eventType": "Bounce", "mail": mail, "bounce": {"bounceType": "Permanent",
            "timestamp": "2026-11-20T18:00:00.000Z", "bouncedRecipients": [{"emailAddress": "ada@example.com", "status": "5.1.1"}]}}));
        assert_eq!((found.delivery, found.references), (Some(id), vec!["0100".to_owned()]));
        assert_eq!(found.detail.as_deref(), Some("the address does not take mail (5.1.1)"));
        assert_eq!(found.at.to_rfc3339(), "2026-11-20T18:00:00+00:00");
    }
}

#[test]
fn a_subscription_is_confirmed_at_sns_and_nowhere_else() {
    let of = |url: &str| {
        let body = json!({"Type": "SubscriptionConfirmation", "SubscribeURL": url}).to_string();
        provider_events::meaning(EventSource::Ses, body.as_bytes(), then())
    };
    assert!(matches!(
        of("https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Token=1"),
        Meaning::Subscribe(_)
    ));
    for bad in ["http://sns.us-west-2.amazonaws.com/", "https://evil.example/", "https://169.254.169.254/", ""] {
        assert_eq!(of(bad), Meaning::Nothing, "{bad}");
    }
}
