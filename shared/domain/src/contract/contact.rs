//! The changes that a producer makes to a person: the body of `PUT /api/users/{id}` and the rows of an import. One
//! validator checks both.
//!
//! A given field is set, `null` removes it, and an absent field stays. Each attribute follows the same rule.
//! No message repeats a value of the input, because lists of faults are stored.

use chrono_tz::Tz;
use serde_json::{Map, Value};

use super::{
    field_error::{FieldError, shown},
    submission::{NAME_BYTES_MAX, is_email, is_phone},
    time_of_day::minute_of_day,
};
use crate::{Person, QuietHours};

/// Largest `attributes` of a person, in bytes of JSON.
pub const ATTRIBUTES_BYTES_MAX: usize = 8 * 1024;
/// Longest language tag; RFC 5646 says that 35 are enough for any.
const LOCALE_BYTES_MAX: usize = 35;
/// Longest part of a language tag.
const SUBTAG_BYTES_MAX: usize = 8;

/// The change of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It goes.
    Remove,
    /// It becomes this.
    Set(T),
}

impl<T> Change<T> {
    fn apply(self, field: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Remove => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}

/// A checked change of a person.
#[derive(Clone, Default)]
pub struct ContactChange {
    /// The tenant's own id of the person.
    pub id: String,
    /// Where mails go.
    pub email: Change<String>,
    /// The number for text and WhatsApp messages, in E.164.
    pub phone: Change<String>,
    /// How they are called.
    pub name: Change<String>,
    /// Their language.
    pub locale: Change<String>,
    /// By whose clock they live.
    pub time_zone: Change<Tz>,
    /// When they are not disturbed.
    pub quiet_hours: Change<QuietHours>,
    /// Other facts; a `null` inside removes one.
    pub attributes: Change<Map<String, Value>>,
}

impl std::fmt::Debug for ContactChange {
    /// A log never shows who it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContactChange(…)")
    }
}

impl ContactChange {
    /// Checks the members of an object and reports every fault at once. `id` is the person, if the object does not name
    /// it.
    pub fn read(members: Map<String, Value>, id: Option<&str>) -> Result<Self, Vec<FieldError>> {
        let mut reader = Reader::default();
        let mut change = Self { id: id.unwrap_or_default().to_owned(), ..Self::default() };
        for (name, value) in members {
            reader.member(&mut change, name, value);
        }
        if change.id.is_empty() && reader.faults.iter().all(|fault| fault.field != USER_ID) {
            reader.refuse(USER_ID, "is required");
        }
        if reader.faults.is_empty() { Ok(change) } else { Err(reader.faults) }
    }

    /// Changes `person`. Fails if all attributes together would be too large.
    pub fn apply(self, person: &mut Person) -> Result<(), FieldError> {
        if let Change::Set(given) = &self.attributes {
            let mut merged = person.attributes.clone();
            merge(&mut merged, given.clone());
            if bytes(&merged) > ATTRIBUTES_BYTES_MAX {
                return Err(FieldError::new(
                    ATTRIBUTES,
                    "would have more than 8 KiB as JSON, with what is there already",
                ));
            }
            person.attributes = merged;
        } else if self.attributes == Change::Remove {
            person.attributes = Map::new();
        }
        self.email.apply(&mut person.email);
        self.phone.apply(&mut person.phone);
        self.name.apply(&mut person.name);
        self.locale.apply(&mut person.locale);
        self.time_zone.apply(&mut person.time_zone);
        self.quiet_hours.apply(&mut person.quiet_hours);
        Ok(())
    }
}

fn merge(attributes: &mut Map<String, Value>, given: Map<String, Value>) {
    for (name, value) in given {
        match value {
            Value::Null => drop(attributes.remove(&name)),
            value => drop(attributes.insert(name, value)),
        }
    }
}

fn bytes(attributes: &Map<String, Value>) -> usize {
    serde_json::to_vec(attributes).map_or(usize::MAX, |json| json.len())
}

const USER_ID: &str = "user_id";
const ATTRIBUTES: &str = "attributes";

#[derive(Default)]
struct Reader {
    faults: Vec<FieldError>,
}

impl Reader {
    fn refuse(&mut self, field: &str, message: &str) {
        self.faults.push(FieldError::new(field, message));
    }

