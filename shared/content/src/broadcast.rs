//! A broadcast as stored: its notification and target, and the messages made from them.

use std::time::Instant;

use domain::{Channel, Lane, Person, Priority, Target, acceptance::NewMessage, contract::submission::Content};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    catalogue::Catalogue,
    compose::Notice,
    template::{self, Template, TemplateError},
};

/// The `source` of messages of broadcasts.
pub const SOURCE: &str = "broadcast";
/// The variable of a template that differs between people.
const USERNAME: &str = "username";

/// The notification and its target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    /// The content. It has parts if the type's template gives all people the same text.
    pub content: Content,
    /// By which ways.
    pub channels: Vec<Channel>,
    /// How urgent it is.
    pub priority: Priority,
    /// To whom.
    pub target: Target,
    /// The number of named people, once their list is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<usize>,
    /// The WhatsApp session that sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Uuid>,
    /// Whether the type's template may give each person another text.
    #[serde(default)]
    pub is_personal: bool,
    /// The version of the catalogue when the broadcast was requested: its messages use at least this version.
    #[serde(default)]
    pub catalogue_version: i64,
    /// The id of the request that created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Its W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Definition {
    /// Fills in values that the tenant manages: category and class of its type, and the type's template, if there is
    /// one. Fails if the template needs variables that a broadcast does not have.
    pub fn complete(&mut self, catalogue: &Catalogue) -> Result<(), TemplateError> {
        self.catalogue_version = catalogue.version;
        catalogue.complete(&mut self.content);
        let Some(template) = self.template(catalogue) else { return Ok(()) };
        let mut dressed = self.content.clone();
        dress(catalogue, &template, &self.channels, &self.variables(USERNAME), &mut dressed)?;
        self.is_personal = is_personal(&template);
        if self.is_personal {
            // The parts differ between people; the template's category is the same for all.
            dressed.parts.clear();
        }
        self.content = dressed;
        Ok(())
    }

    /// The messages to these people: to the first at least, and to as many more as can be rendered by `until`.
    pub fn messages(&self, catalogue: &Catalogue, people: &[Person], until: Instant) -> Vec<NewMessage> {
        let mut notice = Notice {
            channels: self.channels.clone(),
            content: self.content.clone(),
            priority: self.priority,
            lane: Lane::Bulk,
            scheduled_at: None,
            expires_at: None,
            session: self.session,
        };
        let Some(template) = self.template(catalogue).filter(|_| self.is_personal) else {
            return people.iter().map(|person| notice.to(person, None)).collect();
        };
        let mut personal = |person: &Person| {
            notice.content = self.content.clone();
            let variables = self.variables(person.username());
            // The template changed meanwhile and needs other variables: people still get title and message.
            let dressed = dress(catalogue, &template, &self.channels, &variables, &mut notice.content);
            let content = dressed.ok().and_then(|()| serde_json::to_vec(&notice.content).ok());
            notice.to(person, content)
        };
        let is_in_time = |(place, _): &(usize, &Person)| *place == 0 || Instant::now() < until;
        people.iter().enumerate().take_while(is_in_time).map(|(_, person)| personal(person)).collect()
    }

    fn template(&self, catalogue: &Catalogue) -> Option<std::sync::Arc<Template>> {
        self.content.kind.as_ref().and_then(|kind| catalogue.templates.get(kind)).cloned()
    }

    /// As for a notification to one person, the metadata are variables too.
    fn variables(&self, username: &str) -> Value {
        let Content { title, message, metadata, .. } = &self.content;
        let mut members = metadata.clone().unwrap_or_default();
        members.insert("metadata".to_owned(), Value::Object(members.clone()));
        for (name, text) in [("title", title.as_deref()), ("message", message.as_deref()), (USERNAME, Some(username))] {
            members.insert(name.to_owned(), json!(text));
        }
        Value::Object(members)
    }
}

/// Renders a template for those channels that it has a part for.
fn dress(
    catalogue: &Catalogue,
    template: &Template,
    channels: &[Channel],
    variables: &Value,
    content: &mut Content,
) -> Result<(), TemplateError> {
    let until = template::deadline();
    for channel in channels {
        match catalogue.render(template, &[*channel], (variables, until), content) {
            Ok(()) | Err(TemplateError::NoPart(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a template may give each person another text. Included templates are not examined.
fn is_personal(template: &Template) -> bool {
    let texts = template.source.parts.values().flat_map(|part| [&part.title, &part.message, &part.html]);
    texts.flatten().any(|text| text.contains(USERNAME) || includes(text))
}

/// Whether a text includes another template: `{{> name}}`, also with spaces or as a block.
fn includes(text: &str) -> bool {
    text.split("{{").skip(1).any(|tag| tag.trim_start_matches([' ', '~', '#', '{', '\t', '\n']).starts_with('>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_includes_another_may_be_personal() {
        for text in ["{{> head}}", "{{ > head }}", "a {{~> head}}", "{{#> layout}}x{{/layout}}"] {
            assert!(includes(text), "{text}");
        }
        for text in ["{{title}}", "a > b", "{{{title}}} > b", "{{#if title}}>{{/if}}"] {
            assert!(!includes(text), "{text}");
        }
    }
}
