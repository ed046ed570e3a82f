//! For any template and data of a tenant, a rendering ends soon and within its limits.

use std::time::{Duration, Instant};

use domain::{Channel, contract::submission::Part};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use serde_json::{Map, Value, json};

use super::{OUTPUT_BYTES_MAX, TemplateSource, check, compile};

/// Far above the limit of one text, since the test machine has other work too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Parts of templates, well formed or not.
const PIECES: [&str; 48] = [
    "{{a}}",
    "{{ a.b }}",
    "{{{a}}}",
    "{{&a}}",
    "{{../a}}",
    "{{@index}}",
    "{{@root.a}}",
    "{{this}}",
    "{{.}}",
    "{{a.[b c]}}",
    "{{#each xs}}",
    "{{/each}}",
    "{{#each a as |v k|}}",
    "{{#if a}}",
    "{{/if}}",
    "{{else}}",
    "{{else if b}}",
    "{{^}}",
    "{{#unless b}}",
    "{{/unless}}",
    "{{#with a}}",
    "{{/with}}",
    "{{> t0}}",
    "{{> t1 a}}",
    "{{> t2 a=b x=\"1\"}}",
    "{{> nobody}}",
    "{{!-- c --}}",
    "{{! c }}",
    "{{!--",
    "{{~a~}}",
    "{{lookup a \"b\"}}",
    "{{#if (eq a b)}}",
    "{{(a)}}",
    "\\{{a}}",
    "\\\\{{a}}",
    "{{",
    "}}",
    "{{{{raw}}}}",
    "{{#*inline \"x\"}}",
    "{{#> t0}}",
    "{{log a}}",
    "{{a",
    " ",
    "\n",
    "  {{> t1}}\n",
    "text & <b>",
    "ü\u{1F600}",
    "\"'[",
];

fn text() -> impl Strategy<Value = String> {
    let pieces = vec(select(PIECES.to_vec()), 0..24).prop_map(|pieces| pieces.concat());
    prop_oneof![4 => pieces.clone(), 1 => well_formed(), 1 => (pieces, ".{0,40}").prop_map(|(a, b)| a + &b)]
}

/// Blocks that are closed correctly.
fn well_formed() -> impl Strategy<Value = String> {
    let leaf = select(vec!["{{a}}", "{{this}}", "x\n", "{{> t1}}", "{{> t2}}", "{{#each xs}}{{/each}}"])
        .prop_map(str::to_owned);
    leaf.prop_recursive(12, 64, 4, |inner| {
        let block = select(vec!["each xs", "each a", "if a", "unless b", "with a", "if (eq a b)"]);
        (block, vec(inner, 0..4)).prop_map(|(block, inner)| {
            let name = block.split(' ').next().unwrap_or_default();
            format!("{{{{#{block}}}}}{}{{{{/{name}}}}}", inner.concat())
        })
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        let key = select(vec!["a", "b", "xs", "b c", "0", "this", "@root", "each"]).prop_map(str::to_owned);
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(Value::from),
            vec((key, inner), 0..8).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn variables() -> impl Strategy<Value = Value> {
    (value(), value(), vec(value(), 0..6)).prop_map(|(a, b, xs)| {
        let members = [("a", a), ("b", b), ("xs", Value::from(xs))].map(|(name, value)| (name.to_owned(), value));
        Value::Object(Map::from_iter(members))
    })
}

fn source(name: &str, text: &str) -> TemplateSource {
    let part = Part { title: Some(text.to_owned()), message: Some(text.to_owned()), html: Some(text.to_owned()) };
    let parts = [("default".to_owned(), part)].into();
    TemplateSource { name: name.to_owned(), version: 1, category: None, variables: Vec::new(), parts }
}

/// Renders each text of each kind, and checks the limits.
fn hold(sources: &[TemplateSource], variables: &Value) {
    let begun = Instant::now();
    let found = check(sources, &[]);
    for template in compile(sources.to_vec()) {
        for channel in [Channel::Email, Channel::Sms] {
            let rendered = template.render(channel, variables);
            let texts = rendered.as_ref().map(|part| [part.title.clone(), part.message.clone(), part.html.clone()]);
            for text in texts.into_iter().flatten().flatten() {
                assert!(text.len() <= OUTPUT_BYTES_MAX);
            }
            let is_faulty = found.iter().any(|fault| fault.template == template.source.name);
            assert!(!is_faulty || rendered.is_err() || template.source.parts.values().len() > 1, "{found:?}");
        }
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn random_templates_and_data_never_end_the_process() {
    let strategy = (vec(text(), 3), variables());
    // PROPTEST_CASES sets more cases.
    let mut runner = TestRunner::new(proptest::test_runner::Config::default());
    let outcome = runner.run(&strategy, |(texts, variables)| {
        let sources: Vec<_> =
            texts.iter().enumerate().map(|(index, text)| source(&format!("t{index}"), text)).collect();
        hold(&sources, &variables);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn hostile_templates_never_end_the_process() {
    let many = 100_000;
    let hostile = [
        "{{#if a}}".repeat(many),
        format!("{}{}", "{{#if a}}".repeat(2000), "{{/if}}".repeat(2000)),
        format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if b}}".repeat(2000)),
        format!("{{{{a {}}}}}", "(b ".repeat(1000)),
        format!("{{{{a {}1{}}}}}", "[".repeat(1000), "]".repeat(1000)),
        format!("{{{{a {}}}}}", "../".repeat(1000) + "b"),
        format!("{{{{{}}}}}", "a.".repeat(1300) + "b"),
        "{{!--a}}".repeat(10_000),
        "{{> t0}}".repeat(1000),
        "{{> t1}}{{> t1}}".repeat(100),
        "\\{{".repeat(10_000),
        "\\".repeat(200_000) + "{{a}}",
        " ".repeat(100_000) + "{{#if a}}" + &"\n".repeat(100_000) + "{{/if}}",
        "{".repeat(100_000),
        "}".repeat(100_000),
        "x".repeat(10 * 1024 * 1024),
        "{{#each xs}}".repeat(32) + &"{{/each}}".repeat(32),
        "<style>a{color:red}</style>".to_owned() + &"<a>".repeat(60_000),
        format!("<style>{}</style><a>", "a ".repeat(30_000) + "{color:red}"),
        format!("<style>{}</style><a>", ":is(".repeat(10_000)),
        format!("<style>a{{{}</style><a>", "(".repeat(60_000)),
        format!("<style>a{{{}</style><a>", "{".repeat(20_000)),
    ];
    let wide = json!({"a": {"b": "x".repeat(1000)}, "b": 1, "xs": vec![json!([1, 2]); 20_000]});
    let deep = (0..1000).fold(json!(1), |inner, _| json!({"a": inner, "xs": []}));
    for text in &hostile {
        for data in [&wide, &deep, &Value::Null] {
            hold(&[source("t0", text), source("t1", "{{> t0}}{{a.b}}")], data);
        }
    }
    std::mem::forget(deep);
}