    fn member(&mut self, change: &mut ContactChange, name: String, value: Value) {
        match name.as_str() {
            "id" | USER_ID => self.id(&mut change.id, &value),
            "email" => change.email = self.text("email", value, email),
            "phone" => change.phone = self.text("phone", value, phone),
            "name" => change.name = self.text("name", value, name_of_person),
            "locale" => change.locale = self.text("locale", value, locale),
            "time_zone" => change.time_zone = self.text("time_zone", value, time_zone),
            "quiet_hours" => change.quiet_hours = self.quiet_hours(value),
            ATTRIBUTES => change.attributes = self.attributes(value),
            _ => self.faults.push(FieldError::new(shown(name), "is unknown")),
        }
    }

    /// The id in the object must equal the id that is already known.
    fn id(&mut self, known: &mut String, value: &Value) {
        match value.as_str() {
            Some(id) if known.is_empty() && is_user_id(id) => id.clone_into(known),
            Some(id) if !known.is_empty() && id == known => {}
            Some(_) if !known.is_empty() => self.refuse(USER_ID, "must be the same wherever it stands"),
            _ => self.refuse(USER_ID, "must be a text of 1 to 200 bytes without control characters"),
        }
    }

    fn text<T>(
        &mut self,
        field: &str,
        value: Value,
        check: impl FnOnce(String) -> Result<T, &'static str>,
    ) -> Change<T> {
        let checked = match value {
            Value::Null => return Change::Remove,
            Value::String(text) => check(text),
            _ => Err("must be a text, or null to remove it"),
        };
        match checked {
            Ok(value) => Change::Set(value),
            Err(message) => {
                self.refuse(field, message);
                Change::Keep
            }
        }
    }

    fn quiet_hours(&mut self, value: Value) -> Change<QuietHours> {
        let mut members = match value {
            Value::Null => return Change::Remove,
            Value::Object(members) => members,
            _ => {
                self.refuse("quiet_hours", "must be {\"start\": \"22:00\", \"end\": \"08:00\"}, or null to remove it");
                return Change::Keep;
            }
        };
        let [start, end] = ["start", "end"].map(|name| {
            let minute = members.remove(name).and_then(|value| minute_of_day(value.as_str()?));
            if minute.is_none() {
                self.refuse(&format!("quiet_hours.{name}"), "must be a time of day such as 22:00");
            }
            minute
        });
        for (name, _) in members {
            self.faults.push(FieldError::new(format!("quiet_hours.{}", shown(name)), "is unknown"));
        }
        match start.zip(end) {
            Some((start, end)) if start == end => {
                self.refuse(
                    "quiet_hours.end",
                    "must differ from start: quiet hours can neither be empty nor last all day",
                );
                Change::Keep
            }
            Some((start, end)) => Change::Set(QuietHours { start, end }),
            None => Change::Keep,
        }
    }

    fn attributes(&mut self, value: Value) -> Change<Map<String, Value>> {
        match value {
            Value::Null => Change::Remove,
            Value::Object(members) if bytes(&members) > ATTRIBUTES_BYTES_MAX => {
                self.refuse(ATTRIBUTES, "must have at most 8 KiB as JSON");
                Change::Keep
            }
            Value::Object(members) if members.iter().any(|(name, value)| !is_storable(name) || has_nul(value)) => {
                self.refuse(ATTRIBUTES, "must have names of 1 to 200 bytes, and no NUL anywhere");
                Change::Keep
            }
            Value::Object(members) => Change::Set(members),
            _ => {
                self.refuse(ATTRIBUTES, "must be an object, or null to remove all");
                Change::Keep
            }
        }
    }
}

/// Whether a text can be the id of a person.
pub fn is_user_id(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_storable(name: &str) -> bool {
    is_user_id(name)
}

/// The database's JSON has no NUL.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn email(text: String) -> Result<String, &'static str> {
    let is_plain = is_email(&text) && !text.chars().any(char::is_control);
    if is_plain { Ok(text) } else { Err("must be one e-mail address such as ada@example.com") }
}

fn phone(text: String) -> Result<String, &'static str> {
    if is_phone(&text) { Ok(text) } else { Err("must be a phone number in E.164 form: + and 7 to 15 digits") }
}

fn name_of_person(text: String) -> Result<String, &'static str> {
    if is_user_id(&text) { Ok(text) } else { Err("must have 1 to 200 bytes and no control characters") }
}

