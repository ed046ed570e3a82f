//! The body of a template in requests and answers: a flat body, parts by channel, or both.

use content::template::{DEFAULT, Fault, Kind, Sources, TemplateSource};
use domain::{
    Channel,
    contract::submission::{FieldError, NAME_BYTES_MAX, Part},
};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// Variables that one template may declare.
const VARIABLES_MAX: usize = 200;

/// A new template. A PUT changes the given fields; `null` removes a part.
///
/// `subject`, `body` and `html_body` are for every channel that has no part of its own.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TemplateSettings)]
pub struct TemplateBody {
    /// Its name, which requests and other templates (`{{> name}}`) use. Required to create one.
    #[schema(max_length = 200, example = "order_confirmation")]
    pub name: Option<String>,
    /// The category of its messages, unless a request names one.
    #[schema(max_length = 200, example = "transactional")]
    pub category: Option<String>,
    /// Subject or title, as text: nothing is escaped.
    #[serde(default, alias = "title", deserialize_with = "given")]
    #[schema(value_type = Option<String>, example = "Order #{{ order_id }} Confirmed")]
    pub subject: Option<Option<String>>,
    /// The plain text: nothing is escaped.
    #[serde(default, alias = "message", alias = "text_body", deserialize_with = "given")]
    #[schema(value_type = Option<String>, example = "Hello {{ customer_name }}")]
    pub body: Option<Option<String>>,
    /// The HTML of a mail; variables are escaped.
    #[serde(default, alias = "html", deserialize_with = "given")]
    #[schema(value_type = Option<String>, example = "<p>Hello {{ customer_name }}</p>")]
    pub html_body: Option<Option<String>>,
    /// The variables that each send must give; `order.id` means a member of an object.
    #[schema(example = json!(["customer_name", "order_id"]))]
    pub variables: Option<Vec<String>>,
    /// Whether it can be used; default `true`.
    pub active: Option<bool>,
    /// The part for mails.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub email: Option<Option<PartBody>>,
    /// The part for text messages.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub sms: Option<Option<PartBody>>,
    /// The part for push notifications.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub push: Option<Option<PartBody>>,
    /// The part for webhooks.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub webhook: Option<Option<PartBody>>,
    /// The part for the inbox.
    #[serde(default, alias = "in-app", deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub in_app: Option<Option<PartBody>>,
    /// The part for WhatsApp messages.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PartBody>)]
    pub whatsapp: Option<Option<PartBody>>,
}

/// The part for one channel.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TemplatePart)]
pub struct PartBody {
    /// Title; `subject` is accepted too, and returned for mails.
    #[serde(alias = "subject")]
    title: Option<String>,
    /// The plain text; `text_body` is accepted too, and returned for mails.
    #[serde(alias = "text_body", alias = "message", alias = "text")]
    body: Option<String>,
    /// The HTML of a mail.
    #[serde(alias = "html")]
    html_body: Option<String>,
}

/// Distinguishes `null` from an absent field.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl TemplateBody {
    /// The template after the change. `at`: the prefix of its field names.
    pub fn apply(self, before: Option<&TemplateSource>, at: &str) -> Result<TemplateSource, Vec<FieldError>> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: &str| faults.push(FieldError::new(format!("{at}{field}"), message));
        let mut parts = before.map(|before| before.parts.clone()).unwrap_or_default();
        let (subject, body, html_body) = (self.subject, self.body, self.html_body);
        let whole = parts.remove(DEFAULT).unwrap_or_default();
        let whole = Part {
            title: subject.unwrap_or(whole.title),
            message: body.unwrap_or(whole.message),
            html: html_body.unwrap_or(whole.html),
        };
        if whole != Part::default() {
            parts.insert(DEFAULT.to_owned(), whole);
        }
        let own = [
            (Channel::Email, self.email),
            (Channel::Sms, self.sms),
            (Channel::Push, self.push),
            (Channel::Webhook, self.webhook),
            (Channel::InApp, self.in_app),
            (Channel::Whatsapp, self.whatsapp),
        ];
        for (channel, part) in own {
            match part {
                None => {}
                Some(None) => drop(parts.remove(channel.as_str())),
                Some(Some(PartBody { title, body, html_body })) => {
                    let part = Part { title, message: body, html: html_body };
                    if part == Part::default() {
                        fault(channel.as_str(), "must say something");
                    }
                    parts.insert(channel.to_string(), part);
                }
            }
        }
        let name = self.name.or_else(|| before.map(|before| before.name.clone()));
        match &name {
            None => fault("name", "is required"),
            Some(name) if !is_name(name) => fault("name", "must have 1 to 200 bytes and no control characters"),
            Some(_) => {}
        }
        if self.category.as_ref().is_some_and(|category| !is_name(category)) {
            fault("category", "must have 1 to 200 bytes and no control characters");
        }
        let variables = self.variables.or_else(|| before.map(|before| before.variables.clone())).unwrap_or_default();
        if variables.len() > VARIABLES_MAX || !variables.iter().all(|name| is_name(name)) {
            fault("variables", "must be at most 200 names of 1 to 200 bytes without control characters");
        }
        if parts.is_empty() {
            fault("body", "is required, or what a channel says, such as `email`");
        }
        for (key, part) in &parts {
            for (kind, text) in texts(part).filter(|(_, text)| text.contains('\0')) {
                let _ = text;
                fault(&field(key, kind), "must not contain NUL");
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(TemplateSource {
            name: name.unwrap_or_default(),
            version: before.map_or(1, |before| before.version),
            category: self.category.or_else(|| before.and_then(|before| before.category.clone())),
            variables,
            parts,
        })
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn texts(part: &Part) -> impl Iterator<Item = (Kind, &str)> {
    let all = [(Kind::Title, &part.title), (Kind::Message, &part.message), (Kind::Html, &part.html)];
    all.into_iter().filter_map(|(kind, text)| Some((kind, text.as_deref()?)))
}

/// The field name of a part's text in requests.
const fn word(key_is_email: bool, key_is_default: bool, kind: Kind) -> &'static str {
    match kind {
        Kind::Title if key_is_email || key_is_default => "subject",
        Kind::Title => "title",
        Kind::Message if key_is_email => "text_body",
        Kind::Message => "body",
        Kind::Html => "html_body",
    }
}

fn word_in(key: &str, kind: Kind) -> &'static str {
    word(key == Channel::Email.as_str(), key == DEFAULT, kind)
}

