//! A text and every template that it includes, with limits for all together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest::{SHA256, digest};
use domain::Channel;

use super::{
    Kind, TemplateSource,
    parse::{Parsed, parse},
    scan::DEPTH_MAX,
};

/// Elements of a text and its includes, each as often as it is included. The sum limits the work of a rendering, apart
/// from loops over lists.
const ELEMENTS_MAX: usize = 20_000;

/// Of a name and a text.
type Hash = [u8; 32];
type Outcome = Result<Arc<Parsed>, String>;

/// Every active template of a tenant, by name, and its parsed texts. A text is parsed once and kept, however many texts
/// include it and however many channels it serves.
#[derive(Debug, Default)]
pub(super) struct Family {
    sources: HashMap<String, Arc<TemplateSource>>,
    parsed: Arc<Mutex<HashMap<Hash, Outcome>>>,
}

impl Family {
    pub(super) fn new<'a>(sources: impl Iterator<Item = &'a TemplateSource>) -> Self {
        let sources = sources.map(|one| (one.name.clone(), Arc::new(one.clone()))).collect();
        Self { sources, parsed: Arc::default() }
    }

    /// The same with other templates, keeping the parsed texts of these.
    pub(super) fn with<'a>(&self, sources: impl Iterator<Item = &'a TemplateSource>) -> Self {
        Self { parsed: Arc::clone(&self.parsed), ..Self::new(sources) }
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &TemplateSource> {
        self.sources.values().map(Arc::as_ref)
    }

    /// `included`: the name under which other texts include it; its errors mention the name.
    fn parse(&self, included: Option<&str>, text: &str) -> Outcome {
        let key = [included.unwrap_or_default(), text].join("\0");
        let Ok(key) = Hash::try_from(digest(&SHA256, key.as_bytes()).as_ref()) else {
            return parse(text).map(Arc::new);
        };
        let kept = || self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept().get(&key) {
            return known.clone();
        }
        // The lock is not held meanwhile, so others do not wait.
        let parsed = parse(text).map(|mut parsed| {
            parsed.template.name = included.map(str::to_owned);
            Arc::new(parsed)
        });
        kept().entry(key).or_insert(parsed).clone()
    }
}

/// The place of an include's text: the same channel and kind in another template.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) family: &'a Family,
    pub(super) channel: Channel,
    pub(super) kind: Kind,
}

/// A text and its includes.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) main: Arc<Parsed>,
    pub(super) others: HashMap<String, Arc<Parsed>>,
}

#[derive(Clone, Copy)]
struct Cost {
    depth: usize,
    elements: usize,
}

impl Reading<'_> {
    /// Collects the includes of the text `text` of the template `name`.
    pub(super) fn closure(&self, name: &str, text: &str) -> Result<Closure, String> {
        let main = self.family.parse(None, text)?;
        let mut collecting = Collecting { reading: *self, others: HashMap::new(), costs: HashMap::new() };
        collecting.cost(&main, &mut vec![name.to_owned()])?;
        Ok(Closure { main, others: collecting.others })
    }
}

struct Collecting<'a> {
    reading: Reading<'a>,
    others: HashMap<String, Arc<Parsed>>,
    costs: HashMap<String, Cost>,
}

impl Collecting<'_> {
    fn cost(&mut self, parsed: &Parsed, path: &mut Vec<String>) -> Result<Cost, String> {
        let mut cost = Cost { depth: parsed.depth, elements: parsed.elements };
        for include in &parsed.includes {
            let of = self.cost_of(&include.name, path)?;
            cost.depth = cost.depth.max(include.depth + 1 + of.depth);
            cost.elements = cost.elements.saturating_add(of.elements);
        }
        if cost.depth > DEPTH_MAX {
            return Err(format!("blocks and includes nest deeper than {DEPTH_MAX}"));
        }
        if cost.elements > ELEMENTS_MAX {
            return Err(format!("has more than {ELEMENTS_MAX} elements with all that it includes"));
        }
        Ok(cost)
    }

    fn cost_of(&mut self, name: &str, path: &mut Vec<String>) -> Result<Cost, String> {
        if path.iter().any(|passed| passed == name) {
            return Err(format!("leads in a circle: {} → {name}", path.join(" → ")));
        }
        if let Some(known) = self.costs.get(name) {
            return Ok(*known);
        }
        if path.len() > DEPTH_MAX {
            return Err(format!("blocks and includes nest deeper than {DEPTH_MAX}"));
        }
        let Reading { family, channel, kind } = self.reading;
        let included =
            family.sources.get(name).ok_or_else(|| format!("includes `{name}`, and there is no such template"))?;
        let text = included
            .text(channel, kind)
            .ok_or_else(|| format!("includes `{name}`, which has no {} for channel {channel}", kind.as_str()))?;
        let parsed = family
            .parse(Some(name), text)
            .map_err(|error| format!("includes `{name}`, which cannot be used: {error}"))?;
        path.push(name.to_owned());
        let cost = self.cost(&parsed, path)?;
        path.pop();
        self.costs.insert(name.to_owned(), cost);
        self.others.insert(name.to_owned(), parsed);
        Ok(cost)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(name: &str, message: &str) -> TemplateSource {
        let parts = serde_json::from_value(json!({"default": {"message": message}})).unwrap();
        TemplateSource { name: name.to_owned(), version: 1, category: None, variables: Vec::new(), parts }
    }

    #[test]
    fn a_text_is_parsed_and_kept_once_for_all_that_include_it() {
        let all = [source("foot", "bye {{n}}"), source("page", "{{> foot}}"), source("letter", "{{> foot}}")];
        let family = Family::new(all.iter());
        let read = |family: &Family, name: &str, channel| {
            Reading { family, channel, kind: Kind::Message }.closure(name, "{{> foot}}").unwrap()
        };
        let page = read(&family, "page", Channel::Email);
        for other in [
            read(&family, "page", Channel::Sms),
            read(&family, "letter", Channel::Email),
            read(&family.with(all.iter()), "letter", Channel::Push),
        ] {
            assert!(Arc::ptr_eq(&page.others["foot"], &other.others["foot"]) && Arc::ptr_eq(&page.main, &other.main));
        }
        assert_eq!(page.others["foot"].template.name.as_deref(), Some("foot"));
        assert_eq!(family.parsed.lock().unwrap().len(), 2);
    }
}
