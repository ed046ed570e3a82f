//! Templates: Handlebars, strict, compiled once for each version, with limits so that none can stop a process.
//!
//! Tenants write templates, and data of other people goes through them; each rendering has limits: `scan` (before the
//! parser reads a text), `parse` (the allowed features), `include` (circles, depth and size of all includes together),
//! `budget` (items, output and time of one rendering, and the time of a group of renderings), `data` (variables),
//! `inline` (styles).

mod budget;
mod check;
mod data;
mod include;
mod inline;
mod parse;
mod scan;
mod unit;

#[cfg(test)]
mod properties;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use domain::{
    Channel,
    contract::submission::{Part, TITLE_BYTES_MAX},
};
use handlebars::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use include::{Family, Reading};
use unit::Unit;

pub use check::{Fault, check, check_without};

/// The part for every channel that has no part of its own.
pub const DEFAULT: &str = "default";
/// Longest source of one title, text or HTML, in bytes.
pub const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Longest rendered text, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Tags (`{{…}}`) of all templates of a tenant; a compiled tag needs about a kilobyte.
pub const TAGS_MAX: usize = 150_000;
/// The longest time for all texts of one request, event or window.
pub const TIME_MAX: Duration = Duration::from_millis(500);

/// The time by which all renderings of one request, event or window must end.
pub fn deadline() -> Instant {
    Instant::now() + TIME_MAX
}

/// The sources of a template by channel; `default` is for every other channel.
pub type Sources = BTreeMap<String, Part>;

/// A template as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSource {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i32,
    /// The category of its notifications.
    pub category: Option<String>,
    /// The variables that each send must give.
    pub variables: Vec<String>,
    /// The parts of the template.
    pub parts: Sources,
}

impl TemplateSource {
    /// The source for a channel.
    pub fn part(&self, channel: Channel) -> Option<&Part> {
        self.parts.get(channel.as_str()).or_else(|| self.parts.get(DEFAULT))
    }

    fn text(&self, channel: Channel, kind: Kind) -> Option<&str> {
        self.part(channel).and_then(|part| kind.of(part))
    }
}

/// One of the texts of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Subject or title.
    Title,
    /// The plain text.
    Message,
    /// The HTML.
    Html,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Title, Self::Message, Self::Html];

    /// How it is called.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Message => "message",
            Self::Html => "html",
        }
    }

    fn of(self, part: &Part) -> Option<&str> {
        match self {
            Self::Title => part.title.as_deref(),
            Self::Message => part.message.as_deref(),
            Self::Html => part.html.as_deref(),
        }
    }
}

type Units = HashMap<(Channel, Kind), OnceLock<Result<Unit, TemplateError>>>;

/// A template that is ready to render. Its texts are compiled when they are first rendered.
#[derive(Debug)]
pub struct Template {
    /// As it is stored.
    pub source: TemplateSource,
    family: Arc<Family>,
    units: Units,
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not well formed, or includes itself.
    #[error("{0}")]
    Source(String),
    /// A variable is not given.
    #[error("variable `{0}` is missing")]
    Missing(String),
    /// It has no part for this channel.
    #[error("it has no part for channel {0}")]
    NoPart(Channel),
    /// It grew beyond a bound.
    #[error("{0}")]
    TooLarge(String),
}

impl Template {
    /// Renders the text for `channel` with these variables.
    pub fn render(&self, channel: Channel, variables: &Value) -> Result<Part, TemplateError> {
        self.render_until(channel, variables, deadline())
    }

    /// As [`Template::render`], with a deadline that several renderings share.
    pub fn render_until(&self, channel: Channel, variables: &Value, until: Instant) -> Result<Part, TemplateError> {
        if let Some(name) = self.missing(variables).first() {
            return Err(TemplateError::Missing((*name).to_owned()));
        }
        let part = self.source.part(channel).filter(|part| says_something(part, channel));
        let part = part.ok_or(TemplateError::NoPart(channel))?;
        let context = Context::from(data::prepared(variables)?);
        let render = |kind: Kind| -> Result<Option<String>, TemplateError> {
            let Some(text) = kind.of(part) else { return Ok(None) };
            // Most titles and texts of in-app notifications and the like contain no tags.
            if !text.contains("{{") {
                return Ok(Some(text.to_owned()));
            }
            self.unit(channel, kind, text)?.render(&context, until).map(Some)
        };
        let (title, message) = (render(Kind::Title)?.map(one_line), render(Kind::Message)?);
        if title.as_ref().is_some_and(|title| title.len() > TITLE_BYTES_MAX) {
            return Err(TemplateError::TooLarge(format!("its title becomes longer than {TITLE_BYTES_MAX} bytes")));
        }
        // Only mails have HTML.
        let html = if channel == Channel::Email { render(Kind::Html)? } else { None };
        Ok(Part { title, message, html: html.map(inline::styles).transpose()? })
    }

