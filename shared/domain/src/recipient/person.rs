//! A person: where they can be reached, and by whose clock they live.

use chrono_tz::Tz;
use serde_json::{Map, Value};

use crate::{Address, Channel, QuietHours, word::words};

words!(
    /// What kind of device a push token is for.
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
    /// What kind of device it is, where that was said.
    pub platform: Option<Platform>,
}

/// A person as a tenant knows them.
#[derive(Clone, Default)]
pub struct Person {
    /// The tenant's own id of them.
    pub id: String,
    /// Where mails go.
    pub email: Option<String>,
    /// Where text and WhatsApp messages go, in E.164.
    pub phone: Option<String>,
    /// How they are called.
    pub name: Option<String>,
    /// A language tag such as `de-AT`.
    pub locale: Option<String>,
    /// By whose clock they live; `None`: UTC.
    pub time_zone: Option<Tz>,
    /// When they are not disturbed.
    pub quiet_hours: Option<QuietHours>,
    /// What else the tenant knows, such as `tier`.
    pub attributes: Map<String, Value>,
    /// Where push notifications go.
    pub devices: Vec<Device>,
}

impl std::fmt::Debug for Person {
    /// Who it is never shows in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Person(…)")
    }
}

impl Person {
    /// A person of whom only the id is known.
    pub fn unknown(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }

    /// Where they can be reached on a channel; nowhere, or on several devices.
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

    /// What a template sees as `username`.
    pub fn username(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }
}

/// A push recipient taken apart: the platform that was named when the device was registered, and the token. Tokens of Google
/// may hold colons; only a word of [`Platform`] before the first colon is a platform.
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
    /// Its address: the token, behind its platform where the token alone does not tell. See [`Platform`].
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