fn locale(text: String) -> Result<String, &'static str> {
    let text = text.replace('_', "-");
    let is_subtag = |part: &str| {
        (1..=SUBTAG_BYTES_MAX).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let language = text.split('-').next().unwrap_or_default();
    let is_language = language.len() >= 2 && language.bytes().all(|byte| byte.is_ascii_alphabetic());
    let fits = text.len() <= LOCALE_BYTES_MAX && is_language && text.split('-').all(is_subtag);
    if fits { Ok(text) } else { Err("must be a language tag such as de or de-AT") }
}

fn time_zone(text: String) -> Result<Tz, &'static str> {
    text.parse().map_err(|_| "must be a zone of the IANA database such as Europe/Vienna")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ContactChange, Vec<FieldError>> {
        let Value::Object(members) = value else { panic!("an object") };
        ContactChange::read(members, Some("ada"))
    }

    fn fields(value: Value) -> Vec<String> {
        read(value).unwrap_err().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_is_given_is_set_null_removes_and_the_rest_stays() {
        let mut person = Person::unknown("ada");
        let all = json!({"email": "ada@example.com", "phone": "+43123456789", "name": "Ada", "locale": "de_AT", "time_zone": "Europe/Vienna",
            "quiet_hours": {"start": "22:00", "end": "08:00"}, "attributes": {"tier": "gold", "age": 36}});
        read(all).unwrap().apply(&mut person).unwrap();
        assert_eq!(person.locale.as_deref(), Some("de-AT"));
        assert_eq!(person.quiet_hours, Some(QuietHours { start: 22 * 60, end: 8 * 60 }));
        read(json!({"email": null, "attributes": {"tier": null, "vip": true}})).unwrap().apply(&mut person).unwrap();
        assert_eq!((person.email.as_deref(), person.phone.as_deref()), (None, Some("+43123456789")));
        assert_eq!(Value::Object(person.attributes.clone()), json!({"age": 36, "vip": true}));
        read(json!({"attributes": null, "quiet_hours": null, "time_zone": null})).unwrap().apply(&mut person).unwrap();
        assert!(person.attributes.is_empty() && person.quiet_hours.is_none() && person.time_zone.is_none());
    }

    #[test]
    fn every_fault_is_named_and_no_value_is_told() {
        let bad = json!({"attributes": 7, "colour": "x", "email": "canary", "locale": "x", "name": "", "phone": "0123",
            "quiet_hours": {"start": "24:00", "end": "8:00"}, "time_zone": "Mars/Olympus"});
        let mut named = fields(bad.clone());
        named.sort();
        assert_eq!(
            named,
            [
                "attributes",
                "colour",
                "email",
                "locale",
                "name",
                "phone",
                "quiet_hours.end",
                "quiet_hours.start",
                "time_zone"
            ]
        );
        let told = format!("{:?}", read(bad).unwrap_err());
        assert!(!told.contains("canary") && !told.contains("Mars"), "{told}");
        assert_eq!(fields(json!({"ada@example.com": 1})), ["(unknown)"]);
        assert_eq!(fields(json!({"quiet_hours": {"start": "08:00", "end": "08:00"}})), ["quiet_hours.end"]);
        assert_eq!(fields(json!({"quiet_hours": {"start": "08:00"}})), ["quiet_hours.end"]);
        assert_eq!(fields(json!({"attributes": {"a": ["x\u{0}"]}})), ["attributes"]);
        assert_eq!(fields(json!({"attributes": {"a": "x".repeat(ATTRIBUTES_BYTES_MAX)}})), ["attributes"]);
        assert_eq!(fields(json!({"user_id": "eve"})), ["user_id"]);
        assert!(read(json!({"user_id": "ada"})).is_ok());
    }

    #[test]
    fn a_row_without_an_id_is_refused() {
        let row = |value: &Value| ContactChange::read(value.as_object().unwrap().clone(), None);
        assert_eq!(row(&json!({"id": "ada"})).unwrap().id, "ada");
        assert_eq!(row(&json!({})).unwrap_err(), [FieldError::new("user_id", "is required")]);
        assert_eq!(row(&json!({"user_id": ""})).unwrap_err().len(), 1);
        assert_eq!(row(&json!({"user_id": 7})).unwrap_err().len(), 1);
    }

    #[test]
    fn attributes_that_grow_too_large_together_are_refused() {
        let mut person = Person::unknown("ada");
        let half = |name: &str| read(json!({"attributes": {name: "x".repeat(5000)}})).unwrap();
        half("a").apply(&mut person).unwrap();
        assert_eq!(half("b").apply(&mut person).unwrap_err().field, "attributes");
        half("a").apply(&mut person).unwrap();
    }
}
