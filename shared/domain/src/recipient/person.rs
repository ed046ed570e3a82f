//! A person: addresses and time zone.

use chrono_tz::Tz;
use serde_json::{Map, Value};

use crate::{Address, Channel, QuietHours, word::words};

words!(
    /// The kind of device that a push token belongs to.
    Platform {
        /// Apple's.
        Ios = "ios" | "apns",
        /// Google's.
        Android = "android" | "fcm",
        /// A browser.
        Web = "web" | "webpush",
    }
);

/// A device that push notifications reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its token, or a browser's subscription in JSON.
    pub token: Address,
    /// The kind of device, if it was given.
    pub platform: Option<Platform>,
}

/// A person as a tenant knows them.
#[derive(Clone, Default)]
pub struct Person {
    /// The tenant's own id of them.
    pub id: String,
    /// Where mails go.
    pub email: Option<String>,
    /// The number for text and WhatsApp messages, in E.164.
    pub phone: Option<String>,
    /// How they are called.
    pub name: Option<String>,
    /// A language tag such as `de-AT`.
    pub locale: Option<String>,
    /// Their time zone; `None`: UTC.
    pub time_zone: Option<Tz>,
    /// When they are not disturbed.
    pub quiet_hours: Option<QuietHours>,
    /// Other facts that the tenant knows, such as `tier`.
    pub attributes: Map<String, Value>,
    /// Where push notifications go.
    pub devices: Vec<Device>,
}

impl std::fmt::Debug for Person {
    /// A log never shows who it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Person(…)")
    }
}

impl Person {
    /// A person with an id and nothing else.
    pub fn unknown(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }

    /// Their addresses on a channel: none, one, or one per device.
    pub fn addresses(&self, channel: Channel) -> Vec<Address> {
        let one = |address: &Option<String>| address.iter().map(Address::new).collect();
        match channel {
            Channel::Email => one(&self.email),
            Channel::Sms | Channel::Whatsapp => one(&self.phone),
            Channel::Push => self.devices.iter().map(Device::address).collect(),
            Channel::InApp => vec![Address::new(&self.id)],
            Channel::Webhook => Vec::new(),
        }
    }

    /// By whose clock they live.
    pub fn zone(&self) -> Tz {
        self.time_zone.unwrap_or(Tz::UTC)
    }

    /// The variable `username` of templates.
    pub fn username(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }
}

/// Splits a push recipient into the platform that was named when the device was registered, and the token. Tokens of
/// Google may hold colons, so only a word of [`Platform`] before the first colon is a platform.
pub fn push_target(recipient: &str) -> (Option<Platform>, &str) {
    let named = |platform: &Platform| {
        recipient
            .strip_prefix(platform.as_str())
            .and_then(|rest| rest.strip_prefix(':'))
            .map(|token| (*platform, token))
    };
    match Platform::ALL.iter().find_map(named) {
        Some((platform, token)) => (Some(platform), token),
        None => (None, recipient),
    }
}

impl Device {
    /// Its address: the token, with its platform in front where the token does not show it. See [`Platform`].
    fn address(&self) -> Address {
        match self.platform {
            Some(platform) if !self.token.reveal().starts_with('{') => {
                Address::new(format!("{platform}:{}", self.token.reveal()))
            }
            Some(_) | None => self.token.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_device_is_taken_apart_as_it_was_put_together() {
        for (platform, token) in [
            (Some(Platform::Ios), "0a1b"),
            (Some(Platform::Android), "cXy:APA91bH"),
            (Some(Platform::Web), "cXy:APA91bH"),
            (None, "cXy:APA91bH"),
            (None, "iosx:1"),
            (None, "fcm:1"),
            (None, ""),
        ] {
            let device = Device { token: Address::new(token), platform };
            assert_eq!(push_target(device.address().reveal()), (platform, token));
        }
        let subscription = r#"{"endpoint":"https://push.example.com/x"}"#;
        let device = Device { token: Address::new(subscription), platform: Some(Platform::Web) };
        assert_eq!(device.address().reveal(), subscription);
    }
}
