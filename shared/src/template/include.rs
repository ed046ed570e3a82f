//! What belongs together: a text and every template that it includes, bounded as a whole.

use std::collections::HashMap;

use super::{
    Family, Kind,
    parse::{Parsed, parse},
    scan::DEPTH_MAX,
};
use crate::domain::Channel;

/// Elements of a text and all that it includes, each as often as it is included. The sum bounds what a rendering does besides
/// going through lists.
const ELEMENTS_MAX: usize = 20_000;

/// Where an include finds its text: the same channel and kind of another template.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) family: &'a Family,
    pub(super) channel: Channel,
    pub(super) kind: Kind,
}

/// A text and all it includes.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) main: Parsed,
    pub(super) others: HashMap<String, Parsed>,
}

#[derive(Clone, Copy)]
struct Cost {
    depth: usize,
    elements: usize,
}

impl Reading<'_> {
    /// Collects what the text `text` of the template `name` includes.
    pub(super) fn closure(&self, name: &str, text: &str) -> Result<Closure, String> {
        let main = parse(text)?;
        let mut collecting = Collecting { reading: *self, others: HashMap::new(), costs: HashMap::new() };
        collecting.cost(&main, &mut vec![name.to_owned()])?;
        Ok(Closure { main, others: collecting.others })
    }
}

struct Collecting<'a> {
    reading: Reading<'a>,
    others: HashMap<String, Parsed>,
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
        let included = family.get(name).ok_or_else(|| format!("includes `{name}`, and there is no such template"))?;
        let text = included
            .text(channel, kind)
            .ok_or_else(|| format!("includes `{name}`, which has no {} for channel {channel}", kind.as_str()))?;
        let parsed = parse(text).map_err(|error| format!("includes `{name}`, which cannot be used: {error}"))?;
        path.push(name.to_owned());
        let cost = self.cost(&parsed, path)?;
        path.pop();
        self.costs.insert(name.to_owned(), cost);
        self.others.insert(name.to_owned(), parsed);
        Ok(cost)
    }
}
