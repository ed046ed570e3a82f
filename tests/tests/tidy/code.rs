//! Rust without its comments and texts, so that rules find code only.

use std::{iter::Peekable, str::Chars};

#[test]
fn comments_and_texts_are_no_code() {
    for (text, code) in [
        ("a // b\nc", "a \nc"),
        ("a /* b /* c */ d */ e", "a  e"),
        (r#"f("x // \" y") + 1"#, r#"f("") + 1"#),
        ("f(r#\"x \" y\"#)", "f(\"\")"),
        (r"let c = '\''; let d = '/'; 'a: loop", "let c = ''; let d = ''; 'a: loop"),
        ("let c = '\"'; x<'static>()", "let c = ''; x<'static>()"),
        ("br\"x\" br_ard for_r", "b\"\" br_ard for_r"),
    ] {
        assert_eq!(code_of(text), code);
    }
}

/// Whether the code has this path or word, whole and with or without spaces between its parts.
pub fn has_path(code: &str, wanted: &str) -> bool {
    let spaced: Vec<_> = code.split("::").map(str::trim).collect();
    let code = spaced.join("::");
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(wanted).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + wanted.len()..]);
        !before.ends_with(in_word) && !after.starts_with(in_word)
    })
}

/// The text of a Rust file without comments, and with every text and character in it empty.
pub fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('/', Some('/')) => code.push_str(if rest.by_ref().any(|c| c == '\n') { "\n" } else { "" }),
            ('/', Some('*')) => skip_block(&mut rest),
            ('"', _) => {
                skip_quoted(&mut rest, '"');
                code.push_str("\"\"");
            }
            ('r', Some('"' | '#')) if !ends_in_word(&code) => code.push_str(&raw(&mut rest)),
            ('\'', _) => code.push_str(&quote(&mut rest)),
            _ => code.push(c),
        }
    }
    code
}

/// Whether an `r` that follows would be the end of a name; `b` alone makes a byte string of it.
fn ends_in_word(code: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.strip_suffix('b').unwrap_or(code).ends_with(word)
}

fn skip_block(rest: &mut Peekable<Chars<'_>>) {
    let mut depth = 1;
    rest.next();
    while depth > 0
        && let Some(c) = rest.next()
    {
        match (c, rest.peek()) {
            ('*', Some('/')) => depth -= 1,
            ('/', Some('*')) => depth += 1,
            _ => continue,
        }
        rest.next();
    }
}

fn skip_quoted(rest: &mut Peekable<Chars<'_>>, end: char) {
    while let Some(c) = rest.next() {
        match c {
            '\\' => drop(rest.next()),
            _ if c == end => return,
            _ => {}
        }
    }
}

/// The rest after an `r`: a raw text, or a raw name such as `r#type`.
fn raw(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut hashes = String::new();
    while let Some(hash) = rest.next_if_eq(&'#') {
        hashes.push(hash);
    }
    if rest.next_if_eq(&'"').is_none() {
        return format!("r{hashes}");
    }
    let end = format!("\"{hashes}");
    let mut seen = String::new();
    while !seen.ends_with(&end) {
        match rest.next() {
            Some(c) => seen.push(c),
            None => break,
        }
    }
    "\"\"".to_owned()
}

/// The rest after a `'`: a character, or the name of a lifetime.
fn quote(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut ahead = rest.clone();
    let first = ahead.next();
    if first != Some('\\') && ahead.next() != Some('\'') {
        return "'".to_owned();
    }
    skip_quoted(rest, '\'');
    "''".to_owned()
}
