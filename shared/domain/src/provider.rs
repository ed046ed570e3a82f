//! The table of providers: one row holds every fact about a provider outside its own code.

use super::{Channel, EventSource, word::words};

/// The row of a provider.
#[derive(Debug)]
pub struct ProviderInfo {
    /// Its bit in [`FailoverRound`](crate::FailoverRound), which is stored with deliveries. It never changes and is
    /// never given to another provider. 0 to 29.
    pub bit: u8,
    /// The channel that it serves; `None`: every channel.
    pub channel: Option<Channel>,
    /// Whether the provider's message ids are stored, so that a report without our id finds its delivery.
    pub keeps_references: bool,
    /// The source of the events that report on its deliveries, if they come as provider events.
    pub reported_by: Option<EventSource>,
    /// Whether it only simulates: nothing leaves the process.
    pub simulates: bool,
}

/// Writes the list of words and the table from one text, so that no provider can be missing from the table.
macro_rules! providers {
    ($($(#[$meta:meta])* $name:ident = $word:literal { $($field:ident: $value:expr),+ }),+ $(,)?) => {
        words!(
            /// A provider that sends the deliveries of a channel.
            ProviderName { $($(#[$meta])* $name = $word),+ }
        );

        impl ProviderName {
            /// The row of this provider.
            pub const fn info(self) -> &'static ProviderInfo {
                match self { $(Self::$name => &ProviderInfo { $($field: $value),+ }),+ }
            }
        }
    };
}

// `ProviderName::of` returns them in this order.
providers! {
    /// SMTP server.
    Smtp = "smtp" {
        bit: 0, channel: Some(Channel::Email), keeps_references: false, reported_by: None, simulates: false
    },
    /// SendGrid v3.
    Sendgrid = "sendgrid" {
        bit: 1, channel: Some(Channel::Email), keeps_references: true, reported_by: Some(EventSource::Sendgrid),
        simulates: false
    },
    /// Amazon SES v2.
    Ses = "ses" {
        bit: 2, channel: Some(Channel::Email), keeps_references: true, reported_by: Some(EventSource::Ses),
        simulates: false
    },
    /// Twilio Messages.
    Twilio = "twilio" {
        bit: 3, channel: Some(Channel::Sms), keeps_references: true, reported_by: Some(EventSource::Twilio),
        simulates: false
    },
    /// Amazon SNS.
    Sns = "sns" {
        bit: 4, channel: Some(Channel::Sms), keeps_references: true, reported_by: None, simulates: false
    },
    /// Firebase Cloud Messaging.
    Fcm = "fcm" {
        bit: 5, channel: Some(Channel::Push), keeps_references: false, reported_by: None, simulates: false
    },
    /// Apple Push Notification service.
    Apns = "apns" {
        bit: 6, channel: Some(Channel::Push), keeps_references: false, reported_by: None, simulates: false
    },
    /// Web Push.
    Webpush = "webpush" {
        bit: 7, channel: Some(Channel::Push), keeps_references: false, reported_by: None, simulates: false
    },
    /// HTTP webhook.
    Http = "http" {
        bit: 8, channel: Some(Channel::Webhook), keeps_references: false, reported_by: None, simulates: false
    },
    /// The in-app inbox.
    Inbox = "inbox" {
        bit: 9, channel: Some(Channel::InApp), keeps_references: false, reported_by: None, simulates: false
    },
    /// WhatsApp HTTP API. Its events come with those of its sessions.
    Waha = "waha" {
        bit: 10, channel: Some(Channel::Whatsapp), keeps_references: true, reported_by: None, simulates: false
    },
    /// Sends nothing. It simulates every outcome deterministically, so that users can try them.
    Sandbox = "sandbox" {
        bit: 11, channel: None, keeps_references: false, reported_by: None, simulates: true
    },
}

impl ProviderName {
    /// The providers that can serve `channel`.
    pub fn of(channel: Channel) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |name| name.serves(channel))
    }

    /// Whether it can serve `channel`.
    pub fn serves(self, channel: Channel) -> bool {
        self.info().channel.is_none_or(|own| own == channel)
    }

    /// Whether `source` reports on its deliveries.
    pub fn is_reported_by(self, source: EventSource) -> bool {
        self.info().reported_by == Some(source)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::FailoverRound;

    #[test]
    fn each_provider_has_the_bit_that_is_stored() {
        use ProviderName as Name;
        let stored = [
            (Name::Smtp, 0),
            (Name::Sendgrid, 1),
            (Name::Ses, 2),
            (Name::Twilio, 3),
            (Name::Sns, 4),
            (Name::Fcm, 5),
            (Name::Apns, 6),
            (Name::Webpush, 7),
            (Name::Http, 8),
            (Name::Inbox, 9),
            (Name::Waha, 10),
            (Name::Sandbox, 11),
        ];
        let table: Vec<_> = Name::ALL.iter().map(|name| (*name, name.info().bit)).collect();
        assert_eq!(table.len(), stored.len(), "the list above lacks a provider");
        for row in stored {
            assert!(table.contains(&row), "the bit of {} has changed", row.0);
            assert_eq!(FailoverRound::NEW.with(row.0, false).0, 1 << row.1);
        }
        let bits: BTreeSet<u8> = table.iter().map(|(_, bit)| *bit).collect();
        assert_eq!(bits.len(), table.len(), "two providers have one bit");
        // Bit 30 says that a provider may recover, and bit 31 is the sign.
        assert!(bits.iter().all(|bit| *bit < 30), "{bits:?}");
    }

    #[test]
    fn each_channel_has_its_providers_and_the_sandbox() {
        use ProviderName::{Apns, Fcm, Http, Inbox, Sandbox, Sendgrid, Ses, Smtp, Sns, Twilio, Waha, Webpush};
        let of = |channel| ProviderName::of(channel).collect::<Vec<_>>();
        assert_eq!(of(Channel::Email), [Smtp, Sendgrid, Ses, Sandbox]);
        assert_eq!(of(Channel::Sms), [Twilio, Sns, Sandbox]);
        assert_eq!(of(Channel::Push), [Fcm, Apns, Webpush, Sandbox]);
        assert_eq!(of(Channel::Webhook), [Http, Sandbox]);
        assert_eq!(of(Channel::InApp), [Inbox, Sandbox]);
        assert_eq!(of(Channel::Whatsapp), [Waha, Sandbox]);
    }

    #[test]
    fn a_provider_that_is_reported_on_keeps_its_references() {
        for name in ProviderName::ALL {
            let info = name.info();
            assert!(info.keeps_references || info.reported_by.is_none(), "a report finds no delivery of {name}");
        }
        // Our own pixels and links carry our id.
        for source in EventSource::ALL.iter().filter(|source| **source != EventSource::Tracking) {
            assert!(ProviderName::ALL.iter().any(|name| name.is_reported_by(*source)), "{source} is in no row");
        }
    }
}
