//! Checks templates before they are saved, together with those that stay.

use domain::{Channel, contract::submission::Part};

use super::{DEFAULT, Family, Kind, Reading, TAGS_MAX, TemplateSource};

/// A fault of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which one.
    pub template: String,
    /// The part, and which text of it.
    pub place: (String, Kind),
    /// The fault, as a clause.
    pub message: String,
}

/// Checks that `changed` can be used together with `kept`, and that these still work: every text with all its includes.
/// Templates of `kept` that did not work before are left out.
pub fn check(changed: &[TemplateSource], kept: &[TemplateSource]) -> Vec<Fault> {
    let is_kept = |one: &&TemplateSource| !changed.iter().any(|other| other.name == one.name);
    let before = Family::new(kept.iter());
    let after = before.with(kept.iter().filter(is_kept).chain(changed));
    if let Some(fault) = too_many(changed, &after) {
        return vec![fault];
    }
    let mut faults: Vec<Fault> = changed.iter().flat_map(|source| faults_of(source, &after)).collect();
    if faults.is_empty() {
        let includes_some = |one: &&TemplateSource| one.parts.values().any(has_include);
        for source in kept.iter().filter(is_kept).filter(includes_some) {
            let known = faults_of(source, &before);
            faults.extend(faults_of(source, &after).into_iter().filter(|fault| !known.contains(fault)));
        }
    }
    faults
}

/// Counts tags, which is cheap for all templates at each change. A tag becomes elements, which need memory.
fn too_many(changed: &[TemplateSource], all: &Family) -> Option<Fault> {
    let tags = |part: &Part| {
        Kind::ALL.iter().filter_map(|kind| kind.of(part)).map(|text| text.matches("{{").count()).sum::<usize>()
    };
    let count: usize = all.sources().flat_map(|source| source.parts.values()).map(tags).sum::<usize>();
    let source = changed.first().filter(|_| count > TAGS_MAX)?;
    let place = (source.parts.keys().next().cloned().unwrap_or_default(), Kind::Message);
    let message = format!("all templates together would have more than {TAGS_MAX} tags (`{{{{…}}}}`)");
    Some(Fault { template: source.name.clone(), place, message })
}

/// Whether every other template works without the one called `name`; returns the faults of those that do not.
pub fn check_without(name: &str, all: &[TemplateSource]) -> Vec<Fault> {
    let family = Family::new(all.iter().filter(|one| one.name != name));
    let missing = format!("includes `{name}`, ");
    let with_include = family.sources().filter(|one| one.parts.values().any(has_include));
    let faults = with_include.flat_map(|source| faults_of(source, &family));
    faults.filter(|fault| fault.message.starts_with(&missing)).collect()
}

fn has_include(part: &Part) -> bool {
    Kind::ALL.iter().any(|kind| kind.of(part).is_some_and(includes))
}

fn includes(text: &str) -> bool {
    text.split("{{").skip(1).any(|tag| tag.trim_start_matches(['~', ' ', '\t', '\r', '\n']).starts_with('>'))
}

fn faults_of(source: &TemplateSource, family: &Family) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (key, part) in &source.parts {
        let is_own = |channel: &&Channel| channel.as_str() == key;
        let is_served = |channel: &&Channel| !source.parts.contains_key(channel.as_str());
        let channels: Vec<Channel> = match key.as_str() {
            DEFAULT => Channel::ALL.iter().filter(is_served).copied().collect(),
            _ => Channel::ALL.iter().filter(is_own).copied().collect(),
        };
        // A default that no channel takes must be sound all the same.
        let channels = if channels.is_empty() { vec![Channel::Email] } else { channels };
        for kind in Kind::ALL {
            let Some(text) = kind.of(part) else { continue };
            let has_include = includes(text);
            let mut read = channels
                .iter()
                .take(if has_include { channels.len() } else { 1 })
                .map(|channel| Reading { family, channel: *channel, kind }.closure(&source.name, text));
            // An included template may have no part for some of the channels that the default part serves.
            let Some(Err(first)) = read.next() else { continue };
            if !first.contains("for channel") || read.all(|read| read.is_err()) {
                faults.push(Fault { template: source.name.clone(), place: (key.clone(), kind), message: first });
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(name: &str, message: &str) -> TemplateSource {
        let parts = serde_json::from_value(json!({"default": {"message": message, "html": message}})).unwrap();
        TemplateSource { name: name.to_owned(), version: 1, category: None, variables: Vec::new(), parts }
    }

    #[test]
    fn the_tags_of_all_templates_together_are_bounded() {
        let kept: Vec<_> = (0..10).map(|n| source(&format!("t{n}"), &"{{a}}".repeat(TAGS_MAX / 20))).collect();
        let faults = check(&[source("one more", "{{a}}")], &kept);
        assert!(faults.len() == 1 && faults[0].message.contains("all templates together"), "{faults:?}");
        assert_eq!(check(&[source("t0", "{{a}}")], &kept), [], "it replaces one of them");
    }

    /// Two partials of the largest size, on every channel and in both texts: each is parsed once.
    #[test]
    fn full_partials_are_quickly_saved() {
        let full = |name: &str| source(name, &format!("{name}{}", "{{a}} ".repeat(3000)));
        let is_quick = || {
            let started = std::time::Instant::now();
            assert_eq!(check(&[source("page", "{{> one}}{{> two}}")], &[full("one"), full("two")]), []);
            let parsed = started.elapsed();
            let started = std::time::Instant::now();
            assert_eq!(check(&[full("one"), full("two")], &[]), []);
            parsed < started.elapsed() * 4
        };
        // The machine may stall once, but not every time.
        assert!((0..3).any(|_| is_quick()), "it takes as long as the two alone, not as that for each channel and text");
    }
}
