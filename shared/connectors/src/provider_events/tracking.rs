//! Opens and clicks of our own mails: signed links, and the events of following them.
//!
//! A link holds the delivery and, for a click, the target, signed by an HMAC under a key that the database keeps. So
//! the services share the key without a setting, and outsiders cannot make a link to another target.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use deliveries::Deliveries;
use domain::{DeliveryId, EventKind, EventSource, contract::submission::SCHEDULE_AHEAD_MAX};
use serde_json::{Value, json};
use store::{DbResult, Store};
use url::Url;
use uuid::Uuid;

use super::{AddressNews, Meaning, ProviderEvent, Report, own_id, provider_event};

/// The path below the public URL that records opened mails.
pub const OPEN_PATH: &str = "t/o/";
/// The path below the public URL that records clicks.
pub const CLICK_PATH: &str = "t/c/";

/// Half a SHA-256 cannot be guessed and keeps links short.
const TAG_BYTES: usize = 16;
const ID_BYTES: usize = 16;
const OPEN: u8 = b'o';
const CLICK: u8 = b'c';

/// Signs links.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// The content of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The mail it was in.
    pub delivery: DeliveryId,
    /// The target; `None`: it is the pixel.
    pub target: Option<String>,
}

impl Key {
    /// Makes the key from these random bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Loads the key that all processes of this database share.
    pub async fn load(store: &Store) -> DbResult<Self> {
        Ok(Self::new(&store.provider_events().tracking_secret().await?))
    }

    /// The token of the pixel of a mail.
    pub fn open(&self, delivery: DeliveryId) -> String {
        self.token(OPEN, delivery, "")
    }

    /// The token of a link in a mail.
    pub fn click(&self, delivery: DeliveryId, target: &str) -> String {
        self.token(CLICK, delivery, target)
    }

    fn token(&self, kind: u8, delivery: DeliveryId, target: &str) -> String {
        let said = [&[kind], delivery.0.as_bytes().as_slice(), target.as_bytes()].concat();
        let tag = hmac::sign(&self.0, &said);
        let token = [tag.as_ref().get(..TAG_BYTES).unwrap_or_default(), said.as_slice()].concat();
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The content of a valid token.
    pub fn read(&self, token: &str) -> Option<Link> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (tag, said) = bytes.split_at_checked(TAG_BYTES)?;
        let right = hmac::sign(&self.0, said);
        aws_lc_rs::constant_time::verify_slices_are_equal(right.as_ref().get(..TAG_BYTES)?, tag).ok()?;
        let (kind, rest) = said.split_first()?;
        let (id, target) = rest.split_at_checked(ID_BYTES)?;
        let delivery = DeliveryId(Uuid::from_slice(id).ok()?);
        match *kind {
            OPEN => target.is_empty().then_some(Link { delivery, target: None }),
            CLICK => Some(Link { delivery, target: Some(String::from_utf8(target.to_vec()).ok()?) }),
            _ => None,
        }
    }
}

impl Link {
    /// Whether the data of its mail is past its tenant's retention at `now`: the mail was accepted more than
    /// `kept_days` ago, plus the longest time for which a message can be scheduled.
    pub fn is_over(&self, now: DateTime<Utc>, kept_days: i32) -> bool {
        let accepted = self.delivery.0.get_timestamp().map(|at| at.to_unix());
        let accepted = accepted.and_then(|(seconds, _)| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0));
        accepted.is_some_and(|at| at + SCHEDULE_AHEAD_MAX + TimeDelta::days(kept_days.into()) < now)
    }

    /// The event of following it. Opening a mail twice is one event, and so is a second click.
    pub fn events(&self, at: DateTime<Utc>) -> ProviderEvent {
        let kind = if self.target.is_some() { EventKind::Clicked } else { EventKind::Opened };
        let body = json!({"delivery": self.delivery, "kind": kind, "at": at}).to_string();
        provider_event(
            EventSource::Tracking,
            &[b"tracking", self.delivery.0.as_bytes(), kind.as_str().as_bytes()],
            body.into_bytes(),
        )
    }
}