    /// The declared variables that are missing.
    pub fn missing(&self, variables: &Value) -> Vec<&str> {
        let is_given = |name: &str| name.split('.').try_fold(variables, |value, key| value.get(key)).is_some();
        self.source.variables.iter().map(String::as_str).filter(|name| !is_given(name)).collect()
    }

    fn unit(&self, channel: Channel, kind: Kind, text: &str) -> Result<&Unit, TemplateError> {
        let place = self.units.get(&(channel, kind)).ok_or(TemplateError::NoPart(channel))?;
        let unit = place.get_or_init(|| {
            let reading = Reading { family: &self.family, channel, kind };
            Unit::build(&reading, &self.source.name, text).map_err(TemplateError::Source)
        });
        unit.as_ref().map_err(TemplateError::clone)
    }
}

fn says_something(part: &Part, channel: Channel) -> bool {
    match channel {
        Channel::Email => part.message.is_some() || part.html.is_some(),
        Channel::Sms | Channel::Whatsapp => part.message.is_some(),
        Channel::Push | Channel::InApp | Channel::Webhook => part.title.is_some() || part.message.is_some(),
    }
}

/// A title becomes a mail header, so a variable must not begin another line.
fn one_line(title: String) -> String {
    if title.chars().any(char::is_control) {
        title.split(char::is_control).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    } else {
        title
    }
}

