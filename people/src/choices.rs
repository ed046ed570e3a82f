//! Reads a change of preferences in any of three forms, which differ in their keys: a map by type (`{"task_reminder":
//! {"enabled": false}}`), a row (`{"category": …, "channel": …, "enabled": …}`), and switches (`{"email_enabled":
//! false}`).

use std::collections::BTreeSet;

use domain::{
    Channel, Preferences,
    category::MARKETING,
    contract::submission::{FieldError, NAME_BYTES_MAX},
    suppression::SuppressionScope,
};
use records::preferences::Consequences;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The most types and categories that one person's preferences may hold.
const KEYS_MAX: usize = 500;
/// The names of a row's field for the type or category.
const ROW_NAMES: [&str; 3] = ["category", "notification_type", "type"];

/// The changes of a request, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Choices(Vec<Choice>);

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Channel(Channel, bool),
    Marketing(bool),
    NonEssential(bool),
    /// A change of a type or category; an inner `None` allows any channel again.
    Key {
        name: String,
        enabled: Option<bool>,
        channels: Option<Option<BTreeSet<Channel>>>,
        off: BTreeSet<Channel>,
    },
    Row {
        name: String,
        channel: Channel,
        on: bool,
    },
    Forget(String),
}

/// The value of one type in the map.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    channels: Option<Option<BTreeSet<Channel>>>,
    #[serde(default)]
    off: BTreeSet<Channel>,
}

/// Tells `null` from nothing.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Choices {
    /// Reads the body of a request about `user_id`; every fault is named.
    pub fn read(user_id: &str, mut body: Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let (mut choices, mut faults) = (Vec::new(), Vec::new());
        for name in ["user_id", "userId"] {
            if body.remove(name).is_some_and(|id| id != user_id) {
                faults.push(FieldError::new(name, "must be the person whose preferences these are"));
            }
        }
        match is_row(&body) {
            true => choices.extend(row(body).map_err(|fault| faults.push(fault)).unwrap_or_default()),
            false => {
                for (name, value) in body {
                    match entry(name, value) {
                        Ok(found) => choices.extend(found),
                        Err(found) => faults.extend(found),
                    }
                }
            }
        }
        if faults.is_empty() { Ok(Self(choices)) } else { Err(faults) }
    }

    /// Applies the change; returns its effect on the person's address.
    pub fn apply(self, preferences: &mut Preferences) -> Result<Consequences, FieldError> {
        let mut consequences = Consequences::default();
        for choice in self.0 {
            let name = choice.name().map(str::to_owned);
            let refused = name.as_deref().is_some_and(|name| refuses_mail(preferences, name));
            let asked = matches!(choice, Choice::Row { channel: Channel::Email, on: true, .. });
            choice.apply(preferences);
            // Opting in again also lifts the suppression of an unsubscribed address.
            if let Some(name) = name.filter(|name| (refused || asked) && !refuses_mail(preferences, name)) {
                consequences.lift.push(SuppressionScope::of_category(&name));
            }
        }
        if preferences.keys.len() > KEYS_MAX {
            return Err(FieldError::new("body", "names more types and categories than the 500 that can be kept"));
        }
        Ok(consequences)
    }
}

fn refuses_mail(preferences: &Preferences, name: &str) -> bool {
    let by_opt_out = name == MARKETING && preferences.no_marketing;
    by_opt_out || preferences.keys.get(name).is_some_and(|choice| choice.refuses(Channel::Email))
}

impl Choice {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Marketing(_) => Some(MARKETING),
            Self::Key { name, .. } | Self::Row { name, .. } => Some(name),
            Self::Channel(..) | Self::NonEssential(_) | Self::Forget(_) => None,
        }
    }

    fn apply(self, preferences: &mut Preferences) {
        match self {
            Self::Channel(channel, on) => drop(preferences.channels.insert(channel, on)),
            Self::Marketing(true) => preferences.switch(MARKETING, true),
            Self::Marketing(false) => preferences.no_marketing = true,
            Self::NonEssential(on) => preferences.only_essential = !on,
            Self::Key { name, enabled, channels, off } => {
                if let Some(channels) = channels {
                    preferences.restrict(&name, channels);
                }
                if let Some(on) = enabled {
                    preferences.switch(&name, on);
                }
                off.into_iter().for_each(|channel| preferences.switch_channel(&name, channel, false));
            }
            Self::Row { name, channel, on } => preferences.switch_channel(&name, channel, on),
            Self::Forget(name) => drop(preferences.keys.remove(&name)),
        }
    }
}

/// A row has a field for yes or no; in the map that field would be a type, with an object as value.
fn is_row(body: &Map<String, Value>) -> bool {
    let is_text = |name: &&str| body.get(*name).is_some_and(Value::is_string);
    ROW_NAMES.iter().chain(&["channel"]).any(is_text) || body.get("enabled").is_some_and(Value::is_boolean)
}

