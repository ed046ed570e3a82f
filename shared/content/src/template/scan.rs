//! Checks a source in one pass before the parser reads it. The parser uses one level of its stack for each block and
//! parenthesis, and reads from every tag back to the start; this pass limits both. A source that passes may still be
//! invalid.

use super::SOURCE_BYTES_MAX;

/// Nested blocks, each `else if` counting as one more: the depth to which parser and renderer go.
pub(super) const DEPTH_MAX: usize = 32;
/// Nested subexpressions.
const PARENTHESES_MAX: usize = 8;
/// Longest tag, except comments.
const TAG_BYTES_MAX: usize = 4096;
/// The parser counts lines from the start for each tag, so its work grows with the product of both.
const WORK_MAX: usize = 64 * 1024 * 1024;

/// Checks a source; the error names the fault and its place.
pub(super) fn scan(source: &str) -> Result<(), String> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err("must have at most 256 KiB".to_owned());
    }
    let tags = source.matches("{{").count();
    if tags.saturating_mul(source.len()) > WORK_MAX {
        return Err(format!(
            "has too many tags ({tags}) for its size ({} bytes): move some to another template",
            source.len()
        ));
    }
    Scanner { source, at: 0, blocks: Vec::new() }.run()
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    /// The number of levels of each open block.
    blocks: Vec<usize>,
}

impl<'a> Scanner<'a> {
    fn run(mut self) -> Result<(), String> {
        while let Some(found) = self.rest().find("{{") {
            let start = self.at + found;
            let before = self.source.get(self.at..start).unwrap_or_default();
            let backslashes = before.bytes().rev().take_while(|byte| *byte == b'\\').count();
            self.at = start;
            // One backslash makes it text; more backslashes are text themselves.
            if backslashes == 1 {
                let escaped = if self.rest().starts_with("{{{{") { 4 } else { 2 };
                self.at += escaped;
            } else {
                self.tag()?;
            }
        }
        match self.blocks.len() {
            0 => Ok(()),
            1 => Err("has a block that is never closed".to_owned()),
            open => Err(format!("has {open} blocks that are never closed")),
        }
    }

    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn fail<T>(&self, message: &str) -> Result<T, String> {
        let before = self.source.get(..self.at).unwrap_or_default();
        Err(format!("line {}: {message}", before.matches('\n').count() + 1))
    }

    fn tag(&mut self) -> Result<(), String> {
        let rest = self.rest();
        if rest.starts_with("{{{{") {
            return self.fail("raw blocks cannot be used; write \\{{ for braces as text");
        }
        if let Some(comment) = rest.strip_prefix("{{!") {
            let end = if comment.starts_with("--") { "--}}" } else { "}}" };
            let from = if comment.starts_with("--") { 2 } else { 0 };
            let Some(length) = comment.get(from..).and_then(|text| text.find(end)) else {
                return self.fail("a comment is never closed");
            };
            self.at += 3 + from + length + end.len();
            return Ok(());
        }
        let Some(length) = self.length(rest)? else { return self.fail("a tag is never closed") };
        let inside = rest.get(2..length).unwrap_or_default();
        self.look_at(inside.trim_start_matches(['~', '{', ' ', '\t', '\r', '\n']))?;
        self.at += length;
        Ok(())
    }

    /// The length of a tag with its braces. Texts and names in brackets may contain braces.
    fn length(&self, tag: &str) -> Result<Option<usize>, String> {
        let mut parentheses = 0_usize;
        let mut quote = None;
        let mut chars = tag.char_indices().skip(2).peekable();
        while let Some((at, char)) = chars.next() {
            if at > TAG_BYTES_MAX {
                return self.fail("a tag is longer than 4096 bytes, or is never closed");
            }
            match (quote, char) {
                (Some('"' | '\''), '\\') => drop(chars.next()),
                (Some(end), char) if char == end => quote = None,
                (Some(']'), '[' | '{' | '"') => return self.fail("lists and objects cannot be written in a tag"),
                (Some(_), _) => {}
                (None, '"' | '\'') => quote = Some(char),
                (None, '[') => quote = Some(']'),
                (None, '{') if at > 3 => return self.fail("lists and objects cannot be written in a tag"),
                (None, '(') => {
                    parentheses += 1;
                    if parentheses > PARENTHESES_MAX {
                        return self.fail("parentheses nest deeper than 8");
                    }
                }
                (None, ')') => parentheses = parentheses.saturating_sub(1),
                (None, '}') if tag.get(at..).is_some_and(|rest| rest.starts_with("}}")) => {
                    let more = if tag.get(at..).is_some_and(|rest| rest.starts_with("}}}")) { 3 } else { 2 };
                    return Ok(Some(at + more));
                }
                (None, _) => {}
            }
        }
        Ok(None)
    }

