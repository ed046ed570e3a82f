//! One test suite for every vendor with an HTTP API: failures have the same outcome everywhere, every attempt names the
//! delivery, and nothing personal comes back in an outcome. A vendor joins with one entry in [`vendors`].

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{
    Channel, Outcome,
    OutcomeClass::{self, *},
    ProviderName, clock,
    contract::{Order, Provider},
};
use runtime::config::Config;
use servers::sinks::http::{HttpSink, Reply, Request};

use super::{
    email::{sendgrid::Sendgrid, ses::Ses},
    push::{apns::Apns, fcm::Fcm, testing},
    sms::{sns::Sns, twilio::Twilio},
};
use crate::testing::{config, order};

const WAIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(400);
/// Content and credentials hold this word, and no outcome may.
const CANARY: &str = "canary";
const CONTENT: &str = r#"{"title": "subject-canary", "message": "text-canary"}"#;

/// The data of a vendor that the suite needs.
struct Vendor {
    name: ProviderName,
    channel: Channel,
    recipient: &'static str,
    /// The settings for a vendor at the given address; credentials hold the canary.
    settings: fn(&str) -> Vec<(&'static str, String)>,
    make: fn(&Config) -> Arc<dyn Provider>,
    /// Where messages are posted to.
    path: &'static str,
    /// The answer to a message that was taken, and the vendor's id in it.
    taken: fn() -> Reply,
    reference: &'static str,
    /// The outcome of an answer that says "taken" and breaks off in the middle of its body.
    broken_off: OutcomeClass,
    /// The vendor's own ways to refuse; they may quote the recipient and the content, as vendors do.
    refusals: fn() -> Vec<(Reply, OutcomeClass)>,
    /// Whether a request names this delivery.
    names: fn(&Request, &str) -> bool,
    /// Where the check asks, and the answer to right credentials.
    check: (&'static str, fn() -> Reply),
    /// Answers to what is called beside the sending, such as the token of a session.
    beside: fn(&HttpSink),
}

fn vendors() -> Vec<Vendor> {
    vec![sendgrid(), ses(), twilio(), sns(), fcm(), apns()]
}

fn sendgrid() -> Vendor {
    fn refused(code: u16, field: &str) -> Reply {
        let said = format!("ada@example.org is no good for text-{CANARY}");
        Reply::json(code, &serde_json::json!({"errors": [{"message": said, "field": field, "help": null}]}))
    }
    Vendor {
        name: ProviderName::Sendgrid,
        channel: Channel::Email,
        recipient: "ada@example.org",
        settings: |base| {
            let key = ("SENDGRID_API_KEY", format!("SG.key-{CANARY}"));
            let from = ("EMAIL_FROM", "Posthaste <noreply@example.com>".to_owned());
            vec![("EMAIL_BACKEND", "sendgrid".to_owned()), from, key, ("SENDGRID_BASE_URL", base.to_owned())]
        },
        make: |config| Arc::new(Sendgrid::new(config).unwrap()),
        path: "/v3/mail/send",
        taken: || Reply::status(202).with_header("X-Message-Id", "14c5d75ce93.dfd.64b469"),
        reference: "14c5d75ce93.dfd.64b469",
        // The headers alone say everything.
        broken_off: Sent,
        refusals: || {
            let reset = (clock::now().timestamp() + 30).to_string();
            vec![
                (refused(400, "personalizations.0.to.0.email"), Rejected),
                (refused(400, "from.email"), Misconfigured),
                (refused(403, "from"), Misconfigured),
                (refused(413, ""), Rejected),
                (Reply::status(404), Misconfigured),
                (Reply::status(200), Unknown),
                (Reply::status(429).with_header("X-RateLimit-Reset", &reset), Throttled),
            ]
        },
        names: |request, delivery| {
            let body = request.json().unwrap();
            body["custom_args"]["posthaste_delivery"] == delivery
                && body["headers"]["Message-ID"] == format!("<{delivery}@example.com>")
        },
        check: ("/v3/scopes", || Reply::json(200, &serde_json::json!({"scopes": ["mail.send"]}))),
        beside: |_| {},
    }
}

fn aws(base: &str, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let key = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE".to_owned()), ("AWS_SECRET_ACCESS_KEY", format!("key-{CANARY}"))];
    let place = [("AWS_REGION", "eu-central-1".to_owned()), ("AWS_ENDPOINT_URL", base.to_owned())];
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    key.into_iter().chain(place).chain(more).collect()
}

fn ses() -> Vendor {
    fn refused(code: u16, kind: &str, said: &str) -> Reply {
        let said = format!("{said} ada@example.org text-{CANARY}");
        Reply::json(code, &serde_json::json!({"message": said})).with_header("x-amzn-ErrorType", kind)
    }
    Vendor {
        name: ProviderName::Ses,
        channel: Channel::Email,
        recipient: "ada@example.org",
        settings: |base| aws(base, &[("EMAIL_BACKEND", "ses"), ("EMAIL_FROM", "Posthaste <noreply@example.com>")]),
        make: |config| Arc::new(Ses::new(config).unwrap()),
        path: "/v2/email/outbound-emails",
        taken: || Reply::json(200, &serde_json::json!({"MessageId": "0102018f2c1a-4d5e-000000"})),
        reference: "0102018f2c1a-4d5e-000000",
        broken_off: Unknown,
        refusals: || {
            vec![
                (refused(400, "MessageRejected", "Bad content"), Rejected),
                (refused(400, "MessageRejected", "Email address is not verified."), Misconfigured),
                (refused(400, "BadRequestException:http://internal.amazon.com/", "Illegal address"), Rejected),
                (refused(400, "AccountSuspendedException", ""), Misconfigured),
                (refused(400, "SendingPausedException", ""), Misconfigured),
                (refused(400, "MailFromDomainNotVerifiedException", ""), Misconfigured),
                (refused(404, "NotFoundException", ""), Misconfigured),
                (refused(403, "SignatureDoesNotMatch", ""), Misconfigured),
                (refused(400, "ThrottlingException", ""), Throttled),
                (refused(429, "TooManyRequestsException", ""), Throttled),
                (refused(400, "LimitExceededException", ""), Throttled),
                (refused(500, "InternalServiceErrorException", ""), Transient),
            ]
        },
        names: |request, delivery| {
            let body = request.json().unwrap();
            body["EmailTags"] == serde_json::json!([{"Name": "posthaste_delivery", "Value": delivery}])
        },
        check: ("/v2/email/account", || Reply::json(200, &serde_json::json!({"SendingEnabled": true}))),
        beside: |_| {},
    }
}

fn twilio() -> Vendor {
    fn refused(status: u16, code: u32) -> Reply {
        let said = format!("The number +4915112345678 is no good for text-{CANARY}");
        Reply::json(status, &serde_json::json!({"code": code, "message": said, "status": status}))
    }
    Vendor {
        name: ProviderName::Twilio,
        channel: Channel::Sms,
        recipient: "+4915112345678",
        settings: |base| {
            let token = ("TWILIO_AUTH_TOKEN", format!("token-{CANARY}"));
            let base = ("TWILIO_BASE_URL", base.to_owned());
            let rest = [("TWILIO_ACCOUNT_SID", "AC01"), ("TWILIO_FROM_NUMBER", "+15005550006")];
            rest.into_iter().map(|(name, value)| (name, value.to_owned())).chain([token, base]).collect()
        },
        make: |config| Arc::new(Twilio::new(config).unwrap()),
        path: "/2010-04-01/Accounts/AC01/Messages.json",
        taken: || {
            let said = format!("text-{CANARY}");
            let body =
                serde_json::json!({"sid": "SM90c6fc909d8504d45ecdb3a3d5b3556e", "to": "+4915112345678", "body": said});
            Reply::json(201, &body)
        },
        reference: "SM90c6fc909d8504d45ecdb3a3d5b3556e",
        broken_off: Unknown,
        refusals: || {
            vec![
                (refused(400, 21211), AddressDead),
                (refused(400, 21610), AddressDead),
                (refused(400, 21614), AddressDead),
                (refused(400, 21635), AddressDead),
                (refused(401, 20003), Misconfigured),
                (refused(404, 20404), Misconfigured),
                (refused(400, 21606), Misconfigured),
                (refused(400, 21609), Misconfigured),
                (refused(400, 21408), Misconfigured),
                (refused(400, 21617), Rejected),
                (refused(429, 20429), Throttled),
                (refused(400, 21611), Throttled),
                (refused(500, 20500), Transient),
                (Reply::status(404), Misconfigured),
            ]
        },
        names: |request, delivery| {
            let mut fields = url::form_urlencoded::parse(&request.body);
            let callback = fields.find(|(name, _)| name == "StatusCallback").unwrap().1.into_owned();
            callback == format!("http://127.0.0.1:8080/webhooks/twilio?delivery={delivery}")
        },
        check: ("/2010-04-01/Accounts/AC01.json", || Reply::json(200, &serde_json::json!({"sid": "AC01"}))),
        beside: |_| {},
    }
}

fn sns() -> Vendor {
    fn refused(status: u16, code: &str) -> Reply {
        let said = format!("Invalid parameter: PhoneNumber Reason: +4915112345678 text-{CANARY}");
        let body = format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{said}</Message></Error></ErrorResponse>"
        );
        Reply::Status(status, vec![("Content-Type".to_owned(), "text/xml".to_owned())], body.into_bytes())
    }
    Vendor {
        name: ProviderName::Sns,
        channel: Channel::Sms,
        recipient: "+4915112345678",
        settings: |base| aws(base, &[("SMS_BACKEND", "sns"), ("SNS_SENDER_ID", "NEXUS")]),
        make: |config| Arc::new(Sns::new(config).unwrap()),
        path: "/",
        taken: || {
            let id = "<MessageId>94f20ce6-13c5-43a0-9a9e-ca52d816e90b</MessageId>";
            let body = format!("<PublishResponse><PublishResult>{id}</PublishResult></PublishResponse>");
            Reply::Status(200, Vec::new(), body.into_bytes())
        },
        reference: "94f20ce6-13c5-43a0-9a9e-ca52d816e90b",
        broken_off: Unknown,
        refusals: || {
            vec![
                (refused(400, "InvalidParameter"), Rejected),
                (refused(400, "OptedOut"), AddressDead),
                (refused(403, "SignatureDoesNotMatch"), Misconfigured),
                (refused(403, "InvalidClientTokenId"), Misconfigured),
                (refused(400, "ExpiredToken"), Misconfigured),
                (refused(403, "AuthorizationError"), Misconfigured),
                (refused(400, "Throttling"), Throttled),
                (refused(429, "ThrottledException"), Throttled),
                (refused(500, "InternalError"), Transient),
            ]
        },
        names: |request, delivery| request.header("amz-sdk-invocation-id") == Some(delivery),
        check: ("/", || Reply::Status(200, Vec::new(), b"<GetSMSAttributesResponse/>".to_vec())),
        beside: |_| {},
    }
}

fn fcm() -> Vendor {
    fn refused(code: u16, error: &str) -> Reply {
        let said = format!("device-token-1 is no good for text-{CANARY}");
        let details =
            serde_json::json!([{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": error}]);
        Reply::json(
            code,
            &serde_json::json!({"error": {"code": code, "message": said, "status": said, "details": details}}),
        )
    }
    fn token() -> Reply {
        Reply::json(200, &serde_json::json!({"access_token": format!("token-{CANARY}"), "expires_in": 3599}))
    }
    Vendor {
        name: ProviderName::Fcm,
        channel: Channel::Push,
        recipient: "device-token-1",
        settings: |base| testing::settings(ProviderName::Fcm, base),
        make: |config| Arc::new(Fcm::new(config, true).unwrap()),
        path: testing::MESSAGES,
        taken: || Reply::json(200, &serde_json::json!({"name": "projects/project-1/messages/0:15%31bd"})),
        reference: "projects/project-1/messages/0:15%31bd",
        broken_off: Unknown,
        refusals: || {
            vec![
                (refused(404, "UNREGISTERED"), AddressDead),
                (refused(400, "INVALID_ARGUMENT"), Rejected),
                (refused(403, "SENDER_ID_MISMATCH"), Rejected),
                (refused(401, "THIRD_PARTY_AUTH_ERROR"), Misconfigured),
                (refused(429, "QUOTA_EXCEEDED"), Throttled),
                (refused(500, "INTERNAL"), Transient),
                (refused(503, "UNAVAILABLE"), Transient),
            ]
        },
        names: |request, delivery| {
            let message = &request.json().unwrap()["message"];
            message["android"]["notification"]["tag"] == delivery
                && message["apns"]["headers"]["apns-collapse-id"] == delivery
        },
        check: (testing::TOKEN, token),
        beside: |sink| sink.reply_to(testing::TOKEN, token()),
    }
}

/// Over HTTP/2, as Apple speaks nothing else.
fn apns() -> Vendor {
    fn refused(code: u16, reason: &str) -> Reply {
        Reply::json(code, &serde_json::json!({"reason": reason, "timestamp": 1_800_000_000}))
    }
    Vendor {
        name: ProviderName::Apns,
        channel: Channel::Push,
        recipient: "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0",
        settings: |base| testing::settings(ProviderName::Apns, base),
        make: |config| Arc::new(Apns::new(config, true).unwrap()),
        path: "/3/device/00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0",
        taken: || Reply::ok().with_header("apns-id", "EC1BF194-B3B2-424A-9E79-84C1B7ED6DCF"),
        reference: "EC1BF194-B3B2-424A-9E79-84C1B7ED6DCF",
        // The headers alone say everything.
        broken_off: Sent,
        refusals: || {
            vec![
                (refused(400, "BadDeviceToken"), AddressDead),
                (refused(410, "Unregistered"), AddressDead),
                (refused(413, "PayloadTooLarge"), Rejected),
                (refused(400, "BadTopic"), Misconfigured),
                (refused(403, "InvalidProviderToken"), Misconfigured),
                (refused(403, "ExpiredProviderToken"), Transient),
                (refused(429, "TooManyRequests"), Throttled),
                (refused(429, "TooManyProviderTokenUpdates"), Throttled),
            ]
        },
        names: |request, delivery| request.header("apns-id") == Some(delivery),
        check: ("/3/device/0000000000000000000000000000000000000000000000000000000000000000", || {
            refused(400, "BadDeviceToken")
        }),
        beside: |_| {},
    }
}

impl Vendor {
    fn at(&self, base: &str) -> Arc<dyn Provider> {
        self.with(base, |value| value)
    }

    fn with(&self, base: &str, change: impl Fn(String) -> String) -> Arc<dyn Provider> {
        (self.make)(&config((self.settings)(base).into_iter().map(|(name, value)| (name, change(value)))))
    }

    async fn started(&self) -> (HttpSink, Arc<dyn Provider>) {
        let sink = HttpSink::start_local().await.unwrap();
        (self.beside)(&sink);
        let provider = self.at(&sink.url(""));
        (sink, provider)
    }

    fn order(&self, timeout: Duration) -> Order {
        Order { timeout, ..order(self.channel, self.recipient, CONTENT) }
    }

    /// The outcome of one attempt, looked through for what must not be in it.
    async fn outcome(&self, provider: &dyn Provider, timeout: Duration) -> Outcome {
        let outcome = provider.send(&self.order(timeout)).await;
        let shown = format!("{outcome:?}");
        assert!(!shown.contains(CANARY) && !shown.contains(self.recipient), "{}: {shown}", self.name);
        if let Some(fault) = outcome.fault() {
            assert!(fault.code.is_some() && !fault.detail.is_empty(), "{}: {shown}", self.name);
        }
        outcome
    }

    async fn answered(&self, reply: Reply) -> Outcome {
        // A silent server is waited for briefly; one that answers gets the time that a busy machine needs.
        let silent = matches!(reply, Reply::Hang | Reply::Stall(..));
        for timeout in if silent { [SHORT, 10 * SHORT, WAIT] } else { [WAIT; 3] } {
            let (sink, provider) = self.started().await;
            sink.reply_to(self.path, reply.clone());
            let outcome = self.outcome(&*provider, timeout).await;
            let calls = sink.requests_to(self.path).len() + sink.cut_off();
            // On a machine that stands still a short time may end before the call was made; that is no silence of the server.
            if silent && calls == 0 && timeout < WAIT {
                continue;
            }
            assert_eq!(calls, 1, "{}: one call for {reply:?}", self.name);
            return outcome;
        }
        panic!("{}: no call for {reply:?}", self.name)
    }

    /// An answer that quotes what it should not.
    fn indiscreet(&self, code: u16) -> Reply {
        let said = format!("{} text-{CANARY} key-{CANARY}", self.recipient);
        Reply::json(code, &serde_json::json!({"message": said, "code": said, "status": said, "error": said}))
    }
}

fn wait(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Transient(_, wait) | Outcome::Throttled(_, wait) => *wait,
        _ => None,
    }
}

#[tokio::test]
async fn what_is_taken_is_sent_under_the_vendors_id() {
    for vendor in vendors() {
        let (sink, provider) = vendor.started().await;
        sink.reply_to(vendor.path, (vendor.taken)());
        let outcome = vendor.outcome(&*provider, WAIT).await;
        let Outcome::Sent(receipt) = &outcome else { panic!("{}: {outcome:?}", vendor.name) };
        assert_eq!(receipt.provider_ref.as_deref(), Some(vendor.reference), "{}", vendor.name);
        assert!(!receipt.arrived && receipt.code.is_some(), "{}", vendor.name);
        assert_eq!(provider.name(), vendor.name);
        assert!(sink.requests_to(vendor.path)[0].header("user-agent").unwrap().starts_with("Posthaste/"));
    }
}

#[tokio::test]
async fn each_refusal_has_its_meaning() {
    for vendor in vendors() {
        let everywhere = [
            (vendor.indiscreet(401), Misconfigured),
            (vendor.indiscreet(302), Transient),
            (vendor.indiscreet(408), Transient),
            (vendor.indiscreet(429), Throttled),
            (vendor.indiscreet(500), Transient),
            (vendor.indiscreet(503), Transient),
            (vendor.indiscreet(429).stalled(), Throttled),
            (vendor.indiscreet(503).stalled(), Transient),
        ];
        for (reply, expected) in (vendor.refusals)().into_iter().chain(everywhere) {
            let said = match &reply {
                Reply::Status(_, _, body) => String::from_utf8_lossy(body).into_owned(),
                other => format!("{other:?}"),
            };
            let outcome = vendor.answered(reply.clone()).await;
            assert_eq!(outcome.class(), expected, "{} {reply:?} {said}: {outcome:?}", vendor.name);
        }
    }
}

#[tokio::test]
async fn the_wait_a_vendor_asks_for_is_kept_in_seconds_and_as_a_date() {
    for vendor in vendors() {
        for code in [429, 503] {
            let seconds = vendor.answered(vendor.indiscreet(code).with_header("Retry-After", "120")).await;
            assert_eq!(wait(&seconds), Some(Duration::from_secs(120)), "{} {code}: {seconds:?}", vendor.name);
            let at = (clock::now() + Duration::from_secs(3600)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let date = vendor.answered(vendor.indiscreet(code).with_header("Retry-After", &at)).await;
            let wait = wait(&date).unwrap_or_default().as_secs();
            assert!((3000..=3601).contains(&wait), "{} {code}: {date:?}", vendor.name);
            let none = vendor.answered(vendor.indiscreet(code)).await;
            assert_eq!(self::wait(&none), None, "{} {code}: {none:?}", vendor.name);
        }
    }
}

#[tokio::test]
async fn what_may_have_been_taken_is_unknown() {
    for vendor in vendors() {
        let nonsense = Reply::Status(200, Vec::new(), b"<html>ada@example.org text-canary".to_vec());
        for reply in [Reply::Hang, Reply::CloseBeforeReading, Reply::CloseAfterBody, Reply::Garbage, nonsense] {
            let outcome = vendor.answered(reply.clone()).await;
            assert_eq!(outcome.class(), Unknown, "{} {reply:?}: {outcome:?}", vendor.name);
        }
        let half = vendor.answered((vendor.taken)().stalled()).await;
        assert_eq!(half.class(), vendor.broken_off, "{}: {half:?}", vendor.name);
    }
}

#[tokio::test]
async fn what_never_left_is_tried_again() {
    for vendor in vendors() {
        let (sink, _) = vendor.started().await;
        let over_tls = vendor.at(&format!("https://{}", sink.address()));
        let outcome = vendor.outcome(&*over_tls, WAIT).await;
        assert_eq!(outcome.class(), Transient, "{}: {outcome:?}", vendor.name);
        assert!(sink.requests().is_empty());
        // No process listens there, and none is given the port.
        let outcome = vendor.outcome(&*vendor.at("http://127.0.0.1:1"), WAIT).await;
        assert_eq!(outcome.class(), Transient, "{}: {outcome:?}", vendor.name);
    }
}

#[tokio::test]
async fn every_attempt_names_its_delivery() {
    for vendor in vendors() {
        let (sink, provider) = vendor.started().await;
        sink.reply_to(vendor.path, Reply::Sequence(vec![Reply::status(503), (vendor.taken)()]));
        let first = vendor.order(WAIT);
        assert_eq!(provider.send(&first).await.class(), Transient, "{}", vendor.name);
        assert_eq!(provider.send(&Order { attempt: 2, ..first.clone() }).await.class(), Sent, "{}", vendor.name);
        let requests = sink.requests_to(vendor.path);
        assert_eq!(requests.len(), 2, "{}", vendor.name);
        for request in &requests {
            assert!((vendor.names)(request, &first.delivery.to_string()), "{}: {}", vendor.name, request.text());
        }
        let other = vendor.order(WAIT).delivery.to_string();
        assert!(!(vendor.names)(&requests[0], &other), "{}: the check itself can fail", vendor.name);
    }
}

#[tokio::test]
async fn a_breaker_is_of_one_vendor_and_credential_and_gives_none_away() {
    for vendor in vendors() {
        let order = vendor.order(WAIT);
        let key = |provider: Arc<dyn Provider>| provider.breaker_key(&order).unwrap();
        let here = key(vendor.at("http://127.0.0.1:9"));
        assert!(here.starts_with(&format!("{}/", vendor.name)) && !here.contains(CANARY), "{here}");
        assert_eq!(here, key(vendor.at("http://127.0.0.1:9")), "{}", vendor.name);
        let other = vendor.with("http://127.0.0.1:9", |value| value.replace(CANARY, "another"));
        assert_ne!(here, key(other), "{}", vendor.name);
    }
}

#[tokio::test]
async fn a_check_sends_nothing_and_tells_wrong_credentials() {
    for vendor in vendors() {
        let (sink, provider) = vendor.started().await;
        let (path, reply) = vendor.check;
        sink.reply_to(path, Reply::Sequence(vec![reply(), vendor.indiscreet(401), vendor.indiscreet(500)]));
        let said = provider.check().await.unwrap_or_else(|fault| panic!("{}: {fault:?}", vendor.name));
        assert!(!said.contains(CANARY), "{said}");
        for code in ["401", "500"] {
            let fault = provider.check().await.unwrap_err();
            assert_eq!(fault.code.as_deref(), Some(code), "{}: {fault:?}", vendor.name);
            assert!(!format!("{fault:?}").contains(CANARY), "{fault:?}");
        }
        let asked = sink.requests_to(path);
        assert_eq!(asked.len(), 3, "{}", vendor.name);
        assert!(asked.iter().all(|request| !request.text().contains(vendor.recipient)), "{}", vendor.name);
        assert!(path == vendor.path || sink.requests_to(vendor.path).is_empty(), "{}", vendor.name);
        drop(sink);
    }
}

/// RFC 8058 headers, in the fields of a vendor or in the mail that goes to it whole.
#[tokio::test]
async fn a_mail_by_any_vendor_says_how_to_unsubscribe_if_one_can() {
    let file = serde_json::json!([{"filename": "a.txt", "content_type": "text/plain", "content": "aGVsbG8="}]);
    for vendor in vendors().iter().filter(|vendor| vendor.channel == Channel::Email) {
        for files in [serde_json::json!([]), file.clone()] {
            for url in [Some("https://n.example/u/abc"), None] {
                let (sink, provider) = vendor.started().await;
                sink.reply_to(vendor.path, (vendor.taken)());
                let content = serde_json::json!({"message": "m", "attachments": files, "unsubscribe_url": url});
                let order = order(vendor.channel, vendor.recipient, &content.to_string());
                assert_eq!(provider.send(&order).await.class(), Sent, "{}", vendor.name);
                let body = sink.requests()[0].json().unwrap();
                let raw = body["Content"]["Raw"]["Data"].as_str().map(|data| STANDARD.decode(data).unwrap());
                let text = raw.map_or_else(|| body.to_string(), |raw| String::from_utf8(raw).unwrap());
                for part in ["<https://n.example/u/abc>", "List-Unsubscribe-Post", "List-Unsubscribe=One-Click"] {
                    assert_eq!(text.contains(part), url.is_some(), "{} {part}: {text}", vendor.name);
                }
            }
        }
    }
}
