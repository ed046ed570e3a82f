//! The pages of the project name tests, metrics and other pages: each of them exists. Each rule is shown to be able to fail.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use runtime::metric::TABLE;

/// Folders with pages.
const PAGES: [&str; 3] = [".", "docs", "docs/adr"];
/// Words that begin as the names of metrics do: roles of PostgreSQL, and a tag of providers.
const NO_METRICS: [&str; 3] = ["posthaste_app", "posthaste_delivery", "posthaste_services"];

#[test]
fn every_test_that_a_page_names_exists() {
    assert_clean(pages().iter().flat_map(|(page, text)| {
        quoted(text).filter_map(named_test).filter_map(move |(file, name)| missing_test(page, &file, name))
    }));
}

#[test]
fn every_metric_is_described_in_a_page() {
    let pages = pages();
    let named: BTreeSet<&str> = pages.iter().flat_map(|(_, text)| metrics(text)).map(|(name, _)| name).collect();
    let missing = TABLE.iter().filter(|row| !named.contains(row.name));
    assert_clean(missing.map(|row| format!("no page describes {}", row.name)));
}

#[test]
fn every_metric_that_a_page_names_exists_and_has_its_labels() {
    assert_clean(pages().iter().flat_map(|(page, text)| {
        metrics(text)
            .filter(|(name, labels)| !is_metric(name, labels))
            .map(move |(name, labels)| format!("{page} names {name} with the labels {labels:?}"))
    }));
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    assert_clean(pages().iter().flat_map(|(page, text)| {
        links(text).filter(|link| !leads(page, link)).map(move |link| format!("{page} links {link}"))
    }));
}

#[test]
fn the_name_of_a_test_differs_from_other_code() {
    assert_eq!(named_test("kills::row_1_…"), Some(("tests/tests/kills.rs".to_owned(), "row_1_…")));
    assert_eq!(named_test("a/src/b.rs::c_d"), Some(("a/src/b.rs".to_owned(), "c_d")));
    for code in ["Store::within", "file.rs", "FILE::TEST", "posthaste_build_info", "std::env::var"] {
        assert_eq!(named_test(code), None, "{code}");
    }
    let source =
        "#[test]\nfn one() {}\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn two_three() {}\nfn four() {}";
    assert_eq!(tests_of(source), ["one", "two_three"]);
    assert!(is_named("two_…", &["two_three"]) && !is_named("two_", &["two_three"]) && !is_named("four", &["one"]));
    assert_eq!(quoted("a `b` c\n```\n`d`\n```\n`e`").collect::<Vec<_>>(), ["b", "e"]);
}

#[test]
fn an_unknown_metric_and_a_dead_link_are_noticed() {
    let text = "`posthaste_a_total{b, c=~\"d\"}` (posthaste_app) `rate(posthaste_e[5m])`, `posthaste_`";
    assert_eq!(metrics(text).collect::<Vec<_>>(), [("posthaste_a_total", vec!["b", "c"]), ("posthaste_e", vec![])]);
    assert!(is_metric("posthaste_claims_total", &["result"]) && is_metric("posthaste_claims_total", &[]));
    assert!(!is_metric("posthaste_claims", &[]) && !is_metric("posthaste_claims_total", &["results"]));
    assert_eq!(links("[a](b.md#c) [d](https://e) `[f](g)`").collect::<Vec<_>>(), ["b.md#c"]);
    assert_eq!(anchor("What can be down, and `why`"), "what-can-be-down-and-why");
    assert!(leads("docs/sending.md", "operating.md#providers") && leads("README.md", "docs/adr/README.md"));
    assert!(!leads("docs/sending.md", "operating.md#nowhere") && !leads("docs/sending.md", "nowhere.md"));
}

fn assert_clean(found: impl Iterator<Item = String>) {
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Each page by its path from the root. CHANGELOG.md is history: it may name removed things.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for folder in PAGES {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().trim_start_matches("./").to_owned();
            if path.extension().is_some_and(|ending| ending == "md") && name != "CHANGELOG.md" {
                pages.push((name, read(&path)));
            }
        }
    }
    pages
}

/// The lines of a page outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(str::lines)
}

/// Texts in single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The file and the name of a test, where `code` is one: `file::test` of `tests/tests` or a folder in it, or `path.rs::test`.
fn named_test(code: &str) -> Option<(String, &str)> {
    let (file, name) = code.split_once("::")?;
    let is_word = |text: &str, beside: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || beside.contains(c))
    };
    if !is_word(name, "_…") {
        return None;
    }
    match file.ends_with(".rs") {
        true => is_word(file, "_/.").then(|| (file.to_owned(), name)),
        false => is_word(file, "_").then(|| (format!("tests/tests/{file}.rs"), name)),
    }
}

fn missing_test(page: &str, file: &str, name: &str) -> Option<String> {
    let path = root().join(file);
    let folders = fs::read_dir(root().join("tests/tests")).unwrap().map(|entry| entry.unwrap().path());
    // The oracles are named by their path.
    let folders = folders.filter(|folder| !folder.ends_with("oracles"));
    let in_folders = folders.map(|folder| folder.join(path.file_name().unwrap_or_default()));
    let places = [path.clone(), path.with_extension("").join("main.rs")].into_iter().chain(in_folders);
    let source: String = places.filter_map(|path| fs::read_to_string(path).ok()).collect();
    (!is_named(name, &tests_of(&source))).then(|| format!("{page} names {file}::{name}"))
}

/// Whether a name, which may be cut, is the one of a test.
fn is_named(name: &str, tests: &[&str]) -> bool {
    match name.strip_suffix('…') {
        Some(beginning) => tests.iter().any(|test| test.starts_with(beginning)),
        None => tests.contains(&name),
    }
}

fn tests_of(source: &str) -> Vec<&str> {
    let marked = ["#[test]", "#[tokio::test"].into_iter().flat_map(|mark| source.split(mark).skip(1));
    marked.filter_map(|rest| Some(rest.split_once("fn ")?.1.split_once('(')?.0)).collect()
}

/// The metrics that a text names, each with the labels behind it.
fn metrics(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let found = text.match_indices("posthaste_").map(move |(at, _)| {
        let rest = &text[at..];
        let (name, behind) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let labels =
            behind.strip_prefix('{').and_then(|labels| labels.split_once('}')).map_or("", |(labels, _)| labels);
        let labels = labels.split(',').map(|label| label.trim().split(|c| !is_word(c)).next().unwrap_or_default());
        (name, labels.filter(|label| !label.is_empty()).collect())
    });
    found.filter(|(name, _)| *name != "posthaste_" && !NO_METRICS.contains(name))
}

fn is_metric(name: &str, labels: &[&str]) -> bool {
    TABLE.iter().any(|row| row.name == name && labels.iter().all(|label| row.labels.contains(label)))
}

/// The targets of a page's links, without those on other sites.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let plain = prose(text).flat_map(|line| line.split('`').step_by(2));
    let targets = plain.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split_once(')')));
    targets.map(|(link, _)| link).filter(|link| !link.starts_with("http"))
}

fn leads(page: &str, link: &str) -> bool {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let folder = root().join(page).parent().unwrap().to_owned();
    let target = if path.is_empty() { root().join(page) } else { folder.join(path) };
    if heading.is_empty() {
        return target.exists();
    }
    let text = fs::read_to_string(&target).unwrap_or_default();
    prose(&text).any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading)
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.trim().to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}