    fn look_at(&mut self, inside: &str) -> Result<(), String> {
        let is_else = |text: &str| text.strip_prefix("else").is_some_and(|rest| !rest.starts_with(is_name));
        match inside.chars().next() {
            Some('#') => {
                self.blocks.push(1);
                self.check_depth()?;
                let rest = inside.trim_start_matches(['#', ' ', '\t', '\r', '\n']);
                match rest.chars().next() {
                    Some('>') => self.fail("a partial cannot have a block; use {{> name}}"),
                    Some('*') => self.fail("inline partials and decorators cannot be used"),
                    _ => Ok(()),
                }
            }
            Some('*') => self.fail("decorators cannot be used"),
            Some('/') => match self.blocks.pop() {
                Some(_) => Ok(()),
                None => self.fail("closes a block that was not opened"),
            },
            Some('^') => self.add_branch(inside.trim_start_matches('^')),
            Some('e') if is_else(inside) => self.add_branch(inside.trim_start_matches("else")),
            _ => Ok(()),
        }
    }

    /// A branch with a condition is a block inside the block.
    fn add_branch(&mut self, condition: &str) -> Result<(), String> {
        if condition.contains(is_name) {
            if let Some(block) = self.blocks.last_mut() {
                *block += 1;
            }
            self.check_depth()?;
        }
        Ok(())
    }

    fn check_depth(&self) -> Result<(), String> {
        let depth: usize = self.blocks.iter().sum();
        if depth > DEPTH_MAX { self.fail("blocks nest deeper than 32") } else { Ok(()) }
    }
}

fn is_name(char: char) -> bool {
    char.is_alphanumeric() || "-_$:.@/[".contains(char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_passes() {
        for source in [
            "",
            "no tags",
            "Hi {{name}}, {{{html}}} {{~ x ~}} {{! a comment }} {{!-- with }} and {{ --}}",
            "{{#if a}}1{{else if b}}2{{else}}3{{/if}}{{#each xs as |x i|}}{{x.[a b]}}{{@index}}{{/each}}",
            r#"{{lookup a "}}"}} \{{text}} \\{{a}} {{> header title="x"}} {{#if (eq a 'b')}}{{/if}}"#,
        ] {
            assert_eq!(scan(source), Ok(()), "{source}");
        }
    }

    #[test]
    fn what_would_hurt_the_parser_is_named_with_its_line() {
        for (source, says) in [
            ("a\n{{#if a}", "line 2: a tag is never closed"),
            ("{{#if a}}", "never closed"),
            ("a\n\n{{/if}}", "line 3: closes a block that was not opened"),
            ("{{!-- }}", "line 1: a comment is never closed"),
            ("{{{{raw}}}}{{{{/raw}}}}", "raw blocks"),
            ("{{#*inline \"x\"}}{{/inline}}", "inline partials"),
            ("{{* decorate}}", "decorators"),
            ("{{#> layout}}x{{/layout}}", "cannot have a block"),
            ("{{a [1,[2,[3]]]}}", "lists and objects"),
            ("{{a {\"b\": 1}}}", "lists and objects"),
            ("{{a (b (c (d (e (f (g (h (i (j 1)))))))))}}", "parentheses nest"),
        ] {
            let said = scan(source).unwrap_err();
            assert!(said.contains(says), "{source}: {said}");
        }
    }

    #[test]
    fn every_bound_holds_to_the_last_one() {
        let nested = |depth: usize| format!("{}{}", "{{#if a}}".repeat(depth), "{{/if}}".repeat(depth));
        assert_eq!(scan(&nested(32)), Ok(()));
        assert!(scan(&nested(33)).is_err());
        let chained = |links: usize| format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if b}}".repeat(links));
        assert_eq!(scan(&chained(31)), Ok(()));
        assert!(scan(&chained(32)).is_err());
        assert_eq!(scan(&"x".repeat(SOURCE_BYTES_MAX)), Ok(()));
        assert!(scan(&"x".repeat(SOURCE_BYTES_MAX + 1)).is_err());
        assert!(scan(&"{{a}}".repeat(10_000)).unwrap_err().contains("too many tags"));
        assert!(scan(&format!("{{{{a {}}}}}", "b ".repeat(3000))).unwrap_err().contains("4096 bytes"));
    }

    #[test]
    fn a_close_that_is_only_text_closes_nothing() {
        let hidden = |close: &str| format!("{{{{#if a}}}}{close}").repeat(33);
        assert!(scan(&hidden(r"\{{/if}}")).unwrap_err().contains("nest deeper"));
        assert!(scan(&hidden("{{!-- {{/if}} --}}")).unwrap_err().contains("nest deeper"));
        assert!(scan(&hidden("{{lookup a \"{{/if}}\"}}")).unwrap_err().contains("nest deeper"));
    }
}