fn row(mut body: Map<String, Value>) -> Result<Vec<Choice>, FieldError> {
    let name = ROW_NAMES.iter().find_map(|name| body.remove(*name)).map(|name| text("category", name)).transpose()?;
    let channel = body.remove("channel").filter(|channel| !channel.is_null());
    let channel = channel.map(|channel| {
        text("channel", channel)?.parse::<Channel>().map_err(|error| FieldError::new("channel", error.to_string()))
    });
    let (channel, on) = (channel.transpose()?, body.remove("enabled"));
    let on = on.and_then(|on| on.as_bool()).ok_or_else(|| FieldError::new("enabled", "is required: true or false"))?;
    if let Some(other) = body.keys().next() {
        return Err(FieldError::new(other, "is no field of a row; those are category, channel and enabled"));
    }
    match (name, channel) {
        (Some(name), channel) => {
            check_name("category", &name)?;
            Ok(vec![match channel {
                Some(channel) => Choice::Row { name, channel, on },
                None => Choice::Key { name, enabled: Some(on), channels: None, off: BTreeSet::new() },
            }])
        }
        (None, Some(channel)) => Ok(vec![Choice::Channel(channel, on)]),
        (None, None) => Err(FieldError::new("category", "is required: which category or type?")),
    }
}

fn text(field: &str, value: Value) -> Result<String, FieldError> {
    value.as_str().map(str::to_owned).ok_or_else(|| FieldError::new(field, "must be a text"))
}

fn entry(name: String, value: Value) -> Result<Vec<Choice>, Vec<FieldError>> {
    match value {
        Value::Object(types) if name == "types" => {
            let (mut choices, mut faults) = (Vec::new(), Vec::new());
            for (name, value) in types {
                match key(name, value) {
                    Ok(found) => choices.push(found),
                    Err(fault) => faults.push(FieldError { field: format!("types.{}", fault.field), ..fault }),
                }
            }
            if faults.is_empty() { Ok(choices) } else { Err(faults) }
        }
        Value::Bool(on) => switch(&name, on).map(|choice| vec![choice]).map_err(|fault| vec![fault]),
        value => key(name, value).map(|choice| vec![choice]).map_err(|fault| vec![fault]),
    }
}

/// One type or category of the map.
fn key(name: String, value: Value) -> Result<Choice, FieldError> {
    check_name(&name, &name)?;
    match value {
        Value::Null => Ok(Choice::Forget(name)),
        Value::Object(_) => {
            let read = serde_json::from_value(value);
            let KeyBody { enabled, channels, off } = read.map_err(|error| FieldError::new(&name, error.to_string()))?;
            Ok(Choice::Key { name, enabled, channels, off })
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(FieldError::new(name, "must be an object such as {\"enabled\": true, \"channels\": [\"in_app\"]}"))
        }
    }
}

fn check_name(field: &str, name: &str) -> Result<(), FieldError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(FieldError::new(field, "must have 1 to 200 bytes and no control characters")) }
}

