//! Templates, rendered by Handlebars itself as well.

use anyhow::{Context, Result};
use content::template::{TemplateError, TemplateSource, compile};
use domain::{Channel, contract::submission::Part};
use serde_json::{Map, Value, json};
use testkit::oracle::node;

const CASES: u64 = 800;

/// A generator of numbers that are the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // Constants of Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % sides
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }

    fn value(&mut self) -> Value {
        let words = ["", "plain", "A & <B> \"C\" 'D' `E` =F", "ümlaut ✓ 😀", "two\nlines", "{{a}}", "0", " "];
        match self.roll(8) {
            0 => json!(self.roll(2) == 0),
            1 => json!(self.roll(1000)),
            2 => json!(-2.5),
            3 => json!(3.0),
            4 => Value::Null,
            _ => json!(self.of(&words)),
        }
    }

    fn item(&mut self) -> Value {
        json!({"n": self.value(), "b": self.roll(2) == 0, "tags": (0..self.roll(3)).map(|_| self.value()).collect::<Vec<_>>()})
    }

    fn data(&mut self) -> Value {
        let keys = ["a", "b", "c"];
        let mut members: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), self.value())).collect();
        members.insert("rows".to_owned(), (0..self.roll(4)).map(|_| self.item()).collect());
        members.insert("map".to_owned(), json!({"k1": self.item(), "k2": self.item()}));
        members.insert("deep".to_owned(), json!({"x": {"y": self.value()}, "n": self.value(), "b": true, "tags": []}));
        Value::Object(members)
    }

    /// A run of pieces; in an item when `within`.
    fn template(&mut self, within: bool, depth: usize) -> String {
        // JavaScript adds up what is not escaped, should two numbers come first.
        let pieces = (0..=self.roll(5)).map(|_| self.piece(within, depth));
        std::iter::once(".".to_owned()).chain(pieces).collect()
    }

    fn piece(&mut self, within: bool, depth: usize) -> String {
        let name = if within {
            ["n", "b", "this.n", "../a", "@root.b", "n", "@index"]
        } else {
            ["a", "b", "c", "deep.x.y", "this.a", "@root.c", "deep.n"]
        };
        let simple = self.roll(12);
        if depth == 0 || simple < 6 {
            let name = self.of(&name);
            return match simple {
                0 => format!("{{{{{{{name}}}}}}}"),
                1 => format!("{{{{& {name}}}}}"),
                2 => format!(" {{{{~ {name} ~}}}} ."),
                3 => self
                    .of(&["text ", "\n", "\n\n", "  ", "<p class=\"x\">", "\\{{a}}", "{{! c }}", "{{!-- {{c}} --}}\n"])
                    .to_owned(),
                _ => format!("{{{{{name}}}}}"),
            };
        }
        let line = self.of(&["", "", "\n"]);
        let inner = |dice: &mut Self, within: bool| dice.template(within, depth - 1);
        match (within, self.roll(7)) {
            (_, 0 | 1) => {
                let (name, then, other, end) =
                    (self.of(&name), inner(self, within), inner(self, within), inner(self, within));
                match self.roll(4) {
                    0 => format!("{{{{#if {name}}}}}{line}{then}{line}{{{{/if}}}}{line}"),
                    1 => format!("{{{{#if {name}}}}}{line}{then}{line}{{{{else}}}}{line}{other}{{{{/if}}}}{line}"),
                    2 => format!("{{{{#unless {name}}}}}{then}{{{{^}}}}{other}{{{{/unless}}}}"),
                    // JavaScript keeps the end of a line that only such a chain's end stands on.
                    _ => format!(
                        "{{{{#if {name}}}}}{then}{{{{else if @root.b}}}}{line}{other}{{{{else}}}}{end}{{{{/if}}}}"
                    ),
                }
            }
            (false, 2) => {
                format!("{line}{{{{#each rows}}}}{line}{}{line}{{{{else}}}}none{{{{/each}}}}{line}", inner(self, true))
            }
            (false, 3) => {
                format!("{{{{#each map}}}}{{{{@key}}}}{{{{#if @first}}}}1{{{{/if}}}}{}{{{{/each}}}}", inner(self, true))
            }
            (false, 4) => {
                "{{#each rows as |row at|}}{{at}}:{{row.n}}{{#unless @last}}, {{/unless}}{{/each}}".to_owned()
            }
            (true, 2) => "{{#each tags}}[{{this}}{{@index}}{{../n}}]{{/each}}".to_owned(),
            (true, 3) => "{{> row}}".to_owned(),
            (true, _) => "{{> named label=n}}".to_owned(),
            (false, 5) => format!("{line}{}{{{{> head}}}}{line}", self.of(&["", "  "])),
            (false, _) => match self.roll(3) {
                0 => "{{#with deep}}.{{n}}{{x.y}}{{../a}}{{/with}}".to_owned(),
                1 => "{{lookup deep \"n\"}}".to_owned(),
                _ => "{{> row deep}}".to_owned(),
            },
        }
    }
}