/// Whether a link may be replaced by a tracked one: a web address, short enough for every mail program.
pub fn is_followable(target: &str) -> bool {
    const BYTES_MAX: usize = 1400;
    let is_web = Url::parse(target).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    is_web && target.len() <= BYTES_MAX && !target.chars().any(|c| c.is_control() || c.is_whitespace())
}

pub(super) fn meaning(event: &Value, received_at: DateTime<Utc>) -> Option<Meaning> {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let at = text("at").and_then(|at| DateTime::parse_from_rfc3339(at).ok()).map(|at| at.to_utc());
    Some(Meaning::Report(Report {
        kind: Some(text("kind")?.parse().ok()?),
        at: super::moment(at, received_at),
        delivery: Some(own_id(text("delivery")?)?),
        references: Vec::new(),
        detail: None,
        address: AddressNews::None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider_events;
    use domain::clock;

    #[test]
    fn a_token_says_what_was_signed_and_no_byte_of_it_can_be_changed() {
        let (key, delivery) = (Key::new(&[7; 32]), DeliveryId::generate());
        let (open, click) = (key.open(delivery), key.click(delivery, "https://example.com/a?b=c&d"));
        assert_eq!(key.read(&open), Some(Link { delivery, target: None }));
        let target = Some("https://example.com/a?b=c&d".to_owned());
        assert_eq!(key.read(&click), Some(Link { delivery, target }));
        assert_eq!(Key::new(&[8; 32]).read(&click), None, "another key");
        for token in [open, click] {
            let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                assert_eq!(key.read(&URL_SAFE_NO_PAD.encode(changed)), None, "byte {at} flipped");
            }
            assert_eq!(key.read(&token[..token.len() - 4]), None, "cut off");
        }
        for garbage in ["", "AAAA", "https://example.com", "…"] {
            assert_eq!(key.read(garbage), None);
        }
    }

    #[test]
    fn following_a_link_is_one_event_however_often() {
        let (delivery, now) = (DeliveryId::generate(), clock::now());
        let (pixel, link) =
            (Link { delivery, target: None }, Link { delivery, target: Some("https://a.example".into()) });
        let later = now + chrono::TimeDelta::seconds(5);
        assert_eq!(pixel.events(now).dedup, pixel.events(later).dedup);
        assert_ne!(pixel.events(now).dedup, link.events(now).dedup);
        let Meaning::Report(report) = provider_events::meaning(EventSource::Tracking, &link.events(now).body, later)
        else {
            panic!("no report");
        };
        assert_eq!((report.kind, report.delivery, report.at), (Some(EventKind::Clicked), Some(delivery), now));
        assert!(!String::from_utf8_lossy(&link.events(now).body).contains("a.example"), "the target is not recorded");
    }

    #[test]
    fn a_link_ends_with_what_is_kept_of_its_mail() {
        let now = clock::now();
        let link = Link { delivery: DeliveryId::generate(), target: None };
        for (days, is_over) in [(0, false), (366 + 89, false), (366 + 91, true)] {
            assert_eq!(link.is_over(now + TimeDelta::days(days), 90), is_over, "{days}");
        }
    }

    #[test]
    fn only_web_addresses_are_led_through_us() {
        for good in ["https://example.com", "http://example.com/a?b=c#d"] {
            assert!(is_followable(good), "{good}");
        }
        for bad in [
            "mailto:a@b.example",
            "tel:+49",
            "javascript:alert(1)",
            "//example.com",
            "/x",
            "#x",
            "",
            "https://",
            "https://a b",
        ] {
            assert!(!is_followable(bad), "{bad}");
        }
        assert!(!is_followable(&format!("https://example.com/{}", "x".repeat(2000))));
    }
}