/// A switch by its name, in either form: `email_enabled`, `emailEnabled`.
fn switch(name: &str, on: bool) -> Result<Choice, FieldError> {
    let plain = name.replace('_', "").to_ascii_lowercase();
    let of_channel = |channel: &Channel| {
        let channel = channel.as_str().replace('_', "");
        plain.strip_prefix(&channel).is_some_and(|rest| matches!(rest, "enabled" | "notifications"))
    };
    if let Some(channel) = Channel::ALL.iter().find(|channel| of_channel(channel)) {
        return Ok(Choice::Channel(*channel, on));
    }
    let row = |channel| Choice::Row { name: MARKETING.to_owned(), channel, on };
    match plain.as_str() {
        "marketing" | "marketingenabled" | "marketingnotifications" | "marketingcommunications" => {
            Ok(Choice::Marketing(on))
        }
        "marketingemail" | "marketingemails" => Ok(row(Channel::Email)),
        "marketingsms" => Ok(row(Channel::Sms)),
        "marketingpush" => Ok(row(Channel::Push)),
        "nonessentialenabled" => Ok(Choice::NonEssential(on)),
        _ => Err(FieldError::new(
            name,
            "is no switch; those are email_enabled, sms_enabled, push_enabled, in_app_enabled, whatsapp_enabled, \
             webhook_enabled, marketing_enabled, marketing_emails and non_essential_enabled; a type takes an object",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Choices, Vec<FieldError>> {
        Choices::read("ada", body.as_object().unwrap().clone())
    }

    fn applied(body: Value) -> Value {
        let mut preferences = Preferences::default();
        read(body).unwrap().apply(&mut preferences).unwrap();
        serde_json::to_value(preferences).unwrap()
    }

    #[test]
    fn each_form_is_told_by_its_keys() {
        for (body, wanted) in [
            (
                json!({"task_reminder": {"enabled": true, "channels": ["in_app"]}, "marketing": {"enabled": false}}),
                json!({"keys": {"task_reminder": {"enabled": true, "channels": ["in_app"]}, "marketing": {"enabled": false}}}),
            ),
            (
                json!({"category": "marketing", "channel": "email", "enabled": false}),
                json!({"keys": {"marketing": {"off": ["email"]}}}),
            ),
            (json!({"category": "news", "enabled": false}), json!({"keys": {"news": {"enabled": false}}})),
            (json!({"channel": "in-app", "enabled": false}), json!({"channels": {"in_app": false}})),
            (
                json!({"user_id": "ada", "category": "news", "channel": null, "enabled": true}),
                json!({"keys": {"news": {"enabled": true}}}),
            ),
            (
                json!({"email_enabled": false, "pushEnabled": true, "sms_notifications": false, "in_app_enabled": true}),
                json!({"channels": {"email": false, "push": true, "sms": false, "in_app": true}}),
            ),
            (json!({"marketing_enabled": false}), json!({"no_marketing": true})),
            (json!({"marketing_emails": false}), json!({"keys": {"marketing": {"off": ["email"]}}})),
            (json!({"non_essential_enabled": false}), json!({"only_essential": true})),
            (
                json!({"whatsapp_enabled": false, "types": {"a": {"enabled": false, "off": ["sms"]}}, "b": {"channels": []}}),
                json!({"channels": {"whatsapp": false}, "keys": {"a": {"enabled": false, "off": ["sms"]}, "b": {"channels": []}}}),
            ),
            // A type may have the name of a row's field.
            (json!({"category": {"enabled": false}}), json!({"keys": {"category": {"enabled": false}}})),
            (json!({}), json!({})),
        ] {
            assert_eq!(applied(body.clone()), wanted, "{body}");
        }
    }

    #[test]
    fn what_is_no_choice_is_named() {
        for (body, field) in [
            (json!({"emial_enabled": false}), "emial_enabled"),
            (json!({"a": {"enabled": "yes"}}), "a"),
            (json!({"a": {"enabled": true, "chanels": []}}), "a"),
            (json!({"a": {"channels": ["pigeon"]}}), "a"),
            (json!({"a": 1}), "a"),
            (json!({"types": {"a": []}}), "types.a"),
            (json!({"category": "a", "channel": "email"}), "enabled"),
            (json!({"category": "a", "channel": "pigeon", "enabled": true}), "channel"),
            (json!({"category": "", "enabled": true}), "category"),
            (json!({"category": "a", "enabled": true, "settings": {}}), "settings"),
            (json!({"enabled": true}), "category"),
            (json!({"user_id": "eve", "email_enabled": true}), "user_id"),
            (json!({"a\u{0}": {"enabled": true}}), "a\u{0}"),
        ] {
            let faults = read(body.clone()).unwrap_err();
            assert_eq!(faults.iter().map(|fault| fault.field.as_str()).collect::<Vec<_>>(), [field], "{body}");
        }
    }

    #[test]
    fn a_field_that_is_not_sent_stays_as_it_was() {
        let mut preferences = Preferences::default();
        let mut put = |body: Value| {
            read(body).unwrap().apply(&mut preferences).unwrap();
            serde_json::to_value(&preferences).unwrap()["keys"]["a"].clone()
        };
        put(json!({"a": {"enabled": true, "channels": ["push"]}}));
        assert_eq!(put(json!({"a": {"enabled": false}})), json!({"enabled": false, "channels": ["push"]}));
        assert_eq!(put(json!({"a": {"enabled": true}})), json!({"enabled": true, "channels": ["push"]}));
        assert_eq!(put(json!({"a": {"channels": null}})), json!({"enabled": true}));
        assert_eq!(put(json!({"a": null})), Value::Null);
    }

    #[test]
    fn only_a_new_yes_ends_an_unsubscription() {
        let mut preferences = Preferences::default();
        let mut lifts = |body: Value| {
            let lift = read(body).unwrap().apply(&mut preferences).unwrap().lift;
            lift.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(lifts(json!({"marketing": {"enabled": true}})).is_empty(), "it was not off");
        assert!(lifts(json!({"category": "marketing", "channel": "email", "enabled": false})).is_empty());
        assert!(lifts(json!({"marketing": {"enabled": true}})).is_empty(), "still off on e-mail");
        assert_eq!(lifts(json!({"category": "marketing", "channel": "email", "enabled": true})), ["marketing"]);
        assert_eq!(lifts(json!({"category": "news", "channel": "email", "enabled": true})), ["category:news"]);
        assert!(lifts(json!({"marketing_enabled": false})).is_empty());
        assert_eq!(lifts(json!({"marketing_enabled": true})), ["marketing"]);
        assert!(lifts(json!({"news": {"enabled": false}})).is_empty());
        assert_eq!(lifts(json!({"news": {"enabled": true}})), ["category:news"]);
    }

    #[test]
    fn nobody_keeps_more_than_so_many_choices() {
        let keys = |n: usize| (0..n).map(|n| (format!("k{n}"), json!({"enabled": true}))).collect::<Map<_, _>>();
        let apply = |n| Choices::read("ada", keys(n)).unwrap().apply(&mut Preferences::default());
        assert!(apply(KEYS_MAX).is_ok() && apply(KEYS_MAX + 1).is_err());
    }
}