fn includes() -> [(&'static str, &'static str); 3] {
    [
        ("head", "<h1>{{a}}</h1>\n{{#if b}}\n  yes\n{{/if}}\n"),
        ("row", "[{{n}}|{{#each tags}}{{this}};{{/each}}]"),
        ("named", "({{label}}/{{n}})"),
    ]
}

fn ours(template: &str, html: bool, data: &Value) -> Result<String, TemplateError> {
    let source = |name: &str, text: &str| {
        let part = Part { message: Some(text.to_owned()), html: Some(text.to_owned()), title: None };
        let parts = [("default".to_owned(), part)].into();
        TemplateSource { name: name.to_owned(), version: 1, category: None, variables: Vec::new(), parts }
    };
    let all = [source("main", template)].into_iter().chain(includes().map(|(name, text)| source(name, text)));
    let main = compile(all.collect()).remove(0);
    let part = main.render(if html { Channel::Email } else { Channel::Sms }, data)?;
    Ok(if html { part.html } else { part.message }.unwrap_or_default())
}

fn theirs(cases: &[(String, bool, Value)]) -> Result<Vec<Value>> {
    let includes: Map<String, Value> =
        includes().map(|(name, text)| (name.to_owned(), json!(text))).into_iter().collect();
    let asked = cases
        .iter()
        .map(|(template, html, data)| json!({"template": template, "html": html, "data": data, "includes": includes}));
    let answers = node("handlebars.cjs", &asked.collect())?;
    Ok(answers.as_array().context("no list")?.clone())
}

#[test]
fn templates_say_what_handlebars_itself_makes_of_them() -> Result<()> {
    let case = |seed: u64| {
        let mut dice = Dice(seed);
        let template = dice.template(false, 3);
        (template, seed.is_multiple_of(2), dice.data())
    };
    let cases: Vec<_> = (0..CASES).map(|seed| case(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    let (mut rendered, mut in_lines) = (0, 0);
    let mut differing = Vec::new();
    for ((template, html, data), answer) in cases.iter().zip(theirs(&cases)?) {
        let own = ours(template, *html, data);
        match (&own, answer["text"].as_str()) {
            (Ok(own), Some(text)) if own == text => rendered += 1,
            // The two read "alone on its line" differently where a comment, or the end of a chain, follows what was trimmed.
            (Ok(own), Some(text)) if own.replace('\n', "") == text.replace('\n', "") => in_lines += 1,
            (Err(TemplateError::Missing(_)), None) => {}
            _ => differing.push(format!("template {template:?}\ndata {data}\nours {own:?}\ntheirs {answer}")),
        }
    }
    assert!(
        differing.is_empty(),
        "{} of {}:\n{}",
        differing.len(),
        cases.len(),
        differing.iter().take(6).cloned().collect::<Vec<_>>().join("\n\n")
    );
    assert!(in_lines * 100 <= cases.len(), "{in_lines} differ in line ends");
    assert!(rendered >= 300, "only {rendered} were rendered by both");
    Ok(())
}

/// The negative twin: different texts differ, and both refuse a missing variable.
#[test]
fn another_text_and_a_missing_variable_are_told_apart() -> Result<()> {
    let data = json!({"a": "1 < 2", "deep": {}});
    let cases = ["{{a}}", "{{a}}!", "{{nobody}}", "{{deep.nobody}}", "{{#each a}}"]
        .map(|text| (text.to_owned(), true, data.clone()));
    let answers = theirs(&cases)?;
    assert_eq!(answers[0]["text"], json!(ours("{{a}}", true, &data)?));
    assert_ne!(answers[1]["text"], json!(ours("{{a}}", true, &data)?));
    assert_ne!(answers[0]["text"], json!(ours("{{a}}", false, &data)?), "a text is not escaped");
    for (case, answer) in cases.iter().zip(&answers).skip(2) {
        assert!(answer["refused"].is_string() && ours(&case.0, true, &data).is_err(), "{answer}");
    }
    Ok(())
}