fn field(key: &str, kind: Kind) -> String {
    if key == DEFAULT { word_in(key, kind).to_owned() } else { format!("{key}.{}", word_in(key, kind)) }
}

/// The engine's faults, in terms of the request. `at` gives the prefix of a template's field names.
pub fn field_errors(faults: Vec<Fault>, at: impl Fn(&str) -> Option<String>) -> Vec<FieldError> {
    let tell = |fault: Fault| {
        let field = field(&fault.place.0, fault.place.1);
        match at(&fault.template) {
            Some(at) => FieldError::new(format!("{at}{field}"), fault.message),
            None => FieldError::new(
                field,
                format!("template `{}` could not be used any more: it {}", fault.template, fault.message),
            ),
        }
    };
    faults.into_iter().map(tell).collect()
}

/// Writes one part in the form of a request into `into`.
pub fn write_part(key: &str, part: &Part, into: &mut Map<String, Value>) {
    let members = texts(part).map(|(kind, text)| (word_in(key, kind).to_owned(), json!(text)));
    if key == DEFAULT {
        into.extend(members);
    } else {
        into.insert(key.to_owned(), Value::Object(members.collect()));
    }
}

/// All parts in the form of a request.
pub fn written_parts(parts: &Sources) -> Map<String, Value> {
    let mut all = Map::new();
    parts.iter().for_each(|(key, part)| write_part(key, part, &mut all));
    all
}

/// The parts of a template as answers show them: those that it was given.
#[derive(ToSchema)]
#[schema(as = TemplateParts)]
#[expect(dead_code, reason = "it describes what `write_part` writes")]
pub struct PartsBody {
    /// Subject or title.
    subject: Option<String>,
    /// The plain text.
    body: Option<String>,
    /// The HTML of a mail.
    html_body: Option<String>,
    /// The part for mails: `subject`, `text_body`, `html_body`.
    #[schema(value_type = Option<Object>)]
    email: Option<Value>,
    /// The part for text messages: `body`.
    #[schema(value_type = Option<Object>)]
    sms: Option<Value>,
    /// The part for push notifications: `title`, `body`.
    #[schema(value_type = Option<Object>)]
    push: Option<Value>,
    /// The part for webhooks: `title`, `body`.
    #[schema(value_type = Option<Object>)]
    webhook: Option<Value>,
    /// The part for the inbox: `title`, `body`.
    #[schema(value_type = Option<Object>)]
    in_app: Option<Value>,
    /// The part for WhatsApp messages: `body`.
    #[schema(value_type = Option<Object>)]
    whatsapp: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(body: Value, before: Option<&TemplateSource>) -> Result<TemplateSource, Vec<String>> {
        let body: TemplateBody = serde_json::from_value(body).map_err(|error| vec![error.to_string()])?;
        body.apply(before, "").map_err(|faults| faults.into_iter().map(|fault| fault.field).collect())
    }

    #[test]
    fn the_bodies_of_both_seeds_are_taken_and_spelled_as_they_came() {
        for body in [
            json!({"subject": "s", "body": "b", "html_body": "h"}),
            json!({"in_app": {"title": "t", "body": "b"}, "email": {"subject": "s", "text_body": "b", "html_body": "h"},
                "push": {"title": "t", "body": "b"}, "sms": {"body": "b"}}),
            json!({"body": "b", "push": {"title": "t"}}),
        ] {
            let mut named = body.clone();
            named["name"] = json!("n");
            assert_eq!(Value::Object(written_parts(&source(named, None).unwrap().parts)), body);
        }
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name_and_null_takes_away() {
        let whole = json!({"name": "n", "subject": "s", "body": "b", "html_body": "h", "sms": {"body": "x"}, "variables": ["a"]});
        let before = source(whole, None).unwrap();
        let after = source(json!({"body": "c", "html_body": null, "sms": null}), Some(&before)).unwrap();
        assert_eq!(Value::Object(written_parts(&after.parts)), json!({"subject": "s", "body": "c"}));
        assert_eq!((after.name.as_str(), after.variables), ("n", vec!["a".to_owned()]));
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(source(json!({}), None).unwrap_err(), ["name", "body"]);
        assert_eq!(
            source(json!({"name": "a\nb", "body": "x\u{0}", "push": {}}), None).unwrap_err(),
            ["push", "name", "body"]
        );
        assert_eq!(source(json!({"name": "n", "body": "b", "variables": [""]}), None).unwrap_err(), ["variables"]);
        assert!(source(json!({"name": "n", "fax": {}}), None).unwrap_err()[0].contains("fax"));
    }
}
