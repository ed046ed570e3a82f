//! The look at templates that are to be saved, together with those that stay.

use std::sync::Arc;

use super::{DEFAULT, Family, Kind, Reading, TemplateSource};
use crate::{contract::submission::Part, domain::Channel};

/// What is wrong with a template that is to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which one.
    pub template: String,
    /// The part, and which text of it.
    pub place: (String, Kind),
    /// What is wrong, as a clause.
    pub message: String,
}

/// Looks whether `changed` can be used beside `kept`, and these still can: every text, with all that it includes. Those of
/// `kept` that did not work before are left out.
pub fn check(changed: &[TemplateSource], kept: &[TemplateSource]) -> Vec<Fault> {
    let is_kept = |one: &&TemplateSource| !changed.iter().any(|other| other.name == one.name);
    let before: Family = kept.iter().map(|one| (one.name.clone(), Arc::new(one.clone()))).collect();
    let after = kept.iter().filter(is_kept).chain(changed);
    let after: Family = after.map(|one| (one.name.clone(), Arc::new(one.clone()))).collect();
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

/// Whether every template that stays works without the one called `name`; the faults of those that do not.
pub fn check_without(name: &str, all: &[TemplateSource]) -> Vec<Fault> {
    let family: Family =
        all.iter().filter(|one| one.name != name).map(|one| (one.name.clone(), Arc::new(one.clone()))).collect();
    let missing = format!("includes `{name}`, ");
    let with_include = family.values().filter(|one| one.parts.values().any(has_include));
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
            // What it includes may say nothing on some of the channels that the default serves.
            let Some(Err(first)) = read.next() else { continue };
            if !first.contains("for channel") || read.all(|read| read.is_err()) {
                faults.push(Fault { template: source.name.clone(), place: (key.clone(), kind), message: first });
            }
        }
    }
    faults
}
