//! Suppressed addresses: nothing is sent to them any more.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::{Channel, Class, UnknownWord, category::MARKETING, push_target, word::words};

/// The notifications that an address does not get.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SuppressionScope {
    /// Everything.
    All,
    /// Those of class `marketing`.
    Marketing,
    /// Those of this category, or of a type of that name.
    Category(String),
}

const ALL: &str = "all";
/// The prefix of a category's name, so that no category can be mistaken for another word.
const CATEGORY: &str = "category:";

impl SuppressionScope {
    /// The scope of an opt-out of a category.
    pub fn of_category(category: &str) -> Self {
        if category == MARKETING { Self::Marketing } else { Self::Category(category.to_owned()) }
    }

    /// Whether something of this class, category and type is not sent to the address. Only a dead address stops an
    /// essential notification.
    pub fn concerns(&self, class: Class, category: Option<&str>, kind: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Marketing => class == Class::Marketing,
            Self::Category(name) => {
                class != Class::Essential && [category, kind].into_iter().flatten().any(|word| word == name)
            }
        }
    }
}

impl fmt::Display for SuppressionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str(ALL),
            Self::Marketing => f.write_str(MARKETING),
            Self::Category(name) => write!(f, "{CATEGORY}{name}"),
        }
    }
}

impl FromStr for SuppressionScope {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            ALL => Ok(Self::All),
            MARKETING => Ok(Self::Marketing),
            _ => match text.strip_prefix(CATEGORY) {
                Some(name) => Ok(Self::Category(name.to_owned())),
                None => Err(UnknownWord { expected: format!("{ALL}, {MARKETING}, {CATEGORY}…") }),
            },
        }
    }
}

impl Serialize for SuppressionScope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

words!(
    /// Why an address is suppressed.
    SuppressionReason {
        /// The provider answered the call: the address does not exist.
        AddressDead = "address_dead",
        /// A mail or message bounced permanently.
        HardBounce = "hard_bounce",
        /// Several in a row bounced temporarily.
        SoftBounces = "soft_bounces",
        /// The person reported a message as spam.
        Complaint = "complaint",
        /// The person unsubscribed.
        Unsubscribed = "unsubscribed",
    }
);

/// Whether addresses of a channel can be suppressed: those that belong to people and that providers can report as dead.
/// A dead webhook is a matter of its configuration, an inbox cannot die, and a WhatsApp number may be registered later.
pub const fn is_suppressible(channel: Channel) -> bool {
    match channel {
        Channel::Email | Channel::Sms | Channel::Push => true,
        Channel::Webhook | Channel::InApp | Channel::Whatsapp => false,
    }
}

/// The form under which an address is suppressed. Mail addresses ignore case, a browser's subscription counts by its
/// endpoint, and a device token counts without its platform.
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
    fn a_scope_is_about_a_class_or_a_category_and_never_about_what_is_essential() {
        let news = SuppressionScope::of_category("news");
        let table = [
            (&SuppressionScope::All, Class::Essential, None, None, true),
            (&SuppressionScope::All, Class::Transactional, Some("news"), None, true),
            (&SuppressionScope::Marketing, Class::Marketing, Some("marketing"), None, true),
            (&SuppressionScope::Marketing, Class::Marketing, Some("promo"), None, true),
            (&SuppressionScope::Marketing, Class::Transactional, Some("marketing"), None, false),
            (&SuppressionScope::Marketing, Class::Transactional, None, None, false),
            (&news, Class::Transactional, Some("news"), None, true),
            (&news, Class::Marketing, None, Some("news"), true),
            (&news, Class::Transactional, Some("other"), None, false),
            (&news, Class::Essential, Some("news"), None, false),
            (&news, Class::Transactional, None, None, false),
        ];
        for (scope, class, category, kind, wanted) in table {
            assert_eq!(scope.concerns(class, category, kind), wanted, "{scope} {class} {category:?} {kind:?}");
        }
    }

    #[test]
    fn a_scope_comes_back_from_its_text_whatever_its_category_is_called() {
        for category in ["news", "all", "marketing", "category:news", ""] {
            let scope = SuppressionScope::of_category(category);
            assert_ne!(scope, SuppressionScope::All);
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert_eq!("all".parse(), Ok(SuppressionScope::All));
        assert!("news".parse::<SuppressionScope>().is_err());
    }

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