/// Compiles all templates of a tenant together, because they may include each other.
pub fn compile(sources: Vec<TemplateSource>) -> Vec<Template> {
    let family = Arc::new(Family::new(sources.iter()));
    let places = || {
        let of_channel = |channel: &Channel| Kind::ALL.map(|kind| ((*channel, kind), OnceLock::new()));
        Channel::ALL.iter().flat_map(of_channel).collect()
    };
    sources.into_iter().map(|source| Template { source, family: Arc::clone(&family), units: places() }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(name: &str, parts: Value) -> TemplateSource {
        let parts = serde_json::from_value(parts).unwrap();
        TemplateSource { name: name.to_owned(), version: 1, category: None, variables: Vec::new(), parts }
    }

    fn render(sources: &[(&str, Value)], channel: Channel, variables: Value) -> Result<Part, TemplateError> {
        let all = compile(sources.iter().map(|(name, parts)| source(name, parts.clone())).collect());
        all.first().unwrap().render(channel, &variables)
    }

    fn message(text: &str, variables: Value) -> Result<String, TemplateError> {
        let part = render(&[("t", json!({"default": {"message": text}}))], Channel::Sms, variables)?;
        Ok(part.message.unwrap())
    }

    #[test]
    fn the_printed_template_of_the_seed_gives_the_mail_it_means() {
        let parts = json!({"default": {
            "title": "Order #{{ order_id }} Confirmed",
            "message": "Hello {{ customer_name }},\n\nYour order #{{ order_id }} for ${{ amount }} has been confirmed!",
            "html": "<h1>Order Confirmed</h1><p>Hello {{ customer_name }},</p>"}});
        let variables = json!({"customer_name": "John <Doe> & Sons", "order_id": "12345", "amount": "99.99"});
        let part = render(&[("t", parts)], Channel::Email, variables).unwrap();
        assert_eq!(part.title.as_deref(), Some("Order #12345 Confirmed"));
        let text = "Hello John <Doe> & Sons,\n\nYour order #12345 for $99.99 has been confirmed!";
        assert_eq!(part.message.as_deref(), Some(text));
        assert_eq!(part.html.as_deref(), Some("<h1>Order Confirmed</h1><p>Hello John &lt;Doe&gt; &amp; Sons,</p>"));
    }

    #[test]
    fn a_channel_takes_its_own_part_or_the_default() {
        let parts = json!({"default": {"message": "d"}, "sms": {"message": "s"}, "push": {"title": "p"}});
        let said = |channel| render(&[("t", parts.clone())], channel, json!({})).unwrap();
        assert_eq!(said(Channel::Sms).message.as_deref(), Some("s"));
        assert_eq!(said(Channel::Email).message.as_deref(), Some("d"));
        assert_eq!((said(Channel::Push).title.as_deref(), said(Channel::Push).message), (Some("p"), None));
        let only_push = json!({"push": {"title": "p"}});
        assert_eq!(render(&[("t", only_push)], Channel::Sms, json!({})), Err(TemplateError::NoPart(Channel::Sms)));
    }

    #[test]
    fn an_include_takes_the_same_channel_and_kind() {
        let all = [
            ("t", json!({"default": {"title": "T", "message": "[{{> foot}}]", "html": "<p>{{> foot}}</p>"}})),
            ("foot", json!({"default": {"message": "bye {{n}}", "html": "<i>{{n}}</i>"}, "sms": {"message": "b"}})),
        ];
        let mail = render(&all, Channel::Email, json!({"n": "A&B"})).unwrap();
        assert_eq!((mail.message.as_deref(), mail.html.as_deref()), (Some("[bye A&B]"), Some("<p><i>A&amp;B</i></p>")));
        assert_eq!(render(&all, Channel::Sms, json!({"n": 1})).unwrap().message.as_deref(), Some("[b]"));
    }

    #[test]
    fn a_variable_that_is_not_given_is_named() {
        let missing = |name: &str| Err(TemplateError::Missing(name.to_owned()));
        assert_eq!(message("{{a}} {{b.c}}", json!({"a": 1, "b": {}})), missing("b.c"));
        assert_eq!(message("{{#each rows}}{{x}}{{/each}}", json!({})), missing("rows"));
        assert_eq!(message("{{#each rows}}{{x}}{{/each}}", json!({"rows": [{}]})), missing("x"));
        assert_eq!(message("{{#if a}}x{{else}}y{{/if}}", json!({})), Ok("y".to_owned()));
        let declared = TemplateSource {
            variables: vec!["a".to_owned(), "b.c".to_owned(), "d".to_owned()],
            ..source("t", json!({"default": {"message": "m"}}))
        };
        let template = compile(vec![declared]).pop().unwrap();
        assert_eq!(template.missing(&json!({"d": null, "b": 1})), ["a", "b.c"]);
        assert_eq!(template.render(Channel::Sms, &json!({})).unwrap_err().to_string(), "variable `a` is missing");
    }

    #[test]
    fn a_title_stays_one_line_whatever_is_filled_in() {
        let parts = json!({"default": {"title": "Hi {{n}}", "message": "m"}});
        let title = |n: &str| render(&[("t", parts.clone())], Channel::Email, json!({"n": n})).map(|part| part.title);
        assert_eq!(title("a\r\nBcc: eve@example.com"), Ok(Some("Hi a Bcc: eve@example.com".to_owned())));
        assert!(matches!(title(&"x".repeat(1000)), Err(TemplateError::TooLarge(_))));
    }

    #[test]
    fn each_knows_where_it_is() {
        let text = "{{#each xs as |x i|}}{{i}}{{@index}}{{@key}}{{x}}{{this}}{{#unless @last}},{{/unless}}{{/each}}";
        assert_eq!(message(text, json!({"xs": ["a", "b"]})), Ok("000aa,111bb".to_owned()));
        let text = "{{#each m}}{{@key}}={{this.v}}{{../s}}{{#if @first}}!{{/if}}{{else}}none{{/each}}";
        assert_eq!(message(text, json!({"m": {"a": {"v": 1}, "b": {"v": 2}}, "s": ";"})), Ok("a=1;!b=2;".to_owned()));
        assert_eq!(message(text, json!({"m": {}, "s": ";"})), Ok("none".to_owned()));
        let all = [
            ("t", json!({"default": {"message": "{{> row list=xs}}"}})),
            ("row", json!({"default": {"message": "{{#each list}}{{#each this}}{{@index}}{{n}} {{/each}}{{/each}}"}})),
        ];
        let said = render(&all, Channel::Sms, json!({"xs": [[{"n": 1}, {"n": 2}], [{"n": 3}]]})).unwrap();
        assert_eq!(said.message.as_deref(), Some("01 12 03 "));
    }

    #[test]
    fn circles_and_missing_includes_are_found_when_saved_and_end_no_process_when_not() {
        let including =
            |name: &str, other: &str| source(name, json!({"default": {"message": format!("{{{{> {other}}}}}")}}));
        let (a, b, c) = (including("a", "b"), including("b", "c"), including("c", "a"));
        let plain = source("c", json!({"default": {"message": "end"}}));
        assert_eq!(check(std::slice::from_ref(&a), &[b.clone(), plain.clone()]), []);
        let found = check(std::slice::from_ref(&c), &[a.clone(), b.clone(), plain]);
        assert!(found.first().unwrap().message.starts_with("leads in a circle: c → a → b → c"), "{found:?}");
        assert!(check(&[including("s", "s")], &[]).first().unwrap().message.contains("circle"));
        assert!(check(std::slice::from_ref(&a), &[]).first().unwrap().message.contains("there is no such template"));
        assert_eq!(check_without("c", &[a.clone(), b.clone(), c.clone()]).len(), 2);
        for template in compile(vec![a, b, c]) {
            assert!(matches!(template.render(Channel::Sms, &json!({})), Err(TemplateError::Source(_))));
        }
    }

    #[test]
    fn a_change_that_breaks_another_template_is_found() {
        let page = source("page", json!({"sms": {"message": "{{> foot}}"}}));
        let foot = source("foot", json!({"default": {"message": "x"}}));
        let without = source("foot", json!({"email": {"message": "x"}}));
        let found = check(&[without], &[page, foot]);
        let fault = found.first().unwrap();
        assert_eq!((fault.template.as_str(), &fault.place), ("page", &("sms".to_owned(), Kind::Message)));
        assert!(fault.message.contains("includes `foot`, which has no message for channel sms"), "{}", fault.message);
    }

    #[test]
    fn a_template_that_multiplies_itself_is_refused() {
        let twice = |index: usize| {
            let text = format!("{{{{> t{0}}}}}{{{{> t{0}}}}}", index + 1);
            source(&format!("t{index}"), json!({"default": {"message": text}}))
        };
        let mut all: Vec<_> = (0..20).map(twice).collect();
        all.push(source("t20", json!({"default": {"message": ""}})));
        let first = all.first().unwrap().clone();
        assert!(check(&[first], &all).first().unwrap().message.contains("elements"));
        let long: Vec<_> = (0..40)
            .map(|index| {
                let text = if index == 39 { "end".to_owned() } else { format!("{{{{> t{}}}}}", index + 1) };
                source(&format!("t{index}"), json!({"default": {"message": text}}))
            })
            .collect();
        assert!(check(&long[..1], &long).first().unwrap().message.contains("nest deeper"));
    }

    #[test]
    fn what_takes_long_or_grows_is_stopped() {
        let too_large = |text: &str, variables: Value| match message(text, variables) {
            Err(TemplateError::TooLarge(why)) => why,
            other => panic!("{text}: {other:?}"),
        };
        let many = json!({"xs": vec![0; 1000], "big": "x".repeat(100_000)});
        let nothing = "{{#each xs}}{{#each ../xs}}{{#each ../../xs}}{{#if 0}}x{{/if}}{{/each}}{{/each}}{{/each}}";
        let why = too_large(nothing, many.clone());
        assert!(why.contains("100,000 items") || why.contains("too long"), "{why}");
        // If the machine stalls, its time may end first, but not every time.
        let grows = || too_large("{{#each xs}}{{../big}}{{/each}}", many.clone());
        assert!((0..10).any(|_| grows().contains("1 MiB")));
        let slow = "{{#each xs}}{{#if (eq @root.ys @root.zs)}}{{/if}}{{/each}}".repeat(10);
        let large: Vec<u32> = (0..60_000).collect();
        assert!(too_large(&slow, json!({"xs": vec![0; 1000], "ys": large, "zs": large})).contains("too long"));
    }

    #[test]
    fn the_deepest_template_needs_little_of_a_stack() {
        let text = format!("{0}{{{{x}}}}{1}", "{{#each xs}}{{#if 1}}".repeat(15), "{{/if}}{{/each}}".repeat(15));
        let text = format!("{{{{#if 1}}}}{{{{#if 1}}}}{text}{{{{/if}}}}{{{{/if}}}}");
        let variables = (0..15).fold(json!({"x": "found"}), |inner, _| json!({"xs": {"k": inner}}));
        let rendering = move || message(&text, variables);
        let thread = std::thread::Builder::new().stack_size(1024 * 1024).spawn(rendering).unwrap();
        assert_eq!(thread.join().unwrap(), Ok("found".to_owned()));
    }
}
