//! Addresses that nothing is sent to any more.

use super::{Channel, push_target, word::words};

words!(
    /// What is kept from an address.
    SuppressionScope {
        /// Everything.
        All = "all",
        /// Deliveries of category `marketing`.
        Marketing = "marketing",
    }
);

words!(
    /// Why an address is suppressed.
    SuppressionReason {
        /// The provider said, when it was called, that the address does not exist (any more).
        AddressDead = "address_dead",
        /// A mail or message came back for good.
        HardBounce = "hard_bounce",
        /// Several in a row came back for the time being.
        SoftBounces = "soft_bounces",
        /// The person called a message unwanted.
        Complaint = "complaint",
        /// The person unsubscribed.
        Unsubscribed = "unsubscribed",
    }
);

/// Whether addresses of a channel can be suppressed: those that belong to people and that providers know to be dead. A webhook
/// that is gone is its configuration's business, an inbox cannot die, and a WhatsApp number may be registered tomorrow.
pub const fn is_suppressible(channel: Channel) -> bool {
    match channel {
        Channel::Email | Channel::Sms | Channel::Push => true,
        Channel::Webhook | Channel::InApp | Channel::Whatsapp => false,
    }
}

/// The form of an address under which it is suppressed: nobody runs mailboxes that differ in case only, a browser's
/// subscription is its endpoint, and a token is dead whatever platform was named with it.
pub fn suppressed_form(channel: Channel, address: &str) -> String {
    match channel {
        Channel::Email => address.trim().to_ascii_lowercase(),
        Channel::Push => endpoint(address).unwrap_or_else(|| push_target(address.trim()).1.to_owned()),
        Channel::Sms | Channel::Webhook | Channel::InApp | Channel::Whatsapp => address.trim().to_owned(),
    }
}

fn endpoint(subscription: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(subscription).ok()?;
    Some(value.get("endpoint")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_form() {
        assert_eq!(suppressed_form(Channel::Email, " Ada@Example.COM"), "ada@example.com");
        assert_eq!(suppressed_form(Channel::Sms, "+4915112345678"), "+4915112345678");
        let subscription = r#"{"keys":{"auth":"x"},"endpoint":"https://push.example/1"}"#;
        assert_eq!(suppressed_form(Channel::Push, subscription), "https://push.example/1");
        assert_eq!(suppressed_form(Channel::Push, "Token"), "Token", "tokens of devices differ in case");
        assert_eq!(suppressed_form(Channel::Push, "android:cXy:APA91b"), "cXy:APA91b");
        assert_eq!(suppressed_form(Channel::Push, "cXy:APA91b"), "cXy:APA91b");
    }
}
