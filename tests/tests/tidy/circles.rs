//! No two modules of a crate import each other, directly or through others. A module and its own submodules are one.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
};

use super::{assert_clean, sources};

/// A module's path below its crate.
type Module = Vec<String>;

#[test]
fn no_modules_import_in_a_circle() {
    let mut crates: BTreeMap<String, Vec<(Module, String)>> = BTreeMap::new();
    for (path, code) in sources() {
        if let Some((root, file)) = path.split_once("/src/") {
            crates.entry(root.to_owned()).or_default().push((module_of(file), code));
        }
    }
    assert_clean(
        crates.iter().flat_map(|(root, files)| circles(files).into_iter().map(move |found| format!("{root}: {found}"))),
    );
}

#[test]
fn a_circle_is_noticed() {
    let crate_of = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(file, code)| (module_of(file), (*code).to_owned()));
        circles(&files.collect::<Vec<_>>())
    };
    assert_eq!(crate_of(&[("a.rs", "use crate::b::B;"), ("b.rs", "fn f() { super::a::g() }")]), ["a, b"]);
    let through_a_third = [
        ("a/mod.rs", "use crate::{x, b::{self, B}};"),
        ("b.rs", "use crate::c::C;"),
        ("c.rs", "use super::a::inner::A;"),
    ];
    assert_eq!(
        crate_of(&[through_a_third[0], through_a_third[1], through_a_third[2], ("a/inner.rs", "")]),
        ["a, b, c"]
    );
    assert_eq!(crate_of(&[("a/b.rs", "use super::c::C;"), ("a/c.rs", "use super::b::B;")]), ["a/b, a/c"]);
    for no_circle in [
        [("a.rs", "use crate::b::B;"), ("b.rs", "use other::a::A;")],
        [("a.rs", "use crate::b::m;"), ("b.rs", "macro_rules! m { () => { $crate::a::A } }")],
        [("a/mod.rs", "use b::B;"), ("a/b.rs", "use super::A;")],
        [("a.rs", "use crate::b::B;"), ("b.rs", "#[cfg(test)]\nmod tests { use crate::a::A; }")],
    ] {
        assert!(crate_of(&no_circle).is_empty(), "{no_circle:?}");
    }
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`; `lib.rs` and `main.rs` are the crate.
fn module_of(file: &str) -> Module {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let parts = stem.split('/').filter(|part| !["mod", "lib", "main"].contains(part));
    parts.map(str::to_owned).collect()
}

/// Sets of siblings, each of which leads to all others.
fn circles(files: &[(Module, String)]) -> Vec<String> {
    let modules: BTreeSet<&Module> = files.iter().map(|(module, _)| module).collect();
    let mut edges: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, code) in files.iter().filter(|(module, _)| module.last().is_none_or(|last| last != "tests")) {
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for path in imports(module, code) {
            let target = (0..=path.len()).rev().map(|end| &path[..end]).find(|part| modules.contains(&part.to_vec()));
            let Some(target) = target else { continue };
            let common = module.iter().zip(target).take_while(|(one, other)| one == other).count();
            if common < module.len() && common < target.len() {
                edges.entry(module[..=common].to_vec()).or_default().insert(target[..=common].to_vec());
            }
        }
    }
    let reached: BTreeMap<&Module, BTreeSet<Module>> = edges.keys().map(|from| (from, reach(from, &edges))).collect();
    let back = |from: &Module, to: &Module| reached.get(to).is_some_and(|reached| reached.contains(from));
    let circle = |from: &Module| -> BTreeSet<String> {
        reached[from].iter().filter(|to| back(from, to)).map(|to| to.join("/")).collect()
    };
    let found: BTreeSet<BTreeSet<String>> = edges.keys().map(circle).filter(|circle| circle.len() > 1).collect();
    found.into_iter().map(|circle| circle.into_iter().collect::<Vec<_>>().join(", ")).collect()
}

/// The modules that `from` leads to, itself only by a circle.
fn reach(from: &Module, edges: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<Module> {
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<&Module> = vec![from];
    while let Some(module) = ahead.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if reached.insert(next.clone()) {
                ahead.push(next);
            }
        }
    }
    reached
}

/// The paths within this crate that a module names, from the crate's root.
fn imports(module: &Module, code: &str) -> Vec<Module> {
    let mut found = Vec::new();
    let tokens = tokens(code);
    let mut rest = tokens.iter().map(String::as_str).peekable();
    let mut before = "";
    while let Some(token) = rest.next() {
        let mut base = match token {
            "crate" => Module::new(),
            "self" => module.clone(),
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ => {
                before = token;
                continue;
            }
        };
        // A path inside a macro belongs to the module that uses it.
        let is_head = before != "::" && before != "$";
        before = token;
        if !is_head {
            continue;
        }
        while rest.next_if_eq(&"::").is_some() {
            if rest.next_if_eq(&"super").is_some() {
                base.pop();
                continue;
            }
            tree(&mut rest, base.clone(), &mut found);
            break;
        }
    }
    found
}

/// Reads the rest of a path, which may branch.
fn tree<'a>(rest: &mut Peekable<impl Iterator<Item = &'a str>>, mut path: Module, found: &mut Vec<Module>) {
    loop {
        match rest.next() {
            Some("{") => {
                while rest.peek().is_some_and(|token| *token != "}") {
                    tree(rest, path.clone(), found);
                    while rest.peek().is_some_and(|token| !["}", ","].contains(token)) {
                        rest.next();
                    }
                    rest.next_if_eq(&",");
                }
                rest.next();
                return;
            }
            Some("self" | "*") => break,
            Some(name) => path.push(name.to_owned()),
            None => break,
        }
        if rest.next_if_eq(&"::").is_none() {
            break;
        }
    }
    found.push(path);
}

/// Names, `::` and single other characters.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut rest = code.chars().peekable();
    while let Some(c) = rest.next() {
        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
        if is_word(&c) {
            let mut word = c.to_string();
            while let Some(next) = rest.next_if(is_word) {
                word.push(next);
            }
            tokens.push(word);
        } else if c == ':' && rest.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    tokens
}
