//! Compiles a source, and limits the features that it may use.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use handlebars::{
    Template,
    template::{HelperTemplate, Parameter, TemplateElement},
};

use super::scan::scan;

/// The helpers that a template may call.
pub(super) const HELPERS: [&str; 15] =
    ["if", "unless", "each", "with", "lookup", "eq", "ne", "gt", "gte", "lt", "lte", "and", "or", "not", "len"];
/// Called between the elements of a template to check whether it may continue.
pub(super) const TICK: &str = "$tick";
/// The most elements between two checks of the clock.
const STRIDE: usize = 32;
/// The parser's own stack; the parser needs a tenth of it.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// A compiled source and its properties.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    pub(super) template: Template,
    pub(super) includes: Vec<Include>,
    /// How deep its blocks nest.
    pub(super) depth: usize,
    /// How many elements it has.
    pub(super) elements: usize,
}

/// Another template that it includes.
#[derive(Clone, Debug)]
pub(super) struct Include {
    pub(super) name: String,
    /// The blocks around it.
    pub(super) depth: usize,
}

/// Compiles a source. The parser is recursive, so it gets a stack that suffices.
pub(super) fn parse(source: &str) -> Result<Parsed, String> {
    scan(source)?;
    let template = thread::scope(|scope| {
        let compile = || catch_unwind(AssertUnwindSafe(|| compile(source)));
        let running = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, compile);
        running.ok().and_then(|running| running.join().ok()).and_then(Result::ok)
    });
    let mut template = template.ok_or("cannot be read")??;
    let mut walk = Walk::default();
    walk.template(&template, 0)?;
    let Walk { includes, depth, elements } = walk;
    let tick = compile(&format!("{{{{{TICK}}}}}"))?;
    keep_indent_to_lines(&mut template);
    add_ticks(&mut template, &tick, true);
    Ok(Parsed { template, includes, depth, elements })
}

fn compile(source: &str) -> Result<Template, String> {
    Template::compile(source).map_err(|error| match error.pos() {
        Some((line, column)) => format!("line {line}, column {column}: {}", error.reason()),
        None => error.reason().to_string(),
    })
}

/// Only a partial on a line of its own passes its indentation on; the parser then removes the blanks before it.
/// Elsewhere the parser passes them on too, and should not.
fn keep_indent_to_lines(template: &mut Template) {
    let (mut begins_line, mut may_begin) = (true, true);
    for element in &mut template.elements {
        if let TemplateElement::PartialExpression(partial) = element
            && !begins_line
        {
            partial.indent = None;
        }
        if let TemplateElement::HelperBlock(call) = element {
            [&mut call.template, &mut call.inverse].into_iter().flatten().for_each(keep_indent_to_lines);
        }
        match element {
            TemplateElement::RawString(text) => begins_line = text.ends_with('\n') || text.is_empty() && may_begin,
            _ => {
                // An element on a line of its own also took the end of that line.
                may_begin = !matches!(element, TemplateElement::Expression(_) | TemplateElement::HtmlExpression(_));
                begins_line = may_begin;
            }
        }
    }
}

#[derive(Default)]
struct Walk {
    includes: Vec<Include>,
    depth: usize,
    elements: usize,
}

impl Walk {
    fn template(&mut self, template: &Template, depth: usize) -> Result<(), String> {
        self.depth = self.depth.max(depth);
        for element in &template.elements {
            self.elements += 1;
            match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => {}
                TemplateElement::Expression(call) | TemplateElement::HtmlExpression(call) => {
                    let is_call = !call.params.is_empty() || !call.hash.is_empty();
                    self.call(call, is_call)?;
                }
                TemplateElement::HelperBlock(call) => {
                    self.call(call, true)?;
                    for inner in [&call.template, &call.inverse].into_iter().flatten() {
                        self.template(inner, depth + 1)?;
                    }
                }
                TemplateElement::PartialExpression(partial) => {
                    let name = match &partial.name {
                        Parameter::Name(name) => name.as_str(),
                        name => name.as_name().ok_or("a partial needs a fixed name")?,
                    };
                    if name.starts_with('@') {
                        return Err(format!("there is no `{name}` to include"));
                    }
                    self.includes.push(Include { name: name.to_owned(), depth });
                    partial.params.iter().chain(partial.hash.values()).try_for_each(|value| self.parameter(value))?;
                }
                _ => return Err("decorators and inline partials cannot be used".to_owned()),
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &HelperTemplate, is_call: bool) -> Result<(), String> {
        let name = call.name.as_name().ok_or("what is called needs a fixed name")?;
        if is_call && !HELPERS.contains(&name) {
            return Err(format!("there is no helper `{name}`; there are {}", HELPERS.join(", ")));
        }
        call.params.iter().chain(call.hash.values()).try_for_each(|value| self.parameter(value))
    }

    fn parameter(&mut self, value: &Parameter) -> Result<(), String> {
        let Parameter::Subexpression(inner) = value else { return Ok(()) };
        self.elements += 1;
        match inner.as_element() {
            TemplateElement::Expression(call) => self.call(call, true),
            _ => Err("what stands in parentheses must be a call".to_owned()),
        }
    }
}

/// Adds a check of the clock before everything, and after every few elements. The renderer has no other place for it.
fn add_ticks(template: &mut Template, tick: &Template, at_start: bool) {
    let (Some(element), Some(mapping)) = (tick.elements.first(), tick.mapping.first()) else { return };
    for element in &mut template.elements {
        if let TemplateElement::HelperBlock(call) = element {
            for inner in [&mut call.template, &mut call.inverse].into_iter().flatten() {
                add_ticks(inner, tick, false);
            }
        }
    }
    let count = template.elements.len();
    let first = if at_start { 0 } else { STRIDE };
    for at in (first..count).step_by(STRIDE).collect::<Vec<_>>().into_iter().rev() {
        template.elements.insert(at, element.clone());
        if at <= template.mapping.len() {
            template.mapping.insert(at, mapping.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_may_not_do_is_refused_when_it_is_read() {
        for (source, says) in [
            ("{{log \"x\"}}", "there is no helper `log`"),
            ("{{#items}}x{{/items}}", "there is no helper `items`"),
            ("{{#if (shout a)}}x{{/if}}", "there is no helper `shout`"),
            ("{{> (lookup a 'name')}}", "fixed name"),
            ("{{> @partial-block}}", "there is no `@partial-block`"),
            ("{{#if a}}x{{/each}}", "line 1, column 11"),
            ("a\n{{b c=}}", "line 2"),
        ] {
            let said = parse(source).unwrap_err();
            assert!(said.contains(says), "{source}: {said}");
        }
    }

    #[test]
    fn includes_are_found_with_the_blocks_around_them() {
        let parsed = parse("{{> a}}{{#if x}}{{#each y}}{{> b-c.d}}{{/each}}{{else}}{{> e}}{{/if}}").unwrap();
        let found: Vec<_> = parsed.includes.iter().map(|one| (one.name.as_str(), one.depth)).collect();
        assert_eq!(found, [("a", 0), ("b-c.d", 2), ("e", 1)]);
        assert_eq!(parsed.depth, 2);
    }
}
