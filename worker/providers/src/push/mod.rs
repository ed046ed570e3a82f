//! Push notifications: which service a device belongs to, and what all of them show on it.

pub mod apns;
pub mod fcm;
mod signed;
#[cfg(test)]
pub(super) mod testing;
pub mod webpush;

use std::{io, path::Path, time::Duration};

use chrono::{DateTime, Utc};
use domain::{
    Platform, ProviderName, clock,
    contract::{Order, device::is_subscription},
    push_target,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

/// How long a service keeps a message without an expiry for a device that is offline: the most that every service allows.
const TTL_MAX: Duration = Duration::from_hours(28 * 24);
/// Hexadecimal digits of Apple's shortest token. No other service's tokens are hexadecimal.
const APPLE_DIGITS_MIN: usize = 64;

/// Why a push provider could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PushSetupError {
    /// A setting is missing.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A file cannot be read.
    #[error("{0} names a file that cannot be read")]
    File(&'static str, #[source] io::Error),
    /// A file holds something else.
    #[error("{0} names a file that is not {1}")]
    Content(&'static str, &'static str),
    /// The HTTP client could not be created.
    #[error("the HTTP client could not be made")]
    Client(#[from] reqwest::Error),
}

/// Reads what a setting names.
fn file(setting: &'static str, path: &Path) -> Result<String, PushSetupError> {
    std::fs::read_to_string(path).map_err(|error| PushSetupError::File(setting, error))
}

/// Options for push services in the producer's data.
#[derive(Default, Deserialize)]
struct PushOptions {
    platform: Option<Value>,
    badge: Option<Value>,
}

impl PushOptions {
    fn of(order: &Order) -> Self {
        let data = order.content.data.as_deref().map(RawValue::get);
        data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default()
    }

    fn service(&self) -> Option<ProviderName> {
        match self.platform.as_ref()?.as_str()?.to_ascii_lowercase().as_str() {
            "fcm" | "android" => Some(ProviderName::Fcm),
            "apns" | "ios" => Some(ProviderName::Apns),
            "webpush" | "web" => Some(ProviderName::Webpush),
            _ => None,
        }
    }
}

/// The device token, without the platform.
fn token(order: &Order) -> &str {
    push_target(order.recipient.reveal()).1
}

/// The service whose tokens a platform uses. A browser's token that is no subscription is Firebase's.
const fn service_of(platform: Platform) -> ProviderName {
    match platform {
        Platform::Ios => ProviderName::Apns,
        Platform::Android | Platform::Web => ProviderName::Fcm,
    }
}

/// True if `service` is the one for the device of `order`. Web Push gets the subscriptions and nothing else. A service that is the
/// only provider gets every token. Otherwise these decide, in this order: the platform under which the device was registered, the
/// platform that the producer named, the form of the token.
fn is_for(order: &Order, service: ProviderName, is_only_provider: bool) -> bool {
    let (platform, device) = push_target(order.recipient.reveal());
    if is_subscription(device) {
        return service == ProviderName::Webpush;
    }
    if is_only_provider {
        return service != ProviderName::Webpush;
    }
    let is_apple = device.len() >= APPLE_DIGITS_MIN && device.bytes().all(|byte| byte.is_ascii_hexdigit());
    let by_shape = || if is_apple { ProviderName::Apns } else { ProviderName::Fcm };
    let named = platform.map(service_of).or_else(|| PushOptions::of(order).service());
    named.unwrap_or_else(by_shape) == service
}

/// The text that a device shows, and the data for its app.
struct Notice<'a> {
    title: Option<&'a str>,
    body: Option<&'a str>,
    badge: Option<u32>,
    data: Option<&'a RawValue>,
}

impl<'a> Notice<'a> {
    fn of(order: &'a Order) -> Self {
        fn non_empty(text: &Option<String>) -> Option<&str> {
            text.as_deref().filter(|text| !text.is_empty())
        }
        let content = &order.content;
        let badge =
            PushOptions::of(order).badge.and_then(|badge| badge.as_u64()).and_then(|badge| badge.try_into().ok());
        Self {
            title: non_empty(&content.title),
            body: non_empty(&content.message),
            badge,
            data: content.data.as_deref(),
        }
    }

    /// The data by name; what has no names stands under `data`.
    fn members(&self) -> Map<String, Value> {
        match self.data.and_then(|data| serde_json::from_str(data.get()).ok()) {
            Some(Value::Object(members)) => members,
            Some(Value::Null) | None => Map::new(),
            Some(other) => Map::from_iter([("data".to_owned(), other)]),
        }
    }
}

/// How long a service keeps the message for a device that is offline.
fn time_to_live(order: &Order) -> Duration {
    let left = order.expires_at.map(|at| (at - clock::now()).to_std().unwrap_or_default());
    left.map_or(TTL_MAX, |left| left.min(TTL_MAX))
}

/// When a service drops the message.
fn expiry_time(order: &Order) -> DateTime<Utc> {
    clock::now() + time_to_live(order)
}

/// A vendor's error code, if `text` is a single word. Any other text may hold personal data and is dropped.
fn error_word(text: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphabetic() || c == '_';
    (!text.is_empty() && text.len() <= 60 && text.chars().all(plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use domain::Channel;

    use super::*;
    use crate::testing::order;

    fn takers(device: &str, data: &str, is_only_provider: bool) -> Vec<&'static str> {
        let order = order(Channel::Push, device, &format!(r#"{{"message":"m","data":{data}}}"#));
        let services = [ProviderName::Fcm, ProviderName::Apns, ProviderName::Webpush];
        services
            .into_iter()
            .filter(|service| is_for(&order, *service, is_only_provider))
            .map(|name| name.as_str())
            .collect()
    }

    #[test]
    fn a_device_goes_to_the_platform_named_or_to_the_one_its_shape_shows() {
        let apple = "0123456789abcdefABCDEF".repeat(4);
        let subscription = r#"{"endpoint":"https://push.example.com/x"}"#;
        for (device, data, service) in [
            ("device-token-here", "{}", "fcm"),
            ("device-token-here", r#"{"platform":"ios"}"#, "apns"),
            ("device-token-here", r#"{"platform":"APNS"}"#, "apns"),
            ("device-token-here", r#"{"platform":"windows"}"#, "fcm"),
            ("device-token-here", r#"{"platform":7}"#, "fcm"),
            ("device-token-here", "[1]", "fcm"),
            (&apple, "null", "apns"),
            (&apple, r#"{"platform":"android"}"#, "fcm"),
            ("0123abcd", "{}", "fcm"),
            (subscription, "{}", "webpush"),
            (subscription, r#"{"platform":"fcm"}"#, "webpush"),
            ("ios:device-token-here", "{}", "apns"),
            ("ios:device-token-here", r#"{"platform":"android"}"#, "apns"),
            (&format!("android:{apple}"), "{}", "fcm"),
            ("web:cXy:APA91b", "{}", "fcm"),
            ("cXy:APA91b", "{}", "fcm"),
        ] {
            assert_eq!(takers(device, data, false), [service], "{device} {data}");
        }
        assert_eq!(takers(&apple, r#"{"platform":"ios"}"#, true), ["fcm", "apns"]);
        assert_eq!(takers(subscription, "{}", true), ["webpush"]);
        assert_eq!(takers("ios:x", "{}", true), ["fcm", "apns"]);
    }

    #[test]
    fn a_vendor_gets_the_token_without_the_platform_it_was_registered_under() {
        for (recipient, expected) in [
            ("ios:0a1b", "0a1b"),
            ("android:cXy:APA91b", "cXy:APA91b"),
            ("cXy:APA91b", "cXy:APA91b"),
            ("fcm:1", "fcm:1"),
        ] {
            assert_eq!(token(&order(Channel::Push, recipient, "{}")), expected);
        }
    }

    #[test]
    fn a_notice_has_what_there_is_and_a_badge_only_if_it_is_a_number() {
        for (data, badge) in [(r#"{"badge":5}"#, Some(5)), (r#"{"badge":-1}"#, None), (r#"{"badge":"5"}"#, None)] {
            let order = order(Channel::Push, "t", &format!(r#"{{"title":"","message":"m","data":{data}}}"#));
            let notice = Notice::of(&order);
            assert_eq!((notice.title, notice.body, notice.badge), (None, Some("m"), badge), "{data}");
        }
    }

    #[test]
    fn it_is_kept_until_it_expires_and_never_longer_than_four_weeks() {
        let hour = chrono::TimeDelta::hours(1);
        let mut order = order(Channel::Push, "t", "{}");
        assert_eq!(time_to_live(&order).as_secs(), 28 * 24 * 3600);
        order.expires_at = Some(clock::now() + hour * 24 * 100);
        assert_eq!(time_to_live(&order).as_secs(), 28 * 24 * 3600);
        order.expires_at = Some(clock::now() + hour);
        assert!((3000..=3600).contains(&time_to_live(&order).as_secs()));
        order.expires_at = Some(clock::now() - hour);
        assert_eq!(time_to_live(&order).as_secs(), 0);
    }

    #[test]
    fn only_words_of_vendors_are_repeated() {
        assert_eq!(
            (error_word("BadDeviceToken"), error_word("a token 1"), error_word("")),
            (Some("BadDeviceToken"), None, None)
        );
    }
}
