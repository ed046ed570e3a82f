//! A metric is declared once, in the table of `shared/runtime/src/metric.rs`. Other code names it by its constant, with
//! the kind and the labels of its row.

use std::{collections::BTreeMap, fs};

use runtime::metric::{Kind, Metric, TABLE};

use super::{assert_clean, files_below, relative, root};

/// The table.
const HOME: &str = "shared/runtime/src/metric.rs";
/// The tests of whole processes and their harness read `/metrics` as an operator does, by names.
const TESTS: [&str; 2] = ["tests/", "testkit/"];
/// Texts that look like the name of a metric: the tag in which providers give back the id of a delivery.
const NO_METRICS: [&str; 1] = ["posthaste_delivery"];
/// How a metric is counted, and the kind that its row must have.
const CALLS: [(&str, Kind); 4] = [
    ("counter!(metric::", Kind::Counter),
    ("at_zero(metric::", Kind::Counter),
    ("gauge!(metric::", Kind::Gauge),
    ("histogram!(metric::", Kind::Histogram),
];

#[test]
fn a_metric_is_named_by_its_constant() {
    assert_clean(texts().flat_map(|(path, text)| literals(&path, &text)));
}

#[test]
fn a_metric_is_counted_with_the_kind_and_the_labels_of_its_row() {
    let table = fs::read_to_string(root().join(HOME)).unwrap();
    let rows = rows(&table);
    assert_eq!(rows.len(), TABLE.len(), "each row has a constant");
    let texts: Vec<_> = texts().collect();
    assert!(texts.iter().map(|(_, text)| uses(text).len()).sum::<usize>() > rows.len(), "the uses are seen");
    assert_clean(texts.iter().flat_map(|(path, text)| misuses(path, text, &rows)));
}

#[test]
fn a_metric_outside_of_the_table_is_noticed() {
    let text = "counter!(\"posthaste_a_total\"); const B: &str = \"posthaste_b\"; f(\"posthaste_c d\"); \
                g(\"posthaste_delivery\")";
    assert_eq!(literals("a.rs", text).len(), 2);
    assert!(literals(HOME, text).is_empty());
    let rows = rows("    RELEASED: \"posthaste_released_total\" = 1;\n    CLAIMS: \"posthaste_claims_total\" =\n");
    assert_eq!(rows.len(), 2);
    let misused = |text| misuses("a.rs", text, &rows).len();
    for text in [
        "gauge!(metric::RELEASED).set(1.0)",
        "counter!(metric::RELEASED, \"a\" => b)",
        "counter!(metric::CLAIMS).increment(f(1), \"result\" => 2)",
        "at_zero(metric::CLAIMS, \"results\", [\"won\"])",
    ] {
        assert_eq!(misused(text), 1, "{text}");
    }
    for text in [
        "counter!(metric::RELEASED).increment(1)",
        "counter!(\n    metric::CLAIMS,\n    \"result\" => of(\"a) b\").next(),\n)",
        "at_zero(metric::CLAIMS, \"result\", [\"won\"])",
        "metric::start_at_zero(metric::Service::Worker)",
    ] {
        assert_eq!(misused(text), 0, "{text}");
    }
}

/// Every Rust file without those of end-to-end tests: its path from the root, and its text.
fn texts() -> impl Iterator<Item = (String, String)> {
    let files = files_below(&root()).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    let texts = files.map(|path| (relative(&path), fs::read_to_string(&path).unwrap()));
    texts.filter(|(path, _)| !TESTS.iter().any(|folder| path.starts_with(folder)))
}

/// Texts of one word that begins as the names of metrics do.
fn literals(path: &str, text: &str) -> Vec<String> {
    if path == HOME {
        return Vec::new();
    }
    let texts = text.match_indices("\"posthaste_").filter_map(|(at, _)| Some(text[at + 1..].split_once('"')?.0));
    let names = texts.filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    let others = names.filter(|name| !NO_METRICS.contains(name));
    others.map(|name| format!("{path} has the text `{name}`: use its constant in {HOME}")).collect()
}

/// The rows of the table by their constants.
fn rows(table: &str) -> BTreeMap<&str, &'static Metric> {
    let named = table.lines().filter_map(|line| {
        let (constant, rest) = line.strip_prefix("    ")?.split_once(": \"")?;
        Some((constant, rest.split_once('"')?.0))
    });
    named.filter_map(|(constant, name)| Some((constant, TABLE.iter().find(|row| row.name == name)?))).collect()
}

/// Each place that counts: the kind, the constant, and the labels.
fn uses(text: &str) -> Vec<(Kind, String, Vec<String>)> {
    let dense: String = text.split_whitespace().collect();
    let calls = CALLS.iter().flat_map(|(start, kind)| {
        dense.match_indices(start).map(|(at, _)| (*start, *kind, arguments(&dense[at + start.len()..])))
    });
    let is_constant = |name: &str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let read = calls.map(|(start, kind, arguments)| {
        let (constant, rest) = arguments.split_once(',').unwrap_or((arguments, ""));
        let labels = if start.starts_with("at_zero") {
            rest.split('"').skip(1).take(1).map(str::to_owned).collect()
        } else {
            let before = rest.split("\"=>").map(|part| part.rsplit('"').next().unwrap_or_default().to_owned());
            before.take(rest.matches("\"=>").count()).collect()
        };
        (kind, constant.to_owned(), labels)
    });
    read.filter(|(_, constant, _)| is_constant(constant)).collect()
}

/// The text up to the parenthesis that ends a call.
fn arguments(call: &str) -> &str {
    let (mut depth, mut is_text) = (1, false);
    let end = call.find(|c| {
        is_text ^= c == '"';
        depth += match c {
            '(' if !is_text => 1,
            ')' if !is_text => -1,
            _ => 0,
        };
        depth == 0
    });
    &call[..end.unwrap_or(call.len())]
}

fn misuses(path: &str, text: &str, rows: &BTreeMap<&str, &Metric>) -> Vec<String> {
    let wrong = uses(text).into_iter().filter(|(kind, constant, labels)| {
        !rows.get(constant.as_str()).is_some_and(|row| row.kind == *kind && row.labels == labels)
    });
    wrong.map(|(kind, constant, labels)| format!("{path} uses {constant} as a {kind:?} with {labels:?}")).collect()
}
